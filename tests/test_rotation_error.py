"""Errors of imitated motions against hand arithmetic, SciPy's rotations, and a search over all warping paths."""

import json
import os
from pathlib import Path

import jax
import jax.numpy as jnp
import numpy as np
import pytest
from scipy.optimize import minimize_scalar
from scipy.spatial.transform import Rotation

from vdbjax.evaluation.rotation_error import (
    MotionErrors,
    dtw_rotation_error,
    motion_errors,
    over_episode,
    rotation_error,
    rotation_error_without_heading,
)
from vdbjax.types import Posture

X, Y, Z = np.eye(3)
CLIPS = ("backflip", "cartwheel", "dance_a", "getup_facedown", "roll", "run", "spinkick", "walk")


def turn(angle_rad, axis):
    """The quaternion (w, x, y, z) by SciPy, which holds w last."""
    return np.roll(Rotation.from_rotvec(angle_rad * np.asarray(axis)).as_quat(), 1, -1)


def pose(*turns):
    return np.stack([turn(*t) for t in turns])


def to_scipy(quaternion):
    return Rotation.from_quat(np.roll(np.asarray(quaternion, np.float64), -1, -1).reshape(-1, 4))


def random_rotations(generator, *shape):
    return np.roll(Rotation.random(int(np.prod(shape)), random_state=generator).as_quat(), 1, -1).reshape(*shape, 4)


def turned_whole(angle_rad, motion):
    """The character as it stands, turned about the vertical: only the root's rotation knows."""
    roots = (Rotation.from_rotvec(angle_rad * Z) * to_scipy(motion[..., 0, :])).as_quat().reshape(*motion.shape[:-2], 4)
    return np.concatenate([np.roll(roots, 1, -1)[..., None, :], motion[..., 1:, :]], axis=-2)


LEVEL = (0.0, Z)
BY_HAND = {
    # character, reference, error, error without heading
    "equal": ([(0.4, X), (1.0, Y)], [(0.4, X), (1.0, Y)], 0.0, 0.0),
    "two joints": ([(0.3, X), (0.5, Y)], [LEVEL, (0.4, Y)], 0.2, 0.2),
    "other axes": ([(0.3, X), (0.3, Y)], [(-0.3, X), (0.2, Y)], 0.35, 0.35),
    "turned root": ([(0.8, Z), (0.1, X)], [LEVEL, LEVEL], 0.45, 0.05),
    "turned both": ([(2.0, Z), (0.1, X)], [(-2.0, Z), LEVEL], (2 * np.pi - 4.0 + 0.1) / 2, 0.05),
    "turned joint": ([LEVEL, (0.8, Z)], [LEVEL, LEVEL], 0.4, 0.4),
    "upside down": ([(np.pi, X), LEVEL], [LEVEL, LEVEL], np.pi / 2, np.pi / 2),
    "largest": ([(np.pi, X), (np.pi, Y)], [LEVEL, LEVEL], np.pi, np.pi),
    "past the vertical": ([(-np.pi / 2 - 0.1, Y), LEVEL], [(-np.pi / 2 + 0.1, Y), LEVEL], 0.1, 0.1),
}


@pytest.mark.parametrize("name", BY_HAND)
def test_errors_by_hand(name):
    character, reference, error, without_heading = BY_HAND[name]
    for kind in (np.asarray, jnp.asarray):
        sides = kind(pose(*character)), kind(pose(*reference))
        np.testing.assert_allclose(rotation_error(*sides), error, atol=1e-6)
        np.testing.assert_allclose(rotation_error_without_heading(*sides), without_heading, atol=1e-6)


@pytest.mark.parametrize("shape", [(13,), (7, 13), (3, 5, 13)])
def test_the_error_is_scipys_magnitude_of_the_difference(shape):
    generator = np.random.default_rng(0)
    character, reference = random_rotations(generator, *shape), random_rotations(generator, *shape)
    angles = (to_scipy(character) * to_scipy(reference).inv()).magnitude().reshape(shape)
    np.testing.assert_allclose(rotation_error(character, reference), angles.mean(-1), rtol=1e-12)
    single = jnp.asarray(character, jnp.float32), jnp.asarray(reference, jnp.float32)
    np.testing.assert_allclose(rotation_error(*single), angles.mean(-1), rtol=1e-5)


