"""Image sets: folders and zips of PNG and JPEG, .npz, idx, CIFAR-10's own batches, and sets prepared as a memmap.

Images are uint8 `[N, height, width, channels]` with 1 channel (grey) or 3 (RGB), all of one size. Where a size is asked
for, each is cropped to its central square and resized by averaging areas; nothing else changes a pixel. Pictures of
different sizes are refused otherwise, as are 16-bit, transparent and animated ones: bits/dim after a silent conversion
would be those of other pictures.
"""

import gzip
import io
import json
import math
import pickle
import struct
import zipfile
import zlib
from collections.abc import Callable, Iterator
from pathlib import Path, PurePosixPath
from typing import Any, NamedTuple

import numpy as np
from jaxtyping import Int, UInt8
from PIL import Image, UnidentifiedImageError

PICTURES = (".png", ".jpg", ".jpeg")
CIFAR_TRAIN, CIFAR_TEST = tuple(f"data_batch_{i}" for i in range(1, 6)), "test_batch"
CIFAR_BYTES = 3 * 32 * 32
IDX_BYTES_OF_UINT8 = 0x08
UNTOUCHED = "pixels as stored"
NAMED = 5
"""Unreadable pictures that an error names besides the first."""


class ImageError(ValueError):
    """Images that cannot be used; the message is one line that names the file and what is wrong with it."""


class ImageSet(NamedTuple):
    """Images of one size."""

    images: UInt8[Any, "N height width channels"]  # in memory, or a memmap
    labels: Int[Any, " N"] | None  # index into `label_names` where there are some; None: the set has none
    label_names: tuple[str, ...]
    policy: str  # what was done to the pixels


def load_images(path: str | Path, *, size: int | None = None) -> ImageSet:
    """All images of a set, class folders as labels; `size` is the side they are cropped and resized to.

    `path` is a folder or zip of PNG and JPEG files, with or without class folders; a folder inside a zip
    (`set.zip/train`); an .npz with `images` and, if known, `labels`; an idx file, also .gz; CIFAR-10's batches, as a
    folder (the five of training) or one file, in its binary or Python version; or a folder that `prepare_images` made.

    Raises ImageError for what cannot be read, or is no set of images of one size.
    """
    path = Path(path)
    archive, inside = _zip_and_folder(path)
    try:
        if archive:
            found = _from_pictures(path, *_in_zip(archive, inside), size=size)
        elif not path.exists():
            raise ImageError(f"{path}: no such file or folder")
        elif path.is_dir():
            found = _from_folder(path, size=size)
        else:
            found = _from_file(path)
    except OSError as error:
        raise ImageError(f"{path}: cannot be read ({error.strerror or error})") from error
    if size is not None and found.images.shape[1:3] != (size, size):
        found = found._replace(images=_resized(found.images, size), policy=_policy(size))
    return found


def prepare_images(path: str | Path, out: str | Path, *, size: int | None = None) -> ImageSet:
    """Writes the set as a folder that `load_images` opens as a memmap, and opens it: `images.npy`, `set.json`.

    Pictures are decoded one by one, so that the set may be larger than memory. Raises ImageError as `load_images`, or
    where `out` exists.
    """
    path, out = Path(path), Path(out)
    if out.exists():
        raise ImageError(f"{out}: exists already; name another folder")
    archive, inside = _zip_and_folder(path)
    if archive or (path.is_dir() and not _is_prepared(path) and not _cifar_batches(path)):
        names, read = _in_zip(archive, inside) if archive else _in_folder(path)
        labels, label_names = _labels(names)
        pictures: Iterator[np.ndarray] = _decoded(path, names, read, size)
        count = len(names)
    else:
        whole = load_images(path, size=size)
        labels, label_names, pictures, count = whole.labels, whole.label_names, iter(whole.images), len(whole.images)
    first = next(pictures)
    partial = out.with_name(f".{out.name}.partial")
    partial.mkdir(parents=True)
    target = np.lib.format.open_memmap(partial / "images.npy", mode="w+", dtype=np.uint8, shape=(count, *first.shape))
    target[0] = first
    for index, picture in enumerate(pictures, start=1):
        target[index] = picture
    target.flush()
    content = {
        "source": path.name,
        "policy": _policy(size),
        "label_names": label_names,
        "labels": None if labels is None else labels.tolist(),
    }
    (partial / "set.json").write_text(json.dumps(content))
    partial.rename(out)
    return load_images(out)


