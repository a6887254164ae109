"""Images of any size and mode, cut into tiles of a model's size and a rest, and put together again.

A model of h x w x c codes the tiles that fit into an image of c channels, from its top left corner, and those of the
colours of RGBA where c is 3. What is left over goes by the plain codec: the strips at the right and at the bottom,
transparency, and whole images of other modes.
"""

from collections.abc import Iterator, Sequence
from typing import NamedTuple

import numpy as np
from jaxtyping import Int, UInt8

Shape = tuple[int, int, int]  # height, width, channels
Picture = UInt8[np.ndarray, "_ _ _"]
"""[height, width, channels], each of its own size."""


class Pieces(NamedTuple):
    """Every pixel of a list of images, once."""

    tiles: Int[np.ndarray, "tiles height width channels"]
    rest: dict[Shape, Int[np.ndarray, "_ _ _ _"]]  # pieces of one shape, in the images' order


class _Piece(NamedTuple):
    image: int
    place: tuple[slice, ...]  # along each axis
    shape: Shape


def cut(images: Sequence[Picture], tile: Shape) -> Pieces:
    """The images' pieces, int64."""
    tiles, rest = layout([image.shape for image in images], tile)

    def stacked(pieces: list[_Piece], shape: Shape) -> np.ndarray:
        cuts = [images[piece.image][piece.place] for piece in pieces]
        return np.stack(cuts).astype(np.int64) if cuts else np.empty((0, *shape), np.int64)

    return Pieces(stacked(tiles, tile), {shape: stacked(pieces, shape) for shape, pieces in rest.items()})


def join(pieces: Pieces, shapes: Sequence[Shape], tile: Shape) -> list[Picture]:
    """Undoes `cut`."""
    images = [np.empty(shape, np.uint8) for shape in shapes]
    tiles, rest = layout(shapes, tile)
    for places, pixels in [(tiles, pieces.tiles), *((rest[shape], pieces.rest[shape]) for shape in rest)]:
        for piece, its_pixels in zip(places, pixels, strict=True):
            images[piece.image][piece.place] = its_pixels
    return images


def layout(shapes: Sequence[Shape], tile: Shape) -> tuple[list[_Piece], dict[Shape, list[_Piece]]]:
    """Where the tiles lie, and the other pieces by their shape; only a tile has a tile's shape."""
    tiles: list[_Piece] = []
    rest: dict[Shape, list[_Piece]] = {}
    for image, shape in enumerate(shapes):
        for box in _boxes(shape, tile):
            rows, columns, channels = (stop - start for start, stop in box)
            piece = _Piece(image, tuple(slice(*side) for side in box), (rows, columns, channels))
            (tiles if piece.shape == tile else rest.setdefault(piece.shape, [])).append(piece)
    return tiles, rest


def _boxes(shape: Shape, tile: Shape) -> Iterator[tuple[tuple[int, int], ...]]:
    """Start and stop along each axis: of the tiles, the strips beside and below them, and what else there is."""
    height, width, channels = shape
    if channels != tile[2] and (channels, tile[2]) != (4, 3):
        yield (0, height), (0, width), (0, channels)
        return
    bottom, right = (side - side % whole for side, whole in zip(shape, tile[:2]))
    right = right if bottom else 0
    colours = (0, tile[2])
    for row in range(0, bottom, tile[0]):
        for column in range(0, right, tile[1]):
            yield (row, row + tile[0]), (column, column + tile[1]), colours
    if right < width:
        yield (0, height), (right, width), colours
    if bottom < height and right:
        yield (bottom, height), (0, right), colours
    if channels > tile[2]:
        yield (0, height), (0, width), (tile[2], channels)
