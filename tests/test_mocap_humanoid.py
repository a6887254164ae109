"""The mocap humanoid: its model, the reference it follows, its episodes, against MuJoCo and hand arithmetic."""

import dataclasses
import os
from functools import partial
from pathlib import Path

import jax
import jax.numpy as jnp
import mujoco
import numpy as np
import pytest
from made_clip import swinging
from scipy.spatial.transform import Rotation

from vdbjax.build import build
from vdbjax.data.mocap import JOINTS, Clip, Pose, load_clip, pose_at
from vdbjax.envs.bodies import bodies_of
from vdbjax.envs.env import EnvironmentConfig, make_environment
from vdbjax.envs.frame import Frame, unpack
from vdbjax.envs.humanoid_model import BODIES, HUMANOID, PARTS, make_model, to_qpos
from vdbjax.envs.mocap_humanoid import (
    fall_detector,
    follow_clip,
    follow_reference,
    make_mocap,
    nearest_turn,
    observe,
    observe_clip,
    tracking_reward,
)
from vdbjax.envs.physics import make_engine
from vdbjax.envs.planar_humanoid import PLANAR, projected
from vdbjax.envs.reference_motion import Anchor, arrived_at, bodies_at, carried_on, cycle_of, laid, make_motion, moved
from vdbjax.networks import phase_blend
from vdbjax.recipes import find_recipe
from vdbjax.rotations import about, angle_between, multiply

DATA = os.environ.get("VDBJAX_DATA")
needs_data = pytest.mark.skipif(not DATA, reason="VDBJAX_DATA names no folder with deepmimic/ in it")
PUBLISHED = ("walk", "run", "cartwheel", "backflip", "spinkick", "dance_a")


@pytest.fixture(scope="module")
def model() -> mujoco.MjModel:
    return make_model()


@pytest.fixture(scope="module")
def clip_path(tmp_path_factory) -> Path:
    return swinging(tmp_path_factory.mktemp("clip"))


@pytest.fixture(scope="module")
def environment(clip_path):
    return make_mocap(str(clip_path), engine="c")


@pytest.fixture(scope="module")
def motion(clip_path, model):
    return make_motion(load_clip(clip_path), model)


def published(name: str):
    return load_clip(Path(str(DATA)) / "deepmimic" / f"humanoid3d_{name}.txt")


# The model.


def test_the_character_has_the_papers_numbers(model):
    assert (model.nv, model.nu) == (34, 28)
    assert model.body_mass.sum() == pytest.approx(45.0)
    limits = dict(zip([model.actuator(i).name for i in range(model.nu)], model.actuator_forcerange[:, 1]))
    by_hand = {"chest_x": 200, "neck_z": 50, "left_hip_y": 200, "right_knee_y": 150, "left_ankle_x": 90}
    by_hand |= {"right_shoulder_z": 100, "left_elbow_y": 60}
    assert {name: limits[name] for name in by_hand} == by_hand
    assert [model.actuator(i).name for i in range(model.nu)] == list(HUMANOID.hinges)
    assert model.opt.integrator == mujoco.mjtIntegrator.mjINT_IMPLICITFAST


def places_by_hand(pose) -> dict[str, tuple[np.ndarray, Rotation]]:
    """Forward kinematics straight from the file's meaning: each joint turns its body within the parent's frame."""
    found = {}
    for part in PARTS:
        if part.name == "root":
            rotation = Rotation.from_quat(pose.rotation[0][[1, 2, 3, 0]])
            found["root"] = (pose.root_position, rotation)
            continue
        place, turned = found[part.parent]
        own = Rotation.identity()
        if part.name in JOINTS:
            own = Rotation.from_quat(pose.rotation[1 + JOINTS.index(part.name)][[1, 2, 3, 0]])
        found[part.name] = (place + turned.apply(part.offset), turned * own)
    return found


