"""Pictures: PNG and JPEG files in a folder or zip, decoded one by one; and how images of any shape get one size."""

import contextlib
import io
import lzma
import os
import warnings
import zipfile
import zlib
from collections import Counter
from collections.abc import Callable, Iterator, Mapping
from functools import partial
from pathlib import Path, PurePath, PurePosixPath
from typing import Any, NamedTuple

import numpy as np
from jaxtyping import Int, UInt8
from PIL import Image, ImageOps, UnidentifiedImageError

PICTURES = (".png", ".jpg", ".jpeg")
PNG_SIGNATURE = b"\x89PNG\r\n\x1a\n"
SIGNATURES = (PNG_SIGNATURE, b"\xff\xd8", b"GIF8")
"""First bytes of PNG, JPEG and GIF, the last of which is refused by name."""

PNG_DEPTH_AT = 24  # of the first chunk, which is always the header
UNTOUCHED = "pixels as stored"
NAMED = 5
"""Unreadable pictures that an error names besides the first."""


Reader = Callable[[PurePosixPath], bytes]


class ImageError(ValueError):
    """Images that cannot be used; the message is one line that names the file and what is wrong with it."""


class Chunk(NamedTuple):
    """Some images of a set, so many as are read at once."""

    name: str  # of the file they come from
    images: UInt8[Any, "n height width channels"]
    labels: Int[Any, " n"] | None
    changed: bool = False  # whether it was cropped or resized


class Chunks(NamedTuple):
    """A set on its way in: it may be larger than memory."""

    chunks: Iterator[Chunk]
    label_names: tuple[str, ...]
    source: str  # what it is called
    policy: str  # what was done to its pixels before


def read_pictures(path: Path) -> Chunks:
    """The pictures of a folder or zip, or of a folder inside a zip, one by one; folders become labels."""
    archive, inside = zip_and_folder(path)
    found, read = in_zip(archive, inside) if archive else _in_folder(path)
    names = sorted(name for name in found if is_picture(name))
    if not names:
        raise ImageError(f"{path}: holds no PNG or JPEG files")
    labels, label_names = _labels(names)

    def chunks() -> Iterator[Chunk]:
        for index, name in enumerate(names):
            try:
                picture = decode_picture(read(name), where=f"{path}/{name}", upright=True)
            except ImageError as error:
                rest = {str(other): partial(read, other) for other in names[index + 1 :]}
                raise counted(error, rest, total=len(names)) from None
            yield Chunk(str(name), picture[None], None if labels is None else labels[index : index + 1])

    return Chunks(chunks(), label_names, path.name, UNTOUCHED)


def counted(
    first: ImageError, rest: Mapping[str, Callable[[], bytes]], *, total: int, alpha: bool = False
) -> ImageError:
    """The first picture's error, with how many of the rest cannot be read either, and which."""
    others = []
    for name, read in rest.items():
        try:
            decode_picture(read(), where=name, alpha=alpha)
        except ImageError:
            others.append(name)
    if not others:
        return first
    named = ", ".join(others[:NAMED]) + (", ..." if len(others) > NAMED else "")
    return ImageError(f"{first}; {1 + len(others)} of {total} pictures cannot be read, the others are {named}")


def zip_and_folder(path: Path) -> tuple[Path | None, PurePosixPath]:
    """The zip that the path is or lies in, and the folder inside it; no zip: None."""
    for archive in (path, *path.parents):
        if archive.suffix.lower() == ".zip" and archive.is_file():
            return archive, PurePosixPath(*path.parts[len(archive.parts) :])
    return None, PurePosixPath()


def files_below(folder: Path) -> list[Path]:
    """All files in a folder and below, behind links too, in the order of their names; also links that lead nowhere.

    Raises ImageError for a folder that cannot be looked into, and for one that links lead to twice.
    """

    def refuse(error: OSError) -> None:
        raise ImageError(f"{error.filename}: cannot be read ({error.strerror})")

    found, seen = [], set()
    for here, _, names in os.walk(folder, onerror=refuse, followlinks=True):
        if (real := os.path.realpath(here)) in seen:
            raise ImageError(f"{here}: leads to {real}, which is in the folder already")
        seen.add(real)
        paths = [Path(here, name) for name in names]
        found += [path for path in paths if path.is_file() or not path.exists()]  # no pipes: they would be waited for
    return sorted(found)


def _in_folder(path: Path) -> tuple[list[PurePosixPath], Reader]:
    names = [PurePosixPath(file.relative_to(path).as_posix()) for file in files_below(path)]
    return names, lambda name: (path / name).read_bytes()


def in_zip(archive: Path, inside: PurePosixPath) -> tuple[list[PurePosixPath], Reader]:
    """(the names of all files in a folder of a zip, what reads one of them).

    Raises ImageError, reading too, and for two pictures of one name.
    """
    try:
        opened = zipfile.ZipFile(archive)
    except (zipfile.BadZipFile, NotImplementedError) as error:
        raise ImageError(f"{archive}: not a zip file, or cut off ({error})") from error
    found = [(PurePosixPath(name.lstrip("/")), name) for name in opened.namelist() if not name.endswith("/")]
    members = dict(found)
    counts = Counter(path for path, _ in found)  # "./a" and "/a" are "a"
    names = [path.relative_to(inside) for path in members if path.is_relative_to(inside)]
    if twice := [name for name in names if is_picture(name) and counts[inside / name] > 1]:
        raise ImageError(f"{archive}: holds {counts[inside / twice[0]]} pictures {twice[0]}; rename all but one")

    def read(name: PurePosixPath) -> bytes:
        try:
            return opened.read(members[inside / name])
        except (zipfile.BadZipFile, zlib.error, lzma.LZMAError, EOFError, NotImplementedError, RuntimeError) as error:
            raise ImageError(f"{archive}: {name} is damaged or encrypted ({error})") from error

    return names, read


