"""Reinforcement learning on the task's own reward, which is what makes experts, or on one that another run learnt."""

from collections.abc import Callable
from dataclasses import dataclass
from pathlib import Path
from typing import Any, NamedTuple

import jax
import jax.numpy as jnp
from jaxtyping import Array, Int

from vdbjax.rl.optimizer import OptimizerConfig, make_learner, plan_batch
from vdbjax.rl.policy import Actor, Policy, act_by_sampling
from vdbjax.rl.rollout import RolloutState, evaluate_actor, rollout, start_rollout
from vdbjax.types import Algorithm, Environment, Key, Metrics


@dataclass(frozen=True)
class Config(OptimizerConfig):
    """Reinforcement learning on the task's own reward: makes experts."""

    reward: Path | None = None
    """Run of an adversarial recipe whose learnt reward (that of its first seed) takes the place of the task's own."""


class Reward(NamedTuple):
    """What takes the place of the task's reward; `params` travel in the state, so that each seed may have its own."""

    apply: Callable[[Any, Array, Array, Array], Array]  # (params, observation, action, next observation), task's units
    params: Any


class State(NamedTuple):
    """Everything a run needs to go on."""

    agent: Any
    rollout: RolloutState
    reward: Any  # parameters of the learnt reward; () where the task's own is learnt from
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
    reward: Reward | None = None,
) -> Algorithm:
    """PPO or TRPO on the true reward, or on the learnt one given.

    `episode/return` and `eval/return` are the true reward's all the same, and `reward/mean` is of the one learnt from.
    """
    learner = make_learner(
        config.learner,
        environment,
        policy,
        value_network=value_network,
        num_iterations=num_iterations,
        num_envs=num_envs,
    )
    length = plan_batch(config.learner, num_envs).rollout_length

    def init(key: Key) -> State:
        key_agent, key_env, key_run = jax.random.split(key, 3)
        episodes = start_rollout(environment, key_env, num_envs)
        params = jax.tree.map(jnp.array, reward.params) if reward else ()
        return State(learner.init(key_agent), episodes, params, jnp.int32(0), key_run)

    def update(state: State, batch: None) -> tuple[State, Metrics]:
        key_rollout, key_learn = jax.random.split(jax.random.fold_in(state.key, state.step))
        act = act_by_sampling(policy, state.actor)
        episodes, steps, metrics = rollout(environment, act, state.rollout, key_rollout, length=length)
        if reward:
            action = policy.bound(steps.action)
            steps = steps._replace(reward=reward.apply(state.reward, steps.observation, action, steps.next_observation))
        agent, learnt = learner.learn(state.agent, steps, key_learn, state.step)
        return state._replace(agent=agent, rollout=episodes, step=state.step + 1), metrics | learnt

    def evaluate(state: State, key: Key) -> Metrics:
        return evaluate_actor(environment, policy, state.actor, key, num_episodes=num_eval_episodes)

    return Algorithm(init, update, evaluate)
