"""Fréchet distance between two sets of features, from statistics in float64 that merge exactly. Heusel et al. 2017."""

from typing import Any, NamedTuple

import numpy as np
from jaxtyping import Float

BLOCK = 4_096
"""Rows that are float64 at once."""


class Statistics(NamedTuple):
    """What the distance needs to know of a set; batches, devices and processes each give theirs, to be merged."""

    count: int  # type: ignore[assignment]  # hides tuple.count, which nobody needs here
    mean: Float[np.ndarray, " features"]
    scatter: Float[np.ndarray, "features features"]  # sum of (x - mean)(x - mean)^T

    @property
    def covariance(self) -> Float[np.ndarray, "features features"]:
        """Unbiased, over count - 1. Raises ValueError for a single row."""
        if self.count < 2:
            raise ValueError(f"a covariance needs at least 2 images, got {self.count}")
        return self.scatter / (self.count - 1)


def statistics_of(features: Float[Any, "N features"]) -> Statistics:
    """Count, mean and scatter of the rows, in float64. Raises ValueError where there are none, or one is not finite."""
    if not len(features):
        raise ValueError("statistics need at least 1 image, got 0")
    found: Statistics | None = None
    for start in range(0, len(features), BLOCK):
        rows = np.asarray(features[start : start + BLOCK], np.float64)
        if not np.isfinite(rows).all():
            first = start + int(np.argmin(np.isfinite(rows).all(axis=1)))
            raise ValueError(f"the features of image {first} are not finite")
        mean = rows.mean(axis=0)
        block = Statistics(len(rows), mean, (rows - mean).T @ (rows - mean))
        found = block if found is None else merge(found, block)
    assert found is not None
    return found


def merge(a: Statistics, b: Statistics) -> Statistics:
    """The statistics of both sets together, in any order and grouping: Chan et al. 1983.

    scatter = scatter_a + scatter_b + (n_a n_b / n) (mean_b - mean_a)(mean_b - mean_a)^T. An average of covariances
    would leave out the last term. Raises ValueError for features of different sizes.
    """
    _check_sizes(a, b)
    count, difference = a.count + b.count, b.mean - a.mean
    between = (a.count * b.count / count) * np.outer(difference, difference)
    return Statistics(count, a.mean + (b.count / count) * difference, a.scatter + b.scatter + between)


def frechet_distance(a: Statistics, b: Statistics) -> float:
    """|mean_a - mean_b|^2 + tr(C_a + C_b - 2 (C_a C_b)^(1/2)): squared 2-Wasserstein distance of two Gaussians.

    The trace of the root is the sum of the roots of the eigenvalues of S C_b S, with S the root of C_a: all symmetric,
    so nothing turns complex where a covariance is singular. In expectation the distance of two samples of one
    distribution is above 0, the more so the fewer they are; compare only distances of equal counts.

    Raises ValueError for features of different sizes, or where a set has no more images than features: its covariance
    would be singular, and most of the distance its bias.
    """
    _check_sizes(a, b)
    for statistics in (a, b):
        size = len(statistics.mean)
        if statistics.count <= size:
            raise ValueError(
                f"{statistics.count} images are too few for a Fréchet distance over {size} features, which needs at "
                f"least {size + 1}; take more images, or the kernel distance (KID)"
            )
    root = _root(a.covariance)
    cross = np.linalg.eigvalsh(_symmetric(root @ b.covariance @ root))
    traces = np.trace(a.covariance) + np.trace(b.covariance) - 2.0 * np.sqrt(np.maximum(cross, 0.0)).sum()
    # Rounding may leave equal sets a little below 0, which no distance is.
    return max(0.0, float(np.sum((a.mean - b.mean) ** 2) + traces))


def _root(covariance: np.ndarray) -> np.ndarray:
    """The symmetric root of a covariance; eigenvalues that rounding made negative count as 0."""
    values, vectors = np.linalg.eigh(_symmetric(covariance))
    return (vectors * np.sqrt(np.maximum(values, 0.0))) @ vectors.T


def _symmetric(matrix: np.ndarray) -> np.ndarray:
    return 0.5 * (matrix + matrix.T)


def _check_sizes(a: Statistics, b: Statistics) -> None:
    if a.mean.shape != b.mean.shape:
        raise ValueError(f"statistics of {len(a.mean)} and of {len(b.mean)} features do not go together")
