"""Codes for real numbers on a grid: bin k is [k delta, (k + 1) delta), and stands for its centre.

A Gaussian or logistic bin has the mass that a *piecewise linear* CDF gives it: `Standard` tabulates the standard
distribution once, in integers, over cells of 1/128 (1/64) standard deviation (scale), and a bin's edges are looked up
and interpolated there by float64 additions, multiplications and roundings alone, which every machine does alike. Those
integers alone define the code; to pop, the inverse of the interpolation guesses the bin, and a search over integers
corrects it. A density that is constant within cells costs 4e-6 bits a symbol.

Where bins are much narrower than cells, as with delta = 2^-32 and a standard deviation of 2^-14, runs of 2^b bins are
coded together and followed by b bits, all equally likely: 26 bits of mass are enough for any delta.

What lies outside the table's window, or in a bin too narrow for a mass, goes by an escape: a reserved mass of 2^-20,
and the bin's number in 54 bits. Noise that is *drawn* by popping must never be an escape, for that would be a random
bin anywhere: `escape=False` reserves no mass and refuses to push what it could not have popped.
"""

import math
from functools import cache
from typing import Any, Literal, NamedTuple

import numpy as np
from jaxtyping import Float, Int, UInt64

from vdbjax.coding import rans
from vdbjax.coding.rans import Codec, Message

PRECISION = 26  # bits of mass; of rANS itself, one bit more costs 9e-6 bits a symbol
ESCAPE = 2**6  # of 2^26
BINS_A_CELL = 2  # as many runs of bins at most
LEAST_CELL = BINS_A_CELL  # mass of a cell of the table at least, so that bins keep a mass out to its ends
INDEX_BITS = 54  # an escaped bin lies within +-2^53, where float64 counts exactly
_LOOKUP_BITS = 16
_BITS_AT_ONCE = 26
_EDGE = 2.0 ** (INDEX_BITS - 1)
_GUARD = 2.0**-10  # above any rounding of the CDF before it is rounded down, so that cells begin where they must
_NONE = np.empty(0, np.int64)


class Standard(NamedTuple):
    """The integer CDF of a standard distribution over cells of equal width; masses of cells sum to `total`."""

    cells_per_unit: int  # of the standard deviation or scale
    centre: float  # the number of the cell that begins at 0
    cumulative: Float[np.ndarray, " cells+1"]  # integers: mass below each cell
    mass: Float[np.ndarray, " cells+1"]  # integers: of each cell; 0 beyond the last
    intercept: Float[np.ndarray, " cells+1"]  # the CDF at a position in the table: floor(intercept + mass * position)
    cell_at: Int[np.ndarray, " buckets+1"]  # the cell in which a mass of 2^(PRECISION - 16) i is reached
    total: int


class _Run(NamedTuple):
    """A block's distributions: the lower edge of a bin lies at the position bin * slope + shift in the table."""

    slope: Float[np.ndarray, "..."]  # cells a bin
    shift: Float[np.ndarray, " symbols"]  # cells
    bits: Int[np.ndarray, "..."]  # a run is 2^bits bins
    long: bool  # whether any run has more than one bin


Distribution = Literal["gaussian", "logistic"]


@cache
def standard(distribution: Distribution, *, escape: bool) -> Standard:
    """The table of N(0, 1) over +-6 in cells of 1/128, or of the standard logistic over +-18 in cells of 1/64."""
    cells_per_unit, half_window = {"gaussian": (128, 6), "logistic": (64, 18)}[distribution]
    below = {
        "gaussian": lambda z: 0.5 * math.erfc(-z / math.sqrt(2.0)),
        "logistic": lambda z: 1.0 / (1.0 + math.exp(-z)),
    }[distribution]
    half = cells_per_unit * half_window
    left = np.diff([below(cell / cells_per_unit) for cell in range(-half, 1)])
    total = 2**PRECISION - (ESCAPE if escape else 0)
    mass = _integer_masses(np.concatenate([left, left[::-1]]), total)
    cumulative = np.concatenate([[0], np.cumsum(mass)])
    bucket_edges = np.arange(2**_LOOKUP_BITS + 1) << (PRECISION - _LOOKUP_BITS)
    cell_at = np.searchsorted(cumulative, bucket_edges, side="right") - 1
    mass = np.append(mass, 0).astype(np.float64)
    return Standard(
        cells_per_unit,
        float(half),
        cumulative.astype(np.float64),
        mass,
        cumulative - np.arange(2 * half + 1) * mass + _GUARD,
        np.minimum(cell_at, 2 * half - 1),
        total,
    )