@needs_data
@pytest.mark.parametrize("name", PUBLISHED)
def test_forward_kinematics_is_that_of_the_clip(name):
    clip = published(name)
    times = np.linspace(0.0, 1.7 * clip.duration, 9)
    qpos = to_qpos(pose_at(clip, times))
    bodies = bodies_of(qpos, np.zeros((len(times), 34)))
    for row, seconds in enumerate(times):
        for index, (place, rotation) in enumerate(places_by_hand(pose_at(clip, seconds)).values()):
            np.testing.assert_allclose(bodies.position[row, index], place, atol=2e-6)
            ours = Rotation.from_quat(bodies.rotation[row, index][[1, 2, 3, 0]])
            assert (ours.inv() * rotation).magnitude() < 1e-5


@pytest.mark.parametrize("character", [HUMANOID, PLANAR], ids=["humanoid", "planar"])
def test_bodies_are_those_of_mujoco(character):
    model = make_model(character)
    data, rng = mujoco.MjData(model), np.random.default_rng(0)
    qpos, qvel = rng.normal(size=(5, model.nq)), rng.normal(size=(5, model.nv))  # quaternions of any length
    bodies = bodies_of(qpos, qvel, character)
    for row in range(len(qpos)):
        data.qpos[:], data.qvel[:] = qpos[row], qvel[row]
        mujoco.mj_forward(model, data)
        np.testing.assert_allclose(bodies.centre_of_mass[row], data.subtree_com[1], atol=1e-12)
        for index, part in enumerate(character.parts):
            found, velocity = model.body(part.name).id, np.zeros(6)
            np.testing.assert_allclose(bodies.position[row, index], data.xpos[found], atol=1e-12)
            apart = angle_between(multiply(data.xquat[found], np.array(part.after)), bodies.rotation[row, index])
            assert apart < 1e-7
            mujoco.mj_objectVelocity(model, data, mujoco.mjtObj.mjOBJ_XBODY, found, velocity, 0)
            np.testing.assert_allclose(bodies.angular[row, index], velocity[:3], atol=1e-12)
            np.testing.assert_allclose(bodies.velocity[row, index], velocity[3:], atol=1e-12)


def test_a_control_step_is_mujocos_own_whatever_stands_beside_it(model, motion):
    engine = make_engine(model, "c", frame_skip=4, cold_start=True)
    rows = np.arange(0, motion.num_rows, 7)
    frame = Frame(motion.qpos[rows], motion.qvel[rows], np.zeros_like(motion.qvel[rows]), {})
    control = frame.qpos[:, 7:] + np.random.default_rng(0).normal(scale=0.3, size=(len(rows), model.nu))
    after = engine.advance(frame, control)
    data = mujoco.MjData(model)
    for index in range(len(rows)):
        mujoco.mj_resetData(model, data)
        data.qpos, data.qvel, data.ctrl = frame.qpos[index], frame.qvel[index], control[index]
        mujoco.mj_step(model, data, 4)
        np.testing.assert_array_equal(after.qpos[index], data.qpos)
        np.testing.assert_array_equal(after.qvel[index], data.qvel)
    alone = engine.advance(jax.tree.map(lambda part: part[3:4], frame), control[3:4])
    jax.tree.map(lambda one, all_: np.testing.assert_array_equal(one[0], all_[3]), alone, after)


def test_one_call_for_all_derives_no_fields(model):
    with pytest.raises(ValueError, match=r"no derived fields \(xpos\)"):
        make_engine(model, "c", frame_skip=4, derived=("xpos",), cold_start=True)


