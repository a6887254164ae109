"""PPO or TRPO: whoever makes rewards takes either, behind the same three functions."""

from dataclasses import dataclass, field
from typing import Any, Literal

from vdbjax.rl import ppo, trpo
from vdbjax.rl.normalize import Moments
from vdbjax.rl.policy import Policy
from vdbjax.rl.ppo import BatchPlan, Learner, PPOConfig
from vdbjax.rl.trpo import TRPOConfig
from vdbjax.types import Environment


@dataclass(frozen=True)
class OptimizerConfig:
    """How a policy learns; what every recipe with one has."""

    ppo: PPOConfig = field(default_factory=PPOConfig)
    """How the policy learns by PPO."""
    trpo: TRPOConfig = field(default_factory=TRPOConfig, kw_only=True)
    """How it learns by TRPO."""
    optimizer: Literal["ppo", "trpo"] = field(default="ppo", kw_only=True)
    """Which of the two."""

    @property
    def learner(self) -> PPOConfig | TRPOConfig:
        """The one chosen."""
        return self.trpo if self.optimizer == "trpo" else self.ppo


def plan_batch(config: PPOConfig | TRPOConfig, num_envs: int) -> BatchPlan:
    """How long rollouts are, and how they are cut; raises ValueError where they cannot be."""
    return trpo.plan_batch(config, num_envs) if isinstance(config, TRPOConfig) else ppo.plan_batch(config, num_envs)


def make_learner(
    config: PPOConfig | TRPOConfig,
    environment: Environment,
    policy: Policy,
    *,
    value_network: Any,
    num_iterations: int,
    num_envs: int,
    observation_moments: Moments | None = None,
) -> Learner:
    """The learner of the config. With `observation_moments` observations are normalised by those, for good."""
    common: dict[str, Any] = {
        "value_network": value_network,
        "num_envs": num_envs,
        "observation_moments": observation_moments,
    }
    if isinstance(config, TRPOConfig):
        return trpo.make_learner(config, environment, policy, **common)
    return ppo.make_learner(config, environment, policy, num_iterations=num_iterations, **common)
