"""How one layer of a flow is coded: algorithms 3.1 to 3.3 of Ho's thesis.

A grid point z near f(x) is drawn, by popping it from the message; x is pushed given z. Results of a layer's functions
that are of another dtype or shape, or not finite, raise ValueError.

Two noises are drawn nowhere but inside the windows of their tables (discretize.py), else random bits would now and then
hold an escape: what the *sender* pops has none, what the sender pushes does.
"""

from collections.abc import Callable
from typing import Any, NamedTuple

import numpy as np
from jaxtyping import Float, Int

from vdbjax.coding.discretize import centre_of, gaussian
from vdbjax.coding.layers import (
    Autoregressive,
    Bins,
    BlackBox,
    Coupling,
    Elementwise,
    Layer,
    Linear,
    Output,
    Rearrangement,
    Values,
    apply,
    triangular_factor,
)
from vdbjax.coding.rans import Codec, Message


class Coding(NamedTuple):
    """How the layers of one flow are coded."""

    sigma: float
    delta: float
    sender_encodes: bool  # otherwise the sender decodes: draws data from a flow, as dequantisation does

    def data(self, mean: Values, scale: Any = 1.0) -> Codec:
        return gaussian(mean, self.sigma * scale, self.delta, escape=self.sender_encodes)

    def output(self, mean: Values, scale: Any) -> Codec:
        return gaussian(mean, self.sigma * scale, self.delta, escape=not self.sender_encodes)

    def prior(self, shape: tuple[int, ...]) -> Codec:
        return gaussian(np.zeros(shape), 1.0, self.delta, escape=self.sender_encodes)


def encode_layer(message: Message, layer: Layer, bins: Bins, coding: Coding) -> Int[np.ndarray, "batch ..."]:
    """Pops the layer's output from the message and pushes its input, whose bins these are; the output's bins."""
    return _CODERS[type(layer)][0](message, layer, bins, coding)


def decode_layer(message: Message, layer: Layer, drawn: Bins, coding: Coding) -> Int[np.ndarray, "batch ..."]:
    """Undoes `encode_layer`: the input's bins, from the output's."""
    return _CODERS[type(layer)][1](message, layer, drawn, coding)


def _bits_back(output: Callable[..., Codec], data: Callable[..., Codec]) -> tuple[Callable[..., Bins], ...]:
    """(encode, decode) of a layer by Algorithm 3.1, from its codecs of z given x and of x given z."""

    def encode(message: Message, layer: Any, bins: Bins, coding: Coding) -> Bins:
        drawn = output(layer, bins, coding).pop(message)
        data(layer, drawn, coding).push(message, bins)
        return drawn

    def decode(message: Message, layer: Any, drawn: Bins, coding: Coding) -> Bins:
        bins = data(layer, drawn, coding).pop(message)
        output(layer, bins, coding).push(message, drawn)
        return bins

    return encode, decode


def _elementwise_output(layer: Elementwise, bins: Bins, coding: Coding) -> Codec:
    """z given x: N(f(x), (sigma s(x) f'(x))^2)."""
    x = centre_of(bins, coding.delta)
    y, log_slope = layer.forward(x)
    slope = np.exp(_checked(log_slope, x.shape, "a log-slope"))
    return coding.output(_checked(y, x.shape, "an output"), slope * _relative_noise(layer, x))


def _elementwise_data(layer: Elementwise, drawn: Bins, coding: Coding) -> Codec:
    """x given z: N(f^-1(z), (sigma s(f^-1(z)))^2)."""
    x = _checked(layer.inverse(centre_of(drawn, coding.delta)), drawn.shape, "an inverse")
    return coding.data(x, _relative_noise(layer, x))


def _relative_noise(layer: Elementwise, x: Values) -> Any:
    return 1.0 if layer.relative_noise is None else _checked(layer.relative_noise(x), x.shape, "a relative noise")


_encode_elementwise, _decode_elementwise = _bits_back(_elementwise_output, _elementwise_data)
"""The Jacobian is diagonal: all elements at once."""


def _encode_coupling(message: Message, layer: Coupling, bins: Bins, coding: Coding) -> Bins:
    """Algorithm 3.3: given the kept half, an elementwise map of the other."""
    kept, changed = layer.split(bins)
    return layer.join(kept, _encode_elementwise(message, _given(layer, kept, coding), changed, coding))


def _decode_coupling(message: Message, layer: Coupling, bins: Bins, coding: Coding) -> Bins:
    kept, changed = layer.split(bins)
    return layer.join(kept, _decode_elementwise(message, _given(layer, kept, coding), changed, coding))


def _given(layer: Coupling, kept: Bins, coding: Coding) -> Elementwise:
    parameters = layer.parameters(centre_of(kept, coding.delta))
    return Elementwise(lambda x: layer.forward(x, parameters), lambda y: layer.inverse(y, parameters))


def _linear_output(layer: Linear, bins: Bins, coding: Coding) -> Codec:
    y = apply(layer.matrix, centre_of(bins, coding.delta)) + layer.offset
    return _correlated(y, layer.factor, coding)


def _linear_data(layer: Linear, drawn: Bins, coding: Coding) -> Codec:
    return coding.data(apply(layer.inverse, centre_of(drawn, coding.delta) - layer.offset))


