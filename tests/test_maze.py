"""Mazes: the closed form against MuJoCo, and the returns of controllers written here against known ones."""

import functools

import jax
import jax.numpy as jnp
import mujoco
import numpy as np
import pytest

from vdbjax.envs.env import EnvironmentConfig, make_environment
from vdbjax.envs.frame import Frame
from vdbjax.envs.maze import EPISODE_LENGTH, FRAME_SKIP, MAZES, advance, find_maze, is_free, make_maze, maze_model
from vdbjax.rl.rollout import run_episodes


def hugging(maze, key, num_envs):
    """Controls that press against walls: each direction held for ten steps, at the limit or at none."""
    signs = jax.random.randint(key, (EPISODE_LENGTH // 10, num_envs, 2), -1, 2).astype(jnp.float32)
    return maze.control_limit * jnp.repeat(signs, 10, axis=0)


def random_controls(maze, key, num_envs):
    return maze.control_limit * jax.random.uniform(key, (EPISODE_LENGTH, num_envs, 2), minval=-1.0, maxval=1.0)


def to_the_goal(maze, key, num_envs):
    """Straight up, from many starts: into the barriers and along them."""
    return jnp.full((EPISODE_LENGTH, num_envs, 2), maze.control_limit).at[..., 0].multiply(0.2)


CONTROLS = {"random": random_controls, "wall-hugging": hugging, "upwards": to_the_goal}
ENVS = 16


def free_starts(maze, generator):
    found = generator.uniform(maze.low, maze.high, (200, 2))
    return found[np.asarray(is_free(maze, jnp.float32(found)))][:ENVS]


@functools.partial(jax.jit, static_argnums=0)
def closed_form(name, start, controls):
    """Places after each step."""

    def move(frame, control):
        frame = advance(MAZES[name], frame, control)
        return frame, frame.qpos

    return jax.lax.scan(move, Frame(start, jnp.zeros_like(start), jnp.zeros_like(start), {}), controls)[1]


def by_mujoco(name, start, controls):
    """(places after each step, whether each episode ever touched a wall)"""
    model = maze_model(MAZES[name])
    data, places, touched = mujoco.MjData(model), np.empty(controls.shape), np.zeros(len(start), bool)
    for row, position in enumerate(start):
        mujoco.mj_resetData(model, data)
        data.qpos[:] = position
        for t, control in enumerate(controls[:, row]):
            data.ctrl[:] = control
            mujoco.mj_step(model, data, FRAME_SKIP)
            places[t, row] = data.qpos
            touched[row] |= data.ncon > 0
    return places, touched


@pytest.mark.parametrize("kind", CONTROLS)
@pytest.mark.parametrize("name", MAZES)
def test_the_closed_form_follows_mujoco(name, kind):
    """In float64 it is MuJoCo's own arithmetic. In float32 a contact may begin one physics step earlier or later, where
    a particle stands within a rounding of the margin: rare, and then some millimetres."""
    maze = MAZES[name]
    start = free_starts(maze, np.random.default_rng(3))
    controls = np.asarray(CONTROLS[kind](maze, jax.random.key(4), ENVS))
    expected, touched = by_mujoco(name, start, controls)
    assert np.mean(touched) > 0.6
    single = np.asarray(closed_form(name, jnp.float32(start), jnp.float32(controls)))
    errors = np.abs(single - expected).max(axis=(0, 2))
    assert np.sum(errors < 1e-3) >= ENVS - 1
    assert np.median(errors) < 1e-4
    with jax.enable_x64(True):
        double = closed_form(name, jnp.asarray(start), jnp.asarray(np.float64(controls)))
    np.testing.assert_allclose(double, expected, atol=1e-6)


def play(name, act):
    environment = make_maze(name)
    policy = lambda observation, key: (None, None, act(observation))  # noqa: E731
    episodes = jax.jit(lambda key: run_episodes(environment, policy, key, num_episodes=8))(jax.random.key(0))
    np.testing.assert_array_equal(episodes.lengths, EPISODE_LENGTH)
    return float(episodes.returns.mean())


def through(*legs, limit, gain=20.0):
    """Steers to the target of the first leg whose y has not been passed."""

    def act(place):
        target = jnp.broadcast_to(jnp.float32(legs[-1][1]), place.shape)
        for top, point in reversed(legs[:-1]):
            target = jnp.where(place[:, 1:] < top, jnp.broadcast_to(jnp.float32(point), place.shape), target)
        return jnp.clip(gain * (target - place), -limit, limit)

    return act


def straight(maze):
    return through((None, maze.goal), limit=maze.control_limit)


# The known returns are of controllers with other waypoints, so ours come near them and no nearer.
WAYS = {  # (y below which this holds, where to steer then); known return; how far ours may be from it
    "c": ((0.15, (0.1, 0.3)), (0.36, (0.1, 0.45)), (None, (0.3, 0.5)), -6.11, 1.3),
    "c-transfer": ((0.15, (0.5, 0.3)), (0.36, (0.5, 0.45)), (None, (0.3, 0.5)), -5.27, 0.6),
    "s": (
        (0.5, (0.2, 0.6)), (0.66, (0.2, 0.75)), (1.1, (-0.2, 1.2)), (1.26, (-0.2, 1.35)), (None, (0, 1.5)), 169.4, 12,
    ),
    "s-transfer": (
        (0.5, (-0.2, 0.6)), (0.66, (-0.2, 0.75)), (1.1, (0.2, 1.2)), (1.26, (0.2, 1.35)), (None, (0, 1.5)), 169.4, 12,
    ),
}  # fmt: skip


@pytest.mark.parametrize("name", WAYS)
def test_a_controller_through_the_openings_gets_the_known_return(name):
    *legs, known, tolerance = WAYS[name]
    found = play(name, through(*legs, limit=MAZES[name].control_limit))
    assert found == pytest.approx(known, abs=tolerance)


@pytest.mark.parametrize(
    ("name", "known", "tolerance"), [("c-transfer", -26.54, 0.3), ("s", 0.15, 0.05), ("s-transfer", 0.15, 0.05)]
)
def test_straight_to_the_goal_ends_at_the_barrier(name, known, tolerance):
    assert play(name, straight(MAZES[name])) == pytest.approx(known, abs=tolerance)


@pytest.mark.parametrize(("name", "known"), [("c", -50.0), ("c-transfer", -50.0), ("s", 0.0), ("s-transfer", 0.0)])
def test_doing_nothing_stays_at_the_start(name, known):
    assert play(name, jnp.zeros_like) == pytest.approx(known, abs=0.15)


@pytest.mark.parametrize("engine", ["c", pytest.param("mjx", marks=pytest.mark.long)])
def test_the_task_is_the_same_on_mujoco(engine):
    tasks = [make_environment(EnvironmentConfig("maze/s", engine)), make_maze("s")]
    places = []
    for task in tasks:
        state = task.reset(jax.random.key(0), 4)
        action = jnp.array([[4.0, 1.0], [0.0, 5.0], [-5.0, 5.0], [1.0, -3.0]])
        step = jax.jit(task.step)
        for _ in range(6):
            state, seen = step(state, action, jax.random.key(1))
        places.append((seen.next_observation, seen.reward))
    for one, other in zip(*places):
        np.testing.assert_allclose(one, other, atol=1e-3)


def test_the_reward_is_that_of_the_place_before_the_step():
    task = make_maze("c")
    state = task.reset(jax.random.key(0), 2)
    _, step = task.step(state, jnp.array([[1.0, 0.0], [0.0, 0.5]]), jax.random.key(1))
    np.testing.assert_allclose(step.reward, [-0.5 - 1e-3, -0.5 - 0.25e-3], rtol=1e-5)


def test_the_way_through_the_s_maze_is_as_long_as_its_authors_say():
    maze = MAZES["s"]
    assert float(maze.potential(maze, jnp.array([0.0, 0.3]))) == pytest.approx(-1.354, abs=1e-3)
    assert float(maze.potential(maze, jnp.array([0.0, 1.5]))) == pytest.approx(2.0)


def test_an_unknown_maze_is_refused_with_the_nearest():
    with pytest.raises(ValueError, match="unknown maze 'c-transfr'; did you mean c-transfer"):
        find_maze("c-transfr")
    with pytest.raises(ValueError, match="unknown maze 'zzz'; known are c, c-transfer, s, s-transfer"):
        make_environment(EnvironmentConfig("maze/zzz"))
