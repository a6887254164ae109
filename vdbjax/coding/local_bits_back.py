"""Local bits-back coding: a flow's likelihood as a code of the same length. Ho et al., thesis chapter 3.

Data x on a grid of width delta cannot be pushed as f(x), for f(x) is no grid point. So a grid point z *near* f(x) is
drawn, by popping it from the message as N(f(x), sigma^2 J J^T), J being the Jacobian; x is pushed given z, as
N(f^-1(z), sigma^2); and z goes on, to the next layer or at last to the prior N(0, I). The receiver pops z, pops x, and
pushes z back where it was drawn from. What is paid is -log2 p(x) delta^d, to first order in sigma (eq. 3.27).

A network is seen through plain functions of NumPy float64 arrays whose first axis is the batch. They must give the
same bits whenever they get the same bits: one executable at one batch shape, for sender and receiver. An inverse need
not be exact: an error of sigma / 1000 costs a millionth of a bit. Results of another dtype or shape, or not finite,
raise ValueError.

Two noises are drawn nowhere but inside the windows of their tables (discretize.py), else random bits would now and then
hold an escape: what the *sender* pops has none, what the sender pushes does.
"""

import math
from collections.abc import Callable, Sequence
from typing import Any, NamedTuple

import numpy as np
from jaxtyping import Float, Int

from vdbjax.coding.archive import Coder
from vdbjax.coding.discretize import centre_of, gaussian, uniform
from vdbjax.coding.rans import Codec, Message
from vdbjax.coding.tiles import Shape

DRAWN_BY_LAYERS = 8.0
"""Bits a dimension that a flow draws besides the dequantisation noise: less than most do."""

Values = Float[np.ndarray, "batch *shape"]
Bins = Int[np.ndarray, "batch *shape"]
Output = tuple[Values, Values]
"""y = f(x), and the log-slope log |dy / dx| (nats), of each element."""


class Elementwise(NamedTuple):
    """A monotone map of each element by itself. Chains of them cost least as one: see `fuse`."""

    forward: Callable[[Values], Output]
    inverse: Callable[[Values], Values]
    relative_noise: Callable[[Values], Values] | None = None
    """A smooth factor on sigma at each x, for maps that bend on the scale of sigma itself, and where x must not leave
    its range: 4 x (1 - x) for the logit on (0, 1). None: 1."""


class Coupling(NamedTuple):
    """Maps one half of the elements, each by itself, with parameters that a network makes of the other half."""

    split: Callable[[Any], tuple[Any, Any]]  # x -> (kept, changed); moves elements of any dtype, and no more
    join: Callable[[Any, Any], Any]  # undoes it
    parameters: Callable[[Values], Any]  # of the kept half
    forward: Callable[[Values, Any], Output]  # of the changed half, given the parameters
    inverse: Callable[[Values, Any], Values]


class Linear(NamedTuple):
    """y = matrix x + offset along the last axis, at each position on its own; made by `linear`."""

    matrix: Float[np.ndarray, "*positions channels channels"]
    inverse: Float[np.ndarray, "*positions channels channels"]
    offset: Float[np.ndarray, "*positions channels"]
    factor: Float[np.ndarray, "*positions channels channels"]  # lower triangular L, L L^T = matrix matrix^T
    log_abs_det: Float[np.ndarray, "*positions"]  # nats


class Autoregressive(NamedTuple):
    """y_i = f_i(x_i; x_<i) over the last axis of [batch, dimensions], one coordinate at a time."""

    forward: Callable[[int, Values], Output]  # (i, x) -> y_i and its log-slope [batch]; must not look at x_>i
    inverse: Callable[[int, Values, Values], Values]  # (i, y_i, x) -> x_i [batch]; must not look at x_>=i


class BlackBox(NamedTuple):
    """Any flow on [batch, dimensions] whose whole Jacobian is known; for few dimensions: d^3 in time."""

    forward: Callable[[Values], Values]
    inverse: Callable[[Values], Values]
    jacobian: Callable[[Values], Float[np.ndarray, "batch dimensions dimensions"]]  # [b, i, j] is dy_i / dx_j


