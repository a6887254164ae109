"""The command `python -m vdbjax.mocap`: its table, its pictures, what it downloads, and how it fails."""

import ctypes.util
import hashlib
import os
import subprocess
import sys
from pathlib import Path

import imageio.v3 as imageio
import numpy as np
import pytest
from local_server import serving
from test_mocap import frame, turned, written

from vdbjax import mocap

CAN_DRAW = sys.platform != "linux" or ctypes.util.find_library("EGL")
needs_graphics = pytest.mark.skipif(not CAN_DRAW, reason="no graphics library; apt-get install libegl1")


def made_clip(folder: Path, *, loop: str = "wrap") -> Path:
    """A second of gliding forward at 1.5 m/s, sinking from 0.9 m to 0.8 m, the chest turning by 0.6 rad."""
    times = np.arange(31) / 30
    frames = [frame(1 / 30, position=(1.5 * t, 0.9 - 0.1 * t, 0.0), chest=turned(0, 0.6 * t)) for t in times]
    return written(folder, frames, loop=loop)


def _command(arguments: list[str], monkeypatch, capsys) -> tuple[int, str, str]:
    monkeypatch.setattr(sys, "argv", ["mocap", *arguments])
    code = 0
    try:
        mocap.main()
    except SystemExit as stop:
        code = stop.code
    return code, *capsys.readouterr()


def _one_line(done: tuple[int, str, str], message: str) -> None:
    code, _, err = done
    assert code == 2
    assert err.startswith("error: ")
    assert err.count("\n") == 1
    assert message in err


# info


def test_info(tmp_path, monkeypatch, capsys):
    (tmp_path / "open").mkdir()
    paths = made_clip(tmp_path), made_clip(tmp_path / "open", loop="none")
    code, out, err = _command(["info", *map(str, paths)], monkeypatch, capsys)
    assert (code, err) == (0, "")
    header, wrap, none = (line.split() for line in out.splitlines()[:3])
    assert header == ["clip", "seconds", "frames", "1/s", "loop", "x", "y", "turn", "gap", "low", "high", "rad/s"]
    row = dict(zip(header, wrap))
    fastest = float(row.pop("rad/s"))  # back by 0.6 rad in 0.3 s, at most at 1.5 times 2 rad/s, less the 0.6 rad/s
    assert fastest == pytest.approx(2.4, abs=0.1)
    assert row == {
        **{"clip": "made", "seconds": "1.000", "frames": "31", "1/s": "30.0", "loop": "yes"},
        **{"x": "1.50", "y": "0.00", "turn": "0.000", "gap": "0.60", "low": "0.83", "high": "0.90"},
    }
    assert none == ["made", "1.000", "31", "30.0", "no", "0.80", "0.90", "0.6"]
    assert max(map(len, out.splitlines())) <= 120


@pytest.mark.skipif("VDBJAX_DATA" not in os.environ, reason="VDBJAX_DATA names no folder with deepmimic/ in it")
def test_info_of_published_clips(monkeypatch, capsys):
    code, out, _ = _command(["info", "walk", "spinkick", "punch"], monkeypatch, capsys)
    rows = [line.split() for line in out.splitlines()[1:4]]
    assert code == 0
    assert rows[0][:9] == ["walk", "1.267", "39", "30.0", "yes", "1.24", "0.00", "0.120", "0.50"]
    assert rows[1][:9] == ["spinkick", "1.283", "78", "60.0", "yes", "-0.40", "0.28", "0.052", "1.01"]
    assert rows[2][:5] == ["punch", "2.133", "65", "30.0", "no"]


# render


def _render(arguments: list[str], **environment: str) -> subprocess.CompletedProcess:
    """In a process of its own: MuJoCo chooses its graphics library when it is first imported."""
    settings = {name: value for name, value in os.environ.items() if name not in ("DISPLAY", "WAYLAND_DISPLAY")}
    return subprocess.run(
        [sys.executable, "-m", "vdbjax.mocap", "render", *arguments],
        capture_output=True,
        text=True,
        env={**settings, **environment},
    )


@needs_graphics
def test_render_draws_two_cycles(tmp_path):
    clip, out = made_clip(tmp_path), tmp_path / "clip.gif"
    done = _render([str(clip), "--out", str(out), "--width", "64", "--height", "48", "--fps", "10"])
    assert done.returncode == 0, done.stderr
    assert done.stdout == f"wrote {out}: made, 2.00 s, 20 frames\n"
    frames = imageio.imread(out)
    assert frames.shape[:3] == (20, 48, 64)
    body = frames[..., 0].astype(int) - frames[..., 2] > 30  # skin, before sky and floor
    columns = [np.nonzero(picture)[1].mean() for picture in body]
    np.testing.assert_allclose(columns, 32, atol=6)  # the camera follows


