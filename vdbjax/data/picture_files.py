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
from PIL import Image, UnidentifiedImageError

from vdbjax.data.images import ImageError, is_prepared, load_images

SUFFIXES = (".png", ".jpg", ".jpeg")
SET_SUFFIXES = (".npz", ".idx", ".gz", ".bin", ".mat", ".zip")
MODES = {"L": 1, "RGB": 3, "RGBA": 4}
_PNG_DEPTH_AT = 24  # of the first chunk, which is always the header


class NamedPicture(NamedTuple):
    """A picture and the name under which it comes back, a relative POSIX path that ends in .png."""

    name: str
    mode: str  # a key of MODES
    pixels: UInt8[np.ndarray, "height width channels"]


class Found(NamedTuple):
    """Pictures, and the files among them that are none."""

    pictures: list[NamedPicture]
    left_out: list[Path]


def read_pictures(paths: Sequence[Path]) -> Found:
    """All pictures in folders and below, picture files, and the images of sets as `load_images` reads them, named by
    their number: an .npz, a zip, a prepared folder, cifar10/test.

    A folder's pictures are named by their place in it. Files of other kinds and hidden ones in folders are left out.
    Raises ImageError for a picture that cannot be read or given back, and where there is none.
    """
    pictures: list[NamedPicture] = []
    left_out: list[Path] = []
    for path in paths:
        if path.suffix.lower() in SET_SUFFIXES or not path.exists() or is_prepared(path):
            pictures += _of_set(path)
        elif path.is_dir():
            files = sorted(file for file in path.rglob("*") if file.is_file())
            chosen = [file for file in files if _is_picture(file.relative_to(path))]
            left_out += [file for file in files if file not in set(chosen)]
            pictures += [_named(file.relative_to(path).as_posix(), read_picture(file)) for file in chosen]
        else:
            pictures.append(_named(path.name, read_picture(path)))
    if not pictures:
        raise ImageError(f"{', '.join(map(str, paths))}: no PNG or JPEG files")
    return Found(pictures, left_out)


def read_picture(path: Path) -> UInt8[np.ndarray, "height width channels"]:
    """A file's pixels, of 1, 3 or 4 channels. Raises ImageError."""
    try:
        content = path.read_bytes()
        with Image.open(io.BytesIO(content), formats=("PNG", "JPEG", "GIF")) as picture:
            picture.load()
            return _pixels(picture, content, path)
    except ImageError:
        raise
    except UnidentifiedImageError:
        raise ImageError(f"{path}: not a PNG or JPEG file") from None
    except Exception as error:  # Pillow's decoders raise OSError, SyntaxError, ValueError, struct.error and others
        reason = str(error).splitlines()[0] if str(error) else type(error).__name__
        raise ImageError(f"{path}: damaged, cut off or not to be read ({reason})") from error


def to_png(pixels: UInt8[np.ndarray, "height width channels"]) -> bytes:
    """The pixels as a PNG file."""
    stream = io.BytesIO()
    Image.fromarray(pixels[:, :, 0] if pixels.shape[2] == 1 else pixels).save(stream, "PNG", optimize=True)
    return stream.getvalue()


def _pixels(picture: Image.Image, content: bytes, path: Path) -> np.ndarray:
    if getattr(picture, "n_frames", 1) > 1:
        raise ImageError(f"{path}: animated; only single pictures can be compressed")
    if picture.format == "GIF":
        raise ImageError(f"{path}: not a PNG or JPEG file")
    if picture.format == "PNG" and content[_PNG_DEPTH_AT] == 16:  # Pillow drops half of the bits without a word
        raise ImageError(f"{path}: 16 bits a channel; only 8-bit pictures can be compressed")
    if "transparency" in picture.info:
        picture = picture.convert("RGBA")
    elif picture.mode == "P":
        picture = picture.convert("RGB")
    if picture.mode not in MODES:
        raise ImageError(f"{path}: of mode {picture.mode}; only 8-bit grey, RGB or RGBA pictures can be compressed")
    pixels = np.array(picture)
    return pixels if pixels.ndim == 3 else pixels[:, :, None]


def _is_picture(file: Path) -> bool:
    return file.suffix.lower() in SUFFIXES and not any(part.startswith(".") for part in file.parts)


def _named(name: str, pixels: np.ndarray) -> NamedPicture:
    """A name that ends otherwise gets .png: it must not promise a JPEG."""
    mode = next(mode for mode, channels in MODES.items() if channels == pixels.shape[2])
    return NamedPicture(name if name.lower().endswith(".png") else f"{name}.png", mode, pixels)


def _of_set(path: Path) -> list[NamedPicture]:
    images = load_images(path).images
    digits = len(str(len(images) - 1))
    return [_named(f"{number:0{digits}}", np.asarray(pixels)) for number, pixels in enumerate(images)]
