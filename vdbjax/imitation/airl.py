"""Adversarial inverse reinforcement learning (Fu et al. 2018); with a bottleneck, VAIRL (VDB section 4.3).

The discriminator exp f / (exp f + pi) has f(s, a, s') = g(s) + gamma h(s') - h(s): a reward g and a potential h, which
takes up what belongs to the dynamics. What is learnt of g can be optimised again, in a task with other dynamics.
"""

from collections.abc import Callable
from dataclasses import dataclass, field
from typing import Any, Literal, NamedTuple

import jax
import jax.numpy as jnp
import optax
from jaxtyping import Array, Float, Int

from vdbjax.adversarial.gradient_penalty import r1_penalty
from vdbjax.adversarial.losses import accuracy, bernoulli_entropy, logistic_loss
from vdbjax.bottleneck import (
    BottleneckConfig,
    DualState,
    dual_update,
    kl_to_standard_normal,
    lagrangian,
    mixture_kl,
    sample_code,
)
from vdbjax.networks import Activation, Critic
from vdbjax.rl.normalize import Moments, empty_moments, normalize, sample_moments
from vdbjax.rl.optimizer import OptimizerConfig, make_learner, plan_batch
from vdbjax.rl.policy import Actor, Policy, act_by_sampling
from vdbjax.rl.rollout import RolloutState, evaluate_actor, rollout, start_rollout
from vdbjax.types import Algorithm, Demonstrations, Environment, Key, Metrics, Transition


@dataclass(frozen=True)
class DiscriminatorConfig:
    """The reward g and the potential h, and how they are trained."""

    inputs: Literal["state", "state-action"] = "state"
    """What g sees. Only a g of the state alone can be told apart from what the dynamics add (Fu et al. 2018)."""
    hidden_sizes: tuple[int, ...] = (32, 32)
    """Hidden layers of g, and of h."""
    activation: Activation = "relu"
    """What follows each of them."""
    learning_rate: float = 5e-5
    """Adam's step size."""
    updates: int = 100
    """Gradient steps an iteration."""
    batch_size: int = 32
    """Expert samples a step, and as many of the policy's."""
    replay_iterations: int = 10
    """How many iterations back the policy's samples reach, in half of each batch."""
    gradient_penalty: float = 0.0
    """Weight of R1 on expert samples (VDB eq. 15): of the slope of f in both states."""
    normalize: bool = False
    """Normalise what g, h and the policy see by the demonstrations' moments; without, they see metres as metres."""

    def __post_init__(self) -> None:
        """Rejects values that cannot work."""
        if not self.gradient_penalty >= 0:
            raise ValueError(f"gradient_penalty ({self.gradient_penalty}) must not be negative")
        if not self.learning_rate > 0:
            raise ValueError(f"learning_rate ({self.learning_rate}) must be positive")
        for name in ("updates", "batch_size", "replay_iterations"):
            if getattr(self, name) < 1:
                raise ValueError(f"{name} ({getattr(self, name)}) must be at least 1")


@dataclass(frozen=True)
class Config(OptimizerConfig):
    """Adversarial inverse reinforcement learning from demonstrations."""

    discriminator: DiscriminatorConfig = field(default_factory=DiscriminatorConfig)
    """The reward that is learnt."""
    bottleneck: BottleneckConfig | None = None
    """The variational bottleneck before g and h, which makes AIRL VAIRL."""


START_SCALE = 0.03
"""g and h start flat. What tells the expert from the policy then goes into g first, since h's gradient is a difference
of neighbours; from random starts h sometimes takes it all, and g is left with nothing that could be transferred."""


class Rows(NamedTuple):
    """Transitions as the discriminator sees them; actions in the task's units."""

    observation: Float[Array, "*batch observation"]
    action: Float[Array, "*batch action"]
    next_observation: Float[Array, "*batch observation"]


