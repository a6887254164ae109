"""Telling the expert from the policy: the discriminator step of GAIL, VAIL, W-GAIL and GAIL-VR, of states or film.

What differs between them is a number or a word of the config, not code.
"""

from collections.abc import Callable
from dataclasses import dataclass
from functools import partial
from typing import Any, Literal, NamedTuple

import jax
import jax.numpy as jnp
import optax
from jaxtyping import Array, Bool, Float, Shaped

from vdbjax import limits
from vdbjax.adversarial.gradient_penalty import r1_penalty, wgan_gp_penalty
from vdbjax.adversarial.instance_noise import add_noise
from vdbjax.adversarial.losses import RewardForm, imitation_reward
from vdbjax.adversarial.variance_penalty import variance_penalty
from vdbjax.bottleneck import BottleneckConfig, kl_to_standard_normal, sample_code
from vdbjax.imitation.discriminator import DiscriminatorState, Verdicts, descend, objective, repeat, start
from vdbjax.networks import Activation, Critic, phase_blend
from vdbjax.rl.normalize import Moments, normalize, sample_moments
from vdbjax.rl.returns import discounted_returns
from vdbjax.types import Demonstrations, Film, Key, Metrics

PICTURE = (64, 64, 3)  # height, width, colours

Inputs = Literal["state", "state-action", "transition", "frame"]


@dataclass(frozen=True)
class DiscriminatorConfig:
    """What the discriminator sees, how it is trained, and the reward it gives."""

    inputs: Inputs = "state-action"
    """What it judges: the state, the state and action, the state and its successor, or a picture and nothing else."""
    loss: Literal["logistic", "wasserstein"] = "logistic"
    """Cross-entropy (GAIL, VAIL), or the gap between the mean logits (W-GAIL)."""
    reward: RewardForm = "-log(1-D)"
    """-log(1-D) rewards survival, log D rewards an early end, logit has both signs (taught hopper to fall)."""
    optimizer: Literal["adam", "sgd"] = "adam"
    """Adam, or gradient descent with a momentum of 0.9 (VDB appendix C), whose steps are as small as its slopes."""
    learning_rate: float = 3e-4
    """Its step size."""
    updates: int | None = None
    """Gradient steps an iteration. None: half as many as PPO has minibatches."""
    batch_size: int = 512
    """Expert samples a step, and as many of the policy's."""
    hidden_sizes: tuple[int, ...] = (128, 128)
    """Hidden layers."""
    activation: Activation = "tanh"
    """What follows each of them."""
    channels: tuple[int, ...] = (16, 32, 32)
    """Of a picture: channels of the convolutions (4 x 4) before the hidden layers."""
    phase: Literal["input", "functioned", "none"] = "input"
    """Where observations end with a phase: an input like others, what blends the weights (PFNN), or left out."""
    phase_sets: int = 5
    """Sets of weights that the phase blends."""
    deviation_floor: float = 0.0
    """Added to the demonstrations' deviations before inputs are divided by them, for parts that hardly move."""
    gradient_penalty: float = 0.0
    """Weight of R1 on expert samples (VDB eq. 15), or with the Wasserstein loss of WGAN-GP's penalty."""
    input_noise: float = 0.0
    """Deviation of Gaussian noise on the normalised inputs while training (GAIL-noise)."""
    code_noise: float = 0.0
    """Deviation of Gaussian noise on the last hidden layer while training (GAIL-noise z)."""
    variance_weight: float = 0.0
    """lambda of GAIL-VR's reward variance term."""
    absorbing: bool = False
    """Judge the state after a termination too, and reward it for ever: takes survival's advantage away. PPO and TRPO
    cut a step's reward at 10 deviations of the discounted sums; the end of a long life may be worth more."""

    def __post_init__(self) -> None:
        """Rejects values that cannot work."""
        limits.not_negative(self, "gradient_penalty", "input_noise", "code_noise", "variance_weight", "deviation_floor")
        limits.positive(self, "learning_rate")
        limits.at_least(1, self, "batch_size", "hidden_sizes", "channels", "updates")
        limits.at_least(2, self, "phase_sets")
        if self.inputs == "frame" and (self.phase == "input" or self.absorbing):
            raise ValueError(
                f"inputs 'frame' with phase {self.phase!r} and absorbing {self.absorbing}: a picture takes no further"
                f" inputs; take phase 'functioned' or 'none', without absorbing"
            )
        if self.loss == "wasserstein" and self.gradient_penalty and self.phase == "functioned":
            raise ValueError(
                "loss 'wasserstein' with gradient_penalty judges points between two samples, which have no one phase; "
                "take phase 'input' or 'none', not 'functioned'"
            )
        if self.absorbing and self.phase == "functioned":
            raise ValueError("absorbing states have no phase; take phase 'input' or 'none' with them, not 'functioned'")


