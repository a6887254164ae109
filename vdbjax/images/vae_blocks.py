"""Bottleneck residual blocks, stacks of equal ones, and what changes the resolution. VDVAE (Child 2020) section 3.

Parameters are dicts of arrays. Those of a stack lead with its blocks, whether it runs as a scan or block after block.
"""

import itertools
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


class Uniform(NamedTuple):
    """A parameter at its start: uniform within ± limit."""

    shape: tuple[int, ...]
    limit: float


def drawn(key: Key, plan: Any) -> Any:
    """The tree with its `Uniform` leaves drawn, all as one: a draw for each would take minutes to compile."""
    leaves, structure = jax.tree.flatten(plan, is_leaf=lambda leaf: isinstance(leaf, Uniform))
    sizes = [math.prod(leaf.shape) if isinstance(leaf, Uniform) else 0 for leaf in leaves]
    numbers = jax.random.uniform(key, (sum(sizes),), jnp.float32, -1.0, 1.0)
    ends = list(itertools.accumulate(sizes))
    values = [
        numbers[end - size : end].reshape(leaf.shape) * leaf.limit if isinstance(leaf, Uniform) else leaf
        for leaf, size, end in zip(leaves, sizes, ends, strict=True)
    ]
    return jax.tree.unflatten(structure, values)


def stacked(plan: Params, count: int) -> Params:
    """The plan of so many blocks."""
    return jax.tree.map(
        lambda leaf: Uniform((count, *leaf.shape), leaf.limit), plan, is_leaf=lambda leaf: isinstance(leaf, Uniform)
    )


def plan_convolution(window: int, inputs: int, outputs: int, *, scale: float = 1.0) -> Params:
    """Weights within ± scale / sqrt(fan in), as PyTorch draws them for a scale of 1; biases 0."""
    limit = scale / math.sqrt(window * window * inputs)
    return {"kernel": Uniform((window, window, inputs, outputs), limit), "bias": Uniform((outputs,), 0.0)}


def convolution(params: Params, x: Features, *, in_scan: bool = False) -> Features:
    """Of stride 1, the border padded with zeros."""
    kernel = params["kernel"]
    if kernel.shape[0] == 1:
        outputs = x @ kernel[0, 0]
    elif in_scan and jax.default_backend() == "cpu":
        outputs = _by_windows(kernel, x)
    else:
        outputs = jax.lax.conv_general_dilated(x, kernel, (1, 1), "SAME", dimension_numbers=("NHWC", "HWIO", "NHWC"))
    return outputs + params["bias"][None, None, None]


@jax.checkpoint  # windows are made again for the gradient: kept, they would be most of what a step takes of memory
def _by_windows(kernel: Array, x: Features) -> Features:
    """A convolution as one product with all windows: in a loop, XLA's own take several times as long on a CPU."""
    side, (height, width) = len(kernel), x.shape[1:3]
    before = (side - 1) // 2
    padded = jnp.pad(x, ((0, 0), (before, side - 1 - before), (before, side - 1 - before), (0, 0)))
    shifts = itertools.product(range(side), repeat=2)
    windows = jnp.concatenate([padded[:, i : i + height, j : j + width] for i, j in shifts], axis=-1)
    return windows @ kernel.reshape(-1, kernel.shape[-1])


class Block(NamedTuple):
    """Four convolutions, each after a GELU: to the bottleneck, two in it, and out of it."""

    inputs: int
    middle: int
    outputs: int
    resolution: int  # at 2 and below there is nothing around a pixel worth seeing: all windows are 1 x 1
    residual: bool = False
    last_scale: float = 1.0  # of the last weights at the start; sqrt(1 / blocks) keeps a deep stack's output in bounds
    in_scan: bool = False

    def plan(self) -> Params:
        """How its parameters start."""
        window = 3 if self.resolution > 2 else 1
        return {
            "enter": plan_convolution(1, self.inputs, self.middle),
            "first": plan_convolution(window, self.middle, self.middle),
            "second": plan_convolution(window, self.middle, self.middle),
            "leave": plan_convolution(1, self.middle, self.outputs, scale=self.last_scale),
        }

    def apply(self, params: Params, x: Features) -> Features:
        """The block's output; its input added where it is residual."""
        y = x
        for name in ("enter", "first", "second", "leave"):
            y = convolution(params[name], jax.nn.gelu(y, approximate=False), in_scan=self.in_scan)
        return x + y if self.residual else y


def run_stack(
    body: Callable[[Any, Any], tuple[Any, Any]], carry: Any, stack: Any, *, scan: bool, remat: bool
) -> tuple[Any, Any]:
    """As `lax.scan(body, carry, stack)`: carry after all of the stack, outputs stacked.

    With `scan` it is one, which compiles once for the whole stack. Without, the blocks are laid out one after the
    other, which runs faster on a CPU; the numbers are the same. With `remat` what a block computes is thrown away, and
    computed again for its gradient.
    """
    body = jax.checkpoint(body) if remat else body
    if scan:
        return jax.lax.scan(body, carry, stack)
    outputs = []
    for piece in _pieces(stack):
        carry, output = body(carry, piece)
        outputs.append(output)
    return carry, jax.tree.map(lambda *each: jnp.stack(each), *outputs)


def _pieces(stack: Any) -> list[Any]:
    leaves, structure = jax.tree.flatten(stack)
    return [jax.tree.unflatten(structure, each) for each in zip(*map(_apart, leaves), strict=True)]


def _apart(leaf: Array) -> list[Array]:
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
