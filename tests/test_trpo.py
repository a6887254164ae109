"""TRPO: its linear algebra against dense matrices, its bound, its baselines, and probes whose answers are known."""

from functools import partial

import jax
import jax.numpy as jnp
import numpy as np
import pytest
from jax.flatten_util import ravel_pytree
from probe_environments import DELAYED, MATCH, TIME_LIMIT

from vdbjax.networks import GaussianActor, Value
from vdbjax.rl import reinforcement
from vdbjax.rl.baseline import linear_baseline, time_features
from vdbjax.rl.natural_gradient import conjugate_gradient, fisher_vector_product, trust_region_step
from vdbjax.rl.normalize import normalize
from vdbjax.rl.policy import make_policy
from vdbjax.rl.trpo import TRPOConfig

ACTOR = GaussianActor((5,), 1, 0.7, "tanh")
POLICY = make_policy(ACTOR, MATCH, distribution="gaussian")
OBSERVATION = jax.random.normal(jax.random.key(1), (40, 1))


def policy_kl():
    """(KL of a small policy from itself moved, as a function of flat parameters; these parameters)"""
    params = POLICY.init(jax.random.key(0))
    flat, unravel = ravel_pytree(params)
    return lambda x: jnp.mean(POLICY.kl(params, unravel(x), OBSERVATION)), flat


def test_the_fisher_vector_product_is_that_of_the_dense_hessian():
    kl, flat = policy_kl()
    dense, product = jax.jit(jax.hessian(kl))(flat), jax.jit(partial(fisher_vector_product, kl))
    for seed in range(3):
        vector = jax.random.normal(jax.random.key(seed), flat.shape)
        np.testing.assert_allclose(product(flat, vector), dense @ vector, rtol=1e-4, atol=1e-5)
    assert float(kl(flat)) == pytest.approx(0.0, abs=1e-6)
    np.testing.assert_allclose(jax.jit(jax.grad(kl))(flat), 0.0, atol=1e-6)


def test_that_hessian_is_the_fisher_matrix():
    """E[score score'] over the policy's own actions."""
    kl, flat = policy_kl()
    _, unravel = ravel_pytree(POLICY.init(jax.random.key(0)))
    observation = jnp.tile(OBSERVATION, (500, 1))
    action, _ = POLICY.sample(unravel(flat), observation, jax.random.key(5))
    score = jax.vmap(jax.grad(lambda x, o, a: POLICY.log_prob(unravel(x), o[None], a[None])[0]), (None, 0, 0))
    scores = jax.jit(score)(flat, observation, action)
    fisher = scores.T @ scores / len(scores)
    np.testing.assert_allclose(fisher, jax.jit(jax.hessian(kl))(flat), atol=0.05 * float(jnp.abs(fisher).max()))


def test_the_kl_of_two_policies_by_monte_carlo():
    params, other = POLICY.init(jax.random.key(0)), POLICY.init(jax.random.key(7))
    other = jax.tree.map(lambda leaf: leaf + 0.2, other)
    observation = jnp.full((200_000, 1), 0.4)
    action, log_prob = POLICY.sample(params, observation, jax.random.key(3))
    expected = jnp.mean(log_prob - POLICY.log_prob(other, observation, action))
    found = POLICY.kl(params, other, jnp.full((1, 1), 0.4))[0]
    assert float(found) == pytest.approx(float(expected), rel=0.02)


def test_conjugate_gradient_solves():
    generator = np.random.default_rng(0)
    root = generator.normal(size=(6, 6))
    matrix, target = root @ root.T + np.eye(6), generator.normal(size=6)
    found = conjugate_gradient(lambda v: jnp.float32(matrix) @ v, jnp.float32(target), steps=12)
    np.testing.assert_allclose(found, np.linalg.solve(matrix, target), rtol=2e-3)


def test_conjugate_gradient_of_nothing_is_nothing():
    np.testing.assert_array_equal(conjugate_gradient(lambda v: v, jnp.zeros(3), steps=5), 0.0)


QUADRATIC = jnp.array([[4.0, 1.0], [1.0, 2.0]])


def step_on_a_plane(objective, *, kl_limit=0.02, params=None):
    """One step from (1, -1), with KL = half the squared distance under `QUADRATIC`."""
    start = jnp.array([1.0, -1.0]) if params is None else params
    kl = lambda x: 0.5 * (x - start) @ QUADRATIC @ (x - start)  # noqa: E731
    options = {"conjugate_gradient_steps": 10, "damping": 0.0, "backtracks": 15}
    return start, kl, trust_region_step(objective, kl, kl, start, kl_limit=kl_limit, **options)


def test_on_a_plane_the_step_is_the_natural_gradient_to_the_bound():
    slope = jnp.array([1.0, 3.0])
    start, kl, (moved, metrics) = step_on_a_plane(lambda x: x @ slope)
    direction = np.linalg.solve(QUADRATIC, slope)
    np.testing.assert_allclose(np.linalg.det([direction, moved - start]), 0.0, atol=1e-5)
    assert float(kl(moved)) <= 0.02
    assert float(kl(moved)) >= 0.02 * 0.64 * 0.99  # at most one step back, for rounding
    assert float(metrics["policy/kl_nats"]) == pytest.approx(float(kl(moved)), rel=1e-3)