def is_picture(name: PurePath) -> bool:
    """Whether a file is a picture by its name, seen from the folder that is looked into; hidden ones and macOS's copies
    are none."""
    return name.suffix.lower() in PICTURES and not any(part.startswith((".", "__MACOSX")) for part in name.parts)


def _labels(names: list[PurePosixPath]) -> tuple[np.ndarray | None, tuple[str, ...]]:
    """By the folders that the pictures lie in; none where all lie in one."""
    folders = [str(name.parent) for name in names]
    known = tuple(sorted(set(folders)))
    if len(known) < 2:
        return None, ()
    index = {folder: i for i, folder in enumerate(known)}
    return np.array([index[folder] for folder in folders]), known


def decode_picture(
    content: bytes, *, where: str, alpha: bool = False, upright: bool = False
) -> UInt8[np.ndarray, "height width channels"]:
    """The pixels of a PNG or JPEG of 8 bits, grey or RGB, with `alpha` RGBA too; palettes are resolved.

    As they are stored, or `upright`, as the camera that took them was held.
    Raises ImageError, with `where`.
    """
    try:
        if content.startswith(PNG_SIGNATURE):
            _opened(content).verify()  # its checksums, which reading pixels does not
        with _opened(content) as opened:
            _refuse_what_pixels_would_lose(opened, content, where)
            picture: Image.Image = opened
            if upright:
                _turn_upright(picture)
            if "transparency" in picture.info:
                _scale_transparency(picture, content)
                picture = picture.convert("RGBA")
            elif picture.mode in ("P", "1"):
                picture = picture.convert("RGB" if picture.mode == "P" else "L")
            elif picture.mode == "LA" and alpha:
                picture = picture.convert("RGBA")
            if picture.mode not in (("L", "RGB", "RGBA") if alpha else ("L", "RGB")):
                what = "transparent" if "A" in picture.getbands() and not alpha else f"of mode {picture.mode}"
                kinds = "8-bit grey, RGB or RGBA" if alpha else "8-bit grey or RGB"
                raise ImageError(f"{where}: {what}; only {kinds} pictures can be used; convert it first")
            pixels = np.array(picture)
    except ImageError:
        raise
    except UnidentifiedImageError:
        raise ImageError(f"{where}: not a PNG or JPEG file") from None
    except Image.DecompressionBombError:
        most = 2 * (Image.MAX_IMAGE_PIXELS or 0)
        raise ImageError(f"{where}: larger than {most:,} pixels; cut it up first") from None
    except Exception as error:  # Pillow's decoders raise OSError, SyntaxError, ValueError, struct.error and others
        reason = str(error).splitlines()[0] if str(error) else type(error).__name__
        raise ImageError(f"{where}: damaged or cut off ({reason})") from error
    return pixels if pixels.ndim == 3 else pixels[:, :, None]


def _opened(content: bytes) -> Image.Image:
    """What Pillow makes of it, without a warning of large ones; much larger ones it refuses."""
    with warnings.catch_warnings():
        warnings.simplefilter("ignore", Image.DecompressionBombWarning)
        return Image.open(io.BytesIO(content), formats=("PNG", "JPEG", "GIF"))


def _turn_upright(picture: Image.Image) -> None:
    """As the camera was held, where the file says that in a way that can be read; its pixels are sound in any case."""
    picture.load()
    with contextlib.suppress(Exception):  # Pillow's readers of EXIF raise many kinds
        ImageOps.exif_transpose(picture, in_place=True)


def _scale_transparency(picture: Image.Image, content: bytes) -> None:
    """Of grey PNGs of 2 or 4 bits Pillow scales the pixels to 8, but not the one grey that is transparent."""
    if picture.format == "PNG" and (scale := {2: 85, 4: 17}.get(content[PNG_DEPTH_AT])) and picture.mode == "L":
        picture.info["transparency"] *= scale


def _refuse_what_pixels_would_lose(opened: Image.Image, content: bytes, where: str) -> None:
    if getattr(opened, "n_frames", 1) > 1:
        what = "several pictures in one" if opened.format == "MPO" else "animated"
        raise ImageError(f"{where}: {what}; only single pictures can be used; take one of them")
    if opened.format == "GIF":
        raise ImageError(f"{where}: not a PNG or JPEG file")
    if opened.format == "PNG" and content[PNG_DEPTH_AT] == 16:  # Pillow drops half of the bits without a word
        raise ImageError(f"{where}: 16 bits a channel; only 8-bit pictures can be used; convert it first")


def resized(images: np.ndarray, size: int) -> np.ndarray:
    """Central squares, averaged to size x size."""
    height, width = images.shape[1:3]
    side = min(height, width)
    top, left = (height - side) // 2, (width - side) // 2
    squares = images[:, top : top + side, left : left + side]
    if side == size:
        return np.ascontiguousarray(squares)
    pictures = [
        Image.fromarray(s.squeeze(-1) if s.shape[-1] == 1 else s).resize((size, size), Image.Resampling.BOX)
        for s in squares
    ]
    return np.stack([np.array(each).reshape(size, size, -1) for each in pictures])
