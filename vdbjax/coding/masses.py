"""The integer CDFs of the standard distributions, which define the codes of `discretize`, and the escape beyond them.

`Standard` tabulates a distribution once over cells of 1/128 standard deviation (1/64 scale), as integers that sum to
2^26, and is linear between: an edge is looked up and interpolated by float64 additions, multiplications and roundings
alone, which every machine does alike. A density that is constant within cells costs 4e-6 bits a symbol.
"""

import math
from collections.abc import Callable
from functools import cache
from typing import Literal, NamedTuple

import numpy as np
from jaxtyping import Bool, Float, Int, UInt64

from vdbjax.coding import rans
from vdbjax.coding.rans import Counts, Message

PRECISION = 26  # bits of mass; of rANS itself, one bit more costs 9e-6 bits a symbol
ESCAPE = 2**6  # of 2^26
BINS_A_CELL = 2  # as many runs of bins at most
LEAST_CELL = BINS_A_CELL  # mass of a cell of the table at least, so that bins keep a mass out to its ends
INDEX_BITS = 54  # an escaped bin lies in [-2^53, 2^53), where float64 counts exactly
EDGE = 2.0 ** (INDEX_BITS - 1)
INVERSE_BITS = 14  # of the mass: as many pieces has the inverse of the CDF, by which runs are guessed
_GUARD = 2.0**-10  # above any rounding of the CDF before it is rounded down, so that cells begin where they must

Distribution = Literal["gaussian", "logistic"]


class Standard(NamedTuple):
    """The integer CDF of a standard distribution over cells of equal width; masses of cells sum to `total`."""

    cells_per_unit: int  # of the standard deviation or scale
    centre: float  # the number of the cell that begins at 0
    cumulative: Float[np.ndarray, " cells+1"]  # integers: mass below each cell
    mass: Float[np.ndarray, " cells+1"]  # integers: of each cell; 0 beyond the last
    intercept: Float[np.ndarray, " cells+1"]  # the CDF at a position in the table: floor(intercept + mass * position)
    inverse_slope: Float[np.ndarray, " pieces"]  # where the CDF has passed an integer: about intercept + slope * it,
    inverse_intercept: Float[np.ndarray, " pieces"]  # with those of its piece, 2^(PRECISION - INVERSE_BITS) of mass
    total: int


class Blocks(NamedTuple):
    """How blocks of symbols are coded, one symbol a lane."""

    push: Callable[[Message, slice, Int[np.ndarray, " symbols"]], None]  # raises ValueError for what it cannot code
    pop: Callable[[Message, slice], Int[np.ndarray, " symbols"]]


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
    reached = np.linspace(0.0, 2.0**PRECISION, 2**INVERSE_BITS + 1)
    inverse = np.interp(reached, cumulative, np.arange(2 * half + 1))
    inverse_slope = np.diff(inverse) / reached[1]
    mass = np.append(mass, 0).astype(np.float64)
    return Standard(
        cells_per_unit,
        float(half),
        cumulative.astype(np.float64),
        mass,
        cumulative - np.arange(2 * half + 1) * mass + _GUARD,
        inverse_slope,
        inverse[:-1] + (1.0 - reached[:-1]) * inverse_slope,
        total,
    )


def cumulative(table: Standard, position: Float[np.ndarray, "*edges"]) -> UInt64[np.ndarray, "*edges"]:
    """The CDF at positions in the table, in cells, which are overwritten. It never falls, whatever the rounding."""
    np.clip(position, 0.0, 2.0 * table.centre, out=position)
    cell = position.astype(np.int32).astype(np.int64)  # by way of 32 bits, which takes half the time
    position *= table.mass.take(cell, mode="clip")
    position += table.intercept.take(cell, mode="clip")
    return position.astype(np.int32).astype(np.uint64)


def too_far(bins: Int[np.ndarray, " symbols"]) -> Bool[np.ndarray, " symbols"]:
    """Which bins cannot be escaped."""
    return (bins + int(EDGE)).view(np.uint64) >= 2**INDEX_BITS  # what lies below wraps round


def push_escaped(message: Message, bins: np.ndarray, lanes: np.ndarray, *, escape: bool) -> None:
    """The numbers of the bins on these lanes, which have no mass. Raises ValueError where there is no escape."""
    index = bins[lanes]
    if not escape:
        raise ValueError(f"bin {index[0]} lies outside the distribution that it is coded by")
    if (far := too_far(index)).any():
        raise ValueError(f"bin {index[far][0]} lies beyond 2^{INDEX_BITS - 1} bins from 0")
    rans.push_wide_bits(message, (index + int(EDGE)).astype(np.uint64), INDEX_BITS, lanes=lanes)


def pop_escaped(message: Message, lanes: np.ndarray) -> np.ndarray:
    """Undoes `push_escaped`."""
    return rans.pop_wide_bits(message, INDEX_BITS, lanes=lanes).astype(np.int64) - int(EDGE)


def but_for(escaped: np.ndarray, bits: Counts, count: int) -> Counts:
    """The bits below each of `count` runs, none for the escaped ones."""
    if not len(escaped):
        return bits
    each = np.broadcast_to(bits, count).copy()
    each[escaped] = 0
    return each


def _integer_masses(probability: np.ndarray, total: int) -> np.ndarray:
    """Integers near probability * total that sum to it, none below LEAST_CELL."""
    scaled = np.rint(probability * total)
    excess = np.maximum(LEAST_CELL - scaled, 0).sum()
    mass = np.maximum(np.rint(probability * (total - excess)), LEAST_CELL).astype(np.int64)
    mass[len(mass) // 2] += total - mass.sum()
    return mass
