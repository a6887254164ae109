"""A small VAE with parameters that no training made."""

import math

import jax
import numpy as np

from vdbjax.embedded_model import ImageModel
from vdbjax.images import vdvae

CONFIG = vdvae.Config(
    resolutions=(1, 8), layers=(1, 2), encoder_blocks=(1, 2), width=8, bottleneck_width=4, latents=2, scan=False
)
LOG_STD = math.log(0.04)  # of pixels in [0, 1]: ten grey levels, so that no pixel of images about 128 is an escape


def made_vae(channels: int = 1, seed: int = 0) -> ImageModel:
    """Of images 8 x 8, with noise on all parameters; its means are about 128."""
    model, draw = vdvae.build_model(CONFIG, (8, 8, channels)), np.random.default_rng(seed)
    shapes = jax.eval_shape(model.init, jax.random.key(0), jax.ShapeDtypeStruct((2, 8, 8, channels), np.uint8))
    params = jax.tree.map(lambda leaf: np.float32(0.15 * draw.normal(size=leaf.shape)), shapes)
    params["head"] = jax.tree.map(lambda leaf: 0.1 * leaf, params["head"])
    params["log_variance"] = np.float32(2 * LOG_STD)
    return ImageModel(CONFIG, model, params)
