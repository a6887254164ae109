"""Trust region policy optimisation (Schulman et al. 2015), the optimiser of VDB appendix D and of GAIL's experiments.

Each update takes the natural gradient's direction, as far as the mean KL divergence of the new policy allows, and then
shorter steps until the objective has truly risen within that bound.
"""

from collections.abc import Callable
from dataclasses import dataclass
from typing import Any, Literal, NamedTuple

import jax
import jax.numpy as jnp
import optax
from jax.flatten_util import ravel_pytree
from jaxtyping import Array, Float, Int

from vdbjax.rl.normalize import Moments, empty_moments, merge_moments, normalize, sample_moments
from vdbjax.rl.policy import Actor, Distribution, Policy
from vdbjax.rl.ppo import BatchPlan, Learner, most_parts, scale_rewards
from vdbjax.rl.returns import discounted_returns, generalized_advantages
from vdbjax.types import Environment, Key, Metrics, Transition


@dataclass(frozen=True)
class TRPOConfig:
    """How a policy learns from rollouts."""

    kl_limit: float = 0.01
    """Largest mean KL divergence (nats) of the policy before an update from the one after."""
    rollout_length: int | None = None
    """Control steps of each environment between updates. None: 10,000 / num_envs, rounded up."""
    discount: float = 0.99
    """gamma, a control step."""
    gae_lambda: float = 1.0
    """lambda of the advantage estimates; 1 is the whole return less the baseline."""
    entropy_weight: float = 0.01
    """Weight of the policy's entropy (nats) in the objective, beside advantages of deviation 1. (VDB appendix D says
    0.1, which in this place lets the deviation grow without bound wherever the reward does not charge actions.)"""
    conjugate_gradient_steps: int = 10
    """Steps towards the natural gradient."""
    damping: float = 1e-4
    """Added to the Fisher matrix's diagonal."""
    fisher_every: int = 5
    """Fisher-vector products are means over every n-th sample."""
    backtracks: int = 15
    """Steps tried in the line search, each 0.8 times the one before."""
    baseline: Literal["linear", "network"] = "linear"
    """What the return is compared with: a linear function of the observation, its squares and the time since the start,
    fitted anew to each batch; or a network of the observation."""
    baseline_epochs: int = 5
    """Passes over each batch, for a network."""
    baseline_learning_rate: float = 1e-3
    """Adam's step size, for a network."""
    hidden_sizes: tuple[int, ...] = (32, 32)
    """Hidden layers of the policy, and of the baseline's network."""
    activation: Literal["tanh", "relu"] = "relu"
    """What follows each of them."""
    initial_std: float = 1.0
    """Deviation of the first policy, in units of half the action range."""
    distribution: Distribution = "gaussian"
    """Gaussian clipped to the action range, or squashed into it by tanh."""
    normalize: bool = True
    """Normalise what the policy sees by running moments; without, it sees observations as they are, within +-10. In
    imitation the demonstrations' moments stand in this place."""

    def __post_init__(self) -> None:
        """Rejects values that cannot work."""
        for name in ("kl_limit", "initial_std", "baseline_learning_rate"):
            if not getattr(self, name) > 0:
                raise ValueError(f"{name} ({getattr(self, name)}) must be positive")
        for name in ("entropy_weight", "damping"):
            if not getattr(self, name) >= 0:
                raise ValueError(f"{name} ({getattr(self, name)}) must not be negative")
        for name in ("discount", "gae_lambda"):
            if not 0 <= getattr(self, name) <= 1:
                raise ValueError(f"{name} ({getattr(self, name)}) must lie in [0, 1]")
        for name in ("rollout_length", "conjugate_gradient_steps", "fisher_every", "backtracks", "baseline_epochs"):
            if (value := getattr(self, name)) is not None and value < 1:
                raise ValueError(f"{name} ({value}) must be at least 1")
        if any(size < 1 for size in self.hidden_sizes):
            raise ValueError(f"hidden_sizes {self.hidden_sizes} must be at least 1 each")


