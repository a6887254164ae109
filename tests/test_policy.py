"""Policies against scipy's densities, numerical integration and Monte Carlo; ranges there and back."""

from typing import ClassVar

import jax
import jax.numpy as jnp
import numpy as np
import pytest
from scipy import integrate, stats

from vdbjax.rl.normalize import sample_moments
from vdbjax.rl.policy import Actor, act_by_mean, act_by_sampling, make_policy
from vdbjax.types import Environment

LOW, HIGH = (-0.4, -3.0), (0.4, 1.0)
DISTRIBUTIONS = ["gaussian", "tanh-gaussian"]


class FixedNetwork:
    """The same mean and deviation for every observation, scaled by `params`."""

    mean: ClassVar = jnp.array([0.3, -0.8])
    std: ClassVar = jnp.array([0.5, 1.1])

    def init(self, key, observation):
        """One number."""
        return jnp.float32(1.0)

    def apply(self, params, observation):
        """(mean, std), broadcast over the batch."""
        zero = jnp.zeros((*observation.shape[:-1], 2))
        return zero + params * jax.lax.broadcast_in_dim(self.mean, zero.shape, (zero.ndim - 1,)), zero + (
            jax.lax.broadcast_in_dim(self.std, zero.shape, (zero.ndim - 1,))
        )


def make(distribution):
    """A policy over the ranges LOW, HIGH."""
    environment = Environment("none", 3, 2, LOW, HIGH, 1, lambda *_: None, lambda *_: None)
    return make_policy(FixedNetwork(), environment, distribution=distribution)


@pytest.fixture(scope="module", params=DISTRIBUTIONS)
def policy(request):
    """Either policy."""
    return make(request.param)


PARAMS = jnp.float32(1.0)
OBSERVATION = jnp.zeros(3)


def test_gaussian_log_probability_is_scipys():
    action = jax.random.normal(jax.random.key(0), (50, 2))
    found = make("gaussian").log_prob(PARAMS, jnp.zeros((50, 3)), action)
    expected = stats.norm.logpdf(action, FixedNetwork.mean, FixedNetwork.std).sum(axis=-1)
    np.testing.assert_allclose(found, expected, rtol=1e-5, atol=1e-5)


def squashed_density(y, mean, std):
    """The density of tanh(u), u ~ N(mean, std²), by a change of variables: the derivative of P(u < atanh y)."""
    return stats.norm.pdf(np.arctanh(y), mean, std) / (1.0 - y**2)


def surprise(y, mean, std):
    """-p log p."""
    density = squashed_density(y, mean, std)
    return -density * np.log(density) if density > 0.0 else 0.0


def test_squashed_log_probability_is_the_density_of_the_squashed_draw():
    raw = np.random.default_rng(0).uniform(-2.5, 2.5, (50, 2))
    found = make("tanh-gaussian").log_prob(PARAMS, jnp.zeros((50, 3)), jnp.float32(raw))
    density = squashed_density(np.tanh(raw), np.asarray(FixedNetwork.mean), np.asarray(FixedNetwork.std))
    np.testing.assert_allclose(found, np.log(density).sum(axis=-1), rtol=1e-4, atol=1e-4)


def test_squashed_density_integrates_to_one():
    """Midpoints of a grid over the open square; the density there must sum to the whole probability."""
    policy, edges = make("tanh-gaussian"), np.linspace(-1.0, 1.0, 1001)
    middle = 0.5 * (edges[1:] + edges[:-1])
    grid = np.stack(np.meshgrid(middle, middle, indexing="ij"), axis=-1)
    log_prob = policy.log_prob(PARAMS, jnp.zeros((*grid.shape[:-1], 3)), jnp.float32(np.arctanh(grid)))
    assert float(np.exp(np.float64(log_prob)).sum() * (edges[1] - edges[0]) ** 2) == pytest.approx(1.0, abs=5e-3)


@pytest.mark.parametrize("scale", [3.0, 30.0])
def test_squashed_log_probability_stays_finite_far_out(scale):
    found = make("tanh-gaussian").log_prob(PARAMS, OBSERVATION, jnp.full(2, scale))
    assert np.isfinite(found)
    assert np.all(np.isfinite(jax.grad(make("tanh-gaussian").log_prob)(PARAMS, OBSERVATION, jnp.full(2, scale))))


def test_gaussian_entropy_is_scipys():
    entropy = make("gaussian").entropy(PARAMS, OBSERVATION, jax.random.key(0))
    assert float(entropy) == pytest.approx(stats.norm.entropy(0.0, np.asarray(FixedNetwork.std)).sum(), rel=1e-5)


