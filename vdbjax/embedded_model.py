"""A model as bytes of a compressed file, and the name by which a file knows its model. Nothing is unpickled."""

import dataclasses
import json
import math
from collections.abc import Callable, Mapping
from typing import Any, NamedTuple

import jax
import numpy as np
from jax.extend.core import ClosedJaxpr, Jaxpr

from vdbjax.coding.container import ContainerError, digest_of
from vdbjax.flows import flowpp
from vdbjax.images import vdvae
from vdbjax.saved_config import from_dict

MAX_BLOCKS = 2_000
"""Of all the networks of a file's model: some more than the largest recipe has. A file could ask for any number."""

FREE_BYTES = 2**28
BYTES_A_BYTE = 2**5
"""What a file's model may take for its latents, or for one array: the first, and so many more for each byte of its
parameters. With the recipes and batches of 16 it is 72 MiB at most, and 4 bytes a byte. A file could ask for any."""


class ImageModel(NamedTuple):
    """A model that images can be coded by, and its parameters."""

    config: flowpp.Config | vdvae.Config
    model: Any
    params: Any
    iteration: int | None = None  # of the checkpoint it was loaded from; None: of no run


class _Kind(NamedTuple):
    """A family of models."""

    config: Any  # any one, whose class it is
    build: Callable[[Any, tuple[int, int, int]], Any]
    blocks: Callable[[Any], int]
    latents: Callable[[Any], int]  # numbers that are drawn for an image


def _blocks_of_flow(config: flowpp.Config) -> int:
    chosen = config.dequantizer
    return len(config.layers) * (config.blocks + 1) + chosen.couplings * (chosen.blocks + 1) + chosen.context_blocks


def _blocks_of_vae(config: vdvae.Config) -> int:
    return 3 * sum(config.layers) + sum(config.encoder_blocks)


def _latents_of_vae(config: vdvae.Config) -> int:
    return config.latents * sum(count * side**2 for count, side in zip(config.layers, config.resolutions, strict=True))


_KINDS = {
    "flow": _Kind(flowpp.Config(), flowpp.build_model, _blocks_of_flow, lambda config: 0),
    "vae": _Kind(vdvae.Config(), vdvae.build_model, _blocks_of_vae, _latents_of_vae),
}


def digest(params: Any) -> str:
    """SHA-256 of the parameters with their names, in hexadecimal digits."""
    leaves = jax.tree_util.tree_leaves_with_path(jax.device_get(params))
    return digest_of({jax.tree_util.keystr(path): np.asarray(leaf) for path, leaf in leaves})


def _name_of(config: Any) -> str:
    return next(name for name, kind in _KINDS.items() if isinstance(config, type(kind.config)))


def to_parts(trained: ImageModel) -> dict[str, bytes]:
    """The model as parts of a container: its config as JSON, its parameters as little-endian float32."""
    content = {
        "kind": _name_of(trained.config),
        "image_shape": trained.model.image_shape,
        "config": dataclasses.asdict(trained.config),
    }
    leaves = jax.tree.leaves(jax.device_get(trained.params))
    return {
        "model": json.dumps(content, separators=(",", ":")).encode(),
        "parameters": b"".join(np.ascontiguousarray(leaf, "<f4").tobytes() for leaf in leaves),
    }


def from_parts(parts: Mapping[str, bytes]) -> ImageModel:
    """Undoes `to_parts`. Raises ContainerError for parts that hold no model."""
    try:
        content = json.loads(parts["model"].decode())
        kind = _KINDS[content["kind"]]
        config = from_dict(kind.config, content["config"])
        height, width, channels = (int(side) for side in content["image_shape"])
        if min(height, width, channels) < 1:
            raise ValueError(f"image_shape {content['image_shape']} must be at least 1 each")
        if kind.blocks(config) > MAX_BLOCKS:
            raise ValueError(f"{kind.blocks(config)} blocks are too many")
        model = kind.build(config, (height, width, channels))
        images = jax.ShapeDtypeStruct((2, *model.image_shape), np.uint8)
        like = jax.eval_shape(model.init, jax.random.key(0), images)
    except (ValueError, TypeError, KeyError, AttributeError, RecursionError, OverflowError) as error:
        reason = " ".join(str(error).split())[:200]
        raise ContainerError(f"the model inside the file is damaged: {reason}") from None
    leaves, structure = jax.tree.flatten(like)
    sizes = [math.prod(leaf.shape) for leaf in leaves]
    data = parts.get("parameters", b"")
    if len(data) != 4 * sum(sizes):
        raise ContainerError(f"the model inside the file needs {4 * sum(sizes)} bytes of parameters, not {len(data)}")
    arrays = np.split(np.frombuffer(data, "<f4"), np.cumsum(sizes)[:-1])
    filled = [array.astype(np.float32).reshape(leaf.shape) for array, leaf in zip(arrays, leaves)]
    return ImageModel(config, model, jax.tree.unflatten(structure, filled))


def check_memory(trained: ImageModel, batch_size: int) -> None:
    """Raises ContainerError for a model that needs more memory than one in a file may, for batches of that size.

    It is only traced. What it allocates is a few times its largest array, or its latents, of which all are held.
    """
    images = jax.ShapeDtypeStruct((batch_size, *trained.model.image_shape), np.uint8)
    largest = _largest_array(jax.make_jaxpr(trained.model.bound)(trained.params, images, jax.random.key(0)).jaxpr)
    need = max(largest, 4 * batch_size * _KINDS[_name_of(trained.config)].latents(trained.config))
    limit = FREE_BYTES + BYTES_A_BYTE * sum(4 * leaf.size for leaf in jax.tree.leaves(trained.params))
    if need > limit:
        raise ContainerError(
            f"with batches of {batch_size} the model needs arrays of {need // 2**20:,} MiB, and one of its size inside "
            f"a file may have {limit // 2**20:,} MiB; compress with a smaller --batch-size, or without --embed-model"
        )


def _largest_array(jaxpr: Jaxpr) -> int:
    """In bytes, of those that it computes."""
    arrays: list[Any] = [variable.aval for step in jaxpr.eqns for variable in step.outvars]
    inner = [part for step in jaxpr.eqns for part in jax.tree.leaves(list(step.params.values()))]
    inner = [part.jaxpr if isinstance(part, ClosedJaxpr) else part for part in inner]
    sizes = [array.size * array.dtype.itemsize for array in arrays]
    return max([0, *sizes, *(_largest_array(part) for part in inner if isinstance(part, Jaxpr))])
