"""A hierarchical VAE of images of one shape: what is drawn, scored and shown with its parameters."""

import math
from typing import Any, NamedTuple

import jax
import jax.numpy as jnp
from jaxtyping import Array, Float

from vdbjax.images.hierarchy import Hierarchy
from vdbjax.images.observation import (
    GaussianHead,
    Images,
    MixtureHead,
    Outputs,
    Pixels,
    quantised,
    scaled,
    squared_error,
)
from vdbjax.images.vae_blocks import Features, Params, convolution, drawn, plan_convolution
from vdbjax.types import Key

FIRST_LOG_VARIANCE = math.log(0.1**2)
"""Of pixels in [0, 1]. Where a learnt variance starts at 1, hardly any error is worth its rate, and the latents are
given up for as long as Adam takes to bring it down."""


class Terms(NamedTuple):
    """What the objectives and the bound are made of, of a draw of the latents for each image."""

    rates: Float[Array, "layers batch"]  # KL of each layer (nats)
    log_likelihood: Float[Array, " batch"]  # log p(v + u | z), or log P(v | z) (nats)
    distortion: Any  # squared error [batch]; None for a mixture
    means: Outputs  # what the head takes

    @property
    def bound(self) -> Float[Array, " batch"]:
        """The ELBO (nats)."""
        return self.log_likelihood - jnp.sum(self.rates, axis=0)


class Model(NamedTuple):
    """A hierarchical VAE of images of one shape.

    Where it is conditioned on an image, `given` is that one's pixels in [0, 1]: what the Gaussian's means start at.
    """

    image_shape: tuple[int, int, int]  # height, width, channels
    hierarchy: Hierarchy
    head: GaussianHead | MixtureHead

    @property
    def bits_per_nat_and_dim(self) -> float:
        """What turns an image's nats into bits/dim."""
        return 1.0 / (math.log(2) * math.prod(self.image_shape))

    def init(self, key: Key, images: Images) -> Params:
        """First parameters, whatever the images."""
        scale = 0.0 if self.hierarchy.given else 1.0
        outputs = self.head.num_outputs(self.image_shape[2])
        head = plan_convolution(1, self.hierarchy.width, outputs, scale=scale)
        params = drawn(key, {"hierarchy": self.hierarchy.plan(), "head": head})
        return (
            params | {"log_variance": jnp.float32(FIRST_LOG_VARIANCE)}
            if isinstance(self.head, GaussianHead)
            else params
        )

    def split(self, params: Params) -> tuple[Any, Any]:
        """(what is learnt, what is kept as it is)."""
        return params, None

    def join(self, learnt: Any, kept: Any) -> Params:
        """The parameters again."""
        return learnt

    def terms(self, params: Params, images: Images, key: Key, *, given: Pixels | None = None) -> Terms:
        """All of a draw from the posterior."""
        key_latents, key_noise = jax.random.split(key)
        seen = centred(scaled(images))
        if given is not None:
            seen = jnp.concatenate([seen, centred(given)], axis=-1)
        known = None if given is None else centred(given)
        features, rates = self.hierarchy.infer(params["hierarchy"], seen, key_latents, given=known)
        outputs = self.outputs(params, features, given)
        if isinstance(self.head, MixtureHead):
            return Terms(rates, self.head.log_likelihood(images, outputs), None, outputs)
        likelihood = self.head.log_likelihood(images, outputs, params["log_variance"], key_noise)
        return Terms(rates, likelihood, squared_error(images, outputs), outputs)

    def bound(self, params: Params, images: Images, key: Key) -> Float[Array, " batch"]:
        """The ELBO of one draw (nats): of log p(x + u) with a Gaussian, whose images are dequantised for that density
        alone (appendix B.1), of log P(x) with a mixture."""
        return self.terms(params, images, key).bound

    def reconstruct(self, params: Params, images: Images, key: Key) -> Images:
        """What comes back of images: the Gaussian's mean, or a draw of the mixture."""
        return self._shown(self.terms(params, images, key).means, key)

    def generate(self, params: Params, key: Key, *, num_images: int, given: Pixels | None = None) -> Outputs:
        """What the head takes, of latents drawn from the priors."""
        known = None if given is None else centred(given)
        features = self.hierarchy.generate(params["hierarchy"], key, count=num_images, given=known)
        return self.outputs(params, features, given)

    @property
    def has_mean_images(self) -> bool:
        """Whether samples are means unless `full` ones are asked for."""
        return isinstance(self.head, GaussianHead)

    def sample(self, params: Params, key: Key, *, num_images: int, full: bool = False) -> Images:
        """Images of the model: the Gaussian's means for drawn latents (eq. 1 and 2), or `full` draws of it."""
        key_latents, key_pixels = jax.random.split(key)
        outputs = self.generate(params, key_latents, num_images=num_images)
        if full and isinstance(self.head, GaussianHead):
            return self.head.draw(outputs, params["log_variance"], key_pixels)
        return self._shown(outputs, key_pixels)

    def outputs(self, params: Params, features: Features, given: Pixels | None) -> Outputs:
        outputs = convolution(params["head"], features)
        if isinstance(self.head, MixtureHead):
            return outputs
        return outputs + (0.5 if given is None else given)

    def _shown(self, outputs: Outputs, key: Key) -> Images:
        if isinstance(self.head, MixtureHead):
            return self.head.draw(outputs, self.image_shape[2], key)
        return quantised(outputs)


def centred(pixels: Pixels) -> Pixels:
    """About standardised, as the networks see them."""
    return 4.0 * (pixels - 0.5)
