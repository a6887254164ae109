"""How demonstrations lie on disk: one compressed .npz without pickle, checked when read, written whole or not at all.

Each episode of T transitions is stored with its T+1 observations (as Minari does), so that every observation is there
once and the last one, which no action follows, is kept.
"""

import os
from pathlib import Path
from typing import Any, NamedTuple

import numpy as np

FORMAT = "vdbjax-demonstrations"
FORMAT_VERSION = 1


class DemonstrationError(ValueError):
    """Demonstrations that cannot be used; the message is one line that says what is wrong with which of them."""


class StoredEpisodes(NamedTuple):
    """N transitions in E episodes, episode after episode."""

    observations: np.ndarray  # [N + E, observation] float32
    actions: np.ndarray  # [N, action] float32
    rewards: np.ndarray  # [N] float32
    terminated: np.ndarray  # [E] bool; an episode that is not terminated is truncated
    episode_lengths: np.ndarray  # [E] int64, in transitions


_LABELS = ("format", "format_version", "task", "random_return", "source")
_DIMENSIONS = StoredEpisodes(observations=2, actions=2, rewards=1, terminated=1, episode_lengths=1)  # type: ignore[arg-type]


def checked(stored: StoredEpisodes, *, where: str) -> StoredEpisodes:
    """The same arrays in their own types, once they are known to be whole, finite episodes.

    Raises:
      DemonstrationError: wrong shapes or types, no episodes, an empty one, NaN or infinity; begins with `where`.
    """
    for name, array, dimensions in zip(stored._fields, stored, _DIMENSIONS):
        if array.ndim != dimensions or array.dtype.kind not in "fiub":
            raise DemonstrationError(
                f"{where}: {name} has shape {array.shape} and type {array.dtype}, "
                f"not {dimensions} dimensions of numbers"
            )
    lengths = stored.episode_lengths.astype(np.int64)
    if not len(lengths):
        raise DemonstrationError(f"{where}: no episodes")
    if np.any(lengths < 1):
        raise DemonstrationError(f"{where}: episode {np.argmin(lengths > 0)} is empty (length {lengths.min()})")
    total = int(lengths.sum())
    rows = {"observations": total + len(lengths), "actions": total, "rewards": total, "terminated": len(lengths)}
    for name, expected in rows.items():
        if (found := len(getattr(stored, name))) != expected:
            raise DemonstrationError(
                f"{where}: {name} has {found} rows, but {len(lengths)} episodes "
                f"of {total} transitions in all need {expected}"
            )
    return StoredEpisodes(
        _finite(stored.observations, lengths + 1, name=f"{where}: observations"),
        _finite(stored.actions, lengths, name=f"{where}: actions"),
        _finite(stored.rewards, lengths, name=f"{where}: rewards"),
        stored.terminated.astype(bool),
        lengths,
    )


def read_members(path: Path) -> dict[str, np.ndarray]:
    """The labels and arrays of a demonstration file, whose bytes are whole; the arrays are not yet `checked`.

    Raises:
      DemonstrationError: no such file, not a demonstration file, or damaged.
    """
    members = _whole_members(path)
    if missing := [name for name in (*_LABELS, *StoredEpisodes._fields) if name not in members]:
        raise DemonstrationError(
            f"{path}: not a demonstration file (without {', '.join(missing)}); "
            "vdbjax.data.demonstrations.save writes one from arrays"
        )
    found, own = (str(members["format"]), str(members["format_version"])), (FORMAT, str(FORMAT_VERSION))
    if found != own:
        raise DemonstrationError(f"{path}: format {' '.join(found)}, but this version reads {' '.join(own)}")
    if any(members[name].ndim for name in _LABELS) or members["random_return"].dtype.kind not in "fiu":
        raise DemonstrationError(
            f"{path}: not a demonstration file (task, random_return, source are not single values)"
        )
    return members


def write(path: Path, stored: StoredEpisodes, *, task: str, random_return: float, source: str) -> None:
    """Writes a file that has this name only once it is whole on disk."""
    labels = zip(_LABELS, (FORMAT, FORMAT_VERSION, task, float(random_return), source))
    members: dict[str, Any] = {name: np.asarray(value) for name, value in labels} | stored._asdict()
    path.parent.mkdir(parents=True, exist_ok=True)
    temporary = path.with_name(f".{path.name}.{os.getpid()}.tmp")
    try:
        with temporary.open("wb") as stream:
            np.savez_compressed(stream, **members)
            stream.flush()
            os.fsync(stream.fileno())
        os.replace(temporary, path)
    finally:
        temporary.unlink(missing_ok=True)


def _finite(array: np.ndarray, lengths: np.ndarray, *, name: str) -> np.ndarray:
    """The array in float32, once every number of it is known to be finite there."""
    with np.errstate(over="ignore"):  # what float32 cannot hold becomes infinite, and is reported
        array = array.astype(np.float32)
    finite = np.isfinite(array).reshape(len(array), -1).all(axis=1)
    if not finite.all():
        row, ends = int(np.argmin(finite)), np.cumsum(lengths)
        episode = int(np.searchsorted(ends, row, side="right"))
        step = row - int(ends[episode] - lengths[episode])
        raise DemonstrationError(f"{name} of episode {episode} hold NaN or infinity (first at step {step})")
    return array


def _whole_members(path: Path) -> dict[str, np.ndarray]:
    """What an .npz holds, every checksum verified; `DemonstrationError` for any other file."""
    try:
        with path.open("rb") as stream:
            start = stream.read(4)
    except OSError as error:
        raise DemonstrationError(f"{path}: cannot be read ({error.strerror or error})") from error
    if start != b"PK\x03\x04":
        raise DemonstrationError(f"{path}: not a demonstration file (an .npz without pickle)")
    try:
        with np.load(path, allow_pickle=False) as archive:
            # All checksums before any member: a header read from damaged bytes could ask for any amount of memory.
            damaged = archive.zip.testzip()
            members = {} if damaged else {name: archive[name] for name in archive.files}
    except Exception as error:  # zipfile, zlib, struct and NumPy each raise their own on damaged bytes
        reason = str(error).splitlines()[0] if str(error) else type(error).__name__
        raise DemonstrationError(f"{path}: damaged, truncated or with pickled members ({reason})") from error
    if damaged:
        raise DemonstrationError(f"{path}: damaged (member {damaged} fails its checksum)")
    return members
