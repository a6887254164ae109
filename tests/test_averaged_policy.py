"""The average of a run's policies: against plain sums, on a learner whose parameters are given."""

from typing import Any, NamedTuple

import jax
import jax.numpy as jnp
import numpy as np
import pytest

from vdbjax.rl.averaged_policy import average, keep_average
from vdbjax.rl.policy import Actor
from vdbjax.types import Algorithm


class Walk(NamedTuple):
    """The state of a learner that takes step after step of a random walk."""

    actor: Actor
    step: Any
    learnt_reward: Any = "the reward"


def walk() -> Algorithm:
    def update(state, batch):
        change = jax.random.normal(jax.random.key(state.step), (3,))
        params = {"weights": state.actor.params["weights"] + change}
        return Walk(state.actor._replace(params=params), state.step + 1), {"walk/step": state.step}

    def init(key):
        return Walk(Actor({"weights": jnp.zeros(3)}, "the moments"), jnp.int32(0))

    return Algorithm(init, update, lambda state, key: {"eval/first": state.actor.params["weights"][0]})


def run(algorithm, iterations):
    """The states after each iteration."""
    states = [algorithm.init(jax.random.key(0))]
    for _ in range(iterations):
        states.append(algorithm.update(states[-1], None)[0])
    return states


def test_it_weighs_the_last_policies_by_the_polynomial():
    plain, averaged = run(walk(), 8), run(keep_average(walk(), share=0.25), 8)
    for one, other in zip(plain, averaged, strict=True):
        np.testing.assert_array_equal(one.actor.params["weights"], other.learning.actor.params["weights"])
    acted = np.stack([state.actor.params["weights"] for state in plain])
    np.testing.assert_array_equal(averaged[4].actor.params["weights"], acted[4])  # the last quarter of four
    weights = np.array([4 / t * np.prod([1 - 4 / later for later in range(t + 1, 9)]) for t in range(4, 9)])
    assert weights.sum() == pytest.approx(1.0)
    np.testing.assert_allclose(averaged[8].actor.params["weights"], weights @ acted[4:], rtol=1e-5)


def test_all_weigh_the_same_at_a_share_of_one():
    acted = np.stack([state.actor.params["weights"] for state in run(walk(), 7)])
    found = run(keep_average(walk(), share=1.0), 7)[-1].actor.params["weights"]
    np.testing.assert_allclose(found, acted[1:].mean(axis=0), rtol=1e-5)


def test_two_thirds_of_the_weight_lie_on_the_last_share():
    params = np.arange(1, 1201) > 1000
    total = jnp.zeros(())
    for iteration, value in enumerate(params):
        total = average(total, jnp.float32(value), jnp.int32(iteration), share=1 / 6)
    assert float(total) == pytest.approx(2 / 3, abs=0.01)


def test_evaluations_see_the_average_and_the_rest_stays():
    algorithm = keep_average(walk(), share=0.5)
    state = run(algorithm, 5)[-1]
    assert algorithm.evaluate(state, jax.random.key(0))["eval/first"] == state.actor.params["weights"][0]
    assert (state.actor.observations, state.learnt_reward) == ("the moments", "the reward")