def test_without_heading_the_roots_part_is_the_angle_between_their_verticals():
    generator = np.random.default_rng(1)
    character, reference = random_rotations(generator, 200, 1), random_rotations(generator, 200, 1)
    up, reference_up = to_scipy(character).inv().apply(Z), to_scipy(reference).inv().apply(Z)
    expected = np.arctan2(np.linalg.norm(np.cross(up, reference_up), axis=-1), np.sum(up * reference_up, axis=-1))
    np.testing.assert_allclose(rotation_error_without_heading(character, reference), expected, rtol=1e-9)


def test_no_turn_of_the_reference_is_better():
    generator = np.random.default_rng(2)
    for _ in range(10):
        character, reference = random_rotations(generator, 2, 3)

        def after(angle_rad, character=character, reference=reference):
            return float(rotation_error(character, turned_whole(angle_rad, reference)))

        start = min(np.linspace(-np.pi, np.pi, 60), key=after)
        best = minimize_scalar(after, bounds=(start - 0.2, start + 0.2), options={"xatol": 1e-9})
        assert rotation_error_without_heading(character, reference) == pytest.approx(best.fun, abs=1e-7)


def test_the_sign_of_a_quaternion_is_irrelevant():
    generator = np.random.default_rng(3)
    character, reference = random_rotations(generator, 2, 50, 4)
    flipped = character * generator.choice([-1.0, 1.0], (50, 4, 1))
    assert (flipped != character).any()
    for error in (rotation_error, rotation_error_without_heading):
        np.testing.assert_allclose(error(flipped, reference), error(character, reference), atol=1e-12)


def random_states(seed, *batch, bodies=6):
    generator = np.random.default_rng(seed)
    return [(random_rotations(generator, *batch, 4), generator.normal(size=(*batch, bodies, 3))) for _ in range(2)]


def as_jax(states):
    return [Posture(*(jnp.asarray(x, jnp.float32) for x in state)) for state in states]


def test_motion_errors_by_hand():
    """The character stands 2, 3 and 6 m away, so 7 m, and is turned by a right angle, with one body 0.6 m too high."""
    root, hand, foot = [1.0, 0.0, 0.9], [1.5, 0.2, 1.2], [1.0, -0.1, 0.0]
    reference = pose(LEVEL, (0.3, Y)), np.array([root, hand, foot])
    position = np.array([[3.0, 3.0, 6.9], [3.0 - 0.2, 3.0 + 0.5, 7.2], [3.0 + 0.1, 3.0, 6.6]])
    errors = motion_errors(*as_jax([(pose((np.pi / 2, Z), (0.3, Y)), position), reference]))
    np.testing.assert_allclose(errors.rotation_rad, np.pi / 4, rtol=1e-6)
    np.testing.assert_allclose(errors.rotation_without_heading_rad, 0.0, atol=1e-6)
    np.testing.assert_allclose(errors.root_position_m, 7.0, rtol=1e-6)
    np.testing.assert_allclose(errors.body_position_m, 0.3, rtol=1e-5)  # of two bodies besides the root


def test_where_and_which_way_the_character_stands_is_seen_by_two_errors_only():
    (rotation, position), reference = random_states(4, 20)
    elsewhere = Rotation.from_rotvec(1.3 * Z).apply(position.reshape(-1, 3)).reshape(position.shape)
    elsewhere += np.array([5.0, -2.0, 1.0])
    moved = turned_whole(1.3, rotation), elsewhere
    before = motion_errors(*as_jax([(rotation, position), reference]))
    after = motion_errors(*as_jax([moved, reference]))
    for name in ("rotation_without_heading_rad", "body_position_m"):
        np.testing.assert_allclose(getattr(after, name), getattr(before, name), rtol=1e-4)
    for name in ("rotation_rad", "root_position_m"):
        assert np.mean(np.abs(getattr(after, name) - getattr(before, name))) > 0.05


