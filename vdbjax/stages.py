"""Stages of a long table: each leaves a file, and one whose file is there is not run again."""

import contextlib
import signal
import subprocess
import sys
import threading
from collections.abc import Iterator, Sequence
from concurrent.futures import ThreadPoolExecutor
from pathlib import Path
from types import FrameType
from typing import NamedTuple


class Training(NamedTuple):
    """One run of the train command."""

    out: Path
    arguments: tuple[str, ...]  # recipe first

    @property
    def finished(self) -> bool:
        """Whether it has come to its end."""
        return (self.out / "curves.png").exists()  # the last thing a run writes

    @property
    def started(self) -> bool:
        """Whether there is a run to go on with."""
        return (self.out / "config.json").exists()


def call(module: str, *arguments: object) -> int:
    """Runs `python -m vdbjax.<module>` and gives its exit code; it says itself what is wrong.

    A process of its own: its memory is free afterwards, and what kills it leaves the other stages alone. Ctrl-C, which
    a terminal sends to both, waits until it has saved and then stops this process too; so does SIGTERM, passed on.
    """
    line = [sys.executable, "-m", f"vdbjax.{module}", *map(str, arguments)]
    print("$ python", *line[1:], flush=True)
    with subprocess.Popen(line) as process, _passing_on_sigterm(process) as passed_on:
        try:
            code = process.wait()
        except KeyboardInterrupt:
            process.wait()
            code = -signal.SIGINT
    code = 128 - code if code < 0 else code  # killed by a signal: as shells have it
    if passed_on or code in (128 + signal.SIGINT, 128 + signal.SIGTERM):  # stopped, not at fault
        sys.exit(128 + passed_on[0] if passed_on else code)
    return code


@contextlib.contextmanager
def _passing_on_sigterm(process: subprocess.Popen) -> Iterator[list[int]]:
    """What was passed on: a process that had come to its end has no use for it, but the table must stop."""
    passed_on: list[int] = []

    def pass_on(number: int, frame: FrameType | None) -> None:
        passed_on.append(number)
        process.terminate()

    if threading.current_thread() is not threading.main_thread():  # no other may handle signals
        yield passed_on
        return
    before = signal.signal(signal.SIGTERM, pass_on)
    try:
        yield passed_on
    finally:
        signal.signal(signal.SIGTERM, before)


def run_or_exit(module: str, *arguments: object) -> None:
    """As `call`; a failure ends the whole table."""
    if code := call(module, *arguments):
        sys.exit(code)


def train(training: Training) -> int:
    """Trains it if it is not finished, from its checkpoint if it was cut off; the exit code of the train command."""
    if training.finished:
        return 0
    if training.started:
        return call("train", training.arguments[0], "--resume", training.out)
    return call("train", *training.arguments, "--out", training.out)


def train_all(trainings: Sequence[Training], *, jobs: int) -> None:
    """Trains what is missing, `jobs` at a time; a failure ends the whole table."""

    def run(training: Training) -> None:
        if code := train(training):
            sys.exit(code)

    with ThreadPoolExecutor(jobs) as pool:
        list(pool.map(run, trainings))