class Judged(NamedTuple):
    """What the discriminator judges, normalised; `*batch` is `time num_envs` for the policy, N for the expert."""

    features: Shaped[Array, "..."]  # numbers; of pictures, the policy's observations or the film's own frames
    terminated: Bool[Array, "*batch"]
    blend: Float[Array, "*batch sets"] | None = None  # of the discriminator's weights, where the phase decides them


class Trajectories(NamedTuple):
    """The policy's rollout, as the discriminator needs it."""

    judged: Judged
    truncated: Bool[Array, "time num_envs"]
    value: Float[Array, "time num_envs"]  # of the policy's value function, in units of the scaled reward
    next_value: Float[Array, "time num_envs"]
    reward_scale: Float[Array, ""]


class Discriminator(NamedTuple):
    """A discriminator as pure functions."""

    init: Callable[[Key], DiscriminatorState]
    judge: Callable[[Any, Any, Any, Any], Judged]  # (observation, action, next observation, terminated), task's units
    step: Callable[[DiscriminatorState, Judged, Trajectories, Key], tuple[DiscriminatorState, Metrics]]
    reward: Callable[[Any, Judged], Array]  # (parameters, judged), at the mean of the code (VDB section 4.2)
    logit: Callable[[DiscriminatorState, Array, Any], Array]  # (inputs as the network has them, blend), at that mean


def make_discriminator(
    config: DiscriminatorConfig,
    bottleneck: BottleneckConfig | None,
    demonstrations: Demonstrations | None,
    *,
    updates: int,
    discount: float,
    phase_size: int = 0,
    picture: Callable[[Array], Array] | None = None,
) -> Discriminator:
    """The discriminator of the config. Inputs are normalised by the demonstrations' own moments, clipped at +-10.

    Observations end with `phase_size` entries for the phase, as `Environment` says.

    Frames need no demonstrations here, but the task's `picture`. A rollout is kept as observations, and painted where
    it is looked at: the rows drawn for a step, or one control step of all environments for rewards.

    With `absorbing` every input has one more number, 1 in the state that follows a termination and 0 elsewhere; half of
    the terminating samples are shown to the discriminator as that state, and a terminating step is rewarded with
    gamma / (1 - gamma) times its reward, as if the episode stayed there (Kostrikov et al. 2019, section 4.2). Raises
    ValueError where that is infinite.
    """
    _check(config, bottleneck, discount, phase_size)
    sight = _pictures(picture) if config.inputs == "frame" else _numbers(config, demonstrations, phase_size)
    critic = _critic(config, bottleneck, sight)
    rule = optax.adam if config.optimizer == "adam" else partial(optax.sgd, momentum=0.9)
    optimizer = rule(config.learning_rate)

    def init(key: Key) -> DiscriminatorState:
        blend = jnp.zeros(config.phase_sets) if config.phase == "functioned" else None
        return start(optimizer, bottleneck, critic.init(key, jnp.zeros(sight.shape), blend))

    def judge(observation: Array, action: Array, next_observation: Array, terminated: Array) -> Judged:
        kept = sight.keep(observation, action, next_observation)
        return Judged(kept, terminated, _blend(config, observation[..., -phase_size:]))

    def rewards(params: Any, judged: Judged) -> Array:
        def of(rows: Judged) -> Array:
            return _reward(config, critic, params, rows._replace(features=sight.look(rows.features)), discount=discount)

        # The pictures of a whole rollout would not fit: one control step of it at a time.
        return jax.lax.map(of, judged) if config.inputs == "frame" else of(judged)

    def update(
        expert: Judged, policy: Trajectories, state: DiscriminatorState, key: Key
    ) -> tuple[DiscriminatorState, Metrics]:
        keys = jax.random.split(key, 4)
        flat = jax.tree.map(lambda leaf: leaf.reshape(-1, *leaf.shape[2:]), policy.judged)
        real, fake = _sample(keys[0], expert, config, sight), _sample(keys[1], flat, config, sight)

        def loss(params: Any) -> tuple[Array, Metrics]:
            total, metrics = _loss(config, bottleneck, critic, params, state.dual.beta, real, fake, keys[2])
            if config.variance_weight:
                total += config.variance_weight * _variance_term(rewards(params, policy.judged), policy, discount)
            return total, metrics

        return descend(optimizer, bottleneck, state, loss)

    def step(
        state: DiscriminatorState, expert: Judged, policy: Trajectories, key: Key
    ) -> tuple[DiscriminatorState, Metrics]:
        return repeat(partial(update, expert, policy), state, jax.random.split(key, updates), bottleneck)

    def logit(state: DiscriminatorState, inputs: Array, blend: Array | None) -> Array:
        return critic.apply(state.params, inputs, blend)

    return Discriminator(init, judge, step, rewards, logit)


