"""Codes of symbols that each have their own scale, on any grid: the CDF is worked out for both edges of a bin.

To pop, the inverse of the interpolation guesses the bin, and a search over integers corrects it.
"""

from typing import NamedTuple

import numpy as np
from jaxtyping import Float, Int, UInt64

from vdbjax.coding import masses, rans
from vdbjax.coding.masses import EDGE, ESCAPE, LOOKUP_BITS, PRECISION, Blocks, Distribution, Standard, cumulative
from vdbjax.coding.rans import Message

_NONE = np.empty(0, np.int64)


class _Runs(NamedTuple):
    """A block's distributions. The lower edge of run r lies at the position r * step + shift in the table."""

    step: Float[np.ndarray, "..."]  # cells a run
    shift: Float[np.ndarray, " symbols"]  # cells
    bits: Int[np.ndarray, "..."]  # a run is 2^bits bins
    long: bool  # whether any run has more than one bin


def codec(
    distribution: Distribution,
    means: Float[np.ndarray, " symbols"],
    scales: Float[np.ndarray, " symbols"] | Float[np.ndarray, ""],
    delta: float,
    *,
    escape: bool,
) -> Blocks:
    """Codes blocks of the symbols."""
    table = masses.standard(distribution, escape=escape)

    def runs(block: slice) -> _Runs:
        return _runs(table, means[block], scales if scales.ndim == 0 else scales[block], delta)

    return Blocks(
        lambda message, block, bins: _push(message, table, runs(block), bins, escape),
        lambda message, block: _pop(message, table, runs(block), escape),
    )


def _runs(table: Standard, mean: np.ndarray, scale: np.ndarray, delta: float) -> _Runs:
    scale = np.maximum(scale, 2.0**-200 * delta)  # what is narrower lies in one bin all the same
    slope = np.asarray(table.cells_per_unit * delta / scale)  # cells a bin
    shift = table.centre - mean * slope * (1.0 / delta)
    bits, step = masses.run_length(slope)
    return _Runs(step, shift, bits, bool(bits.any()))


def _masses(table: Standard, runs: _Runs, run: Float[np.ndarray, " symbols"]) -> tuple[np.ndarray, np.ndarray]:
    """Where the masses of these runs start, and how large they are; both uint64."""
    edges = np.empty((2, len(run)))
    edges[0] = run
    np.add(run, 1.0, out=edges[1])
    edges *= runs.step
    edges += runs.shift
    start, end = cumulative(table, edges)
    return start, end - start


def _push(message: Message, table: Standard, runs: _Runs, bins: np.ndarray, escape: bool) -> None:
    lanes = slice(0, len(bins))
    run = bins >> runs.bits if runs.long else bins
    start, frequency = _masses(table, runs, run.astype(np.float64))
    low, low_bits = bins - (run << runs.bits) if runs.long else None, runs.bits
    if not frequency.all() or max(bins.max(), -bins.min()) >= EDGE:
        outside = np.flatnonzero((frequency == 0) | (np.abs(bins) >= EDGE))
        masses.push_escaped(message, bins, outside, escape=escape)
        start[outside], frequency[outside] = table.total, ESCAPE
        if low is not None:
            low[outside] = 0
        low_bits = masses.but_for(outside, low_bits, len(bins))
    if low is not None:
        rans.push_wide_bits(message, low.view(np.uint64), low_bits, lanes=lanes)
    rans.push(message, start, frequency, precision=PRECISION, lanes=lanes)


def _pop(message: Message, table: Standard, runs: _Runs, escape: bool) -> np.ndarray:
    lanes = slice(0, len(runs.shift))
    position = rans.peek(message, precision=PRECISION, lanes=lanes)
    escaped, wanted = _NONE, position
    if escape and position.max() >= table.total:
        escaped = np.flatnonzero(position >= np.uint64(table.total))
        wanted = np.minimum(position, np.uint64(table.total - 1))
    run, within, frequency = _find(table, runs, wanted)
    low_bits = runs.bits
    if len(escaped):
        within[escaped], frequency[escaped] = position[escaped] - np.uint64(table.total), ESCAPE
        low_bits = masses.but_for(escaped, low_bits, len(run))
    rans.drop(message, within, frequency, precision=PRECISION, lanes=lanes)
    bins = run.astype(np.int64)
    if runs.long:
        bins <<= runs.bits
        bins |= rans.pop_wide_bits(message, low_bits, lanes=lanes).view(np.int64)
    if len(escaped):
        bins[escaped] = masses.pop_escaped(message, escaped)
    return bins


def _find(
    table: Standard, runs: _Runs, wanted: UInt64[np.ndarray, " symbols"]
) -> tuple[Float[np.ndarray, " symbols"], UInt64[np.ndarray, " symbols"], UInt64[np.ndarray, " symbols"]]:
    """The runs whose masses hold `wanted`, how far above their starts it lies, and their masses."""
    run = _guess(table, runs, wanted)
    start, frequency = _masses(table, runs, run)
    within = wanted - start  # wraps round to large numbers below the start
    wrong = np.flatnonzero(within >= frequency)
    if len(wrong):
        step = runs.step.take(wrong) if runs.step.ndim else runs.step
        part = runs._replace(step=step, shift=runs.shift.take(wrong))
        run[wrong] = found = _search(table, part, wanted.take(wrong), run.take(wrong))
        start, frequency[wrong] = _masses(table, part, found)
        within[wrong] = wanted.take(wrong) - start
    return run, within, frequency


def _guess(table: Standard, runs: _Runs, wanted: np.ndarray) -> np.ndarray:
    """The runs by the inverse of the interpolation: right but for rounding."""
    reached = wanted.view(np.int64) + 1.0  # the run in which the CDF passes above `wanted`
    cell = table.cell_at.take((wanted >> np.uint64(PRECISION - LOOKUP_BITS)).view(np.int64))
    late = np.flatnonzero(table.cumulative.take(cell + 1) < reached)
    if len(late):
        cell[late] = np.searchsorted(table.cumulative, reached.take(late), side="left") - 1
    reached -= table.intercept.take(cell)
    reached /= table.mass.take(cell)
    reached -= runs.shift
    reached /= runs.step
    run = np.ceil(reached, out=reached)
    run -= 1.0
    return run


def _search(table: Standard, runs: _Runs, wanted: np.ndarray, guess: np.ndarray) -> np.ndarray:
    """The runs from any guess, by doubling the step until the run is passed, and halving it again."""
    # From the guess on: the last run whose start is at most `wanted`, between these.
    low, high = np.full(len(wanted), -1.0), np.full(len(wanted), 1.0)

    def starts_below(further: np.ndarray) -> np.ndarray:
        return cumulative(table, (guess + further) * runs.step + runs.shift) <= wanted

    while not (fine := starts_below(low)).all():
        low = np.where(fine, low, 2.0 * low)
    while (more := starts_below(high)).any():
        high = np.where(more, 2.0 * high, high)
    while ((high - low) > 1.0).any():
        middle = np.floor(0.5 * (low + high))
        below = starts_below(middle)
        low, high = np.where(below, middle, low), np.where(below, high, middle)
    return guess + low
