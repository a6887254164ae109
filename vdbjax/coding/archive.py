"""Images of any size as one message that begins with nothing: chunks of tiles by a model, the rest by the plain codec.

A model must draw its noise or latents from the message before it gives anything back: some 30 bits a dimension of a
flow and image at once. So the message begins with pieces that no model can take and a few tiles by the plain codec,
which draws nothing, and goes on with as many tiles at a time as it can pay for, until that is a batch. It also begins
on few lanes and takes on more as it grows, for a lane that begins empty costs 36 bits in the end. Nothing lies below
the first piece.

Every chunk is decoded before it is kept. What a model cannot bring back, or only in more bits, goes by the plain codec.
"""

import time
import zlib
from collections.abc import Callable, Iterator, Mapping, Sequence
from enum import IntEnum
from typing import Any, NamedTuple

import numpy as np
from jaxtyping import Int

from vdbjax.coding import rans, tiles
from vdbjax.coding.container import ContainerError
from vdbjax.coding.plain import plain
from vdbjax.coding.rans import EmptyMessageError, Message
from vdbjax.coding.tiles import Picture, Pieces, Shape

LEAST_LANES = 4
SAMPLES_A_LANE = 2**14  # that the first lanes are for: their 36 bits are then a thousandth of the file
BITS_A_LANE = 2**9  # on the stack, before a lane is drawn from it: 52 bits
SPARE = 1.1  # above what a tile drew the last time
RETRY = 1.3

Pixels = Int[np.ndarray, "_ _ _ _"]


class Coder(NamedTuple):
    """What codes the tiles: a model by bits-back, whatever the model."""

    encode: Callable[[Message, Pixels], Any]  # what was drawn for them; raises ValueError where they cannot be coded
    decode: Callable[[Message, int], Pixels]  # so many tiles
    first_draw: float  # bits that a tile draws from the message, before one was coded: rather too few
    tile: Shape
    batch_size: int  # tiles at once, at most
    lanes: int  # at most


class Kind(IntEnum):
    """How a chunk is coded."""

    REST = 0  # the pieces of one shape that are no tiles, by the plain codec
    PLAIN = 1  # tiles by the plain codec
    MODEL = 2


class Chunk(NamedTuple):
    """What is coded at once."""

    kind: Kind
    pieces: int  # or tiles; how many
    lanes: int  # of the message then


class Coded(NamedTuple):
    """A chunk on top of the message."""

    message: Message  # forked from the one before; in use until that becomes it
    chunk: Chunk
    pixels: Pixels
    drawn: Any  # what the model drew: noise or latents; None for the plain codec
    bits: float  # that it added
    drawn_bits: float  # that it took from the stack at first, at most
    encode_seconds: float
    decode_seconds: float
    failed: bool = False  # the model's chunk did not come back, and this one is plain in its place
    outdone: bool = False  # the model's chunk was longer, and this one is plain in its place


class Unpacked(NamedTuple):
    """Images as far as they could be decoded, and what stopped that."""

    images: list[Picture]
    problem: str | None


