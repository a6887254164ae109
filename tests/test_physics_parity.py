"""The six tasks against Gymnasium's own environments, which are the truth here: same start, same actions.

Engine `c` is held free-running over 200 actions. `mjx` computes in float32, where halfcheetah and ant are chaotic:
MuJoCo C itself leaves its own path by more than 1e-2 within 50 actions when its start is moved by 1e-7, one float32
rounding (`test_float32_rounding_alone...`). There a free-running comparison in float32 would measure chaos, so these
two are held free-running in float64 (`jax_enable_x64`, same code), and in float32 each step from the same state.

MJX's solver in all of it: Newton, the model's own integrator, cone and tolerances, at most 20 iterations with 20 line
search steps each, warm started from the last step. Gymnasium solves humanoid by 50 sweeps of PGS, which MJX lacks.
"""

import contextlib
import functools

import gymnasium
import jax
import jax.numpy as jnp
import mujoco
import numpy as np
import pytest
from scipy import stats

from vdbjax.envs import frame as frames
from vdbjax.envs import physics
from vdbjax.envs.locomotion import TASKS, draw_start, load_model, make_locomotion
from vdbjax.types import EnvState

ROUNDING = 1e-7  # of float32, relative
CHAOTIC = {"halfcheetah", "ant"}
# Humanoid observes contact forces of order 1e3 N, and float32 alone rounds those by 6e-5: |error| <= tolerance
# (1 + |value|) there, |error| <= tolerance everywhere else.
RELATIVE = {"humanoid"}
SLOW = pytest.mark.slow  # MJX compiles for half a minute or more per task
GYMNASIUM = [name for name in TASKS if TASKS[name].gymnasium_id]
HOPPER_FIRST = [pytest.param(name, marks=pytest.mark.long if name == "hopper" else SLOW) for name in GYMNASIUM]


def close(ours, theirs, name, tolerance, message=""):
    rtol = tolerance if name in RELATIVE else 0.0
    np.testing.assert_allclose(np.asarray(ours), theirs, rtol=rtol, atol=tolerance, err_msg=message)


@functools.cache
def compiled(name, engine, x64=False):
    """(environment, compiled reset, compiled step); `x64` only keeps apart what was made under `jax.enable_x64`."""
    env = make_locomotion(name, engine=engine)
    return env, jax.jit(env.reset, static_argnums=1), jax.jit(env.step)


@contextlib.contextmanager
def computing_in_float64():
    """jax 0.10 gives MJX's tables of constants, as it traced them in one precision, to programs in the other: they
    share nothing here."""
    jax.clear_caches()
    with jax.enable_x64(True):
        yield
    jax.clear_caches()


def random_actions(env, *shape, seed=0):
    draw = np.random.default_rng(seed).uniform(env.action_low, env.action_high, (*shape, env.action_size))
    return draw.astype(np.float32)


def position_and_velocity(name, state):
    """The state's own bits in float64, whichever engine made it."""
    if isinstance(state.physics, tuple):
        frame = state.physics[0]
    else:
        frame, _ = frames.unpack(np.asarray(state.physics), load_model(TASKS[name]))
    return np.asarray(frame.qpos, np.float64), np.asarray(frame.qvel, np.float64)


def place(simulator, qpos, qvel):
    """A new episode of Gymnasium's environment at this state, with nothing left over in its solver."""
    simulator.reset()
    inner = simulator.unwrapped
    mujoco.mj_resetData(inner.model, inner.data)
    inner.set_state(qpos, qvel)
    return inner._get_obs()


