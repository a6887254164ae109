"""A hierarchical VAE of images, trained to a distortion that is asked for. "Mind Your Bits and Errors" (2021).

The architecture is VDVAE's (Child 2020), with precision-weighted merging. With a target gamma of the squared error D, R
being the rate, (1 - lambda) R + lambda D is minimised and lambda (D - gamma) maximised (section 3.2 and appendix B);
without one the negative ELBO is minimised, of a Gaussian with a learnt variance or of VDVAE's own mixture.
"""

import math
from dataclasses import dataclass
from typing import Any, Literal, NamedTuple

import jax
import jax.numpy as jnp
import optax
from jaxtyping import Array, Bool, Float, Int

from vdbjax import limits
from vdbjax.bottleneck import DualState, dual_update
from vdbjax.images.gradient_skipping import Skipping, judge, shown_as_finite, usual_so_far
from vdbjax.images.hierarchy import Encoder, Hierarchy, UNet
from vdbjax.images.observation import GaussianHead, Images, MixtureHead
from vdbjax.images.vae import Model, Terms
from vdbjax.images.vae_blocks import Params
from vdbjax.networks import running_average
from vdbjax.types import Algorithm, Key, Metrics, Pictures

LOWEST_LAMBDA, HIGHEST_LAMBDA = 1e-4, 0.9999
"""Appendix B.2; it starts at the highest, which mimics an annealing of the rate."""

CLOSE = 1.05
"""A distortion of at most this times gamma has reached it."""


@dataclass(frozen=True)
class Config:
    """A hierarchical VAE."""

    gamma: float | None = 8.0
    """Squared error to hold, summed over an image's numbers, of pixels in [0, 1]. None: the ELBO is maximised."""
    give_up_after: int | None = None
    """Iterations after which a run stops whose distortion never came within 5 % of gamma. None: it goes on."""
    resolutions: tuple[int, ...] = (1, 4, 8, 16, 32)
    """Sides of the latents, lowest first; each divides the next, and the last is the images' own side."""
    layers: tuple[int, ...] = (2, 4, 10, 16, 16)
    """Layers of latents at each."""
    encoder_blocks: tuple[int, ...] = (3, 4, 7, 7, 12)
    """Residual blocks of the encoder at each; the last of each pools, but for the lowest."""
    width: int = 128
    """Channels of the features."""
    bottleneck_width: int = 32
    """Channels inside the blocks."""
    latents: int = 16
    """Channels of each layer's latents."""
    posterior: Literal["merged", "direct"] = "merged"
    """merged: what the encoder says, weighted with the prior by their precisions; direct: VDVAE's, alone."""
    observation: Literal["gaussian", "mixture"] = "gaussian"
    """What is said about pixels; mixture: ten discretised logistics, only without gamma."""
    scan: bool = True
    """Equal layers as a scan, which compiles in minutes; without, steps are faster on a CPU."""
    remat: bool = False
    """Compute what is inside the blocks twice, for less memory."""
    batch_size: int = 32
    """Images a gradient step."""
    learning_rate: float = 2e-4
    """Adam's step size after the warm-up."""
    warmup_steps: int = 100
    """Steps over which it rises from 0."""
    second_decay: float = 0.999
    """Adam's decay of the mean square (beta 2)."""
    weight_decay: float = 0.0
    """Of AdamW."""
    gradient_clip: float = 200.0
    """Largest norm of the gradient of the loss in nats a number of the image."""
    skip_above: float = 10.0
    """Steps are skipped whose gradient is this many times the usual one, or not finite."""
    average_decay: float = 0.999
    """Of the running average of the parameters; less in the first steps."""
    dual_step_size: float = 2e-4
    """Adam's step size of lambda."""

    def __post_init__(self) -> None:
        """Rejects values that cannot work."""
        limits.at_least(1, self, "width", "bottleneck_width", "latents", "batch_size", "give_up_after")
        limits.at_least(1, self, "resolutions", "layers", "encoder_blocks")
        limits.positive(self, "learning_rate", "gradient_clip", "dual_step_size")
        limits.not_negative(self, "warmup_steps", "weight_decay")
        limits.below_one(self, "second_decay", "average_decay")
        if self.gamma is not None and not 0 < self.gamma < math.inf:
            raise ValueError(f"gamma ({self.gamma}) must be above 0; for the ELBO alone give None")
        if self.gamma is not None and self.observation == "mixture":
            raise ValueError(f"gamma ({self.gamma}) is a squared error, which observation 'mixture' has not; give None")
        if self.give_up_after is not None and self.gamma is None:
            raise ValueError(f"give_up_after ({self.give_up_after}) waits for a gamma, and there is none")
        if not 1 < self.skip_above < math.inf:
            raise ValueError(f"skip_above ({self.skip_above}) must be above 1 and finite")
        self._check_depth()

    def _check_depth(self) -> None:
        if not len(self.resolutions) == len(self.layers) == len(self.encoder_blocks):
            raise ValueError(
                f"resolutions {self.resolutions}, layers {self.layers} and encoder_blocks {self.encoder_blocks} must "
                f"be equally many"
            )
        if not self.resolutions:
            raise ValueError("resolutions () name none; give at least one")
        for low, high in zip(self.resolutions, self.resolutions[1:], strict=False):
            if high <= low or high % low:
                raise ValueError(
                    f"resolutions {self.resolutions}: {high} is no multiple of {low}; name them from the smallest on"
                )


