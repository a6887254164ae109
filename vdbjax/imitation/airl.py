"""Adversarial inverse reinforcement learning (Fu et al. 2018); with a bottleneck, VAIRL (VDB section 4.3).

The policy learns from the discriminator's f, a reward g shaped by a potential h. What is learnt of g can be optimised
again, in a task with other dynamics.
"""

from dataclasses import dataclass, field
from functools import partial
from typing import Any, NamedTuple

import jax
import jax.numpy as jnp
import optax
from jaxtyping import Array, Int

from vdbjax.bottleneck import BottleneckConfig
from vdbjax.imitation import replay
from vdbjax.imitation.airl_discriminator import DiscriminatorConfig, Rows, make_discriminator
from vdbjax.imitation.discriminator import DiscriminatorState
from vdbjax.rl.normalize import empty_moments, normalize, sample_moments
from vdbjax.rl.optimizer import OptimizerConfig, make_learner, plan_batch
from vdbjax.rl.policy import Actor, Policy, act_by_sampling
from vdbjax.rl.rollout import RolloutState, evaluate_actor, rollout, start_rollout
from vdbjax.types import Algorithm, Demonstrations, Environment, Key, Metrics


@dataclass(frozen=True)
class Config(OptimizerConfig):
    """Adversarial inverse reinforcement learning from demonstrations."""

    discriminator: DiscriminatorConfig = field(default_factory=DiscriminatorConfig)
    """The reward that is learnt."""
    bottleneck: BottleneckConfig | None = None
    """The variational bottleneck before g and h, which makes AIRL VAIRL."""


class State(NamedTuple):
    """Everything a run needs to go on."""

    agent: Any
    discriminator: DiscriminatorState
    learnt_reward: Any  # parameters of the reward that is kept
    replay: Rows  # [replay_blocks, rows]: of iterations drawn evenly from all so far, an equal part each
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
    demonstrations: Demonstrations,
    *,
    value_network: Any,
    num_envs: int,
    num_iterations: int,
    num_eval_episodes: int,
) -> Algorithm:
    """AIRL or VAIRL from the demonstrations.

    The policy learns from f, at the mean of the codes; its learner's entropy weight stands for AIRL's - log pi.
    """
    expert = Rows(
        jnp.asarray(demonstrations.observation),
        jnp.asarray(demonstrations.action),
        jnp.asarray(demonstrations.next_observation),
        jnp.zeros(len(demonstrations.reward)),
    )
    judge = config.discriminator
    moments = sample_moments(expert.observation) if judge.normalize else empty_moments(expert.observation.shape[1:])
    plan = plan_batch(config.learner, num_envs)
    learner = make_learner(
        config.learner,
        environment,
        policy,
        value_network=value_network,
        num_iterations=num_iterations,
        num_envs=num_envs,
        observation_moments=moments,
    )
    discriminator = make_discriminator(
        judge,
        config.bottleneck,
        observation_size=environment.observation_size,
        action_size=environment.action_size,
        discount=config.learner.discount,
        num_updates=num_iterations * judge.updates,
        moments=moments,
    )
    batches = judge.updates, judge.batch_size

    def init(key: Key) -> State:
        key_agent, key_critic, key_env, key_run = jax.random.split(key, 4)
        memory = _empty(environment, judge.replay_blocks, num_envs * plan.rollout_length)
        episodes = start_rollout(environment, key_env, num_envs)
        critic = discriminator.init(key_critic)
        kept = jax.tree.map(jnp.copy, critic.params)  # what is donated must not be there twice
        return State(learner.init(key_agent), critic, kept, memory, episodes, jnp.int32(0), key_run)

    def update(state: State, batch: None) -> tuple[State, Metrics]:
        key = jax.random.fold_in(state.key, state.step)
        key_rollout, key_keep, key_rows, key_expert, key_critic, key_learn = jax.random.split(key, 6)
        act = act_by_sampling(policy, state.actor)
        episodes, steps, metrics = rollout(environment, act, state.rollout, key_rollout, length=plan.rollout_length)
        rated = partial(_rated, policy, state.actor)
        seen = Rows(steps.observation, policy.bound(steps.action), steps.next_observation, steps.log_prob)
        flat = jax.tree.map(lambda leaf: leaf.reshape(-1, *leaf.shape[2:]), seen)
        memory = replay.remember(key_keep, state.replay, flat, state.step, rated=rated)
        chosen = jax.random.randint(key_expert, batches, 0, len(expert.log_pi))
        shown = rated(jax.tree.map(lambda leaf: leaf[chosen], expert))
        mine = replay.draw(key_rows, memory, flat, state.step, batches, rated=rated)
        critic, judged = discriminator.step(state.discriminator, shown, mine, key_critic)
        steps = steps._replace(reward=discriminator.shaped(critic.params, seen))
        agent, learnt = learner.learn(state.agent, steps, key_learn, state.step)
        share = jnp.maximum(1.0 / (state.step + 1), 1.0 / judge.averaged_iterations)
        kept = optax.incremental_update(critic.params, state.learnt_reward, share)
        return State(agent, critic, kept, memory, episodes, state.step + 1, state.key), metrics | judged | learnt

    def evaluate(state: State, key: Key) -> Metrics:
        return evaluate_actor(environment, policy, state.actor, key, num_episodes=num_eval_episodes)

    def reward(params: Any, observation: Array, action: Array, next_observation: Array) -> Array:
        return discriminator.reward(params, observation, action)

    return Algorithm(init, update, evaluate, reward)


def _empty(environment: Environment, blocks: int, rows: int) -> Rows:
    """A memory of as many of an iteration's rows in each block as fill it with one iteration's worth in all."""
    shape = blocks, max(1, rows // blocks)
    seen, done = (jnp.zeros((*shape, size)) for size in (environment.observation_size, environment.action_size))
    return Rows(seen, done, jnp.copy(seen), jnp.zeros(shape))


def _rated(policy: Policy, actor: Actor, rows: Rows) -> Rows:
    """With log pi by this actor, of the actions as they were bounded: a draw beyond the range is its edge."""
    seen = normalize(actor.observations, rows.observation)
    return rows._replace(log_pi=policy.likelihood(actor.params, seen, rows.action))
