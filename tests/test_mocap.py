"""Motion-capture clips: conversion by hand arithmetic, times and speeds against known motions, repair, bad files."""

import hashlib
import json
import os
from pathlib import Path

import mujoco
import numpy as np
import pytest
from scipy.spatial.transform import Rotation

from vdbjax.data import mocap
from vdbjax.data.mocap import (
    CLIPS,
    JOINTS,
    Clip,
    ClipError,
    load_clip,
    phase_at,
    pose_at,
    read_clip,
    velocity_at,
)
from vdbjax.rotations import angle_between, to_vector

DATA = os.environ.get("VDBJAX_DATA")
needs_data = pytest.mark.skipif(not DATA, reason="VDBJAX_DATA names no folder with deepmimic/ in it")
LOOPS = sorted(set(CLIPS) - {"punch", "getup_facedown", "getup_faceup"})

ONE = (1.0, 0.0, 0.0, 0.0)
SPHERICAL = [joint for joint in JOINTS if not joint.endswith(("knee", "elbow"))]


def frame(seconds: float, *, position=(0.0, 0.9, 0.0), root=ONE, **joints) -> list[float]:
    """A frame as files have it, in the files' own axes: y up, z to the right; joints not named are at rest."""
    rest: dict = {joint: ONE if joint in SPHERICAL else (0.0,) for joint in JOINTS}
    return [seconds, *position, *root, *(number for joint in (rest | joints).values() for number in joint)]


def written(folder: Path, frames: list, *, loop: str = "none", name: str = "humanoid3d_made.txt") -> Path:
    path = folder / name
    path.write_text(json.dumps({"Loop": loop, "Frames": frames}))
    return path


def turned(axis: int, angle: float) -> list[float]:
    half = np.insert(np.zeros(3), axis, np.sin(angle / 2))[:3]
    return [float(np.cos(angle / 2)), *half.tolist()]


@pytest.fixture(scope="module")
def clips() -> dict[str, Clip]:
    return {name: load_clip(Path(str(DATA)) / "deepmimic" / f"humanoid3d_{name}.txt") for name in CLIPS}


@pytest.fixture(scope="module")
def recorded() -> dict[str, Clip]:
    return {name: read_clip(Path(str(DATA)) / "deepmimic" / f"humanoid3d_{name}.txt") for name in CLIPS}


# Conversion.


def test_axes_and_order_by_hand(tmp_path):
    """2 m up is z; 3 m to the right is -y; the file's y axis is our z, its z axis our -y."""
    moved = frame(
        0.5,
        position=(1.0, 2.0, 3.0),
        root=turned(1, 0.4),
        left_hip=turned(2, 0.6),
        left_knee=(-0.7,),
        right_elbow=(0.8,),
        left_shoulder=turned(0, 0.9),
    )
    clip = load_clip(written(tmp_path, [moved, moved]))
    assert (clip.name, clip.loop, clip.duration, clip.seconds.tolist()) == ("made", False, 0.5, [0.0, 0.5])
    np.testing.assert_allclose(clip.pose.root_position, [[1.0, -3.0, 2.0]] * 2)
    expected = np.zeros((13, 3))
    expected[0] = [0.0, 0.0, 0.4]
    for joint, vector in {
        "left_hip": [0.0, -0.6, 0.0],
        "left_knee": [0.0, 0.7, 0.0],
        "right_elbow": [0.0, -0.8, 0.0],
        "left_shoulder": [0.9, 0.0, 0.0],
    }.items():
        expected[1 + JOINTS.index(joint)] = vector
    np.testing.assert_allclose(to_vector(clip.pose.rotation), np.stack([expected] * 2), atol=1e-12)


def test_quaternions_are_normalised_and_keep_their_sign(tmp_path):
    angles = np.linspace(0.0, 3.0, 7)
    signs = [1, -1, -1, 1, 0.6, -1.2, 1]  # of either sign, and of other lengths
    frames = [frame(0.1, chest=np.multiply(sign, turned(2, a)).tolist()) for sign, a in zip(signs, angles)]
    rotation = load_clip(written(tmp_path, frames)).pose.rotation
    np.testing.assert_allclose(np.linalg.norm(rotation, axis=-1), 1.0, atol=1e-15)
    assert np.sum(rotation[1:] * rotation[:-1], axis=-1).min() > 0.9
    np.testing.assert_allclose(to_vector(rotation[:, 1]), angles[:, None] * [0.0, -1.0, 0.0], atol=1e-12)


