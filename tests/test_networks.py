"""Networks against NumPy by hand: forward passes, initial weights, and the two halves of the critic."""

import jax
import jax.numpy as jnp
import numpy as np
import pytest

from vdbjax.networks import Critic, GaussianActor, StochasticEncoder, Trunk, Value

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
