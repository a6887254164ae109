"""Spectral normalisation: every layer's matrix divided by its largest singular value. Miyato et al. 2018."""

from typing import Any

import jax
import jax.numpy as jnp
from jaxtyping import Array, Float

from vdbjax.types import Key

SMALLEST = 1e-12
"""Added to the norms that are divided by."""


def first_vectors(key: Key, params: Any) -> Any:
    """A random direction of the outputs for each kernel of a tree of parameters; None at its other leaves."""
    leaves, structure = jax.tree_util.tree_flatten_with_path(params)
    keys = jax.random.split(key, len(leaves))
    drawn = [
        _unit(jax.random.normal(key, leaf.shape[-1:], leaf.dtype)) if _is_kernel(path) else None
        for key, (path, leaf) in zip(keys, leaves)
    ]
    return jax.tree.unflatten(structure, drawn)


def normalized(params: Any, vectors: Any) -> tuple[Any, Any]:
    """(the parameters with each kernel [..., out] as W / sigma, the vectors for the next call).

    sigma = u^T W v after one step of the power method, v = W^T u / |W^T u| and u = W v / |W v|. No gradient flows
    into u and v; that of sigma does flow into W. Biases and tables keep their size.

    Source: Miyato et al. 2018, algorithm 1, as torch's `spectral_norm` has it, for kernels whose last axis is `out`.
    """
    leaves, structure = jax.tree.flatten(params)
    held = jax.tree.leaves(vectors, is_leaf=lambda leaf: leaf is None)
    found = [(leaf, None) if vector is None else _normalized(leaf, vector) for leaf, vector in zip(leaves, held)]
    kernels, held = ([pair[side] for pair in found] for side in (0, 1))
    return jax.tree.unflatten(structure, kernels), jax.tree.unflatten(structure, held)


def _normalized(kernel: Array, left: Float[Array, " out"]) -> tuple[Array, Float[Array, " out"]]:
    matrix = kernel.reshape(-1, kernel.shape[-1])
    fixed = jax.lax.stop_gradient(matrix)
    right = _unit(fixed @ left)
    left = _unit(right @ fixed)
    return kernel / (right @ matrix @ left), left


def _unit(vector: Float[Array, " n"]) -> Float[Array, " n"]:
    return vector / (jnp.linalg.norm(vector) + SMALLEST)


def _is_kernel(path: Any) -> bool:
    return path[-1].key == "kernel"