@needs_graphics
def test_render_draws_a_sheet(tmp_path):
    clip, out = made_clip(tmp_path, loop="none"), tmp_path / "sheet.PNG"
    done = _render([str(clip), "--out", str(out), "--width", "120", "--height", "160", "--seconds", "0.5"])
    assert done.returncode == 0, done.stderr
    assert done.stdout == f"wrote {out}: made, 0.50 s, 10 frames\n"
    sheet = imageio.imread(out)[..., :3]
    assert sheet.shape == (2 * (80 + 20), 5 * 60, 3)
    for row in (0, 100):
        words, pictures = sheet[row : row + 20], sheet[row + 20 : row + 100]
        assert (words == 255).mean() > 0.5
        for column in range(0, 300, 60):
            assert words[:, column : column + 60].min() < 128  # written
            picture = pictures[:, column : column + 60].astype(int)
            assert (picture[:30, :5].mean() > picture[-30:, :5].mean() + 30).all()  # sky above the floor
            assert (picture[..., 0] - picture[..., 2] > 30).any()  # somebody


@needs_graphics
def test_no_graphics_library_is_one_line(tmp_path):
    out = tmp_path / "clip.gif"
    done = _render([str(made_clip(tmp_path)), "--out", str(out)], MUJOCO_GL="egl", MUJOCO_EGL_DEVICE_ID="1000")
    assert done.returncode == 2
    assert done.stderr.startswith("error: no graphics library to draw with")
    assert done.stderr.count("\n") == 1
    assert not out.exists()


DRAW = ["render", "{clip}", "--out", "{folder}/a.mp4"]
BAD_COMMANDS = {
    "no clip": (["info"], "name at least one clip: a file, or one of backflip, cartwheel"),
    "unknown clip": (["info", "spinkik"], "did you mean spinkick?"),
    "not a clip": (["info", "{folder}/old.mp4"], "old.mp4: not a clip"),
    "unknown command": (["rendr", "walk"], "did you mean render?"),
    "render of an unknown clip": (["render", "jmp", "--out", "{folder}/old.mp4"], "did you mean jump?"),
    "unknown extension": (["render", "{clip}", "--out", "{folder}/a.avi"], "a.avi) must end in .mp4 or .gif"),
    "odd width": ([*DRAW, "--width", "639"], "--width (639) must be an even number"),
    "no time": ([*DRAW, "--seconds", "0"], "--seconds (0.0) must be above 0 and finite"),
    "endless": ([*DRAW, "--seconds", "inf"], "--seconds (inf) must be above 0 and finite"),
    "too many frames": ([*DRAW, "--fps", "101"], "--fps (101) must lie between 1 and 100"),
    "no such folder": (["render", "{clip}", "--out", "{folder}/none/a.mp4"], "none does not exist"),
    "no address": (["download", "--url", "nowhere", "--out", "{folder}/new"], "nowhere/data/motions/"),
    "unknown kind of address": (["download", "--url", "abc://x", "--out", "{folder}/new"], "cannot be fetched"),
}


@pytest.mark.parametrize("case", BAD_COMMANDS)
def test_bad_commands(case, tmp_path, monkeypatch, capsys):
    (tmp_path / "old.mp4").write_text("precious")
    monkeypatch.setenv("VDBJAX_DATA", str(tmp_path))
    monkeypatch.setenv("XDG_CACHE_HOME", str(tmp_path))
    clip, (arguments, message) = made_clip(tmp_path), BAD_COMMANDS[case]
    before = sorted(tmp_path.rglob("*"))
    arguments = [argument.format(folder=tmp_path, clip=clip) for argument in arguments]
    _one_line(_command(arguments, monkeypatch, capsys), message)
    assert (tmp_path / "old.mp4").read_text() == "precious"
    assert sorted(tmp_path.rglob("*")) == before


# download


@pytest.fixture
def published(tmp_path, monkeypatch) -> Path:
    """A folder as DeepMimic's, of two small clips and a licence, whose fingerprints stand for the true ones."""
    root = tmp_path / "published"
    (root / "data" / "motions").mkdir(parents=True)
    files = {name: root / "data" / "motions" / f"humanoid3d_{name}.txt" for name in ("walk", "run")}
    for name, path in files.items():
        path.write_text(name)
    (root / "LICENSE").write_text("MIT")
    prints = {name: hashlib.sha256(path.read_bytes()).hexdigest() for name, path in files.items()}
    monkeypatch.setattr(mocap, "CLIPS", prints)
    monkeypatch.setattr(mocap, "LICENSE_SHA256", hashlib.sha256(b"MIT").hexdigest())
    return root


