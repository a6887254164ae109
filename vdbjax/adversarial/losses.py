"""What a critic minimises, what it is worth, and the reward it gives to a policy."""

from typing import Literal, get_args

import jax
import jax.numpy as jnp
from jaxtyping import Array, Float

RewardForm = Literal["-log(1-D)", "log D", "logit"]
"""How a logit becomes a reward; `imitation_reward` says what each form does to episodes that may end early."""

Game = Literal["non-saturating", "minimax", "wasserstein"]
"""What critic and generator play; the first two share the critic's loss."""


def critic_loss(
    real_logits: Float[Array, "*real"], fake_logits: Float[Array, "*fake"], *, game: Game
) -> Float[Array, ""]:
    """What the critic minimises in this game: `wasserstein_loss`, or `logistic_loss` in the other two.

    Raises ValueError for another game.
    """
    _check_game(game)
    loss = wasserstein_loss if game == "wasserstein" else logistic_loss
    return loss(real_logits, fake_logits)


def generator_loss(fake_logits: Float[Array, "*fake"], *, game: Game) -> Float[Array, ""]:
    """What the generator minimises.

    - `non-saturating`: E[-log D] = E[softplus(-logit)], whose slope stays 1 while the critic is sure of the fakes.
    - `minimax`: E[log(1 - D)] = -E[softplus(logit)], the value of the game itself; its slope vanishes there.
    - `wasserstein`: -E[logit].

    Source: Goodfellow et al. 2014, eq. 1 and the end of section 3; VDB eq. 11, which the experiments take in its
    non-saturating form (appendix E.1). Raises ValueError for another game.
    """
    _check_game(game)
    if game == "non-saturating":
        return jnp.mean(jax.nn.softplus(-fake_logits))
    if game == "minimax":
        return -jnp.mean(jax.nn.softplus(fake_logits))
    return -jnp.mean(fake_logits)


def _check_game(game: str) -> None:
    if game not in get_args(Game):
        raise ValueError(f"game ({game}) must be one of {', '.join(get_args(Game))}")


def logistic_loss(real_logits: Float[Array, "*real"], fake_logits: Float[Array, "*fake"]) -> Float[Array, ""]:
    """Cross-entropy of telling real from fake, in nats: the sum of both sides' means, so 2 log 2 when all logits are 0.

    E_real[-log D] + E_fake[-log(1 - D)] = E[softplus(-real)] + E[softplus(fake)], with D = sigmoid(logit)

    Source: VDB eq. 10, without its last term; GAIL's objective with D high for the expert.
    """
    return jnp.mean(jax.nn.softplus(-real_logits)) + jnp.mean(jax.nn.softplus(fake_logits))


def wasserstein_loss(real_logits: Float[Array, "*real"], fake_logits: Float[Array, "*fake"]) -> Float[Array, ""]:
    """Negative gap between the critic's means, to be minimised: E[fake] - E[real].

    Unbounded below unless the critic is kept Lipschitz, by `wgan_gp_penalty` for one.

    Source: W-GAIL in GAIL-VR section 5.1, after the Wasserstein GAN.
    """
    return jnp.mean(fake_logits) - jnp.mean(real_logits)


def accuracy(
    real_logits: Float[Array, "*real"], fake_logits: Float[Array, "*fake"]
) -> tuple[Float[Array, ""], Float[Array, ""]]:
    """Fractions of the real samples with a positive logit and of the fake samples with a negative one.

    A logit of exactly 0 is no decision, and counts as wrong on both sides.

    Source: VDB figure 12, which shows the accuracy; the sides are kept apart because they fail apart.
    """
    return jnp.mean(real_logits > 0.0), jnp.mean(fake_logits < 0.0)


def bernoulli_entropy(logits: Float[Array, "*batch"]) -> Float[Array, "*batch"]:
    """Entropy in nats of the critic's verdict on each sample: log 2 when it cannot tell, 0 when it is certain.

    H = -D log D - (1 - D) log(1 - D), with D = sigmoid(logit)
    """
    # H is even in the logit. Written in |logit| both terms are positive, where softplus(l) - l D would cancel to noise.
    certainty = jnp.abs(logits)
    return jax.nn.softplus(-certainty) + certainty * jax.nn.sigmoid(-certainty)


def imitation_reward(logits: Float[Array, "*batch"], *, form: RewardForm) -> Float[Array, "*batch"]:
    """Reward of each policy sample from its logit; higher means more like the expert.

    The sign of the form acts on its own wherever an episode may end early, as a step that is never taken gives 0:

    - `-log(1-D)` = softplus(logit) >= 0 pays for every step survived, like the expert or not. It suits tasks in which
      experts last, and is wrong where they finish fast.
    - `log D` = -softplus(-logit) <= 0 charges for every step, so that ending early pays, also by falling.
    - `logit` = log D - log(1-D) has both signs. Its sum is unbiased for a good policy only: while the critic knows the
      policy's samples for what they are, every step is negative, and hopper learnt to fall at once.

    Absorbing states, or episodes of one length, take the choice away.

    Raises:
        ValueError: for an unknown form.

    Source: VDB section 4.2, below eq. 12 (-log(1-D), with the logit of the mean code); eq. 13 (AIRL) for the logit.
    """
    if form == "-log(1-D)":
        return jax.nn.softplus(logits)
    if form == "log D":
        return -jax.nn.softplus(-logits)
    if form == "logit":
        return logits
    raise ValueError(f'reward form ({form}) must be one of "-log(1-D)", "log D", "logit"')
