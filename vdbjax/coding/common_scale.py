"""Codes of many symbols that share one scale, on a grid that is fine beside it: half the work of a scale for each.

The bins of 1/256 to 1/128 standard deviation (1/128 to 1/64 scale) are a *run*: 2^b bins that are coded together and
followed by b bits, all equally likely. Means are moved to the middle of the runs that hold them, so that one table
of runs serves all symbols: that costs 5e-6 bits a symbol, 1.5e-5 at most, and no CDF is worked out for a symbol.
"""

from functools import lru_cache
from typing import NamedTuple

import numpy as np
from jaxtyping import Float, Int, UInt64

from vdbjax.coding import masses, rans
from vdbjax.coding.masses import LOOKUP_BITS, PRECISION, Blocks, Distribution
from vdbjax.coding.rans import Message


class Runs(NamedTuple):
    """The runs of a distribution around its mean, and the escape as one more, where there is one."""

    bits: int  # a run is 2^bits bins
    half: int  # as many runs to either side of the one that holds the mean
    start: UInt64[np.ndarray, " runs"]
    end: UInt64[np.ndarray, " runs"]
    mass: UInt64[np.ndarray, " runs"]
    found_at: Int[np.ndarray, " buckets"]  # the run in which a mass of 2^(PRECISION - LOOKUP_BITS) i is reached

    @property
    def escape(self) -> int:
        """The number of the escape."""
        return 2 * self.half + 1


def is_fine(distribution: Distribution, width: float) -> bool:
    """Whether so many bins to a standard deviation (scale) are enough for runs."""
    return width >= masses.standard(distribution, escape=False).cells_per_unit


@lru_cache(maxsize=64)
def runs(distribution: Distribution, width: float, *, escape: bool) -> Runs:
    """`width` is the standard deviation (scale) in bins, fine enough."""
    table = masses.standard(distribution, escape=escape)
    bits, step = (value.item() for value in masses.run_length(np.asarray(table.cells_per_unit / width)))
    half = int(table.centre / step - 0.5)
    count = 2 * half + 1
    edges = masses.cumulative(table, table.centre + (np.arange(count + 1) - half - 0.5) * step).astype(np.int64)
    edges[0], edges[-1] = 0, table.total  # all of it belongs to some run
    index = np.arange(count + 1)
    edges = np.maximum.accumulate(edges - index) + index  # and no run is without mass
    edges = np.minimum(edges, table.total - index[::-1])
    edges = np.append(edges, 2**PRECISION) if escape else edges
    start, end = edges[:-1].astype(np.uint64), edges[1:].astype(np.uint64)
    return Runs(bits, half, start, end, end - start, np.minimum(masses.found_at(edges), len(start) - 1))


def codec(
    distribution: Distribution,
    means: Float[np.ndarray, " symbols"],
    scale: Float[np.ndarray, ""],
    delta: float,
    *,
    escape: bool,
) -> Blocks:
    """Codes blocks of the symbols; the grid must be fine."""
    table = runs(distribution, float(scale / delta), escape=escape)
    length = delta * 2.0**table.bits

    def first_runs(block: slice) -> np.ndarray:
        return np.floor(means[block] / length).astype(np.int64) - table.half

    return Blocks(
        lambda message, block, bins: _push(message, table, first_runs(block), bins, escape),
        lambda message, block: _pop(message, table, first_runs(block)),
    )


def _push(message: Message, table: Runs, first: np.ndarray, bins: np.ndarray, escape: bool) -> None:
    """`first` has, on the whole grid, the number of the first run of each symbol's table."""
    lanes = slice(0, len(bins))
    run = (bins >> table.bits) - first
    low, low_bits = bins & np.int64(2**table.bits - 1), np.asarray(table.bits)
    outside = np.flatnonzero(run.view(np.uint64) >= table.escape)  # negative ones wrap round
    if len(outside):
        masses.push_escaped(message, bins, outside, escape=escape)
        run[outside], low[outside] = table.escape, 0
        low_bits = masses.but_for(outside, low_bits, len(bins))
    rans.push_wide_bits(message, low.view(np.uint64), low_bits, lanes=lanes)
    rans.push(message, table.start.take(run), table.mass.take(run), precision=PRECISION, lanes=lanes)


def _pop(message: Message, table: Runs, first: np.ndarray) -> np.ndarray:
    lanes = slice(0, len(first))
    position = rans.peek(message, precision=PRECISION, lanes=lanes)
    run = table.found_at.take((position >> np.uint64(PRECISION - LOOKUP_BITS)).view(np.int64))
    within, frequency = position - table.start.take(run), table.mass.take(run)
    late = np.flatnonzero(within >= frequency)
    low_bits, escaped = np.asarray(table.bits), late
    if len(late):
        wanted = position.take(late)
        run[late] = found = np.searchsorted(table.end, wanted, side="right")
        within[late], frequency[late] = wanted - table.start.take(found), table.mass.take(found)
        escaped = late[found == table.escape]  # always late: a bucket is larger
    if len(escaped):
        low_bits = masses.but_for(escaped, low_bits, len(first))
    rans.drop(message, within, frequency, precision=PRECISION, lanes=lanes)
    run += first
    run <<= table.bits
    run |= rans.pop_wide_bits(message, low_bits, lanes=lanes).view(np.int64)
    if len(escaped):
        run[escaped] = masses.pop_escaped(message, escaped)
    return run
