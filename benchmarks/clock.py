"""How long a call takes: on the clock, and on the processor, which other work on the machine disturbs less."""

import time
from collections.abc import Callable
from dataclasses import dataclass
from typing import Any


@dataclass(frozen=True)
class Timed:
    """Of one call."""

    wall: float  # seconds
    processor: float


def timed(run: Callable[[], Any]) -> Timed:
    """Seconds of one call."""
    wall, processor = time.perf_counter(), time.process_time()
    run()
    return Timed(time.perf_counter() - wall, time.process_time() - processor)


def fastest(found: list[Timed]) -> Timed:
    """The least of each time."""
    return Timed(min(each.wall for each in found), min(each.processor for each in found))


def least(repeats: int, run: Callable[[], Any]) -> Timed:
    """The fastest of several calls."""
    return fastest([timed(run) for _ in range(repeats)])
