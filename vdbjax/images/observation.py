"""What features say about pixels: a Gaussian of one variance, or a mixture of discretised logistics.

A head has `num_outputs(channels)`, how many numbers a pixel it takes from the features. Pixels v in 0..255 are y in
[0, 1]: the middle of an integer's bin, (v + ½) / 256, or a dequantised point of it, (v + u) / 256.
"""

import math
from typing import NamedTuple

import jax
import jax.numpy as jnp
from jaxtyping import Array, Float, ScalarLike, UInt8

from vdbjax.types import Key

Images = UInt8[Array, "batch height width channels"]
Pixels = Float[Array, "batch height width channels"]
Outputs = Float[Array, "batch height width outputs"]

SMALLEST_LOG_SCALE = -7.0


def scaled(images: Images) -> Pixels:
    """The middle of each pixel's bin, in [0, 1]."""
    return (images.astype(jnp.float32) + 0.5) / 256.0


def quantised(pixels: Pixels) -> Images:
    """The bin that each number in [0, 1] falls into."""
    return jnp.clip(jnp.floor(256.0 * pixels), 0, 255).astype(jnp.uint8)


def squared_error(images: Images, means: Pixels) -> Float[Array, " batch"]:
    """The distortion: summed over an image's numbers, of pixels in [0, 1]."""
    return jnp.sum((scaled(images) - means) ** 2, axis=(1, 2, 3))


class GaussianHead(NamedTuple):
    """N(mean, variance) of each number, one variance for all."""

    def num_outputs(self, channels: int) -> int:
        """A mean for each channel."""
        return channels

    def log_likelihood(
        self, images: Images, means: Pixels, log_variance: ScalarLike, key: Key
    ) -> Float[Array, " batch"]:
        """log p(v + u) (nats), as a density of pixels in [0, 256], for a uniform u of each.

        Its mean over u is at most log P(v), the log of the density's mass in the bin.

        Source: "Mind Your Bits and Errors", appendix B.1.
        """
        noise = jax.random.uniform(key, images.shape, jnp.float32)
        error = jnp.sum(((images.astype(jnp.float32) + noise) / 256.0 - means) ** 2, axis=(1, 2, 3))
        numbers = math.prod(images.shape[1:])
        spread = numbers * (0.5 * (log_variance + math.log(2 * math.pi)) + math.log(256.0))
        return -0.5 * error * jnp.exp(-jnp.asarray(log_variance)) - spread

    def draw(self, means: Pixels, log_variance: ScalarLike, key: Key) -> Images:
        """Images of the density, rather than its mean."""
        return quantised(means + jnp.exp(0.5 * log_variance) * jax.random.normal(key, means.shape, jnp.float32))


class MixtureHead(NamedTuple):
    """A mixture of discretised logistics for each pixel; green's means depend on red, blue's on both.

    Pixels are in [-1, 1] here, 2 v / 255 - 1; the lowest and highest take what lies beyond them.

    Source: Salimans et al. 2017 (PixelCNN++), section 2.1 and 2.2.
    """

    mixtures: int = 10

    def num_outputs(self, channels: int) -> int:
        """For each mixture a logit, and for each channel a mean, a scale and the weights of the channels before."""
        return self.mixtures * (1 + 2 * channels + channels * (channels - 1) // 2)

    def _parts(self, outputs: Outputs, channels: int) -> tuple[Array, Array, Array, Array]:
        """Logits [..., mixtures]; means and log scales [..., channels, mixtures]; weights [..., pairs, mixtures]."""
        logits = outputs[..., : self.mixtures]
        rest = outputs[..., self.mixtures :].reshape(*outputs.shape[:-1], -1, self.mixtures)
        means, log_scales, weights = jnp.split(rest, (channels, 2 * channels), axis=-2)
        return logits, means, jnp.maximum(log_scales, SMALLEST_LOG_SCALE), jnp.tanh(weights)

    def log_likelihood(self, images: Images, outputs: Outputs) -> Float[Array, " batch"]:
        """log P(v) of the integers (nats)."""
        channels = images.shape[-1]
        logits, means, log_scales, weights = self._parts(outputs, channels)
        x = (images.astype(jnp.float32) / 127.5 - 1.0)[..., None]  # [..., channels, 1]
        means = jnp.stack([_shifted(means, weights, x, channel) for channel in range(channels)], axis=-2)
        within = jnp.sum(_log_mass(images[..., None], x - means, log_scales), axis=-2)
        found = jax.nn.logsumexp(jax.nn.log_softmax(logits) + within, axis=-1)
        return jnp.sum(found, axis=(1, 2))

    def draw(self, outputs: Outputs, channels: int, key: Key) -> Images:
        """Images: a mixture for each pixel, then channel after channel."""
        logits, means, log_scales, weights = self._parts(outputs, channels)
        key_mixture, key_logistic = jax.random.split(key)
        chosen = jax.nn.one_hot(jax.random.categorical(key_mixture, logits), self.mixtures)[..., None, :]
        means, log_scales, weights = (
            jnp.sum(part * chosen, axis=-1, keepdims=True) for part in (means, log_scales, weights)
        )
        noise = jax.random.logistic(key_logistic, log_scales.shape, jnp.float32)
        x = jnp.zeros_like(means)
        for channel in range(channels):
            value = _shifted(means, weights, x, channel) + (jnp.exp(log_scales) * noise)[..., channel, :]
            x = x.at[..., channel, :].set(jnp.clip(value, -1.0, 1.0))
        return jnp.round((x[..., 0] + 1.0) * 127.5).astype(jnp.uint8)


def _shifted(means: Array, weights: Array, x: Array, channel: int) -> Array:
    """The channel's means [..., mixtures] with what the channels before add; x is [..., channels, 1 or mixtures]."""
    first = channel * (channel - 1) // 2
    shifts = [weights[..., first + before, :] * x[..., before, :] for before in range(channel)]
    return sum(shifts, means[..., channel, :])


def _log_mass(values: Array, centred: Array, log_scales: Array) -> Array:
    """log of each logistic's mass in the bin of ±1/255 around a value; at 0 and 255 up to infinity.

    sigmoid(a) - sigmoid(b) = sigmoid(a) sigmoid(-b) (1 - exp(b - a)), every factor's logarithm being finite.
    """
    rate = jnp.exp(-log_scales)
    above, below = rate * (centred + 1.0 / 255.0), rate * (centred - 1.0 / 255.0)
    lowest, highest = values == 0, values == 255
    width = jnp.log(-jnp.expm1(-2.0 / 255.0 * rate))
    up_to, from_on = jax.nn.log_sigmoid(above), jax.nn.log_sigmoid(-below)
    return jnp.where(lowest, up_to, jnp.where(highest, from_on, up_to + from_on + width))
