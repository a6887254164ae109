"""Grids of images as one PNG."""

import math
from pathlib import Path
from typing import Any

import numpy as np
from jaxtyping import UInt8
from PIL import Image


def write_grid(
    path: Path, images: UInt8[Any, "N height width channels"], *, columns: int | None = None, gap: int = 1
) -> None:
    """Writes the images row after row into a PNG, near-square if no number of columns is given, `gap` black pixels
    apart; makes the folder."""
    count, height, width, channels = images.shape
    columns = columns or math.ceil(math.sqrt(count))
    rows = math.ceil(count / columns)
    cells = np.zeros((rows * columns, height + gap, width + gap, channels), np.uint8)
    cells[:count, :height, :width] = images
    grid = cells.reshape(rows, columns, height + gap, width + gap, channels).swapaxes(1, 2)
    pixels = grid.reshape(rows * (height + gap), columns * (width + gap), channels)[: -gap or None, : -gap or None]
    path.parent.mkdir(parents=True, exist_ok=True)
    Image.fromarray(pixels.squeeze(-1) if channels == 1 else pixels).save(path)
