"""Proximal policy optimisation (Schulman et al. 2017): a learner from rollouts, wherever their rewards come from."""

import math
from collections.abc import Callable
from dataclasses import dataclass
from functools import partial
from typing import Any, Literal, NamedTuple

import jax
import jax.numpy as jnp
import optax
from jaxtyping import Array, Float, ScalarLike

from vdbjax import limits
from vdbjax.rl.normalize import Moments, empty_moments, merge_moments, normalize, sample_moments
from vdbjax.rl.policy import Actor, Distribution, Policy
from vdbjax.rl.returns import generalized_advantages, running_returns
from vdbjax.types import Environment, Key, Metrics, Transition


@dataclass(frozen=True)
class PPOConfig:
    """How a policy learns from rollouts."""

    learning_rate: float = 3e-4
    """Adam's step size for policy and value, annealed linearly to 0 over the run."""
    num_epochs: int = 10
    """Passes over each rollout."""
    minibatch_size: int | None = None
    """Samples a gradient step; must divide num_envs x rollout_length. None: at least 128, at most 64 minibatches."""
    rollout_length: int | None = None
    """Control steps of each environment between updates. None: 2,048 / num_envs, at least 16."""
    clip: float = 0.2
    """Half-width of the trusted interval of the probability ratio."""
    discount: float = 0.99
    """gamma, a control step."""
    gae_lambda: float = 0.95
    """lambda of the advantage estimates."""
    entropy_weight: float = 0.0
    """Weight of the policy's entropy (nats) in the objective (the causal entropy's lambda in GAIL), annealed to 0."""
    value_weight: float = 0.5
    """Weight of the squared value error."""
    max_grad_norm: float = 0.5
    """Gradients are scaled down to this norm."""
    hidden_sizes: tuple[int, ...] = (64, 64)
    """Hidden layers of policy and value."""
    activation: Literal["tanh", "relu"] = "tanh"
    """What follows each of them."""
    initial_std: float = 0.6
    """Deviation of the first policy, in units of half the action range."""
    final_std: float | None = None
    """Deviation of the last policy: all actions' falls there by one factor an iteration. None: each is learnt."""
    distribution: Distribution = "gaussian"
    """Gaussian clipped to the action range, or squashed into it by tanh."""

    def __post_init__(self) -> None:
        """Rejects values that cannot work."""
        limits.positive(self, "learning_rate", "clip", "max_grad_norm", "initial_std", "final_std")
        limits.not_negative(self, "entropy_weight", "value_weight")
        limits.between(0, 1, self, "discount", "gae_lambda")
        limits.at_least(1, self, "num_epochs", "minibatch_size", "rollout_length", "hidden_sizes")


class AgentState(NamedTuple):
    """A policy, its value function and what they have seen."""

    actor: Actor
    value: Any
    optimizer: Any
    returns: Moments  # of the running discounted return, whose deviation scales the rewards
    running_return: Float[Array, " num_envs"]

    @property
    def reward_scale(self) -> Float[Array, ""]:
        """What rewards are divided by before values are learnt from them."""
        return jnp.sqrt(self.returns.variance + 1e-8)


class Learner(NamedTuple):
    """PPO (or TRPO) as pure functions over its `AgentState`, for whoever makes the rewards."""

    init: Callable[[Key], Any]
    learn: Callable[[Any, Transition, Key, Array], tuple[Any, Metrics]]
    """(state, transitions [time, num_envs], key, iterations done before) -> what was learnt from them."""
    values: Callable[[Any, Array], Array]  # of raw observations, in units of the scaled reward


class BatchPlan(NamedTuple):
    """How a rollout is cut for learning."""

    rollout_length: int  # control steps of each environment
    num_minibatches: int  # equal parts a pass


