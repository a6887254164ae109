"""A motion as pictures: frames of a MuJoCo model along a trajectory, and the clip made of them.

MuJoCo chooses its graphics library while it is imported, by the variable MUJOCO_GL; so import this module after
`choose_graphics`.
"""

import base64
import io
import os
import sys
import warnings
from collections.abc import Sequence
from copy import copy
from typing import Any

import numpy as np
from jaxtyping import Float, Int, UInt8

from vdbjax import limits

FORMATS = (".mp4", ".gif", ".html")

PAGE = """<!doctype html>
<meta charset="utf-8">
<title>{title}</title>
<style>body {{ margin: 2rem; font-family: sans-serif }} video {{ max-width: 100% }}</style>
<video controls autoplay loop muted playsinline src="data:video/mp4;base64,{video}"></video>
<p>{title}</p>
"""


def check_frames(options: Any, suffixes: Sequence[str]) -> None:
    """Raises ValueError for an `out`, a size, a length or a rate that no clip can have."""
    limits.ends_in(suffixes, options, "--out")
    limits.at_least(2, options, "--width", "--height")
    limits.positive(options, "--seconds")
    limits.between(1, 100, options, "--fps")
    for name in ("width", "height"):
        if getattr(options, name) % 2:
            raise ValueError(f"--{name} ({getattr(options, name)}) must be an even number, as video codecs need")


def choose_graphics() -> None:
    """EGL, which draws without a screen, where there is none and MUJOCO_GL does not say otherwise. Tries it out.

    Raises ValueError where nothing can draw.
    """
    too_late = "mujoco" in sys.modules and "MUJOCO_GL" not in os.environ
    if sys.platform == "linux" and not (os.environ.get("DISPLAY") or os.environ.get("WAYLAND_DISPLAY")):
        os.environ.setdefault("MUJOCO_GL", "egl")
    try:
        import mujoco

        mujoco.Renderer(mujoco.MjModel.from_xml_string("<mujoco/>"), 8, 8).close()
    except Exception as error:  # ImportError, AttributeError, GLError, FatalError: each library fails in its own way
        name = os.environ.get("MUJOCO_GL", "the default")
        remedy = "install one, on Debian and Ubuntu by `apt-get install libegl1 libgl1-mesa-dri`"
        if too_late:
            remedy = f"MuJoCo chose one when this process imported it: set MUJOCO_GL before that, or {remedy}"
        raise ValueError(
            f"no graphics library to draw with (MUJOCO_GL: {name}; {type(error).__name__}: {error}); {remedy}"
        ) from None


def frame_rows(num_steps: int, *, step_seconds: float, fps: int) -> Int[np.ndarray, " frames"]:
    """Which control step each frame shows, so that the clip runs in real time; at least one frame."""
    count = max(1, int(np.ceil(num_steps * step_seconds * fps - 1e-6)))  # 3 * 0.05 * 40 is a little above 6
    return np.minimum(np.round(np.arange(count) / (fps * step_seconds)), num_steps - 1).astype(np.int64)


def draw(
    model: Any, qpos: Float[np.ndarray, "frames nq"], *, width: int, height: int
) -> UInt8[np.ndarray, "frames height width 3"]:
    """One picture of an `MjModel` for each row of `qpos`, by its first camera, or from above where it has none."""
    import mujoco

    model = copy(model)
    model.vis.global_.offwidth, model.vis.global_.offheight = width, height
    _widen_floor(model)
    data, camera = mujoco.MjData(model), mujoco.MjvCamera()
    mujoco.mjv_defaultFreeCamera(model, camera)
    if model.ncam:  # the models that travel bring one that follows them
        camera.type, camera.fixedcamid = mujoco.mjtCamera.mjCAMERA_FIXED, 0
    else:
        camera.elevation, camera.distance = -80.0, 0.6 * camera.distance
    renderer = mujoco.Renderer(model, height, width)
    try:
        frames = np.empty((len(qpos), height, width, 3), np.uint8)
        for row, frame in zip(qpos, frames):
            data.qpos[:] = row
            mujoco.mj_forward(model, data)
            renderer.update_scene(data, camera)
            renderer.render(out=frame)
    finally:
        renderer.close()
    return frames


def caption(frames: UInt8[np.ndarray, "frames height width 3"], text: str) -> None:
    """Writes the text into the lower left corner of every frame, in place: white, with a dark edge."""
    from PIL import Image, ImageDraw, ImageFont

    height, width = frames.shape[1:3]
    size = max(8, height // 24)
    place, font = (size // 2, height - size // 2), ImageFont.load_default(size)
    for edge, grey in ((max(1, size // 10), 0), (0, 255)):
        mask = Image.new("1", (width, height))
        ImageDraw.Draw(mask).text(place, text, fill=1, font=font, anchor="ls", stroke_width=edge)
        frames[:, np.asarray(mask)] = grey


def _widen_floor(model: Any) -> None:
    """Ten times the floor with tiles of the same size: good policies run past the models' own edge, at 20 to 40 m."""
    floors = model.geom_type == 0  # mjGEOM_PLANE
    model.geom_size[floors, :2] *= 10
    materials = model.geom_matid[floors]
    model.mat_texrepeat[materials[materials >= 0]] *= 10


def encode(frames: Sequence[np.ndarray] | np.ndarray, suffix: str, *, fps: int, title: str) -> bytes:
    """The content of a file of one of `FORMATS`; .html is one page with the .mp4 inside."""
    import imageio.v2 as imageio

    if suffix == ".html":
        video = base64.b64encode(encode(frames, ".mp4", fps=fps, title=title)).decode()
        return PAGE.format(title=title, video=video).encode()
    buffer = io.BytesIO()
    if suffix == ".gif":
        # Counted in hundredths of a second, so each frame ends at the nearest one, and errors do not add up.
        ends = np.round(100 * np.arange(1, len(frames) + 1) / fps)
        imageio.mimwrite(buffer, list(frames), format="gif", duration=(10 * np.diff(ends, prepend=0)).tolist(), loop=0)
    else:
        with warnings.catch_warnings():  # ffmpeg is started by a fork that waits for no lock
            warnings.filterwarnings("ignore", message=r"os\.fork\(\) was called", category=RuntimeWarning)
            imageio.mimwrite(buffer, list(frames), format="mp4", fps=fps, macro_block_size=2, quality=7)
    return buffer.getvalue()