class Rearrangement(NamedTuple):
    """Moves elements of any dtype, and no more: space to depth, permutations, flips. Costs nothing."""

    forward: Callable[[Any], Any]
    inverse: Callable[[Any], Any]


Layer = Elementwise | Coupling | Linear | Autoregressive | BlackBox | Rearrangement


class Flow(NamedTuple):
    """Layers from the data to the latent z ~ N(0, I)."""

    layers: Sequence[Layer]
    latent_shape: tuple[int, ...]  # without the batch


class DequantizedFlow(NamedTuple):
    """A flow of x + u for integers x and noise u in [0, 1) that another flow draws. Section 3.5.5."""

    flow: Flow
    dequantizer: Callable[[Int[np.ndarray, "batch *shape"]], Flow] | None
    """Given x, the flow from u to its Gaussian; None: u is uniform."""


class Precision(NamedTuple):
    """How fine the noise is, and how fine the grid; delta a power of two, so that 1 is a whole number of bins."""

    sigma: float
    delta: float


class _Coding(NamedTuple):
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


def linear(
    matrix: Float[np.ndarray, "*positions channels channels"], offset: Float[np.ndarray, "*positions channels"]
) -> Linear:
    """A `Linear` layer. Raises ValueError for a matrix without an inverse.

    With an actnorm (scale, bias) before it: of matrix * scale[..., None, :] and matrix bias + offset.
    """
    matrix, offset = np.asarray(matrix, np.float64), np.asarray(offset, np.float64)
    sign, log_abs_det = np.linalg.slogdet(matrix)
    if not (np.isfinite(log_abs_det).all() and (sign != 0).all() and np.isfinite(offset).all()):
        raise ValueError("a linear layer's matrix has no inverse, or its offset is not finite")
    return Linear(matrix, np.linalg.inv(matrix), offset, _factor(matrix), log_abs_det)


def fuse(*maps: Elementwise) -> Elementwise:
    """The maps one after another as one, with the first's relative noise: two codings an element, not two a map."""

    def forward(x: Values) -> Output:
        total = np.zeros_like(x)
        for each in maps:
            x, log_slope = each.forward(x)
            total = total + log_slope
        return x, total

    def inverse(y: Values) -> Values:
        for each in reversed(maps):
            y = each.inverse(y)
        return y

    return Elementwise(forward, inverse, maps[0].relative_noise)


def inverted(layer: Layer) -> Layer:
    """The layer from its output to its input: of a flow that data are drawn from, such as a dequantiser's.

    Its noise is sigma at the layer's own input, so that the output, which it lies around, stays in a map's range.
    """
    match layer:
        case Elementwise():
            forward, inverse = _inverted_map(layer.forward, layer.inverse)
            return Elementwise(forward, inverse, lambda y: np.exp(layer.forward(layer.inverse(y))[1]))
        case Coupling():
            return Coupling(layer.split, layer.join, layer.parameters, *_inverted_map(layer.forward, layer.inverse))
        case Linear():
            return linear(layer.inverse, -_apply(layer.inverse, layer.offset))
        case Rearrangement():
            return Rearrangement(layer.inverse, layer.forward)
    raise TypeError(f"no inverse of a {type(layer).__name__} is known")


def _inverted_map(forward: Callable[..., Output], inverse: Callable[..., Values]) -> tuple[Any, Any]:
    """(forward, inverse) of an elementwise map's inverse; both may take a coupling's parameters too."""

    def backward(y: Values, *given: Any) -> Output:
        x = inverse(y, *given)
        return x, -forward(x, *given)[1]

    return backward, lambda x, *given: forward(x, *given)[0]


def fuse_linear(*layers: Linear) -> Linear:
    """The linear layers one after another as one."""
    matrix, offset = layers[0].matrix, layers[0].offset
    for layer in layers[1:]:
        matrix, offset = layer.matrix @ matrix, _apply(layer.matrix, offset) + layer.offset
    return linear(matrix, offset)


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


