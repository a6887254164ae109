"""Games small enough to see them settle: the Dirac-GAN (Mescheder et al. 2018), two Gaussians (VDB Figure 2)."""

import jax
import jax.numpy as jnp
import numpy as np
import pytest

from vdbjax.adversarial.gradient_penalty import r1_penalty
from vdbjax.adversarial.losses import Game, critic_loss, generator_loss
from vdbjax.bottleneck import DualState, dual_update, kl_to_standard_normal, lagrangian, mixture_kl

STEPS, RATE = 4_000, 0.05
DRAWS = jnp.asarray(np.random.default_rng(0).normal(size=64), jnp.float32)
CODE_NOISE = DRAWS - DRAWS.mean()


def settle(critic, generator, start, *, steps=STEPS):
    """Distances from the equilibrium at 0 over alternating steps of gradient descent on the two losses."""

    def step(state, _):
        psi, theta = state
        psi = jax.tree.map(lambda p, g: p - RATE * g, psi, jax.grad(critic)(psi, theta))
        theta = theta - RATE * jax.grad(lambda theta: generator(psi, theta))(theta)
        return (psi, theta), jnp.hypot(jax.tree.leaves(psi)[-1], theta)

    return np.asarray(jax.jit(lambda: jax.lax.scan(step, start, length=steps)[1])())


def dirac(game: Game, r1: float):
    """Real at 0, fake at theta, the critic psi x."""

    def critic(psi, theta):
        loss = critic_loss(psi * jnp.zeros(1), psi * theta[None], game=game)
        return loss + r1 * r1_penalty(lambda x: psi * x[:, 0], jnp.zeros((1, 1)))

    return critic, lambda psi, theta: generator_loss(psi * theta[None], game=game)


@pytest.mark.parametrize(("game", "kept"), [("non-saturating", 0.15), ("minimax", 1.0), ("wasserstein", 1.0)])
def test_unregularised_it_orbits_and_with_r1_it_converges(game, kept):
    """The non-saturating game spirals inwards even so, but as t^(-1/2): 0.58 after 400 steps, 0.20 after 4,000."""
    start = (jnp.float32(1.0), jnp.float32(1.0))
    orbit = settle(*dirac(game, 0.0), start)
    assert orbit[-500:].min() > kept
    found = settle(*dirac(game, 1.0), start)
    assert found[-500:].max() < 1e-2


def test_with_a_bottleneck_it_converges():
    """The code of x is N(x, std^2), the head psi z: the noise that the budget keeps alive is what damps psi."""

    def verdict(psi, x):
        mean, std = jnp.full(1, x), jnp.full(1, jnp.exp(psi["log_std"]))
        return psi["weight"] * (x + jnp.exp(psi["log_std"]) * CODE_NOISE), kl_to_standard_normal(mean, std)

    def critic(psi, theta):
        (real, kl_real), (fake, kl_fake) = verdict(psi, 0.0), verdict(psi, theta)
        loss = critic_loss(real, fake, game="non-saturating")
        return lagrangian(loss, mixture_kl(kl_real, kl_fake), jnp.float32(1.0), constraint=0.1)

    def generator(psi, theta):
        return generator_loss(psi["weight"] * theta[None], game="non-saturating")  # eq. 11: the mean code

    start = ({"log_std": jnp.float32(0.0), "weight": jnp.float32(1.0)}, jnp.float32(1.0))
    assert settle(critic, generator, start)[-500:].max() < 1e-2


@pytest.fixture(scope="module")
def boundaries():
    """Ic -> (logit's slope at the middle, at a fake's mean) of a critic between N(-3, 1/4) and N(3, 1/4)."""
    draw = np.random.default_rng(1)
    real, fake = (jnp.asarray(draw.normal(place, 0.5, 128), jnp.float32) for place in (3.0, -3.0))

    noise = jnp.asarray(draw.normal(size=(2, 128)), jnp.float32)

    @jax.jit
    def train(constraint):

        def judged(psi, x, eps):
            mean, std = psi["scale"] * x, jnp.exp(psi["log_std"]) * jnp.ones_like(x)
            return psi["weight"] * (mean + std * eps), kl_to_standard_normal(mean[:, None], std[:, None])

        def loss(psi, beta):
            (on_real, kl_real), (on_fake, kl_fake) = judged(psi, real, noise[0]), judged(psi, fake, noise[1])
            nats = mixture_kl(kl_real, kl_fake)
            return lagrangian(critic_loss(on_real, on_fake, game="minimax"), nats, beta, constraint=constraint), nats

        def step(state, _):
            psi, dual = state
            slope, nats = jax.grad(loss, has_aux=True)(psi, dual.beta)
            psi = jax.tree.map(lambda p, g: p - 0.05 * g, psi, slope)
            return (psi, dual_update(dual, nats, constraint=constraint, step_size=0.01)), nats

        start = {"scale": jnp.float32(1.0), "log_std": jnp.float32(0.0), "weight": jnp.float32(1.0)}
        (psi, _), nats = jax.lax.scan(step, (start, DualState(jnp.float32(0.1))), length=6_000)
        return psi["weight"] * psi["scale"], jnp.mean(nats[-500:])

    return {constraint: tuple(map(float, train(constraint))) for constraint in (0.05, 0.2, 2.0)}


def test_a_tighter_budget_flattens_the_boundary(boundaries):
    slopes = [slope for slope, _ in boundaries.values()]
    assert 0 < slopes[0] < slopes[1] < slopes[2]


def test_the_budget_is_held(boundaries):
    for constraint, (_, nats) in boundaries.items():
        assert nats == pytest.approx(constraint, rel=0.1)
