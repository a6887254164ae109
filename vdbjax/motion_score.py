"""How well a policy follows a motion: its errors over whole episodes, in every task that has a reference motion."""

from typing import Any, NamedTuple

import jax
import jax.numpy as jnp
import numpy as np
from jaxtyping import Array, Bool, Float

from vdbjax.evaluation.rotation_error import MotionErrors, dtw_rotation_error, motion_errors, over_episode
from vdbjax.rl.policy import Act, Policy, act_by_mean
from vdbjax.rl.rollout import Trace, trace_episodes
from vdbjax.types import Algorithm, Environment, EnvState, Key, Metrics, Posture


class Following(NamedTuple):
    """Episodes of a policy beside the reference."""

    errors: MotionErrors  # one of each kind an episode
    returns: Float[Array, " episodes"]  # undiscounted
    fell: Bool[Array, " episodes"]
    trace: Trace  # `seen` is (character, reference), as `Posture`


def follow_reference(environment: Environment, act: Act, key: Key, *, num_episodes: int) -> Following:
    """Whole episodes from fresh starts. Raises ValueError where the task has no reference motion."""
    follow = environment.follow
    if follow is None:
        raise ValueError(f"{environment.name} has no reference motion; take a task such as mocap/run")

    def see(env: EnvState) -> tuple[Posture, Posture]:
        return follow(env)

    length = environment.episode_length
    trace = trace_episodes(environment, act, key, num_episodes=num_episodes, num_steps=length, see=see)
    errors = over_episode(motion_errors(*trace.seen), trace.alive, trace.terminated)
    returns = jnp.sum(jnp.where(trace.alive, trace.reward, 0.0), axis=0)
    # A fall in the very last step is none: no step was left to be lost.
    return Following(errors, returns, trace.terminated[-1], trace)


def dtw_errors(trace: Trace) -> Float[np.ndarray, " episodes"]:
    """Of each episode, up to its end: the rotation error after dynamic time warping, radians."""
    character, reference = (np.asarray(posture.rotation) for posture in trace.seen)
    lengths = np.asarray(trace.alive).sum(axis=0)
    pairs = [(character[:n, episode], reference[:n, episode]) for episode, n in enumerate(lengths)]
    return np.array([dtw_rotation_error(*pair) for pair in pairs])


def scored_by_motion(algorithm: Algorithm, environment: Environment, policy: Policy, *, num_episodes: int) -> Algorithm:
    """The same algorithm, evaluated by how its mean actions follow the reference motion."""

    def evaluate(state: Any, key: Key) -> Metrics:
        act = act_by_mean(policy, state.actor)
        following = follow_reference(environment, act, key, num_episodes=num_episodes)
        means = {f"eval/{name}": jnp.mean(values) for name, values in following.errors._asdict().items()}
        return means | {
            "eval/return": jnp.mean(following.returns),
            "eval/fallen_fraction": jnp.mean(following.fell.astype(jnp.float32)),
        }

    return algorithm._replace(evaluate=evaluate)


def score_policy(environment: Environment, policy: Policy, *, num_episodes: int) -> Any:
    """(actor, key) -> {name: one number an episode} on the host, by mean actions; compiled once for many actors."""

    def episodes(actor: Any, key: Key) -> Following:
        return follow_reference(environment, act_by_mean(policy, actor), key, num_episodes=num_episodes)

    compiled = jax.jit(episodes)

    def score(actor: Any, key: Key) -> dict[str, np.ndarray]:
        found = jax.device_get(compiled(actor, key))
        errors = {name: np.asarray(values, np.float64) for name, values in found.errors._asdict().items()}
        return errors | {
            "dtw_rotation_rad": dtw_errors(found.trace),
            "steps_up": found.trace.alive.sum(axis=0).astype(np.float64),
            "fallen": found.fell.astype(np.float64),
            "return": np.asarray(found.returns, np.float64),
        }

    return score
