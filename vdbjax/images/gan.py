"""Generative adversarial networks of images; with the bottleneck, VGAN. VDB sections 4 and 5.3, appendices B and E.

One iteration is a step of the discriminator, of beta, and of the generator. The paper is the default; where its
released code does otherwise, an option gives that:

| | paper, the default | released code |
|---|---|---|
| code that the generator's step sees | its mean (eq. 11) | a draw: `--generator-code draw` |
| KL that is held at Ic | of the whole code, an image (eq. 8) | of one of its 4 x 4 places: `--kl per-place` |
| between code and head | nothing (section 4) | a LeakyReLU: `--head-activation leaky_relu` |
| R1 | w E[1/2 |slope|^2] (eq. 15), w = 10 | 10 E[|slope|^2]: `--r1 20` |
| running average | no word of one | 0.999 a step of 64 images, here with a faster start |

Both take the beta from before its step for the discriminator's, and one step of each network an iteration.
"""

from collections.abc import Callable
from dataclasses import dataclass
from functools import partial
from typing import Any, Literal, NamedTuple

import jax
import jax.numpy as jnp
import numpy as np
import optax
from jaxtyping import Array, Float, Int

from vdbjax import limits
from vdbjax.adversarial import spectral_norm
from vdbjax.adversarial.gradient_penalty import squared_slope_of, wgan_gp_penalty
from vdbjax.adversarial.losses import Game, accuracy, critic_loss, generator_loss
from vdbjax.bottleneck import (
    BottleneckConfig,
    DualState,
    charged,
    kl_to_standard_normal,
    mixture_kl,
    next_dual,
)
from vdbjax.images.gan_model import Model, Scaled, scaled
from vdbjax.images.gan_resnet import Code, Discriminator, Generator, HeadActivation, Translator, Verdict, num_scales
from vdbjax.networks import running_average
from vdbjax.sharding import over_devices
from vdbjax.types import Algorithm, Key, Metrics, Pictures

EVALUATED = 4
"""Batches that an evaluation looks at, at most: all at once, but without slopes, which a step keeps all outputs for."""


@dataclass(frozen=True)
class Config:
    """A generator and its discriminator."""

    bottleneck: BottleneckConfig | None = None
    """Budget of the discriminator's code (VDB section 4). None: the head sees all features."""
    game: Game = "non-saturating"
    """What the two play for."""
    r1: float = 0.0
    """Weight of the discriminator's squared slope at real images, halved (VDB eq. 15)."""
    wgan_gp: float = 0.0
    """Weight of its slope's squared distance from 1, between real and fake images."""
    spectral_norm: bool = False
    """Divides each of its matrices by the largest singular value."""
    instance_noise: float = 0.0
    """Deviation of the noise on a code without a budget; 0: no such code."""
    generator_code: Literal["mean", "draw"] = "mean"
    """What the generator's step sees of a code."""
    kl: Literal["per-image", "per-place"] = "per-image"
    """Whether info-constraint is that of a whole image, or of each place of the 4 x 4 code."""
    head_activation: HeadActivation = "none"
    """Between code and head."""
    conditional: bool = False
    """Learns the images of each class; they need labels."""
    num_classes: int = 10
    """Classes, where it is conditional."""
    translate: bool = False
    """Learns to translate pictures, which --sources gives, into the images."""
    l1: float = 0.0
    """Weight of the mean distance (in [-1, 1]) of a translation from its image."""
    filters: int = 32
    """Channels at the images' own size; twice as many at each halving."""
    max_filters: int = 256
    """Where that ends."""
    noise_size: int = 256
    """Numbers that the generator starts from."""
    batch_size: int = 64
    """Images a step, real ones and fake ones each."""
    learning_rate: float = 1e-4
    """RMSprop's step size, of both."""
    average_half_life: float = 44.3
    """Thousands of images after which half of the generator's running average is new; less in the first steps."""
    flip: bool = True
    """Mirrors half of the training images, at random."""
    bfloat16: bool = False
    """Convolutions in bfloat16; the code, the heads, losses and averages stay float32."""

    def __post_init__(self) -> None:
        """Rejects values that cannot work."""
        limits.at_least(1, self, "num_classes", "filters", "max_filters", "noise_size", "batch_size")
        limits.not_negative(self, "r1", "wgan_gp", "instance_noise", "l1")
        limits.positive(self, "learning_rate", "average_half_life")
        if self.bottleneck and self.instance_noise:
            raise ValueError(f"instance_noise ({self.instance_noise}) is for a code without a bottleneck; take one out")
        if self.conditional and self.translate:
            raise ValueError("conditional and translate do not go together; a translation is told by its source")
        if self.kl != "per-image" and not self.bottleneck:
            raise ValueError(f"kl {self.kl!r} is for a code with a bottleneck; leave it out")
        if self.code == "none" and (self.generator_code, self.head_activation) != ("mean", "none"):
            raise ValueError(
                f"generator_code {self.generator_code!r} and head_activation {self.head_activation!r} are for a code, "
                f"which this discriminator has not; leave them out"
            )
        if self.l1 and not self.translate:
            raise ValueError(f"l1 ({self.l1}) is for translations; give --translate too")

    @property
    def code(self) -> Code:
        """What stands between the discriminator's features and its head."""
        return "bottleneck" if self.bottleneck else "noise" if self.instance_noise else "none"

    @property
    def average_decay(self) -> float:
        """Of the running average, a step."""
        return 0.5 ** (self.batch_size / (1_000 * self.average_half_life))