def replay(name, engine, *, num_actions, num_envs, tolerance, x64=False):
    """Free-running: both act for themselves, and are brought together again only where an episode ends."""
    env, reset, step = compiled(name, engine, x64)
    simulators = [gymnasium.make(TASKS[name].gymnasium_id, disable_env_checker=True) for _ in range(num_envs)]
    state = reset(jax.random.key(0), num_envs)
    for row, start in enumerate(zip(*position_and_velocity(name, state), strict=True)):
        close(state.observation[row], place(simulators[row], *start), name, tolerance, "reset")
    endings = 0
    for index, action in enumerate(random_actions(env, num_actions, num_envs)):
        state, result = step(state, jnp.asarray(action), jax.random.fold_in(jax.random.key(1), index))
        truth = [simulator.step(a)[:4] for simulator, a in zip(simulators, action, strict=True)]
        observation, reward, terminated, truncated = map(np.array, zip(*truth, strict=True))
        close(result.next_observation, observation, name, tolerance, f"observation after action {index}")
        close(result.reward, reward, name, tolerance, f"reward of action {index}")
        np.testing.assert_array_equal(result.terminated, terminated)
        np.testing.assert_array_equal(result.truncated, truncated & ~terminated)
        done = np.flatnonzero(terminated | truncated)
        endings += len(done)
        qpos, qvel = position_and_velocity(name, state)
        for row in done:
            close(state.observation[row], place(simulators[row], qpos[row], qvel[row]), name, tolerance, "restart")
    return endings


@pytest.mark.parametrize("name", GYMNASIUM)
def test_the_sizes_bounds_and_time_limit_are_gymnasiums(name):
    env, _, _ = compiled(name, "c")
    simulator = gymnasium.make(TASKS[name].gymnasium_id)
    assert (env.observation_size,) == simulator.observation_space.shape
    np.testing.assert_array_equal(env.action_low, simulator.action_space.low)
    np.testing.assert_array_equal(env.action_high, simulator.action_space.high)
    assert env.episode_length == gymnasium.spec(TASKS[name].gymnasium_id).max_episode_steps


@pytest.mark.parametrize("name", GYMNASIUM)
def test_engine_c_replays_gymnasium_over_200_actions(name):
    endings = replay(name, "c", num_actions=200, num_envs=2, tolerance=1e-5)
    assert (endings > 0) == (name != "halfcheetah")  # which never falls; the restarts of the others were compared too


@pytest.mark.parametrize("name", GYMNASIUM)
def test_the_time_limit_truncates_and_keeps_the_true_last_observation(name):
    env, reset, step = compiled(name, "c")
    state = reset(jax.random.key(0), 2)._replace(elapsed=jnp.array([env.episode_length - 2, 0], jnp.int32))
    action = jnp.zeros((2, env.action_size))
    state, result = step(state, action, jax.random.key(1))
    assert not np.any(result.truncated | result.terminated)
    np.testing.assert_array_equal(state.observation, result.next_observation)
    state, result = step(state, action, jax.random.key(2))
    assert not np.any(result.terminated)
    np.testing.assert_array_equal(result.truncated, [True, False])
    np.testing.assert_array_equal(state.elapsed, [0, 2])
    assert np.abs(state.observation[0] - result.next_observation[0]).max() > 1e-3  # a new episode's first observation
    np.testing.assert_array_equal(state.observation[1], result.next_observation[1])


@pytest.mark.parametrize("name", GYMNASIUM)
def test_resets_draw_from_gymnasiums_distribution(name):
    """Kolmogorov and Smirnov's test of every coordinate that varies; an honest one fails once in 10^4."""
    task, count = TASKS[name], 400
    _, reset, _ = compiled(name, "c")
    ours = np.concatenate(position_and_velocity(name, reset(jax.random.key(3), count)), axis=1)
    simulator = gymnasium.make(task.gymnasium_id, disable_env_checker=True).unwrapped
    simulator.reset(seed=0)
    theirs = []
    for _ in range(count):
        simulator.reset()
        theirs.append(np.concatenate([simulator.data.qpos, simulator.data.qvel]))
    theirs = np.array(theirs)
    fixed = np.ptp(theirs, axis=0) == 0
    np.testing.assert_array_equal(np.ptp(ours, axis=0) == 0, fixed)
    for ours_here, theirs_here in zip(ours.T[~fixed], theirs.T[~fixed], strict=True):
        assert stats.ks_2samp(ours_here, theirs_here).pvalue > 1e-4
    if name != "reacher":  # whose target is drawn wider than its joints
        offset = np.abs(ours[:, : simulator.model.nq] - simulator.init_qpos)
        assert 0.95 * task.position_noise < offset.max() <= task.position_noise * (1 + 1e-3)


