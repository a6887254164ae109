"""Changes compressed files at random: every one must end in an error, or in the exact pixels.

A file of images of several sizes, packed by a small flow as the commands pack it, is cut, torn, flipped and shuffled;
in every other one the checksum is then made to fit again, so that what lies behind it meets the damage too. An
exception other than ValueError, or pixels that are not the images', fails; so does a process that grows by more than
`--max-megabytes`.

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
from vdbjax.coding import archive, container, local_bits_back
from vdbjax.coding.archive import Coder
from vdbjax.coding.container import Container, ContainerError, Header, StoredImage
from vdbjax.coding.layers import DequantizedFlow, Elementwise, Flow, linear
from vdbjax.coding.local_bits_back import Precision

TILE = (8, 8, 3)
BATCH = 4
PRECISION = Precision(sigma=2.0**-10, delta=2.0**-18)
LANES = 64
DIGEST = "0" * 64
MODES = {channels: mode for mode, channels in container.CHANNELS.items()}


@dataclass(frozen=True)
class Options:
    """What to run."""

    mutations: int = 10_000
    """Files."""
    seed: int = 0
    """Of the changes."""
    max_megabytes: int = 256
    """How much the process may grow."""


def main(options: Options) -> None:
    """Runs the files, prints what became of them, and exits with 1 where one went wrong."""
    generator = np.random.default_rng(options.seed)
    images = made_images()
    original = compressed(images, made_coder())
    if not same(decompressed(original), images):
        sys.exit("the file without any change does not give its images")
    warnings.simplefilter("ignore", RuntimeWarning)  # overflows on the way to a refusal
    memory, start = _megabytes(), time.monotonic()
    outcomes: Counter[str] = Counter()
    for number in range(options.mutations):
        data = mutated(original, generator)
        if number % 2:
            data = data[:-4] + struct.pack("<I", zlib.crc32(data[:-4]))
        outcome = _outcome(data, images)
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


def made_images() -> list[np.ndarray]:
    draw = np.random.default_rng(1)
    tiles = [draw.integers(40, 200, size=TILE).astype(np.uint8) for _ in range(12)]
    return [*tiles, draw.integers(256, size=(11, 9, 4)).astype(np.uint8), np.full((3, 5, 1), 7, np.uint8)]


def made_coder(precision: Precision = PRECISION, lanes: int = LANES) -> Coder:
    """Scales pixels, and mixes their channels."""
    scale = Elementwise(lambda x: ((x - 128.0) / 64.0, np.full(x.shape, -np.log(64.0))), lambda y: 64.0 * y + 128.0)
    matrix = np.eye(3) + 0.2 * np.random.default_rng(2).normal(size=(3, 3))
    model = DequantizedFlow(Flow([scale, linear(matrix, np.zeros(3))], TILE), None)
    return local_bits_back.coder(model, precision, tile=TILE, batch_size=BATCH, lanes=lanes)


def compressed(images: list[np.ndarray], coder: Coder) -> bytes:
    """As `python -m vdbjax.compress` does it; some tiles by the flow, some by the plain codec, and a rest."""
    parts = archive.pack(images, coder, report=lambda coded: None)
    header = Header(DIGEST, "none", "cpu", "float64", (BATCH, *TILE), PRECISION.sigma, PRECISION.delta, LANES)
    stored = [
        StoredImage(f"{i}.png", MODES[pixels.shape[2]], pixels.shape[0], pixels.shape[1], container.image_crc(pixels))
        for i, pixels in enumerate(images)
    ]
    return container.to_bytes(Container(header, stored, parts))


def decompressed(data: bytes) -> list[np.ndarray]:
    """As `python -m vdbjax.decompress` does it: checked against the model's digest, and every image's checksum."""
    found = container.from_bytes(data)
    header = found.header
    if (header.model_digest, header.batch_shape, header.dtype) != (DIGEST, (BATCH, *TILE), "float64"):
        raise ContainerError("another model's file")
    if header.sigma is None:
        raise ContainerError("a file without noise is of no flow")
    coder = made_coder(Precision(header.sigma, header.delta), header.lanes)
    unpacked = archive.unpack(found.parts, [image.shape for image in found.images], coder)
    if not all(container.is_exact(*each) for each in zip(found.images, unpacked.images, strict=True)):
        raise ContainerError("images do not have their checksums")
    return unpacked.images


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


def same(found: list[np.ndarray], images: list[np.ndarray]) -> bool:
    """Whether all pixels are equal, in the same order."""
    return len(found) == len(images) and all(map(np.array_equal, found, images))


def _outcome(data: bytes, images: list[np.ndarray]) -> str:
    try:
        pixels = decompressed(data)
    except ValueError as error:
        if "\n" in str(error):
            return f"WRONG: more than one line: {error}"
        return f"refused: {type(error).__name__}"
    except Exception as error:  # what a user would see as a traceback
        return f"WRONG: {type(error).__name__}: {error}"
    if same(pixels, images):
        return "exact pixels"
    # The order, names and sizes are the file's to say: an image with its checksum is the image that it names.
    crcs = {container.image_crc(image) for image in images}
    return "exact pixels" if {container.image_crc(each) for each in pixels} <= crcs else "WRONG: other pixels"


def _megabytes() -> float:
    """The most memory that the process has had."""
    return resource.getrusage(resource.RUSAGE_SELF).ru_maxrss / 1024


if __name__ == "__main__":
    command.main(lambda: main(command.parse(Options, prog="fuzz_container.py", description=__doc__)))
