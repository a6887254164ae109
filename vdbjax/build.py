"""How a config becomes a running algorithm."""

import math
from typing import Any, NamedTuple

import jax
import numpy as np

from vdbjax.compiler import compiler_options
from vdbjax.data.demonstrations import DemonstrationFile, embedded, episode_returns, load, subsample
from vdbjax.envs.check import check_environment
from vdbjax.envs.env import make_environment
from vdbjax.imitation import airl, behavioral_cloning, gail, pixel_reward
from vdbjax.motion_score import scored_by_motion
from vdbjax.networks import GaussianActor, Value
from vdbjax.rl import reinforcement
from vdbjax.rl.optimizer import plan_batch
from vdbjax.rl.policy import Actor, Policy, make_policy
from vdbjax.run_config import DemonstrationConfig, RunConfig
from vdbjax.sharding import check_shares, in_whole_batches
from vdbjax.training.loop import Schedule
from vdbjax.types import Algorithm, Environment, Key, Metrics


class Built(NamedTuple):
    """A config made real."""

    algorithm: Algorithm
    environment: Environment
    policy: Policy
    schedule: Schedule
    facts: dict[str, Any]  # what the config left open, for config.json and the first line
    options: dict[str, str]  # the compiler's


class Reference(NamedTuple):
    """What a score of 0 and of 1 stand for, as undiscounted true returns."""

    random_return: float
    expert_return: float

    @property
    def tells_apart(self) -> bool:
        """Whether a score means something: not where the random return is unknown, NaN, or the expert's too."""
        return math.isfinite(self.expert_return - self.random_return) and self.expert_return != self.random_return

    def score(self, value: Any) -> Any:
        """The return, normalised."""
        return (value - self.random_return) / (self.expert_return - self.random_return)


def build(
    config: RunConfig,
    *,
    start_from: Actor | None = None,
    environment: Environment | None = None,
    reward: reinforcement.Reward | None = None,
) -> Built:
    """The algorithm, its environment (by default the config's) and its schedule.

    The algorithm is of one seed; `training.loop.over_seeds` makes of it one of the config's `num_seeds`, which is what
    a run folder of that config holds. A run in another environment than the config's is gone on with by the same call
    and `train(..., resume=True)`, and loaded by `trained.load_trained` with it; commands do not know that environment.

    `start_from` and `reward` are what the config's `init_from` and `reward` name. Raises ValueError for what does not
    fit together, and for an environment that does not keep its protocol.
    """
    if environment:
        check_environment(environment)
    else:
        environment = make_environment(config.environment)
    networks = config.policy_config
    actor = GaussianActor(networks.hidden_sizes, environment.action_size, networks.initial_std, networks.activation)
    policy = make_policy(actor, environment, distribution=networks.distribution)
    _check_fit(config, environment, policy, start_from)
    schedule = schedule_of(config)
    facts: dict[str, Any] = {"devices": jax.device_count()}
    if config.demonstration is None:
        algorithm = _algorithm(config, environment, policy, schedule, environment.demonstrations, reward=reward)
    else:
        file = _demonstrations(config.demonstration, environment)
        chosen = subsample(
            file.demonstrations,
            trajectories=config.demonstration.trajectories,
            every=config.demonstration.every,
            seed=config.seed,
        )
        algorithm = _algorithm(config, environment, policy, schedule, chosen, start_from)
        facts |= {"transitions": len(chosen.observation), "expert": file.source}
        reference = Reference(file.random_return, float(episode_returns(file.demonstrations).mean()))
        if reference.tells_apart:
            algorithm, facts = _scored(algorithm, reference), facts | reference._asdict()
    if environment.follow:
        episodes = in_whole_batches(config.eval_episodes)
        algorithm = scored_by_motion(algorithm, environment, policy, num_episodes=episodes)
    return Built(algorithm, environment, policy, schedule, facts, compiler_options())


