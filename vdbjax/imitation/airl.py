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
from vdbjax.types import Algorithm, Demonstrations, Environment, Key, Metrics


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
    anneal: bool = False
    """Let the step size fall linearly to 0 over the run. Once the policy moves like the expert, a reward that goes on
    learning turns from what the expert seeks to where it has been."""
    updates: int = 100
    """Gradient steps an iteration."""
    batch_size: int = 32
    """Expert samples a step, and as many of the policy's."""
    replay_blocks: int = 20
    """Iterations of the past from which half of each batch of the policy's samples comes; drawn evenly from all, so
    that g stays low where only early policies went."""
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
        for name in ("updates", "batch_size", "replay_blocks"):
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
    log_pi: Float[Array, "*batch"]  # nats: of the expert's under the policy of now, of others under the one that acted


class DiscriminatorState(NamedTuple):
    """Parameters of g and h, optimizer and the bottleneck's multiplier (held at 0 without one)."""

    params: dict[str, Any]
    optimizer: Any
    dual: DualState


class Discriminator(NamedTuple):
    """g and h as pure functions; the rewards are at the mean of the codes."""

    init: Callable[[Key], DiscriminatorState]
    step: Callable[..., tuple[DiscriminatorState, Metrics]]
    """(state, expert's Rows [updates, batch], the policy's, key) -> the state after as many updates."""
    reward: Callable[[Any, Array, Array], Array]  # (params, observation, action) -> g
    shaped: Callable[[Any, Rows], Array]  # (params, rows) -> f


