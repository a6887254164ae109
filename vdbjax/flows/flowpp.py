"""Flow++: an image flow with variational dequantisation, mixture couplings and self-attention. Thesis section 3.2.

A model is the flow from dequantised pixels to Gaussian z and the dequantiser; training minimises the bound's bits/dim
by Adam, and everything is evaluated with a running average of the parameters.
"""

import itertools
import math
from collections.abc import Callable
from dataclasses import dataclass, field
from typing import Any, Literal, NamedTuple

import jax
import jax.numpy as jnp
import optax
from jaxtyping import Array, Float, Int, UInt8

from vdbjax import limits
from vdbjax.flows.bijection import Chain, Condition, Rearrangement
from vdbjax.flows.conditioner import Conditioner
from vdbjax.flows.coupling import Coupling, Pointwise, space_to_depth, split_into_halves
from vdbjax.flows.dequantization import Context, Uniform, Variational, log_normal
from vdbjax.flows.elementwise import Actnorm, affine, mixture_of_logistics, scaled_logit, sigmoid
from vdbjax.networks import running_average
from vdbjax.types import Algorithm, Key, Metrics, Pictures

Images = UInt8[Array, "batch height width channels"]

LayerName = Literal["columns", "channels", "depth"]
"""columns and channels: a coupling between halves split that way; depth: 2 x 2 pixels become one of 4 times as many
channels."""


@dataclass(frozen=True)
class DequantizerConfig:
    """The noise that makes pixels continuous."""

    kind: Literal["uniform", "variational"] = "variational"
    """uniform: none of the other settings is used."""
    couplings: int = 4
    """Couplings between columns, from Gaussian noise to u."""
    blocks: int = 2
    """Blocks of each of their networks."""
    attention: bool = True
    """Self-attention in these blocks."""
    context_filters: int = 32
    """Channels of what they see of the image."""
    context_blocks: int = 3
    """Gated convolutions that make it."""
    context_attention: bool = False
    """Self-attention after each of them."""
    context_norm: bool = False
    """A layer norm after each layer there."""
    context_gate: Literal[1, 3] = 3
    """Window of their gates' convolutions."""

    def __post_init__(self) -> None:
        """Rejects values that cannot work."""
        limits.at_least(1, self, "dequantizer.couplings", "dequantizer.blocks", "dequantizer.context_filters")
        limits.at_least(0, self, "dequantizer.context_blocks")


@dataclass(frozen=True)
class Config:
    """Flow++."""

    layers: tuple[LayerName, ...] = ("columns",) * 4 + ("depth",) + ("channels",) * 2 + ("columns",) * 3
    """The flow, from the image on. columns, channels: couplings between such halves; depth: space to depth."""
    filters: int = 96
    """Channels inside the couplings' networks."""
    blocks: int = 10
    """Blocks of each network."""
    heads: int = 4
    """Heads of self-attention."""
    attention: bool = True
    """Self-attention in each block."""
    mixtures: int = 32
    """Logistics of each element; 0: affine couplings."""
    pointwise: bool = True
    """Invertible 1x1 convolutions before each coupling."""
    weight_norm: bool = False
    """Weight normalisation of every convolution."""
    last_nonlinearity: bool = False
    """A nonlinearity before each network's last convolution."""
    dropout: float = 0.2
    """Share of activations dropped while training."""
    dequantizer: DequantizerConfig = field(default_factory=DequantizerConfig)
    """The noise that makes pixels continuous."""
    batch_size: int = 64
    """Images a gradient step."""
    init_images: int = 128
    """Images that the first parameters are fitted to."""
    learning_rate: float = 3e-4
    """Adam's step size after the warm-up."""
    warmup_steps: int = 2_000
    """Steps over which it rises from 0."""
    decay: Literal["none", "cosine", "exponential"] = "none"
    """How it falls then: cosine over the whole run, or exponentially from decay-start on, by decay-rate a step."""
    decay_start: int = 50_000
    """Step at which the exponential decay begins."""
    decay_rate: float = 0.99995
    """Its factor at each step."""
    final_learning_rate: float = 0.0
    """Where either decay ends."""
    gradient_clip: float = 1.0
    """Largest norm of the gradient (bits/dim)."""
    average_decay: float = 0.999
    """Of the running average of the parameters; less in the first steps."""
    flip: bool = False
    """Mirrors half of the training images, at random."""
    importance_samples: int = 1
    """Noises an image when evaluating; more give a tighter bound."""

    def __post_init__(self) -> None:
        """Rejects values that cannot work."""
        limits.at_least(1, self, "filters", "blocks", "heads", "batch_size", "init_images", "importance_samples")
        limits.at_least(0, self, "warmup_steps", "decay_start")
        limits.positive(self, "learning_rate", "gradient_clip")
        limits.not_negative(self, "final_learning_rate")
        limits.below_one(self, "dropout", "average_decay")
        attends = self.attention or (self.dequantizer.kind == "variational" and self.dequantizer.attention)
        if attends and self.filters % self.heads:
            raise ValueError(f"filters ({self.filters}) must be divisible by heads ({self.heads})")
        noise = self.dequantizer
        if noise.kind == "variational" and noise.context_attention and noise.context_filters % self.heads:
            raise ValueError(
                f"dequantizer.context_filters ({noise.context_filters}) must be divisible by heads ({self.heads})"
            )
        if not 0 < self.decay_rate <= 1:
            raise ValueError(f"decay_rate ({self.decay_rate}) must be above 0 and at most 1")
        if self.mixtures < 0:
            raise ValueError(f"mixtures ({self.mixtures}) must be at least 0; 0 makes affine couplings")
        if not set(self.layers) & {"columns", "channels"}:
            raise ValueError("layers name no coupling: give columns or channels at least once")


