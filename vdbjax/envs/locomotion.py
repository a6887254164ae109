"""Gymnasium's MuJoCo v5 tasks: the same observation, reward, termination, time limit, frame skip and reset noise.

Beside them stands the ant whose reward is transferred to one with two disabled legs (Fu et al. 2018), on the same file.

Each task is a few functions over a `Frame`, written once for NumPy in float64 (engine `c`) and JAX in float32 (`mjx`).
The MJCF files are those of the installed gymnasium, so published returns and Minari's expert data apply.
"""

import contextlib
import os
from collections.abc import Callable
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import jax
import jax.numpy as jnp
import mujoco
import numpy as np
from jaxtyping import Array, Float

from vdbjax.envs.batch import end_of_step
from vdbjax.envs.frame import Engine, EngineName, Frame, Implementation, pack, unpack
from vdbjax.envs.on_host import on_host
from vdbjax.envs.physics import make_engine
from vdbjax.types import Environment, EnvState, Key, Step


@dataclass(frozen=True)
class Task:
    """One task. `xp` is numpy or jax.numpy, `frame` the state after the step, `control` what the actuators got."""

    gymnasium_id: str | None  # None for a task that Gymnasium does not have
    xml: str
    frame_skip: int  # physics steps a control step
    observe: Callable[[Any, Frame], Any]
    reward: Callable[[Any, Frame, Any, Any], Any]  # (xp, frame, control, velocity of the anchor in m/s)
    terminated: Callable[[Any, Frame], Any]
    anchor: Callable[[Any, Frame, mujoco.MjModel], Any]  # x and y whose change over a step is the forward velocity, m
    position_noise: float  # half-width of the uniform draw around the model's initial qpos
    velocity_noise: float  # scale of the draw around zero velocity
    normal_velocity: bool = False  # normal with that deviation, else uniform
    derived: tuple[str, ...] = ()
    episode_length: int = 1000
    change: Callable[[mujoco.MjSpec], None] = lambda spec: None  # what the model differs in from its file


def _planar(xp: Any, frame: Frame, model: mujoco.MjModel) -> Any:
    return frame.qpos[:, :1]


def _squares(xp: Any, values: Any) -> Any:
    return xp.sum(xp.square(values).reshape(len(values), -1), axis=1)


def _rows(xp: Any, *parts: Any) -> Any:
    return xp.concatenate([part.reshape(len(part), -1) for part in parts], axis=1)


def _within(low: float, values: Any, high: float) -> Any:
    return (low < values) & (values < high)


def _never(xp: Any, frame: Frame) -> Any:
    return xp.zeros(len(frame.qpos), bool)


def _clipped_state(xp: Any, frame: Frame) -> Any:
    return _rows(xp, frame.qpos[:, 1:], xp.clip(frame.qvel, -10, 10))


def _survival_reward(healthy: Callable[[Any, Frame], Any]) -> Callable[[Any, Frame, Any, Any], Any]:
    def reward(xp: Any, frame: Frame, control: Any, velocity: Any) -> Any:
        return velocity[:, 0] + 1.0 * healthy(xp, frame) - 1e-3 * _squares(xp, control)

    return reward


def _unless(healthy: Callable[[Any, Frame], Any]) -> Callable[[Any, Frame], Any]:
    return lambda xp, frame: ~healthy(xp, frame)


def _hopper_healthy(xp: Any, frame: Frame) -> Any:
    state = _rows(xp, frame.qpos[:, 2:], frame.qvel)
    upright = (frame.qpos[:, 1] > 0.7) & _within(-0.2, frame.qpos[:, 2], 0.2)
    return upright & xp.all(_within(-100.0, state, 100.0), axis=1)


def _walker_healthy(xp: Any, frame: Frame) -> Any:
    return _within(0.8, frame.qpos[:, 1], 2.0) & _within(-1.0, frame.qpos[:, 2], 1.0)


def _cheetah_reward(xp: Any, frame: Frame, control: Any, velocity: Any) -> Any:
    return velocity[:, 0] - 0.1 * _squares(xp, control)


def _ant_forces(xp: Any, frame: Frame) -> Any:
    return xp.clip(frame.derived["cfrc_ext"], -1.0, 1.0)


def _ant_healthy(xp: Any, frame: Frame) -> Any:
    finite = xp.all(xp.isfinite(_rows(xp, frame.qpos, frame.qvel)), axis=1)
    return finite & (frame.qpos[:, 2] >= 0.2) & (frame.qpos[:, 2] <= 1.0)


