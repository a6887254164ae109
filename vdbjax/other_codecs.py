"""What PNG, WebP and JPEG XL make of the same pictures."""

import io
from collections.abc import Sequence

import numpy as np
from PIL import Image

from vdbjax.data.picture_files import to_png

WEBP_SIDE = 16_383
"""Pixels of a side at most."""


def bits_by_others(pictures: Sequence[np.ndarray]) -> dict[str, int]:
    """Codec -> bits of all pictures, a file each, at its best setting.

    Without WebP where a side is longer than it can be there, without JPEG XL where imagecodecs is not installed.
    """
    found = {"PNG": sum(len(to_png(pixels)) for pixels in pictures)}
    if max(max(pixels.shape[:2]) for pixels in pictures) <= WEBP_SIDE:
        found["WebP"] = sum(_webp(pixels) for pixels in pictures)
    try:
        from imagecodecs import jpegxl_encode
    except ImportError:
        return {name: 8 * size for name, size in found.items()}
    found["JPEG XL"] = sum(len(jpegxl_encode(_squeezed(pixels), lossless=True, effort=9)) for pixels in pictures)
    return {name: 8 * size for name, size in found.items()}


def _webp(pixels: np.ndarray) -> int:
    stream = io.BytesIO()
    Image.fromarray(_squeezed(pixels)).save(stream, "WEBP", lossless=True, exact=True, quality=100, method=6)
    return stream.tell()


def _squeezed(pixels: np.ndarray) -> np.ndarray:
    return pixels[:, :, 0] if pixels.shape[2] == 1 else pixels