# Motions that are known.

TURN, SPEED = 2.5, 1.5  # rad/s of the chest about the file's x, m/s of the root forward


def steady(folder: Path, *, rate: float, loop: str, duration: float = 1.0) -> Clip:
    times = np.arange(round(duration * rate) + 1) / rate
    frames = [frame(1 / rate, position=(SPEED * t, 0.9, 0.0), chest=turned(0, TURN * t)) for t in times]
    frames[-1][0] = 0.0  # as in the published files
    return load_clip(written(folder, frames, loop=loop))


def tumble(seconds: np.ndarray) -> Rotation:
    """About axes that change all the time, at up to 12 rad/s."""
    first = Rotation.from_rotvec(np.outer(3.0 * np.sin(3.0 * seconds), [0.6, 0.0, 0.8]))
    return first * Rotation.from_rotvec(np.outer(2.0 * np.cos(2.0 * seconds), [0.0, 1.0, 0.0]))


def tumbling(folder: Path, *, rate: float) -> Clip:
    """`tumble` in our axes, as root and chest; the file's quaternion is (w, x, z, -y) of ours."""
    times = np.arange(round(rate) + 1) / rate
    x, y, z, w = tumble(times).as_quat().T
    frames = [
        frame(1 / rate, position=(np.sin(t), 1.0 + 0.2 * np.cos(3 * t), t**2), root=row, chest=row)
        for t, row in zip(times, np.stack([w, x, z, -y], axis=-1).tolist())
    ]
    return load_clip(written(folder, frames))


def test_constant_motion_without_loop(tmp_path):
    """Also beyond the ends, where the pose is held, and at the ends, where the difference is one-sided."""
    clip = steady(tmp_path, rate=30.0, loop="none")
    seconds = np.array([-3.0, 0.0, 0.005, 0.123, 0.5, 0.995, 1.0, 4.0])
    pose, velocity = pose_at(clip, seconds), velocity_at(clip, seconds)
    held = np.clip(seconds, 0.0, 1.0)
    np.testing.assert_allclose(pose.root_position, np.stack([SPEED * held, 0 * held, 0 * held + 0.9], axis=-1))
    np.testing.assert_allclose(to_vector(pose.rotation)[:, 1], np.outer(held, [TURN, 0.0, 0.0]), atol=1e-12)
    moves = np.array([0.0, 1, 1, 1, 1, 1, 1, 0])
    np.testing.assert_allclose(velocity.root_velocity, np.outer(moves, [SPEED, 0.0, 0.0]), atol=1e-12)
    expected = np.zeros((8, 13, 3))
    expected[:, 1] = np.outer(moves, [TURN, 0.0, 0.0])
    np.testing.assert_allclose(velocity.angular, expected, atol=1e-12)
    assert not clip.displacement.any()
    np.testing.assert_allclose(phase_at(clip, seconds), np.minimum(held, 1 - 1e-16))


def test_velocities_are_those_of_a_tumbling_body(tmp_path):
    """SciPy gives the speeds in the body's frame from the motion itself, by a far smaller difference."""
    clip, seconds, step = tumbling(tmp_path, rate=240.0), np.linspace(0.05, 0.95, 37), 1e-5
    truth = (tumble(seconds - step).inv() * tumble(seconds + step)).as_rotvec() / (2 * step)
    found = velocity_at(clip, seconds)
    assert np.abs(truth).max() > 8.0
    np.testing.assert_allclose(found.angular[:, 0], truth, atol=0.03)
    np.testing.assert_allclose(found.angular[:, 1], truth, atol=0.03)
    expected = np.stack([np.cos(seconds), -2.0 * seconds, -0.6 * np.sin(3 * seconds)], axis=-1)
    np.testing.assert_allclose(found.root_velocity, expected, atol=2e-3)


def test_velocities_are_those_of_mujoco(tmp_path):
    """MuJoCo's speed from a to b: in the child's own frame."""
    clip, seconds = tumbling(tmp_path, rate=120.0), np.array([0.2, 0.6, 0.9])
    before, after = pose_at(clip, seconds - 1 / 60), pose_at(clip, seconds + 1 / 60)
    expected = np.zeros((3, 13, 3))
    for index in np.ndindex(3, 13):
        mujoco.mju_subQuat(expected[index], after.rotation[index], before.rotation[index])
    np.testing.assert_allclose(velocity_at(clip, seconds).angular, 30.0 * expected, atol=1e-9)


