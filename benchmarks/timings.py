"""What the lines of a run's metrics.jsonl say about its speed, with its evaluations left out."""

import statistics
from typing import Any

import numpy as np

from vdbjax.types import Metrics

EVALUATION = "eval/return"


def steps_per_second(lines: list[Metrics]) -> float:
    """Environment steps over seconds, of the iterations without an evaluation, less the first one, which compiles."""
    durations, evaluated = np.diff([line["seconds"] for line in lines], prepend=0.0), _evaluated(lines)
    steps = np.diff([line["env_steps"] for line in lines], prepend=0)
    counted = ~evaluated & (np.arange(len(lines)) > 0)
    if not counted.any():
        raise ValueError(f"{len(lines)} iterations are too few to time: take more steps or fewer evaluations")
    return float(steps[counted].sum() / durations[counted].sum())


def training_seconds(lines: list[Metrics]) -> list[float]:
    """Seconds of training up to the end of each iteration: one that also evaluated counts as the median one without."""
    durations, evaluated = np.diff([line["seconds"] for line in lines], prepend=0.0), _evaluated(lines)
    typical = statistics.median(durations[~evaluated])
    return np.cumsum(np.where(evaluated, np.minimum(durations, typical), durations)).tolist()


def timings(lines: list[Metrics], *, start_up: float, goal: float) -> dict[str, Any]:
    """Speed, and when the first evaluation reached the goal (a return); seconds count from the start of the process."""
    rate, clock = steps_per_second(lines), training_seconds(lines)
    curve = [
        {"env_steps": line["env_steps"], "seconds": start_up + seconds, "return": float(np.mean(line[EVALUATION]))}
        for line, seconds in zip(lines, clock, strict=True)
        if EVALUATION in line
    ]
    reached = next((point for point in curve if point["return"] >= goal), {})
    return {
        "steps_per_second": rate,
        "env_steps": lines[-1]["env_steps"],
        "start_up_seconds": start_up,
        "seconds": start_up + clock[-1],
        "seconds_to_90_percent": reached.get("seconds"),
        "env_steps_to_90_percent": reached.get("env_steps"),
        "curve": curve,
    }


def _evaluated(lines: list[Metrics]) -> np.ndarray:
    return np.array([EVALUATION in line for line in lines])
