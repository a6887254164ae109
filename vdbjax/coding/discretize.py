"""Codes for real numbers on a grid: bin k is [k delta, (k + 1) delta), and stands for its centre.

A Gaussian or logistic bin has the mass that an integer CDF gives it, linear between the entries of a table (masses.py);
those integers alone define the code. Bins of one scale, and not wider, go by a table of their own (common_scale.py),
all others by a look at the CDF for each edge (any_scale.py).

Where bins are much narrower than cells of the table, as with delta = 2^-32 and a standard deviation of 2^-14, runs of
2^b bins are coded together and followed by b bits, all equally likely: 26 bits of mass are enough for any delta.

What lies outside the table's window, or in a bin too narrow for a mass, goes by an escape: a reserved mass of 2^-20,
and the bin's number in 54 bits. Noise that is *drawn* by popping must never be an escape, for that would be a random
bin anywhere: `escape=False` reserves no mass and refuses to push what it could not have popped.
"""

import math
from typing import Any

import numpy as np
from jaxtyping import Float, Int

from vdbjax.coding import any_scale, common_scale, rans
from vdbjax.coding.masses import EDGE, INDEX_BITS, Distribution
from vdbjax.coding.rans import Codec, Message


def gaussian(mean: Any, standard_deviation: Any, delta: float, *, escape: bool = True) -> Codec:
    """Codes bins [*shape] int64 of N(mean, standard_deviation^2); both finite, broadcast to the mean's shape.

    The cost is below 1e-4 bits a symbol over the bin's own -log2 probability, for any delta. Raises ValueError for a
    standard deviation that is not above 0, and for means beyond 2^53 bins.
    """
    return _continuous("gaussian", mean, standard_deviation, delta, escape)


def logistic(mean: Any, scale: Any, delta: float, *, escape: bool = True) -> Codec:
    """Codes bins of the logistic distribution, CDF 1 / (1 + exp(-(x - mean) / scale)); else as `gaussian`."""
    return _continuous("logistic", mean, scale, delta, escape)


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
            rans.push_wide_bits(message, value & np.uint64(2**low_bits - 1), low_bits, lanes=lanes)
            rans.push_uniform(message, value >> np.uint64(low_bits), leading, lanes=lanes)

    def pop(message: Message) -> Int[np.ndarray, "..."]:
        values = np.empty(math.prod(shape), np.int64)
        for block in rans.blocks(values.size, message.lanes):
            lanes = _lanes(block)
            value = rans.pop_uniform(message, leading, lanes=lanes) << np.uint64(low_bits)
            values[block] = value | rans.pop_wide_bits(message, low_bits, lanes=lanes)
        return values.reshape(shape)

    return Codec(push, pop)


def bin_of(values: Float[np.ndarray, "*shape"], delta: float) -> Int[np.ndarray, "*shape"]:
    """The bin that holds each value."""
    return np.floor(values / delta).astype(np.int64)


def centre_of(bins: Int[np.ndarray, "*shape"], delta: float) -> Float[np.ndarray, "*shape"]:
    """The value that each bin stands for."""
    return (bins + 0.5) * delta


def _continuous(distribution: Distribution, mean: Any, scale: Any, delta: float, escape: bool) -> Codec:
    mean, scale = np.asarray(mean, np.float64), np.asarray(scale, np.float64)
    _check_parameters(mean, scale, delta)
    one = scale.ndim == 0 and common_scale.has_runs(distribution, float(scale / delta))
    scale = scale if scale.ndim == 0 else np.broadcast_to(scale, mean.shape).reshape(-1)
    blocks = (common_scale if one else any_scale).codec(distribution, mean.reshape(-1), scale, delta, escape=escape)

    def push_all(message: Message, symbols: Any) -> None:
        bins = _checked(symbols, mean.shape)
        for block in reversed(rans.blocks(bins.size, message.lanes)):
            blocks.push(message, block, bins[block])

    def pop_all(message: Message) -> Int[np.ndarray, "..."]:
        bins = np.empty(mean.size, np.int64)
        for block in rans.blocks(bins.size, message.lanes):
            bins[block] = blocks.pop(message, block)
        return bins.reshape(mean.shape)

    return Codec(push_all, pop_all)


def _check_parameters(mean: np.ndarray, scale: np.ndarray, delta: float) -> None:
    if not (math.isfinite(delta) and delta > 0):
        raise ValueError(f"delta ({delta}) must be a width above 0")
    if not (np.isfinite(scale).all() and (scale > 0).all()):
        raise ValueError("a standard deviation or scale is not finite and above 0")
    # False for NaN too. Room for the window and for rounding keeps every edge that is looked up countable in float64.
    if mean.size and not (np.abs(mean).max() + 32.0 * scale.max() < (EDGE - 64.0) * delta):
        raise ValueError(f"a mean is not finite or, with its window, lies beyond 2^{INDEX_BITS - 1} bins of {delta}")


def _checked(symbols: Any, shape: tuple[int, ...]) -> np.ndarray:
    if not isinstance(symbols, np.ndarray) or symbols.dtype != np.int64 or symbols.shape != shape:
        given = getattr(symbols, "dtype", type(symbols)), np.shape(symbols)
        raise ValueError(f"symbols must be an int64 array of shape {shape}, not {given[0]} {given[1]}")
    return symbols.reshape(-1)


def _lanes(block: slice) -> slice:
    """The lanes on which a block is coded."""
    return slice(0, block.stop - block.start)