def build_model(config: Config, image_shape: tuple[int, int, int]) -> Model:
    """The networks of a config for images of a shape. Raises ValueError where they are no squares of 4, 8, 16, ..."""
    height, width, channels = image_shape
    if height != width:
        raise ValueError(f"images of {height} x {width} are no squares; give a --size")
    num_scales(height)
    classes = config.num_classes if config.conditional else 0
    common: dict[str, Any] = {
        "size": height,
        "filters": config.filters,
        "max_filters": config.max_filters,
        "dtype": jnp.bfloat16 if config.bfloat16 else jnp.float32,
    }
    bottleneck = config.bottleneck
    generator: Generator | Translator
    if config.translate:
        generator = Translator(channels=channels, **common)
    else:
        generator = Generator(channels=channels, num_classes=classes, **common)
    discriminator = Discriminator(
        num_classes=classes,
        code=config.code,
        latent_size=bottleneck.latent_size if bottleneck else None,
        mean_scale=bottleneck.mean_scale if bottleneck else 1.0,
        noise_std=config.instance_noise,
        head_activation=config.head_activation,
        **common,
    )
    return Model(image_shape, generator, discriminator, config.noise_size, classes)


class Draws(NamedTuple):
    """What one iteration learns from."""

    real: Scaled
    labels: Int[Array, " N"]
    sources: Scaled | None
    noise: Float[Array, "2 N noise"]  # for the discriminator's step, and for the generator's
    keys: Key  # of the codes of real images, of fakes, of the generator's fakes, and of penalties


class Seen(NamedTuple):
    """What the terms of the discriminator's loss are made of."""

    critic: Callable[[Scaled], Float[Array, " N"]]  # to logits, the codes' noise held
    real: Scaled
    fake: Scaled
    real_logits: Float[Array, " N"]
    pullback: Callable[[Any], Any]  # of these logits, to the real images
    kl_nats: Float[Array, ""]
    beta: Float[Array, ""]
    key: Key


Term = Callable[[Seen], Float[Array, ""]]


def terms_of(config: Config) -> list[Term]:
    """What is added to the discriminator's loss."""
    terms: list[Term] = []
    if config.bottleneck:
        terms.append(lambda seen: charged(config.bottleneck, jnp.float32(0.0), seen.kl_nats, seen.beta))
    if config.r1:
        terms.append(lambda seen: 0.5 * config.r1 * jnp.mean(squared_slope_of(seen.pullback, seen.real_logits)))
    if config.wgan_gp:
        terms.append(lambda seen: config.wgan_gp * wgan_gp_penalty(seen.key, seen.critic, seen.real, seen.fake))
    return terms


def code_kl(config: Config, verdict: Verdict) -> Float[Array, " N"]:
    """KL (nats) of each image's code from the prior: of all its places, or their mean; 0 where there is none."""
    if verdict.mean is None or verdict.std is None:
        return jnp.zeros_like(verdict.logits)
    places = kl_to_standard_normal(verdict.mean, verdict.std)
    return jnp.mean(places, axis=(1, 2)) if config.kl == "per-place" else jnp.sum(places, axis=(1, 2))


class Found(NamedTuple):
    """What the discriminator's step found."""

    real_logits: Float[Array, " N"]
    fake_logits: Float[Array, " N"]
    kl_nats: Float[Array, ""]
    vectors: Any  # of spectral normalisation, for the next step


