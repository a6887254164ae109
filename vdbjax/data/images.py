"""Image sets: folders and zips of PNG and JPEG, files of many images, and sets prepared as a memmap.

Images are uint8 `[N, height, width, channels]` with 1 channel (grey) or 3 (RGB), all of one size. Where a size is asked
for, each is cropped to its central square and resized by averaging areas; nothing else changes a pixel. Pictures of
different sizes are refused otherwise, as are 16-bit, transparent and animated ones: bits/dim after a silent conversion
would be those of other pictures.
"""

import contextlib
import json
import os
import shutil
from collections.abc import Callable, Iterator
from pathlib import Path
from typing import IO, Any, NamedTuple

import numpy as np
from jaxtyping import Int, UInt8

from vdbjax.data.download import download_root
from vdbjax.data.image_files import batches_in, checked, read_file, source_of
from vdbjax.data.pictures import (
    UNTOUCHED,
    Chunk,
    Chunks,
    ImageError,
    decode_picture,
    read_pictures,
    resized,
    zip_and_folder,
)

__all__ = ["ImageError", "ImageSet", "decode_picture", "find_images", "load_images", "prepare_images"]

ROWS_AT_ONCE = 4_096


class ImageSet(NamedTuple):
    """Images of one size."""

    images: UInt8[Any, "N height width channels"]  # in memory, or a memmap
    labels: Int[Any, " N"] | None  # index into `label_names` where there are some; None: the set has none
    label_names: tuple[str, ...]
    policy: str  # what was done to the pixels
    source: str = ""  # which set it is


def load_images(path: str | Path, *, size: int | None = None) -> ImageSet:
    """All images of a set, class folders as labels; `size` is the side they are cropped and resized to.

    `path` is a folder or zip of PNG and JPEG files, with or without class folders; a folder inside a zip
    (`set.zip/train`); an .npz with `images` and, if known, `labels`; an idx file, also .gz; CIFAR-10's batches, as a
    folder (the five of training) or one file, in its binary or Python version; the .npz batches of ImageNet's version
    of 2017; SVHN's .mat; a folder that `prepare_images` made; or the name of one, such as cifar10/train.

    Raises ImageError for what cannot be read, or is no set of images of one size.
    """
    path = find_images(path)
    with _readable(path):
        if is_prepared(path):
            whole = _prepared(path)
            if size is None or whole.images.shape[1:3] == (size, size):
                return whole
        found = _open(path)
        chunks = list(_of_one_size(path, found.chunks, size))
    images = chunks[0].images if len(chunks) == 1 else np.concatenate([chunk.images for chunk in chunks])
    labels = None if chunks[0].labels is None else np.concatenate([chunk.labels for chunk in chunks])
    policy = _policy(found, size, changed=any(chunk.changed for chunk in chunks))
    return ImageSet(images, labels, found.label_names, policy, found.source)


def prepare_images(
    path: str | Path,
    out: str | Path,
    *,
    size: int | None = None,
    source: str | None = None,
    report: Callable[[int], None] = lambda done: None,
) -> ImageSet:
    """Writes the set as a folder that `load_images` opens as a memmap, and opens it: `images.npy`, `set.json`.

    A picture, or a file of many, is read at a time, so that the set may be larger than memory. `source` is what the set
    is called, by default after its file; `report` is told how many images are written. Raises ImageError as
    `load_images`, or where `out` exists or cannot be written; nothing is left there then.
    """
    path, out = find_images(path), Path(out)
    if out.exists():
        raise ImageError(f"{out}: exists already; name another folder")
    partial = out.with_name(f".{out.name}.partial")
    shutil.rmtree(partial, ignore_errors=True)  # gigabytes, where a process was killed
    try:
        with _readable(path):
            found = _open(path)
        partial.mkdir(parents=True)
        content = _write(partial, path, found, size, report)
        (partial / "set.json").write_text(json.dumps(content | {"source": source or found.source}))
        partial.rename(out)
    except OSError as error:
        raise ImageError(f"{out}: cannot be written ({error.strerror or error})") from error
    finally:
        shutil.rmtree(partial, ignore_errors=True)
    return load_images(out)


def find_images(name: str | Path) -> Path:
    """The path itself, else what is called so in $VDBJAX_DATA or among the downloads; or in a zip of that name.

    Raises ImageError where none is there.
    """
    if _is_there(Path(name)):
        return Path(name)
    roots = [*([Path(os.environ["VDBJAX_DATA"])] if "VDBJAX_DATA" in os.environ else []), download_root()]
    for path in (root / name for root in roots):
        if _is_there(path):
            return path
    places = ", ".join(map(str, roots))
    raise ImageError(
        f"{name}: no such file or folder, here or in {places}; sets such as cifar10/train get there by `python -m "
        "vdbjax.data fetch`"
    )


def _is_there(path: Path) -> bool:
    return path.exists() or zip_and_folder(path)[0] is not None


