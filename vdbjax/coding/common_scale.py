"""Codes of many symbols that share one scale, on a grid: half the work of a scale for each.

Where bins are narrow, those of 1/256 to 1/128 standard deviation (1/128 to 1/64 scale) are a *run*: 2^b bins that are
coded together and followed by b bits, all equally likely. Where bins are wider, each is a run, and is cut into 2^p
*cells* so narrow. Means are moved to the middle of the cells that hold them, so that one table of runs, for each cell
that a run may begin at, serves all symbols: that costs 5e-6 bits a symbol, 1.5e-5 at most, and no CDF is worked out
for a symbol.
"""

from functools import lru_cache
from typing import NamedTuple

import numpy as np
from jaxtyping import Float, Int, UInt64

from vdbjax.coding import masses, rans
from vdbjax.coding.masses import PRECISION, Blocks, Distribution
from vdbjax.coding.rans import Message

_LOOKUP_BITS = 16  # of the mass: where a search for a cell begins
_BUCKET_BITS = PRECISION - _LOOKUP_BITS
_WIDEST_BIN = 2**7  # of the standard table's cells
_FARTHEST = int(masses.EDGE)  # bin; outside every window, as means are nearer, and no escape


class Runs(NamedTuple):
    """The runs of a distribution around its mean, by the cell at which they begin, and the escape, where there is one.

    The first 2^cell_bits - 1 cells lie below the window, and only the ends of their runs in it.
    """

    bits: int  # a run is 2^bits bins
    cell_bits: int  # a run is 2^cell_bits cells; either is 0
    before: int  # so many cells of the table lie before the one that holds the mean
    escape: int  # the number of the escape, and of cells
    start: UInt64[np.ndarray, " cells"]
    mass: UInt64[np.ndarray, " cells"]
    found_at: Int[np.ndarray, " buckets"]  # the cell in which a mass of 2^_BUCKET_BITS i is reached


def has_runs(distribution: Distribution, width: float) -> bool:
    """Whether there is a table for so many bins to a standard deviation (scale)."""
    return width * _WIDEST_BIN >= masses.standard(distribution, escape=False).cells_per_unit


@lru_cache(maxsize=64)
def runs(distribution: Distribution, width: float, *, escape: bool) -> Runs:
    """`width` is the standard deviation (scale) in bins."""
    table = masses.standard(distribution, escape=escape)
    step, exponent = np.frexp(table.cells_per_unit / width)  # what a bin is of the standard table's cells
    bits, cell_bits = max(-int(exponent), 0), max(int(exponent), 0)
    edges = _edges(table, float(step))
    beyond = 2**cell_bits - 1
    before = len(edges) // 2 - 1 + beyond
    edges = np.pad(edges, beyond, mode="edge")
    cells = len(edges) - 1 - beyond
    start, mass = edges[:cells], edges[beyond + 1 :] - edges[:cells]
    if escape:
        start, mass = np.append(start, table.total), np.append(mass, masses.ESCAPE)
    found_at = np.searchsorted(start, np.arange(2**_LOOKUP_BITS) << _BUCKET_BITS, side="right") - 1
    return Runs(
        bits, cell_bits, before, cells, start.astype(np.uint64), mass.astype(np.uint64), found_at.astype(np.int16)
    )


def _edges(table: masses.Standard, step: float) -> Int[np.ndarray, " edges"]:
    """The masses below cells of `step`, of the standard table's, one of which has its middle at the mean."""
    half = int(table.centre / step - 0.5)
    index = np.arange(2 * half + 2)
    edges = masses.cumulative(table, table.centre + (index - half - 0.5) * step).astype(np.int64)
    edges[0], edges[-1] = 0, table.total  # all of it belongs to some cell
    edges = np.maximum.accumulate(edges - index) + index  # and no cell is without mass
    return np.minimum(edges, table.total - index[::-1])


def codec(
    distribution: Distribution,
    means: Float[np.ndarray, " symbols"],
    scale: Float[np.ndarray, ""],
    delta: float,
    *,
    escape: bool,
) -> Blocks:
    """Codes blocks of the symbols, where their scale has runs."""
    table = runs(distribution, float(scale / delta), escape=escape)
    length = delta * 2.0 ** (table.bits - table.cell_bits)

    def first_cells(block: slice) -> np.ndarray:
        first = means[block] / length
        return np.floor(first, out=first).astype(np.int64) - table.before

    return Blocks(
        lambda message, block, bins: _push(message, table, first_cells(block), bins, escape),
        lambda message, block: _pop(message, table, first_cells(block)),
    )


def _push(message: Message, table: Runs, first: np.ndarray, bins: np.ndarray, escape: bool) -> None:
    """`first` has, on the grid of cells, the number of the first cell of each symbol's table."""
    lanes = slice(0, len(bins))
    cell = bins >> table.bits if table.bits else bins.clip(-_FARTHEST, _FARTHEST) << table.cell_bits
    cell -= first
    (outside,) = (cell.view(np.uint64) >= table.escape).nonzero()  # negative ones wrap round
    if len(outside):
        masses.push_escaped(message, bins, outside, escape=escape)
        cell[outside] = table.escape
    if table.bits:
        low = bins & (2**table.bits - 1)
        low[outside] = 0
        low_bits = masses.but_for(outside, table.bits, len(bins))
        rans.push_wide_bits(message, low.view(np.uint64), low_bits, lanes=lanes)
    start, frequency = table.start.take(cell, mode="clip"), table.mass.take(cell, mode="clip")
    rans.push(message, start, frequency, precision=PRECISION, lanes=lanes)


def _pop(message: Message, table: Runs, first: np.ndarray) -> np.ndarray:
    lanes = slice(0, len(first))
    position = rans.peek(message, precision=PRECISION, lanes=lanes)
    bucket = (position >> np.uint64(_BUCKET_BITS)).view(np.int64)
    cell = _begin(table, table.found_at.take(bucket, mode="clip").astype(np.int64), first)
    within, frequency = position - table.start.take(cell, mode="clip"), table.mass.take(cell, mode="clip")
    (late,) = (within >= frequency).nonzero()
    escaped = late
    if len(late):
        wanted = position[late]
        found = np.searchsorted(table.start, wanted, side="right") - 1
        escaped = late[found == table.escape]  # always late: a bucket is larger
        cell[late] = found = _begin(table, found, first[late])
        within[late], frequency[late] = wanted - table.start[found], table.mass[found]
    if len(escaped):
        within[escaped], frequency[escaped] = position[escaped] - table.start[-1], table.mass[-1]
    rans.drop(message, within, frequency, precision=PRECISION, lanes=lanes)
    cell += first
    if table.bits:
        low_bits = masses.but_for(escaped, table.bits, len(first))
        bins = cell << table.bits
        bins |= rans.pop_wide_bits(message, low_bits, lanes=lanes).view(np.int64)
    else:
        bins = cell >> table.cell_bits
    if len(escaped):
        bins[escaped] = masses.pop_escaped(message, escaped)
    return bins


def _begin(table: Runs, cell: np.ndarray, first: np.ndarray) -> np.ndarray:
    """The cells at which the runs begin that hold these."""
    return cell - ((cell + first) & (2**table.cell_bits - 1)) if table.cell_bits else cell
