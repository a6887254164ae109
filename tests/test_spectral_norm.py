"""Spectral normalisation against the singular values, and its gradient against theirs."""

import jax
import jax.numpy as jnp
import numpy as np
import pytest

from vdbjax.adversarial.spectral_norm import first_vectors, normalized


@pytest.fixture(scope="module")
def layers():
    draw = np.random.default_rng(0)
    kernel = jnp.asarray(draw.normal(size=(3, 3, 4, 5)), jnp.float32)
    return {"conv": {"kernel": kernel, "bias": jnp.ones(5)}, "embedding": 3.0 * jnp.ones((2, 2))}


@pytest.fixture(scope="module")
def settled(layers):
    """The vectors after many steps of the power method."""
    vectors = first_vectors(jax.random.key(0), layers)
    step = jax.jit(lambda vectors: normalized(layers, vectors)[1])
    for _ in range(200):
        vectors = step(vectors)
    return vectors


def test_the_largest_singular_value_becomes_1(layers, settled):
    found, _ = normalized(layers, settled)
    values = np.linalg.svd(np.asarray(found["conv"]["kernel"]).reshape(-1, 5), compute_uv=False)
    assert values[0] == pytest.approx(1.0, abs=1e-4)
    assert values[1] < 1.0


def test_biases_and_tables_keep_their_size(layers, settled):
    found, vectors = normalized(layers, settled)
    np.testing.assert_array_equal(found["conv"]["bias"], layers["conv"]["bias"])
    np.testing.assert_array_equal(found["embedding"], layers["embedding"])
    assert vectors["conv"]["bias"] is None


def test_the_gradient_is_that_of_dividing_by_the_norm(layers, settled):
    weights = jnp.asarray(np.random.default_rng(1).normal(size=(3, 3, 4, 5)), jnp.float32)

    def ours(kernel):
        found, _ = normalized(layers | {"conv": {"kernel": kernel, "bias": jnp.ones(5)}}, settled)
        return jnp.sum(weights * found["conv"]["kernel"])

    def exact(kernel):
        return jnp.sum(weights * kernel / jnp.linalg.norm(kernel.reshape(-1, 5), ord=2))

    kernel = layers["conv"]["kernel"]
    np.testing.assert_allclose(jax.grad(ours)(kernel), jax.grad(exact)(kernel), rtol=1e-3, atol=1e-4)
