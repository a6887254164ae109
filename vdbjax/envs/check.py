"""Whether an environment of one's own keeps the protocol, told before anything is compiled for it."""

from typing import Any

import jax
import jax.numpy as jnp
import numpy as np

from vdbjax.sharding import in_whole_batches
from vdbjax.types import Environment


def check_environment(environment: Environment) -> None:
    """Traces a reset and a step; nothing is run.

    Raises ValueError where they give other shapes or types than the environment says, or a step another state than a
    reset does, and for actions without a range, which no policy could be bounded to.
    """
    _check_range(environment)
    batch = in_whole_batches(3)
    key = jax.random.key(0)
    state = jax.eval_shape(lambda key: environment.reset(key, batch), key)
    action = jax.ShapeDtypeStruct((batch, environment.action_size), jnp.float32)
    after, seen = jax.eval_shape(environment.step, state, action, key)
    observation = (batch, environment.observation_size), "float32"
    for name, found, (shape, kind) in (
        ("the observation after a reset", state.observation, observation),
        ("next_observation", seen.next_observation, observation),
        ("reward", seen.reward, ((batch,), "float32")),
        ("terminated", seen.terminated, ((batch,), "bool")),
        ("truncated", seen.truncated, ((batch,), "bool")),
    ):
        if (found.shape, found.dtype.name) != (shape, kind):
            raise ValueError(
                f"{name} of {environment.name} must be {kind} {shape} for {batch} episodes, not {found.dtype.name} "
                f"{found.shape}"
            )
    if told := _difference(state, after):
        raise ValueError(f"a step of {environment.name} gives another state than a reset: {told}")


def _difference(state: Any, after: Any) -> str | None:
    """What tells two states apart; None where nothing does."""
    before, later = (
        {jax.tree_util.keystr(path): f"{leaf.dtype.name} {leaf.shape}" for path, leaf in paths}
        for paths in (jax.tree_util.tree_leaves_with_path(each) for each in (state, after))
    )
    for name in before | later:
        if before.get(name) != later.get(name):
            return f"{name} was {before.get(name, 'not there')}, and is {later.get(name, 'not there')}"
    return None


def _check_range(environment: Environment) -> None:
    low, high = np.asarray(environment.action_low), np.asarray(environment.action_high)
    for name, bound in (("action_low", low), ("action_high", high)):
        if bound.shape != (environment.action_size,) or not np.isfinite(bound).all():
            raise ValueError(
                f"{name} of {environment.name} must be {environment.action_size} finite numbers, not {bound}"
            )
    if not np.all(low < high):
        raise ValueError(f"action_low {low} of {environment.name} must lie below action_high {high}")
