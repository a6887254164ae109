"""Pictures into a container and out of it again, by a trained flow.

What a file promises: the same model on the same kind of processor with the same jax version gives every pixel back,
in any process, on any number of threads, whatever else is in the file's batches. Elsewhere the networks may round
otherwise, and the message then falls apart: the file is decoded all the same, each picture is held against its
checksum, and none is given back unless all are exact. A file made with `--device cpu` needs no accelerator.
"""

from collections.abc import Callable, Sequence
from pathlib import Path
from typing import Any, Literal, NamedTuple

import jax
import numpy as np

from vdbjax import embedded_model
from vdbjax.coding import archive, container, local_bits_back, rans
from vdbjax.coding.archive import Coded, Coder
from vdbjax.coding.container import Container, ContainerError, Header, StoredImage
from vdbjax.coding.local_bits_back import Precision
from vdbjax.data.picture_files import NamedPicture
from vdbjax.embedded_model import TrainedFlow
from vdbjax.flow_codec import dequantized_flow, theoretical_bits
from vdbjax.flows import flowpp
from vdbjax.trained import load_image_model
from vdbjax.training.provenance import versions

MAX_BATCH = 4_096
DTYPE = "float32"
"""Of the networks; the flow's scalar maths is float64."""
SHOWN = 5  # names in a message

Device = Literal["default", "cpu"]


class Settings(NamedTuple):
    """How pictures are coded."""

    batch_size: int = 16
    """Tiles at once. More pay off on an accelerator, and in files of many images."""
    precision: Precision = Precision(sigma=2.0**-12, delta=2.0**-20)
    lanes: int = 4_096


class Report(NamedTuple):
    """What became of the pictures' samples, and what that cost."""

    samples: int = 0
    by_flow: int = 0  # samples; the others went by the plain codec
    failed: int = 0  # chunks of the flow that did not come back, and went by the plain codec
    theoretical_bits: float = 0.0  # of the samples by the flow, with the very noise drawn
    net_bits: float = 0.0  # of the same samples
    all_bits: float = 0.0  # of all samples
    encode_seconds: float = 0.0
    decode_seconds: float = 0.0  # of every chunk, before it was kept


def use_device(device: Device) -> None:
    """Before anything else touches JAX."""
    if device == "cpu":
        jax.config.update("jax_platforms", "cpu")


def load_flow(path: str | Path) -> TrainedFlow:
    """The flow of a run, that of its first seed. Raises ValueError where the run trained none."""
    trained = load_image_model(path)
    if not isinstance(trained.model, flowpp.Model):
        raise ValueError(f"{path} is a run of recipe {trained.config.recipe}, which trains no flow; give one of flowpp")
    return TrainedFlow(trained.config.algorithm, trained.model, trained.params[0])


def coder_of(trained: TrainedFlow, settings: Settings) -> Coder:
    """What codes tiles, compiled: one blank tile has gone through it."""
    if not 1 <= settings.batch_size <= MAX_BATCH:
        raise ValueError(f"batch_size ({settings.batch_size}) must lie between 1 and {MAX_BATCH}")
    model = dequantized_flow(trained.model, trained.params, batch_size=settings.batch_size)
    coder = Coder(model, trained.model.image_shape, *settings)
    blank = np.full((1, *coder.tile), 128, np.int64)
    message = rans.random(lanes=1, words=4 * blank.size, seed=0)
    local_bits_back.encode_integers(message, model, blank, coder.precision)
    local_bits_back.decode_integers(message, model, 1, coder.precision)
    return coder


def pack(
    pictures: Sequence[NamedPicture],
    trained: TrainedFlow,
    coder: Coder,
    *,
    embed: bool = False,
    report: Callable[[Coded], None] = lambda coded: None,
) -> tuple[Container, Report]:
    """The pictures as a container, with the model inside where `embed`; `report` hears of every chunk.

    Raises ValueError where there are no pictures, or two of one name.
    """
    stored = [
        StoredImage(name, mode, pixels.shape[0], pixels.shape[1], container.image_crc(pixels))
        for name, mode, pixels in pictures
    ]
    container.check_images(stored)
    ideal = theoretical_bits(trained.model, trained.params, batch_size=coder.batch_size)
    total = Report()

    def hear(coded: Coded) -> None:
        nonlocal total
        total = _added(total, coded, ideal)
        report(coded)

    parts = archive.pack([pixels for _, _, pixels in pictures], coder, report=hear)
    parts |= embedded_model.to_parts(trained) if embed else {}
    return Container(_header(trained, coder), stored, parts), total


def unpack(found: Container, coder: Coder) -> list[np.ndarray]:
    """The pictures' pixels, each as its checksum says. Raises ContainerError that names those that are not."""
    unpacked = archive.unpack(found.parts, [image.shape for image in found.images], coder)
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


def opened(found: Container, run: Path | None) -> Coder:
    """What decodes a container: the model inside of it, or that of a run.

    Raises ContainerError for a model that is not the file's, and where there is none.
    """
    if run is not None:
        trained = load_flow(run)
    elif "model" in found.parts:
        trained = embedded_model.from_parts(found.parts)
    else:
        raise ContainerError("the file does not hold its model; name the run that it was compressed by with --model")
    header, digest = found.header, embedded_model.digest(trained.params)
    if header.model_digest != digest:
        raise ContainerError(f"the file is of model {header.model_digest[:12]}, not of {digest[:12]}; give its own run")
    shape = trained.model.image_shape
    if header.batch_shape[1:] != shape or header.dtype != DTYPE:
        raise ContainerError(f"the file is of tiles {header.batch_shape[1:]} in {header.dtype}, not {shape} in {DTYPE}")
    settings = Settings(header.batch_shape[0], Precision(header.sigma, header.delta), header.lanes)
    return coder_of(trained, settings)


def differences(header: Header) -> str:
    """How this machine differs from the one that wrote the file; empty where it does not."""
    here = {"jax": (header.jax_version, jax.__version__), "device": (header.device_kind, _device())}
    return ", ".join(f"{name} {there} there, {now} here" for name, (there, now) in here.items() if there != now)


def _elsewhere(header: Header) -> str:
    apart = differences(header)
    return f"decompress where it was compressed ({apart})" if apart else "the file is damaged"


def _header(trained: TrainedFlow, coder: Coder) -> Header:
    return Header(
        embedded_model.digest(trained.params),
        jax.__version__,
        _device(),
        DTYPE,
        (coder.batch_size, *coder.tile),
        *coder.precision,
        coder.lanes,
    )


def _device() -> str:
    """Its kind, and on the host the processor's, whose instructions decide how results are rounded."""
    device, found = jax.devices()[0], versions()
    kind = found["processor"] if device.platform == "cpu" else device.device_kind
    return f"{device.platform} {kind}"[:200]


def _added(total: Report, coded: Coded, ideal: Callable[[Any, Any], Any]) -> Report:
    by_flow = coded.noise is not None
    return Report(
        total.samples + coded.pixels.size,
        total.by_flow + by_flow * coded.pixels.size,
        total.failed + coded.failed,
        total.theoretical_bits + (float(ideal(coded.pixels, coded.noise).sum()) if by_flow else 0.0),
        total.net_bits + by_flow * coded.bits,
        total.all_bits + coded.bits,
        total.encode_seconds + coded.encode_seconds,
        total.decode_seconds + coded.decode_seconds,
    )
