"""A trained flow as the coder takes it: plain functions of NumPy's float64 arrays, compiled once for one batch shape.

Sender and receiver run the same executables on arrays of the same shape, so that the same bits give the same bits:
fewer images than a batch are filled up with zeros, and no row of a result depends on the others. The networks run in
float32 at `highest` matmul precision, the flow's scalar maths in float64, which is enabled for these calls alone.

The coder pays for as few layers as the flow allows: an actnorm and the 1x1 convolution after it are one linear layer,
and maps of single elements that follow one another are one map.
"""

import itertools
from collections.abc import Callable, Sequence
from functools import partial
from typing import Any

import jax
import jax.numpy as jnp
import numpy as np
from jaxtyping import Float, Int

from vdbjax.coding import layers as coding
from vdbjax.fixed_batch import as_pixels, filled
from vdbjax.flows import flowpp
from vdbjax.flows.bijection import Condition, Rearrangement
from vdbjax.flows.coupling import Coupling, Pointwise
from vdbjax.flows.dequantization import Uniform, log_normal
from vdbjax.flows.elementwise import Actnorm, Elementwise

Pixels = Int[np.ndarray, "batch height width channels"]
Layers = Callable[[Any], list[coding.Layer]]
"""The coder's layers, given the features that couplings see besides the kept half; None: they see none."""


def dequantized_flow(model: flowpp.Model, params: Any, *, batch_size: int) -> coding.DequantizedFlow:
    """The model for `local_bits_back`, which may show it up to `batch_size` images at once.

    Raises ValueError for parameters that are not finite, and for a 1x1 convolution without an inverse.
    """
    if not all(np.isfinite(leaf).all() for leaf in jax.tree.leaves(jax.device_get(params))):
        raise ValueError("the model's parameters are not all finite: it cannot code images")
    params = jax.tree.map(jnp.asarray, params)
    flow = coding.Flow(_layers(model.flow.layers, params["flow"], batch_size)(None), model.latent_shape)
    if isinstance(model.dequantizer, Uniform):
        return coding.DequantizedFlow(flow, None)
    own, seen = params["dequantizer"], jax.jit(model.dequantizer.features)
    noise = _layers(model.dequantizer.flow.layers, own["flow"], batch_size, inverted=True)

    def dequantizer(values: Pixels) -> coding.Flow:
        """From u to the Gaussian that it is drawn from: the flow of the noise, backwards."""
        features = _call(seen, batch_size, own, as_pixels(values))
        return coding.Flow(noise(features), model.image_shape)

    return coding.DequantizedFlow(flow, dequantizer)


def theoretical_bits(
    model: flowpp.Model, params: Any, *, batch_size: int
) -> Callable[[Pixels, Float[np.ndarray, "batch height width channels"]], Float[np.ndarray, " batch"]]:
    """(x, u) -> -log2 p(x + u) / q(u | x) of each image: eq. 3.9 for the very noise that was drawn."""
    params = jax.tree.map(jnp.asarray, params)

    @jax.jit
    def bound(params: Any, images: Any, noise: Any) -> Any:
        z, log_det = model.flow.forward(params["flow"], images + noise, Condition())
        if isinstance(model.dequantizer, Uniform):
            return log_normal(z) + log_det
        flow, own = model.dequantizer.flow, params["dequantizer"]
        condition = Condition(model.dequantizer.features(own, images))
        epsilon = flow.inverse(own["flow"], noise, condition)
        log_q = log_normal(epsilon) - flow.forward(own["flow"], epsilon, condition)[1]
        return log_normal(z) + log_det - log_q

    def bits(images: Pixels, noise: Any) -> Any:
        found = _call(bound, batch_size, params, as_pixels(images), noise)
        return -_rows(found, len(images)) / np.log(2.0)

    return bits


def _layers(layers: Sequence[Any], params: Sequence[Any], batch_size: int, *, inverted: bool = False) -> Layers:
    """In the coder's terms, from the first layer to the last, or from the last one's inverse to the first's."""
    made = _fused(_translated(_maps_late(zip(layers, params)), batch_size))
    if inverted:
        made = [_inverted(layer) for layer in reversed(made)]
    return lambda features: [layer(features) if callable(layer) else layer for layer in made]


def _inverted(layer: Any) -> Any:
    return (lambda features: coding.inverted(layer(features))) if callable(layer) else coding.inverted(layer)


def _maps_late(layers: Any) -> list[tuple[Any, Any]]:
    """Layers with their parameters, maps of every element alike moved behind rearrangements: next to what they fuse
    with."""
    moved = list(layers)
    for place in range(len(moved) - 1):
        if isinstance(moved[place][0], Elementwise) and isinstance(moved[place + 1][0], Rearrangement):
            moved[place : place + 2] = reversed(moved[place : place + 2])
    return moved