def test_frame_rates_of_one_motion_agree(tmp_path):
    slow, fast = (tumbling(tmp_path, rate=rate) for rate in (30.0, 120.0))
    seconds = np.linspace(0.0, 1.0, 41)
    poses = [pose_at(clip, seconds) for clip in (slow, fast)]
    # A chord leaves its arc by h^2 / 8 times the acceleration: h = 1/30 s; 2.7 m/s^2; about 40 rad/s^2.
    assert np.abs(poses[0].root_position - poses[1].root_position).max() < 4e-4
    assert angle_between(poses[0].rotation, poses[1].rotation).max() < 8e-3
    speeds = [velocity_at(clip, seconds[2:-2]) for clip in (slow, fast)]
    np.testing.assert_allclose(speeds[0].angular, speeds[1].angular, atol=0.3)
    np.testing.assert_allclose(speeds[0].root_velocity, speeds[1].root_velocity, atol=0.02)


def test_uneven_frames_keep_their_times(tmp_path):
    times = np.array([0.0, 0.1, 0.15, 0.4, 0.5])
    frames = [frame(s, chest=turned(0, t)) for t, s in zip(times, [0.1, 0.05, 0.25, 0.1, 0.0])]
    clip = load_clip(written(tmp_path, frames))
    np.testing.assert_allclose(clip.seconds, times)
    seconds = np.linspace(0.0, 0.5, 11)
    np.testing.assert_allclose(to_vector(pose_at(clip, seconds).rotation)[:, 1, 0], seconds, atol=1e-12)


def test_any_shape_of_times(tmp_path):
    clip = steady(tmp_path, rate=30.0, loop="wrap")
    for shape in ((), (2,), (2, 3), (0,)):
        pose, velocity = pose_at(clip, np.full(shape, 0.7)), velocity_at(clip, np.full(shape, 0.7))
        assert (pose.root_position.shape, pose.rotation.shape) == ((*shape, 3), (*shape, 13, 4))
        assert (velocity.root_velocity.shape, velocity.angular.shape) == ((*shape, 3), (*shape, 13, 3))
        assert phase_at(clip, np.full(shape, 0.7)).shape == shape
    assert pose_at(clip, 1).root_position == pytest.approx([1.5, 0.0, 0.9])


# Loops.


def test_cycles_repeat_displaced_in_both_directions(tmp_path):
    clip = steady(tmp_path, rate=30.0, loop="wrap")
    np.testing.assert_allclose(clip.displacement, [SPEED, 0.0, 0.0])
    seconds = np.linspace(-1.7, 2.3, 29)
    here, there = pose_at(clip, seconds), pose_at(clip, seconds + 3 * clip.duration)
    np.testing.assert_allclose(there.root_position - here.root_position, [[3 * SPEED, 0.0, 0.0]] * 29, atol=1e-12)
    assert angle_between(here.rotation, there.rotation).max() < 1e-12
    np.testing.assert_allclose(here.root_position[:, 0], SPEED * seconds, atol=1e-12)
    phase = phase_at(clip, seconds)
    np.testing.assert_allclose(np.exp(2j * np.pi * phase), np.exp(2j * np.pi * seconds), atol=1e-12)
    ends = clip.duration * np.array([-1e-20, 1.0, -2.0])
    assert phase_at(clip, ends).tolist() == [np.nextafter(1.0, 0.0), 0.0, 0.0]


def jump_at_the_seam(clip: Clip) -> float:
    """How far any rotation turns in the two microseconds about the seam, in rad."""
    before, after = pose_at(clip, clip.duration - 1e-6), pose_at(clip, clip.duration + 1e-6)
    return float(angle_between(before.rotation, after.rotation).max())


def jolt(clip: Clip, seconds: np.ndarray) -> float:
    """The largest change of an angular velocity over 1/60 s that begins at any of these times, in rad/s."""
    change = velocity_at(clip, seconds + 1 / 60).angular - velocity_at(clip, seconds).angular
    return float(np.linalg.norm(change, axis=-1).max())


def seam_of(clip: Clip) -> np.ndarray:
    return clip.duration + np.linspace(-0.05, 0.05, 25)


