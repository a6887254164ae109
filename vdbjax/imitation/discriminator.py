"""What all discriminators of an imitator share: their state, one step of it, and what is reported of that."""

from collections.abc import Callable
from typing import Any, Literal, NamedTuple

import jax
import jax.numpy as jnp
import optax
from jaxtyping import Array, Float

from vdbjax.adversarial.losses import accuracy, bernoulli_entropy, logistic_loss, wasserstein_loss
from vdbjax.bottleneck import BottleneckConfig, DualState, charged, mixture_kl, next_dual
from vdbjax.types import Metrics


class DiscriminatorState(NamedTuple):
    """Parameters, optimizer and the bottleneck's multiplier (held at 0 without one)."""

    params: Any
    optimizer: Any
    dual: DualState


class Verdicts(NamedTuple):
    """What the discriminator makes of a batch."""

    logits: Float[Array, " N"]
    kl_nats: Float[Array, " N"]  # of the codes; 0 without a bottleneck


def start(
    optimizer: optax.GradientTransformation, bottleneck: BottleneckConfig | None, params: Any
) -> DiscriminatorState:
    """Before the first step."""
    beta = jnp.float32(bottleneck.beta_init if bottleneck else 0.0)
    return DiscriminatorState(params, optimizer.init(params), DualState(beta))


def objective(
    bottleneck: BottleneckConfig | None,
    loss: Literal["logistic", "wasserstein"],
    real: Verdicts,
    fake: Verdicts,
    beta: Float[Array, ""],
) -> tuple[Float[Array, ""], Metrics]:
    """The loss with the price of what the codes tell (VDB eq. 10), and what is reported of both."""
    adversarial = logistic_loss if loss == "logistic" else wasserstein_loss
    value, kl = adversarial(real.logits, fake.logits), mixture_kl(real.kl_nats, fake.kl_nats)
    metrics = {"discriminator/loss": value} | (_told_rightly(real, fake) if loss == "logistic" else {})
    return charged(bottleneck, value, kl, beta), metrics | ({"bottleneck/kl_nats": kl} if bottleneck else {})


def _told_rightly(real: Verdicts, fake: Verdicts) -> Metrics:
    """Of logits alone: the zero of a Wasserstein critic means nothing."""
    real_accuracy, fake_accuracy = accuracy(real.logits, fake.logits)
    return {
        "discriminator/expert_accuracy": real_accuracy,
        "discriminator/policy_accuracy": fake_accuracy,
        "discriminator/entropy_nats": jnp.mean(bernoulli_entropy(jnp.concatenate([real.logits, fake.logits]))),
    }


def descend(
    optimizer: optax.GradientTransformation,
    bottleneck: BottleneckConfig | None,
    state: DiscriminatorState,
    loss: Callable[[Any], tuple[Array, Metrics]],
) -> tuple[DiscriminatorState, Metrics]:
    """One gradient step, and one of beta. The loss, of the parameters, reports the KL where there is a bottleneck."""
    gradients, metrics = jax.grad(loss, has_aux=True)(state.params)
    updates, moments = optimizer.update(gradients, state.optimizer, state.params)
    metrics["discriminator/gradient_norm"] = optax.tree.norm(gradients)
    dual = next_dual(bottleneck, state.dual, metrics.get("bottleneck/kl_nats", jnp.zeros(())))
    return DiscriminatorState(optax.apply_updates(state.params, updates), moments, dual), metrics


def repeat(
    update: Callable[[DiscriminatorState, Any], tuple[DiscriminatorState, Metrics]],
    state: DiscriminatorState,
    inputs: Any,
    bottleneck: BottleneckConfig | None,
) -> tuple[DiscriminatorState, Metrics]:
    """An update for each of the inputs; means of what was reported, and beta at the end."""
    state, history = jax.lax.scan(update, state, inputs)
    metrics = jax.tree.map(jnp.mean, history)
    return state, metrics | ({"bottleneck/beta": state.dual.beta} if bottleneck else {})
