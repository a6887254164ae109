"""The variational discriminator bottleneck: a Gaussian code, its price in nats, and the dual that sets the price.

An encoder maps x to E(z|x) = N(mean, diag std²); the critic sees a draw of z only. The mutual information of x and z is
at most E[KL(E(z|x) || N(0, I))], and that is held at a budget Ic by a multiplier beta that is updated next to the
networks. Everything here works on arrays: no network, no environment.
"""

import math
from dataclasses import dataclass
from typing import Any, NamedTuple

import jax
import jax.numpy as jnp
import optax
from jaxtyping import Array, Float, PRNGKeyArray, ScalarLike


@dataclass(frozen=True)
class BottleneckConfig:
    """What the bottleneck lets through, and how beta finds its level (VDB section 4).

    Raises:
        ValueError: for a size, a budget or a step that is not positive, or a beta that is negative.
    """

    latent_size: int = 32
    """Dimensions K of the code z."""

    info_constraint: float = 0.5
    """Budget Ic in nats: what the critic may know, on average, about one sample."""

    mean_scale: float = 1.0
    """Gain of the layer that gives the code's mean, at the start. Hundreds of inputs need a small one: else the first
    codes lie so far from the prior that beta overshoots before they come near."""

    beta_init: float = 0.5
    """Multiplier of the KL at the start."""

    dual_step_size: float = 1e-2
    """Step alpha of the dual update of beta, per nat of violation."""

    damping: float = 0.0
    """Weight of half the squared violation in the objective, which damps swings of beta and KL about the budget (Platt
    & Barr 1987); the paper has none."""

    adaptive: bool = True
    """Adapt beta to hold the budget; if false, beta stays at beta_init and the budget is not held."""

    def __post_init__(self) -> None:
        if self.latent_size < 1:
            raise ValueError(f"latent_size ({self.latent_size}) must be at least 1")
        if not 0.0 < self.info_constraint < math.inf:
            raise ValueError(
                f"info_constraint ({self.info_constraint}) must be a positive number of nats; "
                "for no constraint at all leave the bottleneck out"
            )
        if not 0.0 < self.mean_scale < math.inf:
            raise ValueError(f"mean_scale ({self.mean_scale}) must be positive and finite")
        if not 0.0 <= self.beta_init < math.inf:
            raise ValueError(f"beta_init ({self.beta_init}) must be finite and not negative")
        if not 0.0 < self.dual_step_size < math.inf:
            raise ValueError(
                f"dual_step_size ({self.dual_step_size}) must be positive; to hold beta set adaptive to False"
            )
        if not 0.0 <= self.damping < math.inf:
            raise ValueError(f"damping ({self.damping}) must be finite and not negative")
        if self.damping and not self.adaptive:
            raise ValueError(f"damping ({self.damping}) is for an adaptive beta; a beta that is held does not swing")


class DualState(NamedTuple):
    """The multiplier of one constraint; start it as `DualState(jnp.float32(config.beta_init))`.

    A bare Python number would be weakly typed, so that the second call of a compiled update would be traced again.
    """

    beta: Float[Array, ""]
    direction: Any = ()  # the state of what shapes its steps, where something does


def kl_to_standard_normal(
    mean: Float[Array, "*batch latent"], std: Float[Array, "*batch latent"]
) -> Float[Array, "*batch"]:
    """KL divergence of each code's distribution from the prior, in nats.

    KL[N(mean, diag std²) || N(0, I)] = ½ Σ_k (mean_k² + std_k² - 1 - log std_k²)

    Source: VDB section 4 and the first line of the proof in appendix A, where std is one number for all k.
    """
    return 0.5 * jnp.sum(mean**2 + std**2 - 1.0 - 2.0 * jnp.log(std), axis=-1)


def sample_code(
    key: PRNGKeyArray, mean: Float[Array, "*batch latent"], std: Float[Array, "*batch latent"]
) -> Float[Array, "*batch latent"]:
    """Draw z = mean + std · eps with eps ~ N(0, I), differentiable in mean and std.

    Consumes `key`; the same key gives the same eps, so that x -> z is a smooth function under a fixed key.

    Source: VDB section 4 and eq. 15 (the reparameterisation trick).
    """
    return mean + std * jax.random.normal(key, mean.shape, mean.dtype)


def mixture_kl(kl_real: Float[Array, "*real"], kl_fake: Float[Array, "*fake"]) -> Float[Array, ""]:
    """Average KL in nats over the equal mixture of real and fake samples, whatever the two batch sizes.

    E_{x ~ ½ p* + ½ G}[KL] = ½ E_{p*}[KL] + ½ E_G[KL]

    Source: VDB eq. 7 (the mixture p-tilde).
    """
    return 0.5 * (jnp.mean(kl_real) + jnp.mean(kl_fake))


