"""Diagonal Gaussians by mean and log standard deviation: draws, divergence, and the product of two."""

from typing import NamedTuple

import jax
import jax.numpy as jnp
from jaxtyping import Array, Float


class Gaussian(NamedTuple):
    """N(mean, diag exp(log_std)²) of each element."""

    mean: Float[Array, "*shape"]
    log_std: Float[Array, "*shape"]

    def at(self, noise: Float[Array, "*shape"]) -> Float[Array, "*shape"]:
        """The draw that standard normal noise gives."""
        return self.mean + jnp.exp(self.log_std) * noise


def kl_nats(posterior: Gaussian, prior: Gaussian) -> Float[Array, "*shape"]:
    """KL(posterior || prior) of each element.

    log(std_p / std_q) + (std_q² + (mean_q - mean_p)²) / (2 std_p²) - ½
    """
    log_ratio = posterior.log_std - prior.log_std
    distance = (posterior.mean - prior.mean) * jnp.exp(-prior.log_std)
    return 0.5 * (jnp.exp(2.0 * log_ratio) + distance**2 - 1.0) - log_ratio


def merged(prior: Gaussian, seen: Gaussian) -> Gaussian:
    """The normalised product of both densities: precisions add, means are weighted by them.

    1 / std² = 1 / std_p² + 1 / std_s² and mean = std² (mean_p / std_p² + mean_s / std_s²), in logarithms, so that
    nothing overflows. Its std is never above the prior's; where `seen` knows nothing it is the prior.

    Source: Sønderby et al. 2016, eq. 17 and 18 (precision-weighted merging).
    """
    weight = jax.nn.sigmoid(2.0 * (prior.log_std - seen.log_std))
    log_std = -0.5 * jnp.logaddexp(-2.0 * prior.log_std, -2.0 * seen.log_std)
    return Gaussian(prior.mean + weight * (seen.mean - prior.mean), log_std)
