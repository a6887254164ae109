"""Baselines: what the return of a rollout's steps is compared with."""

from collections.abc import Callable
from typing import Any, NamedTuple

import jax
import jax.numpy as jnp
import optax
from jaxtyping import Array, Float

from vdbjax.rl.natural_gradient import conjugate_gradient
from vdbjax.types import Key, Transition


class Baseline(NamedTuple):
    """What an observation is worth, at a time since the episode's start; in units of the scaled reward."""

    init: Callable[[Key], tuple[Any, Any]]  # parameters, optimizer state
    values: Callable[[Any, Array, Array], Array]  # (parameters, normalised observation, elapsed)
    fit: Callable[..., tuple[Any, Any]]  # (parameters, optimizer, observation, elapsed, target, key)
    knows_time: bool


def time_features(
    observation: Float[Array, "*batch observation"], time: Float[Array, "*batch"]
) -> Float[Array, "*batch features"]:
    """(o, o^2, t, t^2, t^3, 1), as in Duan et al. 2016; t is the time since the start in lengths of an episode."""
    t = time[..., None]
    return jnp.concatenate([observation, observation**2, t, t**2, t**3, jnp.ones_like(t)], axis=-1)


def linear_baseline(observation_size: int, episode_length: int) -> Baseline:
    """Linear in `time_features`, fitted by least squares."""
    size = 2 * observation_size + 4

    def values(weights: Array, observation: Array, elapsed: Array) -> Array:
        return time_features(observation, elapsed / episode_length) @ weights

    def fit(weights: Array, optimizer: Any, observation: Array, elapsed: Array, target: Array, key: Key) -> tuple:
        features = time_features(observation, elapsed / episode_length).reshape(-1, size)
        matrix = features.T @ features / len(features) + 1e-5 * jnp.eye(size)
        # Not by LAPACK, whose batched calls can deadlock on XLA's threads where cores are few.
        moment = features.T @ target.reshape(-1) / len(features)
        return conjugate_gradient(lambda v: matrix @ v, moment, steps=4 * size), optimizer

    return Baseline(
        init=lambda key: (jnp.zeros(size), ()),
        values=values,
        fit=fit,
        knows_time=True,
    )


def network_baseline(
    network: Any, observation_size: int, *, epochs: int, num_minibatches: int, learning_rate: float
) -> Baseline:
    """The value network's, fitted by Adam to each batch after it has been used on it."""
    optimizer = optax.adam(learning_rate)

    def init(key: Key) -> tuple[Any, Any]:
        params = network.init(key, jnp.zeros(observation_size))
        return params, optimizer.init(params)

    def gradient_step(carry: tuple, batch: tuple) -> tuple[tuple, None]:
        params, state = carry
        observation, target = batch
        gradients = jax.grad(lambda p: jnp.mean((network.apply(p, observation) - target) ** 2))(params)
        updates, state = optimizer.update(gradients, state, params)
        return (optax.apply_updates(params, updates), state), None

    def fit(params: Any, state: Any, observation: Array, elapsed: Array, target: Array, key: Key) -> tuple:
        rows = observation.reshape(-1, observation_size), target.reshape(-1)

        def epoch(carry: tuple, key: Key) -> tuple[tuple, None]:
            order = jax.random.permutation(key, len(rows[1]))
            cut = jax.tree.map(lambda leaf: leaf[order].reshape(num_minibatches, -1, *leaf.shape[1:]), rows)
            return jax.lax.scan(gradient_step, carry, cut)

        return jax.lax.scan(epoch, (params, state), jax.random.split(key, epochs))[0]

    return Baseline(init, lambda params, observation, elapsed: network.apply(params, observation), fit, False)


def count_steps(steps: Transition, start: Array) -> tuple[Array, Array]:
    """Control steps since each episode's start: [time, num_envs] before each step, and [num_envs] after the last."""

    def forward(elapsed: Array, done: Array) -> tuple[Array, Array]:
        return jnp.where(done, 0, elapsed + 1), elapsed

    following, elapsed = jax.lax.scan(forward, start, steps.terminated | steps.truncated)
    return elapsed, following
