"""Generative adversarial imitation learning (Ho & Ermon 2016); with a bottleneck, VAIL (Peng et al. 2019, section 4.2).

Each iteration acts, trains the discriminator on expert and policy samples, replaces the task's reward by the
discriminator's, and lets the policy learn from that as from any reward.
"""

from dataclasses import dataclass, field
from typing import Any, NamedTuple

import jax
import jax.numpy as jnp
from jaxtyping import Array, Int

from vdbjax.bottleneck import BottleneckConfig
from vdbjax.imitation.adversarial_step import (
    Discriminator,
    DiscriminatorConfig,
    Judged,
    Trajectories,
    judge_film,
    make_discriminator,
)
from vdbjax.imitation.discriminator import DiscriminatorState
from vdbjax.rl.normalize import Moments, sample_moments
from vdbjax.rl.optimizer import OptimizerConfig, make_learner, plan_batch
from vdbjax.rl.policy import Actor, Policy, act_by_sampling
from vdbjax.rl.ppo import PPOConfig
from vdbjax.rl.rollout import RolloutState, evaluate_actor, rollout, start_rollout
from vdbjax.types import Algorithm, Demonstrations, Environment, Key, Metrics


@dataclass(frozen=True)
class Config(OptimizerConfig):
    """Adversarial imitation from demonstrations."""

    ppo: PPOConfig = field(default_factory=lambda: PPOConfig(entropy_weight=0.01))
    """How the policy learns by PPO; the entropy keeps it from settling early on a gait that falls."""
    discriminator: DiscriminatorConfig = field(default_factory=DiscriminatorConfig)
    """What rewards it."""
    bottleneck: BottleneckConfig | None = None
    """The variational bottleneck, which makes GAIL VAIL."""
    running_normalizer: bool = False
    """Normalise what the policy sees by its own running moments, not by the demonstrations' (which keeps it from
    settling on standing still, where the running deviations shrink)."""


class State(NamedTuple):
    """Everything a run needs to go on."""

    agent: Any
    discriminator: DiscriminatorState
    rollout: RolloutState
    step: Int[Array, ""]  # iterations done
    key: Key

    @property
    def actor(self) -> Actor:
        """What acts."""
        return self.agent.actor

    @property
    def learnt_reward(self) -> Any:
        """Parameters of the reward that is kept."""
        return self.discriminator.params


def make(
    config: Config,
    environment: Environment,
    policy: Policy,
    demonstrations: Demonstrations | None,
    *,
    value_network: Any,
    num_envs: int,
    num_iterations: int,
    num_eval_episodes: int,
    start_from: Actor | None = None,
) -> Algorithm:
    """GAIL or VAIL from the demonstrations, which it learns from as they are, or from the task's film.

    `start_from` is a cloned policy. Raises ValueError where the config does not fit what there is to learn from, and
    for a variance term without a value function of the observation alone.
    """
    if config.discriminator.variance_weight and config.optimizer == "trpo" and config.trpo.baseline == "linear":
        raise ValueError(
            f"variance_weight ({config.discriminator.variance_weight}) needs values of observations alone, which "
            "TRPO's linear baseline does not have; take --trpo.baseline network"
        )
    plan = plan_batch(config.learner, num_envs)
    learner = make_learner(
        config.learner,
        environment,
        policy,
        value_network=value_network,
        num_iterations=num_iterations,
        num_envs=num_envs,
        observation_moments=_fixed_moments(config, demonstrations, start_from),
    )
    discriminator, expert = make_judge(config, environment, demonstrations, num_envs=num_envs)

    def init(key: Key) -> State:
        key_agent, key_critic, key_env, key_run = jax.random.split(key, 4)
        agent = learner.init(key_agent)
        if start_from:
            agent = agent._replace(actor=start_from)
        episodes = start_rollout(environment, key_env, num_envs)
        return State(agent, discriminator.init(key_critic), episodes, jnp.int32(0), key_run)

    def update(state: State, batch: None) -> tuple[State, Metrics]:
        key_rollout, key_critic, key_learn = jax.random.split(jax.random.fold_in(state.key, state.step), 3)
        act = act_by_sampling(policy, state.actor)
        episodes, steps, metrics = rollout(environment, act, state.rollout, key_rollout, length=plan.rollout_length)
        trajectories = Trajectories(
            discriminator.judge(
                steps.observation, policy.bound(steps.action), steps.next_observation, steps.terminated
            ),
            steps.truncated,
            learner.values(state.agent, steps.observation),
            learner.values(state.agent, steps.next_observation),
            state.agent.reward_scale,
        )
        critic, judged = discriminator.step(state.discriminator, expert, trajectories, key_critic)
        steps = steps._replace(reward=discriminator.reward(critic.params, trajectories.judged))
        agent, learnt = learner.learn(state.agent, steps, key_learn, state.step)
        return State(agent, critic, episodes, state.step + 1, state.key), metrics | judged | learnt

    def evaluate(state: State, key: Key) -> Metrics:
        return evaluate_actor(environment, policy, state.actor, key, num_episodes=num_eval_episodes)

    def reward(params: Any, observation: Array, action: Array, next_observation: Array) -> Array:
        ongoing = jnp.zeros(observation.shape[:-1], bool)
        return discriminator.reward(params, discriminator.judge(observation, action, next_observation, ongoing))

    return Algorithm(init, update, evaluate, reward)


def make_judge(
    config: Config, environment: Environment, demonstrations: Demonstrations | None, *, num_envs: int
) -> tuple[Discriminator, Judged]:
    """The discriminator, and what it takes for the expert's."""
    discriminator = make_discriminator(
        config.discriminator,
        config.bottleneck,
        demonstrations and jax.tree.map(jnp.asarray, demonstrations),
        updates=config.discriminator.updates or max(1, plan_batch(config.learner, num_envs).num_minibatches // 2),
        discount=config.learner.discount,
        phase_size=environment.phase_size,
        picture=environment.picture,
    )
    if environment.film and config.discriminator.inputs == "frame":
        return discriminator, judge_film(config.discriminator, environment.film)
    if demonstrations is None:
        raise ValueError(f"{environment.name} brings no demonstrations for inputs {config.discriminator.inputs!r}")
    rows: Demonstrations = jax.tree.map(jnp.asarray, demonstrations)
    return discriminator, discriminator.judge(rows.observation, rows.action, rows.next_observation, rows.terminated)


def _fixed_moments(config: Config, demonstrations: Demonstrations | None, start_from: Actor | None) -> Moments | None:
    if config.running_normalizer:
        return None
    if start_from:
        return start_from.observations
    if demonstrations is None:
        raise ValueError("a film holds no states to normalise by: set running_normalizer")
    return sample_moments(jnp.asarray(demonstrations.observation))
