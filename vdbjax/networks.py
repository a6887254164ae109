"""The networks of policies, values and critics, in flax.linen. Weights are orthogonal, biases zero.

And the running average of any network's parameters.
"""

from collections.abc import Sequence
from typing import Any, Literal

import flax.linen as nn
import jax
import jax.numpy as jnp
import numpy as np
from jaxtyping import Array, Float, Int, PRNGKeyArray, ScalarLike

Activation = Literal["tanh", "relu"]


def running_average(average: Any, params: Any, step: Int[Array, ""], *, decay: float) -> Any:
    """decay average + (1 - decay) params, after `step` steps.

    The first steps count for less and less, or the average would keep the first parameters for long.
    """
    kept = jnp.minimum(decay, (1.0 + step) / (10.0 + step))
    return jax.tree.map(lambda old, new: kept * old + (1.0 - kept) * new, average, params)


class Dense(nn.Module):
    """A linear layer with orthogonal weights of the given gain and zero bias.

    With a blend its weights are a sum of several sets: sum_i blend_i (W_i x + b_i), as in a phase-functioned network
    (VDB appendix C).
    """

    size: int
    scale: float

    @nn.compact
    def __call__(
        self, inputs: Float[Array, "*batch features"], blend: Float[Array, "*batch sets"] | None = None
    ) -> Float[Array, "*batch outputs"]:
        draw, shape = nn.initializers.orthogonal(self.scale), (inputs.shape[-1], self.size)
        if blend is None:
            outputs = inputs @ self.param("kernel", draw, shape)
            bias = self.param("bias", nn.initializers.zeros, (self.size,))
            return outputs + jnp.broadcast_to(bias, outputs.shape)

        def draws(key: Array, count: int) -> Array:
            return jnp.stack([draw(key, shape) for key in jax.random.split(key, count)])

        sets = blend.shape[-1]
        each = jnp.einsum("...i,kio->...ko", inputs, self.param("kernel", draws, sets))
        return jnp.einsum("...ko,...k->...o", each, blend) + blend @ self.param(
            "bias", nn.initializers.zeros, (sets, self.size)
        )


def phase_blend(phase: Float[Array, "*batch 2"], *, num_sets: int) -> Float[Array, "*batch sets"]:
    """The weights of a phase-functioned network's parameter sets at a phase given as (cosine, sine).

    Set i stands for phase i / k, set 0 for phase 1 too; between two the weights go linearly (VDB appendix C).
    """
    place = num_sets * jnp.mod(jnp.arctan2(phase[..., 1], phase[..., 0]) / (2 * jnp.pi), 1.0)
    distance = jnp.abs(place[..., None] - jnp.arange(num_sets, dtype=jnp.float32).reshape(*[1] * place.ndim, -1))
    return jnp.maximum(0.0, 1.0 - jnp.minimum(distance, num_sets - distance))


class Trunk(nn.Module):
    """Hidden layers, each followed by the activation; phase-functioned where there is a blend."""

    hidden_sizes: Sequence[int]
    activation: Activation = "tanh"

    @nn.compact
    def __call__(
        self, inputs: Float[Array, "*batch features"], blend: Float[Array, "*batch sets"] | None = None
    ) -> Float[Array, "*batch hidden"]:
        for size in self.hidden_sizes:
            inputs = getattr(nn, self.activation)(Dense(size, 2**0.5)(inputs, blend))
        return inputs


class ImageEncoder(nn.Module):
    """Convolutions of 4 x 4, each followed by the activation, then all numbers in a row.

    The first keeps every fourth pixel, the others every second one. Each is a matrix product of the image's patches:
    XLA's own convolutions take 40 times as long on the CPU where they are differentiated inside a scan.
    """

    channels: Sequence[int]
    activation: Activation = "relu"

    @nn.compact
    def __call__(self, images: Float[Array, "*batch height width colours"]) -> Float[Array, "*batch features"]:
        patches = _blocks(images, 4)
        for layer, size in enumerate(self.channels):
            patches = _overlapping(images) if layer else patches
            images = getattr(nn, self.activation)(Dense(size, 2**0.5)(patches))
        return images.reshape(*images.shape[:-3], -1)


