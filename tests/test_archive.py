"""Images of any size on one message, by a toy flow: exact, nothing wasted, nothing lost where the flow fails."""

import zlib

import numpy as np
import pytest

from vdbjax.coding import archive, local_bits_back, tiles
from vdbjax.coding.archive import Kind
from vdbjax.coding.container import ContainerError
from vdbjax.coding.layers import DequantizedFlow, Elementwise, Flow, linear
from vdbjax.coding.local_bits_back import Precision
from vdbjax.coding.plain import plain
from vdbjax.coding.rans import EmptyMessageError

TILE = (8, 8, 3)
SHAPES = [(8, 8, 3), (1, 1, 1), (17, 30, 3), (5, 40, 3), (40, 5, 3), (16, 16, 4), (9, 9, 1), (8, 8, 3), (24, 8, 3)]


def made(shapes, seed=0):
    draw = np.random.default_rng(seed)
    return [np.clip(draw.normal(128, 20, size=shape), 0, 255).astype(np.uint8) for shape in shapes]


def coder(*, inverse=lambda y: 20.0 * y + 128.0, batch_size=4, lanes=256):
    """Pixels are N(128, 20^2): 6.4 bits each."""
    scale = Elementwise(lambda x: ((x - 128.0) / 20.0, np.full(x.shape, -np.log(20.0))), inverse)
    matrix = np.eye(3) + 0.01
    flow = Flow([scale, linear(matrix, np.zeros(3))], TILE)
    precision = Precision(2.0**-8, 2.0**-14)
    return local_bits_back.coder(DequantizedFlow(flow, None), precision, tile=TILE, batch_size=batch_size, lanes=lanes)


def test_a_model_that_draws_nothing_from_the_message():
    its_coder = archive.Coder(
        encode=lambda message, pixels: plain(pixels.shape).push(message, pixels),
        decode=lambda message, count: plain((count, *TILE)).pop(message),
        first_draw=1.0,
        tile=TILE,
        batch_size=4,
        lanes=256,
    )
    images = made([TILE] * 20)
    parts, chunks = packed(images, its_coder)
    assert [coded.chunk.kind for coded in chunks][-1] == Kind.MODEL
    found = archive.unpack(parts, [TILE] * 20, its_coder)
    np.testing.assert_array_equal(found.images, images)


def test_pieces_hold_every_pixel_once():
    images = made(SHAPES)
    pieces = tiles.cut(images, TILE)
    assert len(pieces.tiles) == 1 + 2 * 3 + 4 + 1 + 3
    sizes = {shape: len(found) for shape, found in pieces.rest.items()}
    assert sizes[(17, 6, 3)] == sizes[(1, 24, 3)] == sizes[(16, 16, 1)] == sizes[(9, 9, 1)] == 1
    assert pieces.tiles.size + sum(found.size for found in pieces.rest.values()) == sum(i.size for i in images)
    for image, again in zip(images, tiles.join(pieces, SHAPES, TILE), strict=True):
        np.testing.assert_array_equal(image, again)


def packed(images, its_coder):
    chunks = []
    return archive.pack(images, its_coder, report=chunks.append), chunks


@pytest.mark.parametrize(
    "shapes",
    [SHAPES, SHAPES[:1], SHAPES[1:2], pytest.param([TILE] * 24, marks=pytest.mark.long)],
    ids=["mixed", "tile", "pixel", "many"],
)
def test_images_come_back(shapes):
    images = made(shapes)
    parts, chunks = packed(images, coder())
    heard = []
    found = archive.unpack(parts, shapes, coder(), report=lambda pixels: heard.append(pixels.size))
    assert found.problem is None
    assert sum(heard) == sum(image.size for image in images)
    for image, again in zip(images, found.images, strict=True):
        np.testing.assert_array_equal(image, again)
    assert not any(coded.failed for coded in chunks)


