"""Pictures into a container and out of it again, by a trained flow or VAE.

What a file promises: the same model on the same kind of processor, with the same jax, jaxlib and NumPy and no
XLA_FLAGS that change how numbers are rounded, gives every pixel back, in any process, on any number of threads,
whatever else is in the file's batches. Elsewhere the networks may round otherwise, and the message then falls apart:
the file is decoded all the same, each picture is held against its checksum, and none is given back unless all are
exact. A file made with `--device cpu` needs no accelerator.
"""

import math
import time
from collections.abc import Callable, Iterator, Sequence
from pathlib import Path
from typing import Any, Literal, NamedTuple

import jax
import numpy as np

from vdbjax import embedded_model, flow_codec, vae_codec
from vdbjax.coding import archive, container, latent_bits_back, local_bits_back, rans
from vdbjax.coding.archive import Coded, Coder, Kind
from vdbjax.coding.container import Container, ContainerError, Header, StoredImage
from vdbjax.coding.local_bits_back import Precision
from vdbjax.coding.rans import EmptyMessageError
from vdbjax.data.picture_files import NamedPicture
from vdbjax.embedded_model import ImageModel
from vdbjax.flows import flowpp
from vdbjax.trained import load_image_model
from vdbjax.training.checkpoint import pinned_iterations
from vdbjax.training.provenance import instructions, versions
from vdbjax.training.run_dir import RunDir

MAX_BATCH = 4_096
DTYPE = "float32"
"""Of the networks; the flow's scalar maths is float64."""
SHOWN = 5  # names in a message
_AND = "; "  # between what a header says of a device

Device = Literal["default", "cpu"]
Heard = Callable[[int, int], None]
"""(samples done, samples in all): as `reporter` makes them."""


class Settings(NamedTuple):
    """How pictures are coded."""

    batch_size: int = 16
    """Tiles at once. More pay off on an accelerator, and in files of many images."""
    sigma: float | None = None
    """Of a flow's noise, where a pixel's width is 1. None: 2^-12; a VAE has none."""
    delta: float | None = None
    """Width of a bin. None: 2^-20 of a flow, 2^-12 of a VAE's latents."""
    lanes: int = 16_384  # at most: a message takes on more as it grows


class ImageCodec(NamedTuple):
    """A model compiled to code pictures."""

    trained: ImageModel
    settings: Settings  # with nothing left open that the model has
    coder: Coder
    theoretical_bits: Callable[[Any, Any], np.ndarray]  # of tiles, with what was drawn for them

    @property
    def header(self) -> Header:
        """What a file made here says of it."""
        batch_size, sigma, delta, lanes = self.settings
        shape, digest = (batch_size, *self.coder.tile), embedded_model.digest(self.trained.params)
        assert delta is not None
        return Header(digest, jax.__version__, _device(), DTYPE, shape, sigma, delta, lanes)


class Report(NamedTuple):
    """What became of the pictures' samples, and what that cost."""

    samples: int = 0
    in_tiles: int = 0  # samples that the model has the shape for; the others go by the plain codec in any case
    by_model: int = 0  # samples; the others went by the plain codec
    failed: int = 0  # chunks of the model that did not come back, and went by the plain codec
    outdone: int = 0  # chunks that the plain codec needed fewer bits for
    theoretical_bits: float = 0.0  # of the samples by the model, with the very noise or latents drawn
    net_bits: float = 0.0  # of the same samples
    all_bits: float = 0.0  # of all samples
    encode_seconds: float = 0.0
    decode_seconds: float = 0.0  # of every chunk, before it was kept
    bound_seconds: float = 0.0  # for theoretical_bits, its compilation too: no part of the coding
    model_bytes: int = 0  # of the model inside the file


def use_device(device: Device) -> None:
    """Before anything else touches JAX."""
    if device == "cpu":
        jax.config.update("jax_platforms", "cpu")


def load_model(path: str | Path, *, iteration: int | None = None) -> ImageModel:
    """The model of a run, that of its first seed: of its newest checkpoint, or of an iteration's.

    Raises ValueError where the run trained none that codes images.
    """
    trained = load_image_model(path, iteration=iteration)
    if not isinstance(trained.model, flowpp.Model) and not vae_codec.codes_images(trained.model):
        raise ValueError(
            f"{path} is a run of recipe {trained.config.recipe}, which no image can be coded by; give one of a flow "
            f"(flowpp) or of a VAE of one stage with a Gaussian (vdvae)"
        )
    return ImageModel(trained.config.algorithm, trained.model, trained.params[0], trained.iteration)