def _translated(layers: list[tuple[Any, Any]], batch_size: int) -> list[Any]:
    """The coder's layers; a coupling's waits for the features."""
    made: list[Any] = []
    for before, (layer, own) in itertools.pairwise([(None, None), *layers]):
        match layer:
            case Rearrangement():
                made.append(coding.Rearrangement(_contiguous(layer.move), _contiguous(layer.move_back)))
            case Elementwise():
                made.append(_elementwise(layer, batch_size))
            case Actnorm():
                made.append(_scaling(*_on_host(layer.scale_and_bias, own)))
            case Pointwise() if isinstance(before[0], Actnorm):
                matrix, offset, _ = _on_host(layer.triple, own)
                made[-1] = _linear(matrix, offset, *_on_host(before[0].scale_and_bias, before[1]))
            case Coupling():
                made.append(partial(_coupling, layer, own, batch_size))
            case _:
                raise TypeError(f"the coder knows no layer of type {type(layer).__name__} here")
    return made


def _fused(layers: list[Any]) -> list[Any]:
    """With maps that follow one another made one."""
    groups = itertools.groupby(layers, lambda layer: isinstance(layer, coding.Elementwise))
    fused = [[coding.fuse(*group)] if maps else list(group) for maps, group in groups]
    return list(itertools.chain.from_iterable(fused))


def _contiguous(move: Callable[[Any], Any]) -> Callable[[Any], Any]:
    return lambda x: np.ascontiguousarray(move(x))


def _elementwise(layer: Elementwise, batch_size: int) -> coding.Elementwise:
    apply, invert = jax.jit(layer.apply), jax.jit(layer.invert)
    return coding.Elementwise(
        lambda x: _both_rows(_call(apply, batch_size, x), len(x)),
        lambda y: _rows(_call(invert, batch_size, y), len(y)),
    )


def _scaling(scale: np.ndarray, bias: np.ndarray) -> coding.Elementwise:
    log_slope = np.log(scale)
    return coding.Elementwise(
        lambda x: (x * scale + bias, np.broadcast_to(log_slope, x.shape)), lambda y: (y - bias) / scale
    )


def _linear(matrix: Any, offset: Any, scale: Any, bias: Any) -> coding.Linear:
    """matrix (scale x + bias) + offset."""
    return coding.linear(matrix * scale[..., None, :], np.sum(matrix * bias[..., None, :], axis=-1) + offset)


def _coupling(layer: Coupling, own: Any, batch_size: int, features: Any) -> coding.Coupling:
    def parameters(kept: Any) -> Any:
        """Left where they were computed."""
        either_half = layer._replace(kept=0)  # the network is the same: one executable
        return _call(_parameters, batch_size, either_half, own, kept, features)

    def forward(x: Any, given: Any) -> Any:
        return _both_rows(_call(_forward, batch_size, layer.transform, x, given), len(x))

    def inverse(y: Any, given: Any) -> Any:
        return _rows(_call(_inverse, batch_size, layer.transform, y, given), len(y))

    return coding.Coupling(layer.split, layer.join, parameters, forward, inverse)


@partial(jax.jit, static_argnums=0)
def _parameters(layer: Coupling, own: Any, kept: Any, features: Any) -> Any:
    return layer.parameters(own, kept, Condition(features))


@partial(jax.jit, static_argnums=0)
def _forward(transform: Any, x: Any, parameters: Any) -> Any:
    return transform.forward(x, parameters)


@partial(jax.jit, static_argnums=0)
def _inverse(transform: Any, y: Any, parameters: Any) -> Any:
    return transform.inverse(y, parameters)


def _call(compiled: Callable[..., Any], batch_size: int, *arguments: Any) -> Any:
    """The result for a whole batch, as JAX's arrays; NumPy's arrays among the arguments are filled up with zeros."""
    with jax.enable_x64(True), jax.default_matmul_precision("highest"):
        return compiled(*(filled(each, batch_size) if isinstance(each, np.ndarray) else each for each in arguments))


def _rows(found: Any, count: int) -> np.ndarray:
    return np.asarray(found)[:count]


def _both_rows(found: tuple[Any, Any], count: int) -> tuple[np.ndarray, np.ndarray]:
    return _rows(found[0], count), _rows(found[1], count)


def _on_host(function: Callable[..., Any], own: Any) -> tuple[np.ndarray, ...]:
    with jax.enable_x64(True):
        return tuple(np.asarray(each, np.float64) for each in function(own, np.float64))
