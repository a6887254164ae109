"""A generator and a discriminator for images of one shape, as one model; and pixels as networks have them."""

from typing import Any, NamedTuple

import jax
import jax.numpy as jnp
from jaxtyping import Array, Float, Int, UInt8

from vdbjax.images.gan_resnet import Discriminator, Generator, Translator, Verdict
from vdbjax.types import Key

Images = UInt8[Array, "N height width channels"]
Scaled = Float[Array, "N height width channels"]
"""Images as the networks have them, in [-1, 1]."""


class Model(NamedTuple):
    """The two networks for images of one shape; parameters are {"generator": ..., "discriminator": ...}."""

    image_shape: tuple[int, int, int]  # height, width, channels
    generator: Generator | Translator
    discriminator: Discriminator
    noise_size: int
    num_classes: int  # 0: not conditional

    @property
    def translates(self) -> bool:
        """Whether it needs sources."""
        return isinstance(self.generator, Translator)

    def init(self, key: Key, images: Images) -> Any:
        """First parameters, whatever the images."""
        like = jnp.zeros((1, *self.image_shape))
        labels = jnp.zeros(1, jnp.int32)
        noise = jnp.zeros((1, self.noise_size))
        shown = jnp.concatenate([like, like], axis=-1) if self.translates else like

        @jax.custom_batching.sequential_vmap  # under vmap alone, every seed would be drawn by the first one's key
        def drawn(key: Key) -> Any:
            # XLA's own generator: a CPU takes a minute to compile threefry for every layer's weights.
            own = jax.random.wrap_key_data(jax.random.bits(key, (4,), jnp.uint32), impl="rbg")
            key_generator, key_discriminator = jax.random.split(own)
            return {
                "generator": self.generator.init(key_generator, noise, like if self.translates else labels)["params"],
                "discriminator": self.discriminator.init(key_discriminator, shown, labels)["params"],
            }

        return drawn(key)

    def generate(self, params: Any, noise: Array, labels: Int[Array, " N"], sources: Scaled | None = None) -> Scaled:
        """Images of the generator with these parameters."""
        images: Any = self.generator.apply({"params": params}, noise, sources if self.translates else labels)
        return images

    def judge(
        self,
        params: Any,
        images: Scaled,
        labels: Int[Array, " N"],
        sources: Scaled | None = None,
        key: Key | None = None,
    ) -> Verdict:
        """What the discriminator with these parameters makes of images; a key draws the code."""
        shown = images if sources is None else jnp.concatenate([sources, images], axis=-1)
        verdict: Any = self.discriminator.apply({"params": params}, shown, labels, key)
        return verdict

    def sample(self, params: Any, key: Key, *, num_images: int, sources: Images | None = None) -> Images:
        """Images of the generator (its parameters alone), class after class; or translations, one for each source.

        Raises ValueError where a model that translates gets no sources.
        """
        if self.translates and sources is None:
            raise ValueError("this model translates pictures; it needs some to translate")
        noise = jax.random.normal(key, (num_images, self.noise_size))
        labels = jnp.arange(num_images) % max(1, self.num_classes)
        return to_pixels(self.generate(params, noise, labels, None if sources is None else scaled(sources)))

    def interpolate(self, params: Any, key: Key, *, num_strips: int, steps: int) -> UInt8[Array, "strips steps h w c"]:
        """Strips of images along great circles between two draws of the noise, each of one class."""
        start, end = jax.random.normal(key, (2, num_strips, 1, self.noise_size))
        cosine = jnp.sum(start * end, -1) / (jnp.linalg.norm(start, axis=-1) * jnp.linalg.norm(end, axis=-1))
        angle, share = jnp.arccos(cosine)[..., None], jnp.linspace(0.0, 1.0, steps)[None, :, None]
        noise = (jnp.sin((1.0 - share) * angle) * start + jnp.sin(share * angle) * end) / jnp.sin(angle)
        labels = jnp.repeat(jnp.arange(num_strips) % max(1, self.num_classes), steps)
        images = to_pixels(self.generate(params, noise.reshape(-1, self.noise_size), labels))
        return images.reshape(num_strips, steps, *self.image_shape)


def scaled(images: Images) -> Scaled:
    """Pixels as numbers in [-1, 1]."""
    return images.astype(jnp.float32) / 127.5 - 1.0


def to_pixels(images: Scaled) -> Images:
    """The pixels that numbers belong to: each has the 1/128 above its own `scaled`, over which it is spread in
    training; a little less, for what float32 rounds."""
    return jnp.clip(jnp.floor(images * 127.5 + 127.504), 0, 255).astype(jnp.uint8)
