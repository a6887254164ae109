"""Tasks by name."""

from dataclasses import dataclass

from jaxtyping import Array

from vdbjax import limits
from vdbjax.envs.frame import EngineName, Implementation
from vdbjax.envs.locomotion import TASKS, make_locomotion
from vdbjax.envs.maze import make_maze
from vdbjax.envs.mocap_humanoid import Targets, Velocities, make_mocap
from vdbjax.envs.physics import choose_engine
from vdbjax.envs.video import make_video
from vdbjax.sharding import over_devices
from vdbjax.types import Environment, EnvState, Key, Step


@dataclass(frozen=True)
class EnvironmentConfig:
    """Which task, simulated by what."""

    env: str = "hopper"
    """hopper, halfcheetah, walker2d, ant, humanoid, reacher (Gymnasium v5), custom-ant, disabled-ant (transfer),
    brax/NAME, mocap/CLIP (name or file), video/CLIP, or maze/NAME (c, c-transfer, s, s-transfer)."""
    engine: EngineName = "auto"
    """c: MuJoCo threads on the host; mjx: on the accelerator; auto: c where JAX runs on the CPU, else mjx, and for
    mazes their closed form."""
    impl: Implementation = "jax"
    """What mjx runs on: jax, or warp (NVIDIA GPUs, with `pip install 'mujoco-mjx[warp]'`)."""
    backend: str = "spring"
    """Brax's pipeline, for brax/NAME: spring, positional, generalized, mjx."""
    targets: Targets = "absolute"
    """PD targets of mocap/CLIP: absolute, or relative to the clip (which gives the pose away)."""
    velocities: Velocities = "instantaneous"
    """Velocities observed in mocap/CLIP: of the moment (smoothed in the clip), or their mean over the last control
    step, of character and clip alike."""


def engine_of(config: EnvironmentConfig) -> str:
    """What simulates the task on this machine: c, mjx, the closed form of mazes, or a Brax pipeline."""
    if config.env.startswith("maze/") and config.engine == "auto":
        return "closed form"
    return config.backend if config.env.startswith("brax/") else choose_engine(config.engine)


def make_environment(config: EnvironmentConfig) -> Environment:
    """The task of the config, its batches laid over all devices of the mesh in use.

    Raises ValueError for an unknown task, with the nearest names.
    """
    environment = _find(config)

    def reset(key: Key, num_envs: int) -> EnvState:
        return over_devices(environment.reset(key, num_envs))

    def step(state: EnvState, action: Array, key: Key) -> tuple[EnvState, Step]:
        return over_devices(environment.step(state, action, key))

    return environment._replace(reset=reset, step=step)


def _find(config: EnvironmentConfig) -> Environment:
    if config.env.startswith("brax/"):
        from vdbjax.envs.brax_env import make_brax

        return make_brax(config.env.removeprefix("brax/"), backend=config.backend)
    if config.env.startswith("mocap/"):
        return make_mocap(
            config.env.removeprefix("mocap/"),
            engine=config.engine,
            implementation=config.impl,
            targets=config.targets,
            velocities=config.velocities,
        )
    if config.env.startswith("maze/"):
        return make_maze(config.env.removeprefix("maze/"), engine=config.engine, implementation=config.impl)
    if config.env.startswith("video/"):
        if config.targets != "absolute":
            raise ValueError(f"targets {config.targets!r} are for mocap/CLIP; a film gives none to be relative to")
        return make_video(config.env.removeprefix("video/"), engine=config.engine, implementation=config.impl)
    limits.known("task", [*TASKS, "brax/NAME", "mocap/CLIP", "video/CLIP", "maze/NAME"], config.env)
    return make_locomotion(config.env, engine=config.engine, implementation=config.impl)
