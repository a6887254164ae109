"""Inception v3 up to its last pooling: the network of the Fréchet Inception distance, and torchvision's.

Szegedy et al. 2016, with the departures of the graph of 2015 that FID is defined by. Weights are those of the PyTorch
versions, by name: kernels [out, in, height, width] become [height, width, in, out].
"""

import functools
from collections.abc import Mapping
from typing import Any, Literal, NamedTuple

import flax.linen as nn
import jax
import jax.numpy as jnp
import numpy as np
from jaxtyping import Array, Float

SIDE, FEATURES = 299, 2_048
EPSILON = 1e-3

Variant = Literal["fid", "torchvision"]
"""fid: 3 x 3 averages leave the frame out, and the last block takes maxima. torchvision: the frame counts as zeros."""


class Layer(NamedTuple):
    """A convolution, with the name that its weights have in PyTorch."""

    name: str
    channels: int
    window: tuple[int, int] = (1, 1)
    stride: int = 1


class Block(NamedTuple):
    """Branches whose outputs are joined, in this order, then the pooled input."""

    name: str
    branches: tuple[tuple[Layer | tuple[Layer, ...], ...], ...]  # layers in a row; a tuple of them stands side by side
    pooled: Layer | None  # a convolution after pooling with stride 1; None: maxima with stride 2, and nothing after


def _block_a(name: str, pooled: int) -> Block:
    double = Layer("branch3x3dbl_1", 64), Layer("branch3x3dbl_2", 96, (3, 3)), Layer("branch3x3dbl_3", 96, (3, 3))
    wide = Layer("branch5x5_1", 48), Layer("branch5x5_2", 64, (5, 5))
    return Block(name, ((Layer("branch1x1", 64),), wide, double), Layer("branch_pool", pooled))


def _block_b(name: str) -> Block:
    double = Layer("branch3x3dbl_1", 64), Layer("branch3x3dbl_2", 96, (3, 3)), Layer("branch3x3dbl_3", 96, (3, 3), 2)
    return Block(name, ((Layer("branch3x3", 384, (3, 3), 2),), double), None)


def _block_c(name: str, inner: int) -> Block:
    single = (
        Layer("branch7x7_1", inner),
        Layer("branch7x7_2", inner, (1, 7)),
        Layer("branch7x7_3", 192, (7, 1)),
    )
    double = (
        Layer("branch7x7dbl_1", inner),
        Layer("branch7x7dbl_2", inner, (7, 1)),
        Layer("branch7x7dbl_3", inner, (1, 7)),
        Layer("branch7x7dbl_4", inner, (7, 1)),
        Layer("branch7x7dbl_5", 192, (1, 7)),
    )
    return Block(name, ((Layer("branch1x1", 192),), single, double), Layer("branch_pool", 192))


def _block_d(name: str) -> Block:
    long = (
        Layer("branch7x7x3_1", 192),
        Layer("branch7x7x3_2", 192, (1, 7)),
        Layer("branch7x7x3_3", 192, (7, 1)),
        Layer("branch7x7x3_4", 192, (3, 3), 2),
    )
    return Block(name, ((Layer("branch3x3_1", 192), Layer("branch3x3_2", 320, (3, 3), 2)), long), None)


def _block_e(name: str) -> Block:
    single = (
        Layer("branch3x3_1", 384),
        (Layer("branch3x3_2a", 384, (1, 3)), Layer("branch3x3_2b", 384, (3, 1))),
    )
    double = (
        Layer("branch3x3dbl_1", 448),
        Layer("branch3x3dbl_2", 384, (3, 3)),
        (Layer("branch3x3dbl_3a", 384, (1, 3)), Layer("branch3x3dbl_3b", 384, (3, 1))),
    )
    return Block(name, ((Layer("branch1x1", 320),), single, double), Layer("branch_pool", 192))


STEM = (
    (Layer("Conv2d_1a_3x3", 32, (3, 3), 2), "VALID"),
    (Layer("Conv2d_2a_3x3", 32, (3, 3)), "VALID"),
    (Layer("Conv2d_2b_3x3", 64, (3, 3)), "SAME"),
    "pool",
    (Layer("Conv2d_3b_1x1", 80), "VALID"),
    (Layer("Conv2d_4a_3x3", 192, (3, 3)), "VALID"),
    "pool",
)
BLOCKS = (
    *(_block_a("Mixed_5b", 32), _block_a("Mixed_5c", 64), _block_a("Mixed_5d", 64)),
    _block_b("Mixed_6a"),
    *(_block_c("Mixed_6b", 128), _block_c("Mixed_6c", 160), _block_c("Mixed_6d", 160), _block_c("Mixed_6e", 192)),
    _block_d("Mixed_7a"),
    *(_block_e("Mixed_7b"), _block_e("Mixed_7c")),
)


