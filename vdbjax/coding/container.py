"""The file of compressed images: what it takes to decode them, the images' names, sizes and checksums, and the code.

    8 bytes   magic
    16 bytes  format version, number of images, lengths of the header and of the table
    header    JSON, UTF-8: model, precision, lanes, what computed it; the names and lengths of the parts
    table     zlib: the images' names, each ended by a zero byte; heights, widths (uint32), modes (uint8)
    CRC-32    of each image's pixels, uint32
    parts     named strings of bytes, one after another, such as the coder's message
    CRC-32    of everything before

All numbers are little-endian. A reader takes nothing on trust: whatever a damaged, foreign or malicious file says, the
answer is a `ContainerError`, and nothing is allocated but in proportion to the file's own length. Nothing is unpickled.
"""

import contextlib
import hashlib
import json
import math
import os
import secrets
import struct
import zlib
from collections.abc import Mapping, Sequence
from pathlib import Path, PurePosixPath
from typing import Any, NamedTuple

import numpy as np
from jaxtyping import UInt8

from vdbjax.coding.rans import MAX_LANES

MAGIC = b"\x89VDBX\r\n\x1a"  # a transfer as text would change it
VERSION = 5
CHANNELS = {"L": 1, "RGB": 3, "RGBA": 4}
"""Mode -> channels; the order is that of the numbers in files."""

MAX_SIDE = 2**24  # pixels
MAX_NAME_BYTES = 4096
MAX_DEPTH = 64
"""Folders and the name itself, in the name of an image."""

MAX_PART_BYTES = 255  # of a file's or folder's own name
SAMPLES_A_BYTE = 2**8  # a file that claims more pixels for its length has a lying header, or its images are one colour
_FREE_SAMPLES = 2**22
_PREAMBLE = struct.Struct("<8s4I")
_MAX_HEADER = 2**16
_MAX_TABLE_AN_IMAGE = MAX_NAME_BYTES + 16


class ContainerError(ValueError):
    """A file that is no container, is damaged, or says what cannot be."""


class StoredImage(NamedTuple):
    """One image, in the order in which they were coded."""

    name: str  # a relative POSIX path
    mode: str  # a key of CHANNELS
    height: int  # pixels
    width: int
    crc: int  # of its pixels: see `image_crc`

    @property
    def shape(self) -> tuple[int, int, int]:
        """Of its pixels: height, width, channels."""
        return self.height, self.width, CHANNELS[self.mode]


class Header(NamedTuple):
    """What a decoder must agree with."""

    model_digest: str  # SHA-256 in hexadecimal digits: see `digest_of`
    jax_version: str
    device_kind: str
    dtype: str  # of the network's numbers
    batch_shape: tuple[int, ...]  # that the network was compiled for
    sigma: float | None  # of the model's noise; None where it draws none
    delta: float
    lanes: int


class Container(NamedTuple):
    """A whole file."""

    header: Header
    images: Sequence[StoredImage]
    parts: Mapping[str, bytes]


def write(path: str | Path, container: Container) -> int:
    """Writes the file and gives its length in bytes; under its own name it appears whole or not at all.

    Raises ContainerError for contents that `read` would refuse, and where the file cannot be written.
    """
    path, data = Path(path), to_bytes(container)
    partial = path.with_name(f".vdbjax-{secrets.token_hex(8)}.partial")  # in containers all processes have one number
    try:
        try:
            with open(partial, "wb") as file:
                file.write(data)
                file.flush()
                os.fsync(file.fileno())
            os.replace(partial, path)
        except BaseException:
            with contextlib.suppress(OSError):
                os.unlink(partial)
            raise
    except OSError as error:
        raise ContainerError(f"cannot write {path}: {error.strerror or error}") from error
    return len(data)


def read(path: str | Path) -> Container:
    """The file's contents. Raises ContainerError, which names the file, where they are none or cannot be read."""
    try:
        data = Path(path).read_bytes()
    except OSError as error:
        raise ContainerError(f"cannot read {path}: {error.strerror or error}") from error
    try:
        return from_bytes(data)
    except ContainerError as error:
        raise ContainerError(f"{path}: {error}") from error


def to_bytes(container: Container) -> bytes:
    """The file as bytes. Raises ContainerError for contents that `from_bytes` would refuse."""
    header, images, parts = container
    check_header(header)
    check_images(images)
    _check_parts([(name, len(part)) for name, part in parts.items()])
    fields = {**header._asdict(), "parts": [[name, len(part)] for name, part in parts.items()]}
    coded_header = json.dumps(fields, separators=(",", ":")).encode()
    _require(len(coded_header) <= _MAX_HEADER, "the header is too long")
    table = _to_table(images)
    body = b"".join([coded_header, table, _numbers("<u4", [image.crc for image in images]), *parts.values()])
    data = _sealed(_PREAMBLE.pack(MAGIC, VERSION, len(images), len(coded_header), len(table)) + body)
    _check_samples(images, len(data))
    return data


