"""The menu: recipe name -> config, and how a config becomes a running algorithm."""

import dataclasses
import difflib
from dataclasses import dataclass, field
from pathlib import Path
from typing import Annotated, Any, Generic, NamedTuple, TypeVar, get_args, get_type_hints

import jax
from tyro.conf import Suppress, arg

from vdbjax.bottleneck import BottleneckConfig
from vdbjax.data.demonstrations import DemonstrationFile, embedded, episode_returns, load, subsample
from vdbjax.envs.env import EnvironmentConfig, make_environment
from vdbjax.image_recipes import IMAGE_RECIPES
from vdbjax.imitation import airl, airl_discriminator, behavioral_cloning, gail, pixel_reward
from vdbjax.imitation.adversarial_step import DiscriminatorConfig
from vdbjax.motion_score import scored_by_motion
from vdbjax.networks import GaussianActor, Value
from vdbjax.rl import reinforcement
from vdbjax.rl.optimizer import plan_batch
from vdbjax.rl.policy import Actor, Policy, make_policy
from vdbjax.rl.ppo import PPOConfig
from vdbjax.rl.trpo import TRPOConfig
from vdbjax.training.loop import Schedule
from vdbjax.types import Algorithm, Environment, Key, Metrics

AlgorithmConfig = TypeVar("AlgorithmConfig")


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
    """Run of recipe bc (or any other) whose policy is the first one."""


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

    def __post_init__(self) -> None:
        """Rejects values that cannot work."""
        for name in ("num_envs", "num_seeds", "evaluations", "eval_episodes"):
            if getattr(self, name) < 1:
                raise ValueError(f"{name} ({getattr(self, name)}) must be at least 1")
        if self.total_steps is not None and self.total_steps < 1:
            raise ValueError(f"total_steps ({self.total_steps}) must be at least 1")


class Recipe(NamedTuple):
    """A row of the menu."""

    description: str
    config: RunConfig


def _imitation(name: str, description: str, **changes: Any) -> Recipe:
    config: RunConfig = RunConfig(name, gail.Config(**changes), demonstration=DemonstrationConfig())
    return Recipe(description, config)


MOTION_TASK = EnvironmentConfig(env="mocap/run")

MOTION_PPO = PPOConfig(
    learning_rate=2e-4,
    num_epochs=5,
    minibatch_size=1024,
    rollout_length=32,
    discount=0.95,
    hidden_sizes=(256, 128),
    activation="relu",
    initial_std=0.15,
    final_std=0.04,
)
"""For the mocap humanoid: what learnt within minutes on two cores. The paper's networks are 1024-512.

The deviation has to fall: where 0.1 of it is left, the mean action alone walks at another pace than the draws did, and
drifts out of step with the clip."""

MOTION_BOTTLENECK = BottleneckConfig(latent_size=64, mean_scale=0.1, beta_init=0.3, dual_step_size=1e-3)


def _motion_discriminator(**changes: Any) -> DiscriminatorConfig:
    """The phase-functioned discriminator of VDB appendix C."""
    common: dict[str, Any] = {
        "inputs": "state",
        "phase": "functioned",
        "activation": "relu",
        "learning_rate": 1e-4,
        "updates": 8,
        "deviation_floor": 0.05,
    }
    return DiscriminatorConfig(**(common | changes))


def _motion(name: str, description: str, *, bottleneck: BottleneckConfig | None = None, **changes: Any) -> Recipe:
    algorithm = gail.Config(MOTION_PPO, _motion_discriminator(**changes), bottleneck, running_normalizer=True)
    return Recipe(description, RunConfig(name, algorithm, MOTION_TASK, num_envs=128, total_steps=4_000_000))


VIDEO_TASK = EnvironmentConfig(env="video/run")


def _video(name: str, description: str, algorithm: Any) -> Recipe:
    return Recipe(description, RunConfig(name, algorithm, VIDEO_TASK, num_envs=128, total_steps=4_000_000))


def _film_critic(bottleneck: BottleneckConfig | None = None) -> gail.Config:
    """Of pictures, with the phase: VDB appendix C has phase-functioned discriminators in all motion imitation."""
    discriminator = _motion_discriminator(inputs="frame", hidden_sizes=(128,), batch_size=128)
    return gail.Config(MOTION_PPO, discriminator, bottleneck, running_normalizer=True)


MAZE_TASK = EnvironmentConfig(env="maze/c")

MAZE_TRPO = TRPOConfig(normalize=False)
"""For mazes, whose observations are metres of the size of 1."""

MAZE_BOTTLENECK = BottleneckConfig(
    latent_size=32, mean_scale=airl_discriminator.START_SCALE, info_constraint=0.5, beta_init=0.005, dual_step_size=1e-5
)
"""Of VAIRL in the C-maze (VDB appendix D; what beta starts from is the authors' code's)."""


