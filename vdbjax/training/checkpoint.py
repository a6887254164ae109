"""Checkpoints: whole or absent, checked before they are believed.

Orbax writes a folder and renames it when it is complete. A list of its files' SHA-256 is written after that, so that a
folder without a matching list is damaged or unfinished, and the next older one serves.
"""

import hashlib
import json
import shutil
import warnings
from pathlib import Path
from typing import Any

import jax

from vdbjax.training.run_dir import RunDir, write_json

KEEP = 3


def save_checkpoint(run: RunDir, state: Any, iteration: int) -> None:
    """Saves the state as `checkpoints/<iteration>` and removes all but the newest `KEEP`. Nothing where it is there."""
    from orbax.checkpoint import v1 as orbax

    folder = run.checkpoints.absolute() / str(iteration)
    if _is_whole(folder):
        return
    orbax.save(folder, state, overwrite=True)
    if jax.process_index() == 0:
        write_json(_list_of(folder), _digests(folder))
        for stale in _folders(run)[KEEP:]:
            _list_of(stale).unlink(missing_ok=True)
            shutil.rmtree(stale)


def load_checkpoint(run: RunDir, like: Any) -> tuple[Any, int]:
    """The newest whole checkpoint and its iteration; warns about damaged ones on the way.

    `like` is a state of the same structure and sharding. Raises ValueError where no whole checkpoint is left.
    """
    from orbax.checkpoint import v1 as orbax

    for folder in _folders(run):
        if _is_whole(folder):
            return orbax.load(folder, like), int(folder.name)
        warnings.warn(f"checkpoint {folder} is damaged; falling back to the one before", stacklevel=2)
    raise ValueError(f"{run.path} has no whole checkpoint to go on from; start it anew with another --out")


def _folders(run: RunDir) -> list[Path]:
    found = [path for path in run.checkpoints.absolute().glob("*") if path.name.isdigit()]
    return sorted(found, key=lambda path: int(path.name), reverse=True)


def _list_of(folder: Path) -> Path:
    return folder.with_name(f"{folder.name}.sha256.json")


def _digests(folder: Path) -> dict[str, str]:
    files = sorted(path for path in folder.rglob("*") if path.is_file())
    return {str(path.relative_to(folder)): hashlib.sha256(path.read_bytes()).hexdigest() for path in files}


def _is_whole(folder: Path) -> bool:
    try:
        return json.loads(_list_of(folder).read_text()) == _digests(folder)
    except (OSError, json.JSONDecodeError):
        return False