def codec_of(trained: ImageModel, settings: Settings) -> ImageCodec:
    """What codes tiles, compiled: one blank tile has gone through it. Raises ValueError for settings it cannot have."""
    if not 1 <= settings.batch_size <= MAX_BATCH:
        raise ValueError(f"batch_size ({settings.batch_size}) must lie between 1 and {MAX_BATCH}")
    codec = (_of_flow if isinstance(trained.model, flowpp.Model) else _of_vae)(trained, settings)
    container.check_header(codec.header)
    _warm_up(codec.coder, words=int(codec.coder.first_draw) // 16 + 1)
    return codec


def _warm_up(coder: Coder, *, words: int) -> None:
    """Codes a blank tile on a message of so many random words, or of more where it draws more."""
    message = rans.random(lanes=1, words=words, seed=0)
    try:
        coder.encode(message, np.full((1, *coder.tile), 128, np.int64))
    except EmptyMessageError:
        _warm_up(coder, words=2 * words)
    else:
        coder.decode(message, 1)


def _of_flow(trained: ImageModel, settings: Settings) -> ImageCodec:
    batch_size, sigma, delta, lanes = settings
    precision = Precision(2.0**-12 if sigma is None else sigma, 2.0**-20 if delta is None else delta)
    model = flow_codec.dequantized_flow(trained.model, trained.params, batch_size=batch_size)
    coder = local_bits_back.coder(model, precision, tile=trained.model.image_shape, batch_size=batch_size, lanes=lanes)
    ideal = flow_codec.theoretical_bits(trained.model, trained.params, batch_size=batch_size)
    return ImageCodec(trained, Settings(batch_size, *precision, lanes), coder, ideal)


def _of_vae(trained: ImageModel, settings: Settings) -> ImageCodec:
    batch_size, sigma, delta, lanes = settings
    if sigma is not None:
        raise ValueError(f"sigma ({sigma}) is of a flow's noise, and the model is a VAE; leave it out")
    delta = vae_codec.DELTA if delta is None else delta
    model = vae_codec.latent_model(trained.model, trained.params, batch_size=batch_size, delta=delta)
    coder = latent_bits_back.coder(model, tile=trained.model.image_shape, batch_size=batch_size, lanes=lanes)
    return ImageCodec(trained, Settings(batch_size, None, delta, lanes), coder, vae_codec.theoretical_bits(model))


def _check_pixels(picture: NamedPicture) -> None:
    name, mode, pixels = picture
    channels = container.CHANNELS.get(mode)
    if channels is None or pixels.dtype != np.uint8 or pixels.ndim != 3 or pixels.shape[2] != channels:
        wanted = (
            f"uint8 of shape (height, width, {channels})" if channels else f"of mode {', '.join(container.CHANNELS)}"
        )
        raise ValueError(f"{name}: pixels of mode {mode}, {pixels.dtype} of shape {pixels.shape}, must be {wanted}")


def pack(
    pictures: Sequence[NamedPicture],
    codec: ImageCodec,
    *,
    embed: bool = False,
    report: Heard = lambda done, total: None,
) -> tuple[Container, Report]:
    """The pictures as a container, with the model inside where `embed`; `report` hears how many samples are done.

    Raises ValueError where there are no pictures, two of one name, or pixels that are not of their mode.
    """
    for picture in pictures:
        _check_pixels(picture)
    stored = [
        StoredImage(name, mode, pixels.shape[0], pixels.shape[1], container.image_crc(pixels))
        for name, mode, pixels in pictures
    ]
    container.check_images(stored)
    total, samples = Report(), sum(pixels.size for _, _, pixels in pictures)

    def hear(coded: Coded) -> None:
        nonlocal total
        total = _added(total, coded, codec)
        report(total.samples, samples)

    parts = archive.pack([pixels for _, _, pixels in pictures], codec.coder, report=hear)
    model = embedded_model.to_parts(codec.trained) if embed else {}
    return Container(codec.header, stored, parts | model), total._replace(model_bytes=sum(map(len, model.values())))


def unpack(found: Container, codec: ImageCodec, *, report: Heard = lambda done, total: None) -> list[np.ndarray]:
    """The pictures' pixels, each as its checksum says; `report` hears how many samples are done.

    Raises ContainerError that names those that are not.
    """
    shapes, done = [image.shape for image in found.images], 0
    samples = sum(map(math.prod, shapes))

    def hear(pixels: np.ndarray) -> None:
        nonlocal done
        done += pixels.size
        report(done, samples)

    unpacked = archive.unpack(found.parts, shapes, codec.coder, report=hear)
    wrong = [
        image.name
        for image, pixels in zip(found.images, unpacked.images, strict=True)
        if not container.is_exact(image, pixels)
    ]
    if not wrong:
        return unpacked.images
    shown = ", ".join(wrong[:SHOWN]) + (f" and {len(wrong) - SHOWN} more" if len(wrong) > SHOWN else "")
    reason = f" ({unpacked.problem})" if unpacked.problem else ""
    raise ContainerError(
        f"{len(wrong)} of {len(found.images)} pictures do not come back{reason}: {shown}; {_elsewhere(found.header)}"
    )


def opened(found: Container, run: Path | None) -> ImageCodec:
    """What decodes a container: the model inside of it, or that of a run.

    Raises ContainerError for a model that is not the file's or asks for too much, and where there is none.
    """
    header = found.header
    if run is not None:
        models = _models_of(run)
    elif "model" in found.parts:
        inside = embedded_model.from_parts(found.parts)
        embedded_model.check_memory(inside, header.batch_shape[0])
        models = iter([inside])
    else:
        raise ContainerError("the file does not hold its model; name the run that it was compressed by with --model")
    trained = next((each for each in models if embedded_model.digest(each.params) == header.model_digest), None)
    if trained is None:
        raise ContainerError(
            f"the file is of model {header.model_digest[:12]}, which {run or 'the file'} does not hold; "
            f"give its own run with --model, trained no further than then"
        )
    shape = trained.model.image_shape
    if header.batch_shape[1:] != shape or header.dtype != DTYPE:
        raise ContainerError(f"the file is of tiles {header.batch_shape[1:]} in {header.dtype}, not {shape} in {DTYPE}")
    return codec_of(trained, Settings(header.batch_shape[0], header.sigma, header.delta, header.lanes))


def _models_of(run: Path) -> Iterator[ImageModel]:
    """The newest one, and those that files pinned."""
    yield load_model(run)
    for iteration in pinned_iterations(RunDir(run)):
        yield load_model(run, iteration=iteration)


def differences(header: Header) -> str:
    """How this machine differs from the one that wrote the file, as far as that says; empty where it does not."""
    theirs = [f"jax {header.jax_version}", *header.device_kind.split(_AND)]
    ours = [f"jax {jax.__version__}", *_device().split(_AND)]
    return ", ".join(f"{there} there, {here} here" for there, here in zip(theirs, ours) if there != here)


def _elsewhere(header: Header) -> str:
    if apart := differences(header):
        return f"decompress where it was compressed ({apart})"
    return (
        "the file is whole, so either its networks round otherwise here (another processor, jaxlib, NumPy or XLA_FLAGS "
        "than where it was made) or it was made to look whole"
    )


def _device() -> str:
    """Its kind, on the host the processor's, and what else decides how results are rounded. Older files hold the kind
    alone."""
    device, found = jax.devices()[0], versions()
    kind = found["processor"] if device.platform == "cpu" else device.device_kind
    rest = f"jaxlib {found['jaxlib']}", f"instructions {instructions() or 'unknown'}"
    return _AND.join([f"{device.platform} {kind}"[:100], *rest])


def _added(total: Report, coded: Coded, codec: ImageCodec) -> Report:
    by_model, samples, start = coded.chunk.kind == Kind.MODEL, coded.pixels.size, time.monotonic()
    bound = float(codec.theoretical_bits(coded.pixels, coded.drawn).sum()) if by_model else 0.0
    return Report(
        total.samples + samples,
        total.in_tiles + (coded.chunk.kind != Kind.REST) * samples,
        total.by_model + by_model * samples,
        total.failed + coded.failed,
        total.outdone + coded.outdone,
        total.theoretical_bits + bound,
        total.net_bits + by_model * coded.bits,
        total.all_bits + coded.bits,
        total.encode_seconds + coded.encode_seconds,
        total.decode_seconds + coded.decode_seconds,
        total.bound_seconds + time.monotonic() - start,
    )
