"""Kernel distance (KID): squared maximum mean discrepancy of a cubic kernel, unbiased. Bińkowski et al. 2018."""

from typing import Any, NamedTuple

import numpy as np
from jaxtyping import Float


class KernelDistance(NamedTuple):
    """Over subsets drawn at random."""

    mean: float
    spread: float  # standard deviation between subsets


def kernel_distance(
    a: Float[Any, "N features"], b: Float[Any, "M features"], *, subsets: int = 100, subset_size: int = 1_000, seed: int
) -> KernelDistance:
    """Mean of `squared_discrepancy` over pairs of subsets, each drawn without replacement; 0 in expectation where the
    sets are alike, however few they are, so single values may be negative.

    Raises ValueError where a set has fewer rows than a subset.
    """
    for features in (a, b):
        if len(features) < subset_size:
            raise ValueError(
                f"{len(features)} images are fewer than subset_size ({subset_size}) of the kernel distance; "
                f"take more images, or smaller subsets"
            )
    generator = np.random.default_rng(seed)

    def drawn(features: Any) -> np.ndarray:
        chosen = np.sort(generator.choice(len(features), subset_size, replace=False))
        return np.asarray(features[chosen], np.float64)

    values = [squared_discrepancy(drawn(a), drawn(b)) for _ in range(subsets)]
    return KernelDistance(float(np.mean(values)), float(np.std(values, ddof=1)) if subsets > 1 else float("nan"))


def squared_discrepancy(x: Float[np.ndarray, "N features"], y: Float[np.ndarray, "M features"]) -> float:
    """The unbiased estimate of E k(x, x') + E k(y, y') - 2 E k(x, y), with k(x, y) = (x . y / features + 1)^3.

    The pairs of a row with itself are left out of the first two. Bińkowski et al. 2018, eq. 4. Raises ValueError for
    fewer than 2 rows.
    """
    if min(len(x), len(y)) < 2:
        raise ValueError(f"a kernel distance needs at least 2 images of each set, got {len(x)} and {len(y)}")

    def kernel(one: np.ndarray, other: np.ndarray) -> np.ndarray:
        return (one @ other.T / x.shape[1] + 1.0) ** 3

    def within(rows: np.ndarray) -> float:
        values = kernel(rows, rows)
        return float(values.sum() - np.trace(values)) / (len(rows) * (len(rows) - 1))

    return within(x) + within(y) - 2.0 * float(kernel(x, y).mean())
