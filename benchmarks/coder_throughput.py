"""Nanoseconds a symbol and bits over the entropy of the Gaussian coder, and of constriction's QuantizedGaussian.

The whole sweep of standard deviations and bin widths of local bits-back coding, and its job proper: a standard
deviation of 4,096 bins, in a window of 2^20. Times are the process's own on the processor, the least of several turns,
on one thread, renormalisation included. Other work still slows them, through the caches that it shares.

    python benchmarks/coder_throughput.py
"""

import dataclasses
import statistics
import time
from collections.abc import Callable
from dataclasses import dataclass
from functools import partial
from pathlib import Path
from typing import Any

import numpy as np
from machine import begin
from rich.console import Console
from rich.table import Table
from scipy import special

from vdbjax import command, limits
from vdbjax.coding import discretize, rans

SWEEP = [
    (-14, -32),
    (-14, -28),
    (-14, -24),
    (-14, -20),
    (-14, -16),
    (-10, -32),
    (-10, -20),
    (-6, -32),
    (-6, -12),
    (0, -32),
]
"""log2 of the standard deviation and of the bin width."""
WINDOW = 2**20
DEVIATION = 4096.0  # bins


@dataclass(frozen=True)
class Options:
    """What to measure."""

    lanes: tuple[int, ...] = (4096, 8192, 16384, 32768, 65536)
    """Numbers of lanes."""
    symbols: int = 2**18
    """Symbols of each measurement."""
    repeats: int = 15
    """How often each is timed; the least time counts."""
    out: Path | None = None
    """File to write. None: benchmarks/results/coder_throughput_DEVICE.json."""

    def __post_init__(self) -> None:
        """Rejects values that cannot work."""
        limits.not_empty(self, "--lanes")
        limits.at_least(1, self, "--lanes", "--symbols", "--repeats")


def main(options: Options) -> None:
    """Measures, prints a table and writes the file."""
    report = begin("coder_throughput", options, options.out)
    rows = [
        {"log2_sigma": log_sigma, "log2_delta": log_delta, "a_sigma_each": spread, "lanes": lanes}
        | measure(options, 2.0**log_sigma, 2.0**log_delta, spread=spread, lanes=lanes)
        for log_sigma, log_delta in SWEEP
        for spread in (False, True)
        for lanes in options.lanes
    ]
    job = bits_back_job(options)
    Console(width=110).print(_table(rows), _job_table(job))
    report.write({"sweep": rows, "bits_back_job": job})


def measure(options: Options, sigma: float, delta: float, *, spread: bool, lanes: int) -> dict[str, float]:
    """Nanoseconds a symbol, and bits a symbol over -log2 of the bins' probabilities; fails where bins differ after."""
    mean, scale, bins = _job(options.symbols, sigma, delta, spread)
    codec = discretize.gaussian(mean, scale if spread else sigma, delta)
    start = rans.random(lanes=lanes, words=1_000, seed=1)
    bits, messages = start.bits(), [rans.Message(start.heads, start.words) for _ in range(options.repeats)]
    encode_ns, _ = _least_ns(options, [partial(codec.push, message, bins) for message in messages])
    length = messages[0].bits() - bits
    decode_ns, decoded = _least_ns(options, [partial(codec.pop, message) for message in messages])
    if not all(np.array_equal(each, bins) for each in decoded):
        raise AssertionError("symbols came back wrong")
    return {
        "encode_ns": encode_ns,
        "decode_ns": decode_ns,
        "bits_a_symbol": length / bins.size,
        "bits_over_ideal": (length - ideal_bits(bins, mean, scale, delta)) / bins.size,
    }


def bits_back_job(options: Options) -> dict[str, Any]:
    """Both coders in turns, so that what else the machine does meets both: the least of each, the median ratio."""
    once, lanes = dataclasses.replace(options, repeats=1), max(options.lanes)
    turns = [
        (measure(once, DEVIATION, 1.0, spread=False, lanes=lanes), measure_constriction(once))
        for _ in range(options.repeats)
    ]
    job: dict[str, Any] = {"lanes": lanes, "ours": _least([mine for mine, _ in turns])}
    pairs = [(mine, other) for mine, other in turns if other]
    job["constriction"] = _least([other for _, other in pairs]) if pairs else None
    if pairs:
        for what in ("encode", "decode"):
            job[f"{what}_ratio"] = statistics.median(other[f"{what}_ns"] / mine[f"{what}_ns"] for mine, other in pairs)
    return job