def _policy(size: int | None) -> str:
    return UNTOUCHED if size is None else f"cropped to the central square, area-averaged to {size} x {size}"


def _zip_and_folder(path: Path) -> tuple[Path | None, PurePosixPath]:
    """The zip that the path is or lies in, and the folder inside it; no zip: None."""
    for archive in (path, *path.parents):
        if archive.suffix.lower() == ".zip" and archive.is_file():
            return archive, PurePosixPath(*path.parts[len(archive.parts) :])
    return None, PurePosixPath()


Reader = Callable[[PurePosixPath], bytes]


def _in_folder(path: Path) -> tuple[list[PurePosixPath], Reader]:
    names = [PurePosixPath(file.relative_to(path).as_posix()) for file in path.rglob("*") if file.is_file()]
    return _pictures(names), lambda name: (path / name).read_bytes()


def _in_zip(archive: Path, inside: PurePosixPath) -> tuple[list[PurePosixPath], Reader]:
    try:
        opened = zipfile.ZipFile(archive)
    except zipfile.BadZipFile as error:
        raise ImageError(f"{archive}: not a zip file, or cut off ({error})") from error
    members = [PurePosixPath(name) for name in opened.namelist() if not name.endswith("/")]
    names = [name.relative_to(inside) for name in members if name.is_relative_to(inside)]

    def read(name: PurePosixPath) -> bytes:
        try:
            return opened.read(str(inside / name))
        except (zipfile.BadZipFile, EOFError, NotImplementedError, RuntimeError) as error:
            raise ImageError(f"{archive}: {name} is damaged or encrypted ({error})") from error

    return _pictures(names), read


def _pictures(names: list[PurePosixPath]) -> list[PurePosixPath]:
    """The pictures among them, in the order of their names; hidden files and macOS's copies left out."""
    hidden = [any(part.startswith((".", "__MACOSX")) for part in name.parts) for name in names]
    return sorted(name for name, h in zip(names, hidden) if name.suffix.lower() in PICTURES and not h)


def _labels(names: list[PurePosixPath]) -> tuple[np.ndarray | None, tuple[str, ...]]:
    """By the folders that the pictures lie in; none where all lie in one."""
    folders = [str(name.parent) for name in names]
    known = tuple(sorted(set(folders)))
    if len(known) < 2:
        return None, ()
    index = {folder: i for i, folder in enumerate(known)}
    return np.array([index[folder] for folder in folders]), known


def _from_pictures(path: Path, names: list[PurePosixPath], read: Reader, *, size: int | None) -> ImageSet:
    images = np.stack(list(_decoded(path, names, read, size)))
    return ImageSet(images, *_labels(names), _policy(size))


def _decoded(path: Path, names: list[PurePosixPath], read: Reader, size: int | None) -> Iterator[np.ndarray]:
    """The pictures [height, width, channels], all of one shape. Those that cannot be read are all counted first."""
    if not names:
        raise ImageError(f"{path}: holds no PNG or JPEG files")
    shape: tuple[int, ...] | None = None
    for index, name in enumerate(names):
        try:
            picture = decode_picture(read(name), where=f"{path}/{name}")
        except ImageError as error:
            raise _counted(path, names[index + 1 :], read, error, total=len(names)) from None
        picture = picture if size is None else _resized(picture[None], size)[0]
        shape = shape or picture.shape
        if picture.shape != shape:
            raise ImageError(
                f"{path}/{name}: {_shown(picture.shape)}, but {names[0]} is {_shown(shape)}; "
                f"give a size to crop and resize to"
            )
        yield picture


def _counted(path: Path, rest: list[PurePosixPath], read: Reader, first: ImageError, *, total: int) -> ImageError:
    """The first picture's error, with how many of the rest cannot be read either, and which."""
    others = []
    for name in rest:
        try:
            decode_picture(read(name), where=str(name))
        except ImageError:
            others.append(str(name))
    if not others:
        return first
    named = ", ".join(others[:NAMED]) + (", ..." if len(others) > NAMED else "")
    return ImageError(f"{first}; {1 + len(others)} of {total} pictures cannot be read, the others are {named}")


def _shown(shape: tuple[int, ...]) -> str:
    return f"{shape[1]} x {shape[0]} with {shape[2]} channel{'s' if shape[2] > 1 else ''}"


