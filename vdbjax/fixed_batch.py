"""Arrays for executables that were compiled for one batch shape, so that the same bits always give the same bits."""

import numpy as np
from jaxtyping import Int, UInt8


def filled(rows: np.ndarray, batch_size: int) -> np.ndarray:
    """[batch_size, ...]: the rows, filled up with zeros. Raises ValueError for more of them."""
    if len(rows) == batch_size:
        return rows
    if len(rows) > batch_size:
        raise ValueError(f"{len(rows)} images at once are more than batch_size ({batch_size})")
    return np.concatenate([rows, np.zeros((batch_size - len(rows), *rows.shape[1:]), rows.dtype)])


def as_pixels(values: Int[np.ndarray, "*shape"]) -> UInt8[np.ndarray, "*shape"]:
    """Values that are no pixels come from damaged files, and are refused before a network sees them: ValueError."""
    if values.size and not (values.min() >= 0 and values.max() <= 255):
        raise ValueError("decoded values are no pixels")
    return values.astype(np.uint8)