class Model(NamedTuple):
    """A flow of images of one shape; its parameters are {"flow": ..., "dequantizer": ...}."""

    image_shape: tuple[int, int, int]  # height, width, channels
    flow: Chain  # from x + u in [0, 256) to z
    dequantizer: Uniform | Variational
    latent_shape: tuple[int, ...]

    @property
    def bits_per_nat_and_dim(self) -> float:
        """What turns an image's nats into bits/dim."""
        return 1.0 / (math.log(2) * math.prod(self.image_shape))

    def init(self, key: Key, images: Images) -> Any:
        """First parameters, fitted to the images."""
        key_noise, key_flow = jax.random.split(key)
        dequantizer, noise = self.dequantizer.init(key_noise, images)
        flow, _ = self.flow.init(key_flow, images.astype(jnp.float32) + noise, Condition())
        return {"flow": flow, "dequantizer": dequantizer}

    def bound(self, params: Any, images: Images, key: Key, *, dropout: Key | None = None) -> Float[Array, " batch"]:
        """log p(x + u) - log q(u | x) (nats) for one u of each image: eq. 3.9."""
        keys = (None, None) if dropout is None else tuple(jax.random.split(dropout))
        noise, log_q = self.dequantizer.draw(params["dequantizer"], images, key, keys[0])
        z, log_det = self.flow.forward(params["flow"], images.astype(jnp.float32) + noise, Condition(None, keys[1]))
        return log_normal(z) + log_det - log_q

    def bits_per_dim(self, params: Any, images: Images, key: Key, *, samples: int = 1) -> Float[Array, " batch"]:
        """The importance-weighted bound of -log2 P(x), an image: -log2 mean_k exp(bound_k) over so many noises.

        Burda et al. 2016; with one sample it is what a bits-back code of the image costs.
        """

        def add(k: Int[Array, ""], total: Array) -> Array:
            return jnp.logaddexp(total, self.bound(params, images, jax.random.fold_in(key, k)))

        start = jnp.full(len(images), -jnp.inf, jnp.float32)
        # One sample stands outside a loop, where XLA's CPU convolutions are several times faster.
        total = add(jnp.int32(0), start) if samples == 1 else jax.lax.fori_loop(0, samples, add, start)
        return (math.log(samples) - total) * self.bits_per_nat_and_dim

    def sample(self, params: Any, key: Key, *, num_images: int) -> Images:
        """Images of the model: z ~ N(0, 1) through the inverse, rounded down."""
        z = jax.random.normal(key, (num_images, *self.latent_shape), jnp.float32)
        pixels = self.flow.inverse(params["flow"], z, Condition())
        return jnp.clip(jnp.floor(pixels), 0, 255).astype(jnp.uint8)


def build_model(config: Config, image_shape: tuple[int, int, int]) -> Model:
    """The model of a config for images of a shape. Raises ValueError where the layers do not divide it."""
    layers: list[Any] = [scaled_logit(slope=0.9 / 256, offset=0.05)]  # keeps [0, 256] inside the logit's domain
    shape = image_shape
    for name, group in itertools.groupby(config.layers):
        count = len(list(group))
        if name == "depth":
            for _ in range(count):
                shape = _halved(image_shape, shape, *"hw")
                layers.append(space_to_depth())
        else:
            _halved(image_shape, shape, "w" if name == "columns" else "c")
            layers += _couplings(config, name, count, blocks=config.blocks, attention=config.attention)
    return Model(image_shape, Chain(tuple(layers)), _dequantizer(config, image_shape), shape)


def _halved(image_shape: tuple[int, ...], shape: tuple[int, int, int], *axes: str) -> tuple[int, int, int]:
    """The shape after space to depth; ValueError where an axis is odd."""
    height, width, channels = shape
    sizes = {"h": height, "w": width, "c": channels}
    if any(sizes[axis] % 2 for axis in axes):
        raise ValueError(
            f"layers cannot halve {height} x {width} x {channels}, which they make of images of "
            f"{' x '.join(map(str, image_shape))}; give other layers, or images of another size"
        )
    return height // 2, width // 2, 4 * channels