def from_bytes(data: bytes) -> Container:
    """Undoes `to_bytes`. Raises ContainerError."""
    _require(data[:8] == MAGIC, "not a file of compressed images" if data else "the file is empty")
    _require(len(data) >= _PREAMBLE.size + 4, "the file is cut off")
    _, version, count, header_length, table_length = _PREAMBLE.unpack_from(data)
    _require(version == VERSION, f"the file's format is {version}, and this version reads {VERSION}")
    _require(_sealed(data[:-4]) == data, "the file is damaged or cut off: its checksum does not match")
    start = _PREAMBLE.size
    table_start, crcs_start = start + header_length, start + header_length + table_length
    parts_start, end = crcs_start + 4 * count, len(data) - 4
    _require(count > 0, "there are no images")
    _require(parts_start <= end and header_length <= _MAX_HEADER, "its sections are longer than the file")
    header, lengths = _parsed_header(data[start:table_start])
    _require(sum(length for _, length in lengths) == end - parts_start, "its parts are not as long as it says")
    images = _from_table(data[table_start:crcs_start], np.frombuffer(data[crcs_start:parts_start], "<u4"))
    _check_samples(images, len(data))
    parts = {}
    for name, length in lengths:
        parts[name] = data[parts_start : parts_start + length]
        parts_start += length
    return Container(header, images, parts)


def image_crc(pixels: UInt8[np.ndarray, "height width channels"]) -> int:
    """The checksum that a decoded image is held against."""
    return zlib.crc32(np.ascontiguousarray(pixels).tobytes())


def is_exact(image: StoredImage, pixels: UInt8[np.ndarray, "height width channels"]) -> bool:
    """Whether decoded pixels have the image's size and checksum."""
    return pixels.shape == image.shape and image_crc(pixels) == image.crc


def digest_of(parameters: Mapping[str, np.ndarray]) -> str:
    """SHA-256 over the sorted names, dtypes, shapes and bytes of a model's arrays, in hexadecimal digits."""
    digest = hashlib.sha256()
    for name in sorted(parameters):
        array = np.asarray(parameters[name])
        digest.update(f"{name}\0{array.dtype.newbyteorder('<').str}\0{array.shape}\0".encode())
        digest.update(np.ascontiguousarray(array, array.dtype.newbyteorder("<")).tobytes())
    return digest.hexdigest()


def _require(holds: bool, reason: str) -> None:
    if not holds:
        raise ContainerError(reason)


def _sealed(data: bytes) -> bytes:
    return data + struct.pack("<I", zlib.crc32(data))


def _numbers(dtype: str, values: list[int]) -> bytes:
    return np.array(values, dtype).tobytes()


def _parsed_header(data: bytes) -> tuple[Header, list[tuple[str, int]]]:
    def refuse(constant: str) -> None:
        raise ContainerError(f"{constant} is no number for the header")

    try:
        fields = json.loads(data.decode(), parse_constant=refuse)
    except (ValueError, RecursionError) as error:  # also what is no UTF-8, and numbers of thousands of digits
        raise ContainerError("its header is no JSON") from error
    expected = {*Header._fields, "parts"}
    _require(isinstance(fields, dict) and set(fields) == expected, f"its header does not hold {sorted(expected)}")
    parts = fields.pop("parts")
    _require(isinstance(parts, list) and all(isinstance(part, list) for part in parts), "its parts are no lists")
    _require(isinstance(fields["batch_shape"], list), "its batch_shape is no list")
    header = Header(**{**fields, "batch_shape": tuple(fields["batch_shape"])})
    check_header(header)
    pairs = [tuple(part) for part in parts]
    _check_parts(pairs)
    return header, pairs


def check_header(header: Header) -> None:
    """Raises ContainerError for settings that no container holds."""
    digest = header.model_digest
    _require(isinstance(digest, str) and len(digest) == 64, f"model_digest {digest!r:.80} is no SHA-256")
    _require(not set(digest) - set("0123456789abcdef"), f"model_digest {digest!r} is no SHA-256")
    for name in ("jax_version", "device_kind", "dtype"):
        text = getattr(header, name)
        _require(isinstance(text, str) and 0 < len(text) <= 200, f"{name} {text!r:.80} is no short text")
    sizes = header.batch_shape
    _require(
        1 <= len(sizes) <= 8 and all(_is_whole(size, 1, 2**24) for size in sizes), f"no batch_shape: {sizes!r:.80}"
    )
    _require(math.prod(sizes) <= 2**31, f"no batch_shape: {sizes!r:.80}")
    for name in ("sigma", "delta") if header.sigma is not None else ("delta",):
        value = getattr(header, name)
        fits = isinstance(value, float) and 2.0**-60 <= value <= 2.0**20
        _require(fits, f"{name} ({value!r:.80}) must lie between 2^-60 and 2^20")
    _require(_is_whole(header.lanes, 1, MAX_LANES), f"no number of lanes: {header.lanes!r:.80}")


