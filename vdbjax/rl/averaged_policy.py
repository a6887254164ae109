"""A running average of the policies of a run: what is kept and evaluated in the place of the last one."""

from typing import Any, NamedTuple

import jax
import jax.numpy as jnp
import optax
from jaxtyping import Array

from vdbjax.rl.policy import Actor
from vdbjax.types import Algorithm, Key, Metrics


class State(NamedTuple):
    """Everything a run needs to go on."""

    learning: Any  # the algorithm's own state; its actor acts and learns
    params: Any  # of the average

    @property
    def actor(self) -> Actor:
        """The policy that is kept."""
        return self.learning.actor._replace(params=self.params)

    @property
    def learnt_reward(self) -> Any:
        """Parameters of the reward that is kept, where one is learnt."""
        return self.learning.learnt_reward


def keep_average(algorithm: Algorithm, *, share: float) -> Algorithm:
    """The same algorithm, whose actor is the average over about the last `share` of the iterations done.

    Of acting and learning nothing changes by it. The algorithm's state has an `actor`, which is all that its `evaluate`
    looks at, and a `step`.
    """

    def init(key: Key) -> State:
        learning = algorithm.init(key)
        return State(learning, jax.tree.map(jnp.copy, learning.actor.params))  # what is donated must not be there twice

    def update(state: State, batch: Any) -> tuple[State, Metrics]:
        learning, metrics = algorithm.update(state.learning, batch)
        return State(learning, average(state.params, learning.actor.params, state.learning.step, share=share)), metrics

    return algorithm._replace(init=init, update=update)


def average(averaged: Any, params: Any, iteration: Array, *, share: float) -> Any:
    """The average with the parameters of one more iteration, counted from 0 (polynomial decay, Shamir & Zhang 2013).

    After t of them iteration i weighs about as (i / t) ** (1 / share - 1): the last `share` has two thirds of the
    weight, however long a run is, and at 1 all have the same.
    """
    return optax.incremental_update(params, averaged, jnp.minimum(1.0, 1.0 / (share * (iteration + 1))))
