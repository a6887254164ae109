"""Noise that makes real and fake overlap, so that a critic cannot separate them fully."""

import jax
from jaxtyping import Array, Float, ScalarLike

from vdbjax.types import Key


def add_noise(key: Key, x: Float[Array, "*batch"], std: ScalarLike) -> Float[Array, "*batch"]:
    """Add independent Gaussian noise to a critic's inputs, or to its code: x + std · eps, eps ~ N(0, I).

    `std` is in the units of `x`; real and fake samples must get the same. Consumes `key`.

    Source: VDB section 4.1, and section 5.1 (the baselines "GAIL - noise" and "GAIL - noise z").
    """
    return x + std * jax.random.normal(key, x.shape, x.dtype)
