"""Local bits-back coding: a flow's likelihood as a code of the same length. Ho et al., thesis chapter 3.

Data x on a grid of width delta cannot be pushed as f(x), for f(x) is no grid point. So a grid point z *near* f(x) is
drawn, by popping it from the message as N(f(x), sigma^2 J J^T), J being the Jacobian; x is pushed given z, as
N(f^-1(z), sigma^2); and z goes on, to the next layer or at last to the prior N(0, I). The receiver pops z, pops x, and
pushes z back where it was drawn from. What is paid is -log2 p(x) delta^d, to first order in sigma (eq. 3.27).

This file composes the layers of a flow (section 3.5.4.3) and adds dequantisation (3.5.5); `layers.py` says what layers
are, `layer_coding.py` codes one.
"""

import math
from typing import NamedTuple

import numpy as np

from vdbjax.coding.archive import Coder
from vdbjax.coding.discretize import centre_of, uniform
from vdbjax.coding.layer_coding import Coding, decode_layer, encode_layer
from vdbjax.coding.layers import Bins, DequantizedFlow, Flow, Values
from vdbjax.coding.rans import Message
from vdbjax.coding.tiles import Shape

DRAWN_BY_LAYERS = 8.0
"""Bits a dimension that a flow draws besides the dequantisation noise: less than most do."""


class Precision(NamedTuple):
    """How fine the noise is, and how fine the grid; delta a power of two, so that 1 is a whole number of bins."""

    sigma: float
    delta: float


def encode(message: Message, flow: Flow, bins: Bins, precision: Precision) -> None:
    """Pushes data on the grid by the flow's likelihood. Composition of layers: section 3.5.4.3.

    Raises EmptyMessageError where the message holds too few bits to draw the noise from, and ValueError where a layer
    gives no usable numbers. The message is then of no more use: code a copy.
    """
    _encode(message, flow, bins, _coding(precision, sender_encodes=True))


def decode(message: Message, flow: Flow, batch: int, precision: Precision) -> Bins:
    """Undoes `encode`."""
    return _decode(message, flow, batch, _coding(precision, sender_encodes=True))


def encode_integers(message: Message, model: DequantizedFlow, values: Bins, precision: Precision) -> Values:
    """Pushes integers [batch, *shape] (int64), such as pixels, by the flow's dequantised likelihood. Algorithm 3.4.

    The length is -log2 p(x + u) / q(u | x) for the very u that the message gave, and that comes back. Raises as
    `encode`.
    """
    noise, bins_in_one = _dequantizing(precision)
    if model.dequantizer is None:
        drawn = uniform(bins_in_one, values.shape).pop(message)
    else:
        drawn = _decode(message, model.dequantizer(values), len(values), noise)
    if drawn.shape != values.shape or drawn.min(initial=0) < 0 or drawn.max(initial=0) >= bins_in_one:
        raise ValueError("the dequantiser gave noise of another shape than the data's, or outside [0, 1)")
    encode(message, model.flow, values * bins_in_one + drawn, precision)
    return centre_of(drawn, precision.delta)


def decode_integers(message: Message, model: DequantizedFlow, batch: int, precision: Precision) -> Bins:
    """Undoes `encode_integers`."""
    noise, bins_in_one = _dequantizing(precision)
    values, drawn = np.divmod(decode(message, model.flow, batch, precision), bins_in_one)
    if model.dequantizer is None:
        uniform(bins_in_one, values.shape).push(message, drawn)
    else:
        _encode(message, model.dequantizer(values), drawn, noise)
    return values


def coder(model: DequantizedFlow, precision: Precision, *, tile: Shape, batch_size: int, lanes: int) -> Coder:
    """What codes tiles of an archive. Raises ValueError for a precision that no integers can be coded with."""
    _dequantizing(precision)
    return Coder(
        lambda message, pixels: encode_integers(message, model, pixels, precision),
        lambda message, count: decode_integers(message, model, count, precision),
        math.prod(tile) * (DRAWN_BY_LAYERS - math.log2(precision.delta)),
        tile,
        batch_size,
        lanes,
    )


def _encode(message: Message, flow: Flow, bins: Bins, coding: Coding) -> None:
    for layer in flow.layers:
        bins = encode_layer(message, layer, bins, coding)
    if bins.shape[1:] != flow.latent_shape:
        raise ValueError(f"the layers end in the shape {bins.shape[1:]}, not in latent_shape {flow.latent_shape}")
    coding.prior(bins.shape).push(message, bins)


def _decode(message: Message, flow: Flow, batch: int, coding: Coding) -> Bins:
    bins = coding.prior((batch, *flow.latent_shape)).pop(message)
    for layer in reversed(flow.layers):
        bins = decode_layer(message, layer, bins, coding)
    return bins


def _coding(precision: Precision, *, sender_encodes: bool) -> Coding:
    sigma, delta = precision
    if not (math.isfinite(sigma) and sigma > 0 and math.isfinite(delta) and delta > 0):
        raise ValueError(f"sigma ({sigma}) and delta ({delta}) must be above 0")
    return Coding(sigma, delta, sender_encodes)


def _dequantizing(precision: Precision) -> tuple[Coding, int]:
    """How noise is drawn, and how many bins there are from 0 to 1."""
    coding = _coding(precision, sender_encodes=False)
    if math.frexp(coding.delta)[0] != 0.5 or not 2.0**-40 <= coding.delta <= 1.0:
        raise ValueError(f"delta ({coding.delta}) must be a power of two between 2^-40 and 1")
    return coding, int(1.0 / coding.delta)
