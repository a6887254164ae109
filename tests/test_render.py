"""Clips: timing, files that play, a camera that follows, and how the command fails."""

import base64
import ctypes.util
import io
import os
import re
import subprocess
import sys

import imageio.v3 as imageio
import numpy as np
import pytest
from tiny_run import tiny_run

from vdbjax import render
from vdbjax.evaluation.clip import caption, encode, frame_rows
from vdbjax.training.run_dir import create_run

CAN_DRAW = sys.platform != "linux" or ctypes.util.find_library("EGL")
needs_graphics = pytest.mark.skipif(not CAN_DRAW, reason="no graphics library; apt-get install libegl1")


def test_frames_fall_on_the_steps_of_their_time():
    assert frame_rows(5, step_seconds=0.01, fps=100).tolist() == [0, 1, 2, 3, 4]
    assert frame_rows(10, step_seconds=0.01, fps=50).tolist() == [0, 2, 4, 6, 8]
    assert frame_rows(3, step_seconds=0.05, fps=40).tolist() == [0, 0, 1, 2, 2, 2]  # at 0, .5, 1, 1.5, 2 and 2.5 steps
    assert frame_rows(1, step_seconds=0.001, fps=30).tolist() == [0]


DRAW_TWICE = """
from vdbjax.evaluation.clip import choose_graphics, draw
choose_graphics()
from vdbjax.envs.humanoid_model import HUMANOID, make_model
model = make_model(HUMANOID)
first, second = (draw(model, model.qpos0[None], width=64, height=48) for _ in range(2))
assert (first == second).all()
"""


@needs_graphics
def test_drawing_leaves_the_model_as_it_is():
    subprocess.run([sys.executable, "-c", DRAW_TWICE], check=True, timeout=120)


FRAMES = np.stack([np.full((48, 64, 3), level, np.uint8) for level in (0, 60, 120, 180, 240)])


def _video(content: bytes, suffix: str) -> bytes:
    if suffix != ".html":
        return content
    found = re.search(rb"data:video/mp4;base64,([^\"]+)", content)
    assert found
    return base64.b64decode(found[1])


@pytest.mark.filterwarnings(r"ignore:os\.fork\(\) was called")  # by imageio, which starts ffmpeg to read
@pytest.mark.parametrize("suffix", render.FORMATS)
def test_encoded_clips_play(suffix):
    content = encode(FRAMES, suffix, fps=30, title="five greys")
    kind = ".gif" if suffix == ".gif" else ".mp4"
    played = imageio.imread(_video(content, suffix), extension=kind)
    assert played.shape[:3] == (5, 48, 64)
    np.testing.assert_allclose(played[..., :3].mean(axis=(1, 2, 3)), [0, 60, 120, 180, 240], atol=4)


def test_gif_runs_in_real_time():
    from PIL import Image

    with Image.open(io.BytesIO(encode(np.tile(FRAMES, (6, 1, 1, 1)), ".gif", fps=30, title=""))) as image:
        durations = []
        for index in range(image.n_frames):
            image.seek(index)
            durations.append(image.info["duration"])
    assert sum(durations) == 1000  # ms, of 30 frames at 30 a second


def test_a_caption_stands_in_the_lower_left_corner_of_every_frame():
    frames = np.full((3, 48, 64, 3), 128, np.uint8)
    caption(frames, "clip")
    written = np.argwhere((frames != 128).any(axis=-1))
    assert set(written[:, 0]) == {0, 1, 2}
    assert written[:, 1].min() >= 32
    assert written[:, 2].max() < 32
    assert {0, 255} <= set(frames.ravel().tolist())


@pytest.fixture(scope="session")
def run_folder(tmp_path_factory):
    return tiny_run(tmp_path_factory.getbasetemp())