def gaussian(mean: Any, standard_deviation: Any, delta: float, *, escape: bool = True) -> Codec:
    """Codes bins [*shape] int64 of N(mean, standard_deviation^2); both finite, broadcast to the mean's shape.

    The cost is below 1e-4 bits a symbol over the bin's own -log2 probability, for any delta. Raises ValueError for a
    standard deviation that is not above 0, and for means beyond 2^53 bins.
    """
    return _continuous(standard("gaussian", escape=escape), mean, standard_deviation, delta, escape)


def logistic(mean: Any, scale: Any, delta: float, *, escape: bool = True) -> Codec:
    """Codes bins of the logistic distribution, CDF 1 / (1 + exp(-(x - mean) / scale)); else as `gaussian`."""
    return _continuous(standard("logistic", escape=escape), mean, scale, delta, escape)


def uniform(total: int, shape: tuple[int, ...]) -> Codec:
    """Codes integers [*shape] int64 of [0, total), all equally likely; total at most 2^62.

    So 1 / delta bins of width delta cover [0, 1). More than 2^28 values are coded by their leading 28 bits and the
    bits below; that costs less than 1e-8 bits a symbol.
    """
    if not 1 <= total <= 2**62:
        raise ValueError(f"total ({total}) must lie between 1 and 2^62")
    low_bits = max((total - 1).bit_length() - 28, 0)
    leading = ((total - 1) >> low_bits) + 1

    def push(message: Message, symbols: Any) -> None:
        values = _checked(symbols, shape)
        if values.size and not (values.min() >= 0 and values.max() < total):
            raise ValueError(f"symbols from {values.min()} to {values.max()} do not all lie in [0, {total})")
        for block in reversed(rans.blocks(values.size, message.lanes)):
            value, lanes = values[block].astype(np.uint64), _lanes(block)
            _push_wide_bits(message, value & np.uint64(2**low_bits - 1), low_bits, lanes)
            rans.push_uniform(message, value >> np.uint64(low_bits), leading, lanes=lanes)

    def pop(message: Message) -> Int[np.ndarray, "..."]:
        values = np.empty(math.prod(shape), np.int64)
        for block in rans.blocks(values.size, message.lanes):
            lanes = _lanes(block)
            value = rans.pop_uniform(message, leading, lanes=lanes) << np.uint64(low_bits)
            values[block] = value | _pop_wide_bits(message, low_bits, lanes)
        return values.reshape(shape)

    return Codec(push, pop)


def bin_of(values: Float[np.ndarray, "*shape"], delta: float) -> Int[np.ndarray, "*shape"]:
    """The bin that holds each value."""
    return np.floor(values / delta).astype(np.int64)


def centre_of(bins: Int[np.ndarray, "*shape"], delta: float) -> Float[np.ndarray, "*shape"]:
    """The value that each bin stands for."""
    return (bins + 0.5) * delta


def _continuous(table: Standard, mean: Any, scale: Any, delta: float, escape: bool) -> Codec:
    mean, scale = np.asarray(mean, np.float64), np.asarray(scale, np.float64)
    _check_parameters(mean, scale, delta)
    shape = mean.shape
    means = mean.reshape(-1)
    scales = scale if scale.ndim == 0 else np.broadcast_to(scale, shape).reshape(-1)

    def run(block: slice) -> _Run:
        return _run(table, means[block], scales if scales.ndim == 0 else scales[block], delta)

    def push(message: Message, symbols: Any) -> None:
        bins = _checked(symbols, shape)
        for block in reversed(rans.blocks(bins.size, message.lanes)):
            _push(message, table, run(block), bins[block], escape)

    def pop(message: Message) -> Int[np.ndarray, "..."]:
        bins = np.empty(means.size, np.int64)
        for block in rans.blocks(bins.size, message.lanes):
            bins[block] = _pop(message, table, run(block), escape)
        return bins.reshape(shape)

    return Codec(push, pop)


def _run(table: Standard, mean: np.ndarray, scale: np.ndarray, delta: float) -> _Run:
    width = np.maximum(scale / delta, 2.0**-200)  # of a bin; what is narrower lies in one bin all the same
    slope = np.asarray(table.cells_per_unit / width)
    longest = BINS_A_CELL * table.cells_per_unit  # bins to a standard deviation at most; a power of two
    bits = np.maximum(np.frexp(width)[1] - (longest.bit_length() - 1), 0)
    shift = table.centre - mean / delta * slope
    return _Run(slope, shift, np.asarray(bits, np.int64), bool(np.any(bits)))


