"""Variational discriminator bottleneck in JAX: adversarial imitation, inverse RL, image synthesis, compression."""

__version__ = "0.1.0"