def _command(arguments: list[str], **environment: str) -> subprocess.CompletedProcess:
    """In a process of its own: MuJoCo chooses its graphics library when it is first imported."""
    settings = {name: value for name, value in os.environ.items() if name not in ("DISPLAY", "WAYLAND_DISPLAY")}
    return subprocess.run(
        [sys.executable, "-m", "vdbjax.render", *arguments],
        capture_output=True,
        text=True,
        env={**settings, "JAX_NUM_CPU_DEVICES": "1", **environment},
    )


@pytest.mark.long
@needs_graphics
def test_command_writes_a_clip_that_follows_the_hopper(run_folder, tmp_path):
    path = tmp_path / "clip.gif"
    done = _command([str(run_folder), "--out", str(path), "--width", "64", "--height", "48", "--seconds", "0.2"])
    assert done.returncode == 0, done.stderr
    assert f"wrote {path}: ppo on hopper, iteration 8" in done.stdout
    steps = int(re.search(r"(\d+) steps", done.stdout)[1])
    frames = imageio.imread(path)
    assert len(frames) == np.ceil(steps * 0.008 * 30)
    brown = frames[..., 0].astype(int) - frames[..., 2] > 30  # the hopper, on grey and green
    columns = [np.nonzero(frame)[1].mean() for frame in brown]
    np.testing.assert_allclose(columns, 32, atol=10)


@needs_graphics
def test_no_graphics_library_is_one_line(run_folder, tmp_path):
    path = tmp_path / "clip.gif"
    done = _command([str(run_folder), "--out", str(path)], MUJOCO_GL="egl", MUJOCO_EGL_DEVICE_ID="1000")
    assert done.returncode == 2
    assert done.stderr.startswith("error: no graphics library to draw with")
    assert "libegl1" in done.stderr
    assert done.stderr.count("\n") == 1
    assert not path.exists()


BAD_COMMANDS = {
    "unknown extension": (["--out", "{folder}/a.avi"], "a.avi) must end in .mp4 or .gif or .html"),
    "odd width": (["--out", "{folder}/a.mp4", "--width", "639"], "--width (639) must be an even number"),
    "no time": (["--out", "{folder}/a.mp4", "--seconds", "0"], "--seconds (0.0) must be above 0 and finite"),
    "for ever": (["--out", "{folder}/a.mp4", "--seconds", "inf"], "--seconds (inf) must be above 0 and finite"),
    "no such folder": (["--out", "{folder}/none/a.mp4"], "none does not exist"),
    "no run": (["--out", "{folder}/old.mp4"], "not a run folder"),
}


CONFIGS = {
    "of images": (
        {"recipe": "gan", "algorithm": {}, "data": "images.npz"},
        "recipe 'gan', a model of images; python -m",
    ),
    "damaged": ({"recipe": "ppo", "environment": 3}, "config.json is damaged: it names no task"),
    "nothing": (None, "config.json is damaged: it names no task"),
}


@pytest.mark.parametrize("case", CONFIGS)
def test_runs_that_nothing_can_be_filmed_of(case, tmp_path):
    config, message = CONFIGS[case]
    create_run(tmp_path / "run", {"config": config})
    with pytest.raises(ValueError, match=re.escape(message)):
        render.run(render.Options(tmp_path / "run", tmp_path / "a.mp4"))
    assert not (tmp_path / "a.mp4").exists()


@pytest.mark.parametrize("case", BAD_COMMANDS)
def test_bad_commands(case, tmp_path, monkeypatch, capsys):
    (tmp_path / "old.mp4").write_text("precious")
    arguments, message = BAD_COMMANDS[case]
    arguments = [argument.format(folder=tmp_path) for argument in arguments]
    monkeypatch.setattr(sys, "argv", ["render", str(tmp_path), *arguments])
    with pytest.raises(SystemExit) as stop:
        render.main()
    assert stop.value.code == 2
    err = capsys.readouterr().err
    assert err.startswith("error: ")
    assert err.count("\n") == 1
    assert message in err
    assert (tmp_path / "old.mp4").read_text() == "precious"