def _couplings(config: Config, split: Any, count: int, *, blocks: int, attention: bool) -> list[Any]:
    """Split, so many couplings, each after an actnorm, and joined again."""
    transform = mixture_of_logistics(config.mixtures) if config.mixtures else affine()
    network = Conditioner(
        transform.num_parameters,
        config.filters,
        blocks,
        config.heads if attention else 0,
        config.dropout,
        config.weight_norm,
        config.last_nonlinearity,
    )
    halves = split_into_halves(split)
    layers: list[Any] = [halves]
    for number in range(count):
        layers += [Actnorm(), *([Pointwise()] if config.pointwise else []), Coupling(number % 2, network, transform)]
    return [*layers, Rearrangement(halves.move_back, halves.move)]


def _dequantizer(config: Config, image_shape: tuple[int, int, int]) -> Uniform | Variational:
    chosen = config.dequantizer
    if chosen.kind == "uniform":
        return Uniform()
    _halved(image_shape, image_shape, "w")
    couplings = _couplings(config, "columns", chosen.couplings, blocks=chosen.blocks, attention=chosen.attention)
    context = Context(
        chosen.context_filters,
        chosen.context_blocks,
        config.heads if chosen.context_attention else 0,
        chosen.context_gate,
        chosen.context_norm,
        config.weight_norm,
    )
    return Variational(Chain((*couplings, sigmoid())), context)


class State(NamedTuple):
    """Everything a run needs to go on."""

    params: Any
    average: Any  # running average of `params`, which everything but training uses
    optimizer: Any
    step: Int[Array, ""]
    key: Key


def learning_rate(config: Config, *, num_iterations: int) -> Callable[[Any], Any]:
    """Step -> Adam's step size."""
    warmup = max(1, config.warmup_steps)

    def size(step: Any) -> Any:
        peak: Any
        rising = jnp.minimum(1.0, (step + 1) / warmup)
        if config.decay == "cosine":
            done = jnp.clip((step - warmup) / max(1, num_iterations - warmup), 0.0, 1.0)
            spread = 0.5 * (1.0 + jnp.cos(math.pi * done))
            peak = config.final_learning_rate + (config.learning_rate - config.final_learning_rate) * spread
        elif config.decay == "exponential":
            peak = config.learning_rate * config.decay_rate ** jnp.maximum(0.0, step - config.decay_start)
            peak = jnp.maximum(peak, config.final_learning_rate)
        else:
            peak = config.learning_rate
        return rising * peak

    return size


def make(
    config: Config,
    model: Model,
    *,
    first: Pictures,
    validation: Pictures,
    num_iterations: int,
) -> Algorithm:
    """Training by batches of pictures, whose images alone count; parameters start fitted to the `first` ones.

    The metrics are bits/dim of the bound: of the batch while training, of the running average on the validation images.
    Raises ValueError for images of another shape than the model's.
    """
    for images, _, _ in (first, validation):
        if images.shape[1:] != model.image_shape or not len(images):
            raise ValueError(f"images of shape {images.shape} do not fit a model of {model.image_shape}")
    optimizer = optax.chain(
        optax.clip_by_global_norm(config.gradient_clip),
        optax.adam(learning_rate(config, num_iterations=num_iterations)),
    )

    def loss(params: Any, images: Images, key: Key) -> Float[Array, ""]:
        """Bits/dim."""
        key_noise, key_dropout = jax.random.split(key)
        bound = model.bound(params, images, key_noise, dropout=key_dropout if config.dropout else None)
        return -jnp.mean(bound) * model.bits_per_nat_and_dim

    def init(key: Key) -> State:
        key_params, key_run = jax.random.split(key)
        params = model.init(key_params, jnp.asarray(first.images))
        # A copy, because a donated buffer must not be in the state twice.
        return State(params, jax.tree.map(jnp.copy, params), optimizer.init(params), jnp.int32(0), key_run)

    def update(state: State, batch: Pictures) -> tuple[State, Metrics]:
        key_flip, key_loss = jax.random.split(jax.random.fold_in(state.key, state.step))
        images = mirrored_at_random(batch.images, key_flip) if config.flip else batch.images
        value, gradients = jax.value_and_grad(loss)(state.params, images, key_loss)
        updates, optimizer_state = optimizer.update(gradients, state.optimizer, state.params)
        params = optax.apply_updates(state.params, updates)
        average = running_average(state.average, params, state.step, decay=config.average_decay)
        metrics = {"flow/bits_per_dim": value, "flow/gradient_norm": optax.tree.norm(gradients)}
        return State(params, average, optimizer_state, state.step + 1, state.key), metrics

    def evaluate(state: State, key: Key) -> Metrics:
        with jax.default_matmul_precision("highest"):
            found = model.bits_per_dim(
                state.average, jnp.asarray(validation.images), key, samples=config.importance_samples
            )
        return {"eval/bits_per_dim": jnp.mean(found)}

    return Algorithm(init, update, evaluate)


def mirrored_at_random(images: Images, key: Key) -> Images:
    """Each image, or its mirror image, with equal chances."""
    chosen = jax.random.bernoulli(key, shape=(len(images), 1, 1, 1))
    return jnp.where(chosen, images[:, :, ::-1], images)