def discriminator_loss(
    config: Config, model: Model, params: Any, vectors: Any, fake: Scaled, drawn: Draws, beta: Array
) -> tuple[Array, Found]:
    """The discriminator's part of the game on real images and these fakes, with all terms: eq. 8 and 15."""
    weights, vectors = _normalized(params, vectors)

    def judge(images: Scaled, key: Key) -> Verdict:
        return model.judge(weights, images, drawn.labels, drawn.sources, key)

    def judge_real(images: Scaled) -> tuple[Array, Verdict]:
        verdict = judge(images, drawn.keys[0])
        return verdict.logits, verdict

    logits, pullback, on_real = jax.vjp(judge_real, drawn.real, has_aux=True)
    on_fake = judge(fake, drawn.keys[1])
    kl_nats = mixture_kl(code_kl(config, on_real), code_kl(config, on_fake))

    def critic(images: Scaled) -> Array:
        return judge(images, drawn.keys[0]).logits

    seen = Seen(critic, drawn.real, fake, logits, pullback, kl_nats, beta, drawn.keys[3])
    loss = critic_loss(logits, on_fake.logits, game=config.game) + sum(term(seen) for term in terms_of(config))
    return loss, Found(logits, on_fake.logits, kl_nats, vectors)


def loss_of_generator(config: Config, model: Model, params: Any, weights: Any, drawn: Draws) -> Array:
    """The generator's part, with the discriminator of these weights: eq. 11, which looks at the code's mean."""
    fake = model.generate(params, drawn.noise[1], drawn.labels, drawn.sources)
    key = None if config.generator_code == "mean" else drawn.keys[2]
    logits = model.judge(weights, fake, drawn.labels, drawn.sources, key).logits
    return generator_loss(logits, game=config.game) + config.l1 * jnp.mean(jnp.abs(fake - drawn.real))


def optimizer_of(config: Config) -> optax.GradientTransformation:
    """RMSprop as torch has it."""
    return optax.rmsprop(config.learning_rate, decay=0.99, eps=1e-8, eps_in_sqrt=False, initial_scale=0.0)


class State(NamedTuple):
    """Everything a run needs to go on."""

    params: Any  # {"generator": ..., "discriminator": ...}
    average: Any  # running average of the generator's, which samples and evaluations use
    optimizer: Any
    dual: DualState
    vectors: Any  # of spectral normalisation; None without it
    step: Int[Array, ""]
    key: Key


def make(config: Config, model: Model, *, first: Pictures, validation: Pictures, num_iterations: int) -> Algorithm:
    """Training by batches of pictures; those to validate on are told from the averaged generator's.

    Raises ValueError for pictures of another shape than the model's, or without the labels or sources that it needs.
    """
    for pictures in (first, validation):
        _check(config, model, pictures)
    optimizer = optimizer_of(config)

    def init(key: Key) -> State:
        key_params, key_vectors, key_run = jax.random.split(key, 3)
        params = model.init(key_params, jnp.asarray(first.images[:1]))
        vectors = spectral_norm.first_vectors(key_vectors, params["discriminator"]) if config.spectral_norm else None
        average = jax.tree.map(jnp.copy, params["generator"])  # a donated buffer must not be in the state twice
        started = {name: optimizer.init(part) for name, part in params.items()}
        beta = config.bottleneck.beta_init if config.bottleneck else 0.0
        return State(params, average, started, DualState(jnp.float32(beta)), vectors, jnp.int32(0), key_run)

    def update(state: State, batch: Pictures) -> tuple[State, Metrics]:
        drawn = _drawn(config, model, batch, jax.random.fold_in(state.key, state.step))
        old = state.params
        fake = model.generate(old["generator"], drawn.noise[0], drawn.labels, drawn.sources)
        (loss, told), slope = jax.value_and_grad(partial(discriminator_loss, config, model), has_aux=True)(
            old["discriminator"], state.vectors, fake, drawn, state.dual.beta
        )
        discriminator, moments = _stepped(optimizer, slope, state.optimizer["discriminator"], old["discriminator"])
        weights, _ = _normalized(discriminator, told.vectors)
        loss_g, slope_g = jax.value_and_grad(partial(loss_of_generator, config, model))(
            old["generator"], weights, drawn
        )
        generator, moments_g = _stepped(optimizer, slope_g, state.optimizer["generator"], old["generator"])
        average = running_average(state.average, generator, state.step, decay=config.average_decay)
        params = {"generator": generator, "discriminator": discriminator}
        learnt = {"generator": moments_g, "discriminator": moments}
        dual = next_dual(config.bottleneck, state.dual, told.kl_nats)
        metrics = {
            "discriminator/loss": loss,
            "discriminator/gradient_norm": optax.tree.norm(slope),
            "generator/loss": loss_g,
            "generator/gradient_norm": optax.tree.norm(slope_g),
        } | _accuracies(config, "discriminator", told.real_logits, told.fake_logits)
        if config.bottleneck:
            metrics |= {"bottleneck/kl_nats": told.kl_nats, "bottleneck/beta": dual.beta}
        return State(params, average, learnt, dual, told.vectors, state.step + 1, state.key), metrics

    def evaluate(state: State, key: Key) -> Metrics:
        held = jax.tree.map(lambda rows: jnp.asarray(rows[: EVALUATED * config.batch_size]), validation)
        labels, sources = _conditions(model, held)
        noise = jax.random.normal(key, (len(labels), model.noise_size))
        fake = model.generate(state.average, noise, labels, sources)
        weights, _ = _normalized(state.params["discriminator"], state.vectors)
        verdicts = [model.judge(weights, images, labels, sources) for images in (scaled(held.images), fake)]
        metrics = _accuracies(config, "eval", verdicts[0].logits, verdicts[1].logits)
        if config.bottleneck:
            metrics["eval/kl_nats"] = mixture_kl(*[code_kl(config, verdict) for verdict in verdicts])
        return metrics

    return Algorithm(init, update, evaluate)