def _ant_reward(xp: Any, frame: Frame, control: Any, velocity: Any) -> Any:
    cost = 0.5 * _squares(xp, control) + 5e-4 * _squares(xp, _ant_forces(xp, frame))
    return velocity[:, 0] + 1.0 * _ant_healthy(xp, frame) - cost


def _humanoid_healthy(xp: Any, frame: Frame) -> Any:
    return _within(1.0, frame.qpos[:, 2], 2.0)


def _humanoid_observation(xp: Any, frame: Frame) -> Any:
    inertia, velocity, contact = (frame.derived[name][:, 1:] for name in ("cinert", "cvel", "cfrc_ext"))
    return _rows(xp, frame.qpos[:, 2:], frame.qvel, inertia, velocity, frame.derived["qfrc_actuator"][:, 6:], contact)


def _humanoid_reward(xp: Any, frame: Frame, control: Any, velocity: Any) -> Any:
    contact = xp.clip(5e-7 * _squares(xp, frame.derived["cfrc_ext"]), -np.inf, 10.0)
    return 1.25 * velocity[:, 0] + 5.0 * _humanoid_healthy(xp, frame) - 0.1 * _squares(xp, control) - contact


def _centre_of_mass(xp: Any, frame: Frame, model: mujoco.MjModel) -> Any:
    mass = model.body_mass / np.sum(model.body_mass)
    return xp.sum(frame.derived["xipos"][:, :, :2] * xp.asarray(mass)[None, :, None], axis=1)


def _fingertip_to_target(frame: Frame) -> Any:
    return frame.derived["xpos"][:, 3] - frame.derived["xpos"][:, 4]


def _reacher_observation(xp: Any, frame: Frame) -> Any:
    angle = frame.qpos[:, :2]
    return _rows(
        xp, xp.cos(angle), xp.sin(angle), frame.qpos[:, 2:], frame.qvel[:, :2], _fingertip_to_target(frame)[:, :2]
    )


def _reacher_reward(xp: Any, frame: Frame, control: Any, velocity: Any) -> Any:
    return -xp.sqrt(_squares(xp, _fingertip_to_target(frame))) - _squares(xp, control)


def _transfer_ant_reward(xp: Any, frame: Frame, control: Any, velocity: Any) -> Any:
    cost = 0.01 * _squares(xp, control) + 5e-4 * _squares(xp, _ant_forces(xp, frame))
    return velocity[:, 0] - cost - 1.0 * (frame.qpos[:, 2] < 0.2)


def _weaken(spec: mujoco.MjSpec) -> None:
    """Motors of 30 N m, in the place of 150."""
    for motor in spec.actuators:
        motor.gear = [30.0, 0, 0, 0, 0, 0]


def _disable_front_legs(spec: mujoco.MjSpec) -> None:
    """Thighs and shins of the two front legs at half their length, and motors there of 1 N m."""
    _weaken(spec)
    for leg in ("aux_1", "aux_2"):
        thigh = spec.body(leg)
        shin = thigh.first_body()
        shin.pos = 0.5 * np.array(shin.pos)
        for geom in (thigh.first_geom(), shin.first_geom()):
            geom.fromto = 0.5 * np.array(geom.fromto)
    for motor in spec.actuators:
        if motor.target in ("hip_1", "ankle_1", "hip_2", "ankle_2"):
            motor.gear = [1.0, 0, 0, 0, 0, 0]


def _transfer_ant(change: Callable[[mujoco.MjSpec], None]) -> Task:
    """Of Fu et al. 2018; without the contact forces, and without rules of termination, which would tell the reward."""
    return Task(
        None, "ant.xml", 5, lambda xp, frame: _rows(xp, frame.qpos[:, 2:], frame.qvel), _transfer_ant_reward, _never,
        lambda xp, frame, model: frame.derived["xpos"][:, 1, :2], position_noise=0.1, velocity_noise=0.1,
        normal_velocity=True, derived=("xpos", "cfrc_ext"), episode_length=500, change=change,
    )  # fmt: skip