def _blocks(
    images: Float[Array, "*batch height width colours"], size: int
) -> Float[Array, "*batch rows columns patch"]:
    """The image cut into squares of this many pixels."""
    *batch, height, width, colours = images.shape
    cut = images.reshape(*batch, height // size, size, width // size, size, colours)
    return jnp.moveaxis(cut, -4, -3).reshape(*batch, height // size, width // size, size**2 * colours)


def _overlapping(images: Float[Array, "*batch height width colours"]) -> Float[Array, "*batch rows columns patch"]:
    """The squares of 4 x 4 pixels about every second pixel, the image framed by zeros."""
    framed = jnp.pad(images, [*[(0, 0)] * (images.ndim - 3), (1, 1), (1, 1), (0, 0)])
    blocks = _blocks(framed, 2)
    rows, columns = blocks.shape[-3] - 1, blocks.shape[-2] - 1
    parts = [blocks[..., i : i + rows, j : j + columns, :] for i in (0, 1) for j in (0, 1)]
    return jnp.concatenate(parts, axis=-1)


class GaussianActor(nn.Module):
    """Mean and standard deviation of an action: the mean from the observation, the deviation a parameter of its own.

    VDB appendix C keeps the deviation fixed; here it is learnt, one number an action, from `initial_std` on, or set by
    `with_std`.
    """

    hidden_sizes: Sequence[int]
    action_size: int
    initial_std: float
    activation: Activation = "tanh"

    @nn.compact
    def __call__(
        self, observation: Float[Array, "*batch observation"]
    ) -> tuple[Float[Array, "*batch action"], Float[Array, "*batch action"]]:
        mean = Dense(self.action_size, 0.01)(Trunk(self.hidden_sizes, self.activation)(observation))
        start = nn.initializers.constant(jnp.log(self.initial_std))
        log_std = self.param("log_std", start, (self.action_size,))
        return mean, jnp.broadcast_to(jnp.exp(log_std), mean.shape)

    @staticmethod
    def with_std(params: Any, std: ScalarLike | Float[np.ndarray, " seeds"]) -> Any:
        """The same parameters with this deviation for every action; of as many seeds, each with its own."""
        own = params["params"]
        log_std = jnp.log(std)[..., None].astype(own["log_std"].dtype)
        return params | {"params": own | {"log_std": jnp.broadcast_to(log_std, own["log_std"].shape)}}

    @staticmethod
    def leaning(params: Any, key: PRNGKeyArray, deviation: Float[np.ndarray, " seeds"]) -> Any:
        """The parameters of as many seeds, each with a draw of its deviation added to the mean action everywhere."""
        own = params["params"]
        head = own["Dense_0"]
        bias = head["bias"]
        lean = jnp.asarray(deviation, bias.dtype)[:, None] * jax.random.normal(key, bias.shape)
        return params | {"params": own | {"Dense_0": head | {"bias": bias + lean}}}


class Value(nn.Module):
    """State value, one number an observation."""

    hidden_sizes: Sequence[int]
    activation: Activation = "tanh"

    @nn.compact
    def __call__(self, observation: Float[Array, "*batch observation"]) -> Float[Array, "*batch"]:
        return Dense(1, 1.0)(Trunk(self.hidden_sizes, self.activation)(observation))[..., 0]


class StochasticEncoder(nn.Module):
    """E(z|x) = N(mean(x), diag std(x)^2), the encoder of the bottleneck (VDB section 4)."""

    hidden_sizes: Sequence[int]
    latent_size: int
    activation: Activation = "tanh"
    mean_scale: float = 1.0  # gain of the layer that gives the mean, at the start

    @nn.compact
    def __call__(
        self, inputs: Float[Array, "*batch features"], blend: Float[Array, "*batch sets"] | None = None
    ) -> tuple[Float[Array, "*batch latent"], Float[Array, "*batch latent"]]:
        hidden = Trunk(self.hidden_sizes, self.activation)(inputs, blend)
        mean = Dense(self.latent_size, self.mean_scale)(hidden, blend)
        log_variance = Dense(self.latent_size, 0.1)(hidden, blend)
        # +-20 leaves the deviation between 4.5e-5 and 2.2e4: finite in float32 with its square and its inverse.
        return mean, jnp.exp(0.5 * jnp.clip(log_variance, -20.0, 20.0))


class Critic(nn.Module):
    """A logit for each input: expert or real is high.

    With `latent_size` the embedding is a stochastic code; without it, it is the last hidden layer, of deviation zero.
    Either way the head is a single linear unit, as in VDB section 4. `encode` and `decide` are its two halves, so that
    whoever trains it draws the code. With a blend all its layers are phase-functioned, save the convolutions that come
    first with `channels`, for inputs that are images. With gains near 0 it starts flat.
    """

    hidden_sizes: Sequence[int]
    latent_size: int | None
    activation: Activation = "tanh"
    channels: Sequence[int] = ()
    mean_scale: float = 1.0  # of the encoder
    head_scale: float = 1.0

    def setup(self) -> None:
        """Makes the two halves."""
        if self.latent_size is None:
            self.trunk = Trunk(self.hidden_sizes, self.activation)
        else:
            self.encoder = StochasticEncoder(self.hidden_sizes, self.latent_size, self.activation, self.mean_scale)
        self.head = Dense(1, self.head_scale)
        self.image = ImageEncoder(self.channels, self.activation) if self.channels else None

    def encode(
        self, inputs: Float[Array, "..."], blend: Float[Array, "*batch sets"] | None = None
    ) -> tuple[Float[Array, "*batch embedding"], Float[Array, "*batch embedding"]]:
        """Mean and standard deviation of the embedding."""
        if self.image is not None:
            inputs = self.image(inputs)
        if self.latent_size is None:
            mean = self.trunk(inputs, blend)
            return mean, jnp.zeros_like(mean)
        return self.encoder(inputs, blend)

    def decide(
        self, code: Float[Array, "*batch embedding"], blend: Float[Array, "*batch sets"] | None = None
    ) -> Float[Array, "*batch"]:
        """The logit of a code."""
        return self.head(code, blend)[..., 0]

    def __call__(
        self, inputs: Float[Array, "..."], blend: Float[Array, "*batch sets"] | None = None
    ) -> Float[Array, "*batch"]:
        """The logit at the mean of the code, which is what rewards are made of."""
        return self.decide(self.encode(inputs, blend)[0], blend)
