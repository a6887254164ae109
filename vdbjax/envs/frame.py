"""What physics steps: a batch of MuJoCo's states, and the engine that takes one to the next."""

from collections.abc import Callable
from typing import Any, Literal, NamedTuple

import mujoco
import numpy as np

EngineName = Literal["auto", "c", "mjx"]
Implementation = Literal["jax", "warp"]


class Frame(NamedTuple):
    """A batch of physical states; every leaf leads with `num_envs`."""

    qpos: Any  # generalised positions: metres, radians, quaternions
    qvel: Any  # generalised velocities: metres and radians per second
    warmstart: Any  # accelerations that the constraint solver starts from
    derived: dict[str, Any]  # MjData fields by name


class Engine(NamedTuple):
    """A MuJoCo model's physics. `control` is `[num_envs, nu]`; a control step is `frame_skip` physics steps."""

    name: str
    xp: Any  # numpy or jax.numpy: what frames are made of
    advance: Callable[[Frame, Any], Frame]
    forward: Callable[[Any, Any], Frame]  # (qpos, qvel) -> a frame at rest in the solver
    restart: Callable[[Any, Frame, Any, Any], Frame]  # (done, ongoing, qpos, qvel) -> the next frame


def pack(frame: Frame, anchor: np.ndarray) -> np.ndarray:
    """The float64 state as pairs of uint32, `[num_envs, 2 k]`: JAX computes in float32 and carries these unchanged."""
    state = np.concatenate([frame.qpos, frame.qvel, frame.warmstart, anchor], axis=1)
    return np.ascontiguousarray(state).view(np.uint32)


def unpack(bits: np.ndarray, model: mujoco.MjModel) -> tuple[Frame, np.ndarray]:
    """The frame and anchor that were packed, less the derived fields, which no later step depends on."""
    state = np.ascontiguousarray(bits).view(np.float64)
    velocity, start = model.nq, model.nq + model.nv
    anchor = start + model.nv
    return Frame(state[:, :velocity], state[:, velocity:start], state[:, start:anchor], {}), state[:, anchor:]
