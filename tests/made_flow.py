"""Small flows with parameters that no training and no compiled initialisation made."""

import dataclasses

import jax
import jax.numpy as jnp
import numpy as np

from vdbjax.embedded_model import ImageModel
from vdbjax.flows import flowpp
from vdbjax.flows.flowpp import Config, DequantizerConfig

NOISE = DequantizerConfig(couplings=2, blocks=1, context_filters=4, context_blocks=1)
TINY = Config(
    layers=("depth", "columns", "columns", "channels"),
    filters=4,
    blocks=1,
    heads=2,
    mixtures=2,
    attention=False,
    dropout=0.0,
    dequantizer=dataclasses.replace(NOISE, kind="uniform"),
)
SHAPE = (8, 8, 3)


def made_flow(
    config: Config = TINY,
    shape: tuple[int, int, int] = SHAPE,
    seed: int = 0,
    *,
    scale: float = 0.7,
    spread: float = 0.1,
) -> ImageModel:
    """A flow whose layers all do something, and whose latents stay within a few standard deviations."""
    draw = np.random.default_rng(seed)
    model = flowpp.build_model(config, shape)
    like = jax.eval_shape(model.init, jax.random.key(0), jax.ShapeDtypeStruct((2, *shape), np.uint8))

    def filled(path, leaf):
        name = path[-1].key
        centre = {"matrix": np.eye(leaf.shape[-1]), "scale": scale, "gain": 0.3}.get(name, 0.0)
        return jnp.asarray(centre + spread * draw.normal(size=leaf.shape), jnp.float32)

    return ImageModel(config, model, jax.tree_util.tree_map_with_path(filled, like))


def fitting_flow(seed: int = 0) -> ImageModel:
    """One that `made_pictures` cost less than 8 bits a dimension."""
    return made_flow(seed=seed, scale=1.4, spread=0.05)


def made_pictures(count: int, shape: tuple[int, int, int] = SHAPE, seed: int = 0) -> np.ndarray:
    """Pixels [count, *shape] uint8, brighter to one side."""
    draw = np.random.default_rng(seed)
    slope = np.linspace(110, 146, shape[1])[None, None, :, None]
    return np.clip(slope + draw.normal(0, 12, size=(count, *shape)), 0, 255).astype(np.uint8)