def _least(turns: list[dict[str, float]]) -> dict[str, float]:
    return {name: min(turn[name] for turn in turns) for name in turns[0]}


def measure_constriction(options: Options) -> dict[str, Any] | None:
    """The same of constriction's ANS coder, 24-bit masses; None without it (pip install constriction)."""
    try:
        import constriction
    except ModuleNotFoundError:
        return None
    mean, scale, bins = _job(options.symbols, DEVIATION, 1.0, False)
    symbols = bins.astype(np.int32)
    # Its bins are centred on whole numbers, ours begin there.
    family = constriction.stream.model.QuantizedGaussian(-WINDOW // 2, WINDOW // 2 - 1)
    coders = [constriction.stream.stack.AnsCoder() for _ in range(options.repeats)]
    encode_ns, _ = _least_ns(
        options, [partial(coder.encode_reverse, symbols, family, mean - 0.5, scale) for coder in coders]
    )
    length = coders[0].num_bits()
    decode_ns, decoded = _least_ns(options, [partial(coder.decode, family, mean - 0.5, scale) for coder in coders])
    if not all(np.array_equal(each, symbols) for each in decoded):
        raise AssertionError("symbols came back wrong")
    return {
        "encode_ns": encode_ns,
        "decode_ns": decode_ns,
        "bits_a_symbol": length / bins.size,
        "bits_over_ideal": (length - ideal_bits(bins, mean, scale, 1.0)) / bins.size,
    }


def ideal_bits(bins: np.ndarray, mean: np.ndarray, scale: np.ndarray, delta: float) -> float:
    """-log2 of the bins' probabilities, summed; by the density where a bin is too narrow for a difference of CDFs."""
    low, width = (bins * delta - mean) / scale, delta / scale
    density = np.exp(-0.5 * (low + 0.5 * width) ** 2) / np.sqrt(2 * np.pi)
    below = -np.abs(low + 0.5 * width)  # mirrored to the side where the CDF is small
    difference = special.ndtr(below + 0.5 * width) - special.ndtr(below - 0.5 * width)
    return float(-np.log2(np.where(width < 1e-4, density * width, difference)).sum())


def _job(count: int, sigma: float, delta: float, spread: bool) -> tuple[np.ndarray, np.ndarray, np.ndarray]:
    """Means, standard deviations, and bins drawn from these Gaussians."""
    generator = np.random.default_rng(0)
    mean = generator.normal(size=count)
    scale = sigma * (np.exp(0.5 * generator.normal(size=count)) if spread else np.ones(count))
    return mean, scale, discretize.bin_of(mean + scale * generator.normal(size=count), delta)


def _least_ns(options: Options, turns: list[Callable[[], Any]]) -> tuple[float, list[Any]]:
    seconds, given = [], []
    for turn in turns:
        start = time.process_time()
        given.append(turn())
        seconds.append(time.process_time() - start)
    return 1e9 * min(seconds) / options.symbols, given


def _table(rows: list[dict[str, Any]]) -> Table:
    table = Table("sigma", "delta", "a sigma each", "lanes", "encode ns", "decode ns", "bits", "over the ideal")
    for row in rows:
        table.add_row(
            f"2^{row['log2_sigma']}",
            f"2^{row['log2_delta']}",
            "yes" if row["a_sigma_each"] else "no",
            str(row["lanes"]),
            *_figures(row),
        )
    return table


def _job_table(job: dict[str, Any]) -> Table:
    table = Table("4,096 bins to a standard deviation", "encode ns", "decode ns", "bits", "over the ideal")
    for name in ("ours", "constriction"):
        if job[name]:
            table.add_row(name, *_figures(job[name]))
    if job["constriction"]:
        table.add_row("constriction's time to ours", f"{job['encode_ratio']:.1f}", f"{job['decode_ratio']:.1f}")
    return table


def _figures(row: dict[str, float]) -> tuple[str, ...]:
    figures = f"{row['encode_ns']:.1f}", f"{row['decode_ns']:.1f}", f"{row['bits_a_symbol']:.4f}"
    return *figures, f"{row['bits_over_ideal']:+.1e}"


if __name__ == "__main__":
    command.main(lambda: main(command.parse(Options, prog="coder_throughput.py", description=__doc__)))
