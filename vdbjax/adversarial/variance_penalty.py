"""Variance regularisation of an imitation reward: a critic that leaves the policy something to learn from."""

import jax
import jax.numpy as jnp
from jaxtyping import Array, Float


def variance_penalty(returns: Float[Array, "*batch"], values: Float[Array, "*batch"]) -> Float[Array, ""]:
    """Negative mean squared gap between the critic's discounted return and the value function, to be minimised.

    -E_{policy}[(R_w(s, a) - V(s))²], R_w the discounted return of the rewards under the critic's parameters w

    `returns` must carry the gradient to w, from rewards computed inside the loss. None flows into `values`: V is taken
    as converged (eq. 8), and its dependence on w then drops out (eq. 9). Multiply by the paper's lambda and add to
    the critic's loss. It is unbounded below wherever the reward is unbounded: keep lambda small.

    The paper's loss writes D high for the agent, yet its reward -log(1 - D) needs D high for the expert. Here a high
    logit means expert in both, so that only the sign changes: what the paper maximises is minimised.

    Source: GAIL-VR eq. 3 and 10.
    """
    return -jnp.mean((returns - jax.lax.stop_gradient(values)) ** 2)