def contacts_and_falls(model: mujoco.MjModel, motion, *, but: set[str] = frozenset()) -> tuple[list[bool], list[bool]]:
    """Of random postures near the floor: MuJoCo's contacts of anything but feet and those named; what we call falls."""
    data, rng, fallen = mujoco.MjData(model), np.random.default_rng(1), fall_detector(motion)
    watched = {model.geom(name).id for name in BODIES if not name.endswith("ankle") and name not in but}
    touched, postures = [], []
    for _ in range(60):
        data.qpos[:] = rng.normal(size=model.nq) * 0.7
        data.qpos[2] = rng.uniform(0.4, 1.2)
        data.qpos[3:7] /= np.linalg.norm(data.qpos[3:7])
        mujoco.mj_forward(model, data)
        touched.append(any(watched & {int(g) for g in contact.geom} for contact in data.contact))
        postures.append(data.qpos.copy())
    bodies = bodies_of(np.array(postures), np.zeros((len(postures), model.nv)))
    return touched, jax.device_get(fallen(jax.tree.map(jnp.asarray, bodies))).tolist()


def test_a_fall_is_contact_of_anything_but_the_feet(model, motion):
    touched, found = contacts_and_falls(model, motion)
    assert found == touched
    assert 10 < sum(touched) < 50


@needs_data
def test_hands_may_touch_where_the_clip_puts_them_down(model):
    motion = make_motion(published("cartwheel"), model)
    touched, found = contacts_and_falls(model, motion, but={f"{side}_wrist" for side in ("left", "right")})
    assert all(touched[i] for i, fell in enumerate(found) if fell)
    assert sum(found) < sum(contacts_and_falls(model, motion)[0])
    assert not bool(fall_detector(motion)(jax.tree.map(jnp.asarray, motion.bodies)).any())


# The reference.


def test_an_episode_starts_on_the_clip(environment):
    state = environment.reset(jax.random.key(0), 16)
    character, reference = jax.jit(environment.follow)(state)
    assert float(angle_between(character.rotation, reference.rotation).max()) < 1e-3
    assert float(jnp.abs(character.position - reference.position)[..., :2].max()) < 1e-4
    assert len(np.unique(np.asarray(state.physics.start))) > 8


@pytest.mark.parametrize("character", [HUMANOID, PLANAR], ids=["humanoid", "planar"])
def test_who_would_start_in_the_floor_is_lifted_out_of_it(character, clip_path):
    """The physics begins where the bodies are, in the plane too, and nothing is in the floor."""
    clip, model = load_clip(clip_path), make_model(character)
    sunk = clip.pose._replace(root_position=clip.pose.root_position - [0.0, 0.0, 0.2])
    recorded = clip._replace(pose=sunk)
    shown = projected(recorded) if character.planar else recorded
    environment, motion = follow_clip(shown, character, engine="c", implementation="jax", targets="absolute")
    assert motion.lift.min() > 0.1
    state = environment.reset(jax.random.key(0), 8)
    frame, _ = unpack(np.asarray(state.physics.frame), model)
    of_physics = bodies_of(frame.qpos, frame.qvel, character)
    np.testing.assert_allclose(state.physics.bodies.position, of_physics.position, atol=1e-6)
    data = mujoco.MjData(model)
    for row in frame.qpos:
        data.qpos[:] = row
        mujoco.mj_forward(model, data)
        assert not (data.contact.dist < 0).any()


@pytest.mark.parametrize("loop", [True, False])
@pytest.mark.parametrize(("hertz", "kept"), [(1, 1 / (1 + 6**-4)), (6, 0.5), (12, 1 / 17)])
def test_velocities_fade_from_6_hertz_on_and_do_not_lag(hertz, kept, loop, model):
    """A knee that swings: its speed by calculus, less what a difference over 1/30 s and the filter leave out."""
    seconds = np.arange(241) / 240
    turns = 2 * np.pi * hertz * seconds
    rotation = np.broadcast_to([1.0, 0.0, 0.0, 0.0], (241, 1 + len(JOINTS), 4)).copy()
    rotation[:, 1 + JOINTS.index("left_knee")] = about(1, 0.1 * np.sin(turns))
    clip = Clip("swing", loop, seconds, Pose(np.zeros((241, 3)), rotation))
    knee = HUMANOID.qvel_of_hinges[HUMANOID.hinges.index("left_knee_y")]
    difference = np.sinc(2 * hertz / 60)
    expected = 0.2 * np.pi * hertz * difference * kept * np.cos(turns)
    inside = slice(None) if loop else slice(60, -60)  # ends that are held are no sine
    np.testing.assert_allclose(make_motion(clip, model).qvel[inside, knee], expected[inside], atol=0.02)


