"""Noise in [0, 1) that makes integers continuous: uniform, or drawn by a flow of its own that sees the image.

With x the integers and u the noise, log p(x + u) - log q(u | x) is on average a lower bound of log P(x). Flow++ thesis
section 3.2.1.
"""

import math
from typing import Any, NamedTuple

import flax.linen as nn
import jax
import jax.numpy as jnp
from jaxtyping import Array, Float, UInt8

from vdbjax.flows.bijection import Chain, Condition, sum_over_elements
from vdbjax.flows.conditioner import Convolution, GatedAttention, GatedConvolution, Places, layer_norm
from vdbjax.flows.coupling import split_into_halves
from vdbjax.types import Key

Images = UInt8[Array, "batch height width channels"]
Noise = tuple[Float[Array, "batch height width channels"], Float[Array, " batch"]]
"""u in [0, 1), and log q(u | x) (nats)."""


def log_normal(x: Float[Array, "batch *shape"]) -> Float[Array, " batch"]:
    """log N(x; 0, I) (nats)."""
    return sum_over_elements(-0.5 * (x**2 + math.log(2 * math.pi)))


class Uniform(NamedTuple):
    """q(u | x) = 1."""

    def init(self, key: Key, images: Images) -> tuple[Any, Array]:
        """No parameters; and noise."""
        return (), self.draw((), images, key)[0]

    def draw(self, params: Any, images: Images, key: Key, dropout: Key | None = None) -> Noise:
        """Noise for each image."""
        return jax.random.uniform(key, images.shape, jnp.float32), jnp.zeros(len(images))


class Variational(NamedTuple):
    """u = q_x(epsilon) of Gaussian epsilon, q_x being a flow that ends in a sigmoid. Eq. 3.9."""

    flow: Chain  # epsilon -> u, both [batch, height, width, channels]
    context: nn.Module  # of the scaled image with its columns split, to the features that the couplings see

    def init(self, key: Key, images: Images) -> tuple[Any, Array]:
        """Fitted to the images; and noise."""
        key_context, key_flow, key_noise = jax.random.split(key, 3)
        features, variables = self.context.init_with_output({"params": key_context}, self._seen(images))
        epsilon = jax.random.normal(key_noise, images.shape, jnp.float32)
        flow, noise = self.flow.init(key_flow, epsilon, Condition(jnp.asarray(features)))
        return {"context": variables["params"], "flow": flow}, noise

    def features(self, params: Any, images: Images) -> Array:
        """What the couplings see of the images."""
        return jnp.asarray(self.context.apply({"params": params["context"]}, self._seen(images)))

    def draw(self, params: Any, images: Images, key: Key, dropout: Key | None = None) -> Noise:
        """Noise for each image."""
        epsilon = jax.random.normal(key, images.shape, jnp.float32)
        noise, log_det = self.flow.forward(params["flow"], epsilon, Condition(self.features(params, images), dropout))
        return noise, log_normal(epsilon) - log_det

    def _seen(self, images: Images) -> Float[Array, "batch height half both"]:
        halves = split_into_halves("columns").move(images.astype(jnp.float32) / 256.0 - 0.5)
        return jnp.concatenate([halves[:, 0], halves[:, 1]], axis=-1)


class Context(nn.Module):
    """What a variational dequantiser's couplings see of the image."""

    filters: int
    blocks: int
    heads: int  # 0: without self-attention
    gate_window: int
    normalized: bool  # a layer norm after each layer
    weight_norm: bool

    @nn.compact
    def __call__(self, x: Float[Array, "batch height width channels"]) -> Float[Array, "batch height width features"]:
        x = Convolution(self.filters, 3, weight_norm=self.weight_norm)(x)
        places = Places()(x) if self.heads else None
        for _ in range(self.blocks):
            x = GatedConvolution(self.gate_window, weight_norm=self.weight_norm)(x)
            x = layer_norm()(x) if self.normalized else x
            if places is not None:
                x = layer_norm()(GatedAttention(self.heads, weight_norm=self.weight_norm)(x, places))
        return x
