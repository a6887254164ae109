"""Codes of symbols that each have their own scale, on any grid: the CDF is worked out for both edges of a bin.

To pop, the inverse of the interpolation guesses the bin, and a search over integers corrects it.
"""

from typing import NamedTuple

import numpy as np
from jaxtyping import Float, Int, UInt64

from vdbjax.coding import masses, rans
from vdbjax.coding.masses import ESCAPE, INVERSE_BITS, PRECISION, Blocks, Distribution, Standard, cumulative
from vdbjax.coding.rans import Message

_NONE = np.empty(0, np.int64)
_MANTISSA_BITS, _EXPONENT_OF_HALF = 52, 1022  # of float64


class _Runs(NamedTuple):
    """A block's distributions. The lower edge of run r lies at the position r * step + shift in the table."""

    step: Float[np.ndarray, "..."]  # cells a run
    shift: Float[np.ndarray, " symbols"]  # cells
    bits: Int[np.ndarray, "..."]  # a run is 2^bits bins
    long: bool  # whether any run has more than one bin


class _Found(NamedTuple):
    """Runs that hold positions of the message."""

    run: Float[np.ndarray, " symbols"]
    within: UInt64[np.ndarray, " symbols"]  # how far above the run's start
    mass: UInt64[np.ndarray, " symbols"]


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
    if scales.min(initial=np.inf) < (least := 2.0**-200 * delta):
        scales = np.asarray(np.maximum(scales, least))  # what is narrower lies in one bin all the same

    def runs(block: slice) -> _Runs:
        return _runs(table, means[block], scales if scales.ndim == 0 else scales[block], delta)

    return Blocks(
        lambda message, block, bins: _push(message, table, runs(block), bins, escape),
        lambda message, block: _pop(message, table, runs(block), escape),
    )


def _runs(table: Standard, mean: np.ndarray, scale: np.ndarray, delta: float) -> _Runs:
    slope = np.asarray(table.cells_per_unit * delta / scale)  # cells a bin
    shift = table.centre - mean * slope * (1.0 / delta)
    bits, step = _run_length(slope)
    return _Runs(step, shift, bits, bool(bits.any()))


def _run_length(
    slope: Float[np.ndarray, "*symbols"],
) -> tuple[Int[np.ndarray, "*symbols"], Float[np.ndarray, "*symbols"]]:
    """For bins of `slope` cells: the log2 of how many are coded together, and how many cells such a run is.

    That is 1/2 or more but less than 1 where there are several, so that masses stay large and densities flat.
    """
    held = slope.view(np.int64)
    exponent = held >> _MANTISSA_BITS  # of a power of two at most as large, as float64 holds it
    bits = np.asarray(np.maximum(_EXPONENT_OF_HALF - exponent, 0))
    return bits, np.asarray(held + (bits << _MANTISSA_BITS)).view(np.float64)


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
    outside, far = _NONE, masses.too_far(bins)
    if far.any() or not frequency.all():
        (outside,) = ((frequency == 0) | far).nonzero()
        masses.push_escaped(message, bins, outside, escape=escape)
        start[outside], frequency[outside] = table.total, ESCAPE
    if runs.long:
        low = bins - (run << runs.bits)
        low[outside] = 0
        low_bits = masses.but_for(outside, runs.bits, len(bins))
        rans.push_wide_bits(message, low.view(np.uint64), low_bits, lanes=lanes)
    rans.push(message, start, frequency, precision=PRECISION, lanes=lanes)


def _pop(message: Message, table: Standard, runs: _Runs, escape: bool) -> np.ndarray:
    lanes = slice(0, len(runs.shift))
    position = rans.peek(message, precision=PRECISION, lanes=lanes)
    escaped, wanted = _NONE, position
    if escape and position.max() >= table.total:
        (escaped,) = (position >= np.uint64(table.total)).nonzero()
        wanted = np.minimum(position, np.uint64(table.total - 1))
    run, within, frequency = _find(table, runs, wanted)
    if len(escaped):
        within[escaped], frequency[escaped] = position[escaped] - np.uint64(table.total), ESCAPE
    rans.drop(message, within, frequency, precision=PRECISION, lanes=lanes)
    bins = run.astype(np.int64)
    if runs.long:
        low_bits = masses.but_for(escaped, runs.bits, len(run))
        bins <<= runs.bits
        bins |= rans.pop_wide_bits(message, low_bits, lanes=lanes).view(np.int64)
    if len(escaped):
        bins[escaped] = masses.pop_escaped(message, escaped)
    return bins


def _find(table: Standard, runs: _Runs, wanted: UInt64[np.ndarray, " symbols"]) -> _Found:
    """The runs whose masses hold `wanted`: guesses are held against the integers, and mended where they are wrong."""
    found, wrong = _checked(table, runs, wanted, _guess(table, runs, wanted))
    for mended in (_inverse, _search):
        if not len(wrong):
            break
        part = runs._replace(step=runs.step[wrong] if runs.step.ndim else runs.step, shift=runs.shift[wrong])
        better, still = _checked(table, part, wanted[wrong], mended(table, part, wanted[wrong]))
        for values, right in zip(found, better, strict=True):
            values[wrong] = right
        wrong = wrong[still]
    return found


def _checked(table: Standard, runs: _Runs, wanted: np.ndarray, run: np.ndarray) -> tuple[_Found, np.ndarray]:
    """What runs these would be, and where `wanted` is not in them."""
    start, frequency = _masses(table, runs, run)
    within = np.subtract(wanted, start, out=start)  # wraps round to large numbers below the start
    return _Found(run, within, frequency), (within >= frequency).nonzero()[0]


def _guess(table: Standard, runs: _Runs, wanted: np.ndarray) -> np.ndarray:
    """The runs by an inverse of the CDF that is linear between 2^14 masses: right but for 1 in 1,000, in its tails."""
    bucket = (wanted >> np.uint64(PRECISION - INVERSE_BITS)).view(np.int64)
    reached = wanted.astype(np.int32).astype(np.float64)
    reached *= table.inverse_slope.take(bucket, mode="clip")
    reached += table.inverse_intercept.take(bucket, mode="clip")
    reached -= runs.shift
    reached /= runs.step
    return np.floor(reached, out=reached)


def _inverse(table: Standard, runs: _Runs, wanted: np.ndarray) -> np.ndarray:
    """The runs by the inverse of the interpolation: right but for rounding."""
    reached = wanted + 1.0  # the run in which the CDF passes above `wanted`
    cell = table.cumulative.searchsorted(reached) - 1
    return np.ceil(((reached - table.intercept[cell]) / table.mass[cell] - runs.shift) / runs.step) - 1.0


def _search(table: Standard, runs: _Runs, wanted: np.ndarray) -> np.ndarray:
    """The runs by doubling a step from a guess until the run is passed, and halving it again."""
    guess = _inverse(table, runs, wanted)
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