def test_speeds_at_the_ends_of_a_clip_without_loop_are_those_within_it(model):
    """A knee that turns evenly: the pose is held beyond the ends, and the speed is taken up to them."""
    seconds = np.arange(121) / 60
    rotation = np.broadcast_to([1.0, 0.0, 0.0, 0.0], (121, 1 + len(JOINTS), 4)).copy()
    rotation[:, 1 + JOINTS.index("left_knee")] = about(1, 0.5 * seconds)
    clip = Clip("bend", False, seconds, Pose(np.zeros((121, 3)), rotation))
    knee = HUMANOID.qvel_of_hinges[HUMANOID.hinges.index("left_knee_y")]
    np.testing.assert_allclose(make_motion(clip, model).qvel[:, knee], 0.5, atol=1e-6)


def test_what_is_observed_does_not_depend_on_place_or_heading(motion):
    seconds = jnp.array([0.1, 0.4, 0.8])
    bodies, see = jax.jit(partial(bodies_at, motion))(seconds), jax.jit(partial(observe, motion))
    anchor = Anchor(jnp.array([[5.0, -3.0], [0.1, 2.0], [-9.0, 0.0]]), jnp.array([1.0, -2.0, 3.0]))
    elsewhere = jax.jit(laid)(bodies, anchor)
    np.testing.assert_allclose(see(bodies, seconds), see(elsewhere, seconds), atol=2e-5)
    turned = bodies._replace(
        rotation=multiply(jnp.broadcast_to(about(0, jnp.array(0.3)), bodies.rotation.shape), bodies.rotation)
    )
    assert float(jnp.abs(see(bodies, seconds) - see(turned, seconds)).max()) > 0.05


def test_the_phase_ends_the_observation(motion):
    seconds = jnp.array([0.0, 0.25, 0.5, 1.25])
    phase = jax.jit(partial(observe_clip, motion))(seconds)[:, -2:]
    np.testing.assert_allclose(phase, [[1, 0], [0, 1], [-1, 0], [0, 1]], atol=1e-6)


def test_the_end_of_a_clip_without_loop_is_another_phase_than_its_start(motion):
    times = jnp.linspace(0.0, motion.duration, 5)
    phase = jax.jit(partial(observe_clip, motion._replace(loop=False)))(times)[:, -2:]
    angles = 2 * np.pi * 0.8 * np.linspace(0.0, 1.0, 5)
    np.testing.assert_allclose(phase, np.stack([np.cos(angles), np.sin(angles)], axis=-1), atol=1e-6)
    np.testing.assert_allclose(phase_blend(phase, num_sets=5), np.eye(5), atol=1e-5)  # from its first set to its last


# Velocities in the mean over a control step.


def test_mean_velocities_by_hand(motion):
    before = jax.jit(partial(bodies_at, motion))(jnp.array([0.2, 0.7]))
    spin = jnp.array([0.0, 0.0, 4.0])  # rad/s about the vertical, about the origin
    turned = jax.jit(laid)(before, Anchor(jnp.array([[0.5, 0.0], [0.0, -0.25]]), jnp.full(2, 0.4)))
    after = turned._replace(rotation=-turned.rotation)  # the same rotations
    found = jax.jit(partial(moved, seconds=0.1))(before, after)
    np.testing.assert_allclose(found.angular, jnp.broadcast_to(spin, found.angular.shape), atol=1e-4)
    np.testing.assert_allclose(found.velocity, (after.position - before.position) / 0.1, atol=1e-5)
    np.testing.assert_array_equal(found.position, after.position)