def test_body_positions_are_compared_after_scipys_turn():
    """A reference whose root leans otherwise: its turn is the best of the root's rotation, found by a search."""
    (rotation, position), (other_rotation, other_position) = random_states(5, 3)
    errors = motion_errors(*as_jax([(rotation, position), (other_rotation, other_position)]))
    for i in range(3):
        difference = to_scipy(rotation[i, 0]) * to_scipy(other_rotation[i, 0]).inv()
        angles = np.linspace(-np.pi, np.pi, 4001)
        turns = Rotation.from_rotvec(angles[:, None] * Z)
        best = turns[int(np.argmin((turns.inv() * difference).magnitude()))]
        off = (position[i, 1:] - position[i, 0]) - best.apply(other_position[i, 1:] - other_position[i, 0])
        np.testing.assert_allclose(errors.body_position_m[i], np.linalg.norm(off, axis=-1).mean(), atol=5e-3)


def test_motion_errors_under_jit_and_vmap_are_the_same():
    states = as_jax(random_states(6, 5, 3))
    plain = motion_errors(*states)
    for transformed in (jax.jit(motion_errors), jax.vmap(motion_errors), jax.jit(jax.vmap(jax.vmap(motion_errors)))):
        for one, other in zip(plain, transformed(*states), strict=True):
            assert one.shape == (5, 3)
            np.testing.assert_allclose(one, other, rtol=1e-5, atol=1e-6)


def constant_errors(rotation_rad, position_m, *shape):
    return MotionErrors(*(jnp.full(shape, value) for value in (rotation_rad, rotation_rad / 2, position_m, 1.0)))


EPISODES = {
    # steps alive of 8; rotation error 0.2, position error 0.6
    "stays up": (8, 0.2, 0.1, 0.6),
    "falls after a quarter": (2, 0.2 / 4 + np.pi * 3 / 4, 0.1 / 4 + np.pi * 3 / 4, 0.6),
    "falls at the last step": (7, (7 * 0.2 + np.pi) / 8, (7 * 0.1 + np.pi) / 8, 0.6),
    "falls at once": (0, np.pi, np.pi, np.nan),
}


@pytest.mark.parametrize("after_the_fall", [0.0, 100.0, np.nan, np.inf])
def test_every_step_after_a_fall_counts_pi(after_the_fall):
    steps, *expected = (np.array(x) for x in zip(*EPISODES.values(), strict=True))
    alive = jnp.arange(8)[:, None] < jnp.asarray(steps)[None]
    errors = jax.tree.map(lambda x: jnp.where(alive, x, after_the_fall), constant_errors(0.2, 0.6, 8, 4))
    for over in (over_episode, jax.jit(over_episode), jax.vmap(over_episode, in_axes=1)):
        means = over(errors, alive, ~alive)
        for mean, by_hand in zip(means, expected, strict=False):
            np.testing.assert_allclose(mean, by_hand, rtol=1e-6)
        np.testing.assert_allclose(means.body_position_m, [1.0, 1.0, 1.0, np.nan])


def test_steps_after_the_end_of_a_clip_do_not_count():
    alive = jnp.arange(8)[:, None] < jnp.array([5])[None]
    errors = jax.tree.map(lambda x: jnp.where(alive, x, jnp.nan), constant_errors(0.2, 0.6, 8, 1))
    means = over_episode(errors, alive, jnp.zeros((8, 1), bool))
    np.testing.assert_allclose(np.array(means)[:, 0], [0.2, 0.1, 0.6, 1.0], rtol=1e-6)


def test_errors_of_an_episode_are_means_over_time():
    errors = motion_errors(*as_jax(random_states(7, 30, 2)))
    alive = jnp.ones((30, 2), bool).at[20:, 1].set(False)
    means = over_episode(errors, alive, ~alive)
    for mean, error in zip(means, errors, strict=True):
        np.testing.assert_allclose(mean[0], np.asarray(error)[:, 0].mean(), rtol=1e-5)
    np.testing.assert_allclose(means.root_position_m[1], np.asarray(errors.root_position_m)[:20, 1].mean(), rtol=1e-5)


def best_path(cost, i, j):
    """(sum, pairs) of the best path to (i, j), by plain recursion over every path."""
    if i == j == 0:
        return cost[0, 0], 1
    steps = [(i - 1, j - 1), (i - 1, j), (i, j - 1)]
    total, pairs = min(best_path(cost, *step) for step in steps if min(step) >= 0)
    return total + cost[i, j], pairs + 1


