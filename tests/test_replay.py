"""The memory of past samples: every iteration is in it as often as any other, and half of what is drawn is new."""

from functools import partial

import jax
import jax.numpy as jnp
import numpy as np

from vdbjax.imitation import replay

BLOCKS, KEPT, ROWS = 4, 3, 5
EMPTY = {"iteration": jnp.full((BLOCKS, KEPT), -1.0)}


def rows_of(iteration):
    return {"iteration": jnp.full(ROWS, iteration, jnp.float32)}


def as_they_are(rows):
    return rows


def filled(key, iterations):
    """The memory after so many iterations."""

    def one(memory, iteration):
        key_now = jax.random.fold_in(key, iteration)
        return replay.remember(key_now, memory, rows_of(iteration), iteration, rated=as_they_are), None

    return jax.lax.scan(one, EMPTY, jnp.arange(iterations))[0]


def test_every_iteration_is_held_as_often():
    held = jax.jit(jax.vmap(partial(filled, iterations=12)))(jax.random.split(jax.random.key(0), 3000))["iteration"]
    assert (held == held[:, :, :1]).all()  # a block is of one iteration
    counts = np.bincount(np.asarray(held[:, :, 0], int).ravel(), minlength=12)
    # Each with the chance 4 / 12; five standard deviations of a count.
    np.testing.assert_allclose(counts, 3000 * BLOCKS / 12, atol=5 * np.sqrt(3000 * (1 / 3) * (2 / 3)))


def test_the_first_iterations_fill_the_blocks_in_order():
    held = filled(jax.random.key(1), 3)["iteration"]
    assert held[:, 0].tolist() == [0.0, 1.0, 2.0, -1.0]


def test_half_of_what_is_drawn_is_new_and_only_that_is_rated():
    memory = filled(jax.random.key(2), 3)
    drawn = replay.draw(
        jax.random.key(3),
        memory,
        rows_of(2),
        jnp.int32(2),
        (50, 40),
        rated=lambda rows: {"iteration": rows["iteration"] + 100.0},
    )["iteration"]
    assert drawn.shape == (50, 40)
    values, counts = np.unique(drawn, return_counts=True)
    assert values.tolist() == [0.0, 1.0, 2.0, 102.0]  # nothing of the block that is empty
    np.testing.assert_allclose(counts / 2000, [1 / 6, 1 / 6, 1 / 6, 1 / 2], atol=5 * np.sqrt(0.25 / 2000))
