"""Maps of each element by itself: each gives y and the log-slope log |dy / dx| (nats) of every element.

The mixture of logistics (Flow++ thesis eq. 3.14 and 3.15) is computed as the logit of its CDF, which is the log-CDF
minus the log-survival: log(cdf) - log(1 - cdf) would lose all digits in the tails.
"""

import functools
import math
from collections.abc import Callable
from typing import Any, NamedTuple

import jax
import jax.numpy as jnp
from jaxtyping import Array, Float

from vdbjax.flows.bijection import Condition, sum_over_elements
from vdbjax.types import Key

LOG_SCALE_FLOOR = -7.0
"""The narrowest logistic, as in the reference: narrower ones make slopes that float32 does not hold."""

BISECTIONS, NEWTON_STEPS = 16, 8
"""Newton alone cycles on mixtures with components far apart; after 16 bisections it has converged on any tried."""


class Elementwise(NamedTuple):
    """A map without parameters."""

    apply: Callable[[Array], tuple[Array, Array]]  # x -> y and its log-slope
    invert: Callable[[Array], Array]

    def init(self, key: Key, x: Array, condition: Condition) -> tuple[Any, Array]:
        """No parameters."""
        return (), self.apply(x)[0]

    def forward(self, params: Any, x: Array, condition: Condition) -> tuple[Array, Array]:
        """y, and the sum of the log-slopes."""
        y, log_slope = self.apply(x)
        return y, sum_over_elements(log_slope)

    def inverse(self, params: Any, y: Array, condition: Condition) -> Array:
        """x."""
        return self.invert(y)


def sigmoid() -> Elementwise:
    """y = 1 / (1 + exp(-x))."""

    def apply(x: Array) -> tuple[Array, Array]:
        return jax.nn.sigmoid(x), jax.nn.log_sigmoid(x) + jax.nn.log_sigmoid(-x)

    return Elementwise(apply, lambda y: jnp.log(y) - jnp.log1p(-y))


def scaled_logit(*, slope: float, offset: float) -> Elementwise:
    """y = logit(slope x + offset), of x with 0 < slope x + offset < 1."""

    def apply(x: Array) -> tuple[Array, Array]:
        p = slope * x + offset
        log_p, log_rest = jnp.log(p), jnp.log1p(-p)
        return log_p - log_rest, math.log(slope) - log_p - log_rest

    return Elementwise(apply, lambda y: (jax.nn.sigmoid(y) - offset) / slope)


class Actnorm(NamedTuple):
    """y = scale x + bias with numbers of each activation's own, which leave the first batch with mean 0, variance 1."""

    scale_floor: float = 1e-10

    def scale_and_bias(self, params: Any, dtype: Any) -> tuple[Array, Array]:
        """Both [*shape]."""
        scale, bias = (params[name].astype(dtype) for name in ("scale", "bias"))
        return jnp.maximum(scale, self.scale_floor), bias

    def init(self, key: Key, x: Float[Array, "batch *shape"], condition: Condition) -> tuple[Any, Array]:
        """Fitted to the batch."""
        scale = jax.lax.rsqrt(jnp.var(x, axis=0) + 1e-8).astype(jnp.float32)
        params = {"scale": scale, "bias": -jnp.mean(x, axis=0).astype(jnp.float32) * scale}
        return params, self.forward(params, x, condition)[0]

    def forward(self, params: Any, x: Float[Array, "batch *shape"], condition: Condition) -> tuple[Array, Array]:
        """y; its log-determinant is the same for every input."""
        scale, bias = self.scale_and_bias(params, x.dtype)
        return x * scale[None] + bias[None], jnp.broadcast_to(jnp.sum(jnp.log(scale)), len(x))

    def inverse(self, params: Any, y: Float[Array, "batch *shape"], condition: Condition) -> Array:
        """x."""
        scale, bias = self.scale_and_bias(params, y.dtype)
        return (y - bias[None]) / scale[None]


class Transform(NamedTuple):
    """A family of monotone maps: how each element goes is told by parameters along the last axis."""

    num_parameters: int  # of each element
    forward: Callable[[Array, Array], tuple[Array, Array]]  # (x, parameters) -> y and its log-slope
    inverse: Callable[[Array, Array], Array]  # (y, parameters) -> x


def affine() -> Transform:
    """y = x exp(tanh a) + b of parameters (a, b); the bound keeps slopes between 1/e and e."""

    def forward(
        x: Float[Array, "*shape"], parameters: Float[Array, "*shape 2"]
    ) -> tuple[Float[Array, "*shape"], Float[Array, "*shape"]]:
        log_slope = jnp.tanh(parameters[..., 0])
        return x * jnp.exp(log_slope) + parameters[..., 1], log_slope

    def inverse(y: Float[Array, "*shape"], parameters: Float[Array, "*shape 2"]) -> Float[Array, "*shape"]:
        return (y - parameters[..., 1]) * jnp.exp(-jnp.tanh(parameters[..., 0]))

    return Transform(2, forward, inverse)


class Mixture(NamedTuple):
    """K logistics."""

    log_weights: Float[Array, "*shape K"]  # nats, their exponentials sum to 1
    means: Float[Array, "*shape K"]
    log_scales: Float[Array, "*shape K"]