def assert_closed(clip: Clip, recorded: Clip) -> None:
    """The ends meet, as far on as they were recorded, and what lies before the blend is as recorded."""
    (position, rotation), before = clip.pose, recorded.pose
    assert angle_between(rotation[0], rotation[-1]).max() < 1e-9
    moved = position[-1] - position[0]
    np.testing.assert_allclose(moved, [*(before.root_position[-1] - before.root_position[0])[:2], 0.0], atol=1e-12)
    np.testing.assert_allclose(clip.displacement, moved, atol=1e-12)
    untouched = clip.seconds <= clip.duration - 0.3
    assert 0 < untouched.sum() < len(clip.seconds)
    np.testing.assert_allclose(position[untouched], before.root_position[untouched], atol=1e-12)
    assert angle_between(rotation[untouched], before.rotation[untouched]).max() < 1e-9
    assert jump_at_the_seam(clip) < 1e-4  # at 35 rad/s


def test_an_open_loop_is_closed(tmp_path):
    """The chest turns by 2.5 rad in a cycle that should bring it back, at a speed that it keeps at the seam."""
    clip = steady(tmp_path, rate=120.0, loop="wrap")
    recorded = read_clip(tmp_path / "humanoid3d_made.txt")
    assert_closed(clip, recorded)
    assert jump_at_the_seam(recorded) == pytest.approx(TURN, abs=1e-4)
    late = (1 / 60) / 0.3  # at 1/60 s before the seam s is still 3 late^2 - 2 late^3 short of 1
    expected = TURN * (1.0 - 30.0 * (3 * late**2 - 2 * late**3))
    np.testing.assert_allclose(velocity_at(clip, clip.duration).angular[1], [expected, 0.0, 0.0], atol=1e-9)
    assert jolt(recorded, seam_of(recorded)) > 70.0


def test_a_short_loop_blends_over_its_last_half(tmp_path):
    frames = [frame(0.05, chest=turned(0, 0.1 * index)) for index in range(9)]  # 0.4 s
    clip = load_clip(written(tmp_path, frames, loop="wrap"))
    angles = to_vector(clip.pose.rotation)[:, 1, 0]
    np.testing.assert_allclose(angles[:5], 0.1 * np.arange(5), atol=1e-12)
    rise = np.array([0.25, 0.5, 0.75, 1.0])
    np.testing.assert_allclose(angles[5:], 0.1 * np.arange(5, 9) - 0.8 * rise**2 * (3 - 2 * rise), atol=1e-12)


@pytest.mark.parametrize(("off", "led"), [(0.0, 1), (0.01, 6)])
def test_a_step_and_its_mirror_image_keep_both_jumps_alike(off, led, tmp_path):
    """Right and left change, a turn about the vertical goes the other way, one about the axis across the same way."""
    hips, turns = np.linspace(-0.5, 0.7, 6), np.linspace(0.2, -0.1, 6)
    step = [
        frame(0.05, root=turned(1, turn), right_hip=turned(2, hip), left_hip=turned(2, 0.1), left_knee=(-hip,))
        for hip, turn in zip(hips, turns)
    ]
    image = [
        frame(0.05, root=turned(1, -turn), left_hip=turned(2, hip), right_hip=turned(2, 0.1 + off), right_knee=(-hip,))
        for hip, turn in zip(hips, turns)
    ]
    path = written(tmp_path, [*step, *image, image[-1]], loop="wrap")
    changed = angle_between(load_clip(path).pose.rotation, read_clip(path).pose.rotation).max(axis=-1) > 1e-6
    assert changed[-led:].all()
    assert changed.sum() == led
    assert jump_at_the_seam(load_clip(path)) < 1e-4


# The published clips.


@needs_data
@pytest.mark.parametrize("name", CLIPS)
def test_published_clips_load(name, clips):
    clip, path = clips[name], Path(str(DATA)) / "deepmimic" / f"humanoid3d_{name}.txt"
    assert hashlib.sha256(path.read_bytes()).hexdigest() == CLIPS[name]
    assert (clip.name, clip.loop) == (name, name in LOOPS)
    np.testing.assert_allclose(np.linalg.norm(clip.pose.rotation, axis=-1), 1.0, atol=1e-12)
    assert np.sum(clip.pose.rotation[1:] * clip.pose.rotation[:-1], axis=-1).min() > 0.5
    at_frames = pose_at(clip, clip.seconds[:-1])
    np.testing.assert_allclose(at_frames.root_position, clip.pose.root_position[:-1], atol=1e-12)
    assert angle_between(at_frames.rotation, clip.pose.rotation[:-1]).max() < 1e-9
    assert np.linalg.norm(velocity_at(clip, np.arange(0, 2 * clip.duration, 1 / 120)).angular, axis=-1).max() < 35.0


