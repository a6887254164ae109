"""A hierarchy of latent layers: encoder from the bottom up, latents from the top down. VDVAE (Child 2020) section 3.

Resolutions go from the lowest to the highest; each has a stack of equal layers of latents, and the stream of features x
passes through all of them. It knows no pixels: an image goes in as scaled features, and features come out.
"""

import math
from typing import Any, NamedTuple

import jax
import jax.numpy as jnp
from jaxtyping import Array, Float

from vdbjax.images.gaussians import Gaussian, kl_nats, merged
from vdbjax.images.vae_blocks import (
    Block,
    Features,
    Params,
    Uniform,
    convolution,
    plan_convolution,
    pooled,
    run_stack,
    stacked,
    upsampled,
)
from vdbjax.types import Key

LARGEST_LOG_STD = 6.0
"""Bound of the logarithms of standard deviations that are merged; approached smoothly from within."""


class Encoder(NamedTuple):
    """Residual blocks from the image down to the lowest resolution; the last block of each but the lowest pools."""

    resolutions: tuple[int, ...]
    blocks: tuple[int, ...]  # at each resolution
    width: int
    middle: int
    image_channels: int
    scan: bool
    remat: bool

    def plan(self) -> Params:
        """How its parameters start."""
        stacks = [
            stacked(self._block(resolution).plan(), count)
            for resolution, count in zip(self.resolutions, self.blocks, strict=True)
        ]
        return {"input": plan_convolution(3, self.image_channels, self.width), "stacks": stacks}

    def apply(self, params: Params, image: Features) -> list[Features]:
        """The last features of each resolution, lowest first."""
        x = convolution(params["input"], image)
        found = []
        for place in reversed(range(len(self.resolutions))):
            stack, lowest = params["stacks"][place], place == 0
            kept = stack if lowest else jax.tree.map(lambda leaf: leaf[:-1], stack)
            x = self._run(place, kept, x)
            found.append(x)
            if not lowest:
                x = self._run(place, jax.tree.map(lambda leaf: leaf[-1:], stack), x)
                x = pooled(x, self.resolutions[place] // self.resolutions[place - 1])
        return found[::-1]

    def _run(self, place: int, stack: Params, x: Features) -> Features:
        count = len(jax.tree.leaves(stack)[0])
        if not count:
            return x
        block = self._block(self.resolutions[place])
        scan = self.scan and count > 1
        return run_stack(lambda x, layer: (block.apply(layer, x), ()), x, stack, scan=scan, remat=self.remat)[0]

    def _block(self, resolution: int) -> Block:
        scale = math.sqrt(1 / sum(self.blocks))
        return Block(self.width, self.middle, self.width, resolution, True, scale, self.scan)


class UNet(NamedTuple):
    """What the latents' decoder sees of a given image at every resolution: down as an encoder, up with its skips."""

    down: Encoder

    def plan(self) -> Params:
        """How its parameters start."""
        return {
            "down": self.down.plan(),
            "up": [self._block(resolution).plan() for resolution in self.down.resolutions],
        }

    def apply(self, params: Params, image: Features) -> list[Features]:
        """Features of each resolution, lowest first."""
        skips = self.down.apply(params["down"], image)
        found: list[Features] = []
        for place, (resolution, skip) in enumerate(zip(self.down.resolutions, skips, strict=True)):
            x = skip + upsampled(found[-1], resolution // self.down.resolutions[place - 1]) if place else skip
            found.append(self._block(resolution).apply(params["up"][place], x))
        return found

    def _block(self, resolution: int) -> Block:
        scale = math.sqrt(1 / len(self.down.resolutions))
        return Block(self.down.width, self.down.middle, self.down.width, resolution, True, scale)


class Hierarchy(NamedTuple):
    """The latent layers, their encoder, and a U-Net of the image that they are conditioned on where there is one."""

    encoder: Encoder
    layers: tuple[int, ...]  # of latents at each resolution
    latents: int  # channels of each layer's z
    merging: bool  # posteriors are what the encoder says merged with the prior; else what it says alone
    given: UNet | None = None

    @property
    def width(self) -> int:
        """Channels of the features."""
        return self.encoder.width

    def plan(self) -> Params:
        """How its parameters start."""
        stacks = [
            stacked(self._plan_layer(resolution), count)
            for resolution, count in zip(self.encoder.resolutions, self.layers, strict=True)
        ]
        params = {
            "encoder": self.encoder.plan(),
            "starts": [Uniform((resolution, resolution, self.width), 0.0) for resolution in self.encoder.resolutions],
            "stacks": stacks,
            "gain": jnp.ones(self.width),
            "shift": jnp.zeros(self.width),
        }
        return params if self.given is None else params | {"given": self.given.plan()}

    def _plan_layer(self, resolution: int) -> Params:
        prior, posterior, leave = self._parts(resolution)
        scale = math.sqrt(1 / sum(self.layers))
        return {
            "prior": prior.plan(),
            "posterior": posterior.plan(),
            "project": plan_convolution(1, self.latents, self.width, scale=scale),
            "residual": leave.plan(),
        }

    def _parts(self, resolution: int) -> tuple[Block, Block, Block]:
        """The prior's, the posterior's and the last block of a layer."""
        width, middle, scale = self.width, self.encoder.middle, math.sqrt(1 / sum(self.layers))
        in_scan = self.encoder.scan
        return (
            Block(width, middle, 2 * self.latents + width, resolution, last_scale=0.0, in_scan=in_scan),
            Block(2 * width, middle, 2 * self.latents, resolution, in_scan=in_scan),
            Block(width, middle, width, resolution, residual=True, last_scale=scale, in_scan=in_scan),
        )

    # One layer of latents, in the order in which a coder calls them too.

    def prior(self, layer: Params, x: Features) -> tuple[Gaussian, Features]:
        """p(z | z before), and the stream with what the prior's block adds to it."""
        outputs = self._parts(x.shape[1])[0].apply(layer["prior"], x)
        mean, log_std, more = jnp.split(outputs, (self.latents, 2 * self.latents), axis=-1)
        return Gaussian(mean, self._bounded(log_std)), x + more

    def posterior(self, layer: Params, x: Features, seen: Features, prior: Gaussian) -> Gaussian:
        """q(z | z before, image), of the stream as it came to the layer and the encoder's features."""
        outputs = self._parts(x.shape[1])[1].apply(layer["posterior"], jnp.concatenate([x, seen], axis=-1))
        mean, log_std = jnp.split(outputs, 2, axis=-1)
        found = Gaussian(mean, self._bounded(log_std))
        return merged(prior, found) if self.merging else found

    def absorb(self, layer: Params, x: Features, z: Float[Array, "batch height width latents"]) -> Features:
        """The stream after z."""
        x = x + convolution(layer["project"], z)
        return self._parts(x.shape[1])[2].apply(layer["residual"], x)

    def enter(self, params: Params, place: int, x: Features, given: list[Features] | None) -> Features:
        """The stream at the start of a resolution: a learnt one, the lower one's on it, and the given image's.

        At the first, x is what has the batch's size and no features.
        """
        start = params["starts"][place]
        stream = jnp.broadcast_to(start[None], (len(x), *start.shape))
        if place:
            stream = stream + upsampled(x, self.encoder.resolutions[place] // self.encoder.resolutions[place - 1])
        return stream if given is None else stream + given[place]

    def leave(self, params: Params, x: Features) -> Features:
        """The features that come out."""
        return x * params["gain"][None, None, None] + params["shift"][None, None, None]

    # All layers.

    def see(self, params: Params, image: Features | None) -> list[Features] | None:
        """What the layers see of the given image, at every resolution."""
        return self.given.apply(params["given"], image) if self.given and image is not None else None

    def infer(
        self, params: Params, image: Features, key: Key, *, given: Features | None = None
    ) -> tuple[Features, Float[Array, "layers batch"]]:
        """Features of latents drawn from the posteriors, and KL(posterior || prior) of each layer (nats).

        `image` is what the encoder sees, `given` what the latents are conditioned on.
        """
        seen, known = self.encoder.apply(params["encoder"], image), self.see(params, given)
        x, rates = jnp.zeros((len(image), 0, 0, 0)), []
        for place, count in enumerate(self.layers):
            x = self.enter(params, place, x, known)

            def body(x: Features, piece: tuple[Params, Array], acts: Features = seen[place]) -> tuple[Features, Array]:
                layer, noise = piece
                prior, after = self.prior(layer, x)
                posterior = self.posterior(layer, x, acts, prior)
                kl = jnp.sum(kl_nats(posterior, prior), axis=(1, 2, 3))
                return self.absorb(layer, after, posterior.at(noise)), kl

            noise = self._noise(key, place, len(image))
            x, kl = self._run(body, x, (params["stacks"][place], noise), count)
            rates.append(kl)
        return self.leave(params, x), jnp.concatenate(rates)

    def generate(self, params: Params, key: Key, *, count: int, given: Features | None = None) -> Features:
        """Features of latents drawn from the priors."""
        known, x = self.see(params, given), jnp.zeros((count, 0, 0, 0))
        for place, number in enumerate(self.layers):
            x = self.enter(params, place, x, known)

            def body(x: Features, piece: tuple[Params, Array]) -> tuple[Features, tuple[()]]:
                layer, noise = piece
                prior, after = self.prior(layer, x)
                return self.absorb(layer, after, prior.at(noise)), ()

            x, _ = self._run(body, x, (params["stacks"][place], self._noise(key, place, count)), number)
        return self.leave(params, x)

    def _noise(self, key: Key, place: int, batch: int) -> Array:
        """Of all layers of a resolution at once."""
        side = self.encoder.resolutions[place]
        shape = (self.layers[place], batch, side, side, self.latents)
        return jax.random.normal(jax.random.fold_in(key, place), shape, jnp.float32)

    def _run(self, body: Any, x: Features, stack: Any, count: int) -> tuple[Features, Any]:
        return run_stack(body, x, stack, scan=self.encoder.scan and count > 1, remat=self.encoder.remat)

    def _bounded(self, log_std: Array) -> Array:
        return LARGEST_LOG_STD * jnp.tanh(log_std / LARGEST_LOG_STD) if self.merging else log_std
