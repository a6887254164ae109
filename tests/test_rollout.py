"""Rollouts and whole episodes on an environment that only counts, so that every number is known."""

import jax
import jax.numpy as jnp
import numpy as np
import pytest
from probe_environments import COUNTING, MATCH

from vdbjax.rl.normalize import empty_moments
from vdbjax.rl.policy import Actor, make_policy
from vdbjax.rl.rollout import evaluate_actor, rollout, run_episodes, start_rollout

NUM_ENVS = 4  # of 2, 3, 4, 5 steps an episode, rewards 1, 2, 3, ...


def act(observation, key):
    """The action tells which step of which episode saw it; the log-probability too."""
    action = observation[:, :1] + 0.01 * observation[:, 1:]
    return action, -action[:, 0], jnp.zeros_like(action)


def expected_rollout(length):
    """time, done and the rest of `length` steps of every row, by counting."""
    elapsed = np.stack([np.arange(length) % (row + 2) for row in range(NUM_ENVS)], axis=1)
    rows = np.broadcast_to(np.arange(NUM_ENVS), elapsed.shape)
    return elapsed, rows, elapsed == rows + 1


@pytest.fixture(scope="module")
def compiled():
    """Twelve steps, compiled once."""
    return jax.jit(lambda state, key: rollout(COUNTING, act, state, key, length=12))


def test_a_rollout_holds_what_was_seen_done_and_paid(compiled):
    start = start_rollout(COUNTING, jax.random.key(0), NUM_ENVS)
    state, steps, _ = compiled(start, jax.random.key(1))
    elapsed, rows, done = expected_rollout(12)
    np.testing.assert_array_equal(steps.observation, np.stack([rows, elapsed], axis=-1))
    np.testing.assert_allclose(steps.action[..., 0], rows + 0.01 * elapsed, rtol=1e-6)
    np.testing.assert_allclose(steps.log_prob, -steps.action[..., 0], rtol=1e-6)
    np.testing.assert_array_equal(steps.reward, elapsed + 1.0)
    np.testing.assert_array_equal(steps.terminated, done & (rows % 2 == 0))
    np.testing.assert_array_equal(steps.truncated, done & (rows % 2 == 1))
    np.testing.assert_array_equal(state.env.elapsed, 12 % np.arange(2, 6))


def test_the_true_last_observation_is_kept_where_an_episode_ended(compiled):
    _, steps, _ = compiled(start_rollout(COUNTING, jax.random.key(0), NUM_ENVS), jax.random.key(1))
    elapsed, rows, done = expected_rollout(12)
    np.testing.assert_array_equal(steps.next_observation, np.stack([rows, elapsed + 1], axis=-1))
    after_the_end = np.asarray(steps.observation)[1:][done[:-1]]
    np.testing.assert_array_equal(after_the_end[:, 1], 0.0)  # while the next step starts anew


def test_metrics_are_over_the_episodes_that_ended(compiled):
    _, _, metrics = compiled(start_rollout(COUNTING, jax.random.key(0), NUM_ENVS), jax.random.key(1))
    ended = [length for length in range(2, 6) for _ in range(12 // length)]
    returns = [length * (length + 1) / 2 for length in ended]
    assert float(metrics["episode/length"]) == pytest.approx(np.mean(ended))
    assert float(metrics["episode/return"]) == pytest.approx(np.mean(returns))
    assert float(metrics["episode/terminated_fraction"]) == pytest.approx((6 + 3) / 48)


def test_returns_and_lengths_go_on_from_rollout_to_rollout():
    """One step at a time: at step 2 only row 0 ends; at step 7 none, and the metrics stay those of step 6."""
    step = jax.jit(lambda state, key: rollout(COUNTING, act, state, key, length=1))
    state, lengths, returns = start_rollout(COUNTING, jax.random.key(0), NUM_ENVS), [], []
    for i in range(7):
        state, _, metrics = step(state, jax.random.key(i))
        lengths.append(float(metrics["episode/length"]))
        returns.append(float(metrics["episode/return"]))
    # Ends: step 2 row 0; step 3 row 1; step 4 rows 0 and 2; step 5 row 3; step 6 rows 0 and 1.
    np.testing.assert_allclose(lengths, [0.0, 2.0, 3.0, 3.0, 5.0, 2.5, 2.5])
    np.testing.assert_allclose(returns, [0.0, 3.0, 6.0, 6.5, 15.0, 4.5, 4.5])


def test_whole_episodes_are_counted_once_and_exactly():
    episodes = jax.jit(lambda key: run_episodes(COUNTING, act, key, num_episodes=6))(jax.random.key(0))
    lengths = np.arange(2, 8)
    np.testing.assert_array_equal(episodes.lengths, lengths)
    np.testing.assert_array_equal(episodes.returns, lengths * (lengths + 1) / 2)


class Straight:
    """Mean 0.7 x observation + params, deviation 0.3."""

    def apply(self, params, observation):
        """(mean, std)"""
        return 0.7 * observation + params, jnp.full_like(observation, 0.3)


def test_evaluation_scores_the_mean_action_and_the_stochastic_policy_apart():
    """The mean is right everywhere but for 0.1: return -0.01, and drawn, with the variance 0.09 on top."""
    policy = make_policy(Straight(), MATCH._replace(action_low=(-9.0,), action_high=(9.0,)), distribution="gaussian")
    wide = policy._replace(bound=lambda action: action)
    actor = Actor(jnp.float32(0.1), empty_moments((1,)))
    found = evaluate_actor(MATCH, wide, actor, jax.random.key(0), num_episodes=20_000)
    assert float(found["eval/return"]) == pytest.approx(-0.01, abs=1e-5)
    assert float(found["eval/return_std"]) == pytest.approx(0.0, abs=1e-5)
    assert float(found["eval/stochastic_return"]) == pytest.approx(-0.1, abs=0.004)
    assert float(found["eval/stochastic_return_std"]) == pytest.approx(np.sqrt(2 * 0.09**2 + 4 * 0.01 * 0.09), rel=0.05)
    assert float(found["eval/length"]) == 1.0