def _drawn(config: Config, model: Model, batch: Pictures, key: Key) -> Draws:
    """Mirrored and dithered images, and all noise of an iteration."""
    key_flip, key_dither, key_noise, key_codes = jax.random.split(key, 4)
    labels, sources = _conditions(model, batch)
    real = scaled(batch.images)
    if config.flip:
        mirrored = jax.random.bernoulli(key_flip, shape=(len(real), 1, 1, 1))
        real = jnp.where(mirrored, real[:, :, ::-1], real)
        sources = None if sources is None else jnp.where(mirrored, sources[:, :, ::-1], sources)
    real = real + jax.random.uniform(key_dither, real.shape) / 128.0  # undoes the rounding to whole pixels
    noise = jax.random.normal(key_noise, (len(real), 2, model.noise_size))
    noise = over_devices(noise).swapaxes(0, 1)
    return Draws(real, labels, sources, noise, jax.random.split(key_codes, 4))


def _conditions(model: Model, pictures: Pictures) -> tuple[Int[Array, " N"], Scaled | None]:
    """(labels, all 0 where the model knows no classes; scaled sources, where it translates)."""
    labels = jnp.asarray(pictures.labels) if model.num_classes else jnp.zeros(len(pictures.images), jnp.int32)
    return labels, scaled(jnp.asarray(pictures.sources)) if model.translates else None


def _normalized(params: Any, vectors: Any) -> tuple[Any, Any]:
    return (params, None) if vectors is None else spectral_norm.normalized(params, vectors)


def _stepped(optimizer: Any, slope: Any, moments: Any, params: Any) -> tuple[Any, Any]:
    """(parameters, moments) after a step."""
    change, moments = optimizer.update(slope, moments, params)
    return optax.apply_updates(params, change), moments


def _accuracies(config: Config, group: str, real_logits: Array, fake_logits: Array) -> Metrics:
    """Accuracies; a Wasserstein critic has a gap instead, as its zero means nothing."""
    if config.game == "wasserstein":
        return {f"{group}/logit_gap": jnp.mean(real_logits) - jnp.mean(fake_logits)}
    real, fake = accuracy(real_logits, fake_logits)
    return {f"{group}/real_accuracy": real, f"{group}/fake_accuracy": fake}


def check_labels(config: Config, labels: Any) -> None:
    """Raises ValueError where the labels of all images to train on are not those of a conditional model's classes."""
    if not config.conditional:
        return
    _check_range(config, labels)
    if missing := set(range(config.num_classes)) - set(np.unique(labels).tolist()):
        raise ValueError(
            f"num_classes ({config.num_classes}): no image to train on is of class {min(missing)}, which would stay "
            "untrained; give as many as there are, counted from 0"
        )


def _check_range(config: Config, labels: Any) -> None:
    if labels is None:
        raise ValueError("conditional needs labels, and these images have none; give class folders, or leave it out")
    if labels.max() >= config.num_classes:
        raise ValueError(
            f"labels reach {labels.max()}, but num_classes is {config.num_classes}; give at least one more"
        )


def _check(config: Config, model: Model, pictures: Pictures) -> None:
    images, labels, sources = pictures
    if images.shape[1:] != model.image_shape or not len(images):
        raise ValueError(f"images of shape {images.shape} do not fit a model of {model.image_shape}")
    if config.conditional:
        _check_range(config, labels)
    if config.translate and (sources is None or sources.shape != images.shape):
        raise ValueError("translate needs a source of the same shape for each image; give --sources")
