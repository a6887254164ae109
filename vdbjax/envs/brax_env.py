"""Brax's own environments and pipelines behind the project's protocol: `brax/ant`, with backend spring and others."""

from typing import Any

import jax
import jax.numpy as jnp
from jaxtyping import Array

from vdbjax import limits
from vdbjax.envs.batch import end_of_step, where_done
from vdbjax.types import Environment, EnvState, Key, Step

EPISODE_LENGTH = 1000


def make_brax(name: str, *, backend: str) -> Environment:
    """A Brax environment by its own name. Its auto-reset is left out: it loses the last observation and the draw.

    Every Brax action lies in [-1, 1]. Episodes are cut after 1,000 control steps, as in Brax's own training. Raises
    ValueError for a name or backend that Brax does not have.
    """
    from brax import envs  # here, because it takes seconds

    limits.known("Brax environment", sorted(envs._envs), name)
    try:
        raw = envs.get_environment(name, backend=backend)
    except (KeyError, ValueError, AssertionError) as error:
        raise ValueError(f"Brax cannot make {name!r} on backend {backend!r}: {error}") from None

    def start(key: Key, num_envs: int) -> Any:
        return jax.vmap(raw.reset)(jax.random.split(key, num_envs))

    def reset(key: Key, num_envs: int) -> EnvState:
        state = start(key, num_envs)
        return EnvState(state, state.obs, jnp.zeros(num_envs, jnp.int32))

    def step(state: EnvState, action: Array, key: Key) -> tuple[EnvState, Step]:
        after = jax.vmap(raw.step)(state.physics, action)
        terminated = after.done > 0.5
        elapsed, truncated, done = end_of_step(state.elapsed, terminated, episode_length=EPISODE_LENGTH)
        following = where_done(jnp, done, start(key, len(action)), after)
        return EnvState(following, following.obs, elapsed), Step(after.obs, after.reward, terminated, truncated)

    return Environment(
        name=f"brax/{name}",
        observation_size=raw.observation_size,
        action_size=raw.action_size,
        action_low=(-1.0,) * raw.action_size,
        action_high=(1.0,) * raw.action_size,
        episode_length=EPISODE_LENGTH,
        reset=reset,
        step=step,
    )
