"""Video imitation: the planar humanoid, its pictures against MuJoCo's renderer, and who sees what."""

import ctypes.util
import dataclasses
import functools
import os
import subprocess
import sys
from pathlib import Path

import jax
import jax.numpy as jnp
import mujoco
import numpy as np
import pytest
from test_mocap import frame, turned, written

from vdbjax import recipes, saliency
from vdbjax.build import build
from vdbjax.data.mocap import find_clip, load_clip
from vdbjax.envs import painter
from vdbjax.envs.env import EnvironmentConfig, make_environment
from vdbjax.envs.humanoid_model import BODIES, make_model
from vdbjax.envs.mocap_humanoid import observe_clip
from vdbjax.envs.planar_humanoid import ELBOW_BEND, PLANAR, projected
from vdbjax.envs.reference_motion import make_motion
from vdbjax.envs.video import in_plane, picture
from vdbjax.imitation import gail
from vdbjax.imitation.adversarial_step import DiscriminatorConfig
from vdbjax.imitation.pixel_reward import frame_at, pixel_reward
from vdbjax.trained import Trained
from vdbjax.types import Film

CAN_DRAW = sys.platform != "linux" or ctypes.util.find_library("EGL")
needs_graphics = pytest.mark.skipif(not CAN_DRAW, reason="no graphics library; apt-get install libegl1")
needs_data = pytest.mark.skipif("VDBJAX_DATA" not in os.environ, reason="VDBJAX_DATA names no folder with deepmimic/")
LEAST_OVERLAP, MEAN_OVERLAP = 0.85, 0.95
"""Intersection over union of silhouettes: 0.91 was measured where the figure stands upright, 0.97 to 1 in strides."""


def striding(folder: Path) -> Path:
    """A second of walking on the spot, all in the plane; the file's z axis points to the right."""
    swing = 0.5 * np.sin(2 * np.pi * np.arange(31) / 30)
    about_z = lambda turn: turned(2, turn)  # noqa: E731
    frames = [
        frame(
            1 / 30,
            position=(0.0, 0.87, 0.0),
            root=about_z(-0.1 + 0.2 * s),
            chest=about_z(0.2 * s),
            right_hip=about_z(0.2 + s),
            left_hip=about_z(0.2 - s),
            right_knee=(-0.5 + s,),
            left_knee=(-0.5 - s,),
            right_ankle=about_z(0.2),
            right_shoulder=about_z(-s),
            left_shoulder=about_z(s),
            right_elbow=(-ELBOW_BEND,),
            left_elbow=(-ELBOW_BEND,),
        )
        for s in swing
    ]
    return written(folder, frames, loop="wrap")


@pytest.fixture(scope="module")
def clip_file(tmp_path_factory):
    """The file of `striding`."""
    return striding(tmp_path_factory.mktemp("clip"))


@functools.cache
def motions(path):
    """(the humanoid's, the planar one's) of a file."""
    clip, flat = load_clip(path), projected(load_clip(path))
    return make_motion(clip, make_model()), make_motion(flat, make_model(PLANAR), PLANAR)


# The character.


def test_twelve_degrees_of_freedom_of_45_kg():
    model = make_model(PLANAR)
    assert (model.nq, model.nv, model.nu) == (12, 12, 9)
    assert model.body_mass.sum() == pytest.approx(45.0)
    np.testing.assert_allclose(model.body_mass, make_model().body_mass)
    names = [
        "chest",
        *(f"{side}_{joint}" for side in ("right", "left") for joint in ("hip", "knee", "ankle", "shoulder")),
    ]
    assert PLANAR.hinges == tuple(f"{name}_y" for name in names)
    assert [model.joint(name).qposadr[0] for name in PLANAR.hinges] == PLANAR.qpos_of_hinges.tolist()
    assert [model.actuator(index).name for index in range(9)] == list(PLANAR.hinges)


def test_it_never_leaves_the_plane():
    model = make_model(PLANAR)
    data = mujoco.MjData(model)
    mujoco.mj_resetData(model, data)
    data.qpos[1] = 1.0
    data.qvel[:] = np.random.default_rng(0).standard_normal(12)
    at_rest = None
    for _ in range(60):
        mujoco.mj_step(model, data)
        at_rest = data.xpos[1:, 1].copy() if at_rest is None else at_rest
        np.testing.assert_allclose(data.xpos[1:, 1], at_rest, atol=1e-9)


