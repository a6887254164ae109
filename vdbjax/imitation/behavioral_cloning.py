"""Behavioural cloning: maximum likelihood of the expert's actions, stopped when a held-out part no longer improves."""

from dataclasses import dataclass
from typing import Any, NamedTuple

import jax
import jax.numpy as jnp
import optax
from jaxtyping import Array, Float, Int

from vdbjax import limits
from vdbjax.networks import Activation
from vdbjax.rl.normalize import normalize, sample_moments
from vdbjax.rl.policy import Actor, Distribution, Policy
from vdbjax.rl.rollout import evaluate_actor
from vdbjax.types import Algorithm, Demonstrations, Environment, Key, Metrics


@dataclass(frozen=True)
class Config:
    """Behavioural cloning."""

    learning_rate: float = 1e-3
    """Adam's step size."""
    batch_size: int = 128
    """Transitions a gradient step, drawn with replacement."""
    steps_per_iteration: int = 50
    """Gradient steps between two looks at the held-out part."""
    max_iterations: int = 400
    """Iterations at the most."""
    validation_fraction: float = 0.3
    """Share of the transitions held out, the same for every seed."""
    patience: int = 20
    """Iterations without improvement after which training stops; of several seeds, each by itself."""
    hidden_sizes: tuple[int, ...] = (64, 64)
    """Hidden layers of the policy."""
    activation: Activation = "tanh"
    """What follows each of them."""
    initial_std: float = 0.6
    """Deviation of the first policy, in units of half the action range."""
    distribution: Distribution = "gaussian"
    """Gaussian clipped to the action range, or squashed into it by tanh."""

    def __post_init__(self) -> None:
        """Rejects values that cannot work."""
        limits.at_least(1, self, "batch_size", "steps_per_iteration", "max_iterations", "patience", "hidden_sizes")
        limits.positive(self, "learning_rate", "initial_std")
        if not 0 < self.validation_fraction < 1:
            raise ValueError(f"validation_fraction ({self.validation_fraction}) must lie between 0 and 1")


class State(NamedTuple):
    """Everything a run needs to go on. `actor` is the best policy so far by held-out likelihood."""

    actor: Actor
    params: Any  # of the policy being trained
    optimizer: Any
    best_loss: Float[Array, ""]  # nats an action, of `actor`, held out
    stale: Int[Array, ""]  # iterations since it improved
    step: Int[Array, ""]
    key: Key


def make(
    config: Config,
    environment: Environment,
    policy: Policy,
    demonstrations: Demonstrations,
    *,
    num_eval_episodes: int,
) -> Algorithm:
    """Cloning from the demonstrations. The metric `stop` turns 1 when patience has run out.

    Raises ValueError where there are too few transitions to hold any out.
    """
    total = len(demonstrations.observation)
    held_out = round(config.validation_fraction * total)
    if not 0 < held_out < total:
        raise ValueError(
            f"validation_fraction ({config.validation_fraction}) of {total} transitions leaves nothing to "
            f"{'hold out' if held_out == 0 else 'train on'}; give more demonstrations"
        )
    demonstrations = jax.tree.map(jnp.asarray, demonstrations)
    moments = sample_moments(demonstrations.observation)
    order = jax.random.permutation(jax.random.key(0), total)
    observation = normalize(moments, demonstrations.observation)[order]
    action = policy.unbound(demonstrations.action)[order]
    optimizer = optax.adam(config.learning_rate)

    def loss(params: Any, rows: Array) -> Array:
        return -jnp.mean(policy.log_prob(params, observation[rows], action[rows]))

    def init(key: Key) -> State:
        key_policy, key_run = jax.random.split(key)
        params = policy.init(key_policy)
        # A copy, because a donated buffer must not be in the state twice.
        actor = Actor(jax.tree.map(jnp.copy, params), moments)
        return State(actor, params, optimizer.init(params), jnp.float32(jnp.inf), jnp.int32(0), jnp.int32(0), key_run)

    def gradient_step(carry: tuple, key: Key) -> tuple[tuple, Array]:
        params, optimizer_state = carry
        rows = jax.random.randint(key, (config.batch_size,), held_out, total)
        value, gradients = jax.value_and_grad(loss)(params, rows)
        updates, optimizer_state = optimizer.update(gradients, optimizer_state, params)
        return (optax.apply_updates(params, updates), optimizer_state), value

    def update(state: State, batch: None) -> tuple[State, Metrics]:
        keys = jax.random.split(jax.random.fold_in(state.key, state.step), config.steps_per_iteration)
        (params, optimizer_state), losses = jax.lax.scan(gradient_step, (state.params, state.optimizer), keys)
        validation = loss(params, jnp.arange(held_out))
        stopped = state.stale >= config.patience  # waits for the seeds beside it
        better = ~stopped & (validation < state.best_loss)
        best = jax.tree.map(lambda new, old: jnp.where(better, new, old), params, state.actor.params)
        stale = jnp.where(better, 0, state.stale + 1)
        best_loss = jnp.where(better, validation, state.best_loss)
        state = State(
            state.actor._replace(params=best), params, optimizer_state, best_loss, stale, state.step + 1, state.key
        )
        metrics = {
            "policy/loss_nats": jnp.mean(losses),
            "policy/validation_nats": validation,
            "policy/best_validation_nats": best_loss,
            "stop": (stale >= config.patience).astype(jnp.float32),
        }
        return state, metrics

    def evaluate(state: State, key: Key) -> Metrics:
        return evaluate_actor(environment, policy, state.actor, key, num_episodes=num_eval_episodes)

    return Algorithm(init, update, evaluate)
