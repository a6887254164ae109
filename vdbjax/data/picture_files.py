"""Picture files whose pixels can be given back exactly: PNG and JPEG of 8 bits, grey, RGB or RGBA.

Palettes are resolved, and transparency of a colour or a palette becomes RGBA: what comes back are the pixels, not the
file. JPEG cannot hold given pixels, so what was read from one is written as PNG.
"""

import io
from collections.abc import Sequence
from pathlib import Path
from typing import NamedTuple

import numpy as np
from jaxtyping import UInt8
from PIL import Image

from vdbjax.data.images import ImageError, is_prepared, load_images
from vdbjax.data.pictures import PICTURES, decode_picture, files_below

SET_SUFFIXES = (".npz", ".idx", ".gz", ".bin", ".mat", ".zip")
MODES = {"L": 1, "RGB": 3, "RGBA": 4}


class NamedPicture(NamedTuple):
    """A picture and the name under which it comes back, a relative POSIX path that ends in .png."""

    name: str
    mode: str  # a key of MODES
    pixels: UInt8[np.ndarray, "height width channels"]


class Found(NamedTuple):
    """Pictures, and the files among them that are none."""

    pictures: list[NamedPicture]
    left_out: list[Path]
    renamed: list[str]  # names of those pictures whose files have others


def read_pictures(paths: Sequence[Path]) -> Found:
    """All pictures in folders and below, picture files, and the images of sets as `load_images` reads them, named by
    their number: an .npz, a zip, a prepared folder, cifar10/test.

    A folder's pictures are named by their place in it. Files of other kinds and hidden ones in folders are left out.
    Raises ImageError for a picture that cannot be read or given back, and where there is none.
    """
    pictures: list[NamedPicture] = []
    left_out: list[Path] = []
    renamed: list[str] = []

    def add(name: str, file: Path) -> None:
        picture = _named(name, _read(file))
        pictures.append(picture)
        if picture.name != name:
            renamed.append(picture.name)

    for path in paths:
        if path.suffix.lower() in SET_SUFFIXES or not path.exists() or is_prepared(path):
            pictures += _of_set(path)
        elif path.is_dir():
            for file in files_below(path):
                if _is_picture(file.relative_to(path)):
                    add(file.relative_to(path).as_posix(), file)
                else:
                    left_out.append(file)
        else:
            add(path.name, path)
    if not pictures:
        raise ImageError(f"{', '.join(map(str, paths))}: no PNG or JPEG files")
    return Found(pictures, left_out, renamed)


def to_png(pixels: UInt8[np.ndarray, "height width channels"]) -> bytes:
    """The pixels as a PNG file."""
    stream = io.BytesIO()
    Image.fromarray(pixels[:, :, 0] if pixels.shape[2] == 1 else pixels).save(stream, "PNG", optimize=True)
    return stream.getvalue()


def _read(path: Path) -> np.ndarray:
    try:
        return decode_picture(path.read_bytes(), where=str(path), alpha=True)
    except OSError as error:
        raise ImageError(f"{path}: cannot be read ({error.strerror or error})") from error


def _is_picture(file: Path) -> bool:
    return file.suffix.lower() in PICTURES and not any(part.startswith(".") for part in file.parts)


def _named(name: str, pixels: np.ndarray) -> NamedPicture:
    """A name that ends otherwise gets .png: it must not promise a JPEG."""
    mode = next(mode for mode, channels in MODES.items() if channels == pixels.shape[2])
    return NamedPicture(name if name.lower().endswith(".png") else f"{name}.png", mode, pixels)


def _of_set(path: Path) -> list[NamedPicture]:
    images = load_images(path).images
    digits = len(str(len(images) - 1))
    return [_named(f"{number:0{digits}}", np.asarray(pixels)) for number, pixels in enumerate(images)]