@pytest.mark.parametrize("loop", [True, False])
def test_mean_velocities_of_a_clip_carry_it_as_far_as_it_goes(motion, loop):
    motion = motion._replace(loop=loop)
    times = jnp.arange(1, 31) / 30 + (0.21 if loop else 0.0)  # a whole cycle, of a loop across its seam
    found = jax.jit(partial(arrived_at, motion, step=1 / 30))(times)
    way = np.asarray(found.velocity[:, 0, :2]).sum(axis=0) / 30
    np.testing.assert_allclose(way, [0.3, 0.0], atol=1e-4)
    np.testing.assert_allclose(found.position, bodies_at(motion, times).position, atol=1e-6)


def test_mean_velocities_within_the_first_step_of_a_clip_are_that_steps(motion):
    times = jnp.array([0.0, 0.01, 1 / 30])
    found = jax.jit(partial(arrived_at, motion._replace(loop=False), step=1 / 30))(times)
    np.testing.assert_allclose(found.velocity, jnp.broadcast_to(found.velocity[-1:], found.velocity.shape), atol=1e-4)
    np.testing.assert_allclose(found.position, bodies_at(motion, times).position, atol=1e-6)


def test_a_step_shows_how_far_the_bodies_came_in_it(clip_path):
    """Of the root: its velocity in its own heading, and the turn about the vertical, from places and rotations."""
    environment = make_mocap(str(clip_path), engine="c", velocities="mean")
    state, step = environment.reset(jax.random.key(0), 4), jax.jit(environment.step)
    for count in range(3):
        before = environment.follow(state)[0]
        middle = (jnp.asarray(environment.action_low) + jnp.asarray(environment.action_high)) / 2
        state, outcome = step(state, jnp.broadcast_to(middle, (4, 28)), jax.random.key(count))
    after, bodies = environment.follow(state)[0], len(BODIES)
    first = 1 + 3 * (bodies - 1) + 6 * bodies  # where velocities begin in the observation
    seen = np.asarray(outcome.next_observation)
    velocity, spin = seen[:, first : first + 3], 10 * seen[:, first + 3 * bodies :][:, :3]
    was, now = (Rotation.from_quat(np.asarray(posture.rotation[:, 0])[:, [1, 2, 3, 0]]) for posture in (before, after))
    forward = now.apply([1.0, 0.0, 0.0])
    level = Rotation.from_rotvec(-np.arctan2(forward[:, 1], forward[:, 0])[:, None] * [0.0, 0.0, 1.0])
    way = np.asarray(after.position[:, 0] - before.position[:, 0], np.float64)
    np.testing.assert_allclose(velocity, level.apply(30 * way), atol=2e-3)
    np.testing.assert_allclose(spin, level.apply(30 * (now * was.inv()).as_rotvec()), atol=2e-3)


def test_starts_and_demonstrations_have_the_clips_mean_velocities(clip_path, motion):
    environment = make_mocap(str(clip_path), engine="c", velocities="mean")
    seconds = jnp.arange(240) / 240
    clip = jax.jit(partial(observe_clip, motion, velocities="mean"))(seconds)
    np.testing.assert_allclose(environment.demonstrations.observation, clip, atol=1e-4)
    state = environment.reset(jax.random.key(0), 16)
    rows = np.asarray(jnp.round(state.physics.start * 240), int)
    np.testing.assert_allclose(state.observation[:, 1:], clip[rows, 1:], atol=1e-4)  # the height is lifted
    momentary = jax.jit(partial(observe_clip, motion))(seconds)
    assert float(jnp.abs(clip - momentary).max()) > 0.05