def plan_batch(config: PPOConfig, num_envs: int) -> BatchPlan:
    """The config's own numbers, and where it leaves them open, ones that grow with the number of environments.

    32 environments give 64 steps in 16 minibatches of 128: many small updates learn most from each sample. 4,096 give
    16 steps in 64 minibatches of 1,024. Raises ValueError where the rollout cannot be cut into equal minibatches.
    """
    length = config.rollout_length or max(16, 2048 // num_envs)
    batch = num_envs * length
    size = config.minibatch_size or batch // most_parts(batch)
    if batch % size:
        raise ValueError(
            f"num_envs x rollout_length ({num_envs} x {length} = {batch}) must be divisible by minibatch_size ({size})"
            f"; take a multiple of {size // math.gcd(size, length)} environments, or another --ppo.minibatch-size"
        )
    return BatchPlan(length, batch // size)


def most_parts(batch: int) -> int:
    """The largest number of equal minibatches, at most 64, of at least 128 samples each where there are as many."""
    most = max(1, min(64, batch // 128))
    return max(n for n in range(1, most + 1) if batch % n == 0)


def surrogate_loss(ratio: Float[Array, " N"], advantage: Float[Array, " N"], *, clip: float) -> Float[Array, ""]:
    """The clipped surrogate, to be minimised: -E[min(r A, clip(r, 1 - c, 1 + c) A)] (Schulman et al. 2017, eq. 7)."""
    return -jnp.mean(jnp.minimum(ratio * advantage, jnp.clip(ratio, 1 - clip, 1 + clip) * advantage))


class Minibatch(NamedTuple):
    """What a gradient step sees; observations are already normalised."""

    observation: Float[Array, "N observation"]
    action: Float[Array, "N action"]
    log_prob: Float[Array, " N"]
    advantage: Float[Array, " N"]
    target: Float[Array, " N"]


def ppo_loss(
    params: Any,
    batch: Minibatch,
    key: Key,
    *,
    policy: Policy,
    value_network: Any,
    config: PPOConfig,
    entropy_weight: ScalarLike,
) -> tuple[Array, Metrics]:
    """Policy surrogate + value error - entropy bonus, with its metrics. `params` is (policy, value).

    `entropy_weight` is what annealing has left of the config's.
    """
    log_ratio = policy.log_prob(params[0], batch.observation, batch.action) - batch.log_prob
    ratio = jnp.exp(log_ratio)
    advantage = (batch.advantage - jnp.mean(batch.advantage)) / (jnp.std(batch.advantage) + 1e-8)
    policy_loss = surrogate_loss(ratio, advantage, clip=config.clip)
    value_loss = jnp.mean((value_network.apply(params[1], batch.observation) - batch.target) ** 2)
    entropy = jnp.mean(policy.entropy(params[0], batch.observation, key))
    metrics = {
        "policy/loss": policy_loss,
        "policy/entropy_nats": entropy,
        "policy/kl_nats": jnp.mean(ratio - 1 - log_ratio),
        "policy/clip_fraction": jnp.mean((jnp.abs(ratio - 1) > config.clip).astype(jnp.float32)),
        "value/loss": value_loss,
    }
    return policy_loss + config.value_weight * value_loss - entropy_weight * entropy, metrics


def make_learner(
    config: PPOConfig,
    environment: Environment,
    policy: Policy,
    *,
    value_network: Any,
    num_iterations: int,
    num_envs: int,
    observation_moments: Moments | None = None,
) -> Learner:
    """PPO over the environment's observations and the policy's actions.

    With `observation_moments` the observations are normalised by those, for good; without, by running ones, which start
    with the first rollout.
    """
    plan = plan_batch(config, num_envs)
    gradient_steps = num_iterations * config.num_epochs * plan.num_minibatches
    optimizer = optax.chain(
        optax.clip_by_global_norm(config.max_grad_norm),
        optax.adam(optax.linear_schedule(config.learning_rate, 0.0, gradient_steps), eps=1e-5),
    )

    def init(key: Key) -> AgentState:
        key_policy, key_value = jax.random.split(key)
        params = policy.init(key_policy), value_network.init(key_value, jnp.zeros(environment.observation_size))
        moments = observation_moments or empty_moments((environment.observation_size,))
        actor = Actor(params[0], moments)
        return AgentState(actor, params[1], optimizer.init(params), empty_moments(()), jnp.zeros(num_envs))

    def values(state: AgentState, observation: Array) -> Array:
        return value_network.apply(state.value, normalize(state.actor.observations, observation))

    def gradient_step(entropy_weight: Array, carry: tuple, batch_and_key: tuple) -> tuple[tuple, Metrics]:
        params, optimizer_state = carry
        gradients, metrics = jax.grad(ppo_loss, has_aux=True)(
            params,
            *batch_and_key,
            policy=policy,
            value_network=value_network,
            config=config,
            entropy_weight=entropy_weight,
        )
        updates, optimizer_state = optimizer.update(gradients, optimizer_state, params)
        metrics["policy/gradient_norm"] = optax.tree.norm(gradients[0])
        metrics["value/gradient_norm"] = optax.tree.norm(gradients[1])
        return (optax.apply_updates(params, updates), optimizer_state), metrics

    def learn(state: AgentState, steps: Transition, key: Key, iteration: Array) -> tuple[AgentState, Metrics]:
        state, scaled = scale_rewards(state, steps, discount=config.discount)
        samples, metrics = _prepare(state, steps, scaled, config, values)
        step = partial(gradient_step, config.entropy_weight * (1.0 - iteration / num_iterations))

        def epoch(carry: tuple, key: Key) -> tuple[tuple, Metrics]:
            key_order, key_entropy = jax.random.split(key)
            minibatches = _shuffle(samples, key_order, plan.num_minibatches)
            return jax.lax.scan(step, carry, (minibatches, jax.random.split(key_entropy, plan.num_minibatches)))

        start = (state.actor.params, state.value), state.optimizer
        (params, optimizer_state), history = jax.lax.scan(epoch, start, jax.random.split(key, config.num_epochs))
        if config.final_std:
            over = (iteration + 1) / num_iterations
            params = policy.with_std(params[0], config.initial_std ** (1 - over) * config.final_std**over), params[1]
        moments = state.actor.observations
        if observation_moments is None:
            moments = merge_moments(
                moments, sample_moments(steps.observation.reshape(-1, environment.observation_size))
            )
        state = state._replace(actor=Actor(params[0], moments), value=params[1], optimizer=optimizer_state)
        return state, metrics | jax.tree.map(jnp.mean, history)

    return Learner(init, learn, values)


def scale_rewards(state: Any, steps: Transition, *, discount: float) -> tuple[Any, Array]:
    """(a learner's state with these rewards counted, the rewards over the running deviation of their discounted sum,
    cut at +-10): so that one step size fits every task."""
    done = steps.terminated | steps.truncated
    totals, last = running_returns(steps.reward, done, state.running_return, discount=discount)
    returns = merge_moments(state.returns, sample_moments(totals.reshape(-1)))
    state = state._replace(returns=returns, running_return=last)
    return state, jnp.clip(steps.reward / state.reward_scale, -10.0, 10.0)


def _prepare(
    state: AgentState, steps: Transition, reward: Array, config: PPOConfig, values: Callable[[AgentState, Array], Array]
) -> tuple[Minibatch, Metrics]:
    """Advantages and value targets, flattened to one axis of samples."""
    value = values(state, steps.observation)
    advantage = generalized_advantages(
        reward,
        value,
        values(state, steps.next_observation),
        steps.terminated,
        steps.truncated,
        discount=config.discount,
        gae_lambda=config.gae_lambda,
    )
    observation = normalize(state.actor.observations, steps.observation)
    batch = Minibatch(observation, steps.action, steps.log_prob, advantage, advantage + value)
    metrics = {
        "value/explained_variance": 1 - jnp.var(advantage) / (jnp.var(batch.target) + 1e-8),
        "reward/mean": jnp.mean(steps.reward),
        "reward/variance": jnp.var(steps.reward),
    }
    return jax.tree.map(lambda leaf: leaf.reshape(-1, *leaf.shape[2:]), batch), metrics


def _shuffle(batch: Minibatch, key: Key, num_minibatches: int) -> Minibatch:
    order = jax.random.permutation(key, batch.advantage.shape[0])
    return jax.tree.map(lambda leaf: leaf[order].reshape(num_minibatches, -1, *leaf.shape[1:]), batch)