def _cumulative(table: Standard, run: _Run, edges: Float[np.ndarray, "*edges symbols"]) -> Any:
    """The integer CDF, uint64, at edges of bins. It never falls, whatever the rounding."""
    position = edges * run.slope
    position += run.shift
    np.clip(position, 0.0, 2.0 * table.centre, out=position)
    cell = position.astype(np.int64)
    position *= table.mass.take(cell)
    position += table.intercept.take(cell)
    return position.astype(np.int64).view(np.uint64)


def _masses(table: Standard, run: _Run, first: Float[np.ndarray, " symbols"]) -> tuple[np.ndarray, np.ndarray]:
    """Where the masses of the runs that begin with the bins `first` start, and how large they are; both uint64."""
    edges = np.empty((2, len(first)))
    edges[0] = first
    np.add(first, (1 << run.bits).astype(np.float64) if run.long else 1.0, out=edges[1])
    start, end = _cumulative(table, run, edges)
    return start, end - start


def _push(message: Message, table: Standard, run: _Run, bins: np.ndarray, escape: bool) -> None:
    lanes = slice(0, len(bins))
    first = (bins >> run.bits) << run.bits if run.long else bins
    start, frequency = _masses(table, run, first.astype(np.float64))
    low, low_bits = bins - first, run.bits
    if not frequency.all() or max(bins.max(), -bins.min()) >= _EDGE:
        outside = (frequency == 0) | (np.abs(bins) >= _EDGE)
        if not escape:
            raise ValueError(f"bin {bins[outside][0]} lies outside the distribution that it is coded by")
        _push_escaped(message, bins, np.flatnonzero(outside))
        start[outside], frequency[outside] = table.total, ESCAPE
        low, low_bits = np.where(outside, 0, low), np.where(outside, 0, low_bits)
    if run.long:
        _push_wide_bits(message, low.astype(np.uint64), low_bits, lanes)
    rans.push(message, start, frequency, precision=PRECISION, lanes=lanes)


def _pop(message: Message, table: Standard, run: _Run, escape: bool) -> np.ndarray:
    lanes = slice(0, len(run.shift))
    position = rans.peek(message, precision=PRECISION, lanes=lanes)
    escaped, wanted = _NONE, position
    if escape and position.max() >= table.total:
        escaped = np.flatnonzero(position >= np.uint64(table.total))
        wanted = np.minimum(position, np.uint64(table.total - 1))
    first, within, frequency = _find(table, run, wanted)
    low_bits = run.bits
    if len(escaped):
        within[escaped], frequency[escaped] = position[escaped] - np.uint64(table.total), ESCAPE
        low_bits = np.broadcast_to(low_bits, len(first)).copy()
        low_bits[escaped] = 0
    rans.drop(message, within, frequency, precision=PRECISION, lanes=lanes)
    bins = first.astype(np.int64)
    if run.long:
        bins += _pop_wide_bits(message, low_bits, lanes).astype(np.int64)
    if len(escaped):
        bins[escaped] = _pop_escaped(message, escaped)
    return bins


def _find(
    table: Standard, run: _Run, wanted: UInt64[np.ndarray, " symbols"]
) -> tuple[Float[np.ndarray, " symbols"], UInt64[np.ndarray, " symbols"], UInt64[np.ndarray, " symbols"]]:
    """The runs whose masses hold `wanted`: their first bins, how far above their starts it lies, and their masses."""
    first = _guess(table, run, wanted)
    start, frequency = _masses(table, run, first)
    within = wanted - start  # wraps round to large numbers below the start
    wrong = np.flatnonzero(within >= frequency)
    if len(wrong):
        part = _Run(
            run.slope.take(wrong) if run.slope.ndim else run.slope,
            run.shift.take(wrong),
            run.bits.take(wrong) if run.bits.ndim else run.bits,
            run.long,
        )
        first[wrong] = found = _search(table, part, wanted.take(wrong), first.take(wrong))
        start, frequency[wrong] = _masses(table, part, found)
        within[wrong] = wanted.take(wrong) - start
    return first, within, frequency


def _guess(table: Standard, run: _Run, wanted: np.ndarray) -> np.ndarray:
    """The first bins of the runs, by the inverse of the interpolation: right but for rounding."""
    reached = wanted.view(np.int64) + 1.0  # the run in which the CDF passes above `wanted`
    cell = table.cell_at.take((wanted >> np.uint64(PRECISION - _LOOKUP_BITS)).view(np.int64))
    late = np.flatnonzero(table.cumulative.take(cell + 1) < reached)
    if len(late):
        cell[late] = np.searchsorted(table.cumulative, reached.take(late), side="left") - 1
    reached -= table.intercept.take(cell)
    reached /= table.mass.take(cell)
    reached -= run.shift
    reached /= run.slope
    bins = np.ceil(reached, out=reached)
    bins -= 1.0
    if not run.long:
        return bins
    return ((bins.astype(np.int64) >> run.bits) << run.bits).astype(np.float64)


