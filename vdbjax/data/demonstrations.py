"""Expert demonstrations: files of them, whole episodes, and the subsampling of GAIL's experiments."""

import importlib.resources
from collections.abc import Sequence
from importlib.resources.abc import Traversable
from pathlib import Path
from typing import NamedTuple

import numpy as np
from jaxtyping import Float, Integer
from numpy.typing import ArrayLike

from vdbjax.data.stored_episodes import DemonstrationError, StoredEpisodes, checked, read_members, write
from vdbjax.types import Demonstrations

EMBEDDED: Traversable = importlib.resources.files("vdbjax.data") / "embedded"


class DemonstrationFile(NamedTuple):
    """Demonstrations and what one must know to use them; returns are undiscounted sums of the task's own reward."""

    demonstrations: Demonstrations  # NumPy, float32 and bool, whole episodes
    task: str
    random_return: float  # mean return of a random policy; nan where unknown
    source: str  # one line: who the expert was


def save(path: str | Path, file: DemonstrationFile, *, overwrite: bool = False) -> None:
    """Writes a demonstration file, whole or not at all.

    Raises:
      DemonstrationError: `path` exists and `overwrite` is False, or the demonstrations are not whole, finite episodes.
    """
    path = Path(path)
    if path.exists() and not overwrite:
        raise DemonstrationError(f"{path} exists; choose another name, or remove it first")
    stored = checked(_stored(file.demonstrations), where="demonstrations")
    write(path, stored, task=file.task, random_return=file.random_return, source=file.source)


def load(
    path: str | Path, *, task: str | None = None, observation_size: int | None = None, action_size: int | None = None
) -> DemonstrationFile:
    """Reads a demonstration file, and checks it against the task that it is meant for, where one is named.

    Raises:
      DemonstrationError: no such file, not a demonstration file, damaged, of wrong shapes, not finite, without
        episodes, or of another task.
    """
    members = read_members(Path(path))
    stored = checked(StoredEpisodes(**{name: members[name] for name in StoredEpisodes._fields}), where=str(path))
    labels = str(members["task"]), float(members["random_return"]), str(members["source"])
    file = DemonstrationFile(_transitions(stored), *labels)
    _check_task(file, where=str(path), task=task, observation_size=observation_size, action_size=action_size)
    return file


def embedded(task: str) -> DemonstrationFile:
    """The expert demonstrations of `task` that come with the package.

    Raises:
      DemonstrationError: none are embedded for this task.
    """
    files = [entry for entry in EMBEDDED.iterdir() if entry.name.endswith(".npz")] if EMBEDDED.is_dir() else []
    by_task = {entry.name.removesuffix(".npz"): entry for entry in files}
    name = task.replace("/", "-")  # maze/c lies in maze-c.npz
    if name not in by_task:
        expert = "motion-tracking" if task.startswith("mocap/") else "ppo"
        raise DemonstrationError(
            f"no demonstrations of task {task!r} come with the package (of: {', '.join(sorted(by_task)) or 'none'});"
            f" train an expert with `python -m vdbjax.train {expert} --env {task}`, collect its episodes with"
            f" `python -m vdbjax.demos collect RUN --out FILE`, and give --demonstrations FILE"
        )
    with importlib.resources.as_file(by_task[name]) as path:
        return load(path, task=task)


def from_episodes(
    observations: Sequence[ArrayLike],
    actions: Sequence[ArrayLike],
    rewards: Sequence[ArrayLike],
    terminated: Sequence[bool],
) -> Demonstrations:
    """Demonstrations from episodes of T steps: T+1 observations, T actions, T rewards, and how each ended.

    An episode that is not terminated was truncated by its time limit.

    Raises:
      DemonstrationError: the lists or the episodes do not fit together, are empty, or hold NaN or infinity.
    """
    counts = len(observations), len(actions), len(rewards), len(terminated)
    if len(set(counts)) > 1:
        raise DemonstrationError(f"observations, actions, rewards, terminated are of {counts} episodes: not of as many")
    if not counts[0]:
        raise DemonstrationError("no episodes")
    arrays = [[np.asarray(x) for x in of_episodes] for of_episodes in (observations, actions, rewards)]
    for episode, (o, a, r) in enumerate(zip(*arrays)):
        if (o.ndim, a.ndim, r.ndim) != (2, 2, 1) or not len(o) - 1 == len(a) == len(r):
            raise DemonstrationError(
                f"episode {episode}: observations {o.shape}, actions {a.shape}, rewards {r.shape} "
                f"are not of shapes [T+1, observation], [T, action], [T]"
            )
    for name, of_episodes in zip(("observations", "actions"), arrays):
        if len(sizes := {x.shape[1] for x in of_episodes}) > 1:
            raise DemonstrationError(f"{name} differ in size between episodes: {sorted(sizes)}")
    lengths = np.array([len(r) for r in arrays[2]])
    joined = [np.concatenate(of_episodes) for of_episodes in arrays]
    stored = StoredEpisodes(joined[0], joined[1], joined[2], np.asarray(terminated), lengths)
    return _transitions(checked(stored, where="episodes"))