def _algorithm(
    config: RunConfig,
    environment: Environment,
    policy: Policy,
    schedule: Schedule,
    demonstrations: Any = None,  # where the recipe learns from some
    start_from: Actor | None = None,
    reward: reinforcement.Reward | None = None,
) -> Algorithm:
    algorithm, episodes = config.algorithm, in_whole_batches(config.eval_episodes)
    if isinstance(algorithm, behavioral_cloning.Config):
        return behavioral_cloning.make(algorithm, environment, policy, demonstrations, num_eval_episodes=episodes)
    sizes: dict[str, Any] = {
        "value_network": Value(algorithm.learner.hidden_sizes, algorithm.learner.activation),
        "num_envs": config.num_envs,
        "num_iterations": schedule.num_iterations,
        "num_eval_episodes": episodes,
    }
    if isinstance(algorithm, gail.Config):
        return gail.make(algorithm, environment, policy, demonstrations, start_from=start_from, **sizes)
    if isinstance(algorithm, airl.Config):
        return airl.make(algorithm, environment, policy, demonstrations, **sizes)
    if isinstance(algorithm, pixel_reward.Config):
        return pixel_reward.make(algorithm, environment, policy, **sizes)
    return reinforcement.make(algorithm, environment, policy, reward=reward, **sizes)


def _check_fit(config: RunConfig, environment: Environment, policy: Policy, start_from: Actor | None) -> None:
    check_shares("num_envs", config.num_envs)
    learns_from_the_task = isinstance(config.algorithm, gail.Config) and config.demonstration is None
    if learns_from_the_task and config.algorithm.discriminator.inputs == "state-action":
        raise ValueError(
            f"discriminator.inputs 'state-action': what {environment.name} itself brings to learn from has no actions; "
            f"take 'state' or 'transition'"
        )
    if start_from is None:
        return
    found, size = start_from.observations.mean.shape[0], environment.observation_size
    if found != size:
        raise ValueError(
            f"init_from has a policy of {found} observations, {environment.name} has {size}; give a run of this task"
        )
    layers = [
        [leaf.shape for leaf in jax.tree.leaves(params)]
        for params in (start_from.params, jax.eval_shape(policy.init, jax.random.key(0)))
    ]
    if layers[0] != layers[1]:
        raise ValueError(
            f"init_from holds a policy of layers {layers[0]}, but this run's has {layers[1]}; "
            f"give a run of this task with the same hidden_sizes"
        )


OUTSIDE = 0.01
"""How far the actions of demonstrations may lie outside the task's range, as a share of it."""


def _demonstrations(config: DemonstrationConfig, environment: Environment) -> DemonstrationFile:
    if config.demonstrations is None:
        return embedded(environment.name)
    file = load(
        config.demonstrations,
        task=environment.name,
        observation_size=environment.observation_size,
        action_size=environment.action_size,
    )
    low, high = np.array(environment.action_low), np.array(environment.action_high)
    outside = np.max(np.maximum(low - file.demonstrations.action, file.demonstrations.action - high) / (high - low))
    if outside > OUTSIDE:  # no policy could do that
        raise ValueError(
            f"{config.demonstrations} has actions that lie outside the range of {environment.name} by {outside:.0%} of "
            f"it; rescale them, or clip them where they only overshoot"
        )
    return file


def schedule_of(config: RunConfig) -> Schedule:
    """How many iterations the steps asked for are, at least one; cloning takes none and counts its own."""
    if isinstance(config.algorithm, behavioral_cloning.Config):
        return Schedule(config.algorithm.max_iterations, 0, config.evaluations, config.checkpoint_seconds)
    steps = config.num_envs * plan_batch(config.algorithm.learner, config.num_envs).rollout_length
    # Larger batches learn less from each step: 8.5 million steps were enough at 4,096 environments.
    total = config.total_steps or round(1e6 * max(1.0, steps / 2048) ** 0.62)
    return Schedule(max(1, round(total / steps)), steps, config.evaluations, config.checkpoint_seconds)


def rollout_bytes(config: RunConfig, environment: Environment) -> int:
    """What the rollouts of all seeds take, roughly: each step's numbers, and two copies of them while learning."""
    if isinstance(config.algorithm, behavioral_cloning.Config):
        return 0
    steps = config.num_envs * plan_batch(config.algorithm.learner, config.num_envs).rollout_length
    numbers = 2 * environment.observation_size + 2 * environment.action_size + 8
    return 3 * 4 * config.num_seeds * steps * numbers


def _scored(algorithm: Algorithm, reference: Reference) -> Algorithm:
    """The same algorithm, its evaluation with scores: 0 is a random policy's return, 1 the demonstrations'."""

    def evaluate(state: Any, key: Key) -> Metrics:
        metrics = algorithm.evaluate(state, key)
        return metrics | {
            "eval/score": reference.score(metrics["eval/return"]),
            "eval/stochastic_score": reference.score(metrics["eval/stochastic_return"]),
        }

    return algorithm._replace(evaluate=evaluate)