def decode_picture(content: bytes, *, where: str) -> UInt8[np.ndarray, "height width channels"]:
    """The pixels of a PNG or JPEG of 8 bits, grey or RGB; palettes are resolved. Raises ImageError, with `where`."""
    try:
        with Image.open(io.BytesIO(content), formats=("PNG", "JPEG")) as opened:
            picture: Image.Image = opened
            if getattr(picture, "n_frames", 1) > 1:
                raise ImageError(f"{where}: animated; only single pictures can be used")
            transparent = "A" in picture.getbands() or "transparency" in picture.info
            if picture.mode == "P" and not transparent:
                picture = picture.convert("RGB")
            if picture.mode not in ("L", "RGB") or transparent:
                what = "transparent" if transparent else f"of mode {picture.mode}"
                raise ImageError(f"{where}: {what}; only 8-bit grey or RGB pictures can be used")
            pixels = np.array(picture)
    except ImageError:
        raise
    except UnidentifiedImageError:
        raise ImageError(f"{where}: not a PNG or JPEG file") from None
    except Exception as error:  # Pillow's decoders raise OSError, SyntaxError, ValueError, struct.error and others
        reason = str(error).splitlines()[0] if str(error) else type(error).__name__
        raise ImageError(f"{where}: damaged or cut off ({reason})") from error
    return pixels if pixels.ndim == 3 else pixels[:, :, None]


def _resized(images: np.ndarray, size: int) -> np.ndarray:
    """Central squares, averaged to size x size."""
    height, width = images.shape[1:3]
    side = min(height, width)
    top, left = (height - side) // 2, (width - side) // 2
    squares = images[:, top : top + side, left : left + side]
    if side == size:
        return np.ascontiguousarray(squares)
    resized = [
        Image.fromarray(s.squeeze(-1) if s.shape[-1] == 1 else s).resize((size, size), Image.Resampling.BOX)
        for s in squares
    ]
    return np.stack([np.array(each).reshape(size, size, -1) for each in resized])


def _is_prepared(path: Path) -> bool:
    return (path / "set.json").is_file() and (path / "images.npy").is_file()


def _from_folder(path: Path, *, size: int | None) -> ImageSet:
    if _is_prepared(path):
        return _from_prepared(path)
    if batches := _cifar_batches(path):
        parts = [_from_file(batch) for batch in batches]
        labels = np.concatenate([part.labels for part in parts if part.labels is not None])
        return ImageSet(np.concatenate([part.images for part in parts]), labels, (), UNTOUCHED)
    return _from_pictures(path, *_in_folder(path), size=size)


def _from_prepared(path: Path) -> ImageSet:
    try:
        content = json.loads((path / "set.json").read_text())
        images = np.load(path / "images.npy", mmap_mode="r", allow_pickle=False)
        labels = None if content["labels"] is None else np.array(content["labels"])
        return ImageSet(images, labels, tuple(content["label_names"]), content["policy"])
    except (ValueError, KeyError, TypeError) as error:
        raise ImageError(f"{path}: not a prepared image set, or damaged ({error})") from error


def _cifar_batches(folder: Path) -> list[Path]:
    """The training batches in a folder, those that are there; [] where there are none."""
    files = [folder / f"{name}{suffix}" for suffix in ("", ".bin") for name in CIFAR_TRAIN]
    return [file for file in files if file.is_file()]


def _from_file(path: Path) -> ImageSet:
    name = path.name.lower()
    if name.endswith(".npz"):
        return _from_npz(path)
    if name.endswith((".idx", "-ubyte", ".gz")):
        return _from_idx(path)
    if name.endswith(".bin"):
        return _from_cifar_binary(path)
    if path.stem in (*CIFAR_TRAIN, CIFAR_TEST):
        return _from_cifar_python(path)
    if path.suffix.lower() in PICTURES:
        images = decode_picture(path.read_bytes(), where=str(path))[None]
        return ImageSet(images, None, (), UNTOUCHED)
    raise ImageError(
        f"{path}: not a set of images; give a folder or zip of PNG and JPEG files, an .npz, an idx file or "
        f"CIFAR-10's batches"
    )


