"""A small classifier of images, whose last hidden layer gives the features of a Fréchet distance (FD, never FID).

A layer that tells classes apart is a measure of images that needs nobody else's weights. Distances mean something only
between numbers of one and the same run, which its digest names.
"""

from dataclasses import dataclass
from typing import Any, NamedTuple

import flax.linen as nn
import jax
import jax.numpy as jnp
import numpy as np
import optax
from jaxtyping import Array, Float, Int, UInt8

from vdbjax import limits
from vdbjax.images.gan_model import scaled
from vdbjax.networks import running_average
from vdbjax.types import Algorithm, Key, Metrics, Pictures

Images = UInt8[Array, "batch height width channels"]

GROUP = 16
"""Channels that are normalised together, or all where there are not as many."""


@dataclass(frozen=True)
class Config:
    """The classifier."""

    classes: int = 10
    """Classes, counted from 0."""
    filters: tuple[int, ...] = (32, 64, 128)
    """Channels at a half, a quarter, an eighth of the resolution and so on; the last number is that of features."""
    batch_size: int = 64
    """Images a gradient step."""
    learning_rate: float = 2e-3
    """Adam's step size after the warm-up; it falls to 0 by a cosine over the run."""
    warmup_steps: int = 100
    """Steps over which it rises from 0."""
    weight_decay: float = 0.05
    """Of AdamW."""
    label_smoothing: float = 0.1
    """Share of each label that goes to all classes alike."""
    average_decay: float = 0.995
    """Of the running average of the parameters; less in the first steps."""

    def __post_init__(self) -> None:
        """Rejects values that cannot work."""
        limits.at_least(2, self, "classes")
        if not self.filters or any(number < 1 or (number > GROUP and number % GROUP) for number in self.filters):
            raise ValueError(f"filters {self.filters} must be up to {GROUP}, or multiples of it")
        limits.at_least(1, self, "batch_size")
        limits.positive(self, "learning_rate")
        limits.not_negative(self, "warmup_steps", "weight_decay")
        limits.below_one(self, "label_smoothing", "average_decay")


class Network(nn.Module):
    """Images in [-1, 1] to (features, logits of the classes); at full float32 precision on every device.

    The first convolution sees squares of 4 x 4 and halves the resolution, as does each further one that widens; each of
    these is followed by one that does not.
    """

    filters: tuple[int, ...]
    classes: int

    @nn.compact
    def __call__(
        self, images: Float[Array, "batch height width channels"]
    ) -> tuple[Float[Array, "batch features"], Float[Array, "batch classes"]]:
        hidden = self._convolved(images, self.filters[0], window=4, stride=2)
        for filters in self.filters[1:]:
            hidden = self._convolved(hidden, filters, window=3, stride=2)
            hidden = self._convolved(hidden, filters, window=3, stride=1)
        features = hidden.mean(axis=(1, 2))
        logits = nn.Dense(self.classes, precision=jax.lax.Precision.HIGHEST)(features)
        return features, logits

    def _convolved(self, inputs: Array, filters: int, *, window: int, stride: int) -> Array:
        convolution = nn.Conv(
            filters, (window, window), (stride, stride), use_bias=False, precision=jax.lax.Precision.HIGHEST
        )
        normalisation = nn.GroupNorm(num_groups=None, group_size=min(GROUP, filters))
        return nn.relu(normalisation(convolution(inputs)))


class Model(NamedTuple):
    """A classifier of images of one shape."""

    image_shape: tuple[int, int, int]  # height, width, channels
    network: Network

    def init(self, key: Key, images: Images) -> Any:
        """First parameters."""
        return self.network.init(key, scaled(images))

    def features(self, params: Any, images: Images) -> Float[Array, "batch features"]:
        """The last hidden layer: means over all places."""
        return self._outputs(params, images)[0]

    def logits(self, params: Any, images: Images) -> Float[Array, "batch classes"]:
        """Of the classes."""
        return self._outputs(params, images)[1]

    def _outputs(self, params: Any, images: Images) -> Any:
        return self.network.apply(params, scaled(images))


