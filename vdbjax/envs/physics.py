"""One MuJoCo model behind one `advance`, on two engines.

| engine | runs on | state | numbers |
|---|---|---|---|
| `c` | threads of the host | NumPy | float64 |
| `mjx` | wherever JAX runs | JAX | float32 |

Both are pure: a `Frame` and a control in, the next `Frame` out. A Frame is all that the next step depends on, the
solver's warm start included, so that a run can be stopped and resumed bit for bit. `on_host` carries float64 frames
through JAX.
"""

import contextlib
import itertools
import math
import os
import threading
from collections.abc import Callable, Iterator, Sequence
from concurrent.futures import ThreadPoolExecutor
from typing import Any, Literal, NamedTuple

import jax
import jax.numpy as jnp
import mujoco
import numpy as np
from mujoco import rollout

from vdbjax.envs.batch import on_each_device, where_done

EngineName = Literal["auto", "c", "mjx"]
Implementation = Literal["jax", "warp"]

# MJX runs the solver until the slowest environment of the batch has converged, and every pass of the line search in any
# case, so the model's own 100 and 50 are capped.
MJX_SOLVER_ITERATIONS = 20
MJX_LINE_SEARCH_ITERATIONS = 20

# What mj_setState and mj_getState take and give: a Frame's first three parts side by side.
PLACE = int(mujoco.mjtState.mjSTATE_QPOS | mujoco.mjtState.mjSTATE_QVEL)
STATE = PLACE | int(mujoco.mjtState.mjSTATE_WARMSTART)


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


def choose_engine(engine: EngineName) -> str:
    """`auto` is `c` where JAX computes on the CPU and `mjx` on accelerators."""
    if engine == "auto":
        return "c" if jax.default_backend() == "cpu" else "mjx"
    return engine


def make_engine(
    model: mujoco.MjModel,
    engine: EngineName,
    *,
    frame_skip: int,
    derived: tuple[str, ...] = (),
    fresh_kinematics: bool = False,
    implementation: Implementation = "jax",
) -> Engine:
    """The model's physics on the engine named. `derived` names MjData fields that the task needs besides the state.

    They are as the last physics step left them, one integrator stage behind qpos, as in Gymnasium's tasks; with
    `fresh_kinematics` places and velocities of bodies are worked out again from where the step ended, and in C the
    solver starts every control step cold.
    """
    if choose_engine(engine) == "c":
        host = _host_engine(model, frame_skip, derived)
        return host._replace(advance=_rolled(model, frame_skip, derived)) if fresh_kinematics else host
    return _mjx_engine(model, frame_skip, derived, fresh_kinematics, implementation)


def _num_threads() -> int:
    return len(os.sched_getaffinity(0)) if hasattr(os, "sched_getaffinity") else os.cpu_count() or 1


def _host_engine(model: mujoco.MjModel, frame_skip: int, derived: tuple[str, ...]) -> Engine:
    """MuJoCo C. The threads share the model; each has data of its own, and MuJoCo lets the GIL go while it steps."""
    num_threads = _num_threads()
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

    return Engine("c", np, advance, forward, restart)


def _rolled(model: mujoco.MjModel, frame_skip: int, derived: tuple[str, ...]) -> Callable[[Frame, np.ndarray], Frame]:
    """A control step of all environments in one call of MuJoCo's threads, which never wait for the interpreter's lock:
    the humanoid's 128 took 65 to 80 microseconds each by threads of Python, and 50 to 55 so.

    MuJoCo does not tell such a call's warm start, so there is none: Newton's solver took no longer without.
    """
    num_threads = _num_threads()
    pool, lock = rollout.Rollout(nthread=num_threads), threading.Lock()
    scratch = [mujoco.MjData(model) for _ in range(num_threads)]
    shapes = {name: getattr(scratch[0], name).shape for name in derived}

    def advance(frame: Frame, control: np.ndarray) -> Frame:
        start = np.concatenate([np.zeros((len(control), 1)), frame.qpos, frame.qvel], axis=1)
        held = np.repeat(control[:, None], frame_skip, axis=1)
        fields = {name: np.empty((len(control), *shape)) for name, shape in shapes.items()}
        with lock:
            after = pool.rollout(model, scratch, start, held)[0][:, -1, 1:]
            _kinematics(model, scratch[0], after, fields)
        return Frame(after[:, : model.nq], after[:, model.nq :], frame.warmstart, fields)

    return advance


