"""AIRL's discriminator exp f / (exp f + pi), with f(s, a, s') = g(s) + gamma h(s') - h(s) (Fu et al. 2018).

g is the reward, and h a potential, which takes up what belongs to the dynamics. With a bottleneck before both it is
VAIRL's (VDB section 4.3).
"""

from collections.abc import Callable
from dataclasses import dataclass
from functools import partial
from typing import Any, Literal, NamedTuple

import jax
import jax.numpy as jnp
import optax
from jaxtyping import Array, Float

from vdbjax import limits
from vdbjax.adversarial.gradient_penalty import r1_penalty
from vdbjax.bottleneck import BottleneckConfig, kl_to_standard_normal, sample_code
from vdbjax.imitation.discriminator import DiscriminatorState, Verdicts, descend, objective, repeat, start
from vdbjax.networks import Activation, Critic
from vdbjax.rl.normalize import Moments, empty_moments, normalize
from vdbjax.types import Key, Metrics


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
    averaged_iterations: int = 1
    """Iterations whose discriminators' mean is the reward that is kept, the last of them weighing most: what only tells
    the policy of one iteration from the expert comes and goes. 1 keeps the last. The policy learns from that in any
    case."""
    normalize: bool = False
    """Normalise what g, h and the policy see by the demonstrations' moments; without, they see metres as metres, within
    +-10."""

    def __post_init__(self) -> None:
        """Rejects values that cannot work."""
        limits.not_negative(self, "gradient_penalty")
        limits.positive(self, "learning_rate")
        limits.at_least(1, self, "updates", "batch_size", "replay_blocks", "averaged_iterations", "hidden_sizes")


START_SCALE = 0.03
"""g and h start flat. What tells the expert from the policy then goes into g first, since h's gradient is a difference
of neighbours; from random starts h sometimes takes it all, and g is left with nothing that could be transferred."""


class Rows(NamedTuple):
    """Transitions as the discriminator sees them; actions in the task's units."""

    observation: Float[Array, "*batch observation"]
    action: Float[Array, "*batch action"]
    next_observation: Float[Array, "*batch observation"]
    log_pi: Float[Array, "*batch"]  # nats: of the expert's under the policy of now, of others under the one that acted


class Inputs(NamedTuple):
    """What the networks see."""

    of_g: Float[Array, "*batch inputs"]
    now: Float[Array, "*batch observation"]  # of h
    later: Float[Array, "*batch observation"]  # of h, in the successor


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
    network = _network(config, bottleneck)
    rate = config.learning_rate
    optimizer = optax.adam(optax.linear_schedule(rate, 0.0, num_updates) if config.anneal else rate)
    scale = moments or empty_moments((observation_size,))
    with_action = config.inputs == "state-action"

    def init(key: Key) -> DiscriminatorState:
        key_g, key_h = jax.random.split(key)
        size = observation_size + action_size * with_action
        params = {"g": network.init(key_g, jnp.zeros(size)), "h": network.init(key_h, jnp.zeros(observation_size))}
        return start(optimizer, bottleneck, params)

    def input_of_g(observation: Array, action: Array) -> Array:
        seen = normalize(scale, observation)
        return jnp.concatenate([seen, action], axis=-1) if with_action else seen

    def inputs(rows: Rows) -> Inputs:
        now, later = normalize(scale, rows.observation), normalize(scale, rows.next_observation)
        return Inputs(input_of_g(rows.observation, rows.action), now, later)

    def reward(params: Any, observation: Array, action: Array) -> Array:
        return network.apply(params["g"], input_of_g(observation, action))

    def shaped(params: Any, rows: Rows) -> Array:
        seen = inputs(rows)
        potential = network.apply(params["h"], seen.later) * discount - network.apply(params["h"], seen.now)
        return network.apply(params["g"], seen.of_g) + potential

    def update(state: DiscriminatorState, batch: tuple[Rows, Rows, Key]) -> tuple[DiscriminatorState, Metrics]:
        expert, policy, key = batch

        def loss(params: Any) -> tuple[Array, Metrics]:
            judge = partial(_judge, network, bottleneck, discount, params)
            real, fake = (_Side(inputs(rows), rows.log_pi) for rows in (expert, policy))
            return _loss(config, bottleneck, judge, state.dual.beta, real, fake, key)

        return descend(optimizer, bottleneck, state, loss)

    def step(state: DiscriminatorState, expert: Rows, policy: Rows, key: Key) -> tuple[DiscriminatorState, Metrics]:
        return repeat(update, state, (expert, policy, jax.random.split(key, len(expert.log_pi))), bottleneck)

    return Discriminator(init, step, reward, shaped)


def _network(config: DiscriminatorConfig, bottleneck: BottleneckConfig | None) -> Any:
    """Of g, and of h."""
    network = Critic(config.hidden_sizes, None, config.activation, head_scale=START_SCALE)
    if bottleneck is None:
        return network
    return network.clone(latent_size=bottleneck.latent_size, mean_scale=bottleneck.mean_scale, head_scale=1.0)


class _Side(NamedTuple):
    """The expert's or the policy's samples of a step."""

    inputs: Inputs
    log_pi: Float[Array, " N"]


def _judge(
    network: Any, bottleneck: BottleneckConfig | None, discount: float, params: Any, seen: Inputs, key: Key
) -> Verdicts:
    """f of codes drawn, and the KL of the three of them together (VDB section 4.3), nats."""
    names, factors = ("g", "h", "h"), (1.0, -1.0, discount)
    value, nats = jnp.zeros(seen.of_g.shape[:-1]), jnp.zeros(seen.of_g.shape[:-1])
    for name, factor, values, key_code in zip(names, factors, seen, jax.random.split(key, 3), strict=True):
        mean, std = network.apply(params[name], values, method="encode")
        if bottleneck:
            nats += kl_to_standard_normal(mean, std)
            mean = sample_code(key_code, mean, std)
        value += factor * network.apply(params[name], mean, method="decide")
    return Verdicts(value, nats)


def _loss(
    config: DiscriminatorConfig,
    bottleneck: BottleneckConfig | None,
    judge: Callable[[Inputs, Key], Verdicts],
    beta: Array,
    expert: _Side,
    policy: _Side,
    key: Key,
) -> tuple[Array, Metrics]:
    """VDB section 4.3's objective: D = exp f / (exp f + pi), so the logit is f - log pi."""
    key_real, key_fake, key_penalty = jax.random.split(key, 3)
    real, fake = judge(expert.inputs, key_real), judge(policy.inputs, key_fake)
    real, fake = (told._replace(logits=told.logits - side.log_pi) for told, side in ((real, expert), (fake, policy)))
    total, metrics = objective(bottleneck, "logistic", real, fake, beta)
    if config.gradient_penalty:
        seen = expert.inputs
        penalty = r1_penalty(_of_one_array(lambda parts: judge(parts, key_penalty).logits, seen), _joined(seen))
        metrics["discriminator/gradient_penalty"] = penalty
        total += config.gradient_penalty * penalty
    return total, metrics


def _joined(seen: Inputs) -> Array:
    """What f is a function of: g's input (which begins with h's) and the successor."""
    return jnp.concatenate([seen.of_g, seen.later], axis=-1)


def _of_one_array(function: Callable[[Inputs], Array], like: Inputs) -> Callable[[Array], Array]:
    """The function of the three inputs as one of `_joined`."""
    of_g, now = like.of_g.shape[-1], like.now.shape[-1]
    return lambda joined: function(Inputs(joined[..., :of_g], joined[..., :now], joined[..., of_g:]))
