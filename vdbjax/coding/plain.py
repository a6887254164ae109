"""Pixels of any size without a model: what a flow cannot take, and what goes first so that its noise can be drawn.

Local bits-back coding must draw bits before it gives any back. The first images of a file can pay for them, coded into
the same message by this codec, which draws none: 4.8 bits a dimension on CIFAR-10, between WebP's and PNG's.

From coarse to fine: pixels between known ones are predicted by these, first in the middle of four corners and then in
the middle of four sides, along the line on which they differ less. Green goes first; red and blue follow its error. The
error's logistic distribution is as wide as the neighbours are far apart. All pixels of a step are coded at once.
Where their neighbours mislead, as in noise, pixels are written as they are, 8 bits each.
"""

from collections.abc import Iterator
from typing import Any, NamedTuple

import numpy as np
from jaxtyping import Int

from vdbjax.coding.discretize import logistic, uniform
from vdbjax.coding.rans import Codec, Message


class _Step(NamedTuple):
    """Pixels that are predicted at once, and their four known neighbours."""

    rows: Int[np.ndarray, " pixels"]
    columns: Int[np.ndarray, " pixels"]
    offsets: tuple[
        tuple[int, int], ...
    ]  # of the neighbours, (row, column): two on a line through the pixel, and two on another


class _Widths(NamedTuple):
    """The logistic scale of the errors, in grey levels, as a weighted sum."""

    constant: float
    activity: float  # by how far the neighbours are apart
    error: float  # and how wrong the channel before was


# Of the least code length on 600 images of CIFAR-10's training set.
_FIRST = _Widths(1.73, 0.185, 0.0)
_LATER = _Widths(0.507, 0.03, 0.132)
_FOLLOWS = 0.934  # how much of an error the next channel is moved by
_ORDER = {1: (0,), 3: (1, 0, 2), 4: (1, 0, 2, 3)}
_AT_ONCE = 2**14  # pixels of an image that are predicted at once: some twenty arrays of them
_COLOURS = 3  # what comes after them, transparency, does not follow green


def plain(shape: tuple[int, int, int, int]) -> Codec:
    """Codes pixels [images, height, width, channels] int64 of 0 to 255; channels is 1, 3 or 4.

    Raises ValueError for pixels of another shape or range.
    """
    if min(shape) < 1 or shape[3] not in _ORDER:
        raise ValueError(f"pixels must be [images, height, width, 1, 3 or 4 channels], not {shape}")
    predicted, written, choice = _predicted(shape), uniform(256, shape), uniform(2, (1,))

    def push(message: Message, pixels: Any) -> None:
        if not isinstance(pixels, np.ndarray) or pixels.shape != shape or pixels.dtype != np.int64:
            raise ValueError(f"pixels must be an int64 array of shape {shape}")
        if pixels.min() < 0 or pixels.max() > 255:
            raise ValueError(f"pixels must lie between 0 and 255, not {pixels.min()} and {pixels.max()}")
        before = message.bits()
        predicted.push(message, pixels)
        misled = message.bits() - before > 8 * pixels.size
        if misled:
            predicted.pop(message)
            written.push(message, pixels)
        choice.push(message, np.array([misled], np.int64))

    def pop(message: Message) -> Int[np.ndarray, "images height width channels"]:
        misled = choice.pop(message).item()
        return (written if misled else predicted).pop(message)

    return Codec(push, pop)


def _predicted(shape: tuple[int, int, int, int]) -> Codec:
    """Codes the errors of the predictions."""

    def push(message: Message, pixels: Any) -> None:
        for step in reversed(list(_steps(*shape[1:3]))):
            for channel, codec in reversed(list(_channels(step, pixels))):
                codec.push(message, np.ascontiguousarray(pixels[:, step.rows, step.columns, channel]))

    def pop(message: Message) -> Int[np.ndarray, "images height width channels"]:
        pixels = np.zeros(shape, np.int64)
        for step in _steps(*shape[1:3]):
            for channel, codec in _channels(step, pixels):
                pixels[:, step.rows, step.columns, channel] = codec.pop(message)
        return pixels

    return Codec(push, pop)