def largest_kl(kl_real: Float[Array, "*real"], kl_fake: Float[Array, "*fake"]) -> Float[Array, ""]:
    """Largest KL in nats over real and fake samples: what the pointwise form of the constraint holds at Ic.

    KL[E(z|x) || r(z)] <= Ic for every x. `lagrangian` and `dual_update` take it in the place of `mixture_kl`. Theorem
    A.1 asks for this form; the average form, which the experiments use, is weaker and steadier.

    Source: VDB appendix A (the constraints at the head of the proof).
    """
    return jnp.maximum(jnp.max(kl_real), jnp.max(kl_fake))


def lagrangian(
    loss: Float[Array, ""],
    mean_kl: Float[Array, ""],
    beta: Float[Array, ""],
    *,
    constraint: ScalarLike,
    damping: ScalarLike = 0.0,
) -> Float[Array, ""]:
    """What critic and encoder minimise: their loss plus the price of exceeding the budget.

    L = loss + price (mean_kl - constraint) with price = max(beta + damping (mean_kl - constraint), 0). No gradient
    flows into the price, nor into beta, which `dual_update` moves.

    Without damping that is the paper's. Beta alone integrates the violation, so that where the KL answers late both
    swing about their levels for ever. The term in proportion to the violation, which is the slope of damping / 2 times
    its square, makes the swings die away and leaves the levels where they are.

    Source: VDB eq. 8 and 10; the damping is Platt & Barr, "Constrained Differential Optimization" (1987).
    """
    violation = mean_kl - constraint
    return loss + jax.lax.stop_gradient(jnp.maximum(beta + damping * violation, 0.0)) * violation


def dual_update(
    state: DualState,
    mean_kl: Float[Array, ""],
    *,
    constraint: ScalarLike,
    step_size: ScalarLike,
    lower: ScalarLike = 0.0,
    upper: ScalarLike = math.inf,
    direction: optax.GradientTransformation | None = None,
) -> DualState:
    """One step of projected dual ascent: beta rises while the constraint is violated and falls while there is slack.

    beta <- clip(beta + step_size (mean_kl - constraint), lower, upper)

    The defaults are the projection at 0 of the paper. With `step_size` 0 beta stays. `mean_kl` may be any quantity that
    is to stay below `constraint`; other multipliers use other clamps. A `direction`, such as `optax.scale_by_adam()`,
    takes the violation as a gradient and gives what is stepped along; begin with its state in `DualState`.

    Source: VDB eq. 9.
    """
    violation, memory = mean_kl - constraint, state.direction
    if direction is not None:
        violation, memory = direction.update(violation, memory)
    return DualState(jnp.clip(state.beta + step_size * violation, lower, upper), memory)


def charged(
    config: BottleneckConfig | None, loss: Float[Array, ""], mean_kl: Float[Array, ""], beta: Float[Array, ""]
) -> Float[Array, ""]:
    """`lagrangian` as the config says; the loss itself without a bottleneck."""
    if config is None:
        return loss
    return lagrangian(loss, mean_kl, beta, constraint=config.info_constraint, damping=config.damping)


def next_dual(config: BottleneckConfig | None, dual: DualState, mean_kl: Float[Array, ""]) -> DualState:
    """`dual_update` as the config says; the same dual without a bottleneck, or where beta is held."""
    if config is None or not config.adaptive:
        return dual
    return dual_update(dual, mean_kl, constraint=config.info_constraint, step_size=config.dual_step_size)


def log_likelihood_bound(
    info_constraint: Float[Array, "*batch"] | ScalarLike, latent_size: int
) -> Float[Array, "*batch"]:
    """Least log-density (nats) that an encoder within the budget gives to the mean of another input's code: log C(Ic).

    log E(mean(y) | x) > log C(Ic) = -4 Ic exp(2 Ic / K + 1) - K/2 log(4 Ic / K + 2) - K/2 log 2π

    It holds for E(z|x) = N(mean(x), sigma² I) with one sigma for all inputs and KL <= Ic nats for every input. C falls
    as Ic grows, and tends to (4π)^(-K/2) > 0 as Ic tends to 0: the generator's gradient cannot vanish.

    Source: VDB theorem A.1 and the end of its proof. The line before eq. 14 has a slip in a sign (printed as
    "- σ⁻² log σ⁻²"): what holds, and gives eq. 14, is -s + s log s >= -1 with s = σ⁻².
    """
    budget = jnp.asarray(info_constraint, jnp.float32)
    spread = 2.0 * budget / latent_size
    log_volume = 0.5 * latent_size * (jnp.log(2.0 * spread + 2.0) + math.log(2.0 * math.pi))
    return -4.0 * budget * jnp.exp(spread + 1.0) - log_volume


def likelihood_bound(info_constraint: Float[Array, "*batch"] | ScalarLike, latent_size: int) -> Float[Array, "*batch"]:
    """The bound C(Ic) itself, a density in latent space; see `log_likelihood_bound`, which does not underflow.

    Source: VDB theorem A.1.
    """
    return jnp.exp(log_likelihood_bound(info_constraint, latent_size))