TASKS = {
    "hopper": Task(
        "Hopper-v5", "hopper.xml", 4, _clipped_state, _survival_reward(_hopper_healthy), _unless(_hopper_healthy),
        _planar, position_noise=5e-3, velocity_noise=5e-3,
    ),
    "halfcheetah": Task(
        "HalfCheetah-v5", "half_cheetah.xml", 5, lambda xp, frame: _rows(xp, frame.qpos[:, 1:], frame.qvel),
        _cheetah_reward, _never, _planar, position_noise=0.1, velocity_noise=0.1, normal_velocity=True,
    ),
    "walker2d": Task(
        "Walker2d-v5", "walker2d_v5.xml", 4, _clipped_state, _survival_reward(_walker_healthy),
        _unless(_walker_healthy), _planar, position_noise=5e-3, velocity_noise=5e-3,
    ),
    "ant": Task(
        "Ant-v5", "ant.xml", 5,
        lambda xp, frame: _rows(xp, frame.qpos[:, 2:], frame.qvel, _ant_forces(xp, frame)[:, 1:]),
        _ant_reward, _unless(_ant_healthy), lambda xp, frame, model: frame.derived["xpos"][:, 1, :2],
        position_noise=0.1, velocity_noise=0.1, normal_velocity=True, derived=("xpos", "cfrc_ext"),
    ),
    "humanoid": Task(
        "Humanoid-v5", "humanoid.xml", 5, _humanoid_observation, _humanoid_reward, _unless(_humanoid_healthy),
        _centre_of_mass, position_noise=1e-2, velocity_noise=1e-2,
        derived=("xipos", "cinert", "cvel", "qfrc_actuator", "cfrc_ext"),
    ),
    "reacher": Task(
        "Reacher-v5", "reacher.xml", 2, _reacher_observation, _reacher_reward, _never, _planar,
        position_noise=0.1, velocity_noise=5e-3, derived=("xpos",), episode_length=50,
    ),
    "custom-ant": _transfer_ant(_weaken),
    "disabled-ant": _transfer_ant(_disable_front_legs),
}  # fmt: skip


def load_model(task: Task) -> mujoco.MjModel:
    """The task's MuJoCo model, from the MJCF file inside the installed gymnasium package."""
    import gymnasium

    path = Path(gymnasium.__file__).parent / "envs" / "mujoco" / "assets" / task.xml
    with quiet_stderr():  # half_cheetah.xml uses a deprecated attribute, and MuJoCo says so at each load
        spec = mujoco.MjSpec.from_file(str(path))
        task.change(spec)
        return spec.compile()


@contextlib.contextmanager
def quiet_stderr() -> Any:
    """Silences the process's own standard error: MuJoCo writes there past Python."""
    with open(os.devnull, "w") as sink:
        saved = os.dup(2)
        os.dup2(sink.fileno(), 2)
        try:
            yield
        finally:
            os.dup2(saved, 2)
            os.close(saved)


def draw_start(task: Task, model: mujoco.MjModel, key: Key, num_envs: int) -> tuple[Array, Array]:
    """(qpos, qvel) of fresh episodes, each its own draw of the task's reset noise."""
    key_position, key_velocity, key_goal = jax.random.split(key, 3)
    offset = jax.random.uniform(key_position, (num_envs, model.nq), minval=-1.0, maxval=1.0)
    draw = jax.random.normal if task.normal_velocity else lambda key, shape: jax.random.uniform(key, shape, minval=-1.0)
    qpos = jnp.asarray(model.qpos0, jnp.float32)[None] + task.position_noise * offset
    qvel = task.velocity_noise * draw(key_velocity, (num_envs, model.nv))
    if task.xml == "reacher.xml":  # the target is two more joints: at rest, anywhere in a disc of 0.2 m
        qpos = qpos.at[:, -2:].set(_disc(key_goal, num_envs, radius=0.2))
        qvel = qvel.at[:, -2:].set(0.0)
    return qpos, qvel


def _disc(key: Key, count: int, *, radius: float) -> Float[Array, "count 2"]:
    fraction, turn = jax.random.uniform(key, (2, count))
    angle = 2 * jnp.pi * turn
    return (radius * jnp.sqrt(fraction))[:, None] * jnp.stack([jnp.cos(angle), jnp.sin(angle)], axis=1)


def make_locomotion(name: str, *, engine: EngineName = "auto", implementation: Implementation = "jax") -> Environment:
    """One of `TASKS`, on the engine named."""
    task = TASKS[name]
    model = load_model(task)
    physics = make_engine(
        model, engine, frame_skip=task.frame_skip, derived=task.derived, implementation=implementation
    )
    low, high = np.array(model.actuator_ctrlrange, np.float32).T
    observation_size = _observation_size(task, model)
    make = _on_host_steps if physics.name == "c" else _in_jax_steps
    reset, step = make(task, model, physics, observation_size)
    return Environment(
        name=name,
        observation_size=observation_size,
        action_size=model.nu,
        action_low=tuple(low.tolist()),
        action_high=tuple(high.tolist()),
        episode_length=task.episode_length,
        reset=reset,
        step=step,
    )