def _encode(message: Message, flow: Flow, bins: Bins, coding: _Coding) -> None:
    for layer in flow.layers:
        encode_layer, _ = _CODERS[type(layer)]
        bins = encode_layer(message, layer, bins, coding)
    if bins.shape[1:] != flow.latent_shape:
        raise ValueError(f"the layers end in the shape {bins.shape[1:]}, not in latent_shape {flow.latent_shape}")
    coding.prior(bins.shape).push(message, bins)


def _decode(message: Message, flow: Flow, batch: int, coding: _Coding) -> Bins:
    bins = coding.prior((batch, *flow.latent_shape)).pop(message)
    for layer in reversed(flow.layers):
        _, decode_layer = _CODERS[type(layer)]
        bins = decode_layer(message, layer, bins, coding)
    return bins


def _bits_back(output: Callable[..., Codec], data: Callable[..., Codec]) -> tuple[Callable[..., Bins], ...]:
    """(encode, decode) of a layer by Algorithm 3.1, from its codecs of z given x and of x given z."""

    def encode(message: Message, layer: Any, bins: Bins, coding: _Coding) -> Bins:
        drawn = output(layer, bins, coding).pop(message)
        data(layer, drawn, coding).push(message, bins)
        return drawn

    def decode(message: Message, layer: Any, drawn: Bins, coding: _Coding) -> Bins:
        bins = data(layer, drawn, coding).pop(message)
        output(layer, bins, coding).push(message, drawn)
        return bins

    return encode, decode


def _elementwise_output(layer: Elementwise, bins: Bins, coding: _Coding) -> Codec:
    """z given x: N(f(x), (sigma s(x) f'(x))^2)."""
    x = centre_of(bins, coding.delta)
    y, log_slope = layer.forward(x)
    slope = np.exp(_checked(log_slope, x.shape, "a log-slope"))
    return coding.output(_checked(y, x.shape, "an output"), slope * _relative_noise(layer, x))


def _elementwise_data(layer: Elementwise, drawn: Bins, coding: _Coding) -> Codec:
    """x given z: N(f^-1(z), (sigma s(f^-1(z)))^2)."""
    x = _checked(layer.inverse(centre_of(drawn, coding.delta)), drawn.shape, "an inverse")
    return coding.data(x, _relative_noise(layer, x))


def _relative_noise(layer: Elementwise, x: Values) -> Any:
    return 1.0 if layer.relative_noise is None else _checked(layer.relative_noise(x), x.shape, "a relative noise")


_encode_elementwise, _decode_elementwise = _bits_back(_elementwise_output, _elementwise_data)
"""The Jacobian is diagonal: all elements at once."""


def _encode_coupling(message: Message, layer: Coupling, bins: Bins, coding: _Coding) -> Bins:
    """Algorithm 3.3: given the kept half, an elementwise map of the other."""
    kept, changed = layer.split(bins)
    return layer.join(kept, _encode_elementwise(message, _given(layer, kept, coding), changed, coding))


def _decode_coupling(message: Message, layer: Coupling, bins: Bins, coding: _Coding) -> Bins:
    kept, changed = layer.split(bins)
    return layer.join(kept, _decode_elementwise(message, _given(layer, kept, coding), changed, coding))


def _given(layer: Coupling, kept: Bins, coding: _Coding) -> Elementwise:
    parameters = layer.parameters(centre_of(kept, coding.delta))
    return Elementwise(lambda x: layer.forward(x, parameters), lambda y: layer.inverse(y, parameters))


def _linear_output(layer: Linear, bins: Bins, coding: _Coding) -> Codec:
    y = _apply(layer.matrix, centre_of(bins, coding.delta)) + layer.offset
    return _correlated(y, layer.factor, coding)


def _linear_data(layer: Linear, drawn: Bins, coding: _Coding) -> Codec:
    return coding.data(_apply(layer.inverse, centre_of(drawn, coding.delta) - layer.offset))


def _encode_autoregressive(message: Message, layer: Autoregressive, bins: Bins, coding: _Coding) -> Bins:
    """Algorithm 3.2: from the last coordinate to the first, so that the receiver knows x_<i when it meets x_i."""
    drawn, x = np.empty_like(bins), centre_of(bins, coding.delta)
    for i in reversed(range(bins.shape[1])):
        one = _coordinate(layer, i, x)
        drawn[:, i] = _encode_elementwise(message, one, bins[:, i], coding)
    return drawn


