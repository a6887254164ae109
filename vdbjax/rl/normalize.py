"""Running mean and variance of a stream of batches, exact whatever the split into batches."""

from typing import NamedTuple

import jax.numpy as jnp
from jaxtyping import Array, Float


class Moments(NamedTuple):
    """Number, mean and mean squared deviation of everything seen; `*shape` is that of one sample."""

    total: Float[Array, ""]
    mean: Float[Array, "*shape"]
    variance: Float[Array, "*shape"]


def empty_moments(shape: tuple[int, ...]) -> Moments:
    """Nothing seen: normalising with it changes nothing within the clip."""
    return Moments(total=jnp.zeros(()), mean=jnp.zeros(shape), variance=jnp.ones(shape))


def sample_moments(batch: Float[Array, "N *shape"]) -> Moments:
    """The moments of one batch, its leading axis the samples."""
    return Moments(jnp.float32(batch.shape[0]), jnp.mean(batch, axis=0), jnp.var(batch, axis=0))


def merge_moments(a: Moments, b: Moments) -> Moments:
    """The moments of two streams together (Chan, Golub & LeVeque 1979, eq. 1.5)."""
    total = a.total + b.total
    share = b.total / total
    gap = b.mean - a.mean
    variance = (1 - share) * a.variance + share * b.variance + share * (1 - share) * gap**2
    return Moments(total, a.mean + share * gap, variance)


def normalize(moments: Moments, values: Float[Array, "*batch"], *, clip: float = 10.0) -> Float[Array, "*batch"]:
    """(values - mean) / deviation, clipped to +-clip. The sample shape is the trailing one."""
    scaled = (values - _lift(moments.mean, values)) / jnp.sqrt(_lift(moments.variance, values) + 1e-8)
    return jnp.clip(scaled, -clip, clip)


def _lift(statistic: Array, like: Array) -> Array:
    return jnp.expand_dims(statistic, tuple(range(like.ndim - statistic.ndim)))
