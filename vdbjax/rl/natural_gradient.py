"""The natural gradient, and a step along it (Schulman et al. 2015).

It goes as far as the mean KL divergence from what was before allows, and then takes shorter steps until the objective
has truly risen within that bound.
"""

from collections.abc import Callable
from typing import Any

import jax
import jax.numpy as jnp
from jax.flatten_util import ravel_pytree
from jaxtyping import Array, Float

from vdbjax.types import Metrics


def fisher_vector_product(
    kl: Callable[[Float[Array, " P"]], Array], params: Float[Array, " P"], vector: Float[Array, " P"]
) -> Float[Array, " P"]:
    """F v, with F the Hessian of `kl` at `params`, where it and its gradient are 0; no matrix is formed."""
    return jax.jvp(jax.grad(kl), (params,), (vector,))[1]


def conjugate_gradient(
    product: Callable[[Float[Array, " P"]], Float[Array, " P"]], target: Float[Array, " P"], *, steps: int
) -> Float[Array, " P"]:
    """x with A x near `target`, for a positive definite A given by its products (Hestenes & Stiefel 1952)."""

    def step(carry: tuple, _: None) -> tuple[tuple, None]:
        x, residual, direction, norm = carry
        image = product(direction)
        curvature = direction @ image
        going = (norm > 1e-12) & (curvature > 0.0)  # beyond that only rounding is left
        length = jnp.where(going, norm / jnp.where(going, curvature, 1.0), 0.0)
        x, residual = x + length * direction, residual - length * image
        following = residual @ residual
        turn = jnp.where(going, following / jnp.where(going, norm, 1.0), 0.0)
        return (x, residual, residual + turn * direction, jnp.where(going, following, norm)), None

    start = jnp.zeros_like(target), target, target, target @ target
    return jax.lax.scan(step, start, None, length=steps)[0][0]


def trust_region_step(
    objective: Callable[[Any], Array],
    kl: Callable[[Any], Array],
    sampled_kl: Callable[[Any], Array],
    params: Any,
    *,
    kl_limit: float,
    conjugate_gradient_steps: int,
    damping: float,
    backtracks: int,
) -> tuple[Any, Metrics]:
    """Raises `objective` within kl(params) <= kl_limit; where no step tried does both, the params stay as they are.

    x = F^-1 grad objective, step = sqrt(2 kl_limit / x'F x) x, then 0.8, 0.64, ... times that. F is the Hessian of
    `sampled_kl`, which may be a cheaper `kl`. Schulman et al. 2015, section 6 and appendix C.
    """
    flat, unravel = ravel_pytree(params)
    before, gradient = jax.value_and_grad(lambda x: objective(unravel(x)))(flat)

    def product(vector: Array) -> Array:
        return fisher_vector_product(lambda x: sampled_kl(unravel(x)), flat, vector) + damping * vector

    direction = conjugate_gradient(product, gradient, steps=conjugate_gradient_steps)
    curvature = direction @ product(direction)
    full = jnp.sqrt(2.0 * kl_limit / jnp.maximum(curvature, 1e-12)) * direction

    def attempt(carry: tuple) -> tuple:
        count, _, _ = carry
        candidate = flat + 0.8**count * full
        distance = kl(unravel(candidate))
        # Comparisons with NaN are false, so that a step into NaN is not taken.
        return count + 1, candidate, (distance <= kl_limit) & (objective(unravel(candidate)) > before)

    count, candidate, accepted = jax.lax.while_loop(
        lambda carry: ~carry[2] & (carry[0] < backtracks), attempt, (jnp.int32(0), flat, jnp.bool_(False))
    )
    params = unravel(jnp.where(accepted, candidate, flat))
    metrics = {
        "policy/kl_nats": kl(params),
        "policy/gradient_norm": jnp.linalg.norm(gradient),
        "policy/line_search_steps": count.astype(jnp.float32),
        "policy/improvement": objective(params) - before,
    }
    return params, metrics