@contextlib.contextmanager
def _readable(path: Path) -> Iterator[None]:
    try:
        yield
    except OSError as error:
        raise ImageError(f"{path}: cannot be read ({error.strerror or error})") from error


def _open(path: Path) -> Chunks:
    """What the path holds, by its kind."""
    if zip_and_folder(path)[0]:
        return read_pictures(path)
    if not path.is_dir():
        return Chunks(iter([Chunk(path.name, *read_file(path))]), (), source_of([path]), UNTOUCHED)
    if is_prepared(path):
        whole = _prepared(path)
        return Chunks(_rows(path, whole), whole.label_names, whole.source, whole.policy)
    if batches := batches_in(path):
        return Chunks((Chunk(batch.name, *read_file(batch)) for batch in batches), (), source_of(batches), UNTOUCHED)
    return read_pictures(path)


def is_prepared(path: Path) -> bool:
    """Whether it is a folder that `prepare_images` made."""
    return (path / "set.json").is_file() and (path / "images.npy").is_file()


def _prepared(path: Path) -> ImageSet:
    try:
        content = json.loads((path / "set.json").read_text())
        images = np.load(path / "images.npy", mmap_mode="r", allow_pickle=False)
        images, labels = checked(path, images, None if content["labels"] is None else np.array(content["labels"]))
        return ImageSet(images, labels, tuple(content["label_names"]), content["policy"], content["source"])
    except ImageError:
        raise
    except Exception as error:  # NumPy's and JSON's readers raise EOFError, TokenError, RecursionError and others
        raise ImageError(f"{path}: not a prepared image set, or damaged ({error})") from error


def _rows(path: Path, whole: ImageSet) -> Iterator[Chunk]:
    """The images of a memmap, some at a time."""
    for start in range(0, len(whole.images), ROWS_AT_ONCE):
        rows = slice(start, start + ROWS_AT_ONCE)
        yield Chunk(path.name, np.asarray(whole.images[rows]), None if whole.labels is None else whole.labels[rows])


def _of_one_size(path: Path, chunks: Iterator[Chunk], size: int | None) -> Iterator[Chunk]:
    """The chunks, brought to the size asked for; without one, all must have that of the first."""
    if size is not None and size < 1:
        raise ImageError(f"--size ({size}) must be at least 1")
    first: Chunk | None = None
    with _readable(path):
        for chunk in chunks:
            if size is not None and chunk.images.shape[1:3] != (size, size):
                chunk = chunk._replace(images=resized(chunk.images, size), changed=True)
            first = first or chunk
            if (chunk.labels is None) != (first.labels is None):
                raise ImageError(f"{path}: of {chunk.name} and {first.name}, one has labels and the other none")
            if chunk.images.shape[1:] != first.images.shape[1:]:
                same_size = chunk.images.shape[1:3] == first.images.shape[1:3]
                way_out = "make all grey, or all RGB" if same_size else "give a size to crop and resize to"
                two = f"{_shown(chunk)}, but {first.name} is {_shown(first)}"
                raise ImageError(f"{path}/{chunk.name}: {two}; {way_out}")
            yield chunk


def _shown(chunk: Chunk) -> str:
    height, width, channels = chunk.images.shape[1:]
    return f"{width} x {height} with {channels} channel{'s' if channels > 1 else ''}"


def _policy(found: Chunks, size: int | None, *, changed: bool) -> str:
    """What was done to the pixels, earlier and now."""
    if not changed:
        return found.policy
    now = f"cropped to the central square, area-averaged to {size} x {size}"
    return now if found.policy == UNTOUCHED else f"{found.policy}; then {now}"


def _write(folder: Path, path: Path, found: Chunks, size: int | None, report: Callable[[int], None]) -> dict[str, Any]:
    """Writes `images.npy` as the chunks come, and gives what `set.json` says of them."""
    labels: list[int] | None = None
    done, changed, shape = 0, False, (0, 0, 0)
    with (folder / "images.npy").open("wb") as target:
        for chunk in _of_one_size(path, found.chunks, size):
            if not done:
                shape, labels = chunk.images.shape[1:], None if chunk.labels is None else []
                _write_header(target, 0, shape)
            target.write(np.ascontiguousarray(chunk.images).data)
            if labels is not None and chunk.labels is not None:
                labels += chunk.labels.tolist()
            done, changed = done + len(chunk.images), changed or chunk.changed
            report(done)
        target.seek(0)
        _write_header(target, done, shape)
    return {"policy": _policy(found, size, changed=changed), "label_names": found.label_names, "labels": labels}


def _write_header(target: IO[bytes], count: int, shape: tuple[int, ...]) -> None:
    """NumPy leaves room for the number of rows, so that a header written over another is as long."""
    header = {"descr": "|u1", "fortran_order": False, "shape": (count, *shape)}
    np.lib.format.write_array_header_1_0(target, header)
