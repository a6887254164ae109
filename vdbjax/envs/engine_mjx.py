"""MJX wherever JAX runs, in float32, computing what MuJoCo C computes as nearly as it can."""

import contextlib
from collections.abc import Iterator
from typing import Any

import jax
import jax.numpy as jnp
import mujoco

from vdbjax.envs.batch import where_done
from vdbjax.envs.frame import Engine, Frame, Implementation

# MJX runs the solver until the slowest environment of the batch has converged, and every pass of the line search in any
# case, so the model's own 100 and 50 are capped.
MJX_SOLVER_ITERATIONS = 20
MJX_LINE_SEARCH_ITERATIONS = 20


def make_engine_mjx(
    model: mujoco.MjModel,
    frame_skip: int,
    derived: tuple[str, ...],
    implementation: Implementation,
) -> Engine:
    """MJX, with the model's own integrator, contacts, tolerances and warm start.

    It differs from C in the caps above, in the solver where the model asks for PGS, and in float32. With
    `jax_enable_x64` it computes in float64 instead: then a step of halfcheetah or ant agrees with C's to 1e-11. A state
    that diverges goes back to the model's own, at rest, as it does in C.
    """
    from mujoco import mjx  # here, because hosts that step in C need not load it

    capped = model.__copy__()
    if model.opt.solver == mujoco.mjtSolver.mjSOL_PGS:  # MJX has none; Newton minimises the same convex cost
        capped.opt.solver = mujoco.mjtSolver.mjSOL_NEWTON
    capped.opt.iterations = min(model.opt.iterations, MJX_SOLVER_ITERATIONS)
    capped.opt.ls_iterations = min(model.opt.ls_iterations, MJX_LINE_SEARCH_ITERATIONS)
    on_device = mjx.put_model(capped, impl=implementation)
    at_rest = mujoco.MjData(capped)
    mujoco.mj_forward(capped, at_rest)
    template = mjx.put_data(capped, at_rest, impl=implementation)

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
        finite = jnp.all(jnp.isfinite(jnp.concatenate([data.qpos, data.qvel, data.qacc_warmstart])))
        data = jax.tree.map(lambda found, start: jnp.where(finite, found, start), data, template)
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
