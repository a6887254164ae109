"""The bottleneck against Monte Carlo, distrax, hand arithmetic and autodiff."""

import math
from functools import partial

import jax
import jax.numpy as jnp
import numpy as np
import pytest

from vdbjax.bottleneck import (
    BottleneckConfig,
    DualState,
    dual_update,
    kl_to_standard_normal,
    lagrangian,
    largest_kl,
    likelihood_bound,
    log_likelihood_bound,
    mixture_kl,
    sample_code,
)


def random_codes(seed: int, shape: tuple[int, ...]) -> tuple[jax.Array, jax.Array]:
    mean_key, std_key = jax.random.split(jax.random.key(seed))
    return jax.random.normal(mean_key, shape), jnp.exp(0.5 * jax.random.normal(std_key, shape))


def log_density(z: np.ndarray, mean: np.ndarray, std: np.ndarray | float) -> np.ndarray:
    return np.sum(-0.5 * ((z - mean) / std) ** 2 - np.log(std) - 0.5 * np.log(2.0 * np.pi), axis=-1)


def test_kl_agrees_with_monte_carlo():
    mean, std = (np.asarray(x, np.float64) for x in random_codes(0, (4,)))
    z = mean + std * np.random.default_rng(0).normal(size=(200_000, 4))
    log_ratio = log_density(z, mean, std) - log_density(z, np.zeros(4), 1.0)
    standard_error = log_ratio.std() / math.sqrt(len(z))
    assert (
        abs(float(kl_to_standard_normal(jnp.float32(mean), jnp.float32(std))) - log_ratio.mean()) < 4 * standard_error
    )


@pytest.mark.parametrize("shape", [(3,), (5, 3), (2, 5, 3)])
def test_kl_agrees_with_distrax_over_any_batch(shape):
    distrax = pytest.importorskip("distrax")
    mean, std = random_codes(1, shape)
    prior = distrax.MultivariateNormalDiag(jnp.zeros(shape), jnp.ones(shape))
    expected = distrax.MultivariateNormalDiag(mean, std).kl_divergence(prior)
    np.testing.assert_allclose(kl_to_standard_normal(mean, std), expected, rtol=1e-5)


def test_kl_of_the_prior_is_zero():
    assert float(kl_to_standard_normal(jnp.zeros(8), jnp.ones(8))) == 0.0


def test_codes_have_their_mean_and_std():
    mean, std = random_codes(2, (4,))
    codes = sample_code(jax.random.key(3), jnp.tile(mean, (100_000, 1)), jnp.tile(std, (100_000, 1)))
    np.testing.assert_allclose(codes.mean(0), mean, atol=0.02)
    np.testing.assert_allclose(codes.std(0), std, rtol=0.02)


def test_codes_are_differentiable_in_mean_and_std():
    """For f(z) = Σ z², E f = Σ mean² + std², so the gradients are 2 mean and 2 std."""
    mean, std = random_codes(4, (3,))
    keys = jax.random.split(jax.random.key(5), 50_000)

    def expected_square(mean, std):
        return jnp.mean(jax.vmap(lambda key: jnp.sum(sample_code(key, mean, std) ** 2))(keys))

    mean_gradient, std_gradient = jax.grad(expected_square, argnums=(0, 1))(mean, std)
    np.testing.assert_allclose(mean_gradient, 2 * mean, atol=0.08)
    np.testing.assert_allclose(std_gradient, 2 * std, atol=0.08)


def test_the_mixture_weighs_real_and_fake_equally():
    """Real mean 2 over two samples, fake mean 6 over three: 4, where a pooled mean would give 4.4."""
    real, fake = jnp.array([1.0, 3.0]), jnp.array([4.0, 6.0, 8.0])
    assert float(mixture_kl(real, fake)) == 4.0
    assert float(largest_kl(real, fake)) == 8.0
    assert float(largest_kl(fake, real)) == 8.0


