"""Checkpoints: whole or absent, checked before they are believed.

Each is written under another name, with a list of its files' SHA-256 in it, and gets its own name when it is complete.
A folder that no longer agrees with its list is damaged, and the next older one serves. Old ones are removed, but for
those that were pinned because a file needs them.
"""

import contextlib
import hashlib
import json
import logging
import os
import shutil
import sys
from collections.abc import Iterator
from pathlib import Path
from typing import Any

import jax

from vdbjax.training.run_dir import RunDir, write_json

KEEP = 3
DIGESTS = "sha256.json"


def save_checkpoint(run: RunDir, state: Any, iteration: int) -> None:
    """Saves the state as `checkpoints/<iteration>` and removes all but the newest `KEEP` and the pinned ones.

    Raises OSError where that cannot be written; the older ones stay as they are.
    """
    from orbax.checkpoint import v1 as orbax

    folder = run.checkpoints.absolute() / str(iteration)
    unfinished = folder.with_name(f"{iteration}.part")
    try:
        with _quiet_threads():
            orbax.save(unfinished, state, overwrite=True)
        if jax.process_index() == 0:
            write_json(unfinished / DIGESTS, _digests(unfinished))
            shutil.rmtree(folder, ignore_errors=True)  # there only where it was found damaged
            os.replace(unfinished, folder)
    except (OSError, ValueError) as error:  # of a full disk, TensorStore says ValueError
        reason = str(error).splitlines()[0] if str(error) else type(error).__name__
        raise OSError(f"checkpoint {folder} cannot be written ({reason}); the ones before it are whole") from error
    finally:
        if jax.process_index() == 0:
            _clean(run)


def saved_iterations(run: RunDir) -> list[int]:
    """The iterations that have a checkpoint, whole or damaged, newest first."""
    return sorted((int(path.name) for path in run.checkpoints.glob("*") if path.name.isdigit()), reverse=True)


def pin_checkpoint(run: RunDir, iteration: int) -> bool:
    """Keeps a checkpoint from being removed as training goes on; False where it has been already.

    Raises OSError where the run cannot be written.
    """
    _pin(run, iteration).touch()
    if _is_whole(run.checkpoints / str(iteration)):
        return True
    _pin(run, iteration).unlink(missing_ok=True)
    return False


def pinned_iterations(run: RunDir) -> list[int]:
    """The iterations whose checkpoints are pinned and whole, newest first."""
    pinned = [iteration for iteration in saved_iterations(run) if _pin(run, iteration).exists()]
    return [iteration for iteration in pinned if _is_whole(run.checkpoints / str(iteration))]


def load_checkpoint(run: RunDir, like: Any, *, iteration: int | None = None) -> tuple[Any, int]:
    """The newest whole checkpoint, or that of an iteration, and its iteration; warns about damaged ones on the way.

    `like` is a state of the same structure and sharding. Raises ValueError where no whole checkpoint is left.
    """
    iterations, passed_over = saved_iterations(run) if iteration is None else [iteration], ""
    for iteration in iterations:
        folder = run.checkpoints.absolute() / str(iteration)
        if _is_whole(folder):
            print(passed_over, end="", file=sys.stderr, flush=True)
            return _load(folder, like), iteration
        passed_over += f"warning: checkpoint {folder} is damaged; falling back to the one before\n"
    if iterations:
        found = f"all of its {len(iterations)} checkpoints are damaged; train anew into another folder"
    else:
        found = "it has no checkpoint yet; go on with its training, by --resume"
    raise ValueError(f"{run.path} cannot be loaded: {found}")


def _load(folder: Path, like: Any) -> Any:
    from orbax.checkpoint import v1 as orbax

    try:
        return orbax.load(folder, like)
    except (ValueError, KeyError, TypeError) as error:  # whole, so only its structure can be at fault
        reason = str(error).splitlines()[0][:200] if str(error) else type(error).__name__
        raise ValueError(f"checkpoint {folder} holds a state of another version or config ({reason})") from None


@contextlib.contextmanager
def _quiet_threads() -> Iterator[None]:
    """Each of Orbax's threads logs the traceback of an error that is raised here anyway."""
    logger = logging.getLogger("absl")
    before, logger.disabled = logger.disabled, True
    try:
        yield
    finally:
        logger.disabled = before


def _clean(run: RunDir) -> None:
    """Removes what is too old, and what a killed process left half-written."""
    iterations = saved_iterations(run)
    kept = {str(each) for index, each in enumerate(iterations) if index < KEEP or _pin(run, each).exists()}
    for path in run.checkpoints.glob("[0-9]*"):
        if path.name not in kept:
            shutil.rmtree(path, ignore_errors=True)


def _pin(run: RunDir, iteration: int) -> Path:
    """An empty file beside the checkpoint, which holds no file that is not on its list."""
    return run.checkpoints / f"pinned-{iteration}"


def _digests(folder: Path) -> dict[str, str]:
    files = sorted(path for path in folder.rglob("*") if path.is_file() and path != folder / DIGESTS)
    return {str(path.relative_to(folder)): hashlib.sha256(path.read_bytes()).hexdigest() for path in files}


def _is_whole(folder: Path) -> bool:
    try:
        return json.loads((folder / DIGESTS).read_text()) == _digests(folder)
    except (OSError, ValueError):
        return False
