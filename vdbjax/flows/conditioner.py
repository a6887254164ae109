"""The networks inside a flow: gated convolutions and self-attention, each with a residual and a layer norm.

Layers begin fitted to the first batch: every output has mean 0 and the standard deviation that the layer is given
(Salimans & Kingma 2016). Flow++ thesis section 3.2.2.2.
"""

import math
from typing import Any

import flax.linen as nn
import jax
import jax.numpy as jnp
from jaxtyping import Array, Float


class Convolution(nn.Module):
    """A convolution of window x window with a bias, zero outside the image.

    With weight norm each output has a gain, and a kernel that is divided by its norm.
    """

    filters: int
    window: int
    scale: float = 1.0  # standard deviation of each output on the first batch
    weight_norm: bool = False

    @nn.compact
    def __call__(self, x: Float[Array, "batch height width channels"]) -> Float[Array, "batch height width filters"]:
        fitting = self.is_initializing()
        shape = (self.window, self.window, x.shape[-1], self.filters)

        def draw(key: Array) -> Array:
            kernel = 0.05 * jax.random.normal(key, shape, jnp.float32)
            if fitting and not self.weight_norm:
                return kernel * _row(self._fitted_gain(_convolve(x, kernel)))
            return kernel

        kernel = self.param("kernel", draw)
        if self.weight_norm:
            kernel = kernel / jnp.sqrt(jnp.sum(kernel**2, axis=(0, 1, 2), keepdims=True))
        y = _convolve(x, kernel)
        if self.weight_norm:
            gain = self.param(
                "gain", lambda _: self._fitted_gain(y) if fitting else jnp.ones(self.filters, jnp.float32)
            )
            y = y * _row(gain)
        bias = self.param(
            "bias", lambda _: -jnp.mean(y, (0, 1, 2)) if fitting else jnp.zeros(self.filters, jnp.float32)
        )
        return y + _row(bias)

    def _fitted_gain(self, y: Array) -> Array:
        return self.scale * jax.lax.rsqrt(jnp.var(y, axis=(0, 1, 2)) + 1e-10)


def _convolve(x: Array, kernel: Array) -> Array:
    if kernel.shape[:2] == (1, 1):
        return x @ kernel[0, 0]
    return jax.lax.conv_general_dilated(x, kernel, (1, 1), "SAME", dimension_numbers=("NHWC", "HWIO", "NHWC"))


def _row(values: Array) -> Array:
    return values[None, None, None]


def concat_elu(x: Float[Array, "*batch channels"]) -> Float[Array, "*batch twice"]:
    """ELU of x and of -x."""
    return nn.elu(jnp.concatenate([x, -x], axis=-1))


def _gated(x: Array) -> Array:
    values, gate = jnp.split(x, 2, axis=-1)
    return values * nn.sigmoid(gate)


class GatedConvolution(nn.Module):
    """x + gate(convolution), which also sees features where there are some."""

    gate_window: int = 1
    dropout: float = 0.0
    weight_norm: bool = False

    @nn.compact
    def __call__(
        self,
        x: Float[Array, "batch height width filters"],
        features: Float[Array, "batch height width features"] | None = None,
        *,
        training: bool = False,
    ) -> Float[Array, "batch height width filters"]:
        filters = x.shape[-1]
        hidden = Convolution(filters, 3, weight_norm=self.weight_norm)(concat_elu(x))
        if features is not None:
            hidden = hidden + Convolution(filters, 1, weight_norm=self.weight_norm)(concat_elu(features))
        hidden = nn.Dropout(self.dropout, deterministic=not training)(concat_elu(hidden))
        return x + _gated(Convolution(2 * filters, self.gate_window, 0.1, self.weight_norm)(hidden))


class GatedAttention(nn.Module):
    """x + gate(self-attention of all positions)."""

    heads: int
    dropout: float = 0.0
    weight_norm: bool = False

    @nn.compact
    def __call__(
        self,
        x: Float[Array, "batch height width filters"],
        places: Float[Array, "height width filters"],
        *,
        training: bool = False,
    ) -> Float[Array, "batch height width filters"]:
        batch, height, width, filters = x.shape
        each = (batch, height * width, 3, self.heads, filters // self.heads)
        projected = Convolution(3 * filters, 1, weight_norm=self.weight_norm)(x + places[None]).reshape(each)
        query, key, value = jnp.moveaxis(projected, 2, 0)
        logits = jnp.einsum("bqhd,bkhd->bhqk", query, key) / math.sqrt(filters // self.heads)
        found = jnp.einsum("bhqk,bkhd->bqhd", nn.softmax(logits), value).reshape(x.shape)
        found = nn.Dropout(self.dropout, deterministic=not training)(found)
        return x + _gated(Convolution(2 * filters, 1, 0.1, self.weight_norm)(found))


class Places(nn.Module):
    """A learnt vector at each position."""

    @nn.compact
    def __call__(self, x: Float[Array, "batch height width filters"]) -> Float[Array, "height width filters"]:
        return self.param("places", nn.initializers.normal(0.01), x.shape[1:], jnp.float32)


class Block(nn.Module):
    """A gated convolution and self-attention, as the step of a scan over blocks of like shapes."""

    heads: int  # 0: without self-attention
    dropout: float
    weight_norm: bool
    training: bool

    @nn.compact
    def __call__(self, x: Array, seen: tuple[Array, Array | None]) -> tuple[Array, None]:
        common: dict[str, Any] = {"dropout": self.dropout, "weight_norm": self.weight_norm}
        places, features = seen
        x = layer_norm()(GatedConvolution(**common)(x, features, training=self.training))
        if self.heads:
            x = layer_norm()(GatedAttention(self.heads, **common)(x, places, training=self.training))
        return x, None


def unrolled(blocks: int) -> int:
    """How many blocks to lay out one after the other: on a CPU all, as XLA's convolutions there take ten times as long
    inside a loop; elsewhere one, which compiles in 40 % of the time (measured by XLA's compiler for the CPU)."""
    return blocks if jax.default_backend() == "cpu" else 1


class Conditioner(nn.Module):
    """What a coupling's parameters come from: `blocks` times gated convolution and self-attention."""

    num_parameters: int  # of each element of the changed half
    filters: int
    blocks: int
    heads: int  # 0: without self-attention
    dropout: float = 0.0
    weight_norm: bool = False
    last_nonlinearity: bool = False  # concat_elu before the last convolution

    @nn.compact
    def __call__(
        self,
        kept: Float[Array, "batch height width channels"],
        features: Float[Array, "batch height width features"] | None = None,
        *,
        training: bool = False,
    ) -> Float[Array, "batch height width channels parameters"]:
        norm: dict[str, Any] = {"weight_norm": self.weight_norm}
        x = Convolution(self.filters, 3, **norm)(kept)
        # Learnt positions are there without attention too, as in the reference, so that parameter counts agree.
        places = Places()(x)
        blocks = nn.scan(
            Block,
            variable_axes={"params": 0},
            split_rngs={"params": True, "dropout": True},
            in_axes=nn.broadcast,
            length=self.blocks,
            unroll=unrolled(self.blocks),
        )
        x, _ = blocks(self.heads, self.dropout, self.weight_norm, training, name="blocks")(x, (places, features))
        x = concat_elu(x) if self.last_nonlinearity else x
        x = Convolution(kept.shape[-1] * self.num_parameters, 3, 0.1, **norm)(x)
        return x.reshape(*kept.shape, self.num_parameters)


def layer_norm() -> nn.LayerNorm:
    """Over the channels."""
    return nn.LayerNorm(epsilon=1e-5)