def test_lagrangian_by_hand_and_its_gradients():
    arguments = (jnp.float32(1.0), jnp.float32(2.0), jnp.float32(0.5))
    assert float(lagrangian(*arguments, constraint=0.4)) == pytest.approx(1.0 + 0.5 * 1.6)
    gradients = jax.grad(lambda *a: lagrangian(*a, constraint=0.4), argnums=(0, 1, 2))(*arguments)
    assert [float(g) for g in gradients] == [1.0, 0.5, 0.0]


@pytest.mark.parametrize(("kl", "price"), [(2.0, 0.5 + 0.3 * 1.6), (0.3, 0.5 - 0.3 * 0.1), (-3.0, 0.0)])
def test_damping_is_the_slope_of_the_augmented_lagrangian(kl, price):
    """Of loss + (max(beta + damping g, 0)² - beta²) / (2 damping) with g = kl - constraint (Rockafellar 1973)."""
    beta, damping, constraint = 0.5, 0.3, 0.4

    def augmented(kl):
        return (jnp.maximum(beta + damping * (kl - constraint), 0.0) ** 2 - beta**2) / (2 * damping)

    damped = partial(lagrangian, jnp.float32(0.0), beta=jnp.float32(beta), constraint=constraint, damping=damping)
    assert float(jax.grad(damped)(jnp.float32(kl))) == pytest.approx(price, abs=1e-6)
    assert float(jax.grad(augmented)(jnp.float32(kl))) == pytest.approx(price, abs=1e-6)


def test_damping_ends_the_swings_about_the_same_level():
    """The loss -x pushes x up at a steady rate, the budget is x = 2: beta 1 there, and nothing else holds x back."""

    def play(damping):
        def step(carry, _):
            x, dual = carry
            price = jax.grad(lambda x: lagrangian(-x, x, dual.beta, constraint=2.0, damping=damping))(x)
            return (x - 0.1 * price, dual_update(dual, x, constraint=2.0, step_size=0.01)), x

        start = jnp.float32(1.0), DualState(jnp.float32(1.0))
        return jax.lax.scan(step, start, length=2_000)

    (_, swinging), x = play(0.0)
    assert jnp.ptp(x[-300:]) > 1.0
    (_, damped), x = play(0.5)
    np.testing.assert_allclose(x[-300:], 2.0, atol=1e-3)
    assert float(damped.beta) == pytest.approx(1.0, abs=1e-3)
    assert abs(float(swinging.beta) - 1.0) > 0.01


DUAL_STEPS = {
    "rises when violated": (0.3, 0.7, {}, 0.32),
    "falls when slack": (0.3, 0.2, {}, 0.27),
    "stops at zero": (0.01, 0.2, {}, 0.0),
    "stays without a step": (0.3, 0.7, {"step_size": 0.0}, 0.3),
    "stops at another floor": (0.3, 0.2, {"lower": 0.29}, 0.29),
    "stops at a ceiling": (0.3, 0.7, {"upper": 0.31}, 0.31),
}


@pytest.mark.parametrize("name", DUAL_STEPS)
def test_dual_update_by_hand(name):
    beta, kl, settings, expected = DUAL_STEPS[name]
    updated = dual_update(
        DualState(jnp.float32(beta)), jnp.float32(kl), **{"constraint": 0.5, "step_size": 0.1, **settings}
    )
    assert float(updated.beta) == pytest.approx(expected, abs=1e-7)


def test_dual_ascent_finds_the_multiplier_of_a_known_problem():
    """Minimising (m - 3)² subject to m²/2 <= ½: m = 1, where 2 (3 - m) = beta m, so beta = 4."""

    def step(state, _):
        mean = 6.0 / (2.0 + state.beta)  # argmin of (m - 3)² + beta m²/2
        kl = kl_to_standard_normal(mean[None], jnp.ones(1))
        return dual_update(state, kl, constraint=0.5, step_size=0.5), kl

    state, kl = jax.jit(lambda s: jax.lax.scan(step, s, None, 500))(DualState(jnp.float32(0.0)))
    assert float(state.beta) == pytest.approx(4.0, rel=1e-4)
    assert float(kl[-1]) == pytest.approx(0.5, rel=1e-4)


