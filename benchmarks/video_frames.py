"""Pictures a second of the painter (in JAX) and of MuJoCo's renderer, of one scene at 64 x 64 pixels.

Writes `benchmarks/results/video_frames_DEVICE.json`:

    python benchmarks/video_frames.py
"""

import json
import os
import time
from collections.abc import Callable
from dataclasses import dataclass
from pathlib import Path

import numpy as np
from machine import begin

from vdbjax import command


@dataclass(frozen=True)
class Options:
    """What to time."""

    clip: str = "run"
    """Clip whose poses are drawn."""
    pictures: int = 4096
    """Pictures of a batch: those of a rollout of 128 environments by 32 steps."""
    repetitions: int = 5
    """Times that each draws the batch; the median counts."""
    out: Path | None = None
    """File to write. None: benchmarks/results/video_frames_DEVICE.json."""


def main(options: Options) -> None:
    """Times both, writes."""
    from vdbjax.evaluation.clip import choose_graphics

    choose_graphics()  # before anything else brings MuJoCo
    report = begin("video_frames", options, options.out)
    import jax
    import mujoco

    from vdbjax.data.mocap import find_clip, load_clip, pose_at
    from vdbjax.envs.humanoid_model import make_model, to_qpos
    from vdbjax.envs.painter import PIXELS, side_camera
    from vdbjax.envs.planar_humanoid import PLANAR, projected
    from vdbjax.envs.video import make_video, picture

    environment = make_video(options.clip)
    observation = environment.reset(jax.random.key(0), options.pictures).observation
    paint = jax.jit(picture)
    model = make_model(PLANAR)
    data, renderer = mujoco.MjData(model), mujoco.Renderer(model, PIXELS, PIXELS)
    seconds = np.random.default_rng(0).uniform(0.0, 10.0, options.pictures)
    poses = to_qpos(pose_at(projected(load_clip(find_clip(options.clip))), seconds), PLANAR)

    def render() -> None:
        for pose in poses:
            data.qpos[:] = pose
            mujoco.mj_kinematics(model, data)
            mujoco.mj_camlight(model, data)
            renderer.update_scene(data, side_camera(model, pose[0]))
            renderer.render()

    result = {
        "pixels": PIXELS,
        "graphics": os.environ.get("MUJOCO_GL", "default"),
        "painter_frames_per_second": rate(lambda: paint(observation).block_until_ready(), options),
        "mujoco_frames_per_second": rate(render, options),
    }
    renderer.close()
    print(json.dumps(result, indent=2))
    report.write(result)


def rate(draw: Callable[[], object], options: Options) -> float:
    """Pictures a second, by the median batch; the first, which compiles, does not count."""
    durations = []
    for _ in range(1 + options.repetitions):
        start = time.perf_counter()
        draw()
        durations.append(time.perf_counter() - start)
    return options.pictures / float(np.median(durations[1:]))


if __name__ == "__main__":
    command.main(lambda: main(command.parse(Options, prog="video_frames.py", description=__doc__)))
