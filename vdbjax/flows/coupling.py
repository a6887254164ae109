"""Layers that let elements talk: splits into halves, invertible 1x1 convolutions, couplings.

A split is a rearrangement into `[batch, 2, height, width, channels]`. Both halves are then one array, which the layers
between two rearrangements work on: Actnorm with numbers for each activation, a 1x1 convolution with a matrix for each
half, couplings that change one half by the other.
"""

import math
from typing import Any, Literal, NamedTuple

import flax.linen as nn
import jax
import jax.numpy as jnp
from jaxtyping import Array, Float

from vdbjax.flows.bijection import Condition, Rearrangement, sum_over_elements
from vdbjax.flows.elementwise import Transform
from vdbjax.types import Key

Split = Literal["columns", "channels"]
"""columns: even ones and odd ones (what the reference calls checkerboard); channels: the first half and the second."""


def split_into_halves(split: Split) -> Rearrangement:
    """[batch, height, width, channels] <-> [batch, 2, height, width / 2, channels], or channels / 2."""

    def move(x: Any) -> Any:
        batch, height, width, channels = x.shape
        if split == "columns":
            return x.reshape(batch, height, width // 2, 2, channels).transpose(0, 3, 1, 2, 4)
        return x.reshape(batch, height, width, 2, channels // 2).transpose(0, 3, 1, 2, 4)

    def move_back(y: Any) -> Any:
        batch, _, height, width, channels = y.shape
        shape = (height, 2 * width, channels) if split == "columns" else (height, width, 2 * channels)
        return y.transpose(0, 2, 3, 1, 4).reshape(batch, *shape)

    return Rearrangement(move, move_back)


def space_to_depth() -> Rearrangement:
    """[batch, height, width, channels] <-> [batch, height / 2, width / 2, 4 channels]."""

    def move(x: Any) -> Any:
        batch, height, width, channels = x.shape
        blocks = x.reshape(batch, height // 2, 2, width // 2, 2, channels).transpose(0, 1, 3, 2, 4, 5)
        return blocks.reshape(batch, height // 2, width // 2, 4 * channels)

    def move_back(y: Any) -> Any:
        batch, height, width, channels = y.shape
        blocks = y.reshape(batch, height, width, 2, 2, channels // 4).transpose(0, 1, 3, 2, 4, 5)
        return blocks.reshape(batch, 2 * height, 2 * width, channels // 4)

    return Rearrangement(move, move_back)


class Pointwise(NamedTuple):
    """An invertible 1x1 convolution of each half (Glow), which begins near the identity."""

    def triple(self, params: Any, dtype: Any) -> tuple[Array, Array, Array]:
        """(matrix [2, 1, 1, channels, channels], offset [2, 1, 1, channels], log |det| [2, 1, 1] of one position)."""
        matrix = params["matrix"].astype(dtype)[:, None, None]
        return matrix, jnp.zeros(matrix.shape[:-1], dtype), jnp.linalg.slogdet(matrix)[1]

    def init(self, key: Key, x: Array, condition: Condition) -> tuple[Any, Array]:
        """The identity with a little noise: no two runs begin in the same symmetry."""
        channels = x.shape[-1]
        noise = 1e-3 * jax.random.normal(key, (2, channels, channels), jnp.float32)
        params = {"matrix": jnp.eye(channels, dtype=jnp.float32)[None] + noise}
        return params, self.forward(params, x, condition)[0]

    def forward(
        self, params: Any, x: Float[Array, "batch 2 height width channels"], condition: Condition
    ) -> tuple[Array, Array]:
        """The matrix at each position; the log-determinant is the same for every input."""
        matrix, _, log_abs_det = self.triple(params, x.dtype)
        total = math.prod(x.shape[2:4]) * jnp.sum(log_abs_det)
        return _at_each_position(matrix, x), jnp.broadcast_to(total, len(x))

    def inverse(self, params: Any, y: Float[Array, "batch 2 height width channels"], condition: Condition) -> Array:
        """The inverse matrix at each position."""
        return _at_each_position(jnp.linalg.inv(self.triple(params, y.dtype)[0]), y)


def _at_each_position(matrix: Array, x: Array) -> Array:
    return jnp.einsum("soi,bshwi->bshwo", matrix[:, 0, 0], x, precision="highest")


class Coupling(NamedTuple):
    """Changes one half, element by element, with parameters that a network makes of the other. Eq. 3.16, 3.17."""

    kept: int  # which half is kept, 0 or 1
    network: nn.Module  # (kept half, features) -> [batch, height, width, channels, parameters of an element]
    transform: Transform

    def split(self, x: Any) -> tuple[Any, Any]:
        """(kept half, changed half), of NumPy's arrays or JAX's, of any type."""
        return x[:, self.kept], x[:, 1 - self.kept]

    def join(self, kept: Any, changed: Any) -> Any:
        """Undoes `split`."""
        halves = (changed, kept) if self.kept else (kept, changed)
        return kept.__array_namespace__().stack(halves, axis=1)

    def parameters(self, params: Any, kept: Array, condition: Condition) -> Array:
        """The changed half's parameters. The network runs in float32 whatever the flow's type is."""
        rngs = None if condition.dropout is None else {"dropout": condition.dropout}
        given = (kept.astype(jnp.float32), _in_float32(condition.features))
        found = jnp.asarray(self.network.apply({"params": params}, *given, training=rngs is not None, rngs=rngs))
        if found.dtype != jnp.float32:  # a constant of another type somewhere in the network
            raise TypeError(f"a coupling's network computes in {found.dtype}, not in float32")
        return found.astype(kept.dtype)

    def init(self, key: Key, x: Array, condition: Condition) -> tuple[Any, Array]:
        """Those of the network, fitted to the batch."""
        kept, changed = self.split(x)
        given = (kept.astype(jnp.float32), _in_float32(condition.features))
        found, variables = self.network.init_with_output({"params": key}, *given, training=False)
        changed, _ = self.transform.forward(changed, jnp.asarray(found).astype(x.dtype))
        return variables["params"], self.join(kept, changed)

    def forward(
        self, params: Any, x: Float[Array, "batch 2 height width channels"], condition: Condition
    ) -> tuple[Array, Array]:
        """y, and the sum of the changed half's log-slopes."""
        kept, changed = self.split(x)
        changed, log_slope = self.transform.forward(changed, self.parameters(params, kept, condition))
        return self.join(kept, changed), sum_over_elements(log_slope)

    def inverse(self, params: Any, y: Float[Array, "batch 2 height width channels"], condition: Condition) -> Array:
        """x, by the same network's parameters."""
        kept, changed = self.split(y)
        return self.join(kept, self.transform.inverse(changed, self.parameters(params, kept, condition)))


def _in_float32(features: Array | None) -> Array | None:
    return None if features is None else features.astype(jnp.float32)