def _check(config: DiscriminatorConfig, bottleneck: BottleneckConfig | None, discount: float, phase_size: int) -> None:
    if bottleneck and config.code_noise:
        raise ValueError(
            f"code_noise ({config.code_noise}) is for discriminators without a bottleneck, which has its own"
        )
    if config.absorbing and discount == 1.0:
        raise ValueError(f"absorbing states are worth infinitely much with discount ({discount}); take one below 1")
    if config.phase == "functioned" and not phase_size:
        raise ValueError("phase 'functioned' needs a task whose observations end with a phase, such as mocap/run")


def judge_film(config: DiscriminatorConfig, film: Film) -> Judged:
    """The frames of a film, as the expert's side of a discriminator that judges frames."""
    return Judged(jnp.asarray(film.frames), jnp.zeros(len(film.frames), bool), _blend(config, jnp.asarray(film.phase)))


class Sight(NamedTuple):
    """How steps become inputs of the network."""

    shape: tuple[int, ...]  # of one input
    keep: Callable[[Array, Array, Array], Array]  # (observation, action, next observation) -> what a rollout keeps
    look: Callable[[Array], Array]  # what is kept, or frames of a film -> inputs


def _critic(config: DiscriminatorConfig, bottleneck: BottleneckConfig | None, sight: Sight) -> Any:
    critic = Critic(config.hidden_sizes, None, config.activation, config.channels * (len(sight.shape) == 3))
    if bottleneck is None:
        return critic
    return critic.clone(latent_size=bottleneck.latent_size, mean_scale=bottleneck.mean_scale)


def _numbers(config: DiscriminatorConfig, demonstrations: Demonstrations | None, phase_size: int) -> Sight:
    """Inputs are the numbers of states and actions, normalised, and where it is asked for the mark of the absorbed."""
    if demonstrations is None:
        raise ValueError(f"inputs {config.inputs!r} needs demonstrations of states; a film is judged by inputs 'frame'")
    cut = 0 if config.phase == "input" else phase_size
    moments = _input_moments(config, demonstrations, cut)

    def keep(observation: Array, action: Array, next_observation: Array) -> Array:
        features = normalize(moments, _select(config.inputs, observation, action, next_observation, cut))
        if config.absorbing:
            features = jnp.concatenate([features, jnp.zeros((*features.shape[:-1], 1))], axis=-1)
        return features

    return Sight((moments.mean.shape[0] + config.absorbing,), keep, lambda features: features)


def _pictures(picture: Callable[[Array], Array] | None) -> Sight:
    """Inputs are pictures in [0, 1], painted where they are looked at: a rollout keeps what they are painted from."""
    if picture is None:
        raise ValueError("inputs 'frame' needs a task with a camera, such as video/run")

    def look(kept: Array) -> Array:
        frames = kept if kept.dtype == jnp.uint8 else picture(kept)
        return frames.astype(jnp.float32) / 255.0

    return Sight(PICTURE, lambda observation, action, next_observation: observation, look)


def _blend(config: DiscriminatorConfig, phase: Array) -> Array | None:
    return phase_blend(phase, num_sets=config.phase_sets) if config.phase == "functioned" else None


