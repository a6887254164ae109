"""Trust region policy optimisation (Schulman et al. 2015), which VDB appendix D and GAIL's experiments learn by."""

from collections.abc import Callable
from dataclasses import dataclass
from typing import Any, Literal, NamedTuple

import jax
import jax.numpy as jnp
from jaxtyping import Array, Float, Int

from vdbjax import limits
from vdbjax.rl.baseline import Baseline, count_steps, linear_baseline, network_baseline
from vdbjax.rl.natural_gradient import trust_region_step
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
    imitation the demonstrations' moments stand in this place; in AIRL where `discriminator.normalize` is set, else none
    do."""

    def __post_init__(self) -> None:
        """Rejects values that cannot work."""
        limits.positive(self, "kl_limit", "initial_std", "baseline_learning_rate")
        limits.not_negative(self, "entropy_weight", "damping")
        limits.between(0, 1, self, "discount", "gae_lambda")
        limits.at_least(1, self, "rollout_length", "conjugate_gradient_steps", "fisher_every", "backtracks")
        limits.at_least(1, self, "baseline_epochs", "hidden_sizes")


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
        linear_baseline(size, environment.episode_length)
        if config.baseline == "linear"
        else network_baseline(
            value_network,
            size,
            epochs=config.baseline_epochs,
            num_minibatches=plan.num_minibatches,
            learning_rate=config.baseline_learning_rate,
        )
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
        state, found = _estimate(config, baseline, state, steps._replace(reward=reward), before, after, key)
        params, metrics = _improve(config, policy, state.actor.params, before, steps, found.advantage, key)
        metrics |= {
            "value/explained_variance": 1 - jnp.var(found.target - found.value) / (jnp.var(found.target) + 1e-8),
            "reward/mean": jnp.mean(steps.reward),
            "reward/variance": jnp.var(steps.reward),
        }
        moments = state.actor.observations
        if running:
            moments = merge_moments(moments, sample_moments(steps.observation.reshape(-1, size)))
        return state._replace(actor=Actor(params, moments)), metrics

    return Learner(init, learn, values)


class _Estimates(NamedTuple):
    """What the steps of a rollout came to; [time, num_envs]."""

    value: Array  # by the baseline
    advantage: Array  # over it
    target: Array  # that the baseline was fitted to


def _estimate(
    config: TRPOConfig, baseline: Baseline, state: AgentState, steps: Transition, before: Array, after: Array, key: Key
) -> tuple[AgentState, _Estimates]:
    """The steps' advantages, and the state with its baseline fitted to them; observations are normalised."""
    elapsed, following = count_steps(steps, state.elapsed)
    over = steps.terminated | steps.truncated if baseline.knows_time else steps.terminated
    cut = steps.truncated & ~over

    def advantages(params: Any) -> tuple[Array, Array]:
        value, next_value = (
            baseline.values(params, seen, time) for seen, time in ((before, elapsed), (after, elapsed + 1))
        )
        rule = {"discount": config.discount, "gae_lambda": config.gae_lambda}
        return value, generalized_advantages(steps.reward, value, next_value, over, cut, **rule)

    if baseline.knows_time:  # so few weights that they may be fitted to the very batch that they are used on
        next_value = baseline.values(state.value, after, elapsed + 1)
        target = discounted_returns(steps.reward, next_value, over, cut, discount=config.discount)
        weights, optimizer = baseline.fit(state.value, state.optimizer, before, elapsed, target, key)
        value, advantage = advantages(weights)
    else:
        value, advantage = advantages(state.value)
        target = advantage + value
        weights, optimizer = baseline.fit(state.value, state.optimizer, before, elapsed, target, key)
    fitted = state._replace(value=weights, optimizer=optimizer, elapsed=following)
    return fitted, _Estimates(value, advantage, target)


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
