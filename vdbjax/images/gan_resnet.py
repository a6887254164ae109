"""Residual generator and discriminator without any normalisation: Mescheder et al. 2018, VDB Tables 2 to 4.

They follow the released networks where VDB's tables leave out something: the discriminator has one more block, before
the first pooling, and pools before each of the others instead of after it; the generator sees an embedded label, which
is a constant where there are no classes. Only so are there as many parameters as in the released code.

Images are float32 in [-1, 1], NHWC. Weights start as torch's do, U(+-1 / sqrt(fan_in)), biases too. `dtype` is that of
the convolutions; parameters, and everything from the code on, are float32.
"""

import math
from typing import Any, Literal, NamedTuple

import flax.linen as nn
import jax
import jax.numpy as jnp
from jax import lax
from jaxtyping import Array, Float, Int

from vdbjax.adversarial.instance_noise import add_noise
from vdbjax.bottleneck import sample_code
from vdbjax.images.convolution import convolve
from vdbjax.types import Key

SMALLEST_SIDE = 4
RESIDUAL_SCALE = 0.1
LOG_STD_SCALE = 0.1  # gain of the layer that gives a code's log_std, at the start: a deviation near the prior's
Code = Literal["none", "noise", "bottleneck"]
HeadActivation = Literal["none", "leaky_relu"]


class Verdict(NamedTuple):
    """What the discriminator made of a batch; with no bottleneck there are no mean and std."""

    logits: Float[Array, " N"]
    mean: Float[Array, "N height width latent"] | None
    std: Float[Array, "N height width latent"] | None


def num_scales(size: int) -> int:
    """How often a side is halved down to 4. Raises ValueError where it is not 4, 8, 16, ..."""
    scales = size.bit_length() - SMALLEST_SIDE.bit_length()
    if scales < 0 or size != SMALLEST_SIDE << scales:
        raise ValueError(
            f"images of side {size} cannot be halved down to {SMALLEST_SIDE}; give a --size of 8, 16, 32..."
        )
    return scales


class Convolution(nn.Module):
    """A convolution of stride 1 that keeps the size. `scale` multiplies its outputs, `gain` its first weights."""

    features: int
    window: int
    dtype: Any = jnp.float32
    bias: bool = True
    gain: float = 1.0
    scale: float = 1.0

    @nn.compact
    def __call__(self, inputs: Float[Array, "N height width c"]) -> Float[Array, "N height width features"]:
        channels = inputs.shape[-1]
        draw = _uniform(self.window**2 * channels, self.gain)

        def weights(name: str, *shape: int) -> Array:  # scaled, as they are fewer than the outputs
            return (self.scale * self.param(name, draw, shape)).astype(self.dtype)

        kernel = weights("kernel", self.window, self.window, channels, self.features)
        bias = weights("bias", self.features) if self.bias else None
        return convolve(inputs.astype(self.dtype), kernel, bias)


def linear(features: int, inputs: Array, *, name: str) -> nn.Dense:
    """A linear layer for these inputs, in float32."""
    draw = _uniform(inputs.shape[-1])
    return nn.Dense(features, kernel_init=draw, bias_init=draw, name=name)


def _uniform(fan_in: int, gain: float = 1.0) -> Any:
    bound = gain / math.sqrt(fan_in)
    return lambda key, shape, dtype=jnp.float32: jax.random.uniform(key, shape, dtype, -bound, bound)


def leaky(inputs: Array) -> Array:
    """LeakyReLU with the slope 0.2."""
    return nn.leaky_relu(inputs, 0.2)


class ResBlock(nn.Module):
    """x + 0.1 conv(act(conv(act(x)))), with a 1 x 1 convolution on the shortcut where the channels change."""

    features: int
    dtype: Any = jnp.float32

    @nn.compact
    def __call__(self, inputs: Float[Array, "N height width c"]) -> Float[Array, "N height width features"]:
        hidden = min(inputs.shape[-1], self.features)
        x = leaky(inputs)
        x = leaky(Convolution(hidden, 3, self.dtype, name="conv0")(x))
        x = Convolution(self.features, 3, self.dtype, scale=RESIDUAL_SCALE, name="conv1")(x)
        if inputs.shape[-1] != self.features:
            inputs = Convolution(self.features, 1, self.dtype, bias=False, name="shortcut")(inputs)
        return inputs + x


def upsampled(inputs: Float[Array, "N height width c"]) -> Array:
    """Each pixel four times."""
    count, height, width, channels = inputs.shape
    wide = jnp.broadcast_to(inputs[:, :, None, :, None], (count, height, 2, width, 2, channels))
    return wide.reshape(count, 2 * height, 2 * width, channels)


def pooled(inputs: Float[Array, "N height width c"]) -> Array:
    """Means of 3 x 3 pixels around every second one; what lies outside counts as 0."""
    # A division at the end would make XLA work out all of it anew for each user of the result.
    return _thinned(_thinned(inputs, 1) / 9.0, 2)


def _thinned(inputs: Array, axis: int) -> Array:
    """Sums of three neighbours around every second one. On a CPU a window's gradient would take seven times as long."""
    even, odd = (lax.slice_in_dim(inputs, start, None, 2, axis) for start in (0, 1))
    before = [(1, 0, 0) if each == axis else (0, 0, 0) for each in range(inputs.ndim)]
    kept = lax.slice_in_dim(odd, 0, odd.shape[axis] - 1, axis=axis)
    return even + odd + lax.pad(kept, jnp.zeros((), inputs.dtype), before)