def test_the_tracking_reward_by_hand(motion):
    bodies, reward = jax.jit(partial(bodies_at, motion))(jnp.array([0.3])), jax.jit(tracking_reward)
    np.testing.assert_allclose(reward(bodies, bodies), [1.0], atol=1e-6)
    # Moving the whole character 0.2 m sideways leaves all but the centre of mass as it is.
    aside = jax.jit(laid)(bodies, Anchor(jnp.array([[0.0, 0.2]]), jnp.zeros(1)))
    np.testing.assert_allclose(reward(aside, bodies), [0.9 + 0.1 * np.exp(-10 * 0.04)], atol=1e-5)
    # An elbow weighs .2 of a mean of .315; its body's rotation alone enters the pose.
    elbow = BODIES.index("left_elbow")
    bent = multiply(bodies.rotation[:, elbow], about(1, jnp.array([0.5])))
    changed = bodies._replace(rotation=bodies.rotation.at[:, elbow].set(bent))
    weights = [1.0, 0.5, 0.3, *([0.5, 0.3, 0.2, 0.3, 0.2] * 2)]
    pose = np.exp(-2 * 0.2 / np.mean(weights) * 0.25)
    expected = 0.35 + 0.65 * pose
    found = float(reward(changed, bodies)[0])
    # The angular velocity of the elbow is now seen in another frame: at most the velocity's tenth is lost by it.
    assert expected - 0.1 <= found <= expected + 1e-5


def test_who_moves_as_the_clip_does_earns_everything_across_cycles_too(motion):
    assert np.linalg.norm(motion.displacement) > 0.1

    def step(anchor, steps):
        begin, end = (jnp.array([0.3]) + count / 30 for count in (steps, steps + 1))
        bodies = carried_on(motion, bodies_at(motion, end), cycle_of(motion, end))
        return follow_reference(motion, anchor, bodies, begin, end)[::-1]

    steps = jnp.arange(round(3.5 * motion.duration * 30))
    earned = jax.lax.scan(step, Anchor(jnp.zeros((1, 2)), jnp.zeros(1)), steps)[1]
    np.testing.assert_allclose(earned, 1.0, atol=1e-3)


# Episodes.


@pytest.fixture(scope="module")
def relative(clip_path):
    return make_mocap(str(clip_path), engine="c", targets="relative")


def joint_errors(environment, state):
    character, reference = environment.follow(state)
    return angle_between(character.rotation, reference.rotation)


def errors_while_held(environment, num_steps: int) -> np.ndarray:
    """Mean joint rotation error a step over 8 starts, until they fall; PD controllers are told the clip's targets."""
    step, compare = jax.jit(environment.step), jax.jit(partial(joint_errors, environment))
    state, errors, up = environment.reset(jax.random.key(0), 8), [], np.ones(8, bool)
    for _ in range(num_steps):
        state, outcome = step(state, jnp.zeros((8, environment.action_size)), jax.random.key(1))
        up &= ~np.asarray(outcome.terminated)
        errors.append(np.asarray(compare(state))[up, 1:].mean())
    assert up.sum() >= 6
    return np.array(errors)


def test_holding_the_targets_of_a_made_clip(relative):
    assert errors_while_held(relative, 15).mean() < 0.06


@needs_data
@pytest.mark.parametrize(("name", "bound"), [("walk", 0.06), pytest.param("run", 0.16, marks=pytest.mark.long)])
def test_holding_the_clips_targets_for_half_a_second(name, bound):
    """Without balance the humanoid falls within a second, but until then its joints are near the clip's."""
    environment = make_mocap(str(Path(str(DATA)) / "deepmimic" / f"humanoid3d_{name}.txt"), targets="relative")
    assert errors_while_held(environment, 15).mean() < bound