@needs_data
@pytest.mark.parametrize("name", LOOPS)
def test_published_loops_are_closed(name, clips, recorded):
    """Once closed, the seam is smoother than the roughest place inside the clip; before, most are rougher. Where the
    second half is the first one's mirror image, the seam is as the middle is."""
    clip, before = clips[name], recorded[name]
    assert_closed(clip, before)
    inside = jolt(before, np.linspace(1 / 30, before.duration - 0.05, 400))
    if name in ("run", "walk"):
        middle = jolt(clip, seam_of(clip) - 0.5 * clip.duration)
        assert jolt(clip, seam_of(clip)) == pytest.approx(middle, rel=1e-3)
    else:
        assert jolt(clip, seam_of(clip)) < min(inside, 9.0)
    if angle_between(before.pose.rotation[0], before.pose.rotation[-1]).max() > 0.25:
        assert jump_at_the_seam(before) > 0.25
        assert jolt(before, seam_of(before)) > max(inside, 9.0)


@needs_data
def test_most_published_loops_are_open(recorded):
    gaps = {name: jump_at_the_seam(recorded[name]) for name in LOOPS}
    assert sum(gap > 0.25 for gap in gaps.values()) == 9
    assert max(gaps, key=lambda name: gaps[name]) == "spinkick"


@needs_data
def test_known_facts(clips, recorded):
    assert (clips["walk"].duration, len(clips["walk"].seconds)) == (pytest.approx(1.267, abs=1e-3), 39)
    speed = {name: clips[name].displacement / clips[name].duration for name in ("walk", "run")}
    assert speed["walk"] == pytest.approx([0.978, 0.0, 0.0], abs=1e-3)
    assert speed["run"] == pytest.approx([3.56, 0.0, 0.0], abs=5e-3)
    assert clips["cartwheel"].displacement == pytest.approx([-0.227, 2.127, 0.0], abs=1e-3)
    assert clips["backflip"].displacement == pytest.approx([-1.079, 0.0, 0.0], abs=1e-3)
    shoulder = 1 + JOINTS.index("right_shoulder")
    ends = recorded["spinkick"].pose.rotation[[0, -1], shoulder]
    assert angle_between(ends[0], ends[1]) == pytest.approx(1.01, abs=5e-3)


@needs_data
@pytest.mark.parametrize("name", CLIPS)
def test_knees_bend_back_and_elbows_forward(name, clips):
    """About +y, to the left, a positive angle swings what hangs down back."""
    bend = to_vector(clips[name].pose.rotation)[..., 1]
    for side in ("left", "right"):
        assert bend[:, 1 + JOINTS.index(f"{side}_knee")].mean() > 0.05
        assert bend[:, 1 + JOINTS.index(f"{side}_elbow")].mean() < -0.01


# What cannot be read.

FRAME = frame(0.1)


def with_number(place: int, value) -> list:
    return [FRAME, [*FRAME[:place], value, *FRAME[place + 1 :]], FRAME]


