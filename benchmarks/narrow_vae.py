"""Hierarchical VAEs that train in minutes on one core, by the size of their images."""

from collections.abc import Iterable
from typing import Any

LAYERS: dict[int, dict[str, Any]] = {
    14: {"resolutions": (1, 7, 14), "layers": (1, 2, 2), "encoder-blocks": (1, 1, 1)},
    32: {"resolutions": (1, 4, 8, 16, 32), "layers": (1, 1, 2, 2, 1), "encoder-blocks": (1, 1, 1, 1, 1)},
}
"""Side of the images -> where their layers lie."""

DEEP: dict[int, dict[str, Any]] = {
    14: {"resolutions": (1, 7, 14), "layers": (2, 10, 16), "encoder-blocks": (2, 10, 16)},
}
"""The same with 28 layers, of the 48 that the full-sized ones have."""

WIDTHS: dict[str, Any] = {"width": 16, "bottleneck-width": 8, "latents": 4, "batch-size": 16, "dual-step-size": 2e-3}


def narrow(size: int, *, deep: bool = False) -> tuple[str, ...]:
    """Options of `python -m vdbjax.train vdvae-small` for images of such a side. Raises ValueError for other sides."""
    layers = DEEP if deep else LAYERS
    if size not in layers:
        raise ValueError(f"size ({size}) must be one of {', '.join(map(str, layers))}")
    settings = {"size": size, **layers[size], **WIDTHS}
    return tuple(word for name, value in settings.items() for word in (f"--{name}", *_words(value)))


def _words(value: object) -> list[str]:
    return [str(part) for part in (value if isinstance(value, Iterable) else (value,))]
