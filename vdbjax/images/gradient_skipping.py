"""Skips gradients far above the usual ones, by a level that follows them, so that no run skips for ever.

A fixed bound locks a run up as soon as all gradients lie above it (github.com/openai/vdvae/issues/25).
"""

from typing import NamedTuple

import jax.numpy as jnp
from jaxtyping import Array, Bool, Float, Int, ScalarLike

DECAY = 0.99
STEPS_TO_KNOW = 50
PATIENCE = 100


class Skipping(NamedTuple):
    """What is usual so far; start it by `usual_so_far()`."""

    log_level: Float[Array, ""]  # running mean of the logarithms of all finite norms, skipped ones too
    seen: Int[Array, ""]  # how many
    streak: Int[Array, ""]  # steps skipped in a row


def usual_so_far() -> Skipping:
    """Nothing seen."""
    return Skipping(jnp.float32(0.0), jnp.int32(0), jnp.int32(0))


def judge(state: Skipping, norm: Float[Array, ""], *, factor: ScalarLike) -> tuple[Bool[Array, ""], Skipping]:
    """Whether to apply a gradient of this norm: a finite one, at most `factor` times the usual; and what is usual then.

    Of the first `STEPS_TO_KNOW` any finite one is applied. As skipped norms count too, norms that stay e^g times above
    the level are applied again after log(g / log(factor)) / -log(0.99) steps: 432 at most, from the smallest float32 to
    the largest by a factor of 10.
    """
    finite = jnp.isfinite(norm)
    log_norm = jnp.log(jnp.where(finite & (norm > 0.0), norm, jnp.finfo(jnp.float32).tiny))
    usual = (state.seen < STEPS_TO_KNOW) | (log_norm <= state.log_level + jnp.log(factor))
    decay = jnp.minimum(DECAY, state.seen / (1.0 + state.seen))  # a plain mean at first
    level = jnp.where(finite, decay * state.log_level + (1.0 - decay) * log_norm, state.log_level)
    applied = finite & usual
    return applied, Skipping(level, state.seen + finite, jnp.where(applied, 0, state.streak + 1))


def shown_as_finite(state: Skipping, value: Float[Array, "*shape"]) -> Float[Array, "*shape"]:
    """The value; in a step that was skipped a number even where it is none, for no harm was done.

    After `PATIENCE` steps skipped in a row it is shown as it is, so that a run that cannot go on ends.
    """
    harmless = (state.streak > 0) & (state.streak < PATIENCE)
    return jnp.where(harmless, jnp.nan_to_num(value, nan=jnp.finfo(jnp.float32).max), value)
