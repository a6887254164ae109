"""Tensors out of PyTorch's .pth files, without PyTorch, and without running what a pickle asks for.

Both formats are read: the zip of torch 1.6 and later, and the row of pickles that older ones wrote. Of the pickled
objects only dictionaries of tensors, numbers and texts are restored.
"""

import io
import math
import pickle
import zipfile
from collections import OrderedDict
from collections.abc import Callable
from pathlib import Path
from typing import Any, NamedTuple

import numpy as np

LEGACY_MAGIC, LEGACY_PROTOCOL = 0x1950A86A20F9469CFC6C, 1001
TYPES = {
    "FloatStorage": "<f4",
    "DoubleStorage": "<f8",
    "HalfStorage": "<f2",
    "LongStorage": "<i8",
    "IntStorage": "<i4",
    "ShortStorage": "<i2",
    "CharStorage": "i1",
    "ByteStorage": "u1",
    "BoolStorage": "?",
}


class WeightsError(ValueError):
    """Weights that cannot be used; the message is one line that names the file and what is wrong with it."""


class _Storage(NamedTuple):
    """Numbers in a row, found elsewhere in the file."""

    dtype: str
    key: str


class _View(NamedTuple):
    """A tensor: where its numbers lie in a storage."""

    storage: _Storage
    offset: int
    shape: tuple[int, ...]
    strides: tuple[int, ...]


def read_torch_weights(path: Path) -> dict[str, np.ndarray]:
    """The tensors of a state dict by name. Raises WeightsError for a file that is damaged, or holds anything else."""
    content = path.read_bytes()
    try:
        found, storages = _from_zip(content) if content[:2] == b"PK" else _from_pickles(content)
        return {name: _array(view, storages) for name, view in _tensors(found).items()}
    except Exception as error:  # damaged pickles and zips can raise anything
        reason = str(error).splitlines()[0] if str(error) else type(error).__name__
        raise WeightsError(f"{path}: not a state dict that PyTorch saved, or damaged ({reason})") from error


def _from_zip(content: bytes) -> tuple[Any, dict[str, bytes]]:
    """(the pickled object, storage key -> bytes)."""
    with zipfile.ZipFile(io.BytesIO(content)) as archive:
        (root,) = [name.removesuffix("data.pkl") for name in archive.namelist() if name.endswith("/data.pkl")]
        if f"{root}byteorder" in archive.namelist() and archive.read(f"{root}byteorder") != b"little":
            raise ValueError("big-endian")
        found = _OnlyTensors(io.BytesIO(archive.read(f"{root}data.pkl"))).load()
        stored = [name for name in archive.namelist() if name.startswith(f"{root}data/")]
        return found, {name.removeprefix(f"{root}data/"): archive.read(name) for name in stored}


def _from_pickles(content: bytes) -> tuple[Any, dict[str, bytes]]:
    """The same of the older format: magic, protocol, system, object and keys; then the storages, counts first."""
    stream = io.BytesIO(content)
    magic, protocol, system = (_OnlyTensors(stream).load() for _ in range(3))
    if (magic, protocol) != (LEGACY_MAGIC, LEGACY_PROTOCOL) or not system["little_endian"]:
        raise ValueError("of an unknown format")
    unpickler = _OnlyTensors(stream)
    found, storages = unpickler.load(), {}
    for key in _OnlyTensors(stream).load():
        size = np.dtype(unpickler.seen[key].dtype).itemsize
        storages[key] = stream.read(size * int.from_bytes(stream.read(8), "little"))
    return found, storages


class _OnlyTensors(pickle.Unpickler):
    """Restores dictionaries, numbers, texts and tensors, the latter as views, and nothing that could run code."""

    def __init__(self, stream: io.BytesIO) -> None:
        super().__init__(stream)
        self.seen: dict[str, _Storage] = {}

    def find_class(self, module: str, name: str) -> Any:
        allowed: dict[tuple[str, str], Callable[..., Any]] = {
            ("collections", "OrderedDict"): OrderedDict,
            ("torch._utils", "_rebuild_tensor_v2"): lambda storage, *where: _View(storage, *where[:3]),
            ("torch._utils", "_rebuild_parameter"): lambda view, *_: view,
        }
        if module == "torch" and name in TYPES:
            return TYPES[name]
        if (module, name) in allowed:
            return allowed[module, name]
        raise pickle.UnpicklingError(f"{module}.{name} is not allowed")

    def persistent_load(self, pid: Any) -> _Storage:
        kind, dtype, key, _, _, *part = pid
        if kind != "storage" or any(part):
            raise pickle.UnpicklingError("parts of storages are not allowed")
        self.seen[key] = _Storage(dtype, key)
        return self.seen[key]


def _tensors(found: Any) -> dict[str, _View]:
    if not isinstance(found, dict):
        raise ValueError(f"a {type(found).__name__}, no dict")
    others = [name for name, value in found.items() if not isinstance(value, _View)]
    if others:
        raise ValueError(f"{others[0]!r} is no tensor")
    return found


def _array(view: _View, storages: dict[str, bytes]) -> np.ndarray:
    numbers = np.frombuffer(storages[view.storage.key], view.storage.dtype)
    last = view.offset + sum((side - 1) * stride for side, stride in zip(view.shape, view.strides, strict=True))
    # Strides are believed only inside of the storage, and no number is taken twice.
    if min(view.offset, 0, *view.shape, *view.strides) < 0 or max(last + 1, math.prod(view.shape)) > len(numbers):
        raise ValueError("a tensor that does not fit into its storage")
    steps = [stride * numbers.itemsize for stride in view.strides]
    return np.lib.stride_tricks.as_strided(numbers[view.offset :], view.shape, steps).copy()