class Generator(nn.Module):
    """Noise and a label to an image: a 4 x 4 start, then a block and a doubling for each scale."""

    size: int
    channels: int
    filters: int
    max_filters: int
    num_classes: int = 0
    embedding_size: int = 256
    dtype: Any = jnp.float32

    @nn.compact
    def __call__(
        self, noise: Float[Array, "N noise"], labels: Int[Array, " N"]
    ) -> Float[Array, "N size size channels"]:
        scales = num_scales(self.size)
        widths = [min(self.max_filters, self.filters * 2**scale) for scale in range(scales, -1, -1)]
        table_shape = (max(1, self.num_classes), self.embedding_size if self.num_classes else 1)
        table = self.param("embedding", nn.initializers.normal(1.0), table_shape)
        label = table[labels]
        label = label / jnp.linalg.norm(label, axis=-1, keepdims=True)
        start = jnp.concatenate([noise, label], axis=-1)
        start = linear(widths[0] * SMALLEST_SIDE**2, start, name="start")(start)
        x = start.reshape(-1, SMALLEST_SIDE, SMALLEST_SIDE, widths[0]).astype(self.dtype)
        for scale, width in enumerate(widths[1:]):
            x = upsampled(ResBlock(width, self.dtype, name=f"block{scale}")(x))
        x = leaky(ResBlock(self.filters, self.dtype, name=f"block{scales}")(x))
        return jnp.tanh(Convolution(self.channels, 3, self.dtype, name="image")(x).astype(jnp.float32))


class Translator(nn.Module):
    """A picture and noise to its translation: down to 4 x 4 and up again, each scale seeing what the way down saw.

    The place of pix2pix's U-Net, with the same blocks as the generator and its noise as an input.
    """

    size: int
    channels: int
    filters: int
    max_filters: int
    dtype: Any = jnp.float32

    @nn.compact
    def __call__(
        self, noise: Float[Array, "N noise"], sources: Float[Array, "N size size c"]
    ) -> Float[Array, "N size size channels"]:
        scales = num_scales(self.size)
        widths = [min(self.max_filters, self.filters * 2**scale) for scale in range(scales + 1)]
        x = Convolution(self.filters, 3, self.dtype, name="source")(sources)
        seen = []
        for scale, width in enumerate(widths[1:]):
            seen.append(ResBlock(width, self.dtype, name=f"down{scale}")(x))
            x = pooled(seen[-1])
        start = linear(x[0].size, noise, name="start")(noise).reshape(x.shape)
        x = x + start.astype(self.dtype)
        for scale in reversed(range(scales)):
            x = jnp.concatenate([upsampled(x), seen[scale]], axis=-1)
            x = ResBlock(widths[scale], self.dtype, name=f"up{scale}")(x)
        x = leaky(x)
        return jnp.tanh(Convolution(self.channels, 3, self.dtype, name="image")(x).astype(jnp.float32))


class Discriminator(nn.Module):
    """An image to a logit, through a code where there is one: 1 x 1 convolutions on the last 4 x 4 features.

    With classes there is a logit for each, and the image's own counts. `noise` is a key to draw the code with; without
    one the code is its mean. Sources of a translation are given as more channels of the images.
    """

    size: int
    filters: int
    max_filters: int
    num_classes: int = 0
    code: Code = "none"
    latent_size: int | None = None  # channels of the code; None: as many as the features have
    mean_scale: float = 1.0  # gain of the layer that gives the mean, at the start
    noise_std: float = 1.0
    head_activation: HeadActivation = "none"
    dtype: Any = jnp.float32

    @nn.compact
    def __call__(
        self, images: Float[Array, "N size size c"], labels: Int[Array, " N"], noise: Key | None = None
    ) -> Verdict:
        x = Convolution(self.filters, 3, self.dtype, name="image")(images)
        x = ResBlock(self.filters, self.dtype, name="block0")(x)
        for scale in range(1, num_scales(self.size) + 1):
            width = min(self.max_filters, self.filters * 2**scale)
            x = ResBlock(width, self.dtype, name=f"block{scale}")(pooled(x))
        code, mean, std = self._coded(x.astype(jnp.float32), noise)
        if self.code == "none" or self.head_activation == "leaky_relu":
            code = leaky(code)
        code = code.reshape(len(code), -1)
        logits = linear(max(1, self.num_classes), code, name="head")(code)
        return Verdict(jnp.take_along_axis(logits, labels[:, None], axis=1)[:, 0], mean, std)

    def _coded(self, features: Array, noise: Key | None) -> tuple[Array, Array | None, Array | None]:
        """(code, and its mean and std where they are learnt)."""
        if self.code == "none":
            return features, None, None
        size = self.latent_size or features.shape[-1]
        mean = Convolution(size, 1, gain=self.mean_scale, name="mean")(features)
        if self.code == "noise":
            return mean if noise is None else add_noise(noise, mean, self.noise_std), None, None
        std = jnp.exp(Convolution(size, 1, gain=LOG_STD_SCALE, name="log_std")(features))
        return mean if noise is None else sample_code(noise, mean, std), mean, std
