"""How good a policy is: its true return over whole episodes, and episodes in Gymnasium's own environments."""

from collections.abc import Callable
from typing import Any, NamedTuple

import numpy as np
from jaxtyping import Float, Shaped
from numpy.typing import ArrayLike


class ReturnSummary(NamedTuple):
    """Mean and spread of undiscounted returns."""

    mean: float
    std: float  # of the returns themselves, with n - 1
    standard_error: float  # of the mean: std / sqrt(n)
    min: float
    max: float


def summarize(returns: ArrayLike) -> ReturnSummary:
    """Mean and spread in float64. Raises ValueError for fewer than two returns, which have no spread."""
    values = np.asarray(returns, np.float64)
    if values.size < 2:
        raise ValueError(f"the spread of {values.size} returns is not defined; at least 2 are needed")
    std = float(values.std(ddof=1))
    return ReturnSummary(
        float(values.mean()), std, std / float(np.sqrt(values.size)), float(values.min()), float(values.max())
    )


def gymnasium_returns(
    envs: Any, act: Callable[[Shaped[np.ndarray, "envs observation"], int], ArrayLike], *, num_episodes: int, seed: int
) -> Float[np.ndarray, " episodes"]:
    """Undiscounted returns of whole episodes, played in a `gymnasium.vector.VectorEnv`, batch after batch.

    `act(observation, step)` gives the actions of all environments, always at the same batch size. Environment i of
    batch b is reset by Gymnasium with seed `seed + b * num_envs + i`. Of each environment only the first episode of a
    batch counts: taking whichever end first would favour short ones.
    """
    returns: list[float] = []
    step = 0
    while len(returns) < num_episodes:
        observation, _ = envs.reset(seed=seed + len(returns))
        total, alive = np.zeros(envs.num_envs), np.ones(envs.num_envs, bool)
        while alive.any():
            observation, reward, terminated, truncated, _ = envs.step(np.asarray(act(observation, step)))
            total += np.where(alive, reward, 0.0)
            alive &= ~(terminated | truncated)
            step += 1
        returns += total.tolist()
    return np.array(returns[:num_episodes])