def pack(images: Sequence[Picture], coder: Coder, *, report: Callable[[Coded], None]) -> dict[str, bytes]:
    """The images as parts of a container; `report` hears of every chunk that was kept."""
    pieces = tiles.cut(images, coder.tile)
    samples = sum(image.size for image in images)
    message = rans.empty(min(max(_power_of_two(samples // SAMPLES_A_LANE), LEAST_LANES), coder.lanes))
    chunks = []
    for coded in _chunks(message, pieces, coder):
        chunks.append(coded.chunk)
        report(coded)
    rans.narrow(message, 1)
    return {"chunks": zlib.compress(np.array(chunks, "<u4").tobytes(), 9), "message": rans.to_bytes(message)}


def unpack(
    parts: Mapping[str, bytes],
    shapes: Sequence[Shape],
    coder: Coder,
    *,
    report: Callable[[Pixels], None] = lambda pixels: None,
) -> Unpacked:
    """Undoes `pack` as far as that goes: images are to be held against their checksums; `report` sees each chunk.

    Raises ContainerError for parts that no images of these shapes have.
    """
    if not {"chunks", "message"} <= set(parts):
        raise ContainerError("the file holds no message")
    found, rest = tiles.layout(shapes, coder.tile)
    pieces = Pieces(
        np.zeros((len(found), *coder.tile), np.int64),
        {shape: np.zeros((len(places), *shape), np.int64) for shape, places in rest.items()},
    )
    chunks = _read_chunks(parts["chunks"], pieces, coder)
    try:
        with np.errstate(all="ignore"):
            _unpack(rans.from_bytes(parts["message"], 1), chunks, pieces, coder, report)
    except ValueError as error:
        return Unpacked(tiles.join(pieces, shapes, coder.tile), str(error))
    return Unpacked(tiles.join(pieces, shapes, coder.tile), None)


def _chunks(message: Message, pieces: Pieces, coder: Coder) -> Iterator[Coded]:
    """From the bottom of the message to its top; each is on it when the next is asked for."""
    for pixels in pieces.rest.values():
        coded = _coded(message, Kind.REST, pixels, coder)
        message.become(coded.message)
        yield coded
    left, need = pieces.tiles, coder.first_draw
    while len(left):
        coded, need = _next(message, left, need, coder)
        message.become(coded.message)
        left = left[coded.chunk.pieces :]
        yield coded


def _next(message: Message, left: Pixels, need: float, coder: Coder) -> tuple[Coded, float]:
    """The next chunk of tiles, and how many bits a tile of the one after it will draw. Now each draws `need`."""
    while count := min(int(32 * message.size / need), coder.batch_size, len(left)):
        in_plain = _coded(message, Kind.PLAIN, left[:count], coder)
        try:
            by_model = _coded(message, Kind.MODEL, left[:count], coder)
        except EmptyMessageError:
            need *= RETRY
            continue
        except ValueError:
            return in_plain._replace(failed=True), need
        shorter = by_model if by_model.bits <= in_plain.bits else in_plain._replace(outdone=True)
        return shorter, max(SPARE * by_model.drawn_bits / count, 1.0)
    return _coded(message, Kind.PLAIN, left[:1], coder), need


def _coded(message: Message, kind: Kind, pixels: Pixels, coder: Coder) -> Coded:
    """The chunk on top of a fork of the message. Raises ValueError where it does not come back."""
    chunk = Chunk(kind, len(pixels), _lanes(message, coder.lanes))
    coded = message.fork()
    start = time.monotonic()
    rans.widen(coded, chunk.lanes)
    before = coded.bits()
    drawn = _push(coded, chunk, pixels, coder)
    middle = time.monotonic()
    _check(coded, message, chunk, pixels, coder)
    end = time.monotonic()
    drawn_bits = 32.0 * (message.size - coded.untouched)
    return Coded(coded, chunk, pixels, drawn, coded.bits() - before, drawn_bits, middle - start, end - middle)


def _check(coded: Message, start: Message, chunk: Chunk, pixels: Pixels, coder: Coder) -> None:
    """Raises ValueError where decoding the chunk does not give the pixels, and the message that it began on."""
    check = coded.fork()
    try:
        found = _pop(check, chunk, pixels.shape[1:], coder)
    except EmptyMessageError as error:  # which is not that there was too little to draw from
        raise ValueError(str(error)) from error
    rans.narrow(check, start.lanes)
    if not (check.is_what(start) and np.array_equal(found, pixels)):
        raise ValueError("a chunk does not come back as it was")


def _push(message: Message, chunk: Chunk, pixels: Pixels, coder: Coder) -> Any:
    if chunk.kind == Kind.MODEL:
        return coder.encode(message, pixels)
    return plain(pixels.shape).push(message, pixels)


def _pop(message: Message, chunk: Chunk, shape: Shape, coder: Coder) -> Pixels:
    if chunk.kind == Kind.MODEL:
        return coder.decode(message, chunk.pieces)
    return plain((chunk.pieces, *shape)).pop(message)


def _unpack(
    message: Message, chunks: list[Chunk], pieces: Pieces, coder: Coder, report: Callable[[Pixels], None]
) -> None:
    """Fills the pieces, from the last chunk to the first."""
    rans.widen(message, chunks[-1].lanes)
    rest, ends = list(pieces.rest.values()), np.cumsum([_tiles(chunk) for chunk in chunks])
    for index in reversed(range(len(chunks))):
        chunk = chunks[index]
        rans.narrow(message, chunk.lanes)
        into = rest[index] if chunk.kind == Kind.REST else pieces.tiles[ends[index] - chunk.pieces : ends[index]]
        into[:] = _pop(message, chunk, into.shape[1:], coder)
        report(into)
    if message.size or (message.heads != rans.LOWEST_HEAD).any():
        raise ContainerError("the message does not end with its images")


def _tiles(chunk: Chunk) -> int:
    return 0 if chunk.kind == Kind.REST else chunk.pieces


def _read_chunks(data: bytes, pieces: Pieces, coder: Coder) -> list[Chunk]:
    """Raises ContainerError for chunks that are not all of the pieces, once and in order."""
    rest = [len(pixels) for pixels in pieces.rest.values()]
    size = np.dtype("<u4").itemsize * len(Chunk._fields)
    inflate = zlib.decompressobj()
    try:
        table = inflate.decompress(data, size * (len(rest) + len(pieces.tiles)) + 1)
    except zlib.error as error:
        raise ContainerError("its table of chunks cannot be unpacked") from error
    rows = np.frombuffer(table[: len(table) - len(table) % size], "<u4").reshape(-1, len(Chunk._fields))
    kinds, counts, lanes = rows.T.tolist()
    whole = inflate.eof and not inflate.unused_data and len(table) % size == 0 and max(kinds, default=3) <= Kind.MODEL
    whole = whole and [Kind.REST] * len(rest) == [kind for kind in kinds if kind == Kind.REST] == kinds[: len(rest)]
    whole = whole and counts[: len(rest)] == rest and sum(counts[len(rest) :]) == len(pieces.tiles) and min(counts) > 0
    whole = whole and lanes == sorted(lanes) and lanes[0] >= 1 and lanes[-1] <= coder.lanes
    chunks = [Chunk(Kind(kind), *numbers) for kind, *numbers in rows.tolist()] if whole else []
    if not chunks or any(chunk.kind == Kind.MODEL and chunk.pieces > coder.batch_size for chunk in chunks):
        raise ContainerError("its chunks are not those of its images")
    return chunks


def _lanes(message: Message, most: int) -> int:
    """As many as the message has, or can pay for."""
    return min(most, max(message.lanes, _power_of_two(32 * message.size // BITS_A_LANE)))


def _power_of_two(number: int) -> int:
    """The largest that is not above the number; 0 for 0."""
    return (1 << number.bit_length()) >> 1
