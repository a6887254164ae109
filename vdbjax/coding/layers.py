"""What a flow is made of, as local bits-back coding sees it: layers of plain functions, and how they join into fewer.

The functions take and give NumPy float64 arrays whose first axis is the batch. They must give the same bits whenever
they get the same bits: one executable at one batch shape, for sender and receiver. An inverse need not be exact: an
error of sigma / 1000 costs a millionth of a bit.
"""

from collections.abc import Callable, Sequence
from typing import Any, NamedTuple

import numpy as np
from jaxtyping import Float, Int

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
    return Linear(matrix, np.linalg.inv(matrix), offset, triangular_factor(matrix))


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
            return linear(layer.inverse, -apply(layer.inverse, layer.offset))
        case Rearrangement():
            return Rearrangement(layer.inverse, layer.forward)
    raise TypeError(f"no inverse of a {type(layer).__name__} is known")


def _inverted_map(forward: Callable[..., Output], inverse: Callable[..., Values]) -> tuple[Any, Any]:
    """(forward, inverse) of an elementwise map's inverse; both may take a coupling's parameters too."""

    def backward(y: Values, *given: Any) -> Output:
        x = inverse(y, *given)
        return x, -forward(x, *given)[1]

    return backward, lambda x, *given: forward(x, *given)[0]


def apply(matrix: np.ndarray, x: np.ndarray) -> np.ndarray:
    """matrix x along the last axis, summed in one order: a matrix product's depends on threads and shapes."""
    total = matrix[..., 0] * x[..., :1]
    for j in range(1, x.shape[-1]):
        total = total + matrix[..., j] * x[..., j : j + 1]
    return total


def triangular_factor(matrix: np.ndarray) -> np.ndarray:
    """The lower triangular L with a positive diagonal and L L^T = matrix matrix^T, by QR, which keeps its digits."""
    upper = np.linalg.qr(np.swapaxes(matrix, -1, -2), mode="r")
    sign = np.sign(np.diagonal(upper, axis1=-2, axis2=-1))
    return np.swapaxes(upper * sign[..., :, None], -1, -2)