def _inverse(name: str, description: str, *, bottleneck: BottleneckConfig | None = None, **changes: Any) -> Recipe:
    """Inverse reinforcement learning in the C-maze, by TRPO with the settings of VDB appendix D. With the bottleneck
    alone the step is annealed: no policy found the way to the goal there by rewards that had gone on learning."""
    algorithm = airl.Config(
        discriminator=airl_discriminator.DiscriminatorConfig(**changes),
        bottleneck=bottleneck,
        trpo=MAZE_TRPO,
        optimizer="trpo",
    )
    demonstration = DemonstrationConfig(trajectories=20, every=1)
    return Recipe(
        description, RunConfig(name, algorithm, MAZE_TASK, demonstration, num_envs=100, total_steps=2_000_000)
    )


def _menu(*recipes: Recipe) -> dict[str, Recipe]:
    return {recipe.config.recipe: recipe for recipe in recipes}


RECIPES = _menu(
    Recipe(
        "PPO on the task's own reward: makes experts", RunConfig("ppo", reinforcement.Config(), total_steps=2_000_000)
    ),
    Recipe(
        "TRPO on the task's own reward",
        RunConfig("trpo", reinforcement.Config(optimizer="trpo"), total_steps=2_000_000),
    ),
    Recipe(
        "behavioural cloning, with a held-out part and early stopping",
        RunConfig("bc", behavioral_cloning.Config(), demonstration=DemonstrationConfig()),
    ),
    _imitation("gail", "GAIL (Ho & Ermon 2016)"),
    _imitation(
        "gail-noise", "GAIL, noise on the discriminator's inputs", discriminator=DiscriminatorConfig(input_noise=0.2)
    ),
    _imitation(
        "gail-noise-z", "GAIL, noise on the last hidden layer", discriminator=DiscriminatorConfig(code_noise=0.2)
    ),
    _imitation(
        "gail-gp", "GAIL, gradient penalty on expert samples", discriminator=DiscriminatorConfig(gradient_penalty=0.1)
    ),
    _imitation(
        "wgail",
        "W-GAIL: Wasserstein critic with gradient penalty",
        discriminator=DiscriminatorConfig(loss="wasserstein", gradient_penalty=10.0),
    ),
    _imitation("gail-vr", "GAIL with variance regularisation", discriminator=DiscriminatorConfig(variance_weight=0.01)),
    _imitation("vail", "VAIL: GAIL through the variational bottleneck", bottleneck=BottleneckConfig()),
    _imitation(
        "vail-gp",
        "VAIL with gradient penalty",
        bottleneck=BottleneckConfig(),
        discriminator=DiscriminatorConfig(gradient_penalty=0.1),
    ),
    _imitation(
        "vail-fixed-beta",
        "VAIL with beta held where it starts",
        bottleneck=BottleneckConfig(adaptive=False, beta_init=0.1),
    ),
    _inverse("airl", "AIRL (Fu et al. 2018): a reward that transfers, from demonstrations in a maze"),
    _inverse("airl-gp", "AIRL with gradient penalty", gradient_penalty=0.1),
    _inverse("vairl", "VAIRL: AIRL through the variational bottleneck", bottleneck=MAZE_BOTTLENECK, anneal=True),
    _inverse("vairl-gp", "VAIRL with gradient penalty", bottleneck=MAZE_BOTTLENECK, gradient_penalty=0.1),
    _inverse(
        "vairl-beta0",
        "VAIRL's noisy codes without the constraint: beta held at 0",
        bottleneck=dataclasses.replace(MAZE_BOTTLENECK, beta_init=0.0, adaptive=False),
        anneal=True,
    ),
    Recipe(
        "motion clip tracked by DeepMimic's hand-made reward",
        RunConfig(
            "motion-tracking",
            reinforcement.Config(ppo=dataclasses.replace(MOTION_PPO, num_epochs=3)),
            MOTION_TASK,
            num_envs=128,
            total_steps=3_000_000,
        ),
    ),
    Recipe(
        "motion clip cloned from a tracking policy's actions",
        RunConfig(
            "motion-bc",
            behavioral_cloning.Config(hidden_sizes=(256, 128), activation="relu", initial_std=0.15),
            MOTION_TASK,
            DemonstrationConfig(trajectories=17, every=1),
        ),
    ),
    _motion("motion-merel", "motion clip by GAIL without phase (Merel et al. 2017)", phase="none"),
    _motion("motion-gail", "motion clip by GAIL, phase-functioned discriminator"),
    _motion("motion-gail-noise", "the same, noise on the discriminator's inputs", input_noise=0.2),
    _motion("motion-gail-noise-z", "the same, noise on the last hidden layer", code_noise=0.2),
    _motion("motion-gail-gp", "the same, gradient penalty on the clip's samples", gradient_penalty=1.0),
    _motion("motion-vail", "motion clip by VAIL", bottleneck=MOTION_BOTTLENECK),
    _motion(
        "motion-vail-gp",
        "motion clip by VAIL with gradient penalty",
        bottleneck=MOTION_BOTTLENECK,
        gradient_penalty=1.0,
    ),
    _video("video-pixel", "film of a clip by pixel differences", pixel_reward.Config(MOTION_PPO)),
    _video("video-gail", "film of a clip by GAIL: the discriminator sees pictures", _film_critic()),
    _video("video-vail", "film of a clip by VAIL: the same through the bottleneck", _film_critic(MOTION_BOTTLENECK)),
)


