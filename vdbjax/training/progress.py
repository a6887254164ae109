"""Lines that say how far something is, with its rate and the time left."""

import math
import sys
import time
from collections.abc import Callable
from typing import Any, ClassVar

import jax

from vdbjax.training.metrics import mean_over_seeds
from vdbjax.types import Metrics


class Progress:
    """The line that says how far a run is: rewritten in place on a terminal, printed every 10 s elsewhere."""

    COLUMNS: ClassVar = {
        "return": "episode/return",
        "KL": "bottleneck/kl_nats",
        "beta": "bottleneck/beta",
        "accuracy": "discriminator/policy_accuracy",
        "validation": "policy/validation_nats",
        "real told": "discriminator/real_accuracy",
        "fake told": "discriminator/fake_accuracy",
        "gap": "discriminator/logit_gap",
        "bits/dim": "flow/bits_per_dim",
        "right": "classifier/accuracy",
        "distortion": "vae/distortion",
        "rate (nats)": "vae/rate_nats",
        "lambda": "vae/lambda",
    }

    def __init__(self, total: int, *, done: int = 0, stream: Any = None) -> None:
        """`total` and `done` count iterations; the rate is that of this process alone. None: standard error."""
        self.total, self.first, self.stream = total, done, stream or sys.stderr
        self.started = self.shown = time.monotonic()
        self.first_steps: int | None = None

    def show(self, line: Metrics, *, final: bool = False) -> None:
        """Shows the line, unless one was shown a moment ago; of several processes only the first one does."""
        if jax.process_index():
            return
        now = time.monotonic()
        terminal = self.stream.isatty()
        if self.first_steps is None:  # the rate starts after the first call, which compiles
            self.started, self.first, self.first_steps = now, line["iteration"], line["env_steps"]
        if now - self.shown < (0.2 if terminal else 10.0) and not final:
            return
        self.shown = now
        elapsed = max(now - self.started, 1e-9)
        rate = (line["env_steps"] - self.first_steps) / elapsed
        done = line["iteration"] - self.first
        remaining = elapsed / max(1, done) * (self.total - line["iteration"])
        parts = [f"iteration {line['iteration']}/{self.total}"]
        if line["env_steps"]:
            parts += [f"{line['env_steps']:,} steps"]
        if done:  # at first nothing is known but what compilation took
            parts += [f"{rate:,.0f} steps/s" if line["env_steps"] else f"{done / elapsed:.3g} iterations/s"]
        shown = {short: line[name] for short, name in self.COLUMNS.items() if name in line}
        parts += [f"{short} {mean_over_seeds(value):.4g}" for short, value in shown.items()]
        parts += [f"{clock(remaining)} left"] if done else []
        text = " | ".join(parts)
        end = "\n" if final or not terminal else ""
        print(("\r\033[K" if terminal else "") + text, end=end, file=self.stream, flush=True)


def reporter(
    what: str, *, unit: str, scale: float = 1.0, every_seconds: float = 10.0
) -> Callable[[int, int | None], None]:
    """(done, of how many, where known) -> now and then, a line on standard error with the rate and the time left.

    `what` is being done, and counted in `unit`, each of them `scale`. The rate is that after the first call, before
    which all is compiled.
    """
    first: tuple[float, int] | None = None  # (when, done)
    shown = time.monotonic()

    def report(done: int, total: int | None) -> None:
        nonlocal first, shown
        now = time.monotonic()
        begun, before = first = first or (now, done)
        if now - shown < every_seconds:
            return
        shown = now
        rate = (done - before) / (now - begun) if now > begun else 0.0
        of = f"/{total / scale:,.0f}" if total else ""
        speed = f" | {rate / scale:.3g} {unit}/s" if rate else ""
        left = f" | {clock((total - done) / rate)} left" if total and rate else ""
        print(f"{what} | {done / scale:,.0f}{of} {unit}{speed}{left}", file=sys.stderr, flush=True)

    return report


def clock(seconds: float) -> str:
    """Hours, minutes and seconds, 1:02:03; a question mark where they are not known."""
    if not math.isfinite(seconds):
        return "?"
    minutes, seconds = divmod(round(seconds), 60)
    return f"{minutes // 60}:{minutes % 60:02}:{seconds:02}"