def mixture_of_logistics(num_components: int) -> Transform:
    """y = logit(CDF(x)) exp(tanh a) + b. Flow++ thesis eq. 3.14.

    Parameters of an element: a, b, then the K logits of the weights, the K means and the K log-scales.
    """
    outer = affine()

    def mixture(parameters: Float[Array, "*shape parameters"]) -> Mixture:
        logits, means, log_scales = jnp.split(parameters[..., 2:], 3, axis=-1)
        return Mixture(jax.nn.log_softmax(logits), means, jnp.maximum(log_scales, LOG_SCALE_FLOOR))

    def forward(
        x: Float[Array, "*shape"], parameters: Float[Array, "*shape parameters"]
    ) -> tuple[Float[Array, "*shape"], Float[Array, "*shape"]]:
        logit, log_slope = mixture_logit(x, mixture(parameters))
        y, outer_log_slope = outer.forward(logit, parameters[..., :2])
        return y, log_slope + outer_log_slope

    def inverse(y: Float[Array, "*shape"], parameters: Float[Array, "*shape parameters"]) -> Float[Array, "*shape"]:
        return mixture_logit_inverse(outer.inverse(y, parameters[..., :2]), mixture(parameters))

    return Transform(2 + 3 * num_components, forward, inverse)


def mixture_logit(x: Float[Array, "*shape"], mixture: Mixture) -> tuple[Float[Array, "*shape"], Float[Array, "*shape"]]:
    """logit(CDF(x)) of the mixture (eq. 3.15), and its log-slope."""
    standard = (x[..., None] - mixture.means) * jnp.exp(-mixture.log_scales)
    log_below, log_above = jax.nn.log_sigmoid(standard), jax.nn.log_sigmoid(-standard)
    log_cdf = _log_sum(mixture.log_weights + log_below)
    log_survival = _log_sum(mixture.log_weights + log_above)
    log_density = _log_sum(mixture.log_weights + log_below + log_above - mixture.log_scales)
    return log_cdf - log_survival, log_density - log_cdf - log_survival


def mixture_logit_inverse(y: Float[Array, "*shape"], mixture: Mixture) -> Float[Array, "*shape"]:
    """x with logit(CDF(x)) = y: bisections, then Newton's steps that must stay in the bracket.

    Their number is fixed and each element goes its own way, so that no image's result depends on its neighbours. The
    mixture's logit lies between those of its components, which gives the first bracket. Inside of it neither the CDF
    nor the survival is too small for a float, so that both are sums of exponentials, not logarithms of such.
    """
    components = [Mixture(*(field[..., k] for field in mixture)) for k in range(mixture.means.shape[-1])]
    ends = [c.means + jnp.exp(c.log_scales) * y for c in components]
    low, high = functools.reduce(jnp.minimum, ends), functools.reduce(jnp.maximum, ends)
    odds = jnp.exp(y)

    def narrowed(x: Array, value: Array, y: Array, low: Array, high: Array) -> tuple[Array, Array]:
        return jnp.where(value <= y, x, low), jnp.where(value >= y, x, high)

    def bisect(_: Any, bracket: tuple[Array, Array]) -> tuple[Array, Array]:
        middle = 0.5 * (bracket[0] + bracket[1])
        below, above, _ = _mixture_sums(middle, components)
        return narrowed(middle, below, odds * above, *bracket)

    def newton(_: Any, carry: tuple[Array, Array, Array]) -> tuple[Array, Array, Array]:
        x, low, high = carry
        below, above, density = _mixture_sums(x, components)
        value = jnp.log(below / above)
        low, high = narrowed(x, value, y, low, high)
        step = x - (value - y) * below * above / density
        # Not strict: a root that rounds to an end of its bracket must not be thrown back to the middle.
        inside = (low <= step) & (step <= high)
        return jnp.where(inside, step, 0.5 * (low + high)), low, high

    low, high = jax.lax.fori_loop(0, BISECTIONS, bisect, (low, high))
    return jax.lax.fori_loop(0, NEWTON_STEPS, newton, (0.5 * (low + high), low, high))[0]


def _mixture_sums(x: Float[Array, "*shape"], components: list[Mixture]) -> tuple[Array, Array, Array]:
    """CDF, survival and density. One component after another: ten times as fast on a CPU as along an axis of them."""
    limit = 0.9 * math.log(float(jnp.finfo(x.dtype).max))
    below = above = density = jnp.zeros_like(x)
    for log_weight, mean, log_scale in components:
        weight, rate = jnp.exp(log_weight), jnp.exp(-log_scale)
        odds_against = jnp.exp(jnp.clip((mean - x) * rate, -limit, limit))
        its_below = 1.0 / (1.0 + odds_against)
        its_above = odds_against * its_below
        below += weight * its_below
        above += weight * its_above
        density += weight * rate * its_below * its_above
    return below, above, density


def _log_sum(terms: Float[Array, "*shape K"]) -> Float[Array, "*shape"]:
    return jax.nn.logsumexp(terms, axis=-1)
