"""A trained VAE as the coder takes it: plain functions of NumPy arrays, compiled once for one batch shape.

Sender and receiver run the same executables on arrays of the same shape, so that the same bits give the same bits:
fewer images than a batch are filled up with zeros. The networks run in float32 at `highest` matmul precision.
"""

from collections.abc import Callable
from typing import Any

import jax
import numpy as np
from jaxtyping import Float
from scipy.special import log_ndtr

from vdbjax.coding.latent_bits_back import Drawn, LatentModel, Latents, Layer, Normal, Pixels
from vdbjax.fixed_batch import as_pixels, filled
from vdbjax.images.gaussians import Gaussian
from vdbjax.images.observation import GaussianHead, scaled
from vdbjax.images.vae import Model, centred

DELTA = 2.0**-12
"""Width of the latents' bins; a merged posterior's standard deviation is at least exp(-6) / √2, seven times as much."""


def codes_images(model: Any) -> bool:
    """Whether a model is a VAE that can be coded by: of one stage, with a Gaussian."""
    return isinstance(model, Model) and isinstance(model.head, GaussianHead)


def latent_model(model: Model, params: Any, *, batch_size: int, delta: float = DELTA) -> LatentModel:
    """The model for `latent_bits_back`, which may show it up to `batch_size` images at once.

    Raises ValueError for a mixture of logistics, for two stages, and for parameters that are not finite.
    """
    if not codes_images(model):
        raise ValueError("only a VAE of one stage with a Gaussian codes images")
    if not all(np.isfinite(leaf).all() for leaf in jax.tree.leaves(jax.device_get(params))):
        raise ValueError("the model's parameters are not all finite: it cannot code images")
    hierarchy, own = model.hierarchy, params["hierarchy"]
    parts = {name: jax.jit(getattr(hierarchy, name)) for name in ("prior", "posterior", "absorb")}
    places = [place for place, count in enumerate(hierarchy.layers) for _ in range(count)]
    encode = jax.jit(lambda own, images: hierarchy.encoder.apply(own["encoder"], centred(scaled(images))))
    enter = jax.jit(lambda own, place, x: hierarchy.enter(own, place, x, None), static_argnums=1)
    mean = jax.jit(lambda params, x: 256.0 * model.outputs(params, hierarchy.leave(params["hierarchy"], x), None))
    std = 256.0 * float(np.exp(0.5 * np.float64(params["log_variance"])))

    def see(images: Pixels) -> list[jax.Array]:
        return _exactly(encode, own, filled(as_pixels(images), batch_size))

    def begin(count: int) -> tuple[int, jax.Array]:
        return count, _exactly(enter, own, 0, np.zeros((batch_size, 0, 0, 0), np.float32))

    def layer(number: int, place: int) -> Layer:
        first = places.index(place)
        ours = jax.tree.map(lambda leaf: leaf[number - first], own["stacks"][place])
        last = number == first + hierarchy.layers[place] - 1
        entered = place + 1 if last and place + 1 < len(hierarchy.layers) else None

        def prior(stream: Any) -> Normal:
            return _normal(_exactly(parts["prior"], ours, stream[1])[0], stream[0])

        def posterior(stream: Any, seen: Any) -> Normal:
            before = _exactly(parts["prior"], ours, stream[1])[0]
            return _normal(_exactly(parts["posterior"], ours, stream[1], seen[place], before), stream[0])

        def absorb(stream: Any, z: np.ndarray) -> Any:
            after = _exactly(parts["prior"], ours, stream[1])[1]
            x = _exactly(parts["absorb"], ours, after, filled(z.astype(np.float32), batch_size))
            return stream[0], x if entered is None else _exactly(enter, own, entered, x)

        return Layer(prior, posterior, absorb)

    def pixels(stream: Any) -> tuple[Latents, float]:
        return np.asarray(_exactly(mean, params, stream[1]), np.float64)[: stream[0]], std

    sides = hierarchy.encoder.resolutions
    size = hierarchy.latents * sum(sides[place] ** 2 for place in places)
    layers = [layer(number, place) for number, place in enumerate(places)]
    return LatentModel(begin, see, layers, pixels, size, delta)


def theoretical_bits(model: LatentModel) -> Callable[[Pixels, Drawn], Float[np.ndarray, " images"]]:
    """(x, z) -> -log2 p(x, z) / q(z | x) of each image: the negative ELBO of the very latents that were drawn."""

    def bits(images: Pixels, latents: Drawn) -> Float[np.ndarray, " images"]:
        stream, seen = model.begin(len(images)), model.see(images)
        total = np.zeros(len(images))
        for layer, z in zip(model.layers, latents, strict=True):
            total += _each(_log_density(z, layer.posterior(stream, seen)) - _log_density(z, layer.prior(stream)))
            stream = layer.absorb(stream, z)
        return (total - _each(_log_mass(images, *model.pixels(stream)))) / np.log(2.0)

    return bits


def _log_density(z: Latents, normal: Normal) -> Latents:
    """Up to the constant that all Gaussians share."""
    mean, std = normal
    return -0.5 * ((z - mean) / std) ** 2 - np.log(std)


def _log_mass(values: Pixels, mean: Latents, std: float) -> Latents:
    """Of each bin [v, v + 1), on the side of the mean where numbers are small and differences exact."""
    from_mean = np.stack([values - mean, values + 1.0 - mean]) / std
    low, high = np.where(from_mean[0] > 0, -from_mean[::-1], from_mean)
    return log_ndtr(high) + np.log1p(-np.exp(log_ndtr(low) - log_ndtr(high)))


def _each(values: Latents) -> Float[np.ndarray, " images"]:
    return values.reshape(len(values), -1).sum(axis=1)


def _exactly(compiled: Callable[..., Any], *arguments: Any) -> Any:
    with jax.default_matmul_precision("highest"):
        return compiled(*arguments)


def _normal(found: Gaussian, count: int) -> Normal:
    return np.asarray(found.mean, np.float64)[:count], np.exp(np.asarray(found.log_std, np.float64)[:count])
