"""A second VAE over what a first one, trained to a larger distortion, makes of an image.

The first gives x̂, its mean for latents of an image; the second sees both, is conditioned on x̂ and starts as x̂ itself.
What the first left out is all that it can change, so that the samples keep what the first prioritised, while the joint
bound of the likelihood, -log p(x) <= -log p(x | z2, x̂) + R2 + R1, comes to that of a model trained at once.

Source: "Mind Your Bits and Errors" (2021), section 4, eq. 5 and 6, and appendix A.2.
"""

import dataclasses
from dataclasses import dataclass
from pathlib import Path
from typing import Any, NamedTuple

import jax
import jax.numpy as jnp
from jaxtyping import Array, Float

from vdbjax.images import vae, vdvae
from vdbjax.images.observation import Images, quantised
from vdbjax.images.vae import Terms
from vdbjax.images.vae_blocks import Params
from vdbjax.images.vdvae import make as make  # the same training: only the model is another
from vdbjax.types import Key

SHARED = ("resolutions", "layers", "encoder_blocks", "width", "bottleneck_width", "latents", "posterior")
"""What the second takes over from the first: "the exact same depth-structure"."""


@dataclass(frozen=True)
class Config(vdvae.Config):
    """A second VAE; its depth and widths are the first one's, whatever is given here."""

    gamma: float | None = 0.5
    """Squared error to hold in the end, summed over an image's numbers, of pixels in [0, 1]."""
    primary: Path | None = None
    """Run folder of the first VAE, which is trained and stays as it is."""

    def __post_init__(self) -> None:
        """Rejects values that cannot work."""
        super().__post_init__()
        if self.observation != "gaussian":
            raise ValueError(f"observation ({self.observation!r}) must be 'gaussian': the second VAE starts as x̂")


def settled(config: Config, first: Any) -> Config:
    """With the depth and widths of the first one's config. Raises ValueError where that is no VAE with a mean."""
    if type(first) is not vdvae.Config or first.observation != "gaussian":
        raise ValueError(f"{config.primary} is no run of a VAE with a Gaussian, which a second one could start from")
    if config.gamma is not None and first.gamma is not None and config.gamma >= first.gamma:
        raise ValueError(f"gamma ({config.gamma}) must be below the first VAE's ({first.gamma}), where this one starts")
    return dataclasses.replace(config, **{name: getattr(first, name) for name in SHARED})


class Model(NamedTuple):
    """Both VAEs; the parameters are {"first": ..., "second": ...}."""

    first: vae.Model
    second: vae.Model
    first_params: Params | None = None  # as trained; None: some of the right shapes

    @property
    def image_shape(self) -> tuple[int, int, int]:
        """Height, width, channels."""
        return self.second.image_shape

    @property
    def bits_per_nat_and_dim(self) -> float:
        """What turns an image's nats into bits/dim."""
        return self.second.bits_per_nat_and_dim

    def starting_from(self, first_params: Params) -> "Model":
        """The same, over a first VAE with these parameters. Raises ValueError for those of images of another shape."""
        images = jax.ShapeDtypeStruct((2, *self.image_shape), jnp.uint8)
        wanted = jax.eval_shape(self.first.init, jax.random.key(0), images)
        if jax.tree.map(jnp.shape, wanted) != jax.tree.map(jnp.shape, first_params):
            raise ValueError(f"the first VAE is not of images of {self.image_shape}; give --data and --size as it had")
        return self._replace(first_params=first_params)

    def init(self, key: Key, images: Images) -> Params:
        """First parameters."""
        key_first, key_second = jax.random.split(key)
        first = self.first.init(key_first, images) if self.first_params is None else self.first_params
        return {"first": jax.tree.map(jnp.asarray, first), "second": self.second.init(key_second, images)}

    def split(self, params: Params) -> tuple[Params, Params]:
        """(what is learnt, what is kept as it is)."""
        return params["second"], params["first"]

    def join(self, learnt: Params, kept: Params) -> Params:
        """The parameters again."""
        return {"first": kept, "second": learnt}

    def terms(self, params: Params, images: Images, key: Key) -> Terms:
        """All of a draw from both posteriors; the rates are the first's layers', then the second's."""
        key_first, key_second = jax.random.split(key)
        first = self.first.terms(params["first"], images, key_first)
        second = self.second.terms(params["second"], images, key_second, given=first.means)
        return second._replace(rates=jnp.concatenate([first.rates, second.rates]))

    def bound(self, params: Params, images: Images, key: Key) -> Float[Array, " batch"]:
        """The joint ELBO of one draw (nats), of log p(x + u)."""
        return self.terms(params, images, key).bound

    def reconstruct(self, params: Params, images: Images, key: Key) -> Images:
        """What comes back of images."""
        return quantised(self.terms(params, images, key).means)

    @property
    def has_mean_images(self) -> bool:
        """Whether samples are means unless `full` ones are asked for."""
        return self.second.has_mean_images

    def sample(self, params: Params, key: Key, *, num_images: int, full: bool = False) -> Images:
        """Images of both: for the same key, the first VAE's samples with what the second adds to them."""
        key_first, key_rest = jax.random.split(key)
        key_second, key_pixels = jax.random.split(key_rest)
        given = self.first.generate(params["first"], key_first, num_images=num_images)
        means = self.second.generate(params["second"], key_second, num_images=num_images, given=given)
        if full:
            return self.second.head.draw(means, params["second"]["log_variance"], key_pixels)
        return quantised(means)


def build_model(config: Config, image_shape: tuple[int, int, int]) -> Model:
    """Both VAEs of a settled config. Raises ValueError where the resolutions do not fit the images."""
    first = vdvae.build_model(config, image_shape)
    return Model(first, vdvae.build_model(config, image_shape, given=True))