def test_an_arm_that_goes_round_goes_on_over_the_end_of_a_cycle():
    """Hinges count their turns, the clip does not."""
    seconds = np.arange(61) / 30
    rotation = np.broadcast_to([1.0, 0.0, 0.0, 0.0], (61, 1 + len(JOINTS), 4)).copy()
    rotation[:, 1 + JOINTS.index("left_shoulder")] = about(1, np.pi * seconds)
    clip = Clip("whirl", True, seconds, Pose(np.tile([0.0, 0.0, 50.0], (61, 1)), rotation))  # high above the ground
    environment, motion = follow_clip(clip, PLANAR, engine="c", implementation="jax", targets="relative")
    shoulder = PLANAR.qpos_of_hinges[PLANAR.hinges.index("left_shoulder_y")]
    assert motion.qpos[-1, shoulder] - motion.qpos[0, shoulder] == pytest.approx(2 * np.pi)
    errors = errors_while_held(environment, 30)  # a second: half of the starts come to the end of the cycle
    assert errors.max() < 0.01


@pytest.mark.parametrize("xp", [np, jnp])
def test_targets_are_met_by_the_nearest_turn_of_what_goes_round(xp, motion):
    """Of a hinge that does not, a target far away is one that the policy chose."""
    winding = motion.qpos.copy()
    shoulder = HUMANOID.hinges.index("left_shoulder_y")
    winding[-1, HUMANOID.qpos_of_hinges[shoulder]] += 2 * np.pi
    qpos, targets = np.zeros((1, winding.shape[1])), np.full((1, len(HUMANOID.hinges)), 0.5)
    qpos[:, HUMANOID.qpos_of_hinges] = 7.0
    found = nearest_turn(motion._replace(qpos=winding), xp.asarray(qpos), xp.asarray(targets))
    np.testing.assert_allclose(found[0, shoulder], 0.5 + 2 * np.pi, rtol=1e-6)
    np.testing.assert_array_equal(np.delete(np.asarray(found[0]), shoulder), 0.5)
    np.testing.assert_array_equal(nearest_turn(motion, xp.asarray(qpos), xp.asarray(targets)), targets)


def test_a_fall_ends_the_episode_and_a_new_one_begins(environment):
    step, compare = jax.jit(environment.step), jax.jit(partial(joint_errors, environment))
    state, terminated = environment.reset(jax.random.key(0), 8), np.zeros(8, bool)
    low = jnp.broadcast_to(jnp.asarray(environment.action_low), (8, environment.action_size))
    for index in range(90):
        before = state
        state, outcome = step(state, low, jax.random.fold_in(jax.random.key(1), index))
        over = np.asarray(outcome.terminated)
        terminated |= over
        assert not bool(outcome.truncated.any())
        np.testing.assert_array_equal(np.asarray(state.elapsed), np.where(over, 0, np.asarray(before.elapsed) + 1))
        if over.any():  # the true last observation is kept, and the next one is of a start on the clip
            assert np.asarray(compare(state))[over].max() < 1e-3
            assert np.abs(np.asarray(outcome.next_observation - state.observation))[over].max() > 0.1
    assert terminated.sum() >= 4


def test_the_time_limit_is_20_seconds(environment):
    assert environment.episode_length == 600
    state = environment.reset(jax.random.key(0), 8)
    state = state._replace(elapsed=jnp.full(8, 599, jnp.int32))
    middle = (jnp.asarray(environment.action_low) + jnp.asarray(environment.action_high)) / 2
    after, outcome = jax.jit(environment.step)(state, jnp.broadcast_to(middle, (8, 28)), jax.random.key(1))
    assert bool(outcome.truncated.all())
    assert not bool(outcome.terminated.any())
    assert int(after.elapsed.max()) == 0


def test_a_clip_without_loop_ends_with_its_last_frame(tmp_path):
    environment = make_mocap(str(swinging(tmp_path, loop="none")), engine="c", targets="relative")
    step = jax.jit(environment.step)
    state, nothing = environment.reset(jax.random.key(3), 8), jnp.zeros((8, 28))
    start = np.asarray(state.physics.start)
    lengths = np.zeros(8, int)
    for index in range(30):
        state, outcome = step(state, nothing, jax.random.key(index))
        ended = np.asarray(outcome.truncated) & (lengths == 0)
        lengths[ended] = index + 1
    assert (lengths > 0).all()
    np.testing.assert_allclose(start + lengths / 30, 1.0, atol=1 / 30 + 1e-4)
    starts = np.asarray(jax.jit(environment.reset, static_argnums=1)(jax.random.key(0), 5_000).physics.start)
    assert 1.0 - 1 / 30 - 1 / 240 < starts.max() <= 1.0 - 1 / 30  # the first step too ends within the clip


