"""Metrics on their way out: JSON lines and TensorBoard."""

import json
import time
from collections.abc import Collection
from typing import Any

import jax
import numpy as np

from vdbjax.training.run_dir import RunDir, read_metrics, write_whole
from vdbjax.types import Metrics

OF_ENDED = ("episode/return", "episode/length")
"""Means over the episodes that ended last; 0 before the first has."""

UNKNOWN_AT_TIMES = ("eval/root_position_m", "eval/body_position_m")
"""Not a number by design: they are of the steps before a fall, and there may be none."""


class NonFiniteError(RuntimeError):
    """A metric became infinite or not a number."""


def to_host(metrics: Metrics) -> list[Metrics]:
    """Stacked metrics `[iterations]` or `[iterations, seeds]` as one dict an iteration, of numbers or lists of them.

    What is told of episodes that have ended is left out until one has, of every seed.
    """
    arrays = {name: np.asarray(value, np.float64) for name, value in sorted(jax.device_get(metrics).items())}
    count = len(next(iter(arrays.values())))
    lines = [{name: array[i].tolist() for name, array in arrays.items()} for i in range(count)]
    return [line if np.all(line.get("episode/length", 1.0)) else _without(line, OF_ENDED) for line in lines]


def _without(line: Metrics, names: Collection[str]) -> Metrics:
    return {name: value for name, value in line.items() if name not in names}


def first_bad(metrics: Metrics) -> str | None:
    """The first name whose value is not finite and should be, or None."""
    known = _without(metrics, UNKNOWN_AT_TIMES)
    return next((name for name, value in known.items() if not np.all(np.isfinite(value))), None)


def mean_over_seeds(value: Any) -> float:
    """A metric as one number."""
    return float(np.mean(value))


class MetricsLog:
    """Appends to `metrics.jsonl` and TensorBoard's event file. Each line is flushed: a kill loses none.

    Of several processes only the first one writes.
    """

    def __init__(self, run: RunDir, *, resume_at: int = 0) -> None:
        """Opens the log; on a resumed run, lines after `resume_at` are dropped, as they will be made again."""
        kept = [line for line in read_metrics(run) if line["iteration"] <= resume_at] if resume_at else []
        self.last: Metrics = kept[-1] if kept else {}
        self.seconds_before = self.last.get("seconds", 0.0)
        self._files = _LogFiles(run, kept) if jax.process_index() == 0 else None

    def write(self, line: Metrics) -> None:
        """One iteration's metrics, with `iteration`, `env_steps` and `seconds`."""
        if self._files:
            self._files.write(line)

    def __enter__(self) -> "MetricsLog":
        """Itself."""
        return self

    def __exit__(self, *error: object) -> None:
        """Flushes and closes."""
        if self._files:
            self._files.close()


class _LogFiles:
    """The two files. Events are written here and now: a thread of TensorBoard's would hang on a full disk."""

    FLUSH_SECONDS = 10.0

    def __init__(self, run: RunDir, kept: list[Metrics]) -> None:
        from tensorboardX.event_file_writer import EventsWriter
        from tensorboardX.proto.event_pb2 import Event, SessionLog

        write_whole(run.metrics, "".join(json.dumps(line) + "\n" for line in kept))
        self._lines = run.metrics.open("a")
        first = kept[-1]["iteration"] + 1 if kept else 1
        self._events = EventsWriter(str(run.path / "events"), filename_suffix=f".{first}")
        if kept:  # TensorBoard then forgets what it has seen from there on
            self._events.write_event(Event(step=first, session_log=SessionLog(status=SessionLog.START)))
        self._flushed = time.monotonic()

    def write(self, line: Metrics) -> None:
        from tensorboardX.proto.event_pb2 import Event
        from tensorboardX.proto.summary_pb2 import Summary

        self._lines.write(json.dumps(line) + "\n")
        self._lines.flush()
        numbers = {name: mean_over_seeds(value) for name, value in line.items() if "/" in name}
        summary = Summary(value=[Summary.Value(tag=name, simple_value=value) for name, value in numbers.items()])
        self._events.write_event(Event(wall_time=time.time(), step=line["iteration"], summary=summary))
        if time.monotonic() - self._flushed > self.FLUSH_SECONDS:
            self._events.flush()
            self._flushed = time.monotonic()

    def close(self) -> None:
        self._lines.close()
        self._events.close()
