"""Stages of a long benchmark: each leaves a file, and one whose file is there is not run again."""

import subprocess
import sys
from collections.abc import Sequence
from concurrent.futures import ThreadPoolExecutor
from pathlib import Path
from typing import NamedTuple


class Training(NamedTuple):
    """One run of the train command."""

    out: Path
    arguments: tuple[str, ...]  # recipe first


def command(module: str, *arguments: object) -> None:
    """Runs `python -m vdbjax.<module>`; a failure ends the benchmark with that command's own message."""
    line = [sys.executable, "-m", f"vdbjax.{module}", *map(str, arguments)]
    print("$ python", *line[1:], flush=True)
    if code := subprocess.run(line).returncode:
        sys.exit(code)


def train_all(trainings: Sequence[Training], *, jobs: int) -> None:
    """Trains what is missing, `jobs` at a time; a run that was cut off goes on from its checkpoint."""

    def train(training: Training) -> None:
        if (training.out / "curves.png").exists():  # the last thing a run writes
            return
        if (training.out / "config.json").exists():
            command("train", training.arguments[0], "--resume", training.out)
        else:
            command("train", *training.arguments, "--out", training.out)

    with ThreadPoolExecutor(jobs) as pool:
        list(pool.map(train, trainings))
