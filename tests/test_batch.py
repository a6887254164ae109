"""The time limit and the restart of finished episodes, against tables written by hand."""

import jax
import jax.numpy as jnp
import numpy as np
import pytest

from vdbjax.envs.batch import end_of_step, where_done

ARRAYS = {"numpy": np, "jax": jnp}


@pytest.mark.parametrize("xp", ARRAYS.values(), ids=ARRAYS.keys())
def test_the_end_of_a_step_by_hand(xp):
    #            goes on, time is up, falls, falls as time is up, time was up long ago
    elapsed = xp.asarray([0, 9, 4, 9, 30], xp.int32)
    terminated = xp.asarray([False, False, True, True, False])
    following, truncated, done = end_of_step(elapsed, terminated, episode_length=10)
    np.testing.assert_array_equal(following, [1, 0, 0, 0, 0])
    np.testing.assert_array_equal(truncated, [False, True, False, False, True])
    np.testing.assert_array_equal(done, [False, True, True, True, True])
    assert following.dtype == elapsed.dtype
    assert truncated.dtype == done.dtype == bool


def test_an_episode_lasts_exactly_its_length():
    elapsed, lengths, count = np.zeros(1, np.int32), [], 0
    for _ in range(12):
        elapsed, truncated, _ = end_of_step(elapsed, np.array([False]), episode_length=4)
        count += 1
        if truncated[0]:
            lengths.append(count)
            count = 0
    assert lengths == [4, 4, 4]


@pytest.mark.parametrize("xp", ARRAYS.values(), ids=ARRAYS.keys())
def test_only_finished_rows_are_taken_from_the_fresh_batch(xp):
    done = xp.asarray([True, False, True])
    shapes = {"rank1": (3,), "rank2": (3, 2), "rank3": (3, 2, 4)}
    ongoing = {name: xp.zeros(shape, xp.uint32) for name, shape in shapes.items()}
    fresh = {name: 1 + xp.arange(np.prod(shape)).reshape(shape).astype(xp.uint32) for name, shape in shapes.items()}
    chosen = where_done(xp, done, fresh, ongoing)
    assert chosen.keys() == shapes.keys()
    for name in shapes:
        np.testing.assert_array_equal(chosen[name][0], fresh[name][0])
        np.testing.assert_array_equal(chosen[name][1], ongoing[name][1])
        np.testing.assert_array_equal(chosen[name][2], fresh[name][2])
        assert chosen[name].dtype == xp.uint32


def test_both_work_inside_jit_and_vmap():
    elapsed, terminated = jnp.array([[3, 0], [0, 3]]), jnp.array([[False, True], [False, False]])
    step = lambda e, t: end_of_step(e, t, episode_length=4)  # noqa: E731
    following, truncated, done = jax.jit(jax.vmap(step))(elapsed, terminated)
    np.testing.assert_array_equal(following, [[0, 0], [1, 0]])
    np.testing.assert_array_equal(truncated, [[True, False], [False, True]])
    fresh, ongoing = jnp.ones((2, 2, 3)), jnp.zeros((2, 2, 3))
    chosen = jax.vmap(lambda d, f, o: where_done(jnp, d, f, o))(done, fresh, ongoing)
    np.testing.assert_array_equal(chosen[..., 0], [[1, 1], [0, 1]])