def episode_slices(demonstrations: Demonstrations) -> list[slice]:
    """Where each episode lies along the N transitions.

    Raises:
      DemonstrationError: these are not whole episodes (subsampled demonstrations are not).
    """
    observation, successor = np.asarray(demonstrations.observation), np.asarray(demonstrations.next_observation)
    ended = np.asarray(demonstrations.terminated) | np.asarray(demonstrations.truncated)
    if not len(ended) or not ended[-1]:
        raise DemonstrationError("the last transition ends no episode: demonstrations are empty, cut or subsampled")
    # NaN counts as equal here, so that a NaN is later reported as the NaN that it is.
    follows = np.all((successor[:-1] == observation[1:]) | np.isnan(successor[:-1]), axis=1)
    if np.any(gaps := ~(follows | ended[:-1])):
        raise DemonstrationError(
            f"transition {np.argmax(gaps) + 1} does not follow the one before: demonstrations are subsampled"
        )
    ends = np.flatnonzero(ended) + 1
    return [slice(int(start), int(end)) for start, end in zip([0, *ends[:-1]], ends)]


def episode_lengths(demonstrations: Demonstrations) -> Integer[np.ndarray, " episodes"]:
    """Control steps in each episode; raises as `episode_slices`."""
    return np.array([where.stop - where.start for where in episode_slices(demonstrations)], np.int64)


def episode_returns(demonstrations: Demonstrations) -> Float[np.ndarray, " episodes"]:
    """Undiscounted return of each episode, summed in float64; raises as `episode_slices`."""
    reward = np.asarray(demonstrations.reward, np.float64)
    return np.array([reward[where].sum() for where in episode_slices(demonstrations)], np.float64)


def subsample(demonstrations: Demonstrations, *, trajectories: int, every: int, seed: int) -> Demonstrations:
    """`trajectories` distinct episodes drawn at random, and of each every `every`-th transition; for training only.

    Episode i keeps transitions o_i, o_i + every, o_i + 2 every, ..., with o_i uniform on [0, min(every, T_i)). Kept
    transitions keep their true `next_observation` and flags; the last kept one of an episode need not end it, so the
    result has no episodes to count, sum or save. With one seed, a larger `trajectories` adds episodes to those of a
    smaller one, with the same offsets.

    Raises:
      DemonstrationError: fewer episodes than asked for, or a number below 1.

    Source: GAIL, section 6 (trajectories of about 50 state-action pairs each).
    """
    if trajectories < 1 or every < 1:
        raise DemonstrationError(f"trajectories ({trajectories}) and every ({every}) must be at least 1")
    lengths = episode_lengths(demonstrations)
    if trajectories > len(lengths):
        raise DemonstrationError(
            f"trajectories ({trajectories}) is more than the {len(lengths)} episodes of the demonstrations"
        )
    generator = np.random.default_rng(seed)
    chosen = generator.permutation(len(lengths))[:trajectories]
    offsets = generator.integers(np.minimum(every, lengths))  # below T_i: a short episode still gives a transition
    ends = np.cumsum(lengths)
    kept = [np.arange(ends[i] - lengths[i] + offsets[i], ends[i], every) for i in chosen]
    return _take(demonstrations, np.concatenate(kept))


def _take(demonstrations: Demonstrations, rows: np.ndarray) -> Demonstrations:
    return Demonstrations(*(np.asarray(field)[rows] for field in demonstrations))


def _stored(demonstrations: Demonstrations) -> StoredEpisodes:
    slices = episode_slices(demonstrations)
    lasts = [where.stop - 1 for where in slices]
    observation, successor = np.asarray(demonstrations.observation), np.asarray(demonstrations.next_observation)
    return StoredEpisodes(
        observations=np.concatenate([x for s in slices for x in (observation[s], successor[s.stop - 1 : s.stop])]),
        actions=np.asarray(demonstrations.action),
        rewards=np.asarray(demonstrations.reward),
        terminated=np.asarray(demonstrations.terminated)[lasts],
        episode_lengths=np.array([where.stop - where.start for where in slices]),
    )


def _transitions(stored: StoredEpisodes) -> Demonstrations:
    ends = np.cumsum(stored.episode_lengths)
    ends_with_last = np.cumsum(stored.episode_lengths + 1)
    terminated, truncated = np.zeros((2, ends[-1]), bool)
    terminated[ends - 1], truncated[ends - 1] = stored.terminated, ~stored.terminated
    return Demonstrations(
        observation=np.delete(stored.observations, ends_with_last - 1, axis=0),
        action=stored.actions,
        next_observation=np.delete(stored.observations, np.r_[0, ends_with_last[:-1]], axis=0),
        reward=stored.rewards,
        terminated=terminated,
        truncated=truncated,
    )


def _check_task(
    file: DemonstrationFile, *, where: str, task: str | None, observation_size: int | None, action_size: int | None
) -> None:
    found = file.demonstrations.observation.shape[1], file.demonstrations.action.shape[1]
    expected = observation_size or found[0], action_size or found[1]
    if task not in (None, file.task) or expected != found:
        sizes = f" {expected}" if observation_size or action_size else ""
        raise DemonstrationError(
            f"{where}: demonstrations of {file.task!r} ({found[0]} observations, {found[1]} actions) "
            f"given to task {task or file.task!r}{sizes}"
        )
