"""The images that the evaluator released with VGAN compares: far fewer than the paper's appendix E.1 says."""

from typing import Any

import numpy as np
from jaxtyping import Float, UInt8

BATCH = 64
REALS, FAKES = 156 * BATCH, 79 * BATCH
"""9,984 and 5,056: whole batches below and above the 10,000 and the 5,000 asked for."""
DITHER = 127.5 / 128
"""Of uniform noise in 1 / 128 on images in [-1, 1], here in grey levels."""


def sampled_reals(
    images: UInt8[Any, "N height width channels"], *, seed: int
) -> Float[np.ndarray, "reals height width channels"]:
    """Training images in the order of its loader, begun anew for each batch: repeated between batches, never inside
    one; half of them mirrored, and dithered upwards. On the scale of 0 to 255. Raises ValueError for fewer than 64.
    """
    if len(images) < BATCH:
        raise ValueError(f"{len(images)} real images are too few for protocol vgan2018, which draws {BATCH} at once")
    draw = np.random.default_rng(seed)
    chosen = np.concatenate([draw.choice(len(images), BATCH, replace=False) for _ in range(REALS // BATCH)])
    pixels = np.asarray(images)[chosen].astype(np.float32)
    mirrored = draw.random(REALS) < 0.5
    pixels[mirrored] = pixels[mirrored, :, ::-1]
    return pixels + draw.uniform(0.0, DITHER, pixels.shape).astype(np.float32)


def sampled_fakes(
    images: UInt8[Any, "N height width channels"], *, seed: int
) -> UInt8[np.ndarray, "fakes height width channels"]:
    """As many as it compares, neither mirrored nor dithered. Raises ValueError where there are not as many."""
    if len(images) < FAKES:
        raise ValueError(f"{len(images)} fake images are too few for protocol vgan2018, which takes {FAKES:,}")
    return np.asarray(images)[np.sort(np.random.default_rng(seed).choice(len(images), FAKES, replace=False))]