class DiscriminatorState(NamedTuple):
    """Parameters of g and h, optimizer and the bottleneck's multiplier (held at 0 without one)."""

    params: dict[str, Any]
    optimizer: Any
    dual: DualState


class Discriminator(NamedTuple):
    """g and h as pure functions; the rewards are at the mean of the codes."""

    init: Callable[[Key], DiscriminatorState]
    step: Callable[..., tuple[DiscriminatorState, Metrics]]
    """(state, expert's Rows [updates, batch], their log pi, the policy's Rows, their log pi, key); log pi in nats."""
    reward: Callable[[Any, Array, Array], Array]  # (params, observation, action) -> g
    shaped: Callable[[Any, Rows], Array]  # (params, rows) -> f


def make_discriminator(
    config: DiscriminatorConfig,
    bottleneck: BottleneckConfig | None,
    *,
    observation_size: int,
    action_size: int,
    discount: float,
    moments: Moments | None = None,
) -> Discriminator:
    """The discriminator of the config; observations are normalised by `moments`, or seen as they are.

    h counts where an episode ends too, by its rule or by the time limit: f stays one function of the transition.
    """
    latent = bottleneck.latent_size if bottleneck else None
    network: Any = Critic(config.hidden_sizes, latent, config.activation, START_SCALE)
    optimizer = optax.adam(config.learning_rate)
    scale = moments or empty_moments((observation_size,))
    with_action = config.inputs == "state-action"

    def init(key: Key) -> DiscriminatorState:
        key_g, key_h = jax.random.split(key)
        size = observation_size + action_size * with_action
        params = {"g": network.init(key_g, jnp.zeros(size)), "h": network.init(key_h, jnp.zeros(observation_size))}
        beta = jnp.float32(bottleneck.beta_init if bottleneck else 0.0)
        return DiscriminatorState(params, optimizer.init(params), DualState(beta))

    def inputs(rows: Rows) -> tuple[Array, Array, Array]:
        """What g, h and h of the successor see."""
        now, later = normalize(scale, rows.observation), normalize(scale, rows.next_observation)
        return jnp.concatenate([now, rows.action], axis=-1) if with_action else now, now, later

    def reward(params: Any, observation: Array, action: Array) -> Array:
        return network.apply(params["g"], inputs(Rows(observation, action, observation))[0])

    def shaped(params: Any, rows: Rows) -> Array:
        seen, now, later = inputs(rows)
        potential = network.apply(params["h"], later) * discount - network.apply(params["h"], now)
        return network.apply(params["g"], seen) + potential

    def judge(params: Any, seen: tuple[Array, Array, Array], key: Key) -> tuple[Array, Array]:
        """f of codes drawn, and the KL of the three of them together (VDB section 4.3), nats."""
        names, factors = ("g", "h", "h"), (1.0, -1.0, discount)
        value, nats = jnp.zeros(seen[0].shape[:-1]), jnp.zeros(seen[0].shape[:-1])
        for name, factor, values, key_code in zip(names, factors, seen, jax.random.split(key, 3), strict=True):
            mean, std = network.apply(params[name], values, method="encode")
            if bottleneck:
                nats += kl_to_standard_normal(mean, std)
                mean = sample_code(key_code, mean, std)
            value += factor * network.apply(params[name], mean, method="decide")
        return value, nats

    def loss(params: Any, beta: Array, batch: tuple, key: Key) -> tuple[Array, Metrics]:
        """VDB section 4.3's objective: D = exp f / (exp f + pi), so the logit is f - log pi."""
        (expert, expert_nats), (policy, policy_nats) = batch
        key_real, key_fake, key_penalty = jax.random.split(key, 3)
        seen = inputs(expert)
        real, real_kl = judge(params, seen, key_real)
        fake, fake_kl = judge(params, inputs(policy), key_fake)
        logits = real - expert_nats, fake - policy_nats
        total = logistic_loss(*logits)
        real_accuracy, fake_accuracy = accuracy(*logits)
        metrics = {
            "discriminator/loss": total,
            "discriminator/expert_accuracy": real_accuracy,
            "discriminator/policy_accuracy": fake_accuracy,
            "discriminator/entropy_nats": jnp.mean(bernoulli_entropy(jnp.concatenate(logits))),
        }
        if bottleneck:
            kl = mixture_kl(real_kl, fake_kl)
            metrics["bottleneck/kl_nats"] = kl
            total = lagrangian(total, kl, beta, constraint=bottleneck.info_constraint)
        if config.gradient_penalty:
            penalty = r1_penalty(_of_one_array(lambda parts: judge(params, parts, key_penalty)[0], seen), _joined(seen))
            metrics["discriminator/gradient_penalty"] = penalty
            total += config.gradient_penalty * penalty
        return total, metrics

    def update(state: DiscriminatorState, batch_and_key: tuple) -> tuple[DiscriminatorState, Metrics]:
        *batch, key = batch_and_key
        gradients, metrics = jax.grad(loss, has_aux=True)(state.params, state.dual.beta, tuple(batch), key)
        updates, optimizer_state = optimizer.update(gradients, state.optimizer, state.params)
        metrics["discriminator/gradient_norm"] = optax.tree.norm(gradients)
        dual = state.dual
        if bottleneck and bottleneck.adaptive:
            rule = {"constraint": bottleneck.info_constraint, "step_size": bottleneck.dual_step_size}
            dual = dual_update(dual, metrics["bottleneck/kl_nats"], **rule)
        return DiscriminatorState(optax.apply_updates(state.params, updates), optimizer_state, dual), metrics

    def step(
        state: DiscriminatorState, expert: Rows, expert_nats: Array, policy: Rows, policy_nats: Array, key: Key
    ) -> tuple[DiscriminatorState, Metrics]:
        keys = jax.random.split(key, len(expert_nats))
        state, history = jax.lax.scan(update, state, ((expert, expert_nats), (policy, policy_nats), keys))
        metrics = jax.tree.map(jnp.mean, history)
        if bottleneck:
            metrics["bottleneck/beta"] = state.dual.beta
        return state, metrics

    return Discriminator(init, step, reward, shaped)


