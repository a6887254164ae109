"""Weights and pictures made of names and numbers alone, so that another interpreter makes the same."""

import zlib

import numpy as np


def made_weight(name: str, shape: tuple[int, ...]) -> np.ndarray:
    """A weight of a convolutional network under its PyTorch name, of a size that keeps activations near 1."""
    draw = np.random.default_rng(zlib.crc32(name.encode()))
    if name.endswith("running_var"):
        return draw.uniform(0.5, 1.5, shape).astype(np.float32)
    if len(shape) < 2:
        return (float(name.endswith("bn.weight")) + 0.2 * draw.normal(size=shape)).astype(np.float32)
    return (draw.normal(size=shape) * np.sqrt(2.0 / np.prod(shape[1:]))).astype(np.float32)


def made_pictures(count: int, side: int, seed: int = 0) -> np.ndarray:
    """Smooth uint8 pictures [count, side, side, 3] with some noise."""
    draw = np.random.default_rng(seed)
    rows, columns = np.mgrid[:side, :side] / side
    waves = draw.uniform(1.0, 12.0, (2, count, 1, 1, 3))
    angles = draw.uniform(0.0, 2 * np.pi, (count, 1, 1, 3)) + waves[0] * rows[..., None] + waves[1] * columns[..., None]
    values = 127.5 + 90.0 * np.sin(angles) + 12.0 * draw.normal(size=angles.shape)
    return np.clip(np.round(values), 0, 255).astype(np.uint8)