def _check_parts(parts: Sequence[Any]) -> None:
    _require(len(parts) <= 100, f"{len(parts)} parts are too many")
    for part in parts:
        named = len(part) == 2 and isinstance(part[0], str) and 0 < len(part[0]) <= 100
        _require(named and _is_whole(part[1], 0, 2**62), f"no part: {part!r:.80}")
    _require(len({name for name, _ in parts}) == len(parts), "two parts have one name")


def _is_whole(value: Any, low: int, high: int) -> bool:
    return isinstance(value, int) and not isinstance(value, bool) and low <= value <= high


def check_images(images: Sequence[StoredImage]) -> None:
    """Raises ContainerError for names, sizes and modes that no container holds, and for two images of one name."""
    _require(bool(images), "there are no images")
    for image in images:
        _require(image.mode in CHANNELS, f"{image.name}: mode {image.mode!r:.80} is none of {', '.join(CHANNELS)}")
        fits = all(_is_whole(side, 1, MAX_SIDE) for side in (image.height, image.width))
        _require(fits, f"{image.name}: {image.height} by {image.width} pixels are no size")
        _require(_is_whole(image.crc, 0, 2**32 - 1), f"{image.name}: no checksum: {image.crc!r:.80}")
    _check_names([image.name for image in images])


def _check_names(names: list[str]) -> None:
    """Nothing may be written outside the target folder, nor over another image or where a folder must be."""
    taken: set[str] = set()
    for name in names:
        path = PurePosixPath(name)
        plain = name == str(path) and not path.is_absolute() and not {"", ".", ".."} & set(path.parts)
        usable = "\0" not in name and 0 < len(_name_bytes(name)) <= MAX_NAME_BYTES and name != "."
        usable = usable and all(len(_name_bytes(part)) <= MAX_PART_BYTES for part in path.parts)
        usable = usable and len(path.parts) <= MAX_DEPTH
        _require(plain and usable, f"{name!r:.80} is no name for a file below a folder")
        _require(name not in taken, f"two images have the name {name!r:.80}")
        taken.add(name)
    for name in names:
        blocked = any(str(folder) in taken for folder in PurePosixPath(name).parents)
        _require(not blocked, f"the folder of {name!r:.80} has the name of another image")


def _name_bytes(name: str) -> bytes:
    """Names that are no UTF-8 on the file system come as lone surrogates, and go back as they were."""
    try:
        return name.encode("utf-8", "surrogateescape")
    except UnicodeEncodeError as error:
        raise ContainerError(f"{name!r:.80} is no name for a file") from error


def _check_samples(images: Sequence[StoredImage], length: int) -> None:
    samples = sum(math.prod(image.shape) for image in images)
    limit = _FREE_SAMPLES + SAMPLES_A_BYTE * length
    _require(samples <= limit, f"{length} bytes are too few for {samples} samples of pixels")


def _to_table(images: Sequence[StoredImage]) -> bytes:
    names = b"".join(_name_bytes(image.name) + b"\0" for image in images)
    heights, widths = ([getattr(image, side) for image in images] for side in ("height", "width"))
    modes = [list(CHANNELS).index(image.mode) for image in images]
    return zlib.compress(names + _numbers("<u4", heights) + _numbers("<u4", widths) + _numbers("u1", modes), 9)


def _from_table(data: bytes, crcs: np.ndarray) -> list[StoredImage]:
    count = len(crcs)
    limit = count * _MAX_TABLE_AN_IMAGE
    inflate = zlib.decompressobj()
    try:
        table = inflate.decompress(data, limit)
    except zlib.error as error:
        raise ContainerError("its table of images cannot be unpacked") from error
    _require(inflate.eof and not inflate.unused_data, "its table of images is not as long as it says")
    names_end = len(table) - 9 * count
    names = table[: max(names_end, 0)]
    _require(names_end > 0 and names[-1] == 0 and names.count(b"\0") == count, "its table of images is broken")
    heights, widths = np.frombuffer(table, "<u4", 2 * count, names_end).reshape(2, count).tolist()
    modes = table[names_end + 8 * count :]
    _require(max(modes) < len(CHANNELS), f"there is no mode {max(modes)}")
    images = [
        StoredImage(name.decode("utf-8", "surrogateescape"), list(CHANNELS)[mode], *numbers)
        for name, mode, *numbers in zip(names[:-1].split(b"\0"), modes, heights, widths, crcs.tolist(), strict=True)
    ]
    check_images(images)
    return images
