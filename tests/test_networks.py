"""Networks against NumPy by hand: forward passes, initial weights, and the two halves of the critic."""

import jax
import jax.numpy as jnp
import numpy as np
import pytest

from vdbjax.networks import (
    Critic,
    Dense,
    GaussianActor,
    StochasticEncoder,
    Trunk,
    Value,
    phase_blend,
)

INPUTS = jax.random.normal(jax.random.key(0), (7, 5))

# Each: the network, and the shapes of what it gives for one input.
NETWORKS = {
    "actor": (GaussianActor((8, 6), 2, 0.6), [(2,), (2,)]),
    "value": (Value((8, 6)), [()]),
    "encoder": (StochasticEncoder((8, 6), 3), [(3,), (3,)]),
    "critic": (Critic((8, 6), None), [()]),
    "bottlenecked critic": (Critic((8, 6), 3), [()]),
}


@pytest.fixture(scope="module", params=NETWORKS.values(), ids=NETWORKS.keys())
def network(request):
    """(network, shapes, parameters)"""
    made, shapes = request.param
    return made, shapes, made.init(jax.random.key(1), jnp.zeros(5))


@pytest.mark.parametrize("batch", [(), (7,), (2, 7)])
def test_every_network_takes_any_batch_and_judges_each_row_alone(network, batch):
    made, shapes, params = network
    inputs = jnp.broadcast_to(INPUTS, (2, 7, 5)).reshape(-1, 5)[: int(np.prod(batch))].reshape(*batch, 5)
    results = jax.tree.leaves(made.apply(params, inputs))
    assert [leaf.shape for leaf in results] == [(*batch, *shape) for shape in shapes]
    for leaf, alone in zip(results, jax.tree.leaves(made.apply(params, INPUTS[0])), strict=True):
        np.testing.assert_allclose(leaf.reshape(-1, *alone.shape)[0], alone, rtol=1e-5, atol=1e-5)


def test_weights_start_orthogonal_and_biases_zero(network):
    """Every kernel W has W'W or WW' a multiple of the identity; which multiple is the gain squared."""
    for path, leaf in jax.tree_util.tree_leaves_with_path(network[2]):
        name = jax.tree_util.keystr(path)
        if "bias" in name:
            np.testing.assert_array_equal(leaf, 0.0)
        if "kernel" in name:
            gram = leaf @ leaf.T if leaf.shape[0] < leaf.shape[1] else leaf.T @ leaf
            np.testing.assert_allclose(
                gram, gram[0, 0] * np.eye(len(gram)), atol=1e-4 * float(gram[0, 0]), err_msg=name
            )


def test_a_trunk_is_tanh_layers_by_hand():
    trunk = Trunk((8, 6))
    params = jax.tree.map(lambda leaf: leaf + 0.1, trunk.init(jax.random.key(2), jnp.zeros(5)))
    hidden = np.asarray(INPUTS)
    for layer in ("Dense_0", "Dense_1"):
        weights = params["params"][layer]
        hidden = np.tanh(hidden @ np.asarray(weights["kernel"]) + np.asarray(weights["bias"]))
    np.testing.assert_allclose(trunk.apply(params, INPUTS), hidden, rtol=1e-4, atol=1e-5)


def test_the_actor_starts_near_zero_with_its_deviation():
    actor = GaussianActor((64, 64), 3, 0.6)
    mean, std = actor.apply(actor.init(jax.random.key(3), jnp.zeros(5)), INPUTS)
    assert float(jnp.max(jnp.abs(mean))) < 0.1
    np.testing.assert_allclose(std, 0.6, rtol=1e-6)


def test_the_deviation_of_the_actor_is_learnt():
    actor = GaussianActor((8,), 1, 0.6)
    params = actor.init(jax.random.key(4), jnp.zeros(5))
    gradient = jax.grad(lambda params: jnp.sum(actor.apply(params, INPUTS)[1]))(params)
    assert float(gradient["params"]["log_std"][0]) == pytest.approx(7 * 0.6)


@pytest.mark.parametrize("latent_size", [None, 3])
def test_the_critic_is_its_two_halves_at_the_mean(latent_size):
    critic = Critic((8, 6), latent_size)
    params = critic.init(jax.random.key(5), jnp.zeros(5))
    mean, std = critic.apply(params, INPUTS, method="encode")
    logits = critic.apply(params, mean, method="decide")
    np.testing.assert_allclose(critic.apply(params, INPUTS), logits, rtol=1e-6)
    if latent_size is None:
        np.testing.assert_array_equal(std, 0.0)
    else:
        assert np.all(std > 0.0)
    head = params["params"]["head"]
    by_hand = np.asarray(mean) @ np.asarray(head["kernel"])[:, 0] + np.asarray(head["bias"])
    np.testing.assert_allclose(logits, by_hand, rtol=1e-4, atol=1e-5)


