"""The codec without a model: any size comes back, and photographs cost less than as PNG."""

import os
import tracemalloc
from pathlib import Path

import numpy as np
import pytest
from coded import state

from vdbjax.coding import plain, rans

SHAPES = [(1, 1, 1, 1), (2, 1, 7, 3), (3, 9, 1, 4), (2, 32, 32, 3), (1, 33, 17, 1), (2, 5, 64, 4), (1, 2, 2, 3)]


def pixels_of(shape, spread):
    """Grey levels this far to either side of a middle."""
    return np.random.default_rng(0).integers(128 - spread, 128 + spread, size=shape)


@pytest.mark.parametrize("lanes", [50, 2000])
@pytest.mark.parametrize("spread", [3, 128], ids=["predicted", "written"])
@pytest.mark.parametrize("shape", SHAPES, ids=str)
def test_pixels_of_any_size_come_back(shape, spread, lanes):
    pixels = pixels_of(shape, spread)
    message = rans.empty(lanes=lanes)
    before = state(message)
    codec = plain.plain(shape)
    codec.push(message, pixels)
    np.testing.assert_array_equal(codec.pop(message), pixels)
    assert state(message) == before  # it draws nothing


@pytest.mark.parametrize("shape", SHAPES, ids=str)
def test_every_pixel_is_coded_once_between_known_ones(shape):
    _, height, width, _ = shape
    known = np.zeros((height, width), bool)
    for step in plain._steps(height, width):
        assert not known[step.rows, step.columns].any()
        for rows, columns in [(step.rows + row, step.columns + column) for row, column in step.offsets]:
            inside = (rows >= 0) & (rows < height) & (columns >= 0) & (columns < width)
            assert known[rows[inside], columns[inside]].all()
        known[step.rows, step.columns] = True
    assert known.all()


def test_one_colour_costs_next_to_nothing_and_a_ramp_little():
    flat = np.full((1, 64, 64, 3), 77)
    ramp = np.broadcast_to(np.arange(64)[:, None] * 2 + np.arange(64), (1, 64, 64))[..., None].repeat(3, axis=-1).copy()
    for pixels, least in ((flat, 2.3), (ramp, 3.2)):
        message = rans.empty(lanes=64)
        plain.plain(pixels.shape).push(message, pixels)
        assert message.bits() / pixels.size < least


@pytest.mark.parametrize("shape", [shape for shape in SHAPES if shape[1] * shape[2] > 4], ids=str)
def test_what_is_near_its_neighbours_is_predicted(shape):
    pixels = pixels_of(shape, 3)
    message = rans.empty(lanes=50)
    plain.plain(shape).push(message, pixels)
    assert message.bits() / pixels.size < 6.5


def test_noise_costs_what_it_is():
    pixels = pixels_of((2, 32, 32, 3), 128)
    message = rans.empty(lanes=64)
    plain.plain(pixels.shape).push(message, pixels)
    assert 8.0 <= message.bits() / pixels.size < 8.01


@pytest.mark.skipif("VDBJAX_DATA" not in os.environ, reason="VDBJAX_DATA names no data")
def test_photographs_cost_less_than_as_png():
    """PNG takes 5.87 bits a dimension on these images, and WebP 4.71."""
    with np.load(Path(os.environ["VDBJAX_DATA"]) / "cifar10" / "exact_test.npz") as stored:
        pixels = stored["images"].astype(np.int64)
    message = rans.empty(lanes=4096)
    codec = plain.plain(pixels.shape)
    codec.push(message, pixels)
    assert 4.5 < message.bits() / pixels.size < 4.95
    np.testing.assert_array_equal(codec.pop(message), pixels)


@pytest.mark.parametrize("shape", [(1, 2, 3, 2), (0, 2, 2, 3), (1, 2, 2, 2**60)])
def test_shapes_that_are_no_images_are_refused(shape):
    with pytest.raises(ValueError, match="channels"):
        plain.plain(shape)


@pytest.mark.parametrize("pixels", [np.full((1, 2, 2, 3), 256), np.full((1, 2, 2, 3), -1), np.zeros((1, 2, 2, 3)), [1]])
def test_pixels_that_are_none_are_refused(pixels):
    with pytest.raises(ValueError, match="pixels must"):
        plain.plain((1, 2, 2, 3)).push(rans.empty(lanes=1), pixels)


def test_a_large_picture_takes_few_bytes_a_sample():
    pixels = np.random.default_rng(0).normal(128, 8, (1, 600, 700, 3)).astype(np.int64)
    codec, message = plain.plain(pixels.shape), rans.empty(4096)
    peaks = []
    for work in (lambda: codec.push(message, pixels), lambda: codec.pop(message)):
        tracemalloc.start()
        work()
        peaks.append(tracemalloc.get_traced_memory()[1] / pixels.size)
        tracemalloc.stop()
    assert max(peaks) < 36  # of which what comes back is 8
