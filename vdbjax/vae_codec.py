"""A trained VAE as the coder takes it: plain functions of NumPy arrays, compiled once for one batch shape.

Sender and receiver run the same executables on arrays of the same shape, so that the same bits give the same bits:
fewer images than a batch are filled up with zeros. The networks run in float32 at `highest` matmul precision.
"""

from collections.abc import Callable
from typing import Any

import jax
import numpy as np
from jaxtyping import Int

from vdbjax.coding.discretize import gaussian
from vdbjax.coding.latent_bits_back import LatentModel, Layer, Normal
from vdbjax.coding.rans import Codec
from vdbjax.images.gaussians import Gaussian
from vdbjax.images.observation import GaussianHead, scaled
from vdbjax.images.vae import Model, centred

DELTA = 2.0**-12
"""Width of the latents' bins; standard deviations are at least exp(-6), forty times as much."""


def latent_model(model: Any, params: Any, *, batch_size: int) -> LatentModel:
    """The model for `latent_bits_back`, which may show it up to `batch_size` images at once.

    Raises ValueError for a mixture of logistics, for two stages, and for parameters that are not finite.
    """
    if not isinstance(model, Model) or not isinstance(model.head, GaussianHead):
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

    def see(images: Int[np.ndarray, "images height width channels"]) -> list[jax.Array]:
        if not (images.min() >= 0 and images.max() <= 255):
            raise ValueError("decoded values are no pixels")
        return _exactly(encode, own, _filled(images.astype(np.uint8), batch_size))

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
            x = _exactly(parts["absorb"], ours, after, _filled(z.astype(np.float32), batch_size))
            return stream[0], x if entered is None else _exactly(enter, own, entered, x)

        return Layer(prior, posterior, absorb)

    def pixels(stream: Any) -> Codec:
        centre = np.asarray(_exactly(mean, params, stream[1]), np.float64)[: stream[0]]
        return gaussian(centre, np.float64(std), 1.0)

    return LatentModel(begin, see, [layer(number, place) for number, place in enumerate(places)], pixels, DELTA)


def _exactly(compiled: Callable[..., Any], *arguments: Any) -> Any:
    with jax.default_matmul_precision("highest"):
        return compiled(*arguments)


def _normal(found: Gaussian, count: int) -> Normal:
    return np.asarray(found.mean, np.float64)[:count], np.exp(np.asarray(found.log_std, np.float64)[:count])


def _filled(rows: np.ndarray, batch_size: int) -> np.ndarray:
    if len(rows) > batch_size:
        raise ValueError(f"{len(rows)} images at once are more than batch_size ({batch_size})")
    return np.concatenate([rows, np.zeros((batch_size - len(rows), *rows.shape[1:]), rows.dtype)])
