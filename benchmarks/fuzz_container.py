"""Changes compressed files at random: every one must end in an error, or in the exact pixels.

A file of images coded by a small flow is cut, torn, flipped and shuffled; in every other one the checksum is then made
to fit again, so that what lies behind it meets the damage too. An exception other than ValueError, or pixels that are
not the images', fails; so does a process that grows by more than `--max-megabytes`.

    python benchmarks/fuzz_container.py
"""

import resource
import struct
import sys
import time
import warnings
import zlib
from collections import Counter
from dataclasses import dataclass

import numpy as np

from vdbjax import command
from vdbjax.coding import container, local_bits_back, rans
from vdbjax.coding.container import Container, ContainerError, Header, StoredImage
from vdbjax.coding.local_bits_back import DequantizedFlow, Elementwise, Flow, Precision

SHAPE = (6, 8, 8, 3)
PRECISION = Precision(sigma=2.0**-10, delta=2.0**-18)
LANES = 64


@dataclass(frozen=True)
class Options:
    """What to run."""

    mutations: int = 10_000
    """Files."""
    seed: int = 0
    """Of the changes."""
    max_megabytes: int = 256
    """How much the process may grow."""


def main() -> None:
    """Runs the files, prints what became of them, and exits with 1 where one went wrong."""
    command.main(lambda: _run(command.parse(Options, prog="fuzz_container.py", description=__doc__)))


def _run(options: Options) -> None:
    generator = np.random.default_rng(options.seed)
    images, model = made_images(), made_model()
    original = compressed(images, model)
    if not np.array_equal(decompressed(original, model), images):
        sys.exit("the file without any change does not give its images")
    warnings.simplefilter("ignore", RuntimeWarning)  # overflows on the way to a refusal
    memory, start = _megabytes(), time.monotonic()
    outcomes: Counter[str] = Counter()
    for number in range(options.mutations):
        data = mutated(original, generator)
        if number % 2:
            data = data[:-4] + struct.pack("<I", zlib.crc32(data[:-4]))
        outcome = _outcome(data, images, model)
        outcomes[outcome] += 1
        if outcome.startswith("WRONG"):
            print(f"mutation {number} of seed {options.seed}: {outcome}", file=sys.stderr)
        if (number + 1) % 1000 == 0:
            rate = (number + 1) / (time.monotonic() - start)
            left = (options.mutations - number - 1) / rate
            print(f"{number + 1} of {options.mutations} files, {rate:.0f} a second, {left:.0f} s left", flush=True)
    grown = _megabytes() - memory
    for outcome, count in outcomes.most_common():
        print(f"{count:6}  {outcome}")
    print(f"the process grew by {grown:.0f} MB")
    if grown > options.max_megabytes or any(outcome.startswith("WRONG") for outcome in outcomes):
        sys.exit(1)


def made_images() -> np.ndarray:
    return np.random.default_rng(1).integers(40, 200, size=SHAPE)


def made_model() -> DequantizedFlow:
    """Scales pixels, and mixes their channels."""
    scale = Elementwise(lambda x: ((x - 128.0) / 64.0, np.full(x.shape, -np.log(64.0))), lambda y: 64.0 * y + 128.0)
    matrix = np.eye(3) + 0.2 * np.random.default_rng(2).normal(size=(3, 3))
    return DequantizedFlow(Flow([scale, local_bits_back.linear(matrix, np.zeros(3))], SHAPE[1:]), None)


def compressed(images: np.ndarray, model: DequantizedFlow) -> bytes:
    message = rans.random(lanes=LANES, words=1_500, seed=3)
    local_bits_back.encode_integers(message, model, images, PRECISION)
    header = Header("0" * 64, "none", "cpu", "float64", SHAPE, PRECISION.sigma, PRECISION.delta, LANES)
    crcs = [container.image_crc(image.astype(np.uint8)) for image in images]
    stored = [StoredImage(f"image{i}.png", "RGB", *SHAPE[1:3], crc) for i, crc in enumerate(crcs)]
    return container.to_bytes(Container(header, stored, {"message": rans.to_bytes(message)}))


def decompressed(data: bytes, model: DequantizedFlow) -> np.ndarray:
    """The pixels, every image held against its checksum. Raises ValueError."""
    found = container.from_bytes(data)
    header = found.header
    if header.model_digest != "0" * 64 or header.batch_shape != SHAPE or len(found.images) != SHAPE[0]:
        raise ContainerError("another model's file")
    if "message" not in found.parts or any(image.shape != SHAPE[1:] for image in found.images):
        raise ContainerError("not what this model codes")
    message = rans.from_bytes(found.parts["message"], header.lanes)
    precision = Precision(header.sigma, header.delta)
    images = local_bits_back.decode_integers(message, model, SHAPE[0], precision)
    if images.min() < 0 or images.max() > 255:
        raise ContainerError("values that are no pixels")
    pixels = images.astype(np.uint8)
    for image, its_pixels in zip(found.images, pixels, strict=True):
        if not container.is_exact(image, its_pixels):
            raise ContainerError("an image does not have its checksum")
    return pixels


def mutated(data: bytes, generator: np.random.Generator) -> bytes:
    """One to four changes, more often near the beginning, where the header lies."""
    changed = bytearray(data)
    for _ in range(generator.integers(1, 5)):
        size = max(len(changed), 1)
        at = int(generator.integers(size if generator.random() < 0.5 else min(size, 600)))
        length = int(generator.integers(1, 40))
        match int(generator.integers(8)):
            case 0:
                changed[at : at + 1] = bytes(
                    [(changed[at] if at < len(changed) else 0) ^ (1 << int(generator.integers(8)))]
                )
            case 1:
                changed[at : at + length] = generator.bytes(length)
            case 2:
                del changed[at:]
            case 3:
                del changed[at : at + length]
            case 4:
                changed[at:at] = generator.bytes(length)
            case 5:
                other = int(generator.integers(size))
                piece = changed[at : at + length]
                changed[at : at + length] = changed[other : other + length]
                changed[other : other + length] = piece
            case 6:
                changed[at : at + 4] = struct.pack("<I", int(generator.choice([0, 1, 2**31, 2**32 - 1])))
            case 7:
                digits = str(int(generator.choice([0, -1, 2**31, 2**60]))).encode()
                changed[at : at + len(digits)] = digits
    return bytes(changed)


def _outcome(data: bytes, images: np.ndarray, model: DequantizedFlow) -> str:
    try:
        pixels = decompressed(data, model)
    except ValueError as error:
        if "\n" in str(error):
            return f"WRONG: more than one line: {error}"
        return f"refused: {type(error).__name__}"
    except Exception as error:  # what a user would see as a traceback
        return f"WRONG: {type(error).__name__}: {error}"
    return "exact pixels" if np.array_equal(pixels, images) else "WRONG: other pixels"


def _megabytes() -> float:
    """The most memory that the process has had."""
    return resource.getrusage(resource.RUSAGE_SELF).ru_maxrss / 1024


if __name__ == "__main__":
    main()
