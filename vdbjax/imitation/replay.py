"""A policy's samples of all iterations so far, an equal part of each, in a memory of fixed size.

Reservoir sampling over iterations (Vitter 1985, algorithm R). The memory's leaves are [blocks, kept, ...], each block
of one iteration, and those of its rows [rows, ...]. What is drawn of new rows goes through `rated` first, so that no
more is worked out than is needed.
"""

from collections.abc import Callable
from typing import TypeVar

import jax
import jax.numpy as jnp
from jaxtyping import Array, Int

from vdbjax.types import Key

Rows = TypeVar("Rows")


def remember(key: Key, memory: Rows, rows: Rows, iteration: Int[Array, ""], *, rated: Callable[[Rows], Rows]) -> Rows:
    """The memory with some of this iteration's rows, where a place falls to it."""
    key_rows, key_block = jax.random.split(key)
    blocks, kept = _shape(memory)[:2]
    keep = jax.random.randint(key_rows, (kept,), 0, _shape(rows)[0])
    drawn = jax.random.randint(key_block, (), 0, iteration + 1)
    block = jnp.where(iteration < blocks, iteration, drawn)  # beyond the last block: not kept
    fresh = rated(jax.tree.map(lambda leaf: leaf[keep], rows))
    return jax.tree.map(lambda old, new: old.at[block].set(new, mode="drop"), memory, fresh)


def draw(
    key: Key,
    memory: Rows,
    rows: Rows,
    iteration: Int[Array, ""],
    shape: tuple[int, ...],
    *,
    rated: Callable[[Rows], Rows],
) -> Rows:
    """Samples [*shape, ...], each of this iteration's rows or, as likely, of the memory, which holds some of it too."""
    key_new, key_old, key_block, key_choice = jax.random.split(key, 4)
    blocks, kept = _shape(memory)[:2]
    new = jax.random.randint(key_new, shape, 0, _shape(rows)[0])
    old = jax.random.randint(key_old, shape, 0, kept)
    block = jax.random.randint(key_block, shape, 0, jnp.minimum(iteration + 1, blocks))
    past = jax.random.bernoulli(key_choice, 0.5, shape)

    def choose(one: Array, other: Array) -> Array:
        return jnp.where(past.reshape(*shape, *[1] * (one.ndim - len(shape))), one, other)

    fresh = rated(jax.tree.map(lambda leaf: leaf[new], rows))
    return jax.tree.map(choose, jax.tree.map(lambda leaf: leaf[block, old], memory), fresh)


def _shape(tree: object) -> tuple[int, ...]:
    return jax.tree.leaves(tree)[0].shape
