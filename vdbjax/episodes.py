"""Episodes of a trained policy: to look at, or whole as demonstrations for another one."""

import time
from collections.abc import Callable, Iterator
from pathlib import Path
from typing import Any, NamedTuple

import jax
import jax.numpy as jnp
import numpy as np
from jaxtyping import Array, Float
from rich.console import Console

from vdbjax.data.demonstrations import DemonstrationFile, from_episodes
from vdbjax.envs.env import engine_of
from vdbjax.rl.policy import Actor, Policy, act_by_mean, act_by_sampling
from vdbjax.rl.rollout import Trace, rollout, run_episodes, start_rollout, trace_episodes
from vdbjax.sharding import in_whole_batches
from vdbjax.trained import Trained, load_trained
from vdbjax.training.devices import root_key
from vdbjax.types import Environment, EnvState, Key, Transition

RANDOM_EPISODES = 100
GIVE_UP_AFTER = 20  # episodes played for each one asked for


class Episode(NamedTuple):
    """One episode of T control steps, on the host; actions in the task's units."""

    observations: Float[np.ndarray, "steps_and_one observation"]
    actions: Float[np.ndarray, "steps action"]
    rewards: Float[np.ndarray, " steps"]
    terminated: bool  # else cut by the time limit

    @property
    def undiscounted_return(self) -> float:
        """The sum of the rewards, in float64."""
        return float(self.rewards.sum(dtype=np.float64))

    def cut(self, num_steps: int) -> "Episode":
        """Its first steps; the whole episode where it has no more."""
        if num_steps >= len(self.actions):
            return self
        return Episode(
            self.observations[: num_steps + 1], self.actions[:num_steps], self.rewards[:num_steps], terminated=False
        )


def watch_episodes(
    trained: Trained,
    *,
    num_episodes: int,
    num_steps: int,
    see: Callable[[EnvState], Any],
    seed: int = 0,
    stochastic: bool = False,
) -> Trace:
    """What `see` makes of the episodes of a run's policy (of its first seed), from fresh starts, on the host.

    There are `num_episodes` of them or some more, as many as the devices share.
    """
    environment, policy = trained.built.environment, trained.built.policy
    make = act_by_sampling if stochastic else act_by_mean
    count = in_whole_batches(num_episodes)

    def play(actor: Actor, key: Key) -> Trace:
        act = make(policy, actor)
        return trace_episodes(environment, act, key, num_episodes=count, num_steps=num_steps, see=see)

    return jax.device_get(jax.jit(play)(jax.device_get(trained.actors[0]), fresh_key(seed)))


