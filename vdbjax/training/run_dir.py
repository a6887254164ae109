"""The run folder: `config.json`, `versions.json`, `metrics.jsonl`, `checkpoints/`, TensorBoard's events, `curves.png`,
and what was given: demonstrations, a clip, a run to start from, a run whose reward is learnt on.

Everything after training (scores, plots, demonstrations) reads run folders and nothing else.
"""

import contextlib
import json
import os
import shutil
import sys
from collections.abc import Iterator
from pathlib import Path
from typing import Any, NamedTuple

import jax

from vdbjax.training.devices import largest_over_processes
from vdbjax.training.provenance import versions
from vdbjax.types import Metrics


class RunDir(NamedTuple):
    """The paths of a run."""

    path: Path

    @property
    def config(self) -> Path:
        """What was asked for, as JSON."""
        return self.path / "config.json"

    @property
    def metrics(self) -> Path:
        """One JSON object a line, in order: `iteration`, `env_steps`, `seconds`, and the metrics."""
        return self.path / "metrics.jsonl"

    @property
    def checkpoints(self) -> Path:
        """One folder a checkpoint, named by its iteration."""
        return self.path / "checkpoints"


OWN_NAMES = ("config.json", "versions.json", "metrics.jsonl", "curves.png", "checkpoints")


def create_run(path: str | Path, config: dict[str, Any], *, files: dict[str, Path] | None = None) -> RunDir:
    """A new run folder with copies of the files and of the other runs, by their names in it.

    Raises ValueError where the path exists already, and leaves that untouched, where it lies in one of those runs, and
    where a file is called as one of the run's own.

    All processes of a run call this with the same path; the first one makes the folder.
    """
    run = RunDir(Path(path))
    if largest_over_processes(run.path.exists()) == [True]:
        raise ValueError(f"run folder {run.path} exists; choose another --out, or go on with --resume {run.path}")
    for name, file in (files or {}).items():
        if file.is_dir() and run.path.resolve().is_relative_to(file.resolve()):
            raise ValueError(f"run folder {run.path} lies in {file}, which it keeps a copy of; choose another --out")
        if name in OWN_NAMES:
            raise ValueError(f"{file} is called as a run calls one of its own files; rename it")
    if jax.process_index() == 0:
        run.checkpoints.mkdir(parents=True)
        try:
            for name, file in (files or {}).items():
                _copy(file, run.path / name)
            write_json(run.path / "versions.json", versions())
            write_json(run.config, config)  # last: a folder with it is a run
        except BaseException:
            shutil.rmtree(run.path)  # half of one would be in the way of the next try
            raise
    largest_over_processes(0)  # the others wait until it is there
    return run


def reopen_run(path: str | Path, config: dict[str, Any]) -> RunDir:
    """The run to go on with; what its config may change is written down, so that it holds the next time too.

    Raises ValueError as `open_run` and `held` do, with nothing changed.
    """
    run, content = open_run(path)
    with held(run):
        if jax.process_index() == 0:
            write_json(run.config, content | {"config": config})
    return run


@contextlib.contextmanager
def held(run: RunDir) -> Iterator[None]:
    """Keeps other processes from training in the folder meanwhile; one that dies lets go.

    Raises ValueError where another one holds it. File systems without locks keep nobody out.
    """
    # Windows opens no folders; of several processes of a run the first one writes.
    if os.name == "nt" or jax.process_index() > 0:
        yield
        return
    import fcntl

    handle = os.open(run.path, os.O_RDONLY)
    try:
        try:
            fcntl.flock(handle, fcntl.LOCK_EX | fcntl.LOCK_NB)
        except BlockingIOError:
            raise ValueError(f"{run.path} is being trained by another process; wait for it, or stop it first") from None
        except OSError:  # no locks here
            pass
        yield
    finally:
        os.close(handle)


def _copy(given: Path, to: Path) -> None:
    """Of a run what its policy and its reward are made of, and nothing to look at."""
    if given.is_dir():
        shown = shutil.ignore_patterns("*.part", "*.jsonl", "events.*", "*.png", "*.mp4")
        shutil.copytree(given, to, ignore=shown)
    else:
        shutil.copyfile(given, to)


def open_run(path: str | Path) -> tuple[RunDir, dict[str, Any]]:
    """An existing run and its config. Raises ValueError where the path holds none."""
    run = RunDir(Path(path))
    if not run.config.is_file():
        raise ValueError(f"{path} is not a run folder: it has no config.json")
    try:
        content = json.loads(run.config.read_text())
    except ValueError as error:  # no JSON, or no text
        raise ValueError(f"{run.config} is damaged: {error}") from None
    if not isinstance(content, dict):
        raise ValueError(f"{run.config} is damaged: it holds no config")
    return run, content


def write_json(path: Path, content: Any) -> None:
    """Writes a whole file or none; paths in it become absolute, so that they hold from any folder."""
    write_whole(path, json.dumps(content, indent=2, default=lambda entry: str(Path(entry).absolute())) + "\n")


def write_whole(path: Path, content: str | bytes) -> None:
    """Writes a whole file or none."""
    scratch = path.with_name(f"{path.name}.part")
    try:
        scratch.write_bytes(content.encode() if isinstance(content, str) else content)
        os.replace(scratch, path)
    except OSError as error:
        error.filename, error.filename2 = str(path), None  # whose name the user knows
        raise


def read_metrics(run: RunDir) -> list[Metrics]:
    """The metrics logged so far, oldest first; a last line cut short by a crash is left out, and so are damaged ones
    before it, with a warning."""
    if not run.metrics.is_file():
        raise ValueError(f"{run.path} has no metrics.jsonl yet")
    written = run.metrics.read_text(errors="replace").splitlines()
    lines = [_metrics_of(line) for line in written]
    damaged = [index + 1 for index, line in enumerate(lines[:-1]) if line is None]
    if damaged:
        print(f"warning: {run.metrics}: line {damaged[0]} is damaged, {len(damaged)} in all left out", file=sys.stderr)
    return [line for line in lines if line is not None]


def _metrics_of(line: str) -> Metrics | None:
    try:
        found = json.loads(line)
    except ValueError:
        return None
    return found if isinstance(found, dict) and "iteration" in found else None