def _steps(height: int, width: int) -> Iterator[_Step]:
    """From one pixel to all, each step between pixels that are known."""
    spacing = 1 << (max(height, width) - 1).bit_length()
    yield _step(range(0, height, spacing), range(0, width, spacing), ())
    while spacing > 1:
        half = spacing // 2
        middle = range(half, height, spacing), range(half, width, spacing)
        yield _step(*middle, ((-half, -half), (half, half), (-half, half), (half, -half)))
        sides = ((-half, 0), (half, 0), (0, -half), (0, half))
        odd = [(np.arange(0, side, half) // half % 2).astype(bool) for side in (height, width)]
        row, column = np.nonzero(odd[0][:, None] ^ odd[1])
        yield _Step(row * half, column * half, sides)
        spacing = half


def _step(rows: range, columns: range, offsets: tuple[tuple[int, int], ...]) -> _Step:
    row, column = (grid.reshape(-1) for grid in np.meshgrid(rows, columns, indexing="ij"))
    return _Step(row.astype(np.int64), column.astype(np.int64), offsets)


def _channels(step: _Step, pixels: np.ndarray) -> Iterator[tuple[int, Codec]]:
    """The channels in the order of coding, each with its codec; one is read before the next one's codec is made."""
    error: np.ndarray | None = None
    for place, channel in enumerate(_ORDER[pixels.shape[3]]):
        if not step.offsets:
            yield channel, uniform(256, (len(pixels), len(step.rows)))
            continue
        mean, activity = _prediction(step, pixels[..., channel])
        if error is None or place >= _COLOURS:
            yield channel, _errors(_FIRST, mean, activity, 0.0)
        else:
            yield channel, _errors(_LATER, mean + _FOLLOWS * error, activity, np.abs(error))
        seen = pixels[:, step.rows, step.columns, channel] - mean
        error = seen if error is None else 0.5 * (error + seen)


def _errors(widths: _Widths, mean: np.ndarray, activity: np.ndarray, error: Any) -> Codec:
    scale = widths.constant + widths.activity * activity + widths.error * error
    return logistic(np.clip(mean, 0.0, 255.0) + 0.5, scale, 1.0)  # a bin's centre lies half above its number


def _prediction(step: _Step, values: np.ndarray) -> tuple[np.ndarray, np.ndarray]:
    """What the neighbours say of one channel, and how far they are apart, both [images, pixels]."""
    parts = [slice(start, start + _AT_ONCE) for start in range(0, len(step.rows), _AT_ONCE)] or [slice(0)]
    found = [_predicted_part(_Step(step.rows[part], step.columns[part], step.offsets), values) for part in parts]
    mean, activity = (np.concatenate(each, axis=1) for each in zip(*found, strict=True))
    return mean, activity


def _predicted_part(step: _Step, values: np.ndarray) -> tuple[np.ndarray, np.ndarray]:
    (known, mean, apart), (other_known, other_mean, other_apart) = (
        _pair(step, values, *step.offsets[at : at + 2]) for at in (0, 2)
    )
    # Along the line that differs less, mostly.
    share = (other_apart + 1.0) / (apart + other_apart + 2.0)
    share = np.where(known & other_known, share, np.where(known, 1.0, 0.0))
    activity = 0.5 * (apart + other_apart) + np.where(known & other_known, np.abs(mean - other_mean), 0.0)
    return share * mean + (1.0 - share) * other_mean, activity


def _pair(
    step: _Step, values: np.ndarray, one: tuple[int, int], other: tuple[int, int]
) -> tuple[np.ndarray, np.ndarray, np.ndarray]:
    """Whether two neighbours are known, their mean and distance; where one lies outside, the other stands for it."""
    height, width = values.shape[1:]
    places = [(step.rows + row, step.columns + column) for row, column in (one, other)]
    inside = [(row >= 0) & (row < height) & (column >= 0) & (column < width) for row, column in places]
    (row, column), (other_row, other_column) = places
    chosen = np.where(inside[0], row, other_row), np.where(inside[0], column, other_column)
    other_chosen = np.where(inside[1], other_row, row), np.where(inside[1], other_column, column)
    known = inside[0] | inside[1]
    first, second = (
        values[:, np.where(known, row, 0), np.where(known, column, 0)].astype(np.float64)
        for row, column in (chosen, other_chosen)
    )
    return known, 0.5 * (first + second), np.abs(first - second)
