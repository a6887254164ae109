"""`python -m vdbjax.decompress FILE --out FOLDER`: the pictures of a compressed file, exactly, as PNG files.

The file must be what `python -m vdbjax.compress` wrote, the model the one that it was made by. Where the processor,
jax, jaxlib, NumPy or XLA_FLAGS are others, decoding is tried all the same. The folder appears with every picture as its
checksum says, or not at all.
"""

import contextlib
import os
import secrets
import shutil
import sys
from collections.abc import Sequence
from dataclasses import dataclass
from pathlib import Path

import numpy as np
from tyro.conf import Positional

from vdbjax import command
from vdbjax.coding import container
from vdbjax.coding.container import Container, ContainerError
from vdbjax.data.picture_files import to_png
from vdbjax.image_codec import Device, differences, opened, unpack, use_device
from vdbjax.training.progress import reporter


@dataclass(frozen=True)
class Options:
    """What the command line gives."""

    file: Positional[Path]
    """Compressed file."""
    out: Path
    """Folder to make."""
    model: Path | None = None
    """Run folder of the model that the file was made by. None: the model is in the file."""
    device: Device = "default"
    """cpu: for files that were made with it."""


def run(options: Options) -> None:
    """Decodes all pictures, checks them and writes them."""
    if options.out.exists():  # before the work, not after
        raise ValueError(f"{options.out} exists; name another folder")
    command.check_writable(options.out)
    found, pictures = decoded(options.file, model=options.model, device=options.device)
    write_pictures(options.out, [image.name for image in found.images], pictures)
    print(f"{options.out}: {len(pictures)} pictures, all as their checksums say")


def decoded(file: Path, *, model: Path | None, device: Device) -> tuple[Container, list[np.ndarray]]:
    """A file and its pictures' pixels. Raises ValueError unless all are exact."""
    use_device(device)
    found = container.read(file)
    try:
        if apart := differences(found.header):
            print(f"note: {file} was made elsewhere ({apart}); every picture is checked", file=sys.stderr)
        codec = opened(found, model)
        return found, unpack(found, codec, report=reporter("decoding", unit="kB", scale=1e3))
    except ContainerError as error:
        raise ContainerError(f"{file}: {error}") from error


def write_pictures(out: Path, names: Sequence[str], pictures: Sequence[np.ndarray]) -> None:
    """Writes PNG files under a new folder, which appears whole or not at all. Raises ContainerError where it cannot."""
    partial = out.with_name(f".vdbjax-{secrets.token_hex(8)}.partial")  # in containers all processes have one number
    try:
        try:
            for name, pixels in zip(names, pictures, strict=True):
                target = partial / name
                target.parent.mkdir(parents=True, exist_ok=True)
                with target.open("xb") as file:  # "x": on some disks a.png is A.png
                    file.write(to_png(pixels))
            os.rename(partial, out)
        except BaseException:
            with contextlib.suppress(OSError):
                shutil.rmtree(partial)
            raise
    except OSError as error:
        raise ContainerError(f"cannot write {out}: {error.strerror or error}") from error


def main() -> None:
    """The command."""
    command.main(lambda: run(command.parse(Options, prog="python -m vdbjax.decompress", description=__doc__)))


if __name__ == "__main__":
    main()