def test_squashed_entropy_is_on_average_the_integral():
    estimates = make("tanh-gaussian").entropy(PARAMS, jnp.zeros((40_000, 3)), jax.random.key(0))
    exact = sum(
        integrate.quad(surprise, -1, 1, args=(m, s))[0]
        for m, s in zip(np.float64(FixedNetwork.mean), np.float64(FixedNetwork.std))
    )
    error = float(jnp.std(estimates)) / 200.0
    assert float(jnp.mean(estimates)) == pytest.approx(exact, abs=4.0 * error)


def test_sampled_actions_carry_their_own_log_probability(policy):
    observation = jnp.zeros((100, 3))
    action, log_prob = policy.sample(PARAMS, observation, jax.random.key(1))
    assert action.shape == (100, 2)
    np.testing.assert_allclose(log_prob, policy.log_prob(PARAMS, observation, action), rtol=1e-4, atol=1e-4)


def test_sampled_actions_have_the_mean_and_deviation_of_the_network(policy):
    action, _ = policy.sample(PARAMS, jnp.zeros((40_000, 3)), jax.random.key(2))
    np.testing.assert_allclose(jnp.mean(action, axis=0), FixedNetwork.mean, atol=0.02)
    np.testing.assert_allclose(jnp.std(action, axis=0), FixedNetwork.std, rtol=0.02)
    np.testing.assert_allclose(policy.mode(PARAMS, OBSERVATION), FixedNetwork.mean)


def test_bound_stays_in_the_range_and_reaches_its_ends(policy):
    raw = jnp.stack([jnp.linspace(-20.0, 20.0, 101)] * 2, axis=-1)
    bounded = np.asarray(policy.bound(raw))
    np.testing.assert_allclose(bounded[0], LOW, rtol=1e-6)
    np.testing.assert_allclose(bounded[-1], HIGH, rtol=1e-6)
    np.testing.assert_allclose(bounded[50], 0.5 * (np.array(LOW) + HIGH), atol=1e-5)
    assert np.all(bounded >= np.float32(LOW) - 1e-6)
    assert np.all(bounded <= np.float32(HIGH) + 1e-6)


def test_bound_and_unbound_are_inverse_inside_the_range(policy):
    fraction = np.random.default_rng(1).uniform(0.01, 0.99, (200, 2))
    action = jnp.float32(np.array(LOW) + fraction * (np.array(HIGH) - LOW))
    np.testing.assert_allclose(policy.bound(policy.unbound(action)), action, atol=1e-5)
    raw = jnp.float32(np.random.default_rng(2).uniform(-0.98, 0.98, (200, 2)))
    np.testing.assert_allclose(policy.unbound(policy.bound(raw)), raw, atol=1e-5)


def test_the_ends_of_the_range_have_a_finite_raw_action(policy):
    for end in (LOW, HIGH):
        raw = policy.unbound(jnp.array(end))
        assert np.all(np.isfinite(raw))
        np.testing.assert_allclose(policy.bound(raw), end, atol=1e-3 * (HIGH[1] - LOW[1]))


def test_acting_normalises_what_it_sees_and_bounds_what_it_does(policy):
    seen = []

    class Watching(FixedNetwork):
        def apply(self, params, observation):
            seen.append(observation)
            return super().apply(params, observation)

    environment = Environment("none", 3, 2, LOW, HIGH, 1, lambda *_: None, lambda *_: None)
    watched = make_policy(Watching(), environment, distribution="gaussian")
    stream = 4.0 + 2.0 * jax.random.normal(jax.random.key(3), (500, 3))
    actor = Actor(PARAMS, sample_moments(stream))
    raw, log_prob, command = act_by_sampling(watched, actor)(stream, jax.random.key(4))
    np.testing.assert_allclose(command, watched.bound(raw))
    np.testing.assert_allclose(log_prob, watched.log_prob(PARAMS, stream, raw), rtol=1e-4, atol=1e-4)
    np.testing.assert_allclose(jnp.mean(seen[0], axis=0), 0.0, atol=1e-4)
    np.testing.assert_allclose(jnp.std(seen[0], axis=0), 1.0, atol=1e-3)
    raw, log_prob, command = act_by_mean(policy, actor)(stream, jax.random.key(5))
    np.testing.assert_allclose(raw[7], FixedNetwork.mean)
    np.testing.assert_allclose(command, policy.bound(raw))
    np.testing.assert_array_equal(log_prob, 0.0)
