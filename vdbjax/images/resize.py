"""Images brought to another size, as the tools do whose numbers ours are compared with; nothing is rounded."""

import jax
import jax.numpy as jnp
import numpy as np
from jaxtyping import Array, Float

Images = Float[Array, "batch height width channels"]
Resized = Float[Array, "batch rows columns channels"]


def tf1_bilinear(images: Images, size: int) -> Resized:
    """TensorFlow 1's `ResizeBilinear`: output i lies at i * (old / new), half a pixel off the centres.

    y_i = (1 - w) x_l + w x_(l + 1), l = floor(i old / new), w the rest; beyond the edge the last pixel. Not
    antialiased.
    """
    rows, columns = (jnp.asarray(_tf1_weights(old, size)) for old in images.shape[1:3])
    return jnp.einsum("ah,nhwc,bw->nabc", rows, images, columns, precision=jax.lax.Precision.HIGHEST)


def _tf1_weights(old: int, new: int) -> Float[np.ndarray, "new old"]:
    place = np.arange(new) * (old / new)
    low = np.minimum(place.astype(int), old - 1)
    weights = np.zeros((new, old), np.float32)
    np.add.at(weights, (np.arange(new), low), 1.0 - (place - low))
    np.add.at(weights, (np.arange(new), np.minimum(low + 1, old - 1)), place - low)
    return weights


def bilinear(images: Images, size: int) -> Resized:
    """PyTorch's `interpolate(mode="bilinear", align_corners=False)`: output i lies at (i + 1/2) old / new - 1/2.

    Not antialiased.
    """
    return _resized(images, size, "linear", antialias=False)


def bicubic(images: Images, size: int) -> Resized:
    """Pillow's `BICUBIC` of float images, antialiased, clipped to [0, 255]."""
    return jnp.clip(_resized(images, size, "cubic", antialias=True), 0.0, 255.0)


def _resized(images: Images, size: int, method: str, *, antialias: bool) -> Resized:
    shape = (images.shape[0], size, size, images.shape[3])
    return jax.image.resize(images, shape, method, antialias=antialias, precision=jax.lax.Precision.HIGHEST)
