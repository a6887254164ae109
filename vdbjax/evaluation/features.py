"""What turns images into the features that distances are measured in, with all that their numbers rest on."""

import hashlib
from collections.abc import Callable
from typing import Any, NamedTuple

import jax
import numpy as np
from jax.sharding import Mesh, NamedSharding, PartitionSpec
from jaxtyping import Array, Float, Shaped

from vdbjax.compiler import compiler_options

Images = Shaped[Any, "N height width channels"]
"""uint8, or float32 on the same scale of 0 to 255."""


class FeatureExtractor(NamedTuple):
    """A network and what decides its features; the whole of it is named beside every number."""

    name: str  # of the network, and of a training run where it has one
    distance: str  # what a Fréchet distance of its features is called: FID for Inception's own weights, else FD
    apply: Callable[[Any, Array], Float[Array, "batch features"]]  # (params, images), pure
    params: Any
    digest: str  # SHA-256 of the weights
    preprocessing: str  # resize and scaling
    image_shape: tuple[int | None, int | None, int]  # height, width, channels; None: any


def features_of(
    extractor: FeatureExtractor,
    images: Images,
    *,
    batch_size: int = 64,
    report: Callable[[int, int], None] | None = None,
) -> Float[np.ndarray, "N features"]:
    """Float32 features of each image, the batch laid over this process's devices; a last one is padded to its shape.

    `report` hears (images done, of how many). Raises ValueError for images of another shape than the network takes.
    """
    check_shape(extractor, images)
    devices = jax.local_devices()
    batch_size = -(-batch_size // len(devices)) * len(devices)
    mesh = Mesh(np.array(devices), ("batch",))
    split, whole = NamedSharding(mesh, PartitionSpec("batch")), NamedSharding(mesh, PartitionSpec())
    params = jax.device_put(extractor.params, whole)
    apply = jax.jit(extractor.apply, compiler_options=compiler_options())
    found = []
    for start in range(0, len(images), batch_size):
        batch = np.asarray(images[start : start + batch_size])
        padded = np.pad(batch, ((0, batch_size - len(batch)), (0, 0), (0, 0), (0, 0)))
        found.append(np.asarray(apply(params, jax.device_put(padded, split)), np.float32)[: len(batch)])
        if report:
            report(start + len(batch), len(images))
    return np.concatenate(found)


def check_shape(extractor: FeatureExtractor, images: Images) -> None:
    """Raises ValueError where the images are not of the shape that the network takes, or there are none."""
    if not len(images):
        raise ValueError("no images to extract features of")
    shape = images.shape[1:]
    if any(asked not in (None, given) for asked, given in zip(extractor.image_shape, shape)):
        asked = " x ".join("any" if side is None else str(side) for side in extractor.image_shape)
        raise ValueError(
            f"images of {' x '.join(map(str, shape))} do not fit {extractor.name}, which takes {asked}; "
            f"give a --size, or another extractor"
        )


def digest_of(*arrays: Any) -> str:
    """SHA-256 of the arrays' types, shapes and numbers, in this order."""
    found = hashlib.sha256()
    for array in arrays:
        found.update(f"{array.dtype.str}{array.shape}".encode())
        for start in range(0, len(array) if array.ndim else 0, 1_024):  # a memmap may be larger than memory
            found.update(np.ascontiguousarray(array[start : start + 1_024]).tobytes())
        if not array.ndim:
            found.update(np.asarray(array).tobytes())
    return found.hexdigest()


def digest_of_params(params: Any) -> str:
    """The same of a tree of parameters, and of their names."""
    leaves = jax.tree_util.tree_flatten_with_path(jax.device_get(params))[0]
    names = np.array([jax.tree_util.keystr(path) for path, _ in leaves])
    return digest_of(names, *[np.asarray(leaf) for _, leaf in leaves])