def test_a_step_that_does_not_improve_is_shortened():
    """Along the gradient the objective soon falls: only a small part of the step the bound allows is taken."""
    start, _, (moved, metrics) = step_on_a_plane(lambda x: -500.0 * jnp.sum((x - jnp.array([1.01, -1.0])) ** 2))
    assert float(metrics["policy/line_search_steps"]) > 2
    assert float(metrics["policy/improvement"]) > 0
    assert not np.array_equal(moved, start)


@pytest.mark.parametrize("objective", [lambda x: 0.0 * jnp.sum(x), lambda x: jnp.nan * jnp.sum(x)], ids=["flat", "nan"])
def test_where_nothing_improves_nothing_moves(objective):
    start, _, (moved, _) = step_on_a_plane(objective)
    np.testing.assert_array_equal(moved, start)


def test_the_linear_baseline_fits_what_is_linear_in_its_features():
    baseline = linear_baseline(2, 50)
    observation = jax.random.normal(jax.random.key(0), (50, 4, 2))
    elapsed = jnp.broadcast_to(jnp.arange(50)[:, None], (50, 4))
    weights = jnp.array([1.0, -2.0, 0.5, 0.3, 4.0, -3.0, 1.0, 2.0])
    target = time_features(observation, elapsed / 50) @ weights
    fitted, _ = baseline.fit(jnp.zeros(8), (), observation, elapsed, target, jax.random.key(1))
    np.testing.assert_allclose(baseline.values(fitted, observation, elapsed), target, atol=0.05)


BASELINES = ("linear", "network")
GAMMA = 0.8


def learn(environment, baseline, *, iterations=60, **changes):
    """(state, mode of the policy, metrics) after a short run."""
    config = TRPOConfig(
        rollout_length=8, discount=GAMMA, hidden_sizes=(16,), activation="tanh", initial_std=0.6, baseline=baseline,
        kl_limit=0.03, entropy_weight=0.0, **changes,
    )  # fmt: skip
    policy = make_policy(GaussianActor((16,), 1, 0.6), environment, distribution="gaussian")
    algorithm = reinforcement.make(
        reinforcement.Config(trpo=config, optimizer="trpo"),
        environment,
        policy,
        value_network=Value((16,)),
        num_envs=32,
        num_iterations=iterations,
        num_eval_episodes=2,
    )
    state, metrics = jax.jit(lambda key: jax.lax.scan(algorithm.update, algorithm.init(key), None, iterations))(
        jax.random.key(0)
    )
    assert all(np.all(np.isfinite(value)) for value in metrics.values())
    mode = lambda x: policy.mode(  # noqa: E731
        state.actor.params, normalize(state.actor.observations, jnp.float32(x)[:, None])
    )
    return state, mode, metrics


@pytest.mark.parametrize("baseline", BASELINES)
def test_the_policy_learns_the_action_within_the_bound(baseline):
    _, mode, metrics = learn(MATCH, baseline)
    seen = np.linspace(-0.9, 0.9, 19)
    assert np.mean((np.asarray(mode(seen))[:, 0] - 0.7 * seen) ** 2) < 0.01  # a policy that does 0 has 0.15
    assert np.max(metrics["policy/kl_nats"]) <= 0.03 * 1.001
    assert np.min(metrics["policy/improvement"]) >= 0.0


def test_the_linear_baseline_knows_the_time_and_that_a_limit_ends_all():
    """Two steps of reward 1: worth 1 + gamma, then 1, although the observation is the same and nothing terminates."""
    state, _, _ = learn(TIME_LIMIT._replace(episode_length=2), "linear", iterations=60)
    weights, scale = state.agent.value, float(state.agent.reward_scale)
    values = [float(time_features(jnp.zeros(1), jnp.float32(t / 2)) @ weights) * scale for t in (0, 1)]
    np.testing.assert_allclose(values, [1 + GAMMA, 1.0], rtol=0.03)


def test_the_network_baseline_goes_on_beyond_a_time_limit():
    state, _, _ = learn(TIME_LIMIT, "network", iterations=150, baseline_learning_rate=1e-2)
    value = Value((16,)).apply(state.agent.value, jnp.zeros((1, 1)))[0] * state.agent.reward_scale
    assert float(value) == pytest.approx(1 / (1 - GAMMA), rel=0.06)


def test_elapsed_steps_are_counted_across_rollouts():
    state, _, _ = learn(DELAYED, "linear", iterations=1)
    np.testing.assert_array_equal(state.agent.elapsed, 0)  # 8 steps of episodes of 2


@pytest.mark.parametrize(
    ("name", "value"),
    [("kl_limit", 0.0), ("damping", -1.0), ("discount", 1.1), ("backtracks", 0), ("fisher_every", 0)],
)
def test_values_that_cannot_work_are_refused(name, value):
    with pytest.raises(ValueError, match=rf"{name} \({value}\)"):
        TRPOConfig(**{name: value})


@pytest.mark.parametrize("action", [-1.0, -0.3, 1.0])
def test_the_likelihood_of_a_clipped_action_by_counting(action):
    """At an edge the share of draws that end there; inside, the density."""
    params = POLICY.init(jax.random.key(0))
    observation = jnp.full((400_000, 1), 0.4)
    drawn = np.asarray(POLICY.bound(POLICY.sample(params, observation, jax.random.key(2))[0]))[:, 0]
    near = np.abs(drawn - action) < 0.02
    share = np.mean(drawn == action) if abs(action) == 1.0 else np.mean(near) / 0.04
    found = POLICY.likelihood(params, observation[:1], jnp.full((1, 1), action))
    assert float(found[0]) == pytest.approx(np.log(share), abs=0.03)
