"""Bottleneck residual blocks, stacks of equal ones, and what changes the resolution. VDVAE (Child 2020) section 3.

Parameters are dicts of arrays. Those of a stack lead with its blocks, whether it runs as a scan or block after block.
"""

import math
from collections.abc import Callable
from typing import Any, NamedTuple

import jax
import jax.numpy as jnp
from jaxtyping import Array, Float

from vdbjax.types import Key

Features = Float[Array, "batch _ _ _"]
"""[batch, height, width, channels]."""
Params = dict[str, Any]


def init_convolution(key: Key, window: int, inputs: int, outputs: int, *, scale: float = 1.0) -> Params:
    """Weights uniform within ± scale / sqrt(fan in), as PyTorch draws them for a scale of 1; biases 0."""
    limit = scale / math.sqrt(window * window * inputs)
    kernel = jax.random.uniform(key, (window, window, inputs, outputs), jnp.float32, -limit, limit)
    return {"kernel": kernel, "bias": jnp.zeros(outputs)}


def convolution(params: Params, x: Features) -> Features:
    """Of stride 1, the border padded with zeros."""
    kernel = params["kernel"]
    if kernel.shape[0] == 1:
        outputs = x @ kernel[0, 0]
    else:
        outputs = jax.lax.conv_general_dilated(x, kernel, (1, 1), "SAME", dimension_numbers=("NHWC", "HWIO", "NHWC"))
    return outputs + params["bias"][None, None, None]


class Block(NamedTuple):
    """Four convolutions, each after a GELU: to the bottleneck, two in it, and out of it."""

    inputs: int
    middle: int
    outputs: int
    resolution: int  # at 2 and below there is nothing around a pixel worth seeing: all windows are 1 x 1
    residual: bool = False
    last_scale: float = 1.0  # of the last weights at the start; sqrt(1 / blocks) keeps a deep stack's output in bounds

    def init(self, key: Key) -> Params:
        """First parameters."""
        enter, first, second, leave = jax.random.split(key, 4)
        window = 3 if self.resolution > 2 else 1
        return {
            "enter": init_convolution(enter, 1, self.inputs, self.middle),
            "first": init_convolution(first, window, self.middle, self.middle),
            "second": init_convolution(second, window, self.middle, self.middle),
            "leave": init_convolution(leave, 1, self.middle, self.outputs, scale=self.last_scale),
        }

    def apply(self, params: Params, x: Features) -> Features:
        """The block's output; its input added where it is residual."""
        y = x
        for name in ("enter", "first", "second", "leave"):
            y = convolution(params[name], jax.nn.gelu(y, approximate=False))
        return x + y if self.residual else y


def init_stack(init: Callable[[Key], Params], key: Key, count: int) -> Params:
    """The parameters of so many blocks, stacked; each drawn anew."""
    return jax.vmap(init)(jax.random.split(key, count))


def run_stack(
    body: Callable[[Any, Any], tuple[Any, Any]], carry: Any, stacked: Any, *, scan: bool, remat: bool
) -> tuple[Any, Any]:
    """As `lax.scan(body, carry, stacked)`: carry after all of the stack, outputs stacked.

    With `scan` it is one: it compiles once for the whole stack, but XLA's CPU convolutions take ten times as long in
    it. Without, the blocks are laid out one after the other; the numbers are the same. With `remat` what a block
    computes is thrown away, and computed again for its gradient.
    """
    body = jax.checkpoint(body) if remat else body
    if scan:
        return jax.lax.scan(body, carry, stacked)
    outputs = []
    for piece in _pieces(stacked):
        carry, output = body(carry, piece)
        outputs.append(output)
    return carry, jax.tree.map(lambda *each: jnp.stack(each), *outputs)


def _pieces(stacked: Any) -> list[Any]:
    leaves, structure = jax.tree.flatten(stacked)
    return [jax.tree.unflatten(structure, each) for each in zip(*map(_apart, leaves), strict=True)]


def _apart(leaf: Array) -> list[Array]:
    if jnp.issubdtype(leaf.dtype, jax.dtypes.prng_key):
        return list(leaf)
    # Split, whose gradient is one concatenation; that of indexing is a sum of as many whole stacks.
    return [piece[0] for piece in jnp.split(leaf, len(leaf))]


def pooled(x: Features, factor: int) -> Features:
    """Each factor x factor square averaged."""
    batch, height, width, channels = x.shape
    squares = x.reshape(batch, height // factor, factor, width // factor, factor, channels)
    return squares.mean(axis=(2, 4))


def upsampled(x: Features, factor: int) -> Features:
    """Each pixel repeated over a factor x factor square."""
    return jnp.repeat(jnp.repeat(x, factor, axis=1), factor, axis=2)
