"""Behavioural cloning: likelihood by hand, the held-out part, early stopping, and an expert that it must copy."""

import dataclasses
import functools

import jax
import jax.numpy as jnp
import numpy as np
import pytest
from probe_environments import FOLLOW, expert_action, follow_demonstrations
from scipy import stats

from vdbjax.imitation import behavioral_cloning as bc
from vdbjax.networks import GaussianActor
from vdbjax.rl.normalize import normalize
from vdbjax.rl.policy import make_policy

DEMONSTRATIONS = follow_demonstrations().demonstrations
SMALL = bc.Config(learning_rate=1e-2, batch_size=32, steps_per_iteration=20, hidden_sizes=(16,), patience=3)


@functools.cache
def make(config=SMALL):
    """(algorithm, policy, compiled init, compiled update)"""
    policy = make_policy(
        GaussianActor(config.hidden_sizes, 1, config.initial_std), FOLLOW, distribution=config.distribution
    )
    algorithm = bc.make(config, FOLLOW, policy, DEMONSTRATIONS, num_eval_episodes=20)
    return algorithm, policy, jax.jit(algorithm.init), jax.jit(algorithm.update)


@pytest.fixture(scope="module")
def history():
    """States and metrics of a run of 40 iterations."""
    _, _, init, update = make()
    state, states, metrics = init(jax.random.key(0)), [], []
    for _ in range(40):
        state, line = update(state, None)
        states.append(state)
        metrics.append({name: float(value) for name, value in line.items()})
    return states, metrics


def test_it_copies_the_expert(history):
    _, policy, init, _ = make()
    cue = np.linspace(-0.95, 0.95, 39)
    observation = jnp.float32(np.stack([cue, np.ones_like(cue)], axis=1))

    def error(actor):
        action = policy.bound(policy.mode(actor.params, normalize(actor.observations, observation)))
        return np.mean((np.asarray(action)[:, 0] - expert_action(cue)) ** 2)

    assert error(history[0][-1].actor) < 0.02
    assert error(init(jax.random.key(0)).actor) > 0.5


def test_the_clone_is_scored_by_its_return(history):
    algorithm, _, init, _ = make()
    evaluate = jax.jit(algorithm.evaluate)
    trained = evaluate(history[0][-1], jax.random.key(1))
    assert float(trained["eval/return"]) > 4.8  # 5 is the best there is
    assert float(evaluate(init(jax.random.key(0)), jax.random.key(1))["eval/return"]) < 3.0


def test_validation_is_the_likelihood_of_the_held_out_part(history):
    """The first 30 % of a fixed shuffle, in nats, by scipy."""
    state, metrics = history[0][0], history[1][0]
    network = GaussianActor((16,), 1, 0.6)
    rows = jax.random.permutation(jax.random.key(0), 200)[:60]
    observation = normalize(state.actor.observations, jnp.asarray(DEMONSTRATIONS.observation))[rows]
    mean, std = network.apply(state.params, observation)
    action = np.asarray(DEMONSTRATIONS.action)[np.asarray(rows)] / 2.0  # the range [-2, 2] as the unit box
    expected = -stats.norm.logpdf(action, mean, std).mean()
    assert metrics["policy/validation_nats"] == pytest.approx(expected, rel=1e-4)


def test_the_policy_is_the_best_so_far_and_training_stops_when_patience_runs_out(history):
    """By a loop over the validation losses."""
    states, metrics = history
    best, stale, best_params = np.inf, 0, None
    for state, line in zip(states, metrics, strict=True):
        if line["policy/validation_nats"] < best:
            best, stale, best_params = line["policy/validation_nats"], 0, state.params
        else:
            stale += 1
        assert line["policy/best_validation_nats"] == pytest.approx(best)
        assert line["stop"] == float(stale >= 3)
        assert int(state.stale) == stale
        for kept, expected in zip(jax.tree.leaves(state.actor.params), jax.tree.leaves(best_params), strict=True):
            np.testing.assert_array_equal(kept, expected)
    assert any(line["stop"] for line in metrics)


@pytest.mark.parametrize("fraction", [0.001, 0.999])
def test_too_few_transitions_to_hold_any_out_are_refused(fraction):
    policy = make()[1]
    with pytest.raises(ValueError, match=rf"validation_fraction \({fraction}\) of 200 transitions"):
        bc.make(bc.Config(validation_fraction=fraction), FOLLOW, policy, DEMONSTRATIONS, num_eval_episodes=2)


def test_whose_patience_has_run_out_waits_for_other_seeds():
    _, _, init, update = make(dataclasses.replace(SMALL, patience=1))
    state, lines = init(jax.random.key(0)), []
    for _ in range(20):
        state, line = update(state, None)
        lines.append(line)
    first = next(index for index, line in enumerate(lines) if line["stop"])
    assert all(line["stop"] for line in lines[first:])
    assert min(line["policy/validation_nats"] for line in lines) < lines[first]["policy/best_validation_nats"]
    assert state.best_loss == lines[first]["policy/best_validation_nats"]


@pytest.mark.parametrize("odd", [{"learning_rate": -0.1}, {"initial_std": 0.0}, {"hidden_sizes": (64, 0)}], ids=str)
def test_a_config_that_cannot_work_is_refused(odd):
    with pytest.raises(ValueError, match=f"^{next(iter(odd))} "):
        bc.Config(**odd)


@pytest.mark.parametrize("fraction", [0.0, 1.0, -0.3, float("nan")])
def test_a_fraction_outside_0_and_1_is_refused(fraction):
    with pytest.raises(ValueError, match="validation_fraction"):
        bc.Config(validation_fraction=fraction)
