"""Batches of a set in memory or a memmap, shuffled anew each epoch."""

from collections.abc import Callable
from typing import Any

import jax
import numpy as np
from jaxtyping import Int


def shuffled_batches(rows: Any, *, among: Int[np.ndarray, " M"], batch_size: int, seed: int) -> Callable[[int], Any]:
    """i -> batch i, counted from 0, of the rows `among` these indices: a pure function, so that a resumed run
    sees what an uninterrupted one would. `rows` is an array, or a tree of arrays with one leading axis.

    Each epoch is a permutation of its own; rows that do not fill its last batch are left out of it. Raises ValueError
    where the rows do not fill one batch.
    """
    per_epoch = len(among) // batch_size
    if not per_epoch:
        raise ValueError(f"batch_size ({batch_size}) is more than the {len(among)} images to train on")
    shown: dict[int, np.ndarray] = {}  # the epoch at work and its order

    def batch(index: int) -> Any:
        epoch, place = divmod(index, per_epoch)
        if epoch not in shown:
            shown.clear()
            shown[epoch] = np.random.default_rng((seed, epoch)).permutation(len(among))
        chosen = np.sort(
            among[shown[epoch][place * batch_size : (place + 1) * batch_size]]
        )  # a memmap is read in order
        return take(rows, chosen)

    return batch


def take(rows: Any, chosen: Int[np.ndarray, " M"]) -> Any:
    """These rows of an array, or of each array of a tree, in memory."""
    return jax.tree.map(lambda leaf: np.asarray(leaf[chosen]), rows)
