"""One MuJoCo model behind one `advance`, on two engines.

| engine | runs on | state | numbers |
|---|---|---|---|
| `c` | threads of the host | NumPy | float64 |
| `mjx` | wherever JAX runs | JAX | float32 |

Both are pure: a `Frame` and a control in, the next `Frame` out. A Frame is all that the next step depends on, the
solver's warm start included, so that a run can be stopped and resumed bit for bit. `pack` and `on_host` carry
float64 frames through JAX.
"""

import jax
import mujoco

from vdbjax.envs.engine_c import make_engine_c
from vdbjax.envs.engine_mjx import make_engine_mjx
from vdbjax.envs.frame import Engine, EngineName, Implementation


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
    cold_start: bool = False,
    implementation: Implementation = "jax",
) -> Engine:
    """The model's physics on the engine named. `derived` names MjData fields that the task needs besides the state.

    They are as the last physics step left them, one integrator stage behind qpos, as in Gymnasium's tasks. With
    `cold_start` there are none, and C's solver starts every control step cold, so that one call steps them all.
    """
    if cold_start and derived:
        raise ValueError(f"with cold_start there are no derived fields ({', '.join(derived)})")
    if choose_engine(engine) == "c":
        return make_engine_c(model, frame_skip, derived, cold_start)
    return make_engine_mjx(model, frame_skip, derived, implementation)