def build_model(config: Config, image_shape: tuple[int, int, int]) -> Model:
    """The model of a config for images of a shape, which may be any."""
    return Model(image_shape, Network(config.filters, config.classes))


class State(NamedTuple):
    """Everything a run needs to go on."""

    params: Any
    average: Any  # running average of `params`, which everything but training uses
    optimizer: Any
    step: Int[Array, ""]
    key: Key


def cross_entropy_nats(
    logits: Float[Array, "batch classes"], labels: Int[Array, " batch"], *, smoothing: float = 0.0
) -> Float[Array, ""]:
    """Mean of -sum_c q_c log p_c, where q is the label, less `smoothing` that is spread over all classes."""
    target = optax.smooth_labels(jax.nn.one_hot(labels, logits.shape[-1]), smoothing)
    return optax.softmax_cross_entropy(logits, target).mean()


def accuracy(logits: Float[Array, "batch classes"], labels: Int[Array, " batch"]) -> Float[Array, ""]:
    """Share of the images whose class has the highest logit."""
    return jnp.mean(jnp.argmax(logits, axis=-1) == labels)


def make(config: Config, model: Model, *, first: Pictures, validation: Pictures, num_iterations: int) -> Algorithm:
    """Training by batches of labelled pictures, half of them mirrored.

    Raises ValueError for pictures without labels, with more classes than the config's, or of another shape than the
    model's.
    """
    for pictures in (first, validation):
        _check(config, model, pictures)
    warmup = min(config.warmup_steps, num_iterations // 2)
    rate = optax.warmup_cosine_decay_schedule(0.0, config.learning_rate, warmup, num_iterations)
    optimizer = optax.adamw(rate, weight_decay=config.weight_decay)

    def init(key: Key) -> State:
        key_params, key_run = jax.random.split(key)
        params = model.init(key_params, jnp.asarray(first.images[:1]))
        # A copy, because a donated buffer must not be in the state twice.
        return State(params, jax.tree.map(jnp.copy, params), optimizer.init(params), jnp.int32(0), key_run)

    def loss(params: Any, images: Images, labels: Array) -> tuple[Array, Array]:
        logits = model.logits(params, images)
        return cross_entropy_nats(logits, labels, smoothing=config.label_smoothing), accuracy(logits, labels)

    def update(state: State, batch: Pictures) -> tuple[State, Metrics]:
        chosen = jax.random.bernoulli(jax.random.fold_in(state.key, state.step), shape=(len(batch.images), 1, 1, 1))
        images = jnp.where(chosen, batch.images[:, :, ::-1], batch.images)
        (value, right), gradients = jax.value_and_grad(loss, has_aux=True)(state.params, images, batch.labels)
        updates, optimizer_state = optimizer.update(gradients, state.optimizer, state.params)
        params = optax.apply_updates(state.params, updates)
        average = running_average(state.average, params, state.step, decay=config.average_decay)
        metrics = {"classifier/cross_entropy_nats": value, "classifier/accuracy": right}
        return State(params, average, optimizer_state, state.step + 1, state.key), metrics

    def evaluate(state: State, key: Key) -> Metrics:
        logits, labels = model.logits(state.average, jnp.asarray(validation.images)), jnp.asarray(validation.labels)
        return {
            "eval/cross_entropy_nats": cross_entropy_nats(logits, labels),
            "eval/accuracy": accuracy(logits, labels),
        }

    return Algorithm(init, update, evaluate)


def _check(config: Config, model: Model, pictures: Pictures) -> None:
    if pictures.images.shape[1:] != model.image_shape or not len(pictures.images):
        raise ValueError(f"images of shape {pictures.images.shape} do not fit a model of {model.image_shape}")
    check_labels(config, pictures.labels)


def check_labels(config: Config, labels: Any) -> None:
    """Raises ValueError where there are none, or some are of no class."""
    if labels is None:
        raise ValueError("a classifier learns from labels, and these images have none; give them in class folders")
    highest = int(np.max(labels))
    if highest >= config.classes:
        raise ValueError(f"classes ({config.classes}) must be above the highest label ({highest})")
