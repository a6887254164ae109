"""NumPy code of the host, called from inside jit, scan and vmap."""

import math
from collections.abc import Callable, Sequence
from typing import Any

import jax
import jax.numpy as jnp
import numpy as np

from vdbjax.sharding import on_each_device


def on_host(function: Callable[..., Any], like: Callable[[int], Any], *arguments: Any) -> Any:
    """`function(*arguments)` in NumPy, called from inside jit, scan and vmap, once a device.

    Every array leads with the environments and has elements of 4 bytes, or truth values. Under vmap the added axes are
    laid before them, and the function sees one long batch: many seeds cost one call. `like(num_envs)` is a tree of
    `jax.ShapeDtypeStruct` of the result. All arrays cross as one, each way: every one costs some 20 microseconds.
    """
    specs = [jax.ShapeDtypeStruct(argument.shape, argument.dtype) for argument in arguments]
    results, structure = jax.tree.flatten(like(1))

    def call(words: Any) -> np.ndarray:
        lead = np.shape(words)[:-1]
        flat = np.asarray(words).reshape(-1, np.shape(words)[-1])
        found = jax.tree.leaves(function(*_split(np, flat, specs)))
        return _joined(np, [np.asarray(x, spec.dtype) for x, spec in zip(found, results)]).reshape(*lead, -1)

    def local(words: jax.Array) -> jax.Array:
        width = sum(math.prod(spec.shape[1:]) for spec in results)
        spec = jax.ShapeDtypeStruct((len(words), width), jnp.uint32)
        return jax.pure_callback(call, spec, words, vmap_method="broadcast_all")

    words = on_each_device(local)(_joined(jnp, arguments))
    return jax.tree.unflatten(structure, _split(jnp, words, results))


def _joined(xp: Any, arrays: Sequence[Any]) -> Any:
    """The arrays side by side, bit for bit: `[num_envs, words]`."""
    words = [(array.astype(xp.uint32) if array.dtype == bool else array).view(xp.uint32) for array in arrays]
    return xp.concatenate([word.reshape(len(word), -1) for word in words], axis=1)


def _split(xp: Any, words: Any, specs: Sequence[jax.ShapeDtypeStruct]) -> list[Any]:
    """The inverse of `_joined`."""
    parts, start = [], 0
    for spec in specs:
        stop = start + math.prod(spec.shape[1:])
        part = words[:, start:stop].reshape(-1, *spec.shape[1:])
        if xp is np:
            part = np.ascontiguousarray(part)
        parts.append(part.astype(bool) if spec.dtype == bool else part.view(spec.dtype))
        start = stop
    return parts
