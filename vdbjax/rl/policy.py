"""Stochastic policies over a box of actions, from any network that gives a mean and a deviation."""

from collections.abc import Callable
from typing import Any, Literal, NamedTuple

import jax
import jax.numpy as jnp
from jaxtyping import Array, Float, ScalarLike

from vdbjax.rl.normalize import Moments, normalize
from vdbjax.types import Environment, Key

Distribution = Literal["gaussian", "tanh-gaussian"]

Act = Callable[[Array, Key], tuple[Array, Array, Array]]
"""(observation, key) -> raw action, its log-probability, the action in the task's units."""


class Actor(NamedTuple):
    """All that acting needs: the network's parameters and the moments that normalise what it sees."""

    params: Any
    observations: Moments


class Policy(NamedTuple):
    """A policy as pure functions; `action` is the raw draw, `bound` makes of it what the task accepts.

    A Gaussian draw is clipped to the unit box, a tanh-Gaussian one squashed into it; then the box is stretched to the
    task's range. Keeping the raw draw keeps its log-probability exact, also at the edge of the box.
    """

    init: Callable[[Key], Any]
    sample: Callable[[Any, Array, Key], tuple[Array, Array]]  # (params, observation, key) -> action, log-probability
    log_prob: Callable[[Any, Array, Array], Array]  # (params, observation, action) -> nats
    entropy: Callable[[Any, Array, Key], Array]  # (params, observation, key) -> nats; exact for the Gaussian
    likelihood: Callable[[Any, Array, Array], Array]  # (params, observation, action in the task's units) -> nats
    kl: Callable[
        [Any, Any, Array], Array
    ]  # (params, other params, observation) -> KL of the first from the other, nats
    mode: Callable[[Any, Array], Array]  # (params, observation) -> the mean action
    bound: Callable[[Array], Array]  # raw action -> the task's units
    unbound: Callable[[Array], Array]  # the task's units -> a raw action that `bound` maps there
    with_std: Callable[[Any, ScalarLike], Any]  # (params, deviation) -> params with it for every action


def make_policy(network: Any, environment: Environment, *, distribution: Distribution) -> Policy:
    """A policy for the environment. `network.apply(params, observation)` gives (mean, std), each `*batch action`."""
    import distrax  # here, because the import takes over a second

    low, high = jnp.array(environment.action_low), jnp.array(environment.action_high)
    squash = distrax.Block(distrax.Tanh(), 1)

    def normal(params: Any, observation: Array) -> Any:
        return distrax.MultivariateNormalDiag(*network.apply(params, observation))

    def stretch(draw: Array) -> Array:
        # The density of the squashed draw, in raw coordinates: log N(u) - log |d tanh(u) / du|.
        return squash.forward_log_det_jacobian(draw) if distribution == "tanh-gaussian" else jnp.zeros(draw.shape[:-1])

    def init(key: Key) -> Any:
        return network.init(key, jnp.zeros(environment.observation_size))

    def log_prob(params: Any, observation: Array, action: Array) -> Array:
        return normal(params, observation).log_prob(action) - stretch(action)

    def sample(params: Any, observation: Array, key: Key) -> tuple[Array, Array]:
        with jax.numpy_rank_promotion("allow"):  # distrax adds the mean to draws of one more axis
            draw, nats = normal(params, observation).sample_and_log_prob(seed=key)
        return draw, nats - stretch(draw)

    def likelihood(params: Any, observation: Array, action: Array) -> Array:
        """Of what the task got: where a Gaussian draw was clipped, that is the whole tail beyond the edge."""
        raw = unbound(action)
        if distribution == "tanh-gaussian":
            return log_prob(params, observation, raw)
        mean, std = network.apply(params, observation)
        inside = jax.scipy.stats.norm.logpdf(raw, mean, std)
        above, below = jax.scipy.stats.norm.logsf(raw, mean, std), jax.scipy.stats.norm.logcdf(raw, mean, std)
        edge = 1.0 - 1e-6
        return jnp.sum(jnp.where(raw >= edge, above, jnp.where(raw <= -edge, below, inside)), axis=-1)

    def kl(params: Any, other: Any, observation: Array) -> Array:
        """Squashing both changes nothing, so it is that of the two Gaussians."""
        (mean, std), (other_mean, other_std) = network.apply(params, observation), network.apply(other, observation)
        ratio = std / other_std
        return jnp.sum(0.5 * (ratio**2 + ((mean - other_mean) / other_std) ** 2 - 1.0) - jnp.log(ratio), axis=-1)

    def entropy(params: Any, observation: Array, key: Key) -> Array:
        if distribution == "gaussian":
            return normal(params, observation).entropy()
        return -sample(params, observation, key)[1]

    def bound(action: Float[Array, "*batch action"]) -> Float[Array, "*batch action"]:
        unit = jnp.tanh(action) if distribution == "tanh-gaussian" else jnp.clip(action, -1.0, 1.0)
        return _per_action(low, unit) + 0.5 * (unit + 1.0) * _per_action(high - low, unit)

    def unbound(action: Float[Array, "*batch action"]) -> Float[Array, "*batch action"]:
        unit = 2.0 * (action - _per_action(low, action)) / _per_action(high - low, action) - 1.0
        # At the very edge atanh is infinite; a thousandth inside it is 3.8.
        return jnp.arctanh(jnp.clip(unit, -0.999, 0.999)) if distribution == "tanh-gaussian" else unit

    def mode(params: Any, observation: Array) -> Array:
        return normal(params, observation).mean()

    def with_std(params: Any, std: ScalarLike) -> Any:
        return network.with_std(params, std)

    return Policy(init, sample, log_prob, entropy, likelihood, kl, mode, bound, unbound, with_std)


def act_by_sampling(policy: Policy, actor: Actor) -> Act:
    """The stochastic policy."""

    def act(observation: Array, key: Key) -> tuple[Array, Array, Array]:
        action, log_prob = policy.sample(actor.params, normalize(actor.observations, observation), key)
        return action, log_prob, policy.bound(action)

    return act


def act_by_mean(policy: Policy, actor: Actor) -> Act:
    """The deterministic policy: the mean action, bounded. Its log-probability is given as 0."""

    def act(observation: Array, key: Key) -> tuple[Array, Array, Array]:
        action = policy.mode(actor.params, normalize(actor.observations, observation))
        return action, jnp.zeros(action.shape[:-1]), policy.bound(action)

    return act


def _per_action(row: Array, like: Array) -> Array:
    return jax.lax.broadcast_in_dim(row, like.shape, (like.ndim - 1,))
