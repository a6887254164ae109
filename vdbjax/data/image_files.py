"""Files of many images: .npz, idx, CIFAR-10's batches in both versions, SVHN's .mat, and ImageNet's batches of 2017.

Each reader gives uint8 images `[N, height, width, channels]`, with 1 channel (grey) or 3 (RGB), and labels or None.
"""

import gzip
import math
import pickle
import struct
import zlib
from pathlib import Path
from typing import Any

import numpy as np
from jaxtyping import Int, UInt8

from vdbjax.data.pictures import PICTURES, ImageError, decode_picture

CIFAR_TRAIN, CIFAR_TEST = tuple(f"data_batch_{i}" for i in range(1, 6)), "test_batch"
CIFAR_BYTES = 3 * 32 * 32
IDX_BYTES_OF_UINT8 = 0x08
IMAGENET_2017_TRAIN = tuple(f"train_data_batch_{i}.npz" for i in range(1, 11))
IMAGENET_2017_VALIDATION = "val_data.npz"
IMAGENET_2017 = "ImageNet as downsampled in 2017 (Chrabaszcz et al.), by averaging areas"


Images = tuple[UInt8[Any, "N height width channels"], Int[Any, " N"] | None]


def read_file(path: Path) -> Images:
    """The images of a file, by its name. Raises ImageError for what cannot be read, or holds something else."""
    name = path.name.lower()
    if name.endswith(".npz"):
        return _from_npz(path)
    if name.endswith((".idx", "-ubyte", ".gz")):
        return _from_idx(path)
    if name.endswith(".bin"):
        return _from_cifar_binary(path)
    if name.endswith(".mat"):
        return _from_svhn(path)
    if path.stem in (*CIFAR_TRAIN, CIFAR_TEST):
        return _from_cifar_python(path)
    if path.suffix.lower() in PICTURES:
        return decode_picture(path.read_bytes(), where=str(path), upright=True)[None], None
    raise ImageError(
        f"{path}: not a set of images; give a folder or zip of PNG and JPEG files, an .npz, an idx file, "
        f"CIFAR-10's batches or SVHN's .mat"
    )


def batches_in(folder: Path) -> list[Path]:
    """The training batches of CIFAR-10 or of ImageNet's version of 2017 in a folder, else the latter's validation."""
    names = [f"{name}{suffix}" for suffix in ("", ".bin") for name in CIFAR_TRAIN]
    names += IMAGENET_2017_TRAIN
    files = [folder / name for name in names if (folder / name).is_file()]
    return files or [file for file in [folder / IMAGENET_2017_VALIDATION] if file.is_file()]


def source_of(files: list[Path]) -> str:
    """What a set of such files is called; ImageNet's version is named, as bits/dim on two of them do not compare."""
    if files[0].name in (*IMAGENET_2017_TRAIN, IMAGENET_2017_VALIDATION):
        return IMAGENET_2017
    return files[0].name if len(files) == 1 else files[0].parent.name


def _from_npz(path: Path) -> Images:
    """`images` and `labels`, or `data` of planes as CIFAR-10's and `labels` from 1, as ImageNet's version of 2017."""
    try:
        with np.load(path, allow_pickle=False) as archive:
            members = {name: archive[name] for name in ("images", "data", "labels") if name in archive.files}
            present = ", ".join(archive.files) or "nothing"
    except Exception as error:  # zipfile, zlib, struct and NumPy each raise their own on damaged bytes
        reason = str(error).splitlines()[0] if str(error) else type(error).__name__
        raise ImageError(f"{path}: not an .npz file, damaged, or with pickled members ({reason})") from error
    images, labels = members.get("images"), members.get("labels")
    if images is None and "data" in members and labels is not None:
        images, labels = checked(path, _from_planes(path, members["data"]), labels, first_label=1)
    if images is None:
        raise ImageError(f"{path}: has no array called images, only {present}")
    return checked(path, images[..., None] if images.ndim == 3 else images, labels)


def _from_idx(path: Path) -> Images:
    """MNIST's images; and its labels, where they lie beside them under the name that MNIST gives them."""
    images = _idx(path)
    beside = path.with_name(path.name.replace("images-idx3", "labels-idx1"))
    labels = _idx(beside) if beside != path and beside.is_file() else None
    return checked(path, images[..., None] if images.ndim == 3 else images, labels)