def _encode_autoregressive(message: Message, layer: Autoregressive, bins: Bins, coding: Coding) -> Bins:
    """Algorithm 3.2: from the last coordinate to the first, so that the receiver knows x_<i when it meets x_i."""
    drawn, x = np.empty_like(bins), centre_of(bins, coding.delta)
    for i in reversed(range(bins.shape[1])):
        one = _coordinate(layer, i, x)
        drawn[:, i] = _encode_elementwise(message, one, bins[:, i], coding)
    return drawn


def _decode_autoregressive(message: Message, layer: Autoregressive, drawn: Bins, coding: Coding) -> Bins:
    bins, x = np.empty_like(drawn), np.zeros(drawn.shape)
    for i in range(drawn.shape[1]):
        one = _coordinate(layer, i, x)
        bins[:, i] = _decode_elementwise(message, one, drawn[:, i], coding)
        x[:, i] = centre_of(bins[:, i], coding.delta)
    return bins


def _coordinate(layer: Autoregressive, i: int, x: Values) -> Elementwise:
    """The map of coordinate i, given those before it."""

    def forward(x_i: Values) -> Output:
        known = np.zeros_like(x)  # sender and receiver show the same, whatever else they know
        known[:, :i], known[:, i] = x[:, :i], x_i
        return layer.forward(i, known)

    def inverse(y_i: Values) -> Values:
        known = np.zeros_like(x)
        known[:, :i] = x[:, :i]
        return layer.inverse(i, y_i, known)

    return Elementwise(forward, inverse)


def _black_box_output(layer: BlackBox, bins: Bins, coding: Coding) -> Codec:
    x = centre_of(bins, coding.delta)
    jacobian = _checked(layer.jacobian(x), (*x.shape, x.shape[1]), "a Jacobian")
    return _correlated(_checked(layer.forward(x), x.shape, "an output"), triangular_factor(jacobian), coding)


def _black_box_data(layer: BlackBox, drawn: Bins, coding: Coding) -> Codec:
    return coding.data(_checked(layer.inverse(centre_of(drawn, coding.delta)), drawn.shape, "an inverse"))


def _correlated(mean: Values, factor: Float[np.ndarray, "*positions channels channels"], coding: Coding) -> Codec:
    """N(mean, sigma^2 L L^T) along the last axis, one channel after another, each given those before it.

    With y = mean + sigma L e: y_i given y_<i is N(mean_i + sigma sum_{j<i} L_ij e_j, (sigma L_ii)^2), and each e_j
    follows from y_<=j. Section 3.5.4.1.
    """
    channels = mean.shape[-1]
    # Channels first: each is then one stretch of memory.
    mean, factor = np.moveaxis(mean, -1, 0).copy(), np.moveaxis(factor, (-2, -1), (0, 1)).copy()

    def channel(i: int, standard: list[Any]) -> tuple[Any, Any]:
        """The mean of channel i, given the e of those before it, and its standard deviation in sigma."""
        shift = sum((factor[i, j] * standard[j] for j in range(i)), np.zeros(1))
        return mean[i] + coding.sigma * shift, factor[i, i]

    def push(message: Message, bins: Any) -> None:
        first = np.moveaxis(bins, -1, 0).copy()
        known: list[tuple[Any, Any]] = []
        standard: list[Any] = []
        for i in range(channels):
            known.append(channel(i, standard))
            standard.append(_standardised(first[i], *known[i], coding))
        for i in reversed(range(channels)):
            coding.output(*known[i]).push(message, first[i])

    def pop(message: Message) -> Any:
        first = np.empty(mean.shape, np.int64)
        standard: list[Any] = []
        for i in range(channels):
            known = channel(i, standard)
            first[i] = coding.output(*known).pop(message)
            standard.append(_standardised(first[i], *known, coding))
        return np.moveaxis(first, 0, -1).copy()

    return Codec(push, pop)


def _standardised(bins: np.ndarray, mean: np.ndarray, scale: Any, coding: Coding) -> np.ndarray:
    return (centre_of(bins, coding.delta) - mean) / (coding.sigma * scale)


def _checked(values: Any, shape: tuple[int, ...], what: str) -> np.ndarray:
    dtype, given = getattr(values, "dtype", type(values).__name__), np.shape(values)
    if not isinstance(values, np.ndarray) or dtype != np.float64 or given != shape:
        raise ValueError(f"{what} of a layer must be a NumPy float64 array of shape {shape}, not {dtype} {given}")
    if not np.isfinite(values).all():
        raise ValueError(f"{what} of a layer is not finite")
    return values


_CODERS: dict[type, tuple[Callable[..., Bins], ...]] = {
    Elementwise: (_encode_elementwise, _decode_elementwise),
    Coupling: (_encode_coupling, _decode_coupling),
    Linear: _bits_back(_linear_output, _linear_data),  # a block-diagonal Jacobian
    Autoregressive: (_encode_autoregressive, _decode_autoregressive),
    BlackBox: _bits_back(_black_box_output, _black_box_data),
    Rearrangement: (lambda _, layer, bins, __: layer.forward(bins), lambda _, layer, bins, __: layer.inverse(bins)),
}
"""Layer -> how the sender gets from its input to its output, and how the receiver gets back."""