BAD_FILES = {
    "not json": (b"Loop: wrap", "not JSON (Expecting value: line 1"),
    "not text": (b"\xff\xfe\x00", "not UTF-8"),
    "nested without end": (b"[" * 100_000, "not JSON"),
    "a list": ([], 'it has no list of frames under "Frames"'),
    "no frames": ({"Loop": "wrap"}, 'it has no list of frames under "Frames"'),
    "empty": ({"Loop": "wrap", "Frames": []}, 'it has no list of frames under "Frames"'),
    "43 numbers": ({"Loop": "wrap", "Frames": [FRAME, FRAME[:-1]]}, "frame 1 is of 43 numbers, not of 44"),
    "not a list": ({"Loop": "wrap", "Frames": [FRAME, "walk"]}, 'frame 1 is of "walk", not of 44'),
    "text": ({"Loop": "wrap", "Frames": with_number(7, "x")}, 'number 7 of frame 1 is "x", not a finite number'),
    "nan": ({"Loop": "wrap", "Frames": with_number(9, float("nan"))}, "number 9 of frame 1 is NaN"),
    "infinite": ({"Loop": "wrap", "Frames": with_number(1, float("inf"))}, "number 1 of frame 1 is Infinity"),
    "too large": ({"Loop": "wrap", "Frames": with_number(1, 10**400)}, "number 1 of frame 1 is 1000"),
    "boolean": ({"Loop": "wrap", "Frames": with_number(2, True)}, "number 2 of frame 1 is true"),
    "null": ({"Loop": "wrap", "Frames": with_number(2, None)}, "number 2 of frame 1 is null"),
    "one frame": ({"Loop": "wrap", "Frames": [FRAME]}, "one frame is no motion"),
    "no time": ({"Loop": "wrap", "Frames": with_number(0, 0.0)}, "frame 1 lasts 0 s"),
    "time back": ({"Loop": "wrap", "Frames": with_number(0, -0.1)}, "frame 1 lasts -0.1 s"),
    "hours": ({"Loop": "wrap", "Frames": with_number(0, 1e6)}, "last 1e+06 s in all, and at most 3600"),
    "unknown loop": ({"Loop": "mirror", "Frames": [FRAME, FRAME]}, '"Loop" is \'mirror\'; it must be "wrap"'),
    "no loop": ({"Frames": [FRAME, FRAME]}, '"Loop" is missing; it must be'),
    "no rotation": ({"Loop": "none", "Frames": with_number(8, 0.0)}, "quaternion of chest in frame 1 has length 0"),
}


@pytest.mark.parametrize("case", BAD_FILES)
def test_bad_files(case, tmp_path):
    content, message = BAD_FILES[case]
    path = tmp_path / "bad.txt"
    path.write_bytes(content if isinstance(content, bytes) else json.dumps(content).encode())
    with pytest.raises(ClipError) as caught:
        load_clip(path)
    text = str(caught.value)
    assert text.startswith(f"{path}: ")
    assert message in text
    assert "\n" not in text
    assert len(text) < 400


@pytest.mark.parametrize(("name", "message"), {"none.txt": "No such file", "": "Is a directory"}.items())
def test_files_that_cannot_be_opened(name, message, tmp_path):
    with pytest.raises(ClipError, match=f"cannot be read.*{message}.*; name a clip or its file"):
        load_clip(tmp_path / name)


def test_a_byte_order_mark_is_no_harm(tmp_path):
    path = written(tmp_path, [FRAME, FRAME])
    path.write_bytes(b"\xef\xbb\xbf" + path.read_bytes())
    assert load_clip(path).duration == pytest.approx(0.1)


# Finding files.


def test_find_clip(tmp_path, monkeypatch):
    """A path goes before a name, and the data folder before the download folder."""
    data, cache = tmp_path / "data", tmp_path / "cache"
    monkeypatch.setenv("VDBJAX_DATA", str(data))
    monkeypatch.setenv("XDG_CACHE_HOME", str(cache))
    assert mocap.download_folder() == cache / "vdbjax" / "deepmimic"
    with pytest.raises(ClipError, match=r"clip walk: .*deepmimic; `python -m vdbjax.mocap download` fetches the clips"):
        mocap.find_clip("walk")
    with pytest.raises(ClipError, match=r"clip humanoid3d_spinkik: .*did you mean spinkick"):
        mocap.find_clip("humanoid3d_spinkik")
    for folder in (cache / "vdbjax" / "deepmimic", data / "deepmimic"):
        folder.mkdir(parents=True)
        path = written(folder, [FRAME, FRAME], name="humanoid3d_walk.txt")
        assert mocap.find_clip("walk") == path
    assert mocap.find_clip(str(path)) == path
    monkeypatch.chdir(tmp_path)
    (tmp_path / "walk").write_text("")
    assert mocap.find_clip("walk") == Path("walk")


@pytest.mark.parametrize("cache", ["", "relative"])
def test_download_folder_without_a_cache(cache, monkeypatch):
    """The XDG specification has paths that are not absolute ignored."""
    monkeypatch.setenv("XDG_CACHE_HOME", cache)
    assert mocap.download_folder() == Path.home() / ".cache" / "vdbjax" / "deepmimic"