def _observation_size(task: Task, model: mujoco.MjModel) -> int:
    scratch = mujoco.MjData(model)
    fields = {name: np.array(getattr(scratch, name))[None] for name in task.derived}
    frame = Frame(np.array(scratch.qpos)[None], np.array(scratch.qvel)[None], None, fields)
    return task.observe(np, frame).shape[1]


def transition(task: Task, model: mujoco.MjModel, engine: Engine, state: tuple, control: Any, start: tuple) -> tuple:
    """One control step of every episode, and a new start for those that end.

    `state` is (frame, anchor, elapsed), `start` the (qpos, qvel) to restart from. Returns the next state, its
    observation, and a Step.
    """
    xp = engine.xp
    frame, anchor, elapsed = state
    after = engine.advance(frame, control)
    moved = task.anchor(xp, after, model)
    velocity = (moved - anchor) / (model.opt.timestep * task.frame_skip)
    terminated = task.terminated(xp, after)
    elapsed, truncated, done = end_of_step(elapsed, terminated, episode_length=task.episode_length)
    step = Step(task.observe(xp, after), task.reward(xp, after, control, velocity), terminated, truncated)
    if xp is np and not done.any():
        return (after, moved, elapsed), step.next_observation, step
    following = engine.restart(done, after, *start)
    state = following, task.anchor(xp, following, model), elapsed
    return state, task.observe(xp, following), step


def _in_jax_steps(task: Task, model: mujoco.MjModel, engine: Engine, observation_size: int) -> tuple:
    def reset(key: Key, num_envs: int) -> EnvState:
        frame = engine.forward(*draw_start(task, model, key, num_envs))
        physics = frame._replace(derived={}), task.anchor(jnp, frame, model)
        return EnvState(physics, task.observe(jnp, frame), jnp.zeros(num_envs, jnp.int32))

    def step(state: EnvState, action: Array, key: Key) -> tuple[EnvState, Step]:
        start = draw_start(task, model, key, len(action))
        (frame, anchor, elapsed), observation, result = transition(
            task, model, engine, (*state.physics, state.elapsed), action, start
        )
        return EnvState((frame._replace(derived={}), anchor), observation, elapsed), result

    return reset, step


def _on_host_steps(task: Task, model: mujoco.MjModel, engine: Engine, observation_size: int) -> tuple:
    """The same steps in NumPy and float64, called from inside the compiled program."""

    def host_reset(qpos: np.ndarray, qvel: np.ndarray) -> EnvState:
        frame = engine.forward(qpos.astype(np.float64), qvel.astype(np.float64))
        anchor = task.anchor(np, frame, model)
        return EnvState._make([pack(frame, anchor), task.observe(np, frame), np.zeros(len(qpos), np.int32)])

    def host_step(bits: np.ndarray, elapsed: np.ndarray, action: np.ndarray, *start: np.ndarray) -> tuple:
        frame, anchor = unpack(bits, model)
        state, observation, result = transition(
            task, model, engine, (frame, anchor, elapsed), action.astype(np.float64), start
        )
        return EnvState(pack(*state[:2]), observation, state[2]), result

    def like_state(num_envs: int) -> EnvState:
        anchor_size = 1 if task.anchor is _planar else 2
        words = 2 * (model.nq + 2 * model.nv + anchor_size)
        shapes = (num_envs, words), (num_envs, observation_size), (num_envs,)
        return EnvState._make(map(jax.ShapeDtypeStruct, shapes, (jnp.uint32, jnp.float32, jnp.int32)))

    def like_step(num_envs: int) -> Step:
        shapes = (num_envs, observation_size), (num_envs,), (num_envs,), (num_envs,)
        return Step._make(map(jax.ShapeDtypeStruct, shapes, (jnp.float32, jnp.float32, jnp.bool_, jnp.bool_)))

    def reset(key: Key, num_envs: int) -> EnvState:
        return on_host(host_reset, like_state, *draw_start(task, model, key, num_envs))

    def step(state: EnvState, action: Array, key: Key) -> tuple[EnvState, Step]:
        start = draw_start(task, model, key, len(action))

        def like(num_envs: int) -> tuple:
            return like_state(num_envs), like_step(num_envs)

        return on_host(host_step, like, state.physics, state.elapsed, action, *start)

    return reset, step