def test_dual_update_is_not_traced_twice():
    update = jax.jit(lambda state: dual_update(state, jnp.float32(0.7), constraint=0.5, step_size=0.1))
    update(update(DualState(jnp.float32(BottleneckConfig().beta_init))))
    assert update._cache_size() == 1


def test_bound_by_hand():
    """K = 1, Ic = ½: -4 · ½ · e² - ½ log 4 - ½ log 2π."""
    expected = -2.0 * math.exp(2.0) - 0.5 * math.log(4.0) - 0.5 * math.log(2.0 * math.pi)
    assert float(log_likelihood_bound(0.5, 1)) == pytest.approx(expected, rel=1e-6)
    assert float(likelihood_bound(0.5, 1)) == pytest.approx(math.exp(expected), rel=1e-4)


@pytest.mark.parametrize("latent_size", [1, 2, 8])
@pytest.mark.parametrize("info_constraint", [0.01, 0.1, 1.0, 5.0])
def test_bound_holds_for_gaussians_within_the_budget(info_constraint, latent_size):
    """Many shared sigmas; for each, means on the edge of the budget, random pairs and the worst (opposite) pair."""
    rng = np.random.default_rng(latent_size)
    stds = np.exp(
        rng.uniform(-info_constraint / latent_size - 1.0, np.log(2 * info_constraint / latent_size + 2), 2000)
    )
    squared_radius = 2 * info_constraint - latent_size * (stds**2 - 1 - 2 * np.log(stds))
    stds, radius = stds[squared_radius > 0, None], np.sqrt(squared_radius[squared_radius > 0])[:, None]
    assert len(stds) > 20
    directions = rng.normal(size=(2, len(stds), latent_size))
    directions /= np.linalg.norm(directions, axis=-1, keepdims=True)
    for here, there in [directions, (directions[0], -directions[0])]:
        kl = kl_to_standard_normal(jnp.float32(radius * here), jnp.float32(np.tile(stds, latent_size)))
        np.testing.assert_allclose(kl, info_constraint, rtol=1e-3, atol=1e-5)
        density = log_density(radius * there, radius * here, stds * np.ones(latent_size))
        assert np.all(density > float(log_likelihood_bound(info_constraint, latent_size)))


@pytest.mark.parametrize("latent_size", [1, 4, 32])
def test_bound_falls_with_the_budget_and_stays_positive_at_none(latent_size):
    bounds = log_likelihood_bound(jnp.linspace(0.0, 5.0, 100), latent_size)
    assert np.all(np.diff(bounds) < 0.0)
    limit = (4.0 * math.pi) ** (-latent_size / 2)
    assert limit > 0.0
    assert float(likelihood_bound(1e-7, latent_size)) == pytest.approx(limit, rel=1e-4)


BAD_CONFIGS = {
    "latent_size": (0, r"latent_size \(0\)"),
    "info_constraint": (0.0, r"info_constraint \(0\.0\)"),
    "mean_scale": (0.0, r"mean_scale \(0\.0\)"),
    "beta_init": (-1.0, r"beta_init \(-1\.0\)"),
    "dual_step_size": (math.nan, r"dual_step_size \(nan\)"),
    "damping": (-0.1, r"damping \(-0\.1\)"),
}


@pytest.mark.parametrize("field", BAD_CONFIGS)
def test_bad_config_is_named(field):
    value, message = BAD_CONFIGS[field]
    with pytest.raises(ValueError, match=message):
        BottleneckConfig(**{field: value})


def test_a_beta_that_is_held_takes_no_damping():
    with pytest.raises(ValueError, match=r"damping \(0\.1\) is for an adaptive beta"):
        BottleneckConfig(damping=0.1, adaptive=False)
