"""All that decides a run of a policy, and the files that its folder keeps."""

import dataclasses
from dataclasses import dataclass, field
from pathlib import Path
from typing import Annotated, Any, Generic, TypeVar

from tyro.conf import Suppress, arg

from vdbjax import limits
from vdbjax.envs.env import EnvironmentConfig

AlgorithmConfig = TypeVar("AlgorithmConfig")

OWN_DEMONSTRATIONS, OWN_START, OWN_REWARD = "demonstrations.npz", "init_from", "reward"
"""In the run folder: copies of the demonstrations, of the run it starts from, and of that whose reward it learns on."""


@dataclass(frozen=True)
class DemonstrationConfig:
    """Which demonstrations, and how many of them."""

    demonstrations: Path | None = None
    """Demonstration file (.npz). None: the ones inside the package, for tasks that have some."""
    trajectories: int = 4
    """Trajectories to learn from, drawn by the seed."""
    every: int = 20
    """Keep every n-th transition of each, from a random start: 20 leaves about 50 of 1,000 (Ho & Ermon 2016)."""
    init_from: Path | None = None
    """Run of recipe bc (or any other) whose policy is the first one; GAIL's and VAIL's recipes only."""


@dataclass(frozen=True)
class RunConfig(Generic[AlgorithmConfig]):
    """All that decides a run."""

    recipe: Suppress[str]
    algorithm: Annotated[AlgorithmConfig, arg(name="")]
    environment: Annotated[EnvironmentConfig, arg(name="")] = field(default_factory=EnvironmentConfig)
    demonstration: Annotated[DemonstrationConfig | None, arg(name="")] = None
    num_envs: int = 32
    """Environments in parallel, for each seed. Batch, minibatches and updates grow with them."""
    total_steps: int | None = None
    """Control steps over all environments of a seed. None: 1 million with 32 environments, more with more."""
    seed: int = 0
    """Seed of everything random."""
    num_seeds: int = 1
    """Independent runs at once, by vmap; each has its own environments."""
    evaluations: int = 10
    """Evaluations on the true return, evenly over the run."""
    eval_episodes: int = 10
    """Fresh episodes an evaluation, for the mean action and for the stochastic policy."""
    checkpoint_seconds: float = 30.0
    """Seconds between checkpoints."""

    @property
    def files(self) -> dict[str, Path]:
        """What a run keeps a copy of, by its name in the run folder: what it learns from, and other runs."""
        given, clip = self.demonstration or DemonstrationConfig(), _own_clip(self.environment)
        kept = {OWN_DEMONSTRATIONS: given.demonstrations, OWN_START: given.init_from, OWN_REWARD: self.reward}
        return {name: path for name, path in kept.items() if path} | ({clip.name: clip} if clip else {})

    @property
    def reward(self) -> Path | None:
        """The run whose learnt reward takes the place of the task's own, where there is one."""
        return getattr(self.algorithm, "reward", None)

    @property
    def policy_config(self) -> Any:
        """What shapes the policy: the learner's config, or where none learns from rewards the algorithm's own."""
        return getattr(self.algorithm, "learner", self.algorithm)

    def __post_init__(self) -> None:
        """Rejects values that cannot work."""
        limits.not_negative(self, "checkpoint_seconds")
        limits.at_least(1, self, "num_envs", "num_seeds", "evaluations", "eval_episodes", "total_steps")


def by_own_files(config: RunConfig, folder: str | Path) -> RunConfig:
    """The config with the files that the run in this folder keeps, whatever has become of those they are copies of."""
    folder, clip = Path(folder).absolute(), _own_clip(config.environment)
    kept = {name: folder / name for name in config.files if (folder / name).exists()}
    if config.demonstration:
        names = {"demonstrations": OWN_DEMONSTRATIONS, "init_from": OWN_START}
        own: dict[str, Any] = {field: kept[name] for field, name in names.items() if name in kept}
        config = dataclasses.replace(config, demonstration=dataclasses.replace(config.demonstration, **own))
    if OWN_REWARD in kept:
        config = dataclasses.replace(config, algorithm=dataclasses.replace(config.algorithm, reward=kept[OWN_REWARD]))
    if clip and clip.name in kept:
        env = f"{config.environment.env.partition('/')[0]}/{kept[clip.name]}"
        config = dataclasses.replace(config, environment=dataclasses.replace(config.environment, env=env))
    return config


def _own_clip(environment: EnvironmentConfig) -> Path | None:
    """The file of a clip that is named by its whole path, as a run names those that are not looked up."""
    kind, _, name = environment.env.partition("/")
    return Path(name) if kind in ("mocap", "video") and Path(name).is_absolute() else None