def _idx(path: Path) -> np.ndarray:
    """A magic of two zeros, the type and the number of axes; the sizes, big-endian; the numbers."""
    content = path.read_bytes()
    if path.suffix == ".gz":
        try:
            content = gzip.decompress(content)
        except (EOFError, OSError, zlib.error) as error:
            raise ImageError(f"{path}: not a gzip file, or cut off ({error})") from error
    start = 4 + 4 * (content[3] if len(content) > 3 else 0)
    if len(content) < start or content[:3] != bytes([0, 0, IDX_BYTES_OF_UINT8]) or content[3] not in (1, 3, 4):
        raise ImageError(f"{path}: not an idx file of uint8 images")
    shape = struct.unpack(f">{content[3]}I", content[4:start])
    if len(content) - start != math.prod(shape):
        raise ImageError(f"{path}: holds {len(content) - start} bytes of images, its header says {math.prod(shape)}")
    return np.frombuffer(content, np.uint8, offset=start).reshape(shape)


def _from_cifar_binary(path: Path) -> Images:
    """Rows of a label and 3,072 bytes, channel after channel."""
    content = np.frombuffer(path.read_bytes(), np.uint8)
    if not len(content) or len(content) % (1 + CIFAR_BYTES):
        raise ImageError(f"{path}: {len(content)} bytes are no whole number of CIFAR-10's {1 + CIFAR_BYTES}-byte rows")
    rows = content.reshape(-1, 1 + CIFAR_BYTES)
    return checked(path, _from_planes(path, rows[:, 1:]), rows[:, 0])


def _from_cifar_python(path: Path) -> Images:
    """A pickle, of which nothing but arrays, numbers and texts is restored."""
    try:
        with path.open("rb") as stream:
            content = _OnlyArrays(stream, encoding="bytes").load()
        planes, labels = np.asarray(content[b"data"], np.uint8), np.asarray(content[b"labels"])
        return checked(path, _from_planes(path, planes), labels)
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


def _from_planes(path: Path, rows: np.ndarray) -> np.ndarray:
    """Rows of three square planes."""
    side = math.isqrt(rows.shape[1] // 3) if rows.ndim == 2 else 0
    if rows.ndim != 2 or rows.shape[1] != 3 * side**2:
        raise ImageError(f"{path}: an array of shape {rows.shape} holds no rows of three square planes")
    return np.ascontiguousarray(rows.reshape(-1, 3, side, side).transpose(0, 2, 3, 1))


def _from_svhn(path: Path) -> Images:
    """MATLAB's version 5: X [32, 32, 3, N], and y from 1 to 10, which is the digit 0."""
    from scipy.io import loadmat

    try:
        content = loadmat(path, variable_names=("X", "y"))
        images, labels = np.ascontiguousarray(content["X"].transpose(3, 0, 1, 2)), content["y"].ravel() % 10
    except Exception as error:  # SciPy raises many kinds on damaged bytes
        raise ImageError(f"{path}: not a .mat file of SVHN's, or damaged ({error})") from error
    return checked(path, images, labels)


def checked(path: Path, images: np.ndarray, labels: np.ndarray | None, *, first_label: int = 0) -> Images:
    """The images, and the labels from 0 on. Raises ImageError for arrays that are no images, or labels of none."""
    if images.dtype != np.uint8 or images.ndim != 4 or images.shape[3] not in (1, 3):
        raise ImageError(
            f"{path}: images have shape {images.shape} and type {images.dtype}, not [N, height, width, 1 or 3] of uint8"
        )
    if not images.size:
        raise ImageError(f"{path}: holds no images")
    if labels is not None and (labels.shape != (len(images),) or labels.dtype.kind not in "iu"):
        raise ImageError(f"{path}: labels of shape {labels.shape} and type {labels.dtype} for {len(images)} images")
    if labels is None:
        return images, None
    labels = labels.astype(np.int64) - first_label
    if labels.min() < 0:
        raise ImageError(f"{path}: label {labels.min() + first_label} is below {first_label}")
    return images, labels