def test_a_clip_has_no_actions_to_judge(tmp_path):
    config = find_recipe("motion-vail")
    environment = dataclasses.replace(config.environment, env=f"mocap/{swinging(tmp_path)}", engine="c")
    discriminator = dataclasses.replace(config.algorithm.discriminator, inputs="state-action")
    algorithm = dataclasses.replace(config.algorithm, discriminator=discriminator)
    with pytest.raises(ValueError, match=r"discriminator.inputs 'state-action': what mocap/.* has no actions"):
        build(dataclasses.replace(config, environment=environment, algorithm=algorithm))


@pytest.mark.parametrize("rate", [30.0, 120.0])
def test_own_clips_of_other_frame_rates(rate, tmp_path, environment):
    """The same motion recorded more often is the same task, up to how lines approximate its curves."""
    own = make_mocap(str(swinging(tmp_path, rate=rate)), engine="c")
    np.testing.assert_allclose(own.demonstrations.observation, environment.demonstrations.observation, atol=0.3)
    difference = own.demonstrations.observation - environment.demonstrations.observation
    assert np.sqrt(np.mean(difference**2)) < 0.02


def test_demonstrations_are_the_clips_own_transitions(environment, motion):
    demonstrations = environment.demonstrations
    assert len(demonstrations.observation) == motion.num_rows == 240
    assert not demonstrations.action.any()
    eighth = 240 // 30  # rows a control step
    np.testing.assert_allclose(
        demonstrations.next_observation[:-eighth], demonstrations.observation[eighth:], atol=1e-4
    )


def test_an_action_out_of_the_clips_range_is_never_needed(environment, motion):
    low, high = np.asarray(environment.action_low), np.asarray(environment.action_high)
    angles = motion.qpos[:, HUMANOID.qpos_of_hinges]
    assert (low + 0.29 < angles.min(axis=0)).all()
    assert (high - 0.29 > angles.max(axis=0)).all()


@pytest.mark.slow
@needs_data
@pytest.mark.parametrize("name", ["walk", "run"])
def test_mjx_follows_c_from_a_reference_start(name):
    """The root within 2 mm over 0.3 s; feet are spheres, and the solver is Newton's in both."""
    path = str(Path(str(DATA)) / "deepmimic" / f"humanoid3d_{name}.txt")
    places = {}
    for engine in ("c", "mjx"):
        environment = make_environment(EnvironmentConfig(env=f"mocap/{path}", engine=engine, targets="relative"))
        step = jax.jit(environment.step)
        state, nothing, found = environment.reset(jax.random.key(0), 4), jnp.zeros((4, 28)), []
        for index in range(9):
            state, _ = step(state, nothing, jax.random.key(index))
            found.append(np.asarray(state.physics.bodies.position[:, 0]))
        places[engine] = np.array(found)
    distance = np.linalg.norm(places["c"] - places["mjx"], axis=-1)
    assert distance.max() < 2e-3, distance.max(axis=1)


# What a user may type wrong.


@pytest.mark.parametrize(
    ("config", "message"),
    {
        "mocap/sprint": ({"env": "mocap/sprint"}, "sprint"),
        "no such file": ({"env": "mocap/nowhere/clip.txt"}, "nowhere/clip.txt"),
    }.values(),
)
def test_unknown_clips(config, message):
    with pytest.raises(ValueError, match=message):
        make_environment(dataclasses.replace(EnvironmentConfig(), **config))
