"""Picture files whose pixels can be given back exactly: PNG and JPEG of 8 bits, grey, RGB or RGBA.

Palettes are resolved, and transparency of a colour or a palette becomes RGBA: what comes back are the pixels, not the
file. JPEG cannot hold given pixels, so what was read from one is written as PNG.
"""

import io
from collections import Counter
from collections.abc import Callable, Sequence
from functools import partial
from pathlib import Path, PurePosixPath
from typing import NamedTuple

import numpy as np
from jaxtyping import UInt8
from PIL import Image

from vdbjax.data.image_files import batches_in
from vdbjax.data.images import ImageError, is_prepared, load_images
from vdbjax.data.pictures import (
    PICTURES,
    SIGNATURES,
    counted,
    decode_picture,
    files_below,
    in_zip,
    is_picture,
    zip_and_folder,
)

MODES = {"L": 1, "RGB": 3, "RGBA": 4}


Files = dict[str, tuple[Path, Callable[[], bytes]]]
"""Name -> (where it lies, what reads it)."""


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
    """All pictures in folders, zips and below, picture files, and the images of other sets as `load_images` reads them,
    named by their number: an .npz, CIFAR-10's batches, a prepared folder, cifar10/test.

    A folder's or zip's pictures are named by their place in it. Files of other kinds and hidden ones there are left
    out. Raises ImageError for a picture that cannot be read or given back, for two of one name, and for none at all.
    """
    if not paths:
        raise ImageError("no pictures are named; name at least one folder, zip or picture")
    pictures: list[NamedPicture] = []
    left_out: list[Path] = []
    renamed: list[str] = []
    for path in paths:
        if (found := _files_of(path)) is None:
            pictures += _of_set(path)
            continue
        files, others = found
        left_out += others
        for index, (name, (where, read)) in enumerate(files.items()):
            try:
                picture = _named(name, decode_picture(read(), where=str(where), alpha=True))
            except ImageError as error:
                rest = {other: opened for other, (_, opened) in list(files.items())[index + 1 :]}
                raise counted(error, rest, total=len(files), alpha=True) from None
            pictures.append(picture)
            renamed += [picture.name] * (picture.name != name)
    if not pictures:
        raise ImageError(f"{', '.join(map(str, paths))}: no PNG or JPEG files")
    most, count = Counter(picture.name for picture in pictures).most_common(1)[0]
    if count > 1:
        raise ImageError(f"{count} pictures would come back as {most}; rename all but one, or make a file of each")
    return Found(pictures, left_out, renamed)


def _files_of(path: Path) -> tuple[Files, list[Path]] | None:
    """The pictures of a folder, of a zip, or the picture itself, and the other files there; None of a set."""
    archive, inside = zip_and_folder(path)
    if archive:
        names, read = in_zip(archive, inside)
        files = {name: (path / name, partial(read, name)) for name in sorted(names)}
    elif path.is_dir() and not is_prepared(path) and not batches_in(path):
        below = {PurePosixPath(file.relative_to(path).as_posix()): file for file in files_below(path)}
        files = {name: (file, partial(_read, file)) for name, file in below.items()}
    elif path.suffix.lower() in PICTURES or (path.is_file() and _read(path, 8).startswith(SIGNATURES)):
        return {path.name: (path, partial(_read, path))}, []
    else:
        return None
    pictures: Files = {name.as_posix(): file for name, file in files.items() if is_picture(name)}
    return pictures, [where for name, (where, _) in files.items() if name.as_posix() not in pictures]


def to_png(pixels: UInt8[np.ndarray, "height width channels"]) -> bytes:
    """The pixels as a PNG file."""
    stream = io.BytesIO()
    Image.fromarray(pixels[:, :, 0] if pixels.shape[2] == 1 else pixels).save(stream, "PNG", optimize=True)
    return stream.getvalue()


def _read(path: Path, most: int = -1) -> bytes:
    """The file's bytes, or the first of them."""
    try:
        with path.open("rb") as file:
            return file.read(most)
    except FileNotFoundError:
        raise ImageError(f"{path}: no such file or folder") from None
    except OSError as error:
        raise ImageError(f"{path}: cannot be read ({error.strerror or error})") from error


def _named(name: str, pixels: np.ndarray) -> NamedPicture:
    """A name that ends otherwise gets .png: it must not promise a JPEG."""
    mode = next(mode for mode, channels in MODES.items() if channels == pixels.shape[2])
    return NamedPicture(name if name.lower().endswith(".png") else f"{name}.png", mode, pixels)


def _of_set(path: Path) -> list[NamedPicture]:
    images = load_images(path).images
    digits = len(str(len(images) - 1))
    return [_named(f"{number:0{digits}}", np.asarray(pixels)) for number, pixels in enumerate(images)]
