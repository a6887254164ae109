"""Feature extractors by what a user names: a run of `cifar-features`, or a file of Inception's weights.

Nothing is downloaded. A protocol of Inception is its weights, their network, a resize and a scaling, all of which a
number depends on; nothing else is called FID.
"""

import hashlib
from collections.abc import Callable
from pathlib import Path
from typing import Any, Literal, NamedTuple

import jax.numpy as jnp
from jaxtyping import Array

from vdbjax.evaluation.features import FeatureExtractor, digest_of_params
from vdbjax.images import resize
from vdbjax.images.inception import SIDE, Inception, Variant, params_of
from vdbjax.images.torch_weights import WeightsError, read_torch_weights
from vdbjax.trained import load_image_model

ProtocolName = Literal["fid", "pytorch-fid", "clean-fid", "vgan2018"]


class Protocol(NamedTuple):
    """What decides an Inception distance, besides the images."""

    distance: str
    files: dict[str, str]  # where the weights are -> what the file's SHA-256 begins with, as PyTorch names its files
    variant: Variant
    resize: Callable[[Array, int], Array]
    scale: Callable[[Array], Array]
    preprocessing: str


FID_WEIGHTS = {
    "github.com/mseitzer/pytorch-fid/releases/download/fid_weights/pt_inception-2015-12-05-6726825d.pth": "6726825d"
}
TORCHVISION_WEIGHTS = {
    "download.pytorch.org/models/inception_v3_google-1a9a5a14.pth": "1a9a5a14",
    "download.pytorch.org/models/inception_v3_google-0cc3c7bd.pth": "0cc3c7bd",
}


def _centred(pixels: Array) -> Array:
    return (pixels - 128.0) / 128.0


def _whole_range(pixels: Array) -> Array:
    return pixels / 127.5 - 1.0


def _normalised_twice(pixels: Array) -> Array:
    """A change from ImageNet's normalisation to [-1, 1], done to what lies in [-1, 1] already, as released."""
    deviation, mean = jnp.array([0.229, 0.224, 0.225]), jnp.array([0.485, 0.456, 0.406])
    slope, offset = (each.reshape(1, 1, 1, 3) for each in (deviation / 0.5, (mean - 0.5) / 0.5))
    return _whole_range(pixels) * slope + offset


PROTOCOLS: dict[str, Protocol] = {
    "fid": Protocol(
        *("FID", FID_WEIGHTS, "fid", resize.tf1_bilinear, _centred),
        "TensorFlow 1's bilinear resize to 299, (x - 128) / 128",
    ),
    "pytorch-fid": Protocol(
        *("FID", FID_WEIGHTS, "fid", resize.bilinear, _whole_range),
        "bilinear resize to 299 with half-pixel centres, 2 x / 255 - 1",
    ),
    "clean-fid": Protocol(
        *("FID", FID_WEIGHTS, "fid", resize.bicubic, _centred),
        "Pillow's antialiased bicubic resize to 299, (x - 128) / 128",
    ),
    "vgan2018": Protocol(
        *("vgan2018 distance", TORCHVISION_WEIGHTS, "torchvision", resize.bilinear, _normalised_twice),
        "bilinear resize to 299 with half-pixel centres, ImageNet's normalisation undone on [-1, 1]",
    ),
}
"""fid: of Heusel et al. 2017's TensorFlow graph, as torch-fidelity and StyleGAN compute it. pytorch-fid and clean-fid:
as these tools do. vgan2018: as VGAN's released code did, before pytorch-fid had FID's weights."""


def load_extractor(path: Path | str, *, protocol: ProtocolName | None = None) -> FeatureExtractor:
    """The extractor of a run folder, or of a file of weights under a protocol (None: fid).

    Raises ValueError for a path that is neither, a run that learns no features, weights that are not the protocol's,
    and a protocol for a run, whose preprocessing is its own.
    """
    path = Path(path)
    if not path.is_dir():
        return inception_extractor(path, protocol or "fid")
    if protocol is not None:
        raise ValueError(f"protocol {protocol} is one of Inception's weights, and {path} is a run; leave it out")
    trained = load_image_model(path)
    if not hasattr(trained.model, "features"):
        raise ValueError(f"{path} is a run of recipe {trained.config.recipe}; take one of cifar-features")
    params = trained.params[0]
    return FeatureExtractor(
        name=f"{trained.config.recipe} after {trained.iteration} iterations",
        distance="FD",
        apply=trained.model.features,
        params=params,
        digest=digest_of_params(params),
        preprocessing="no resize, x / 127.5 - 1",
        image_shape=trained.model.image_shape,
    )


def inception_extractor(path: Path, protocol: ProtocolName) -> FeatureExtractor:
    """Inception under a protocol. Raises ValueError where the file is missing, or its SHA-256 another one."""
    rule = PROTOCOLS[protocol]
    wanted = " or ".join(rule.files)
    if not path.is_file():
        raise WeightsError(f"{path}: no such file or run folder; protocol {protocol} needs the weights of {wanted}")
    digest = hashlib.sha256(path.read_bytes()).hexdigest()
    if not digest.startswith(tuple(rule.files.values())):
        raise WeightsError(
            f"{path}: the SHA-256 begins with {digest[:8]}: not the weights of protocol {protocol}, which are {wanted}"
        )
    return inception_with(params_of(read_torch_weights(path)), protocol, digest=digest)


def inception_with(params: Any, protocol: ProtocolName, *, digest: str) -> FeatureExtractor:
    """The protocol with any parameters of its network."""
    rule = PROTOCOLS[protocol]
    network = Inception(rule.variant)

    def apply(params: Any, images: Array) -> Any:
        resized = rule.resize(images.astype(jnp.float32), SIDE)
        return network.apply({"params": params}, rule.scale(resized))

    return FeatureExtractor(
        name=f"Inception v3, protocol {protocol}",
        distance=rule.distance,
        apply=apply,
        params=params,
        digest=digest,
        preprocessing=rule.preprocessing,
        image_shape=(None, None, 3),
    )
