"""MuJoCo C on the threads of a host, in NumPy and float64."""

import itertools
import os
import threading
from collections.abc import Callable
from concurrent.futures import ThreadPoolExecutor

import jax
import mujoco
import numpy as np
from mujoco import rollout

from vdbjax.envs.frame import Engine, Frame

# What mj_setState and mj_getState take and give: a Frame's first three parts side by side.
STATE = int(mujoco.mjtState.mjSTATE_QPOS | mujoco.mjtState.mjSTATE_QVEL | mujoco.mjtState.mjSTATE_WARMSTART)


def make_engine_c(model: mujoco.MjModel, frame_skip: int, derived: tuple[str, ...], cold_start: bool) -> Engine:
    """MuJoCo C. The threads share the model; each has data of its own, and MuJoCo lets the GIL go while it steps."""
    num_threads = count_threads()
    pool = ThreadPoolExecutor(num_threads, thread_name_prefix="mujoco")
    local = threading.local()
    shapes = {name: getattr(mujoco.MjData(model), name).shape for name in derived}

    def data() -> mujoco.MjData:
        if not hasattr(local, "data"):
            local.data = mujoco.MjData(model)
        return local.data

    def run_all(step: Callable[[mujoco.MjData, int], None], frame: Frame) -> Frame:
        num_envs = len(frame.qpos)
        rows = np.concatenate(frame[:3], axis=1, dtype=np.float64)  # the steps leave what they become there
        fields = {name: np.empty((num_envs, *shape)) for name, shape in shapes.items()}
        # Two chunks a thread, so that one slow contact does not leave the others idle.
        edges = np.linspace(0, num_envs, min(num_envs, 2 * num_threads) + 1).astype(int)
        chunks = [range(a, b) for a, b in itertools.pairwise(edges)]
        list(pool.map(lambda chunk: _step_rows(model, data(), step, chunk, rows, fields), chunks))
        qpos, qvel, warmstart = np.split(rows, [model.nq, model.nq + model.nv], axis=1)
        return Frame(qpos, qvel, warmstart, fields)

    def advance(frame: Frame, control: np.ndarray) -> Frame:
        def step(scratch: mujoco.MjData, row: int) -> None:
            scratch.ctrl = control[row]
            mujoco.mj_step(model, scratch, frame_skip)

        return run_all(step, frame)

    def forward(qpos: np.ndarray, qvel: np.ndarray) -> Frame:
        def settle(scratch: mujoco.MjData, row: int) -> None:
            scratch.ctrl = 0.0
            mujoco.mj_forward(model, scratch)

        return run_all(settle, Frame(qpos, qvel, np.zeros_like(qvel), {}))

    def restart(done: np.ndarray, ongoing: Frame, qpos: np.ndarray, qvel: np.ndarray) -> Frame:
        rows = np.flatnonzero(done)
        if rows.size:
            fresh = forward(qpos[rows], qvel[rows])
            for new, old in zip(jax.tree.leaves(fresh), jax.tree.leaves(ongoing), strict=True):
                old[rows] = new
        return ongoing

    return Engine("c", np, _rolled(model, frame_skip) if cold_start else advance, forward, restart)


def count_threads() -> int:
    """As many as this process may use processors."""
    return len(os.sched_getaffinity(0)) if hasattr(os, "sched_getaffinity") else os.cpu_count() or 1


def _step_rows(
    model: mujoco.MjModel,
    scratch: mujoco.MjData,
    step: Callable[[mujoco.MjData, int], None],
    chunk: range,
    rows: np.ndarray,
    fields: dict[str, np.ndarray],
) -> None:
    """Steps some of the `rows` of states in place, in one thread's data, and writes what is derived from each.

    The lock of the interpreter is held between the steps, so that this is to be short.
    """
    derived = [(getattr(scratch, name), target) for name, target in fields.items()]
    for index in chunk:
        mujoco.mj_setState(model, scratch, rows[index], STATE)
        step(scratch, index)
        if "cfrc_ext" in fields:
            mujoco.mj_rnePostConstraint(model, scratch)
        mujoco.mj_getState(model, scratch, rows[index], STATE)
        for source, target in derived:
            target[index] = source


def _rolled(model: mujoco.MjModel, frame_skip: int) -> Callable[[Frame, np.ndarray], Frame]:
    """A control step of all environments in one call of MuJoCo's own threads, which never wait for the interpreter's
    lock as threads of Python do after every environment.

    MuJoCo does not tell such a call's last warm start, so the solver starts from none, which changes how long it takes
    and not what it converges to.
    """
    num_threads = count_threads()
    pool, lock = rollout.Rollout(nthread=num_threads), threading.Lock()
    scratch = [mujoco.MjData(model) for _ in range(num_threads)]

    def advance(frame: Frame, control: np.ndarray) -> Frame:
        start = np.concatenate([np.zeros((len(control), 1)), frame.qpos, frame.qvel], axis=1)
        held = np.repeat(control[:, None], frame_skip, axis=1)
        with lock:
            after = pool.rollout(model, scratch, start, held)[0][:, -1, 1:]
        return Frame(after[:, : model.nq], after[:, model.nq :], frame.warmstart, {})

    return advance