def make_discriminator(
    config: DiscriminatorConfig,
    bottleneck: BottleneckConfig | None,
    *,
    observation_size: int,
    action_size: int,
    discount: float,
    num_updates: int,
    moments: Moments | None = None,
) -> Discriminator:
    """The discriminator of the config; observations are normalised by `moments`, or seen as they are. `num_updates` are
    those of the whole run.

    h counts where an episode ends too, by its rule or by the time limit: f stays one function of the transition.
    """
    network: Any = Critic(config.hidden_sizes, None, config.activation, head_scale=START_SCALE)
    if bottleneck:
        network = network.clone(latent_size=bottleneck.latent_size, mean_scale=bottleneck.mean_scale, head_scale=1.0)
    rate = config.learning_rate
    optimizer = optax.adam(optax.linear_schedule(rate, 0.0, num_updates) if config.anneal else rate)
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
        seen = normalize(scale, observation)
        return network.apply(params["g"], jnp.concatenate([seen, action], axis=-1) if with_action else seen)

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

    def loss(params: Any, beta: Array, expert: Rows, policy: Rows, key: Key) -> tuple[Array, Metrics]:
        """VDB section 4.3's objective: D = exp f / (exp f + pi), so the logit is f - log pi."""
        key_real, key_fake, key_penalty = jax.random.split(key, 3)
        seen = inputs(expert)
        real, real_kl = judge(params, seen, key_real)
        fake, fake_kl = judge(params, inputs(policy), key_fake)
        logits = real - expert.log_pi, fake - policy.log_pi
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
            total = lagrangian(total, kl, beta, constraint=bottleneck.info_constraint, damping=bottleneck.damping)
        if config.gradient_penalty:
            penalty = r1_penalty(_of_one_array(lambda parts: judge(params, parts, key_penalty)[0], seen), _joined(seen))
            metrics["discriminator/gradient_penalty"] = penalty
            total += config.gradient_penalty * penalty
        return total, metrics

    def update(state: DiscriminatorState, batch: tuple[Rows, Rows, Key]) -> tuple[DiscriminatorState, Metrics]:
        gradients, metrics = jax.grad(loss, has_aux=True)(state.params, state.dual.beta, *batch)
        updates, optimizer_state = optimizer.update(gradients, state.optimizer, state.params)
        metrics["discriminator/gradient_norm"] = optax.tree.norm(gradients)
        dual = state.dual
        if bottleneck and bottleneck.adaptive:
            rule = {"constraint": bottleneck.info_constraint, "step_size": bottleneck.dual_step_size}
            dual = dual_update(dual, metrics["bottleneck/kl_nats"], **rule)
        return DiscriminatorState(optax.apply_updates(state.params, updates), optimizer_state, dual), metrics

    def step(state: DiscriminatorState, expert: Rows, policy: Rows, key: Key) -> tuple[DiscriminatorState, Metrics]:
        state, history = jax.lax.scan(update, state, (expert, policy, jax.random.split(key, len(expert.log_pi))))
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
    replay: Rows  # [replay_blocks, rows]: of iterations drawn evenly from all so far, an equal part each
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
    expert = Rows(
        jnp.asarray(demonstrations.observation),
        jnp.asarray(demonstrations.action),
        jnp.asarray(demonstrations.next_observation),
        jnp.zeros(len(demonstrations.reward)),
    )
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
        num_updates=num_iterations * config.discriminator.updates,
        moments=moments,
    )
    blocks, updates, size = (
        config.discriminator.replay_blocks,
        config.discriminator.updates,
        config.discriminator.batch_size,
    )
    kept = max(1, num_envs * plan.rollout_length // blocks)

    def init(key: Key) -> State:
        key_agent, key_critic, key_env, key_run = jax.random.split(key, 4)
        seen, done = (jnp.zeros((blocks, kept, n)) for n in (environment.observation_size, environment.action_size))
        replay = Rows(seen, done, jnp.copy(seen), jnp.zeros((blocks, kept)))
        episodes = start_rollout(environment, key_env, num_envs)
        return State(learner.init(key_agent), discriminator.init(key_critic), replay, episodes, jnp.int32(0), key_run)

    def rated(actor: Actor, rows: Rows) -> Rows:
        """With log pi by this actor, of the actions as they were bounded: a draw beyond the range is its edge."""
        seen = normalize(actor.observations, rows.observation)
        return rows._replace(log_pi=policy.likelihood(actor.params, seen, rows.action))

    def remember(state: State, rows: Rows, key: Key) -> Rows:
        """The replay with some of these rows, by reservoir sampling over iterations (Vitter 1985, algorithm R)."""
        key_rows, key_block = jax.random.split(key)
        keep = jax.random.randint(key_rows, (kept,), 0, len(rows.log_pi))
        drawn = jax.random.randint(key_block, (), 0, state.step + 1)
        block = jnp.where(state.step < blocks, state.step, drawn)  # beyond the last block: not kept
        fresh = rated(state.actor, jax.tree.map(lambda leaf: leaf[keep], rows))
        return jax.tree.map(lambda old, new: old.at[block].set(new, mode="drop"), state.replay, fresh)

    def draw(state: State, rows: Rows, replay: Rows, key: Key) -> Rows:
        """[updates, batch] of the policy's samples, half of them from the past."""
        key_new, key_old, key_block, key_choice = jax.random.split(key, 4)
        shape = updates, size
        new = jax.random.randint(key_new, shape, 0, len(rows.log_pi))
        old = jax.random.randint(key_old, shape, 0, kept)
        of_block = jax.random.randint(key_block, shape, 0, jnp.minimum(state.step + 1, blocks))
        past = jax.random.bernoulli(key_choice, 0.5, shape)
        fresh = rated(state.actor, jax.tree.map(lambda leaf: leaf[new], rows))
        held = jax.tree.map(lambda leaf: leaf[of_block, old], replay)
        choose = lambda one, other: jnp.where(past.reshape(*shape, *[1] * (one.ndim - 2)), one, other)  # noqa: E731
        return jax.tree.map(choose, held, fresh)

    def update(state: State, batch: None) -> tuple[State, Metrics]:
        key = jax.random.fold_in(state.key, state.step)
        key_rollout, key_keep, key_rows, key_expert, key_critic, key_learn = jax.random.split(key, 6)
        act = act_by_sampling(policy, state.actor)
        episodes, steps, metrics = rollout(environment, act, state.rollout, key_rollout, length=plan.rollout_length)
        seen = Rows(steps.observation, policy.bound(steps.action), steps.next_observation, steps.log_prob)
        flat = jax.tree.map(lambda leaf: leaf.reshape(-1, *leaf.shape[2:]), seen)
        replay = remember(state, flat, key_keep)
        chosen = jax.random.randint(key_expert, (updates, size), 0, len(expert.log_pi))
        shown = rated(state.actor, jax.tree.map(lambda leaf: leaf[chosen], expert))
        mine = draw(state, flat, replay, key_rows)
        critic, judged = discriminator.step(state.discriminator, shown, mine, key_critic)
        steps = steps._replace(reward=discriminator.shaped(critic.params, seen))
        agent, learnt = learner.learn(state.agent, steps, key_learn, state.step)
        return State(agent, critic, replay, episodes, state.step + 1, state.key), metrics | judged | learnt

    def evaluate(state: State, key: Key) -> Metrics:
        return evaluate_actor(environment, policy, state.actor, key, num_episodes=num_eval_episodes)

    def reward(params: Any, observation: Array, action: Array, next_observation: Array) -> Array:
        return discriminator.reward(params, observation, action)

    return Algorithm(init, update, evaluate, reward)