def _from_npz(path: Path) -> ImageSet:
    try:
        with np.load(path, allow_pickle=False) as archive:
            if "images" not in archive.files:
                raise ImageError(f"{path}: has no array called images, only {', '.join(archive.files) or 'nothing'}")
            images = archive["images"]
            labels = archive["labels"] if "labels" in archive.files else None
    except ImageError:
        raise
    except Exception as error:  # zipfile, zlib, struct and NumPy each raise their own on damaged bytes
        reason = str(error).splitlines()[0] if str(error) else type(error).__name__
        raise ImageError(f"{path}: not an .npz file, damaged, or with pickled members ({reason})") from error
    images = images[..., None] if images.ndim == 3 else images
    return _checked(path, images, labels)


def _from_idx(path: Path) -> ImageSet:
    """MNIST's format: a magic of two zeros, the type and the number of axes; the sizes, big-endian; the numbers."""
    content = path.read_bytes()
    if path.suffix == ".gz":
        try:
            content = gzip.decompress(content)
        except (EOFError, OSError, zlib.error) as error:
            raise ImageError(f"{path}: not a gzip file, or cut off ({error})") from error
    start = 4 + 4 * (content[3] if len(content) > 3 else 0)
    if len(content) < start or content[:3] != bytes([0, 0, IDX_BYTES_OF_UINT8]) or content[3] not in (3, 4):
        raise ImageError(f"{path}: not an idx file of uint8 images")
    shape = struct.unpack(f">{content[3]}I", content[4:start])
    if len(content) - start != math.prod(shape):
        raise ImageError(f"{path}: holds {len(content) - start} bytes of images, its header says {math.prod(shape)}")
    images = np.frombuffer(content, np.uint8, offset=start).reshape(shape)
    return _checked(path, images[..., None] if images.ndim == 3 else images, None)


def _from_cifar_binary(path: Path) -> ImageSet:
    """Rows of a label and 3,072 bytes, channel after channel."""
    content = np.frombuffer(path.read_bytes(), np.uint8)
    if not len(content) or len(content) % (1 + CIFAR_BYTES):
        raise ImageError(f"{path}: {len(content)} bytes are no whole number of CIFAR-10's {1 + CIFAR_BYTES}-byte rows")
    rows = content.reshape(-1, 1 + CIFAR_BYTES)
    return _checked(path, _from_planes(rows[:, 1:]), rows[:, 0])


def _from_cifar_python(path: Path) -> ImageSet:
    """A pickle, of which nothing but arrays, numbers and texts is restored."""
    try:
        with path.open("rb") as stream:
            content = _OnlyArrays(stream, encoding="bytes").load()
        planes, labels = np.asarray(content[b"data"], np.uint8), np.asarray(content[b"labels"])
        return _checked(path, _from_planes(planes), labels)
    except ImageError:
        raise
    except Exception as error:  # a damaged pickle can raise anything
        raise ImageError(f"{path}: not one of CIFAR-10's batches, or damaged ({error})") from error


class _OnlyArrays(pickle.Unpickler):
    """Restores NumPy arrays, and nothing that could run code."""

    def find_class(self, module: str, name: str) -> Any:
        if (module.replace("numpy._core", "numpy.core"), name) == ("numpy.core.multiarray", "_reconstruct"):
            return np._core.multiarray._reconstruct  # type: ignore[attr-defined]
        if (module, name) in (("numpy", "ndarray"), ("numpy", "dtype")):
            return getattr(np, name)
        if (module, name) == ("_codecs", "encode"):
            return lambda text, encoding: text.encode(encoding)
        raise pickle.UnpicklingError(f"{module}.{name} is not allowed")


def _from_planes(rows: np.ndarray) -> np.ndarray:
    return np.ascontiguousarray(rows.reshape(-1, 3, 32, 32).transpose(0, 2, 3, 1))


def _checked(path: Path, images: np.ndarray, labels: np.ndarray | None) -> ImageSet:
    if images.dtype != np.uint8 or images.ndim != 4 or images.shape[3] not in (1, 3):
        raise ImageError(
            f"{path}: images have shape {images.shape} and type {images.dtype}, not [N, height, width, 1 or 3] of uint8"
        )
    if not images.size:
        raise ImageError(f"{path}: holds no images")
    if labels is not None and (labels.shape != (len(images),) or labels.dtype.kind not in "iu"):
        raise ImageError(f"{path}: labels of shape {labels.shape} and type {labels.dtype} for {len(images)} images")
    return ImageSet(images, None if labels is None else labels.astype(np.int64), (), UNTOUCHED)