def _decode_autoregressive(message: Message, layer: Autoregressive, drawn: Bins, coding: _Coding) -> Bins:
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


def _black_box_output(layer: BlackBox, bins: Bins, coding: _Coding) -> Codec:
    x = centre_of(bins, coding.delta)
    jacobian = _checked(layer.jacobian(x), (*x.shape, x.shape[1]), "a Jacobian")
    return _correlated(_checked(layer.forward(x), x.shape, "an output"), _factor(jacobian), coding)


def _black_box_data(layer: BlackBox, drawn: Bins, coding: _Coding) -> Codec:
    return coding.data(_checked(layer.inverse(centre_of(drawn, coding.delta)), drawn.shape, "an inverse"))


def _correlated(mean: Values, factor: Float[np.ndarray, "*positions channels channels"], coding: _Coding) -> Codec:
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


def _standardised(bins: np.ndarray, mean: np.ndarray, scale: Any, coding: _Coding) -> np.ndarray:
    return (centre_of(bins, coding.delta) - mean) / (coding.sigma * scale)


def _apply(matrix: np.ndarray, x: np.ndarray) -> np.ndarray:
    """matrix x along the last axis, summed in one order: a matrix product's depends on threads and shapes."""
    total = matrix[..., 0] * x[..., :1]
    for j in range(1, x.shape[-1]):
        total = total + matrix[..., j] * x[..., j : j + 1]
    return total


def _factor(matrix: np.ndarray) -> np.ndarray:
    """The lower triangular L with a positive diagonal and L L^T = matrix matrix^T, by QR, which keeps its digits."""
    upper = np.linalg.qr(np.swapaxes(matrix, -1, -2), mode="r")
    sign = np.sign(np.diagonal(upper, axis1=-2, axis2=-1))
    return np.swapaxes(upper * sign[..., :, None], -1, -2)


def _checked(values: Any, shape: tuple[int, ...], what: str) -> np.ndarray:
    dtype, given = getattr(values, "dtype", type(values).__name__), np.shape(values)
    if not isinstance(values, np.ndarray) or dtype != np.float64 or given != shape:
        raise ValueError(f"{what} of a layer must be a NumPy float64 array of shape {shape}, not {dtype} {given}")
    if not np.isfinite(values).all():
        raise ValueError(f"{what} of a layer is not finite")
    return values


def _coding(precision: Precision, *, sender_encodes: bool) -> _Coding:
    sigma, delta = precision
    if not (math.isfinite(sigma) and sigma > 0 and math.isfinite(delta) and delta > 0):
        raise ValueError(f"sigma ({sigma}) and delta ({delta}) must be above 0")
    return _Coding(sigma, delta, sender_encodes)


def _dequantizing(precision: Precision) -> tuple[_Coding, int]:
    """How noise is drawn, and how many bins there are from 0 to 1."""
    coding = _coding(precision, sender_encodes=False)
    if math.frexp(coding.delta)[0] != 0.5 or not 2.0**-40 <= coding.delta <= 1.0:
        raise ValueError(f"delta ({coding.delta}) must be a power of two between 2^-40 and 1")
    return coding, int(1.0 / coding.delta)


_CODERS: dict[type, tuple[Callable[..., Bins], ...]] = {
    Elementwise: (_encode_elementwise, _decode_elementwise),
    Coupling: (_encode_coupling, _decode_coupling),
    Linear: _bits_back(_linear_output, _linear_data),  # a block-diagonal Jacobian
    Autoregressive: (_encode_autoregressive, _decode_autoregressive),
    BlackBox: _bits_back(_black_box_output, _black_box_data),
    Rearrangement: (lambda _, layer, bins, __: layer.forward(bins), lambda _, layer, bins, __: layer.inverse(bins)),
}
"""Layer -> how the sender gets from its input to its output, and how the receiver gets back."""