def find_recipe(name: str) -> RunConfig:
    """The config of a policy's recipe. Raises ValueError for any other name, with the nearest ones."""
    if name in RECIPES:
        return RECIPES[name].config
    if name in IMAGE_RECIPES:
        raise ValueError(f"recipe {name!r} trains a model of images, which has no policy and no task")
    known = [*RECIPES, *IMAGE_RECIPES]
    near = " or ".join(difflib.get_close_matches(name, known))
    raise ValueError(f"unknown recipe {name!r}; " + (f"did you mean {near}?" if near else f"known: {', '.join(known)}"))


class Built(NamedTuple):
    """A config made real."""

    algorithm: Algorithm
    environment: Environment
    policy: Policy
    schedule: Schedule
    facts: dict[str, Any]  # what the config left open, for config.json and the first line


class Reference(NamedTuple):
    """What a score of 0 and of 1 stand for, as undiscounted true returns."""

    random_return: float
    expert_return: float

    def score(self, value: Any) -> Any:
        """The return, normalised."""
        return (value - self.random_return) / (self.expert_return - self.random_return)


def build(
    config: RunConfig,
    *,
    start_from: Actor | None = None,
    environment: Environment | None = None,
    reward: reinforcement.Reward | None = None,
) -> Built:
    """The algorithm, its environment (by default the config's) and its schedule.

    `start_from` and `reward` are what the config's `init_from` and `reward` name. Raises ValueError for what does not
    fit together.
    """
    environment = environment or make_environment(config.environment)
    networks = config.algorithm if isinstance(config.algorithm, behavioral_cloning.Config) else config.algorithm.learner
    actor = GaussianActor(networks.hidden_sizes, environment.action_size, networks.initial_std, networks.activation)
    policy = make_policy(actor, environment, distribution=networks.distribution)
    _check_fit(config, environment, policy, start_from)
    schedule = _schedule(config)
    facts: dict[str, Any] = {"devices": jax.device_count()}
    if config.demonstration is None:
        algorithm = _algorithm(config, environment, policy, schedule, environment.demonstrations, reward=reward)
    else:
        file = _demonstrations(config.demonstration, environment)
        chosen = subsample(
            file.demonstrations,
            num_trajectories=config.demonstration.trajectories,
            every=config.demonstration.every,
            seed=config.seed,
        )
        reference = Reference(file.random_return, float(episode_returns(file.demonstrations).mean()))
        algorithm = _scored(_algorithm(config, environment, policy, schedule, chosen, start_from), reference)
        facts |= {**reference._asdict(), "transitions": len(chosen.observation), "expert": file.source}
    if environment.follow:
        episodes = _round_up(config.eval_episodes, jax.device_count())
        algorithm = scored_by_motion(algorithm, environment, policy, num_episodes=episodes)
    return Built(algorithm, environment, policy, schedule, facts)


def _algorithm(
    config: RunConfig,
    environment: Environment,
    policy: Policy,
    schedule: Schedule,
    demonstrations: Any = None,  # where the recipe learns from some
    start_from: Actor | None = None,
    reward: reinforcement.Reward | None = None,
) -> Algorithm:
    algorithm, episodes = config.algorithm, _round_up(config.eval_episodes, jax.device_count())
    if isinstance(algorithm, behavioral_cloning.Config):
        return behavioral_cloning.make(algorithm, environment, policy, demonstrations, num_eval_episodes=episodes)
    sizes: dict[str, Any] = {
        "value_network": Value(algorithm.learner.hidden_sizes, algorithm.learner.activation),
        "num_envs": config.num_envs,
        "num_iterations": schedule.num_iterations,
        "num_eval_episodes": episodes,
    }
    if isinstance(algorithm, gail.Config):
        return gail.make(algorithm, environment, policy, demonstrations, start_from=start_from, **sizes)
    if isinstance(algorithm, airl.Config):
        return airl.make(algorithm, environment, policy, demonstrations, **sizes)
    if isinstance(algorithm, pixel_reward.Config):
        return pixel_reward.make(algorithm, environment, policy, **sizes)
    return reinforcement.make(algorithm, environment, policy, reward=reward, **sizes)