def build_model(config: Config, image_shape: tuple[int, int, int], *, given: bool = False) -> Model:
    """The model of a config for images of a shape. Raises ValueError where the resolutions do not fit it.

    With `given` it is conditioned on an image of that shape: beside the other one in the encoder, and through a U-Net
    of one block a resolution and direction into the latents' decoder (appendix A.2).
    """
    height, width, channels = image_shape
    if (height, width) != (config.resolutions[-1],) * 2:
        raise ValueError(
            f"resolutions {config.resolutions} end in {config.resolutions[-1]}, but images are {width} x {height}; "
            f"give others, such as --resolutions {' '.join(map(str, fitting(height)))}, or a --size"
        )
    encoder = Encoder(
        config.resolutions,
        config.encoder_blocks,
        config.width,
        config.bottleneck_width,
        2 * channels if given else channels,
        config.scan,
        config.remat,
    )
    shallow = encoder._replace(blocks=(1,) * len(config.resolutions), image_channels=channels)
    hierarchy = Hierarchy(
        encoder, config.layers, config.latents, config.posterior == "merged", UNet(shallow) if given else None
    )
    return Model(image_shape, hierarchy, GaussianHead() if config.observation == "gaussian" else MixtureHead())


def fitting(side: int) -> list[int]:
    """Resolutions for images of this side, lowest first: halved as long as it is even, and 1."""
    found = [side]
    while found[0] % 2 == 0 and found[0] > 4:
        found.insert(0, found[0] // 2)
    return found if found[0] == 1 else [1, *found]


class State(NamedTuple):
    """Everything a run needs to go on."""

    params: Any
    average: Any  # running average of `params`, which everything but training uses
    optimizer: Any
    dual: DualState  # lambda
    skipping: Skipping
    reached: Bool[Array, ""]  # whether the distortion has come close to gamma
    step: Int[Array, ""]
    key: Key


def negative_elbo(terms: Terms) -> Float[Array, ""]:
    """Mean over the images (nats)."""
    return -jnp.mean(terms.bound)


def targeted(terms: Terms, weight: Float[Array, ""]) -> Float[Array, ""]:
    """(1 - lambda) R + lambda D, means over the images: eq. 9. `weight` is lambda, which `dual_update` moves."""
    rate, distortion = jnp.mean(jnp.sum(terms.rates, axis=0)), jnp.mean(terms.distortion)
    return (1.0 - weight) * rate + weight * distortion


def make(config: Config, model: Any, *, first: Pictures, validation: Pictures, num_iterations: int) -> Algorithm:
    """Training by batches of pictures, whose images alone count. `model` is this module's, or that of two stages.

    Raises ValueError for images of another shape than the model's.
    """
    for images, *_ in (first, validation):
        if images.shape[1:] != model.image_shape or not len(images):
            raise ValueError(f"images of shape {images.shape} do not fit a model of {model.image_shape}")
    numbers = math.prod(model.image_shape)
    optimizer = optax.chain(
        optax.clip_by_global_norm(config.gradient_clip),
        optax.scale_by_adam(b1=0.9, b2=config.second_decay),
        optax.add_decayed_weights(config.weight_decay),
    )
    along = optax.scale_by_adam(b1=0.0, b2=0.999)  # lambda's: appendix B.3

    def loss(learnt: Any, kept: Any, images: Images, key: Key, weight: Array) -> tuple[Float[Array, ""], Terms]:
        """Nats a number of the image."""
        terms = model.terms(model.join(learnt, kept), images, key)
        return (negative_elbo(terms) if config.gamma is None else targeted(terms, weight)) / numbers, terms

    def init(key: Key) -> State:
        key_params, key_run = jax.random.split(key)
        params = model.init(key_params, jnp.asarray(first.images))
        start = jnp.float32(HIGHEST_LAMBDA)
        return State(
            params,
            jax.tree.map(jnp.copy, params),  # a copy, because a donated buffer must not be in the state twice
            optimizer.init(model.split(params)[0]),
            DualState(start, along.init(start)),
            usual_so_far(),
            jnp.bool_(False),
            jnp.int32(0),
            key_run,
        )

    def update(state: State, batch: Pictures) -> tuple[State, Metrics]:
        learnt, kept = model.split(state.params)
        key = jax.random.fold_in(state.key, state.step)
        gradients, terms = jax.grad(loss, has_aux=True)(learnt, kept, batch.images, key, state.dual.beta)
        norm = optax.tree.norm(gradients)
        applied, skipping = judge(state.skipping, norm, factor=config.skip_above)
        updates, memory = optimizer.update(gradients, state.optimizer, learnt)
        size = config.learning_rate * jnp.minimum(1.0, (state.step + 1) / max(1, config.warmup_steps))
        moved = jax.tree.map(lambda leaf, step: leaf - size * step, learnt, updates)
        if config.gamma is not None:
            moved |= {"log_variance": _log_variance(learnt, terms, state.step, numbers)}
        averaged = running_average(model.split(state.average)[0], moved, state.step, decay=config.average_decay)
        learnt, average, memory = jax.tree.map(
            lambda new, old: jnp.where(applied, new, old),
            (moved, averaged, memory),
            (learnt, model.split(state.average)[0], state.optimizer),
        )
        dual, reached, metrics = _toward_gamma(config, state, learnt, terms, along, numbers)
        metrics |= {
            "vae/bits_per_dim": -jnp.mean(terms.bound) * model.bits_per_nat_and_dim,
            "vae/rate_nats": jnp.mean(jnp.sum(terms.rates, axis=0)),
            "vae/gradient_norm": norm,
            "vae/skipped": 1.0 - applied,
        }
        params, average = model.join(learnt, kept), model.join(average, model.split(state.average)[1])
        state = State(params, average, memory, dual, skipping, reached, state.step + 1, state.key)
        return state, {name: shown_as_finite(skipping, value) for name, value in metrics.items()}

    def evaluate(state: State, key: Key) -> Metrics:
        with jax.default_matmul_precision("highest"):
            terms = model.terms(state.average, jnp.asarray(validation.images), key)
        found = {
            "eval/bits_per_dim": -jnp.mean(terms.bound) * model.bits_per_nat_and_dim,
            "eval/rate_nats": jnp.mean(jnp.sum(terms.rates, axis=0)),
        }
        found |= {} if terms.distortion is None else {"eval/distortion": jnp.mean(terms.distortion)}
        return {name: shown_as_finite(state.skipping, value) for name, value in found.items()}

    return Algorithm(init, update, evaluate)


def _log_variance(params: Params, terms: Terms, step: Array, numbers: int) -> Array:
    """The Gaussian's variance for which the density is highest, at a running mean of the distortion."""
    decay = jnp.minimum(0.99, step / (1.0 + step))
    variance = jnp.mean(terms.distortion) / numbers
    return jnp.log(decay * jnp.exp(params["log_variance"]) + (1.0 - decay) * variance)


def _toward_gamma(
    config: Config, state: State, learnt: Params, terms: Terms, along: optax.GradientTransformation, numbers: int
) -> tuple[DualState, Array, Metrics]:
    """Lambda's step (eq. 10), whether gamma has been reached, and what to report of both."""
    if terms.distortion is None:
        return state.dual, state.reached, {}
    distortion = jnp.mean(terms.distortion)
    if config.gamma is None:
        return state.dual, state.reached, {"vae/distortion": distortion}
    finite = jnp.isfinite(distortion)
    dual = dual_update(
        state.dual,
        jnp.where(finite, distortion, config.gamma),
        constraint=config.gamma,
        step_size=config.dual_step_size,
        lower=LOWEST_LAMBDA,
        upper=HIGHEST_LAMBDA,
        direction=along,
    )
    reached = state.reached | (numbers * jnp.exp(learnt["log_variance"]) <= CLOSE * config.gamma)
    metrics = {"vae/distortion": distortion, "vae/lambda": state.dual.beta}
    if config.give_up_after is not None:
        metrics["stop"] = jnp.float32(~reached & (state.step + 1 >= config.give_up_after))
    return dual, reached, metrics