class Convolution(nn.Module):
    """Without bias, normalised by stored statistics, then ReLU; at full float32 precision on every device."""

    layer: Layer
    padding: str

    @nn.compact
    def __call__(self, inputs: Float[Array, "batch height width channels"]) -> Float[Array, "batch rows columns out"]:
        channels = (self.layer.channels,)
        draw, ones, zeros = nn.initializers.lecun_normal(), nn.initializers.ones, nn.initializers.zeros
        outputs = jax.lax.conv_general_dilated(
            inputs,
            self.param("kernel", draw, (*self.layer.window, inputs.shape[-1], *channels)),
            (self.layer.stride, self.layer.stride),
            self.padding,
            dimension_numbers=("NHWC", "HWIO", "NHWC"),
            precision=jax.lax.Precision.HIGHEST,
        )
        scale, offset = self.param("scale", ones, channels), self.param("offset", zeros, channels)
        mean, variance = self.param("mean", zeros, channels), self.param("variance", ones, channels)
        slope = scale * jax.lax.rsqrt(variance + EPSILON)
        return nn.relu(outputs * slope.reshape(1, 1, 1, -1) + (offset - mean * slope).reshape(1, 1, 1, -1))


class Mixed(nn.Module):
    """One block. What keeps the size is framed by zeros, what halves it is not."""

    block: Block
    pooling: Literal["average", "framed average", "maximum"]

    @nn.compact
    def __call__(self, inputs: Float[Array, "batch height width channels"]) -> Float[Array, "batch rows columns out"]:
        outputs = []
        for branch in self.block.branches:
            found = [inputs]
            for step in branch:
                layers = (step,) if isinstance(step, Layer) else step
                (before,) = found
                found = [self._convolved(before, layer) for layer in layers]
            outputs += found
        pooled = self.block.pooled
        if pooled is None:
            outputs.append(nn.max_pool(inputs, (3, 3), (2, 2), "VALID"))
        else:
            outputs.append(self._convolved(self._pool(inputs), pooled))
        return jnp.concatenate(outputs, axis=-1)

    def _convolved(self, inputs: Array, layer: Layer) -> Array:
        return Convolution(layer, "SAME" if layer.stride == 1 else "VALID", name=layer.name)(inputs)

    def _pool(self, inputs: Array) -> Array:
        if self.pooling == "maximum":
            return nn.max_pool(inputs, (3, 3), (1, 1), "SAME")
        return nn.avg_pool(inputs, (3, 3), (1, 1), "SAME", count_include_pad=self.pooling == "framed average")


class Inception(nn.Module):
    """Images of 299 x 299, in about [-1, 1], to 2,048 features: the means over the last block's 8 x 8 places."""

    variant: Variant

    @nn.compact
    def __call__(self, images: Float[Array, "batch height width 3"]) -> Float[Array, "batch features"]:
        hidden = images
        for step in STEM:
            if isinstance(step, str):
                hidden = nn.max_pool(hidden, (3, 3), (2, 2), "VALID")
            else:
                layer, padding = step
                hidden = Convolution(layer, padding, name=layer.name)(hidden)
        for block in BLOCKS:
            fid = "maximum" if block.name == "Mixed_7c" else "average"
            pooling: Any = fid if self.variant == "fid" else "framed average"
            hidden = Mixed(block, pooling, name=block.name)(hidden)
        return hidden.mean(axis=(1, 2))


NAMES = {
    "kernel": "conv.weight",
    "scale": "bn.weight",
    "offset": "bn.bias",
    "mean": "bn.running_mean",
    "variance": "bn.running_var",
}
"""Ours -> PyTorch's, after the layer's."""


@functools.cache
def shapes() -> Any:
    """The tree of parameters, as shapes."""
    images = jax.ShapeDtypeStruct((1, SIDE, SIDE, 3), np.float32)
    return jax.eval_shape(Inception("fid").init, jax.random.key(0), images)["params"]


def params_of(weights: Mapping[str, np.ndarray]) -> Any:
    """The parameters of either variant from a PyTorch state dict; what it holds besides (the classes) is not used.

    Raises ValueError for a weight that is missing or of another shape.
    """

    def taken(path: tuple[Any, ...], like: jax.ShapeDtypeStruct) -> np.ndarray:
        *places, kind = (entry.key for entry in path)
        name = ".".join([*places, NAMES[kind]])
        if name not in weights:
            raise ValueError(f"no weights of Inception v3: {name} is missing")
        found = weights[name].transpose(2, 3, 1, 0) if kind == "kernel" else weights[name]
        if found.shape != like.shape:
            raise ValueError(f"no weights of Inception v3: {name} has shape {found.shape}, not {like.shape}")
        return found.astype(np.float32)

    return jax.tree_util.tree_map_with_path(taken, shapes())
