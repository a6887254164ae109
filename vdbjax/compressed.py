"""`python -m vdbjax.compressed`: look at a compressed file, check it, and what files of so many pictures cost."""

import time
from dataclasses import dataclass
from pathlib import Path
from typing import assert_never

from tyro.conf import Positional

from vdbjax import command
from vdbjax.coding import container
from vdbjax.data.picture_files import read_pictures
from vdbjax.decompress import decoded
from vdbjax.image_codec import Device, Settings, codec_of, differences, load_model, pack, use_device
from vdbjax.other_codecs import bits_by_others

SHOWN = 10  # pictures of a file


@dataclass(frozen=True)
class Info:
    """Prints what a file says of itself, without its model."""

    file: Positional[Path]
    """Compressed file."""


@dataclass(frozen=True)
class Verify:
    """Decodes a file and holds every picture against its checksum, and writes nothing."""

    file: Positional[Path]
    """Compressed file."""
    model: Path | None = None
    """Run folder of the model that the file was made by. None: the model is in the file."""
    device: Device = "default"
    """cpu: for files that were made with it."""


@dataclass(frozen=True)
class Bench:
    """Compresses the first pictures of a set in memory: what files of so many cost, beside PNG and WebP."""

    pictures: Positional[tuple[Path, ...]]
    """Folders, PNG and JPEG files, or sets of images such as an .npz."""
    model: Path
    """Run folder of a flow or of a VAE, as `python -m vdbjax.train` left it."""
    counts: tuple[int, ...] = (1, 10, 100, 1000)
    """Numbers of pictures."""
    batch_size: int = 16
    """Tiles at once."""
    device: Device = "default"
    """cpu: compute on the host, even where there is an accelerator."""


def info(options: Info) -> None:
    """Prints the header, the parts and the first pictures."""
    found = container.read(options.file)
    header, images = found.header, found.images
    samples = sum(height * width * channels for height, width, channels in (image.shape for image in images))
    size = options.file.stat().st_size
    print(f"{options.file}: {len(images)} pictures, {size} bytes, {8 * size / samples:.4f} bits/dim")
    print(f"model {header.model_digest}, {'in the file' if 'model' in found.parts else 'not in the file'}")
    print(f"made by jax {header.jax_version} on {header.device_kind}: {differences(header) or 'as here'}")
    noise = "" if header.sigma is None else f"sigma {header.sigma:.3g}, "
    print(
        f"networks in {header.dtype}, batches of {header.batch_shape}, {noise}delta {header.delta:.3g}, "
        f"up to {header.lanes} lanes"
    )
    print("parts:", ", ".join(f"{name} {len(part)} bytes" for name, part in found.parts.items()))
    for image in images[:SHOWN]:
        print(f"  {image.width} x {image.height} {image.mode:4} {image.crc:08x} {command.printable(image.name)}")
    if len(images) > SHOWN:
        print(f"  and {len(images) - SHOWN} more")


def verify(options: Verify) -> None:
    """Prints a line where all is well."""
    found, _ = decoded(options.file, model=options.model, device=options.device)
    print(f"{options.file}: {len(found.images)} pictures, all as their checksums say")


def bench(options: Bench) -> None:
    """Prints a line a number of pictures."""
    if min(options.counts, default=0) < 1:
        raise ValueError(f"counts {options.counts} must be at least 1 each")
    use_device(options.device)
    pictures = read_pictures(options.pictures).pictures
    codec = codec_of(load_model(options.model), Settings(options.batch_size))
    for count in sorted({min(count, len(pictures)) for count in options.counts}):
        chosen, start = pictures[:count], time.monotonic()
        packed, report = pack(chosen, codec)
        seconds, size = time.monotonic() - start - report.bound_seconds, len(container.to_bytes(packed))
        others = bits_by_others([picture.pixels for picture in chosen])
        beside = ", ".join(f"{name} {bits / report.samples:.3f}" for name, bits in others.items())
        print(
            f"{count:5} pictures: {size} bytes, file {8 * size / report.samples:.3f} bits/dim ({beside}), "
            f"{report.samples / seconds / 1e6:.3g} MB/s with every chunk's decoding",
            flush=True,
        )


def run(options: Info | Verify | Bench) -> None:
    """Dispatches."""
    match options:
        case Info():
            info(options)
        case Verify():
            verify(options)
        case Bench():
            bench(options)
        case _:
            assert_never(options)


def main() -> None:
    """The command."""
    options = Info | Verify | Bench
    command.main(lambda: run(command.parse(options, prog="python -m vdbjax.compressed", description=__doc__)))


if __name__ == "__main__":
    main()
