"""The networks of policies, values and critics, in flax.linen. Weights are orthogonal, biases zero."""

from collections.abc import Callable, Sequence

import flax.linen as nn
import jax.numpy as jnp
from jaxtyping import Array, Float


def dense(size: int, scale: float) -> nn.Dense:
    """A linear layer with orthogonal weights of the given gain and zero bias."""
    return nn.Dense(size, kernel_init=nn.initializers.orthogonal(scale))


class Trunk(nn.Module):
    """Hidden layers, each followed by the activation."""

    hidden_sizes: Sequence[int]
    activation: Callable[[Array], Array] = nn.tanh

    @nn.compact
    def __call__(self, inputs: Float[Array, "*batch features"]) -> Float[Array, "*batch hidden"]:
        for size in self.hidden_sizes:
            inputs = self.activation(dense(size, 2**0.5)(inputs))
        return inputs


class GaussianActor(nn.Module):
    """Mean and standard deviation of an action: the mean from the observation, the deviation a parameter of its own.

    VDB appendix C keeps the deviation fixed; here it is learnt, one number an action, from `initial_std` on.
    """

    hidden_sizes: Sequence[int]
    action_size: int
    initial_std: float

    @nn.compact
    def __call__(
        self, observation: Float[Array, "*batch observation"]
    ) -> tuple[Float[Array, "*batch action"], Float[Array, "*batch action"]]:
        mean = dense(self.action_size, 0.01)(Trunk(self.hidden_sizes)(observation))
        start = nn.initializers.constant(jnp.log(self.initial_std))
        log_std = self.param("log_std", start, (self.action_size,))
        return mean, jnp.broadcast_to(jnp.exp(log_std), mean.shape)


class Value(nn.Module):
    """State value, one number an observation."""

    hidden_sizes: Sequence[int]

    @nn.compact
    def __call__(self, observation: Float[Array, "*batch observation"]) -> Float[Array, "*batch"]:
        return dense(1, 1.0)(Trunk(self.hidden_sizes)(observation))[..., 0]


class StochasticEncoder(nn.Module):
    """E(z|x) = N(mean(x), diag std(x)^2), the encoder of the bottleneck (VDB section 4)."""

    hidden_sizes: Sequence[int]
    latent_size: int

    @nn.compact
    def __call__(
        self, inputs: Float[Array, "*batch features"]
    ) -> tuple[Float[Array, "*batch latent"], Float[Array, "*batch latent"]]:
        hidden = Trunk(self.hidden_sizes)(inputs)
        mean = dense(self.latent_size, 1.0)(hidden)
        log_variance = dense(self.latent_size, 0.1)(hidden)
        # +-20 leaves the deviation between 4.5e-5 and 2.2e4: finite in float32 with its square and its inverse.
        return mean, jnp.exp(0.5 * jnp.clip(log_variance, -20.0, 20.0))


class Critic(nn.Module):
    """A logit for each input: expert or real is high.

    With `latent_size` the embedding is a stochastic code; without it, it is the last hidden layer, of deviation zero.
    Either way the head is a single linear unit, as in VDB section 4. `encode` and `decide` are its two halves, so that
    whoever trains it draws the code.
    """

    hidden_sizes: Sequence[int]
    latent_size: int | None

    def setup(self) -> None:
        """Makes the two halves."""
        if self.latent_size is None:
            self.trunk = Trunk(self.hidden_sizes)
        else:
            self.encoder = StochasticEncoder(self.hidden_sizes, self.latent_size)
        self.head = dense(1, 1.0)

    def encode(
        self, inputs: Float[Array, "*batch features"]
    ) -> tuple[Float[Array, "*batch embedding"], Float[Array, "*batch embedding"]]:
        """Mean and standard deviation of the embedding."""
        if self.latent_size is None:
            mean = self.trunk(inputs)
            return mean, jnp.zeros_like(mean)
        return self.encoder(inputs)

    def decide(self, code: Float[Array, "*batch embedding"]) -> Float[Array, "*batch"]:
        """The logit of a code."""
        return self.head(code)[..., 0]

    def __call__(self, inputs: Float[Array, "*batch features"]) -> Float[Array, "*batch"]:
        """The logit at the mean of the code, which is what rewards are made of."""
        return self.decide(self.encode(inputs)[0])
