"""What an invertible layer is, and how layers make a flow.

A layer keeps no numbers: `init` gives its parameters, from data, and the other functions take them. Between layers an
image is one array, `[batch, height, width, channels]`, or `[batch, 2, height, width, channels]` where couplings work on
two halves of one shape (coupling.py). A layer computes in the type of its input: float32 in training, float64 where a
code is made. Parameters stay float32.
"""

from collections.abc import Callable
from typing import Any, NamedTuple, Protocol

import jax
import jax.numpy as jnp
from jaxtyping import Array, Float

from vdbjax.types import Key

Output = tuple[Float[Array, "batch *shape"], Float[Array, " batch"]]
"""y = f(x), and log |det dy / dx| (nats)."""


class Condition(NamedTuple):
    """What layers see besides their input."""

    features: Float[Array, "batch height width features"] | None = None  # for the couplings' networks
    dropout: Key | None = None  # None: without dropout


class Bijection(Protocol):
    """A layer."""

    def init(
        self, key: Key, x: Float[Array, "batch *shape"], condition: Condition
    ) -> tuple[Any, Float[Array, "batch *shape_out"]]:
        """First parameters, fitted to the batch, and the batch's output under them."""

    def forward(self, params: Any, x: Float[Array, "batch *shape"], condition: Condition) -> Output:
        """y = f(x) and its log-determinant."""

    def inverse(
        self, params: Any, y: Float[Array, "batch *shape"], condition: Condition
    ) -> Float[Array, "batch *shape_out"]:
        """x with f(x) = y."""


class Rearrangement(NamedTuple):
    """Moves elements, and no more; both functions take NumPy's arrays and JAX's, of any type."""

    move: Callable[[Any], Any]
    move_back: Callable[[Any], Any]

    def init(self, key: Key, x: Array, condition: Condition) -> tuple[Any, Array]:
        """No parameters."""
        return (), self.move(x)

    def forward(self, params: Any, x: Array, condition: Condition) -> tuple[Array, Array]:
        """The same elements elsewhere."""
        return self.move(x), jnp.zeros(len(x), x.dtype)

    def inverse(self, params: Any, y: Array, condition: Condition) -> Array:
        """Back again."""
        return self.move_back(y)


class Chain(NamedTuple):
    """Layers one after another."""

    layers: tuple[Bijection, ...]

    def init(self, key: Key, x: Array, condition: Condition) -> tuple[list[Any], Array]:
        """Each layer's parameters, fitted to what those before it make of the batch."""
        params = []
        for index, layer in enumerate(self.layers):
            fitted, x = layer.init(jax.random.fold_in(key, index), x, condition)
            params.append(fitted)
        return params, x

    def forward(self, params: Any, x: Array, condition: Condition) -> tuple[Array, Array]:
        """The last layer's output, and the sum of the log-determinants."""
        total = jnp.zeros(len(x), x.dtype)
        for index, layer in enumerate(self.layers):
            x, log_det = layer.forward(params[index], x, _of_layer(condition, index))
            total = total + log_det
        return x, total

    def inverse(self, params: Any, y: Array, condition: Condition) -> Array:
        """From the last layer to the first."""
        for index, layer in reversed(list(enumerate(self.layers))):
            y = layer.inverse(params[index], y, _of_layer(condition, index))
        return y


def _of_layer(condition: Condition, index: int) -> Condition:
    """The condition with dropout of the layer's own."""
    if condition.dropout is None:
        return condition
    return condition._replace(dropout=jax.random.fold_in(condition.dropout, index))


def sum_over_elements(log_slope: Float[Array, "batch *shape"]) -> Float[Array, " batch"]:
    """The log-determinant of an elementwise map."""
    return jnp.sum(log_slope, axis=tuple(range(1, log_slope.ndim)))