def _kinematics(model: mujoco.MjModel, scratch: mujoco.MjData, rows: np.ndarray, fields: dict[str, np.ndarray]) -> None:
    """Places and velocities of bodies in states `[num_envs, nq + nv]`, into `fields`."""
    derived = [(getattr(scratch, name), target) for name, target in fields.items()]
    for index, row in enumerate(rows):
        mujoco.mj_setState(model, scratch, row, PLACE)
        mujoco.mj_kinematics(model, scratch)
        mujoco.mj_comPos(model, scratch)
        mujoco.mj_comVel(model, scratch)
        for source, target in derived:
            target[index] = source


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


def _mjx_engine(
    model: mujoco.MjModel,
    frame_skip: int,
    derived: tuple[str, ...],
    fresh_kinematics: bool,
    implementation: Implementation,
) -> Engine:
    """MJX, with the model's own integrator, contacts, tolerances and warm start.

    It differs from C in the caps above, in the solver where the model asks for PGS, and in float32. With
    `jax_enable_x64` it computes in float64 instead: then a step of halfcheetah or ant agrees with C's to 1e-11.
    """
    from mujoco import mjx  # here, because hosts that step in C need not load it

    capped = model.__copy__()
    if model.opt.solver == mujoco.mjtSolver.mjSOL_PGS:  # MJX has none; Newton minimises the same convex cost
        capped.opt.solver = mujoco.mjtSolver.mjSOL_NEWTON
    capped.opt.iterations = min(model.opt.iterations, MJX_SOLVER_ITERATIONS)
    capped.opt.ls_iterations = min(model.opt.ls_iterations, MJX_LINE_SEARCH_ITERATIONS)
    on_device = mjx.put_model(capped, impl=implementation)
    template = mjx.make_data(capped, impl=implementation)

    def frame_of(data: Any) -> Frame:
        if "cfrc_ext" in derived:
            data = mjx.rne_postconstraint(on_device, data)
        fields = {name: _mjx_field(data, name) for name in derived}
        return Frame(data.qpos, data.qvel, data.qacc_warmstart, fields)

    def step(data: Any) -> Any:
        """In the dtypes it came in: with `jax_enable_x64`, MJX counts the wraps of tendons in int64."""
        return jax.tree.map(lambda new, old: new.astype(old.dtype), mjx.step(on_device, data), data)

    @_mjx_traced_as_c()
    def advance_one(frame: Frame, control: jax.Array) -> Frame:
        data = template.replace(qpos=frame.qpos, qvel=frame.qvel, qacc_warmstart=frame.warmstart, ctrl=control)
        data, _ = jax.lax.scan(lambda data, _: (step(data), None), data, length=frame_skip)
        if fresh_kinematics:
            data = mjx.com_vel(on_device, mjx.com_pos(on_device, mjx.kinematics(on_device, data)))
        return frame_of(data)

    @_mjx_traced_as_c()
    def forward_one(qpos: jax.Array, qvel: jax.Array) -> Frame:
        data = template.replace(qpos=qpos, qvel=qvel)
        return frame_of(mjx.forward(on_device, data) if derived else data)

    def restart(done: jax.Array, ongoing: Frame, qpos: jax.Array, qvel: jax.Array) -> Frame:
        # Batches finish an episode at nearly every step, so skipping the forward pass when none did would save little.
        return where_done(jnp, done, jax.vmap(forward_one)(qpos, qvel), ongoing)

    return Engine("mjx", jnp, jax.vmap(advance_one), jax.vmap(forward_one), restart)