def test_a_planar_clip_is_projected_onto_itself(clip_file):
    """Forward kinematics of both models, with joints that only turn about y. Only what hangs on the shoulders differs a
    little in speed: a turn about y moves all three hinges of the humanoid's, and these are smoothed one by one.
    """
    humanoid, planar = motions(clip_file)
    on_shoulders = np.array([name.endswith(("elbow", "wrist")) for name in BODIES])
    there, here = (motion.bodies.position[..., ::2] for motion in (humanoid, planar))
    np.testing.assert_allclose(here, there, atol=1e-6)
    there, here = (motion.bodies.velocity[..., ::2] for motion in (humanoid, planar))
    np.testing.assert_allclose(here[:, ~on_shoulders], there[:, ~on_shoulders], atol=1e-6)
    np.testing.assert_allclose(here[:, on_shoulders], there[:, on_shoulders], atol=3e-3)


@needs_data
def test_limbs_have_the_direction_that_a_camera_beside_sees():
    humanoid, planar = motions(find_clip("run"))

    def direction(motion, upper, lower):
        upper, lower = (motion.bodies.position[:, BODIES.index(name)] for name in (upper, lower))
        return np.arctan2((lower - upper)[:, 0], (lower - upper)[:, 2])

    for pair in (("right_hip", "right_knee"), ("left_knee", "left_ankle"), ("left_shoulder", "left_elbow")):
        difference = direction(humanoid, *pair) - direction(planar, *pair)
        # Exact at the clip's frames; between them the two models interpolate their own rotations.
        np.testing.assert_allclose(np.angle(np.exp(1j * difference)), 0.0, atol=0.03)
    ankles = [BODIES.index(name) for name in ("right_ankle", "left_ankle")]
    lowest = [motion.bodies.position[:, ankles, 2].min(axis=1) for motion in (humanoid, planar)]
    np.testing.assert_allclose(*lowest, atol=0.01)


# The painter.


def silhouettes(motion, rows):
    """Of some rows of the table, what the painter covers by at least half."""
    seen = observe_clip(motion, jnp.asarray(rows * motion.duration / motion.num_rows, jnp.float32))
    free = np.prod([1.0 - np.asarray(c) for c in painter.coverage(PLANAR.parts, *in_plane(seen))], axis=0)
    return 1.0 - free.reshape(-1, painter.PIXELS, painter.PIXELS) >= 0.5


def draw_depths(poses: str, out: str) -> None:
    """In a process of its own: MuJoCo's depth pictures of rows of qpos, metres from the camera."""
    model = make_model(PLANAR)
    data, renderer = mujoco.MjData(model), mujoco.Renderer(model, painter.PIXELS, painter.PIXELS)
    renderer.enable_depth_rendering()
    pictures = []
    for pose in np.load(poses):
        data.qpos[:] = pose
        mujoco.mj_forward(model, data)
        renderer.update_scene(data, painter.side_camera(model, pose[0]))
        pictures.append(renderer.render())
    renderer.close()
    np.save(out, np.stack(pictures))