@pytest.mark.long
def test_a_file_costs_what_its_chunks_cost_and_soon_the_flow_does_all():
    """No bits to begin with, none left over: 36 bits for each of the first lanes, and one head."""
    parts, chunks = packed(made([TILE] * 64), coder())
    bits = sum(coded.bits for coded in chunks)
    assert 0 < 8 * len(parts["message"]) - bits < 36 * archive.LEAST_LANES + 64
    kinds = [coded.chunk.kind for coded in chunks]
    assert kinds[0] == Kind.PLAIN
    assert kinds[-5:] == [Kind.MODEL] * 5
    assert sum(coded.chunk.pieces for coded in chunks if coded.chunk.kind == Kind.PLAIN) < 20
    assert chunks[-2].chunk.pieces == 4


def test_where_the_flow_does_not_come_back_tiles_go_by_the_plain_codec():
    turn = iter(range(10_000))
    restless = coder(inverse=lambda y: 20.0 * y + 128.0 + 0.1 * next(turn))
    images = made([TILE] * 16)
    parts, chunks = packed(images, restless)
    assert any(coded.failed for coded in chunks)
    assert all(coded.chunk.kind == Kind.PLAIN for coded in chunks)
    found = archive.unpack(parts, [TILE] * 16, coder())
    np.testing.assert_array_equal(found.images, images)


def test_a_chunk_that_cannot_be_decoded_has_failed():
    """However little is left of the message then: it was encoded."""

    def decode(message, count):
        raise EmptyMessageError("the message is empty")

    _, chunks = packed(made([TILE] * 8), coder()._replace(decode=decode))
    assert any(coded.failed for coded in chunks)
    assert all(coded.chunk.kind == Kind.PLAIN for coded in chunks)


def test_where_the_flow_costs_more_tiles_go_by_the_plain_codec():
    images = [np.full(TILE, 250, np.uint8)] * 12
    _, chunks = packed(images, coder())
    assert all(coded.chunk.kind == Kind.PLAIN and not coded.failed for coded in chunks)


def test_a_message_that_falls_apart_says_so_and_shows_what_came_back():
    images = made([TILE] * 14)
    parts, _ = packed(images, coder())
    other = coder(inverse=lambda y: 20.0 * y + 128.001)
    found = archive.unpack(parts, [TILE] * 14, other)
    assert len(found.images) == 14
    assert found.problem is not None
    assert not np.array_equal(found.images, images)


def table(*rows):
    return zlib.compress(np.array(rows, "<u4").tobytes())


BAD_CHUNKS = {
    "no zlib": b"none",
    "cut": table((1, 3, 4))[:-3],
    "trailing": table((1, 3, 4)) + b"x",
    "empty": table(),
    "a number short": zlib.compress(np.array([1, 3], "<u4").tobytes()),
    "an unknown kind": table((7, 3, 4)),
    "too few": table((1, 2, 4)),
    "too many": table((1, 4, 4)),
    "none at once": table((1, 3, 4), (1, 0, 4)),
    "a rest that is not there": table((0, 1, 4), (1, 3, 4)),
    "no lanes": table((1, 3, 0)),
    "2^31 lanes": table((1, 3, 2**31)),
    "fewer lanes later": table((1, 2, 8), (1, 1, 4)),
    "a batch too large": table((2, 3, 4)),
    "a bomb": zlib.compress(bytes(10_000_000)),
}


@pytest.mark.parametrize("chunks", BAD_CHUNKS.values(), ids=BAD_CHUNKS.keys())
def test_chunks_that_are_none_are_refused(chunks):
    parts, _ = packed(made([TILE] * 3), coder())
    with pytest.raises(ContainerError):
        archive.unpack({**parts, "chunks": chunks}, [TILE] * 3, coder(batch_size=2))


def test_a_file_without_its_parts_is_refused():
    with pytest.raises(ContainerError, match="holds no message"):
        archive.unpack({}, [TILE], coder())
