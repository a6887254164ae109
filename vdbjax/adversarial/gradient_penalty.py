"""Penalties on the slope of a critic x -> logit.

A critic here maps a batch [N, ...] to N logits, each from its own sample alone: the gradient of the summed logits
is then every sample's own gradient. (Batch normalisation in a critic would break this.)
"""

from collections.abc import Callable
from typing import Any

import jax
import jax.numpy as jnp
from jaxtyping import Array, Float, ScalarLike

from vdbjax.types import Key

Critic = Callable[[Float[Array, "N *features"]], Float[Array, "N"]]
"""A batch of samples to their logits. For a stochastic encoder draw the noise inside, under a key fixed outside."""


def squared_slope(critic: Critic, samples: Float[Array, "N *features"]) -> Float[Array, "N"]:
    """Squared Euclidean norm of the critic's gradient at each sample: ||∇_x critic(x)||²."""
    slope = jax.grad(lambda x: jnp.sum(critic(x)))(samples)
    return jnp.sum(slope**2, axis=tuple(range(1, slope.ndim)))


def squared_slope_of(pullback: Callable[[Any], tuple[Array]], logits: Float[Array, "N"]) -> Float[Array, "N"]:
    """The same where `logits, pullback = jax.vjp(critic, samples)` stand already: no second pass through the critic."""
    (slope,) = pullback(jnp.ones_like(logits))
    return jnp.sum(slope**2, axis=tuple(range(1, slope.ndim)))


def r1_penalty(critic: Critic, real: Float[Array, "N *features"]) -> Float[Array, ""]:
    """Half the mean squared slope of the critic, on real samples only.

    E_{x ~ p*} [½ ||∇_x D(x)||²], for the bottleneck with D(x) the logit of mean(x) + std(x) · eps, eps ~ N(0, I)

    The gradient goes through the encoder's mean and its std:
    `r1_penalty(lambda x: head(sample_code(key, *encoder(x))), real)`.

    Source: VDB eq. 15 (appendix B); multiply by its w_GP. On fake samples too, the paper found it worse.
    """
    return 0.5 * jnp.mean(squared_slope(critic, real))


def wgan_gp_penalty(
    key: Key,
    critic: Critic,
    real: Float[Array, "N *features"],
    fake: Float[Array, "N *features"],
    *,
    target: ScalarLike = 1.0,
) -> Float[Array, ""]:
    """Mean squared distance of the critic's slope from `target`, at random points between real and fake samples.

    E[(||∇_x critic(x)|| - target)²], x = u real + (1 - u) fake, u ~ U[0, 1), one u for each pair

    Where the slope is exactly zero the norm has no direction, and its gradient counts as 0 instead of NaN.

    Raises:
        ValueError: if the two batches differ in shape, as they are paired sample by sample.

    Source: GAIL-GP in GAIL-VR section 5.1, after Gulrajani et al. 2017, eq. 3.
    """
    if real.shape != fake.shape:
        raise ValueError(f"real {real.shape} and fake {fake.shape} must have one shape: draw as many of each")
    fraction = jax.random.uniform(key, (real.shape[0],) + (1,) * (real.ndim - 1), real.dtype)
    squared = squared_slope(critic, fraction * real + (1.0 - fraction) * fake)
    # The inner `where` keeps sqrt's infinite slope at 0 out of the backward pass, the outer one restores the value.
    flat = squared == 0.0
    norm = jnp.where(flat, 0.0, jnp.sqrt(jnp.where(flat, 1.0, squared)))
    return jnp.mean((norm - target) ** 2)
