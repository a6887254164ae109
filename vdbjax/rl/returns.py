"""Returns and advantages over rollouts that hold many episodes, whole and cut."""

import jax
import jax.numpy as jnp
from jaxtyping import Array, Bool, Float


def generalized_advantages(
    reward: Float[Array, "time num_envs"],
    value: Float[Array, "time num_envs"],
    next_value: Float[Array, "time num_envs"],
    terminated: Bool[Array, "time num_envs"],
    truncated: Bool[Array, "time num_envs"],
    *,
    discount: float,
    gae_lambda: float,
) -> Float[Array, "time num_envs"]:
    """Generalised advantage estimates, bootstrapped wherever an episode was cut but not over.

    delta_t = r_t + gamma (1 - terminated_t) V(s'_t) - V(s_t),
    A_t = delta_t + gamma lambda (1 - terminated_t)(1 - truncated_t) A_{t+1}.

    `next_value` is the value of the observation in which step t truly ended, so that a time limit bootstraps there and
    not in the next episode's start. Schulman et al. 2016, eq. 16, with the two kinds of ending of Pardo et al. 2018.
    """
    alive = 1.0 - terminated
    delta = reward + discount * alive * next_value - value
    carry_over = discount * gae_lambda * alive * (1.0 - truncated)
    return _backward_sum(delta, carry_over, jnp.zeros_like(delta[0]))


def discounted_returns(
    reward: Float[Array, "time num_envs"],
    next_value: Float[Array, "time num_envs"],
    terminated: Bool[Array, "time num_envs"],
    truncated: Bool[Array, "time num_envs"],
    *,
    discount: float,
) -> Float[Array, "time num_envs"]:
    """Discounted return of each step, R_t = r_t + gamma R_{t+1}; where a cut hides what follows, `next_value`."""
    alive = 1.0 - terminated
    cut = truncated.at[-1].set(True)
    bootstrap = jnp.where(cut, discount * alive * next_value, 0.0)
    return _backward_sum(reward + bootstrap, discount * alive * (1.0 - cut), jnp.zeros_like(reward[0]))


def running_returns(
    reward: Float[Array, "time num_envs"],
    done: Bool[Array, "time num_envs"],
    start: Float[Array, " num_envs"],
    *,
    discount: float,
) -> tuple[Float[Array, "time num_envs"], Float[Array, " num_envs"]]:
    """Discounted sum of the rewards received so far, G_t = r_t + gamma G_{t-1}, zeroed after each episode.

    Its deviation is the usual scale of rewards for PPO. Returns all G and the one to go on from.
    """

    def forward(total: Array, step: tuple[Array, Array]) -> tuple[Array, Array]:
        reward_t, done_t = step
        total = reward_t + discount * total
        return jnp.where(done_t, 0.0, total), total

    last, totals = jax.lax.scan(forward, start, (reward, done))
    return totals, last


def _backward_sum(terms: Array, factors: Array, last: Array) -> Array:
    def backward(total: Array, step: tuple[Array, Array]) -> tuple[Array, Array]:
        term, factor = step
        total = term + factor * total
        return total, total

    return jax.lax.scan(backward, last, (terms, factors), reverse=True)[1]
