"""Critic losses, penalties and rewards against optax, hand arithmetic and autodiff."""

import jax
import jax.numpy as jnp
import numpy as np
import optax
import pytest

from vdbjax.adversarial.gradient_penalty import r1_penalty, wgan_gp_penalty
from vdbjax.adversarial.instance_noise import add_noise
from vdbjax.adversarial.losses import (
    accuracy,
    bernoulli_entropy,
    critic_loss,
    generator_loss,
    imitation_reward,
    logistic_loss,
    wasserstein_loss,
)
from vdbjax.adversarial.variance_penalty import variance_penalty
from vdbjax.bottleneck import sample_code

REAL = jnp.array([2.0, -1.0, 0.5, 30.0])
FAKE = jnp.array([-3.0, 0.0, 1.0])


def test_logistic_loss_is_optax_cross_entropy():
    real_side = optax.sigmoid_binary_cross_entropy(REAL, jnp.ones_like(REAL)).mean()
    fake_side = optax.sigmoid_binary_cross_entropy(FAKE, jnp.zeros_like(FAKE)).mean()
    assert float(logistic_loss(REAL, FAKE)) == pytest.approx(float(real_side + fake_side), rel=1e-6)


def test_logistic_loss_of_an_undecided_critic():
    assert float(logistic_loss(jnp.zeros(3), jnp.zeros(5))) == pytest.approx(2 * np.log(2.0))


@pytest.mark.parametrize("loss", [logistic_loss, wasserstein_loss])
def test_losses_push_real_up_and_fake_down(loss):
    real_gradient, fake_gradient = jax.grad(loss, argnums=(0, 1))(REAL, FAKE)
    assert np.all(real_gradient < 0.0)
    assert np.all(fake_gradient > 0.0)


def test_wasserstein_loss_by_hand():
    assert float(wasserstein_loss(jnp.array([1.0, 3.0]), jnp.array([5.0, 6.0, 7.0]))) == 4.0


GENERATORS = {
    "non-saturating": lambda logits: np.mean(np.log1p(np.exp(-logits))),  # -log D
    "minimax": lambda logits: -np.mean(np.log1p(np.exp(logits))),  # log(1 - D)
    "wasserstein": lambda logits: -np.mean(logits),
}


@pytest.mark.parametrize("game", GENERATORS)
def test_generators_lower_their_loss_as_the_critic_believes_them(game):
    assert float(generator_loss(FAKE, game=game)) == pytest.approx(GENERATORS[game](np.float64(FAKE)), rel=1e-5)
    assert np.all(jax.grad(lambda fake: generator_loss(fake, game=game))(FAKE) < 0.0)


@pytest.mark.parametrize(
    "loss", [lambda game: critic_loss(REAL, FAKE, game=game), lambda game: generator_loss(FAKE, game=game)]
)
def test_unknown_game_is_refused(loss):
    with pytest.raises((ValueError, TypeError), match="non-saturating"):  # TypeError where argument types are checked
        loss("hinge")


def test_accuracy_counts_each_side_and_no_ties():
    real, fake = accuracy(REAL, FAKE)
    assert float(real) == pytest.approx(3 / 4)
    assert float(fake) == pytest.approx(1 / 3)


def test_entropy_agrees_with_its_definition_in_float64():
    logits = np.linspace(-15.0, 15.0, 61)
    d = 1.0 / (1.0 + np.exp(-logits))
    expected = -d * np.log(d) - (1 - d) * np.log1p(-d)
    np.testing.assert_allclose(bernoulli_entropy(jnp.float32(logits)), expected, rtol=2e-5)


def test_entropy_is_finite_and_flat_at_its_ends():
    logits = jnp.array([-200.0, 0.0, 200.0])
    np.testing.assert_allclose(bernoulli_entropy(logits), [0.0, np.log(2.0), 0.0], atol=1e-6)
    np.testing.assert_allclose(jax.vmap(jax.grad(bernoulli_entropy))(logits), 0.0, atol=1e-6)


REWARDS = {
    "-log(1-D)": (lambda d: -np.log1p(-d), lambda reward: np.all(reward > 0.0)),
    "log D": (np.log, lambda reward: np.all(reward < 0.0)),
    "logit": (lambda d: np.log(d) - np.log1p(-d), lambda reward: np.any(reward > 0.0) and np.any(reward < 0.0)),
}


@pytest.mark.parametrize("form", REWARDS)
def test_reward_is_its_formula_with_its_sign_and_rises(form):
    formula, has_its_sign = REWARDS[form]
    logits = np.linspace(-8.0, 8.0, 33)
    reward = imitation_reward(jnp.float32(logits), form=form)
    np.testing.assert_allclose(reward, formula(1.0 / (1.0 + np.exp(-logits))), rtol=1e-4, atol=1e-6)
    assert has_its_sign(reward)
    assert np.all(np.diff(reward) > 0.0)


def test_unknown_reward_form_is_refused():
    with pytest.raises((ValueError, TypeError), match="log D"):  # TypeError where argument types are checked
        imitation_reward(REAL, form="D")


MATRIX = jnp.array([[2.0, 1.0], [1.0, 3.0]])