@pytest.mark.parametrize("shift", [-1e6, 1e6])
def test_the_encoders_deviation_stays_usable_whatever_its_weights(shift):
    encoder = StochasticEncoder((8,), 3)
    params = jax.tree.map(lambda leaf: leaf + shift, encoder.init(jax.random.key(6), jnp.zeros(5)))
    _, std = encoder.apply(params, INPUTS)
    assert np.all(np.isfinite(std**2))
    assert np.all(np.isfinite(1.0 / std**2))
    assert np.all(np.isfinite(np.log(std)))


SETS = 5


def blend_at(turns):
    """The blend at a phase in cycles."""
    angle = 2 * np.pi * np.atleast_1d(turns)
    return phase_blend(jnp.stack([jnp.cos(angle), jnp.sin(angle)], axis=-1), num_sets=SETS)


def test_a_blend_goes_linearly_from_set_to_set_and_from_the_last_to_the_first():
    np.testing.assert_allclose(blend_at(np.arange(SETS) / SETS), np.eye(SETS), atol=1e-5)
    np.testing.assert_allclose(blend_at(1.0)[0], np.eye(SETS)[0], atol=1e-5)
    between = blend_at([0.3 / SETS, 2.75 / SETS, 4.4 / SETS])
    expected = [[0.7, 0.3, 0, 0, 0], [0, 0, 0.25, 0.75, 0], [0.4, 0, 0, 0, 0.6]]
    np.testing.assert_allclose(between, expected, atol=1e-5)


@pytest.fixture(scope="module")
def phase_functioned():
    """(layer, parameters with biases, outputs of each set's plain layer [sets, rows, outputs])"""
    layer = Dense(3, 1.0)
    params = layer.init(jax.random.key(7), INPUTS, jnp.zeros((7, SETS)))
    params["params"]["bias"] = jax.random.normal(jax.random.key(8), (SETS, 3))
    alone = [layer.apply(jax.tree.map(lambda leaf, i=i: leaf[i], params), INPUTS) for i in range(SETS)]
    return layer, params, np.stack(alone)


def test_a_phase_functioned_layer_is_a_sets_plain_layer_at_that_sets_phase(phase_functioned):
    layer, params, alone = phase_functioned
    for row in range(SETS):
        blend = jnp.broadcast_to(jnp.eye(SETS)[row], (7, SETS))
        np.testing.assert_allclose(layer.apply(params, INPUTS, blend), alone[row], rtol=1e-4, atol=1e-5)


def test_a_phase_functioned_layer_goes_linearly_between_its_sets(phase_functioned):
    """Each row at a phase of its own, the last between the last set and the first."""
    layer, params, alone = phase_functioned
    turns = np.array([0.1, 0.5, 1.2, 2.5, 3.9, 4.25, 4.8]) / SETS
    found = layer.apply(params, INPUTS, blend_at(turns))
    for row, place in enumerate(turns * SETS):
        low, share = int(place), place % 1
        expected = (1 - share) * alone[low, row] + share * alone[(low + 1) % SETS, row]
        np.testing.assert_allclose(found[row], expected, rtol=1e-3, atol=1e-4)


def test_policies_lean_and_take_a_deviation():
    """Each of many seeds its own; a deviation also all the same, or one policy alone."""
    network = GaussianActor((8,), 2, 0.6)
    key = jax.random.key(2)
    params = jax.vmap(lambda key: network.init(key, INPUTS[0]))(jax.random.split(key, 3))
    act = jax.vmap(network.apply, (0, None))
    deviation = np.array([0.5, 0.0, 2.0])
    expected = deviation[:, None] * np.asarray(jax.random.normal(key, (3, 2)))
    shift = act(network.leaning(params, key, deviation), INPUTS)[0] - act(params, INPUTS)[0]
    np.testing.assert_allclose(shift, np.broadcast_to(expected[:, None], shift.shape), atol=1e-6)
    own = np.array([0.1, 0.4, 1.0])
    std = act(network.with_std(params, own), INPUTS)[1]
    np.testing.assert_allclose(std, np.broadcast_to(own[:, None, None], std.shape), rtol=1e-6)
    np.testing.assert_allclose(act(network.with_std(params, 0.1), INPUTS)[1], 0.1, rtol=1e-6)
    alone = jax.tree.map(lambda leaf: leaf[0], params)
    np.testing.assert_allclose(network.apply(network.with_std(alone, 0.1), INPUTS)[1], 0.1, rtol=1e-6)