@contextlib.contextmanager
def _mjx_traced_as_c() -> Iterator[None]:
    """While a step is traced, MJX's `jax` implementation computes what C computes where the two differ by design.

    Accelerators multiply float32 matrices with 8 to 11 bits unless told otherwise, too few for the constraint Hessian:
    products are taken in full.

    implicitfast: an actuator whose force is clipped does not damp, so C leaves its kv out of the derivative. MJX keeps
    it, and the mocap humanoid was 3 cm off after 0.3 s of running.

    The friction pyramid of a capsule on a plane: C lays it along the capsule; MJX 3.17 along y where the capsule stands
    within 30 degrees of the normal (github.com/google-deepmind/mujoco/issues/2774), as the ant's ankles do, and one
    control step then puts joint velocities off by up to 2 rad/s.
    """
    from mujoco.mjx._src import collision_driver, derivative

    derive = derivative.deriv_smooth_vel

    def derive_as_c(model: Any, data: Any) -> Any:
        low, high = model.actuator_forcerange[:, 0], model.actuator_forcerange[:, 1]
        clipped = model.actuator_forcelimited & ((data.actuator_force <= low) | (data.actuator_force >= high))
        damping = jnp.where(clipped, 0.0, model.actuator_biasprm[:, 2])
        return derive(model.replace(actuator_biasprm=model.actuator_biasprm.at[:, 2].set(damping)), data)

    table, pair = collision_driver._COLLISION_FUNC, (mujoco.mjtGeom.mjGEOM_PLANE, mujoco.mjtGeom.mjGEOM_CAPSULE)
    original = table[pair]

    def collide(model: Any, data: Any, key: Any, geoms: jax.Array) -> tuple:
        distance, position, frame = original(model, data, key, geoms)
        normal, axis = frame[:, 0], jnp.repeat(data.geom_xmat[geoms[:, 1], :, 2], original.ncon, axis=0)
        tangent = axis - normal * jnp.sum(normal * axis, axis=1, keepdims=True)
        length = jnp.linalg.norm(tangent, axis=1, keepdims=True)
        tangent = jnp.where(length > 1e-6, tangent / length, frame[:, 1])
        return distance, position, jnp.stack([normal, tangent, jnp.cross(normal, tangent)], axis=1)

    collide.ncon = original.ncon  # type: ignore[attr-defined]
    table[pair], derivative.deriv_smooth_vel = collide, derive_as_c
    try:
        with jax.default_matmul_precision("highest"), jax.numpy_rank_promotion("allow"):  # MJX leans on promotion
            yield
    finally:
        table[pair], derivative.deriv_smooth_vel = original, derive


def _mjx_field(data: Any, name: str) -> jax.Array:
    return getattr(data._impl if hasattr(data._impl, name) else data, name)


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


def on_host(function: Callable[..., Any], like: Callable[[int], Any], *arguments: Any) -> Any:
    """`function(*arguments)` in NumPy, called from inside jit, scan and vmap, once a device.

    Every array leads with the environments and has elements of 4 bytes, or truth values. Under vmap the added axes are
    laid before them, and the function sees one long batch: many seeds cost one call. `like(num_envs)` is a tree of
    `jax.ShapeDtypeStruct` of the result. All arrays cross as one, each way: every one costs some 20 microseconds.
    """
    specs = [jax.ShapeDtypeStruct(argument.shape, argument.dtype) for argument in arguments]
    results, structure = jax.tree.flatten(like(1))

    def call(words: Any) -> np.ndarray:
        lead = np.shape(words)[:-1]
        flat = np.asarray(words).reshape(-1, np.shape(words)[-1])
        found = jax.tree.leaves(function(*_split(np, flat, specs)))
        return _joined(np, [np.asarray(x, spec.dtype) for x, spec in zip(found, results)]).reshape(*lead, -1)

    def local(words: jax.Array) -> jax.Array:
        width = sum(math.prod(spec.shape[1:]) for spec in results)
        spec = jax.ShapeDtypeStruct((len(words), width), jnp.uint32)
        return jax.pure_callback(call, spec, words, vmap_method="broadcast_all")

    words = on_each_device(local)(_joined(jnp, arguments))
    return jax.tree.unflatten(structure, _split(jnp, words, results))


def _joined(xp: Any, arrays: Sequence[Any]) -> Any:
    """The arrays side by side, bit for bit: `[num_envs, words]`."""
    words = [(array.astype(xp.uint32) if array.dtype == bool else array).view(xp.uint32) for array in arrays]
    return xp.concatenate([word.reshape(len(word), -1) for word in words], axis=1)


def _split(xp: Any, words: Any, specs: Sequence[jax.ShapeDtypeStruct]) -> list[Any]:
    """The inverse of `_joined`."""
    parts, start = [], 0
    for spec in specs:
        stop = start + math.prod(spec.shape[1:])
        part = words[:, start:stop].reshape(-1, *spec.shape[1:])
        if xp is np:
            part = np.ascontiguousarray(part)
        parts.append(part.astype(bool) if spec.dtype == bool else part.view(spec.dtype))
        start = stop
    return parts