def quadratic_critic(x):
    """½ xᵀ A x + x₀, whose gradient is A x + (1, 0)."""
    return 0.5 * jnp.sum(x * (x @ MATRIX), axis=-1) + x[:, 0]


def test_r1_on_a_quadratic_critic_by_hand():
    x = jax.random.normal(jax.random.key(0), (16, 2))
    slope = np.asarray(x) @ np.asarray(MATRIX) + np.array([1.0, 0.0])
    assert float(r1_penalty(quadratic_critic, x)) == pytest.approx(0.5 * np.mean(np.sum(slope**2, axis=-1)), rel=1e-5)


def test_r1_goes_through_mean_and_std_of_the_encoder():
    """z = 2x + exp(x) eps with critic z: the slope at x is 2 + exp(x) eps."""
    key, x = jax.random.key(1), jax.random.normal(jax.random.key(2), (64, 1))
    penalty = r1_penalty(lambda x: sample_code(key, 2.0 * x, jnp.exp(x))[:, 0], x)
    noise = jax.random.normal(key, x.shape)
    assert float(penalty) == pytest.approx(float(0.5 * jnp.mean((2.0 + jnp.exp(x) * noise) ** 2)), rel=1e-5)


def test_r1_sums_over_all_axes_of_an_image():
    images = jax.random.normal(jax.random.key(3), (5, 4, 4, 3))
    penalty = r1_penalty(lambda x: jnp.sum(x**2, axis=(1, 2, 3)), images)
    assert float(penalty) == pytest.approx(0.5 * float(jnp.mean(jnp.sum(4.0 * images**2, axis=(1, 2, 3)))), rel=1e-5)


@pytest.mark.parametrize("target", [0.0, 1.0])
def test_wgan_gp_of_a_linear_critic_by_hand(target):
    """A linear critic has the slope (3, 4) everywhere, of norm 5."""
    real, fake = jax.random.normal(jax.random.key(4), (2, 8, 2))
    penalty = wgan_gp_penalty(jax.random.key(5), lambda x: x @ jnp.array([3.0, 4.0]), real, fake, target=target)
    assert float(penalty) == pytest.approx((5.0 - target) ** 2, rel=1e-5)


def test_wgan_gp_looks_between_real_and_fake():
    """From 0 to (10, 10) the critic ½||x||² has the slope 10 √2 u with u ~ U[0, 1], so that E[slope²] = 200 / 3."""
    real, fake = jnp.zeros((20_000, 2)), jnp.full((20_000, 2), 10.0)
    penalty = wgan_gp_penalty(jax.random.key(6), lambda x: 0.5 * jnp.sum(x**2, axis=-1), real, fake, target=0.0)
    assert float(penalty) == pytest.approx(200.0 / 3.0, rel=0.03)
    both = wgan_gp_penalty(jax.random.key(6), lambda x: x[:, 0] * x[:, 1] - 0.5 * x[:, 0] ** 2, real, fake, target=0.0)
    assert float(both) == pytest.approx(100.0 / 3.0, rel=0.03)  # slope (x₁ - x₀, x₀), (0, x₀) if u is one for a pair


@pytest.mark.parametrize("scale", [0.0, 1e-30, 1e-20, 1e-12, 1.0])
def test_wgan_gp_gradient_is_finite_where_the_slope_vanishes(scale):
    real, fake = jax.random.normal(jax.random.key(7), (2, 8, 2))

    def penalty(weight):
        return wgan_gp_penalty(jax.random.key(8), lambda x: x @ weight, real, fake)

    weight = scale * jnp.array([0.6, 0.8])
    assert np.all(np.isfinite(jax.grad(penalty)(weight)))
    assert float(penalty(weight)) == pytest.approx((scale - 1.0) ** 2, abs=1e-6)


def test_wgan_gp_refuses_batches_that_do_not_pair():
    with pytest.raises((ValueError, TypeError), match="real"):  # TypeError where shapes are checked
        wgan_gp_penalty(jax.random.key(0), quadratic_critic, jnp.zeros((1, 2)), jnp.zeros((4, 2)))


def test_noise_has_its_std_and_is_fresh_for_each_element():
    x = jnp.full((1000, 50), 3.0)
    noise = add_noise(jax.random.key(9), x, 0.2) - x
    assert float(jnp.std(noise)) == pytest.approx(0.2, rel=0.02)
    assert float(jnp.mean(noise)) == pytest.approx(0.0, abs=0.005)
    assert float(jnp.abs(jnp.corrcoef(noise[:, 0], noise[:, 1])[0, 1])) < 0.15


def test_variance_penalty_pulls_returns_away_from_values_and_leaves_values_alone():
    returns, values = jnp.array([[1.0, 5.0]]), jnp.array([[2.0, 2.0]])
    assert float(variance_penalty(returns, values)) == pytest.approx(-(1.0 + 9.0) / 2)
    to_returns, to_values = jax.grad(variance_penalty, argnums=(0, 1))(returns, values)
    np.testing.assert_allclose(to_returns, [[1.0, -3.0]])  # descending drives 1 below 2, and 5 above it
    np.testing.assert_array_equal(to_values, 0.0)
