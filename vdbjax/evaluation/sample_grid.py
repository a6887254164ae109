"""Grids of images as one PNG."""

import math
from pathlib import Path
from typing import Any

import numpy as np
from jaxtyping import UInt8
from PIL import Image

LEAST_SIDE = 64
"""Pixels of each image in a grid at least: smaller ones are magnified, each pixel so many times."""


def columns_of(model: Any) -> int | None:
    """Columns of a grid of a model's samples: one for each class, which they take in turn, where it has classes."""
    return getattr(model, "num_classes", 0) or None


def write_grid(
    path: Path, images: UInt8[Any, "N height width channels"], *, gap: int = 1, columns: int | None = None
) -> None:
    """Writes the images row after row into a PNG, near-square or of so many columns, `gap` black pixels apart.

    Makes the folder. Images below `LEAST_SIDE` are magnified.
    """
    times = math.ceil(LEAST_SIDE / min(images.shape[1:3]))
    images = images.repeat(times, axis=1).repeat(times, axis=2)
    count, height, width, channels = images.shape
    columns = min(columns or math.ceil(math.sqrt(count)), count)
    rows = math.ceil(count / columns)
    cells = np.zeros((rows * columns, height + gap, width + gap, channels), np.uint8)
    cells[:count, :height, :width] = images
    grid = cells.reshape(rows, columns, height + gap, width + gap, channels).swapaxes(1, 2)
    pixels = grid.reshape(rows * (height + gap), columns * (width + gap), channels)[: -gap or None, : -gap or None]
    path.parent.mkdir(parents=True, exist_ok=True)
    Image.fromarray(pixels.squeeze(-1) if channels == 1 else pixels).save(path)


def write_pairs(
    path: Path,
    above: UInt8[Any, "N height width channels"],
    below: UInt8[Any, "N height width channels"],
    *,
    columns: int = 8,
) -> None:
    """Writes rows of images, each row over the one that belongs to it; what does not fill a row is left out."""
    count = len(above) // columns * columns or len(above)
    rows = (images[:count].reshape(-1, min(columns, count), *images.shape[1:]) for images in (above, below))
    stacked = np.stack(list(rows), axis=1)
    write_grid(path, stacked.reshape(-1, *above.shape[1:]), columns=min(columns, count))