def _search(table: Standard, run: _Run, wanted: np.ndarray, first: np.ndarray) -> np.ndarray:
    """The first bins of the runs from any guess, by doubling the step until the run is passed, and halving it again."""
    length = (1 << run.bits).astype(np.float64)
    # In runs from `first`: the last whose start is at most `wanted`, between these.
    low, high = np.full(len(wanted), -1.0), np.full(len(wanted), 1.0)

    def starts_below(runs: np.ndarray) -> np.ndarray:
        return _cumulative(table, run, first + runs * length) <= wanted

    while not (fine := starts_below(low)).all():
        low = np.where(fine, low, 2.0 * low)
    while (more := starts_below(high)).any():
        high = np.where(more, 2.0 * high, high)
    while ((high - low) > 1.0).any():
        middle = np.floor(0.5 * (low + high))
        below = starts_below(middle)
        low, high = np.where(below, middle, low), np.where(below, high, middle)
    return first + low * length


def _push_wide_bits(message: Message, value: np.ndarray, bits: Any, lanes: rans.Lanes) -> None:
    """`push_bits` for up to 62 bits, so few at a time that nothing is lost."""
    for shift, part in reversed(_parts(bits)):
        higher = value >> np.uint64(shift)
        rans.push_bits(message, higher & np.uint64(2**_BITS_AT_ONCE - 1), part, lanes=lanes)


def _pop_wide_bits(message: Message, bits: Any, lanes: rans.Lanes) -> Any:
    parts = [rans.pop_bits(message, part, lanes=lanes) << np.uint64(shift) for shift, part in _parts(bits)]
    return sum(parts, np.uint64(0))


def _parts(bits: Any) -> list[tuple[int, Any]]:
    """Bit counts cut into parts of at most 26: where each begins, and the count of each symbol's bits in it."""
    most = int(np.max(bits, initial=0))
    if most <= _BITS_AT_ONCE:
        return [(0, bits)] if most else []
    return [(shift, np.clip(bits - shift, 0, _BITS_AT_ONCE)) for shift in range(0, most, _BITS_AT_ONCE)]


def _push_escaped(message: Message, bins: np.ndarray, lanes: np.ndarray) -> None:
    index = bins[lanes]
    if (np.abs(index) >= _EDGE).any():
        raise ValueError(f"bin {index[np.abs(index) >= _EDGE][0]} lies beyond 2^{INDEX_BITS - 1} bins from 0")
    _push_wide_bits(message, (index + int(_EDGE)).astype(np.uint64), INDEX_BITS, lanes)


def _pop_escaped(message: Message, lanes: np.ndarray) -> np.ndarray:
    return _pop_wide_bits(message, INDEX_BITS, lanes).astype(np.int64) - int(_EDGE)


def _integer_masses(probability: np.ndarray, total: int) -> np.ndarray:
    """Integers near probability * total that sum to it, none below LEAST_CELL."""
    scaled = np.rint(probability * total)
    excess = np.maximum(LEAST_CELL - scaled, 0).sum()
    mass = np.maximum(np.rint(probability * (total - excess)), LEAST_CELL).astype(np.int64)
    mass[len(mass) // 2] += total - mass.sum()
    return mass


def _check_parameters(mean: np.ndarray, scale: np.ndarray, delta: float) -> None:
    if not (math.isfinite(delta) and delta > 0):
        raise ValueError(f"delta ({delta}) must be a width above 0")
    if not (np.isfinite(scale).all() and (scale > 0).all()):
        raise ValueError("a standard deviation or scale is not finite and above 0")
    # False for NaN too. Room for the window keeps every edge that is looked up countable in float64.
    if mean.size and not (np.abs(mean).max() + 32.0 * scale.max() < _EDGE * delta):
        raise ValueError(f"a mean is not finite or, with its window, lies beyond 2^{INDEX_BITS - 1} bins of {delta}")


def _checked(symbols: Any, shape: tuple[int, ...]) -> np.ndarray:
    if not isinstance(symbols, np.ndarray) or symbols.dtype != np.int64 or symbols.shape != shape:
        given = getattr(symbols, "dtype", type(symbols)), np.shape(symbols)
        raise ValueError(f"symbols must be an int64 array of shape {shape}, not {given[0]} {given[1]}")
    return symbols.reshape(-1)


def _lanes(block: slice) -> slice:
    """The lanes on which a block is coded."""
    return slice(0, block.stop - block.start)
