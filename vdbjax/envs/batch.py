"""What every batch of episodes shares: the time limit, and the choice between going on and starting anew."""

from typing import Any

import jax
from jaxtyping import Bool, Int, Shaped

Rows = Shaped[Any, " num_envs"]


def end_of_step(
    elapsed: Int[Any, " num_envs"], terminated: Bool[Any, " num_envs"], *, episode_length: int
) -> tuple[Rows, Rows, Rows]:
    """(elapsed for the next step, truncated, done). The time limit cuts an episode only where its own rule has not."""
    truncated = (elapsed + 1 >= episode_length) & ~terminated
    done = terminated | truncated
    return (elapsed + 1) * ~done, truncated, done


def where_done(xp: Any, done: Bool[Any, " num_envs"], fresh: Any, ongoing: Any) -> Any:
    """Rows of `fresh` where an episode is done, of `ongoing` elsewhere, leaf by leaf. `xp` is numpy or jax.numpy."""

    def choose(new: Any, old: Any) -> Any:
        return xp.where(done.reshape(-1, *[1] * (old.ndim - 1)), new, old)

    return jax.tree.map(choose, fresh, ongoing)
