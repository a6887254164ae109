"""What crosses the rooms: transitions, demonstrations, environments and the one contract of every algorithm."""

from collections.abc import Callable
from typing import Any, NamedTuple

from jaxtyping import Array, Bool, Float, Int, PRNGKeyArray, Shaped, UInt8

Key = PRNGKeyArray
"""A typed key, as made by `jax.random.key`."""

Metrics = dict[str, Any]
"""Name -> scalar array. Names are `group/name`, with the unit where a mistake is likely (`kl_nats`)."""


class Transition(NamedTuple):
    """One control step, or any batch of them; `*batch` is `time num_envs` in a rollout.

    `next_observation` is the observation in which the step truly ended, never the one after a reset. An episode that
    ends by the task's own rule is `terminated`, one cut by the time limit `truncated`; never both.
    """

    observation: Float[Array, "*batch observation"]
    action: Float[Array, "*batch action"]  # as the policy drew it, before it is bounded to the task's range
    reward: Float[Array, "*batch"]
    next_observation: Float[Array, "*batch observation"]
    terminated: Bool[Array, "*batch"]
    truncated: Bool[Array, "*batch"]
    log_prob: Float[Array, "*batch"]  # nats, under the policy that acted


class Demonstrations(NamedTuple):
    """An expert's N transitions, episode after episode; each episode ends `terminated` or `truncated`.

    Actions are in the task's own units, inside its range. Subsampled demonstrations keep some transitions whole and
    drop the rest, so that `next_observation` is always the true successor.
    """

    observation: Shaped[Any, "N observation"]
    action: Shaped[Any, "N action"]
    next_observation: Shaped[Any, "N observation"]
    reward: Shaped[Any, " N"]
    terminated: Shaped[Any, " N"]
    truncated: Shaped[Any, " N"]


class EnvState(NamedTuple):
    """A batch of running episodes."""

    physics: Any  # whatever the task needs to go on; every leaf leads with num_envs
    observation: Float[Array, "num_envs observation"]  # what the policy acts on next; after a reset, the new episode's
    elapsed: Int[Array, " num_envs"]  # control steps since the reset


class Step(NamedTuple):
    """What one control step gave. `next_observation` is the true one, also where the episode ended."""

    next_observation: Float[Array, "num_envs observation"]
    reward: Float[Array, " num_envs"]
    terminated: Bool[Array, " num_envs"]
    truncated: Bool[Array, " num_envs"]


class Posture(NamedTuple):
    """How a character stands in the world."""

    rotation: Float[Array, "*batch joints 4"]  # (w, x, y, z): the root's in the world, then each joint's own
    position: Float[Array, "*batch bodies 3"]  # metres; the root first


class Film(NamedTuple):
    """A motion as pictures, in equal steps over its phase."""

    frames: UInt8[Any, "N height width 3"]
    phase: Float[Any, "N 2"]  # cosine and sine


class Pictures(NamedTuple):
    """Images of one size, and what is known of each; also a batch that a model of images learns from."""

    images: UInt8[Any, "N height width channels"]
    labels: Int[Any, " N"] | None = None  # classes, counted from 0
    sources: UInt8[Any, "N height width channels"] | None = None  # the picture that each is a translation of


class Environment(NamedTuple):
    """A batch of one task, as pure functions. Finished episodes restart by themselves, each from a new draw.

    `reset(key, num_envs)` starts a batch; `step(state, action, key)` advances every episode by one control step.
    `action` is in the task's own units and must lie in `[action_low, action_high]`.
    """

    name: str
    observation_size: int
    action_size: int
    action_low: tuple[float, ...]
    action_high: tuple[float, ...]
    episode_length: int  # control steps until an episode is truncated
    reset: Callable[[Key, int], EnvState]
    step: Callable[[EnvState, Float[Array, "num_envs action"], Key], tuple[EnvState, Step]]
    phase_size: int = 0  # trailing entries of an observation: cosine and sine of the phase, where the task has one
    demonstrations: Demonstrations | None = None  # what the task itself brings; actions are 0, as nobody knows them
    follow: Callable[[EnvState], tuple[Posture, Posture]] | None = None  # the character's, the reference motion's
    picture: Callable[[Array], Array] | None = None  # observations [*batch, n] -> uint8 pictures [*batch, h, w, 3]
    film: Film | None = None  # the demonstration of a task that has nothing but pictures of one


class Algorithm(NamedTuple):
    """The one contract: three pure functions.

    `init(key)` gives a fresh state. `update(state, batch)` is one iteration, exactly a `lax.scan` body (`batch` is None
    where the method makes its own data). `evaluate(state, key)` gives metrics and changes nothing.

    A method that learns a reward gives it as `reward(params, observation, action, next_observation)`, in the task's own
    units, with `params` the state's `learnt_reward`.
    """

    init: Callable[[Key], Any]
    update: Callable[[Any, Any], tuple[Any, Metrics]]
    evaluate: Callable[[Any, Key], Metrics]
    reward: Callable[[Any, Any, Any, Any], Any] | None = None