@needs_graphics
@pytest.mark.parametrize("name", ["striding", pytest.param("run", marks=[needs_data, pytest.mark.long])])
def test_silhouettes_are_those_of_mujocos_renderer(name, clip_file, tmp_path):
    _, motion = motions(clip_file if name == "striding" else find_clip(name))
    rows = np.arange(0, motion.num_rows, motion.num_rows // 8)
    np.save(tmp_path / "poses.npy", motion.qpos[rows])
    command = [sys.executable, __file__, str(tmp_path / "poses.npy"), str(tmp_path / "depths.npy")]
    done = subprocess.run(command, capture_output=True, text=True, env={"MUJOCO_GL": "egl", **os.environ})
    assert done.returncode == 0, done.stderr
    theirs, ours = np.load(tmp_path / "depths.npy") < 6.0, silhouettes(motion, rows)  # the camera stands 4 m off
    overlaps = (theirs & ours).sum(axis=(1, 2)) / (theirs | ours).sum(axis=(1, 2))
    assert overlaps.min() >= LEAST_OVERLAP, overlaps
    assert overlaps.mean() >= MEAN_OVERLAP, overlaps


def test_near_limbs_hide_far_ones_and_are_lighter(clip_file):
    _, motion = motions(clip_file)
    pictures = np.asarray(picture(observe_clip(motion, jnp.array([0.25, 0.75]))))
    assert pictures.shape == (2, 64, 64, 3)
    assert pictures.dtype == np.uint8
    for colour in painter.LAYERS.values():
        same = np.abs(pictures.astype(int) - np.round(255 * np.array(colour))).max(axis=-1) <= 1
        assert same.sum(axis=(1, 2)).min() > 20
    brightness = [sum(colour) for colour in painter.LAYERS.values()]
    assert brightness == sorted(brightness)
    np.testing.assert_array_equal(pictures[:, 0], np.broadcast_to(np.round(255 * np.array(painter.SKY)), (2, 64, 3)))
    np.testing.assert_array_equal(
        pictures[:, -1], np.broadcast_to(np.round(255 * np.array(painter.GROUND)), (2, 64, 3))
    )
    # Half a stride later left and right have changed places: the silhouette is that of the mirrored phase.
    first, second = silhouettes(motion, np.array([0, motion.num_rows // 2]))
    assert (first & second).sum() > 0.9 * first.sum()


@pytest.mark.long
def test_pictures_do_not_depend_on_the_batch(clip_file):
    _, motion = motions(clip_file)
    seen = observe_clip(motion, jnp.linspace(0.0, 1.0, 2 * painter.BATCH + 3))
    together = np.asarray(picture(seen))
    np.testing.assert_array_equal(np.asarray(picture(seen[7])), together[7])
    np.testing.assert_array_equal(np.asarray(picture(seen[None, -2:]))[0], together[-2:])


# Rewards and recipes.


def test_pixel_reward_by_hand():
    black = np.zeros((2, 64, 64, 3), np.uint8)
    shown = black.copy()
    shown[0, 5, 6, 1] = 255  # one colour of one pixel wholly off
    shown[1] = 51  # every one by a fifth
    black, shown = jnp.asarray(black), jnp.asarray(shown)
    np.testing.assert_allclose(pixel_reward(shown, black), [1 - 1 / (3 * 64**2), 1 - 0.04], rtol=1e-6)
    assert float(pixel_reward(black[0], black[0])) == 1.0


def test_the_frame_of_a_phase_is_the_nearest():
    turns = 2 * np.pi * np.arange(4) / 4
    film = Film(np.arange(4, dtype=np.uint8).reshape(4, 1, 1, 1), np.stack([np.cos(turns), np.sin(turns)], axis=1))
    angles = 2 * np.pi * jnp.array([0.1, 0.2, 0.6, 0.99])
    found = frame_at(film, jnp.stack([jnp.cos(angles), jnp.sin(angles)], axis=1))
    assert np.asarray(found).ravel().tolist() == [0, 1, 2, 0]


def small(name, clip_file):
    """The recipe with everything that costs time cut down."""
    config = recipes.find_recipe(name)
    sizes = {"rollout_length": 4, "minibatch_size": 8, "num_epochs": 1, "hidden_sizes": (8,)}
    algorithm = dataclasses.replace(config.algorithm, ppo=dataclasses.replace(config.algorithm.ppo, **sizes))
    if hasattr(algorithm, "discriminator"):
        cut = {"batch_size": 8, "hidden_sizes": (8,), "channels": (4, 4), "updates": 2}
        algorithm = dataclasses.replace(algorithm, discriminator=dataclasses.replace(algorithm.discriminator, **cut))
    task = EnvironmentConfig(env=f"video/{clip_file}", engine="c")
    return dataclasses.replace(config, algorithm=algorithm, environment=task, num_envs=4, total_steps=32)


@functools.cache
def environment(clip_file):
    """One for all recipes."""
    return make_environment(EnvironmentConfig(env=f"video/{clip_file}", engine="c"))


VIDEO_RECIPES = ("video-vail", pytest.param("video-gail", marks=pytest.mark.slow), "video-pixel")


@pytest.fixture(scope="module", params=VIDEO_RECIPES)
def trained(request, clip_file):
    """(config, what was built, state, metrics) of a recipe after two iterations."""
    config = small(request.param, clip_file)
    built = build(config, environment=environment(clip_file))
    update = jax.jit(lambda state: built.algorithm.update(state, None))
    state, _ = update(built.algorithm.init(jax.random.key(0)))
    return config, built, *update(state)


@pytest.mark.long
def test_recipes_train(trained):
    config, built, state, metrics = trained
    assert int(state.step) == 2
    assert all(np.isfinite(value) for value in metrics.values())
    assert built.environment.demonstrations is None  # nothing to learn from but the film
    if config.recipe == "video-pixel":
        assert 0.8 < float(metrics["reward/mean"]) < 1.0
        return
    assert ("bottleneck/kl_nats" in metrics) == (config.recipe == "video-vail")
    assert {"discriminator/expert_accuracy", "discriminator/policy_accuracy"} <= metrics.keys()


@pytest.mark.long
def test_the_discriminator_sees_pixels_only(trained, clip_file):
    config, built, state, _ = trained
    if config.recipe != "video-vail":
        return  # the others have the same code, or no discriminator
    task = built.environment
    judge, film = gail.make_judge(config.algorithm, task, None, num_envs=4)
    assert film.features.dtype == jnp.uint8
    np.testing.assert_array_equal(film.features, task.film.frames)
    seen = task.reset(jax.random.key(1), 4).observation[None]

    def reward(observation):
        nothing = jnp.zeros((*observation.shape[:-1], 0))
        judged = judge.judge(observation, nothing, observation, jnp.zeros(observation.shape[:-1], bool))
        return np.asarray(judge.reward(state.discriminator.params, judged))

    plain = reward(seen)
    # After the places and directions come velocities, which no picture shows; the phase at the end is shared by all.
    moving = 1 + 2 * (len(BODIES) - 1) + 2 * len(BODIES)
    np.testing.assert_array_equal(reward(seen.at[..., moving:-2].add(3.0)), plain)
    assert np.abs(reward(seen.at[..., 0].add(0.3)) - plain).max() > 0  # lifted
    # And what it says of the painted pictures is what it says of the observations.
    pictures = task.picture(seen)
    blend = judge.judge(seen, seen, seen, jnp.zeros((1, 4), bool)).blend
    logits = judge.logit(state.discriminator, pictures / 255.0, blend)
    np.testing.assert_allclose(jax.nn.softplus(logits), plain, rtol=1e-4)


@pytest.mark.long
def test_saliency_is_the_slope_of_the_logit(trained, tmp_path):
    config, built, state, _ = trained
    run = Trained(config, built, [jax.device_get(state._replace(key=0))], 2)
    if config.recipe == "video-pixel":
        with pytest.raises(ValueError, match="video-pixel has no discriminator of pictures"):
            saliency.look(run, pictures=2, seed=0)
        return
    if config.recipe == "video-gail":
        return  # the same code: one figure is enough
    sides = saliency.look(run, pictures=2, seed=0)
    np.testing.assert_array_equal(sides[0].frames[0], built.environment.film.frames[0])
    judge, film = gail.make_judge(config.algorithm, built.environment, None, num_envs=4)
    frames, blend = film.features[:1] / 255.0, film.blend[:1]
    step = 1e-2
    row, column, _ = np.unravel_index(np.argmax(sides[0].slope[0]), (64, 64, 1))
    slopes = []
    for colour in range(3):
        ends = [
            float(judge.logit(state.discriminator, frames.at[0, row, column, colour].add(s), blend)[0])
            for s in (-step, step)
        ]
        slopes.append((ends[1] - ends[0]) / (2 * step))
    assert sides[0].slope[0, row, column] == pytest.approx(np.linalg.norm(slopes), rel=0.05)
    saliency.draw({"vail": sides}, tmp_path / "saliency.png")
    assert (tmp_path / "saliency.png").stat().st_size > 10_000


BAD_CONFIGS = {
    "phase as input": ({"inputs": "frame"}, "inputs 'frame' with phase 'input'"),
    "absorbing": ({"inputs": "frame", "phase": "none", "absorbing": True}, "and absorbing True"),
}


@pytest.mark.parametrize("case", BAD_CONFIGS)
def test_bad_configs(case):
    changes, message = BAD_CONFIGS[case]
    with pytest.raises(ValueError, match=message):
        DiscriminatorConfig(**changes)


if __name__ == "__main__":
    draw_depths(*sys.argv[1:])