def test_every_reset_is_a_new_draw():
    env, reset, step = compiled("hopper", "c")
    starts = [reset(jax.random.key(seed), 8).observation for seed in range(2)]
    for index in range(3):  # 8 episodes cut at once, again and again
        state = reset(jax.random.key(0), 8)._replace(elapsed=jnp.full(8, env.episode_length - 1, jnp.int32))
        state, result = step(state, jnp.zeros((8, env.action_size)), jax.random.key(10 + index))
        assert np.all(result.truncated)
        starts.append(state.observation)
    drawn = np.concatenate(starts)
    assert len(np.unique(drawn, axis=0)) == len(drawn)


def walk(env):
    """(state, actions, keys) -> (state, steps), to be compiled."""
    return lambda state, actions, keys: jax.lax.scan(lambda s, x: env.step(s, *x), state, (actions, keys))


def equal_bits(ours, theirs):
    jax.tree.map(np.testing.assert_array_equal, jax.device_get(ours), jax.device_get(theirs))


def inputs(env, reset, seed, *, length):
    """(state, actions, keys) of three episodes, one of which is cut by the time limit at the third action."""
    state = reset(jax.random.key(seed), 3)._replace(elapsed=jnp.array([0, env.episode_length - 3, 0], jnp.int32))
    return state, random_actions(env, length, 3, seed=seed), jax.random.split(jax.random.key(seed + 10), length)


@pytest.mark.parametrize("name", ["hopper", "ant"])
def test_two_seeds_under_vmap_are_two_separate_calls(name):
    env, reset, _ = compiled(name, "c")
    seeds = [inputs(env, reset, seed, length=40) for seed in range(2)]
    separate = [jax.jit(walk(env))(*each) for each in seeds]
    together = jax.jit(jax.vmap(walk(env)))(*jax.tree.map(lambda *leaves: jnp.stack(leaves), *seeds))
    assert np.any(separate[0][1].truncated)
    equal_bits(together, jax.tree.map(lambda *leaves: jnp.stack(leaves), *separate))


@pytest.mark.parametrize("name", ["hopper", "ant"])
def test_a_compiled_scan_equals_eager_steps_bit_for_bit(name):
    """New episodes included, save where velocities are drawn normally: XLA rounds that draw by its surroundings."""
    env, reset, _ = compiled(name, "c")
    start, actions, keys = inputs(env, reset, 0, length=10)
    if TASKS[name].normal_velocity:
        start = start._replace(elapsed=jnp.zeros_like(start.elapsed))
    state = start
    results = []
    for action, key in zip(actions, keys, strict=True):
        state, result = env.step(state, jnp.asarray(action), key)
        results.append(result)
    assert np.any(results[2].truncated) != TASKS[name].normal_velocity
    eager = state, jax.tree.map(lambda *leaves: jnp.stack(leaves), *results)
    equal_bits(jax.jit(walk(env))(start, actions, keys), eager)


@pytest.mark.parametrize("name", GYMNASIUM)
def test_float32_rounding_alone_carries_c_away_from_itself_where_a_task_is_chaotic(name):
    """16 episodes in float64, each beside one whose start was moved by 1e-7: the growth over 50 actions."""
    task = TASKS[name]
    model = load_model(task)
    engine = physics.make_engine(model, "c", frame_skip=task.frame_skip, derived=task.derived)
    qpos, qvel = (np.asarray(part, np.float64) for part in draw_start(task, model, jax.random.key(0), 16))
    draw = np.random.default_rng(0)
    shift = lambda part: part + ROUNDING * draw.uniform(-1, 1, part.shape)  # noqa: E731
    first, second = engine.forward(qpos, qvel), engine.forward(shift(qpos), shift(qvel))
    worst = np.zeros(16)
    for control in draw.uniform(*model.actuator_ctrlrange.T, (50, 16, model.nu)):
        first, second = engine.advance(first, control), engine.advance(second, control)
        here, there = task.observe(np, first), task.observe(np, second)
        scale = 1 + np.abs(here) if name in RELATIVE else 1
        worst = np.maximum(worst, np.max(np.abs(here - there) / scale, axis=1))
    assert (np.median(worst) > 1e-2) == (np.max(worst) > 1e-2) == (name in CHAOTIC)