def leaning(*angles_rad):
    """A motion of two joints; frame t leans by angle t at the root and twice that at the other joint."""
    return np.stack([pose((angle, X), (2 * angle, Y)) for angle in angles_rad])


@pytest.mark.parametrize("lengths", [(1, 1), (1, 5), (5, 1), (4, 6), (6, 4), (6, 6)])
def test_warping_takes_the_best_of_all_paths(lengths):
    generator = np.random.default_rng(8)
    for spread_rad in (0.3, 1.0, 3.0):  # of poses on one line, where detours pay
        character, reference = (leaning(*generator.normal(0.0, spread_rad, length)) for length in lengths)
        cost = np.array([[float(rotation_error_without_heading(a, b)) for b in reference] for a in character])
        total, pairs = best_path(cost, *(length - 1 for length in lengths))
        assert dtw_rotation_error(character, reference) == pytest.approx(total / pairs, rel=1e-9)
        assert dtw_rotation_error(reference, character) == pytest.approx(total / pairs, rel=1e-9)


def test_warping_by_hand():
    """Leaning by 1 rad, and by 2 at the other joint, is an error of 1.5 rad."""
    assert dtw_rotation_error(leaning(0, 1, 1, 0), leaning(0, 0, 1, 0)) == 0.0
    assert dtw_rotation_error(leaning(0, 1, 1, 0), leaning(1)) == pytest.approx(3.0 / 4)


def test_of_paths_with_one_sum_the_one_of_fewest_pairs_counts():
    """1.5 + 1.5 straight, in two pairs, or round a corner that costs nothing, in three."""
    assert dtw_rotation_error(leaning(0, 1), leaning(1, 0)) == pytest.approx(1.5)


def test_a_copy_at_another_pace_has_no_error():
    generator = np.random.default_rng(9)
    motion = random_rotations(generator, 40, 5)
    slowed = motion[np.sort(np.concatenate([np.arange(40), generator.integers(0, 40, 25)]))]
    assert len(slowed) == 65
    assert dtw_rotation_error(slowed, motion) < 1e-7
    assert dtw_rotation_error(turned_whole(2.0, slowed), motion) < 1e-7
    assert dtw_rotation_error(motion[:30], motion) > 0.05  # nothing may be left out


def test_a_constant_difference_stays_what_it_is():
    character, reference = (np.repeat(leaning(angle), 25, axis=0) for angle in (0.1, 0.3))
    assert dtw_rotation_error(character, reference) == pytest.approx(0.3)
    assert rotation_error(character, reference).mean() == pytest.approx(0.3)


@pytest.mark.parametrize("frames", [(0, 3), (3, 0)])
def test_a_motion_without_frames_is_named(frames):
    character, reference = (np.zeros((count, 2, 4)) for count in frames)
    with pytest.raises(ValueError, match=rf"character \({frames[0]} frames\) and reference \({frames[1]} frames\)"):
        dtw_rotation_error(character, reference)


@pytest.mark.parametrize("name", CLIPS)
def test_a_clip_one_frame_late_is_never_worse_without_heading(name):
    """Somersaults among them, whose heading jumps by pi while the root hardly turns."""
    folder = os.environ.get("VDBJAX_DATA")
    if folder is None:
        pytest.skip("VDBJAX_DATA is not set: no motion-capture clips")
    path = Path(folder) / "deepmimic" / f"humanoid3d_{name}.txt"
    frames = np.array(json.loads(path.read_text())["Frames"])
    w, x, y, z = frames[:, 4:8].T  # y is up in the file
    root = np.stack([w, x, -z, y], axis=-1)[:, None]
    late, clip = root[:-1], root[1:]
    with_heading, without = rotation_error(late, clip), rotation_error_without_heading(late, clip)
    assert np.all(without <= with_heading + 1e-9)
    np.testing.assert_allclose(rotation_error_without_heading(turned_whole(-2.0, late), clip), without, atol=1e-9)
    assert dtw_rotation_error(np.repeat(turned_whole(1.0, clip), 2, axis=0), clip) < 1e-7
