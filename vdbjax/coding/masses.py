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
from jaxtyping import Float, Int, UInt64

from vdbjax.coding import rans
from vdbjax.coding.rans import Message

PRECISION = 26  # bits of mass; of rANS itself, one bit more costs 9e-6 bits a symbol
ESCAPE = 2**6  # of 2^26
BINS_A_CELL = 2  # as many runs of bins at most
LEAST_CELL = BINS_A_CELL  # mass of a cell of the table at least, so that bins keep a mass out to its ends
INDEX_BITS = 54  # an escaped bin lies within +-2^53, where float64 counts exactly
EDGE = 2.0 ** (INDEX_BITS - 1)
LOOKUP_BITS = 14  # of the mass: where a search for a cell begins
_MANTISSA_BITS, _EXPONENT_OF_HALF = 52, 1022  # of float64
_GUARD = 2.0**-10  # above any rounding of the CDF before it is rounded down, so that cells begin where they must

Distribution = Literal["gaussian", "logistic"]


class Standard(NamedTuple):
    """The integer CDF of a standard distribution over cells of equal width; masses of cells sum to `total`."""

    cells_per_unit: int  # of the standard deviation or scale
    centre: float  # the number of the cell that begins at 0
    cumulative: Float[np.ndarray, " cells+1"]  # integers: mass below each cell
    mass: Float[np.ndarray, " cells+1"]  # integers: of each cell; 0 beyond the last
    intercept: Float[np.ndarray, " cells+1"]  # the CDF at a position in the table: floor(intercept + mass * position)
    cell_at: Int[np.ndarray, " buckets+1"]  # the cell in which a mass of 2^(PRECISION - LOOKUP_BITS) i is reached
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
    cell_at = found_at(cumulative)
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


def cumulative(table: Standard, position: Float[np.ndarray, "*edges"]) -> UInt64[np.ndarray, "*edges"]:
    """The CDF at positions in the table, in cells, which are overwritten. It never falls, whatever the rounding."""
    np.clip(position, 0.0, 2.0 * table.centre, out=position)
    cell = position.astype(np.int64)
    position *= table.mass.take(cell)
    position += table.intercept.take(cell)
    return position.astype(np.int64).view(np.uint64)


def found_at(starts: Int[np.ndarray, " edges"]) -> Int[np.ndarray, " buckets"]:
    """For masses of 2^(PRECISION - LOOKUP_BITS) i: the symbol, among those that begin at `starts`, that holds each."""
    edges = np.arange(2**LOOKUP_BITS + 1) << (PRECISION - LOOKUP_BITS)
    return np.searchsorted(starts, edges, side="right") - 1


def run_length(
    slope: Float[np.ndarray, "*symbols"],
) -> tuple[Int[np.ndarray, "*symbols"], Float[np.ndarray, "*symbols"]]:
    """For bins of `slope` cells: the log2 of how many are coded together, and how many cells such a run is.

    That is 1/2 or more but less than 1 where there are several, so that masses stay large and densities flat.
    """
    held = slope.view(np.int64)
    exponent = held >> _MANTISSA_BITS  # of a power of two at most as large, as float64 holds it
    bits = np.asarray(np.maximum(_EXPONENT_OF_HALF - exponent, 0))
    return bits, np.asarray(held + (bits << _MANTISSA_BITS)).view(np.float64)


def push_escaped(message: Message, bins: np.ndarray, lanes: np.ndarray, *, escape: bool) -> None:
    """The numbers of the bins on these lanes, which have no mass. Raises ValueError where there is no escape."""
    index = bins[lanes]
    if not escape:
        raise ValueError(f"bin {index[0]} lies outside the distribution that it is coded by")
    if (np.abs(index) >= EDGE).any():
        raise ValueError(f"bin {index[np.abs(index) >= EDGE][0]} lies beyond 2^{INDEX_BITS - 1} bins from 0")
    rans.push_wide_bits(message, (index + int(EDGE)).astype(np.uint64), INDEX_BITS, lanes=lanes)


def pop_escaped(message: Message, lanes: np.ndarray) -> np.ndarray:
    """Undoes `push_escaped`."""
    return rans.pop_wide_bits(message, INDEX_BITS, lanes=lanes).astype(np.int64) - int(EDGE)


def but_for(escaped: np.ndarray, bits: np.ndarray, count: int) -> np.ndarray:
    """The bits below each of `count` runs, none for the escaped ones."""
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
