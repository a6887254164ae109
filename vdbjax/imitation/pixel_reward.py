"""Imitation of a film by comparing pictures pixel by pixel: the baseline of VDB's video imitation (section 5.1)."""

from dataclasses import dataclass
from typing import Any

import jax
import jax.numpy as jnp
from jaxtyping import Array, Float, UInt8

from vdbjax.rl import reinforcement
from vdbjax.rl.optimizer import OptimizerConfig
from vdbjax.rl.policy import Policy
from vdbjax.types import Algorithm, Environment, Film


@dataclass(frozen=True)
class Config(OptimizerConfig):
    """Reinforcement learning on the likeness of pictures."""


def pixel_reward(
    shown: UInt8[Array, "*batch height width colours"], wanted: UInt8[Array, "*batch height width colours"]
) -> Float[Array, "*batch"]:
    """r = 1 - ||M* - M||^2 / (3 * 64^2), of colours in [0, 1]: one less the mean squared difference, in [0, 1]."""
    difference = (wanted.astype(jnp.float32) - shown.astype(jnp.float32)) / 255.0
    return 1.0 - jnp.mean(difference**2, axis=(-3, -2, -1))


def frame_at(film: Film, phase: Float[Array, "*batch 2"]) -> UInt8[Array, "*batch height width colours"]:
    """The film's frame nearest to a phase given as (cosine, sine)."""
    nearest = jnp.argmax(jnp.matmul(phase, jnp.asarray(film.phase).T, precision="highest"), axis=-1)
    return jnp.asarray(film.frames)[nearest]


def make(config: Config, environment: Environment, policy: Policy, **sizes: Any) -> Algorithm:
    """PPO on the likeness of what each step led to and the film's frame of the same phase.

    `sizes` are those of `reinforcement.make`. Raises ValueError where the task has no film.
    """
    picture, film = environment.picture, environment.film
    if picture is None or film is None:
        raise ValueError(f"{environment.name} has no film to imitate; take a task such as video/run")

    def of_step(observation: Array) -> Array:
        return pixel_reward(picture(observation), frame_at(film, observation[..., -environment.phase_size :]))

    def reward(params: Any, observation: Array, action: Array, next_observation: Array) -> Array:
        return jax.lax.map(of_step, next_observation)  # one control step at a time: the pictures of all are large

    algorithm = reinforcement.Config(config.ppo, trpo=config.trpo, optimizer=config.optimizer)
    return reinforcement.make(algorithm, environment, policy, reward=reinforcement.Reward(reward, ()), **sizes)
