"""A flow through its seam to the coder: exact, as long as its own bound, alike whatever stands beside an image."""

import dataclasses
import re

import jax
import jax.numpy as jnp
import numpy as np
import pytest
from coded import state
from made_flow import NOISE, SHAPE, TINY, made_flow, made_pictures

from vdbjax.coding import layers, rans
from vdbjax.coding import local_bits_back as coding
from vdbjax.flow_codec import dequantized_flow, theoretical_bits
from vdbjax.flow_recipes import CIFAR10
from vdbjax.flows.bijection import Condition

BATCH = 8
PRECISION = coding.Precision(sigma=2.0**-12, delta=2.0**-20)
CONFIGS = {
    "uniform noise": TINY,
    "everything": dataclasses.replace(
        TINY,
        layers=("columns", "depth", "channels"),
        attention=True,
        pointwise=False,
        weight_norm=True,
        last_nonlinearity=True,
        dequantizer=NOISE,
    ),
    "affine": dataclasses.replace(TINY, mixtures=0, layers=("columns",)),
}


@pytest.fixture(scope="module", params=CONFIGS)
def joined(request):
    """(trained flow, the coder's flow)."""
    trained = made_flow(CONFIGS[request.param])
    return trained, dequantized_flow(trained.model, trained.params, batch_size=BATCH)


def message():
    return rans.random(lanes=256, words=12_000, seed=1)


def test_pixels_come_back_and_cost_the_bound_with_the_noise_drawn(joined):
    trained, flow = joined
    ideal = theoretical_bits(trained.model, trained.params, batch_size=BATCH)
    net = bound = 0.0
    for seed in range(2):
        pixels = made_pictures(BATCH, seed=seed).astype(np.int64)
        coded = message()
        before = coded.bits()
        noise = coding.encode_integers(coded, flow, pixels, PRECISION)
        net, bound = net + coded.bits() - before, bound + ideal(pixels, noise).sum()
        np.testing.assert_array_equal(coding.decode_integers(coded, flow, BATCH, PRECISION), pixels)
        assert state(coded) == state(message())
    assert (net - bound) / (2 * pixels.size) == pytest.approx(0.0, abs=0.005)


def test_fewer_images_than_a_batch_and_other_neighbours_change_nothing(joined):
    _, flow = joined
    pixels = made_pictures(BATCH).astype(np.int64)
    part = np.ascontiguousarray(pixels[:3])
    coded = message()
    coding.encode_integers(coded, flow, part, PRECISION)
    np.testing.assert_array_equal(coding.decode_integers(coded, flow, 3, PRECISION), part)
    coupling = first_coupling(flow)
    halves = np.random.default_rng(1).normal(size=(BATCH, *half_shape(joined)))
    given, alone = coupling.parameters(halves), coupling.parameters(halves[:3])
    np.testing.assert_array_equal(np.asarray(given)[:3], np.asarray(alone)[:3])
    np.testing.assert_array_equal(coupling.inverse(halves, given)[:3], coupling.inverse(halves[:3], alone))


def first_coupling(flow):
    return next(layer for layer in flow.flow.layers if isinstance(layer, layers.Coupling))


def half_shape(joined):
    """Of what the first coupling sees."""
    return {"columns": (8, 4, 3), "depth": (4, 2, 12)}[joined[0].config.layers[0]]


def test_the_scalar_maths_is_float64_the_network_float32_and_training_is_as_before(joined):
    trained, flow = joined
    coupling = first_coupling(flow)
    half = np.zeros((2, *half_shape(joined)))
    y, log_slope = coupling.forward(half, coupling.parameters(half))
    assert y.dtype == log_slope.dtype == np.float64
    assert jnp.zeros(2).dtype == jnp.float32  # 64 bits are off again
    layer = next(layer for layer in trained.model.flow.layers if hasattr(layer, "network"))
    own = trained.params["flow"][trained.model.flow.layers.index(layer)]
    with jax.enable_x64(True):
        traced = jax.make_jaxpr(lambda x: layer.network.apply({"params": own}, x))(half.astype(np.float32))
    assert not re.search(r"f64\[\d", str(traced))  # f64[] is the 0 that elu compares with


def test_a_network_in_float64_is_refused():
    trained = made_flow()
    layer = next(layer for layer in trained.model.flow.layers if hasattr(layer, "network"))
    own = trained.params["flow"][trained.model.flow.layers.index(layer)]
    doubling = layer._replace(network=_Doubling())
    with jax.enable_x64(True), pytest.raises(TypeError, match="computes in float64, not in float32"):
        doubling.parameters(own, jnp.zeros((2, 4, 2, 12)), Condition())


class _Doubling:
    def apply(self, variables, kept, features, **others):
        return kept * np.float64(2.0)


def codings(flow):
    """Codings a dimension, the prior's included."""
    costs = {layers.Elementwise: 2, layers.Linear: 2, layers.Coupling: 1, layers.Rearrangement: 0}
    return 1 + sum(costs[type(layer)] for layer in flow.layers)


def test_flow_of_cifar10_takes_45_codings_a_dimension():
    """97 in the reference code: a layer each. Of the same layers here, with smaller networks."""
    small = {"filters": 4, "blocks": 1, "heads": 2, "mixtures": 2}
    noise = dataclasses.replace(CIFAR10.dequantizer, blocks=1, context_filters=4, context_blocks=1)
    trained = made_flow(dataclasses.replace(CIFAR10, **small, dequantizer=noise), (32, 32, 3))
    flow = dequantized_flow(trained.model, trained.params, batch_size=1)
    assert codings(flow.flow) + codings(flow.dequantizer(np.zeros((1, 32, 32, 3), np.int64))) == 45


def test_neighbouring_maps_are_one():
    config = dataclasses.replace(TINY, layers=("columns", "columns"), pointwise=False)
    trained = made_flow(config)
    found = dequantized_flow(trained.model, trained.params, batch_size=1).flow.layers
    assert [type(layer).__name__ for layer in found] == [
        *("Rearrangement", "Elementwise", "Coupling", "Elementwise", "Coupling", "Rearrangement")
    ]


def test_parameters_that_are_not_finite_are_refused():
    trained = made_flow()
    broken = jax.tree.map(lambda leaf: np.full_like(leaf, np.nan), trained.params)
    with pytest.raises(ValueError, match="not all finite"):
        dequantized_flow(trained.model, broken, batch_size=2)


def test_more_images_than_a_batch_are_refused(joined):
    _, flow = joined
    with pytest.raises(ValueError, match=r"9 images at once are more than batch_size \(8\)"):
        coding.encode_integers(message(), flow, np.zeros((9, *SHAPE), np.int64), PRECISION)