def _check_fit(config: RunConfig, environment: Environment, policy: Policy, start_from: Actor | None) -> None:
    num_devices = jax.sharding.get_abstract_mesh().size
    if num_devices > 1 and config.num_envs % num_devices:
        raise ValueError(f"num_envs ({config.num_envs}) must be divisible by the number of devices ({num_devices})")
    if start_from is None:
        return
    if not isinstance(config.algorithm, gail.Config):
        raise ValueError(f"init_from is for GAIL's and VAIL's recipes; {config.recipe} starts from nothing")
    found, size = start_from.observations.mean.shape[0], environment.observation_size
    if found != size:
        raise ValueError(
            f"init_from has a policy of {found} observations, {environment.name} has {size}; give a run of this task"
        )
    layers = [
        [leaf.shape for leaf in jax.tree.leaves(params)]
        for params in (start_from.params, jax.eval_shape(policy.init, jax.random.key(0)))
    ]
    if layers[0] != layers[1]:
        raise ValueError(
            f"init_from holds a policy of layers {layers[0]}, but this run's has {layers[1]}; "
            f"give a run of this task with the same hidden_sizes"
        )


def _round_up(count: int, multiple: int) -> int:
    return -(-count // multiple) * multiple


def _demonstrations(config: DemonstrationConfig, environment: Environment) -> DemonstrationFile:
    if config.demonstrations is None:
        return embedded(environment.name)
    return load(
        config.demonstrations,
        task=environment.name,
        observation_size=environment.observation_size,
        action_size=environment.action_size,
    )


def _schedule(config: RunConfig) -> Schedule:
    """How many iterations the steps asked for are, at least one; cloning takes none and counts its own."""
    if isinstance(config.algorithm, behavioral_cloning.Config):
        return Schedule(config.algorithm.max_iterations, 0, config.evaluations, config.checkpoint_seconds)
    steps = config.num_envs * plan_batch(config.algorithm.learner, config.num_envs).rollout_length
    # Larger batches learn less from each step: 8.5 million steps were enough at 4,096 environments.
    total = config.total_steps or round(1e6 * max(1.0, steps / 2048) ** 0.62)
    return Schedule(max(1, round(total / steps)), steps, config.evaluations, config.checkpoint_seconds)


def rollout_bytes(config: RunConfig, environment: Environment) -> int:
    """What the rollouts of all seeds take, roughly: each step's numbers, and two copies of them while learning."""
    if isinstance(config.algorithm, behavioral_cloning.Config):
        return 0
    steps = config.num_envs * plan_batch(config.algorithm.learner, config.num_envs).rollout_length
    numbers = 2 * environment.observation_size + 2 * environment.action_size + 8
    return 3 * 4 * config.num_seeds * steps * numbers


def _scored(algorithm: Algorithm, reference: Reference) -> Algorithm:
    """The same algorithm, its evaluation with scores: 0 is a random policy's return, 1 the demonstrations'."""

    def evaluate(state: Any, key: Key) -> Metrics:
        metrics = algorithm.evaluate(state, key)
        return metrics | {
            "eval/score": reference.score(metrics["eval/return"]),
            "eval/stochastic_score": reference.score(metrics["eval/stochastic_return"]),
        }

    return algorithm._replace(evaluate=evaluate)


def from_dict(default: Any, values: dict[str, Any]) -> Any:
    """A config from its JSON, `default` giving the types.

    Names that an earlier version did not write take the defaults of their class, which leave all as it was then; other
    missing names, and unknown ones, raise ValueError.
    """
    fields = {entry.name: getattr(default, entry.name) for entry in dataclasses.fields(default)}
    needed = {entry.name for entry in dataclasses.fields(default) if entry.default is entry.default_factory}
    if odd := (values.keys() - fields.keys()) | (needed - values.keys()):
        raise ValueError(f"this config is of another version of {type(default).__name__}: {', '.join(sorted(odd))}")
    types = get_type_hints(type(default))
    return type(default)(**{name: _restored(fields[name], value, types[name]) for name, value in values.items()})


def _restored(default: Any, value: Any, kind: Any) -> Any:
    if dataclasses.is_dataclass(default):
        return from_dict(default, value)
    if isinstance(value, str) and Path in get_args(kind):
        return Path(value)
    return tuple(value) if isinstance(value, list) else value
