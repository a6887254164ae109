"""Reinforcement learning on the task's own reward, which is what makes experts."""

from collections.abc import Callable
from dataclasses import dataclass, field
from typing import Any, NamedTuple

import jax
import jax.numpy as jnp
from jaxtyping import Array, Int

from vdbjax.rl.policy import Actor, Policy, act_by_sampling
from vdbjax.rl.ppo import AgentState, PPOConfig, make_learner, plan_batch
from vdbjax.rl.rollout import RolloutState, evaluate_actor, rollout, start_rollout
from vdbjax.types import Algorithm, Environment, Key, Metrics, Transition


@dataclass(frozen=True)
class Config:
    """Reinforcement learning on the task's own reward, by PPO: makes experts."""

    ppo: PPOConfig = field(default_factory=PPOConfig)
    """How the policy learns."""


class State(NamedTuple):
    """Everything a run needs to go on."""

    agent: AgentState
    rollout: RolloutState
    step: Int[Array, ""]  # iterations done
    key: Key

    @property
    def actor(self) -> Actor:
        """What acts."""
        return self.agent.actor


def make(
    config: Config,
    environment: Environment,
    policy: Policy,
    *,
    value_network: Any,
    num_envs: int,
    num_iterations: int,
    num_eval_episodes: int,
    reward: Callable[[Transition], Array] | None = None,
) -> Algorithm:
    """PPO on the true reward, or on another one of the rollout `[time, num_envs]`."""
    learner = make_learner(
        config.ppo,
        environment,
        policy,
        value_network=value_network,
        num_iterations=num_iterations,
        num_envs=num_envs,
    )
    length = plan_batch(config.ppo, num_envs).rollout_length

    def init(key: Key) -> State:
        key_agent, key_env, key_run = jax.random.split(key, 3)
        return State(learner.init(key_agent), start_rollout(environment, key_env, num_envs), jnp.int32(0), key_run)

    def update(state: State, batch: None) -> tuple[State, Metrics]:
        key_rollout, key_learn = jax.random.split(jax.random.fold_in(state.key, state.step))
        act = act_by_sampling(policy, state.actor)
        episodes, steps, metrics = rollout(environment, act, state.rollout, key_rollout, length=length)
        if reward:
            steps = steps._replace(reward=reward(steps))
        agent, learnt = learner.learn(state.agent, steps, key_learn, state.step)
        return State(agent, episodes, state.step + 1, state.key), metrics | learnt

    def evaluate(state: State, key: Key) -> Metrics:
        return evaluate_actor(environment, policy, state.actor, key, num_episodes=num_eval_episodes)

    return Algorithm(init, update, evaluate)