def _after_the_end(shape: tuple[int, ...]) -> Array:
    """The state in which an episode stays once it has terminated: 0, and the mark of the absorbed."""
    return jnp.zeros(shape).at[-1].set(1.0)


def _select(inputs: Inputs, observation: Array, action: Array, next_observation: Array, cut: int) -> Array:
    """What is judged; the last `cut` entries of observations are left out."""
    now, later = (values[..., : values.shape[-1] - cut] for values in (observation, next_observation))
    parts = {"state": [now], "state-action": [now, action], "transition": [now, later]}[inputs]
    return jnp.concatenate(parts, axis=-1)


def _input_moments(config: DiscriminatorConfig, demonstrations: Demonstrations, cut: int) -> Moments:
    rows = _select(
        config.inputs, demonstrations.observation, demonstrations.action, demonstrations.next_observation, cut
    )
    moments = sample_moments(rows)
    return moments._replace(variance=(jnp.sqrt(moments.variance) + config.deviation_floor) ** 2)


def _sample(key: Key, judged: Judged, config: DiscriminatorConfig, sight: Sight) -> Judged:
    """Rows drawn with replacement, as the network sees them, and noised as the config says."""
    key_rows, key_end, key_noise = jax.random.split(key, 3)
    rows = jax.random.randint(key_rows, (config.batch_size,), 0, len(judged.terminated))
    drawn = jax.tree.map(lambda leaf: leaf[rows], judged)
    features = sight.look(drawn.features)
    if config.absorbing:
        ended = drawn.terminated & jax.random.bernoulli(key_end, 0.5, drawn.terminated.shape)
        features = jnp.where(ended[:, None], _after_the_end(sight.shape)[None, :], features)
    if config.input_noise:
        features = add_noise(key_noise, features, config.input_noise)
    return drawn._replace(features=features)


def _reward(config: DiscriminatorConfig, critic: Any, params: Any, judged: Judged, *, discount: float) -> Array:
    reward = imitation_reward(critic.apply(params, judged.features, judged.blend), form=config.reward)
    if not config.absorbing:
        return reward
    after_the_end = _after_the_end(judged.features.shape[-1:])
    for_ever = imitation_reward(critic.apply(params, after_the_end), form=config.reward) / (1.0 - discount)
    return reward + discount * judged.terminated * for_ever


def _loss(
    config: DiscriminatorConfig,
    bottleneck: BottleneckConfig | None,
    critic: Any,
    params: Any,
    beta: Array,
    real: Judged,
    fake: Judged,
    key: Key,
) -> tuple[Array, Metrics]:
    """The Lagrangian of eq. 10 with the penalty of eq. 15, over equally many expert and policy samples."""
    key_real, key_fake, key_penalty, key_between = jax.random.split(key, 4)

    def judge(key: Key, inputs: Array, blend: Array | None) -> Verdicts:
        mean, std = critic.apply(params, inputs, blend, method="encode")
        if bottleneck:
            code, kl = sample_code(key, mean, std), kl_to_standard_normal(mean, std)
        else:
            code = add_noise(key, mean, config.code_noise) if config.code_noise else mean
            kl = jnp.zeros(mean.shape[:-1])
        return Verdicts(critic.apply(params, code, blend, method="decide"), kl)

    of_real, of_fake = judge(key_real, real.features, real.blend), judge(key_fake, fake.features, fake.blend)
    total, metrics = objective(bottleneck, config.loss, of_real, of_fake, beta)
    if config.gradient_penalty:
        logits = lambda inputs: judge(key_penalty, inputs, real.blend).logits  # noqa: E731
        samples = real.features, fake.features
        wasserstein = config.loss == "wasserstein"
        penalty = wgan_gp_penalty(key_between, logits, *samples) if wasserstein else r1_penalty(logits, samples[0])
        metrics["discriminator/gradient_penalty"] = penalty
        total += config.gradient_penalty * penalty
    return total, metrics


def _variance_term(rewards: Array, policy: Trajectories, discount: float) -> Array:
    returns = discounted_returns(
        rewards / policy.reward_scale,
        policy.next_value,
        policy.judged.terminated,
        policy.truncated,
        discount=discount,
    )
    return variance_penalty(returns, policy.value)