class AgentState(NamedTuple):
    """A policy, its baseline and what they have seen."""

    actor: Actor
    value: Any  # the baseline: a network's parameters, or the weights of the linear features
    optimizer: Any  # of the network; () for the linear baseline
    returns: Moments  # of the running discounted return, whose deviation scales the rewards
    running_return: Float[Array, " num_envs"]
    elapsed: Int[Array, " num_envs"]  # control steps since each episode's start

    @property
    def reward_scale(self) -> Float[Array, ""]:
        """What rewards are divided by before values are learnt from them."""
        return jnp.sqrt(self.returns.variance + 1e-8)


def plan_batch(config: TRPOConfig, num_envs: int) -> BatchPlan:
    """10,000 steps an update where the config does not say otherwise; minibatches are for a baseline's network."""
    length = config.rollout_length or -(-10_000 // num_envs)
    return BatchPlan(length, most_parts(num_envs * length))


def fisher_vector_product(
    kl: Callable[[Float[Array, " P"]], Array], params: Float[Array, " P"], vector: Float[Array, " P"]
) -> Float[Array, " P"]:
    """F v, with F the Hessian of `kl` at `params`, where it and its gradient are 0; no matrix is formed."""
    return jax.jvp(jax.grad(kl), (params,), (vector,))[1]


def conjugate_gradient(
    product: Callable[[Float[Array, " P"]], Float[Array, " P"]], target: Float[Array, " P"], *, steps: int
) -> Float[Array, " P"]:
    """x with A x near `target`, for a positive definite A given by its products (Hestenes & Stiefel 1952)."""

    def step(carry: tuple, _: None) -> tuple[tuple, None]:
        x, residual, direction, norm = carry
        image = product(direction)
        curvature = direction @ image
        going = (norm > 1e-12) & (curvature > 0.0)  # beyond that only rounding is left
        length = jnp.where(going, norm / jnp.where(going, curvature, 1.0), 0.0)
        x, residual = x + length * direction, residual - length * image
        following = residual @ residual
        turn = jnp.where(going, following / jnp.where(going, norm, 1.0), 0.0)
        return (x, residual, residual + turn * direction, jnp.where(going, following, norm)), None

    start = jnp.zeros_like(target), target, target, target @ target
    return jax.lax.scan(step, start, None, length=steps)[0][0]


def trust_region_step(
    objective: Callable[[Any], Array],
    kl: Callable[[Any], Array],
    sampled_kl: Callable[[Any], Array],
    params: Any,
    *,
    kl_limit: float,
    conjugate_gradient_steps: int,
    damping: float,
    backtracks: int,
) -> tuple[Any, Metrics]:
    """Raises `objective` within kl(params) <= kl_limit; where no step tried does both, the params stay as they are.

    x = F^-1 grad objective, step = sqrt(2 kl_limit / x'F x) x, then 0.8, 0.64, ... times that. F is the Hessian of
    `sampled_kl`, which may be a cheaper `kl`. Schulman et al. 2015, section 6 and appendix C.
    """
    flat, unravel = ravel_pytree(params)
    before, gradient = jax.value_and_grad(lambda x: objective(unravel(x)))(flat)

    def product(vector: Array) -> Array:
        return fisher_vector_product(lambda x: sampled_kl(unravel(x)), flat, vector) + damping * vector

    direction = conjugate_gradient(product, gradient, steps=conjugate_gradient_steps)
    curvature = direction @ product(direction)
    full = jnp.sqrt(2.0 * kl_limit / jnp.maximum(curvature, 1e-12)) * direction

    def attempt(carry: tuple) -> tuple:
        count, _, _ = carry
        candidate = flat + 0.8**count * full
        distance = kl(unravel(candidate))
        # Comparisons with NaN are false, so that a step into NaN is not taken.
        return count + 1, candidate, (distance <= kl_limit) & (objective(unravel(candidate)) > before)

    count, candidate, accepted = jax.lax.while_loop(
        lambda carry: ~carry[2] & (carry[0] < backtracks), attempt, (jnp.int32(0), flat, jnp.bool_(False))
    )
    params = unravel(jnp.where(accepted, candidate, flat))
    metrics = {
        "policy/kl_nats": kl(params),
        "policy/gradient_norm": jnp.linalg.norm(gradient),
        "policy/line_search_steps": count.astype(jnp.float32),
        "policy/improvement": objective(params) - before,
    }
    return params, metrics


class Baseline(NamedTuple):
    """What an observation is worth, at a time since the episode's start; in units of the scaled reward."""

    init: Callable[[Key], tuple[Any, Any]]  # parameters, optimizer state
    values: Callable[[Any, Array, Array], Array]  # (parameters, normalised observation, elapsed)
    fit: Callable[..., tuple[Any, Any]]  # (parameters, optimizer, observation, elapsed, target, key)
    knows_time: bool


def time_features(
    observation: Float[Array, "*batch observation"], time: Float[Array, "*batch"]
) -> Float[Array, "*batch features"]:
    """(o, o^2, t, t^2, t^3, 1), as in Duan et al. 2016; t is the time since the start in lengths of an episode."""
    t = time[..., None]
    return jnp.concatenate([observation, observation**2, t, t**2, t**3, jnp.ones_like(t)], axis=-1)


def _linear_baseline(observation_size: int, episode_length: int) -> Baseline:
    size = 2 * observation_size + 4

    def values(weights: Array, observation: Array, elapsed: Array) -> Array:
        return time_features(observation, elapsed / episode_length) @ weights

    def fit(weights: Array, optimizer: Any, observation: Array, elapsed: Array, target: Array, key: Key) -> tuple:
        features = time_features(observation, elapsed / episode_length).reshape(-1, size)
        matrix = features.T @ features / len(features) + 1e-5 * jnp.eye(size)
        # Not by LAPACK, whose batched calls can deadlock on XLA's threads where cores are few.
        moment = features.T @ target.reshape(-1) / len(features)
        return conjugate_gradient(lambda v: matrix @ v, moment, steps=4 * size), optimizer

    return Baseline(
        init=lambda key: (jnp.zeros(size), ()),
        values=values,
        fit=fit,
        knows_time=True,
    )


def _network_baseline(config: TRPOConfig, network: Any, observation_size: int, num_minibatches: int) -> Baseline:
    optimizer = optax.adam(config.baseline_learning_rate)

    def init(key: Key) -> tuple[Any, Any]:
        params = network.init(key, jnp.zeros(observation_size))
        return params, optimizer.init(params)

    def gradient_step(carry: tuple, batch: tuple) -> tuple[tuple, None]:
        params, state = carry
        observation, target = batch
        gradients = jax.grad(lambda p: jnp.mean((network.apply(p, observation) - target) ** 2))(params)
        updates, state = optimizer.update(gradients, state, params)
        return (optax.apply_updates(params, updates), state), None

    def fit(params: Any, state: Any, observation: Array, elapsed: Array, target: Array, key: Key) -> tuple:
        rows = observation.reshape(-1, observation_size), target.reshape(-1)

        def epoch(carry: tuple, key: Key) -> tuple[tuple, None]:
            order = jax.random.permutation(key, len(rows[1]))
            cut = jax.tree.map(lambda leaf: leaf[order].reshape(num_minibatches, -1, *leaf.shape[1:]), rows)
            return jax.lax.scan(gradient_step, carry, cut)

        return jax.lax.scan(epoch, (params, state), jax.random.split(key, config.baseline_epochs))[0]

    return Baseline(init, lambda params, observation, elapsed: network.apply(params, observation), fit, False)


def make_learner(
    config: TRPOConfig,
    environment: Environment,
    policy: Policy,
    *,
    value_network: Any,
    num_envs: int,
    observation_moments: Moments | None = None,
) -> Learner:
    """TRPO over the environment's observations and the policy's actions.

    With `observation_moments` the observations are normalised by those, for good; without, by running ones or not at
    all, as the config says. The linear baseline knows the time, and so that an episode of fixed length ends: it counts
    nothing after a time limit. The network does not, and there stands for what would have followed. `values` of the
    linear baseline are those at an episode's start.
    """
    size = environment.observation_size
    plan = plan_batch(config, num_envs)
    baseline = (
        _linear_baseline(size, environment.episode_length)
        if config.baseline == "linear"
        else _network_baseline(config, value_network, size, plan.num_minibatches)
    )
    running = observation_moments is None and config.normalize

    def init(key: Key) -> AgentState:
        key_policy, key_value = jax.random.split(key)
        moments = observation_moments or empty_moments((size,))
        actor = Actor(policy.init(key_policy), moments)
        start = jnp.zeros(num_envs)
        return AgentState(actor, *baseline.init(key_value), empty_moments(()), start, start.astype(jnp.int32))

    def values(state: AgentState, observation: Array) -> Array:
        seen = normalize(state.actor.observations, observation)
        return baseline.values(state.value, seen, jnp.zeros(seen.shape[:-1], jnp.int32))

    def learn(state: AgentState, steps: Transition, key: Key, iteration: Array) -> tuple[AgentState, Metrics]:
        state, reward = scale_rewards(state, steps, discount=config.discount)
        before, after = (
            normalize(state.actor.observations, seen) for seen in (steps.observation, steps.next_observation)
        )
        elapsed, following = _count_steps(steps, state.elapsed)
        over = steps.terminated | steps.truncated if baseline.knows_time else steps.terminated
        cut = steps.truncated & ~over

        def advantages(params: Any) -> tuple[Array, Array]:
            value = baseline.values(params, before, elapsed)
            next_value = baseline.values(params, after, elapsed + 1)
            rule = {"discount": config.discount, "gae_lambda": config.gae_lambda}
            return value, generalized_advantages(reward, value, next_value, over, cut, **rule)

        if baseline.knows_time:  # so few weights that they may be fitted to the very batch that they are used on
            next_value = baseline.values(state.value, after, elapsed + 1)
            target = discounted_returns(reward, next_value, over, cut, discount=config.discount)
            fitted = baseline.fit(state.value, state.optimizer, before, elapsed, target, key)
            value, advantage = advantages(fitted[0])
        else:
            value, advantage = advantages(state.value)
            target = advantage + value
            fitted = baseline.fit(state.value, state.optimizer, before, elapsed, target, key)
        params, metrics = _improve(config, policy, state.actor.params, before, steps, advantage, key)
        metrics |= {
            "value/explained_variance": 1 - jnp.var(target - value) / (jnp.var(target) + 1e-8),
            "reward/mean": jnp.mean(steps.reward),
            "reward/variance": jnp.var(steps.reward),
        }
        moments = state.actor.observations
        if running:
            moments = merge_moments(moments, sample_moments(steps.observation.reshape(-1, size)))
        state = state._replace(actor=Actor(params, moments), value=fitted[0], optimizer=fitted[1], elapsed=following)
        return state, metrics

    return Learner(init, learn, values)


def _improve(
    config: TRPOConfig, policy: Policy, params: Any, observation: Array, steps: Transition, advantage: Array, key: Key
) -> tuple[Any, Metrics]:
    """One trust region step on E[ratio * advantage] + entropy, the advantages of mean 0 and deviation 1."""
    seen, action = (leaf.reshape(-1, leaf.shape[-1]) for leaf in (observation, steps.action))
    old, scaled = steps.log_prob.reshape(-1), advantage.reshape(-1)
    scaled = (scaled - jnp.mean(scaled)) / (jnp.std(scaled) + 1e-8)

    def entropy(new: Any) -> Array:
        return jnp.mean(policy.entropy(new, seen, key))

    def objective(new: Any) -> Array:
        ratio = jnp.exp(policy.log_prob(new, seen, action) - old)
        return jnp.mean(ratio * scaled) + config.entropy_weight * entropy(new)

    def mean_kl(seen: Array) -> Callable[[Any], Array]:
        return lambda new: jnp.mean(policy.kl(params, new, seen))

    new, metrics = trust_region_step(
        objective,
        mean_kl(seen),
        mean_kl(seen[:: config.fisher_every]),
        params,
        kl_limit=config.kl_limit,
        conjugate_gradient_steps=config.conjugate_gradient_steps,
        damping=config.damping,
        backtracks=config.backtracks,
    )
    return new, metrics | {"policy/entropy_nats": entropy(new)}


def _count_steps(steps: Transition, start: Array) -> tuple[Array, Array]:
    """Control steps since each episode's start: [time, num_envs] before each step, and [num_envs] after the last."""

    def forward(elapsed: Array, done: Array) -> tuple[Array, Array]:
        return jnp.where(done, 0, elapsed + 1), elapsed

    following, elapsed = jax.lax.scan(forward, start, steps.terminated | steps.truncated)
    return elapsed, following