def _joined(seen: tuple[Array, Array, Array]) -> Array:
    """What f is a function of: g's input (which begins with h's) and the successor."""
    return jnp.concatenate([seen[0], seen[2]], axis=-1)


def _of_one_array(function: Callable[[tuple], Array], like: tuple[Array, Array, Array]) -> Callable[[Array], Array]:
    """The function of (g's, h's, h's later input) as one of `_joined`."""
    seen, now = like[0].shape[-1], like[1].shape[-1]
    return lambda joined: function((joined[..., :seen], joined[..., :now], joined[..., seen:]))


class State(NamedTuple):
    """Everything a run needs to go on."""

    agent: Any
    discriminator: DiscriminatorState
    replay: Rows  # [replay_iterations, rows]: of each of the latest iterations an equal, random part
    rollout: RolloutState
    step: Int[Array, ""]  # iterations done
    key: Key

    @property
    def actor(self) -> Actor:
        """What acts."""
        return self.agent.actor


def make(
    config: Config,
    environment: Environment,
    policy: Policy,
    demonstrations: Demonstrations,
    *,
    value_network: Any,
    num_envs: int,
    num_iterations: int,
    num_eval_episodes: int,
) -> Algorithm:
    """AIRL or VAIRL from the demonstrations.

    The policy learns from f, at the mean of the codes; its learner's entropy weight stands for AIRL's - log pi.
    """
    demonstrations = jax.tree.map(jnp.asarray, demonstrations)
    expert = Rows(demonstrations.observation, demonstrations.action, demonstrations.next_observation)
    moments = sample_moments(expert.observation) if config.discriminator.normalize else None
    plan = plan_batch(config.learner, num_envs)
    learner = make_learner(
        config.learner,
        environment,
        policy,
        value_network=value_network,
        num_iterations=num_iterations,
        num_envs=num_envs,
        observation_moments=moments,
    )
    discriminator = make_discriminator(
        config.discriminator,
        config.bottleneck,
        observation_size=environment.observation_size,
        action_size=environment.action_size,
        discount=config.learner.discount,
        moments=moments,
    )
    blocks, updates, size = (
        config.discriminator.replay_iterations,
        config.discriminator.updates,
        config.discriminator.batch_size,
    )
    kept = max(1, num_envs * plan.rollout_length // blocks)

    def init(key: Key) -> State:
        key_agent, key_critic, key_env, key_run = jax.random.split(key, 4)
        widths = environment.observation_size, environment.action_size, environment.observation_size
        replay = Rows(*(jnp.zeros((blocks, kept, width)) for width in widths))
        episodes = start_rollout(environment, key_env, num_envs)
        return State(learner.init(key_agent), discriminator.init(key_critic), replay, episodes, jnp.int32(0), key_run)

    def log_pi(actor: Actor, rows: Rows) -> Array:
        return policy.likelihood(actor.params, normalize(actor.observations, rows.observation), rows.action)

    def draw_policy_rows(state: State, rows: Rows, key: Key) -> tuple[Rows, Rows]:
        """(rows [updates, batch] for the discriminator, the replay with these in it)"""
        key_keep, key_new, key_old, key_block, key_choice = jax.random.split(key, 5)
        keep = jax.random.randint(key_keep, (kept,), 0, len(rows.observation))
        block = state.step % blocks
        replay = jax.tree.map(lambda old, new: old.at[block].set(new[keep]), state.replay, rows)
        shape = updates, size
        new = jax.random.randint(key_new, shape, 0, len(rows.observation))
        old = jax.random.randint(key_old, shape, 0, kept)
        # Blocks 0 to step are filled, until all are.
        of_block = jax.random.randint(key_block, shape, 0, jnp.minimum(state.step + 1, blocks))
        past = jax.random.bernoulli(key_choice, 0.5, shape)[..., None]
        mixed = jax.tree.map(lambda held, fresh: jnp.where(past, held[of_block, old], fresh[new]), replay, rows)
        return mixed, replay

    def update(state: State, batch: None) -> tuple[State, Metrics]:
        key = jax.random.fold_in(state.key, state.step)
        key_rollout, key_rows, key_expert, key_critic, key_learn = jax.random.split(key, 5)
        act = act_by_sampling(policy, state.actor)
        episodes, steps, metrics = rollout(environment, act, state.rollout, key_rollout, length=plan.rollout_length)
        rows = _rows(policy, steps)
        flat = jax.tree.map(lambda leaf: leaf.reshape(-1, leaf.shape[-1]), rows)
        mine, replay = draw_policy_rows(state, flat, key_rows)
        chosen = jax.random.randint(key_expert, (updates, size), 0, len(expert.observation))
        shown = jax.tree.map(lambda leaf: leaf[chosen], expert)
        nats = log_pi(state.actor, shown), log_pi(state.actor, mine)
        critic, judged = discriminator.step(state.discriminator, shown, nats[0], mine, nats[1], key_critic)
        steps = steps._replace(reward=discriminator.shaped(critic.params, rows))
        agent, learnt = learner.learn(state.agent, steps, key_learn, state.step)
        return State(agent, critic, replay, episodes, state.step + 1, state.key), metrics | judged | learnt

    def evaluate(state: State, key: Key) -> Metrics:
        return evaluate_actor(environment, policy, state.actor, key, num_episodes=num_eval_episodes)

    def reward(params: Any, observation: Array, action: Array, next_observation: Array) -> Array:
        return discriminator.reward(params, observation, action)

    return Algorithm(init, update, evaluate, reward)


def _rows(policy: Policy, steps: Transition) -> Rows:
    return Rows(steps.observation, policy.bound(steps.action), steps.next_observation)