def collect_episodes(
    run: str | Path,
    *,
    num_episodes: int,
    num_transitions: int | None = None,
    deterministic: bool,
    seed: int,
    min_return: float | None = None,
) -> DemonstrationFile:
    """`num_episodes` whole episodes of a run's policy (of its first seed), each from a fresh start.

    With `num_transitions` as many episodes as hold these, the last one cut off where they are enough. With `min_return`
    only episodes of at least that undiscounted return count, in the order played. `random_return` is the mean return of
    `RANDOM_EPISODES` episodes of uniformly random actions, on the same engine.

    Raises:
      ValueError: no such run, or too few good episodes among `GIVE_UP_AFTER` times as much play as asked for.
    """
    trained = load_trained(run)
    length = trained.built.environment.episode_length
    num_episodes = -(-num_transitions // length) if num_transitions else num_episodes
    key_random, key_episodes = jax.random.split(fresh_key(seed))
    with Console(stderr=True).status("a random policy's episodes, for reference") as status:
        random = random_return(trained.built.environment, key_random)
        kept: list[Episode] = []
        best, started, count, steps = -np.inf, time.monotonic(), 0, 0
        played = _play(trained, key_episodes, batch=num_episodes, deterministic=deterministic)
        while not _enough(kept, num_episodes, num_transitions):
            # Where transitions count, play is measured in steps, since short episodes hold few.
            if (steps / length if num_transitions else count) >= GIVE_UP_AFTER * num_episodes:
                asked = f"{num_transitions} transitions" if num_transitions else f"{num_episodes}"
                raise ValueError(
                    f"min_return ({min_return:g}) was reached by {len(kept)} of {count} episodes, fewer than the "
                    f"{asked} asked for; the best return was {best:.1f}: ask for less, or train longer"
                )
            episode = next(played)
            count, steps = count + 1, steps + len(episode.actions)
            best = max(best, episode.undiscounted_return)
            if min_return is None or episode.undiscounted_return >= min_return:
                kept.append(episode)
            status.update(f"kept {len(kept)} of {count} episodes, {time.monotonic() - started:.0f} s")
    if num_transitions:
        kept[-1] = kept[-1].cut(num_transitions - sum(len(episode.actions) for episode in kept[:-1]))
    demonstrations = from_episodes(
        [episode.observations for episode in kept],
        [episode.actions for episode in kept],
        [episode.rewards for episode in kept],
        [episode.terminated for episode in kept],
    )
    source = source_of(trained, deterministic=deterministic)
    return DemonstrationFile(demonstrations, trained.built.environment.name, random, source)


def _enough(kept: list[Episode], num_episodes: int, num_transitions: int | None) -> bool:
    if num_transitions is None:
        return len(kept) == num_episodes
    return sum(len(episode.actions) for episode in kept) >= num_transitions


def fresh_key(seed: int) -> Key:
    """The key of a command that plays a trained policy, apart from the one that a run of the same seed trained with."""
    return jax.random.fold_in(root_key(seed), 2**31)


def source_of(trained: Trained, *, deterministic: bool) -> str:
    """One line on who acted: recipe, training, kind of actions, engine."""
    config, steps = trained.config, trained.iteration * trained.built.schedule.env_steps_per_iteration
    length = f"{trained.iteration} iterations" + (f" ({steps} steps)" if steps else "")
    actions = "mean actions" if deterministic else "sampled actions"
    return f"{config.recipe} after {length}, seed {config.seed}, {actions}, engine {engine_of(config.environment)}"


def random_return(environment: Environment, key: Key) -> float:
    """Mean undiscounted return of actions drawn uniformly from the task's box."""
    low, high = jnp.array(environment.action_low), jnp.array(environment.action_high)

    def act(observation: Array, key: Key) -> tuple[Array, Array, Array]:
        action = jax.random.uniform(key, (len(observation), len(low)))
        action = low[None] + (high - low)[None] * action
        return action, jnp.zeros(len(action)), action

    count = in_whole_batches(RANDOM_EPISODES)
    episodes = jax.jit(lambda key: run_episodes(environment, act, key, num_episodes=count))(key)
    return float(np.asarray(episodes.returns).mean(dtype=np.float64))


def _play(trained: Trained, key: Key, *, batch: int, deterministic: bool) -> Iterator[Episode]:
    """Episodes without end, a batch at a time."""
    environment, policy = trained.built.environment, trained.built.policy
    batch, actor = in_whole_batches(batch), jax.device_get(trained.actors[0])
    record = jax.jit(lambda actor, key: _record(environment, policy, actor, key, batch, deterministic))
    for index in range(2**31):
        columns = jax.device_get(record(actor, jax.random.fold_in(key, index)))
        yield from (_first_episode(columns, column) for column in range(batch))


def _record(
    environment: Environment, policy: Policy, actor: Actor, key: Key, batch: int, deterministic: bool
) -> Transition:
    """As many steps as the longest episode has, with actions in the task's units."""
    act = (act_by_mean if deterministic else act_by_sampling)(policy, actor)
    key_start, key_steps = jax.random.split(key)
    state = start_rollout(environment, key_start, batch)
    _, transitions, _ = rollout(environment, act, state, key_steps, length=environment.episode_length)
    return transitions._replace(action=policy.bound(transitions.action))


def _first_episode(transitions: Transition, column: int) -> Episode:
    """What came before the first restart. Later episodes would favour short ones, since the last is cut."""
    alone = jax.tree.map(lambda field: np.asarray(field)[:, column], transitions)
    length = int(np.argmax(alone.terminated | alone.truncated)) + 1
    observations = np.concatenate([alone.observation[:length], alone.next_observation[length - 1 : length]])
    terminated = bool(alone.terminated[length - 1])
    return Episode(observations, alone.action[:length], alone.reward[:length], terminated)