@pytest.mark.slow
@pytest.mark.parametrize("name", [name for name in GYMNASIUM if name not in CHAOTIC])
def test_mjx_in_float32_replays_gymnasium_over_50_actions(name):
    replay(name, "mjx", num_actions=50, num_envs=4, tolerance=1e-2)


@pytest.mark.slow
@pytest.mark.parametrize("name", GYMNASIUM)
def test_mjx_in_float64_replays_gymnasium_over_50_actions(name):
    with computing_in_float64():
        replay(name, "mjx", num_actions=50, num_envs=4, tolerance=1e-2, x64=True)


@pytest.mark.parametrize("name", HOPPER_FIRST)
def test_each_mjx_step_in_float32_is_the_step_of_c_from_the_same_state(name):
    """`c` stands in for Gymnasium, which it replays above: it can be set to mjx's whole state before every step."""
    env, reset, step = compiled(name, "mjx")
    _, _, step_in_c = compiled(name, "c")
    state = reset(jax.random.key(0), 4)
    for index, action in enumerate(random_actions(env, 50, 4)):
        frame, anchor = jax.tree.map(lambda leaf: np.asarray(leaf, np.float64), state.physics)
        same = EnvState(jnp.asarray(frames.pack(frame, anchor)), state.observation, state.elapsed)
        key = jax.random.fold_in(jax.random.key(1), index)
        _, expected = step_in_c(same, jnp.asarray(action), key)
        state, result = step(state, jnp.asarray(action), key)
        close(result.next_observation, expected.next_observation, name, 1e-2, f"observation after action {index}")
        close(result.reward, expected.reward, name, 1e-2, f"reward of action {index}")
        np.testing.assert_array_equal(result.terminated, expected.terminated)


@pytest.mark.long
@pytest.mark.parametrize("field", ["qpos", "qvel"])
def test_a_state_that_diverges_in_mjx_goes_back_to_rest_and_leaves_the_others_alone(field):
    env, reset, step = compiled("hopper", "mjx")
    state, action = reset(jax.random.key(0), 4), jnp.zeros((4, env.action_size))
    frame, anchor = state.physics
    diverged = frame._replace(**{field: getattr(frame, field).at[1].set(jnp.nan)})
    found, outcome = step(state._replace(physics=(diverged, anchor)), action, jax.random.key(1))
    expected, _ = step(state, action, jax.random.key(1))
    assert np.isfinite(outcome.next_observation).all()
    np.testing.assert_array_equal(found.physics[0].qpos[1], load_model(TASKS["hopper"]).qpos0.astype(np.float32))
    np.testing.assert_array_equal(found.physics[0].qvel[1], 0.0)
    for here, there in zip(jax.tree.leaves(found.physics), jax.tree.leaves(expected.physics), strict=True):
        np.testing.assert_array_equal(np.delete(here, 1, axis=0), np.delete(there, 1, axis=0))


@pytest.mark.long
def test_mjx_multiplies_in_full_float32_and_leaves_its_own_tables_alone():
    from mujoco.mjx._src import collision_driver

    before = dict(collision_driver._COLLISION_FUNC)
    env = make_locomotion("hopper", engine="mjx")
    state = jax.eval_shape(lambda key: env.reset(key, 1), jax.random.key(0))
    action = jax.ShapeDtypeStruct((1, env.action_size), jnp.float32)
    program = str(jax.make_jaxpr(env.step)(state, action, jax.random.key(0)))
    assert program.count("dot_general") == program.count("(Precision.HIGHEST, Precision.HIGHEST)") > 0
    assert before == collision_driver._COLLISION_FUNC