@pytest.fixture
def served(published):
    """`published`, by HTTP on this machine: its address."""
    with serving(published) as address:
        yield address


FILES = ["LICENSE", "humanoid3d_run.txt", "humanoid3d_walk.txt"]


def names_in(folder: Path) -> list[str]:
    return sorted(path.name for path in folder.iterdir())


def test_download_by_http_into_the_folder_where_clips_are_found(served, tmp_path, monkeypatch, capsys):
    monkeypatch.setenv("XDG_CACHE_HOME", str(tmp_path / "cache"))
    monkeypatch.delenv("VDBJAX_DATA", raising=False)
    code, out, err = _command(["download", "--url", served + "/"], monkeypatch, capsys)
    folder = tmp_path / "cache" / "vdbjax" / "deepmimic"
    assert (code, err) == (0, "")
    assert out.endswith(f"wrote 3 files to {folder}; 0 were there\n")
    assert names_in(folder) == FILES
    assert mocap.find_clip("walk").read_text() == "walk"


def test_download_skips_what_is_whole(published, tmp_path, monkeypatch, capsys):
    folder, times = tmp_path / "out", {}
    arguments = ["download", "--url", published.as_uri(), "--out", str(folder)]
    assert _command(arguments, monkeypatch, capsys)[0] == 0
    (folder / "humanoid3d_run.txt").write_text("ru")  # cut off
    times = {path.name: path.stat().st_mtime_ns for path in folder.iterdir()}
    code, out, _ = _command(arguments, monkeypatch, capsys)
    assert (code, out.splitlines()[-1]) == (0, f"wrote 1 files to {folder}; 2 were there")
    assert (folder / "humanoid3d_run.txt").read_text() == "run"
    for name in ("LICENSE", "humanoid3d_walk.txt"):
        assert (folder / name).stat().st_mtime_ns == times[name]


def test_download_of_another_file(published, tmp_path, monkeypatch, capsys):
    (published / "data" / "motions" / "humanoid3d_run.txt").write_text("a web page")
    folder = tmp_path / "out"
    done = _command(["download", "--url", published.as_uri(), "--out", str(folder)], monkeypatch, capsys)
    _one_line(done, "humanoid3d_run.txt is not the file it should be: SHA-256 ")
    assert names_in(folder) == ["humanoid3d_walk.txt"]  # the one before it, whole


def test_download_where_a_file_is_missing(published, served, tmp_path, monkeypatch, capsys):
    (published / "data" / "motions" / "humanoid3d_walk.txt").unlink()
    folder = tmp_path / "out"
    done = _command(["download", "--url", served, "--out", str(folder)], monkeypatch, capsys)
    _one_line(done, "humanoid3d_walk.txt cannot be fetched (")
    assert not folder.exists()


def test_download_from_a_server_that_is_down(published, tmp_path, monkeypatch, capsys):
    folder = tmp_path / "out"
    done = _command(["download", "--url", "http://127.0.0.1:9", "--out", str(folder)], monkeypatch, capsys)
    _one_line(done, "refused); try again, or name a mirror by --url")
    assert not folder.exists()


def test_download_to_a_file(published, tmp_path, monkeypatch, capsys):
    (tmp_path / "out").write_text("precious")
    arguments = ["download", "--url", published.as_uri(), "--out", str(tmp_path / "out")]
    _one_line(_command(arguments, monkeypatch, capsys), "cannot be written (File exists); name another folder by --out")
    assert (tmp_path / "out").read_text() == "precious"


def test_a_write_that_fails_leaves_nothing(published, tmp_path, monkeypatch, capsys):
    def full(*_):
        raise OSError(28, "No space left on device")

    monkeypatch.setattr(os, "replace", full)
    arguments = ["download", "--url", published.as_uri(), "--out", str(tmp_path / "out")]
    _one_line(_command(arguments, monkeypatch, capsys), "cannot be written (No space left on device)")
    assert names_in(tmp_path / "out") == []


@pytest.mark.skipif("VDBJAX_DATA" not in os.environ, reason="VDBJAX_DATA names no folder with deepmimic/ in it")
def test_the_licence_is_the_published_one():
    path = Path(os.environ["VDBJAX_DATA"]) / "deepmimic" / "LICENSE"
    assert hashlib.sha256(path.read_bytes()).hexdigest() == mocap.LICENSE_SHA256
