"""Precision and recall of generated images by nearest neighbours: Kynkäänniemi et al. 2019."""

from collections.abc import Iterator
from typing import Any, NamedTuple

import numpy as np
from jaxtyping import Float

BLOCK = 1_024
"""Rows whose distances to a whole set are in memory at once."""


class PrecisionRecall(NamedTuple):
    """Shares, in [0, 1]."""

    precision: float  # of the fakes, those within the manifold of the reals
    recall: float  # of the reals, those within the manifold of the fakes


def precision_recall(
    real: Float[Any, "N features"], fake: Float[Any, "M features"], *, neighbours: int = 3
) -> PrecisionRecall:
    """A set's manifold is the union of balls about its rows, each reaching to the row's k-th nearest neighbour.

    Kynkäänniemi et al. 2019, eq. 1 and 2. Both shares fall with fewer images: compare only equal counts. Raises
    ValueError for a set of no more than k rows.
    """
    for features in (real, fake):
        if len(features) <= neighbours:
            raise ValueError(
                f"{len(features)} images are too few for balls that reach to the nearest neighbour "
                f"number {neighbours}; take more images"
            )
    # About a common centre, so that little is lost where squared distances come from differences of large numbers.
    centre = np.mean(real, axis=0, dtype=np.float64)
    real, fake = (np.asarray(features, np.float64) - centre for features in (real, fake))
    return PrecisionRecall(_share_within(fake, real, neighbours), _share_within(real, fake, neighbours))


def _share_within(rows: np.ndarray, manifold: np.ndarray, neighbours: int) -> float:
    """The share of the rows in at least one ball."""
    # A row is its own nearest; rows met twice count twice, as in the paper.
    radii = np.concatenate(
        [np.partition(block, neighbours, axis=1)[:, neighbours] for block in _squared_distances(manifold, manifold)]
    )
    inside = [np.any(block <= radii, axis=1) for block in _squared_distances(rows, manifold)]
    return float(np.concatenate(inside).mean())


def _squared_distances(rows: np.ndarray, others: np.ndarray) -> Iterator[np.ndarray]:
    """[BLOCK, others] after another."""
    lengths = np.sum(others**2, axis=1)
    for start in range(0, len(rows), BLOCK):
        block = rows[start : start + BLOCK]
        yield np.maximum(np.sum(block**2, axis=1)[:, None] + lengths - 2.0 * block @ others.T, 0.0)
