"""A finished or stopped run, loaded again: its config, its task, policy and learnt reward, or its model of images."""

import dataclasses
from collections.abc import Callable
from pathlib import Path
from typing import Any, NamedTuple

import jax
import jax.numpy as jnp
import numpy as np

from vdbjax.build import Built, build
from vdbjax.envs.env import make_environment
from vdbjax.image_build import kind_of
from vdbjax.image_recipes import find_image_recipe
from vdbjax.image_run_config import ImageRunConfig
from vdbjax.images import two_stage
from vdbjax.imitation import gail
from vdbjax.recipes import find_recipe
from vdbjax.rl.policy import Actor
from vdbjax.rl.reinforcement import Reward
from vdbjax.run_config import RunConfig, by_own_files
from vdbjax.saved_config import from_dict
from vdbjax.training.checkpoint import load_checkpoint
from vdbjax.training.devices import root_key
from vdbjax.training.loop import over_seeds
from vdbjax.training.run_dir import open_run
from vdbjax.types import Algorithm, Environment, Pictures


class Trained(NamedTuple):
    """What a run folder holds, made real."""

    config: RunConfig
    built: Built
    states: list[Any]  # of the algorithm, one a seed
    iteration: int

    @property
    def actors(self) -> list[Actor]:
        """The policies, one a seed."""
        return [state.actor for state in self.states]

    @property
    def rewards(self) -> list[Any]:
        """Parameters of the reward learnt, one a seed."""
        return [state.learnt_reward for state in self.states]


def read_config(path: str | Path) -> RunConfig:
    """The config a run was started with. Raises ValueError where the folder holds none, or one of another version."""
    return _read_config(path, find_recipe)


def read_image_config(path: str | Path) -> ImageRunConfig:
    """The same of a model of images. Raises ValueError for a run of a policy too."""
    return _read_config(path, find_image_recipe)


def recipe_of(path: str | Path) -> str:
    """The recipe of a run, of whatever kind. Raises ValueError where its folder is none, or damaged."""
    try:
        return str(open_run(path)[1]["config"]["recipe"])
    except (KeyError, TypeError) as error:
        raise ValueError(f"{path}/config.json is damaged: {error!r}") from None


def _read_config(path: str | Path, find: Callable[[str], Any]) -> Any:
    recipe = recipe_of(path)
    try:
        default = find(recipe)
    except ValueError as error:
        raise ValueError(f"{path}: {error}") from None
    try:
        return from_dict(default, open_run(path)[1]["config"])
    except ValueError as error:
        raise ValueError(f"{path}/config.json: {error}") from None


def load_trained(path: str | Path, *, environment: Environment | None = None) -> Trained:
    """The newest whole checkpoint of a run, in the environment it was trained in where that is one of your own.

    Raises ValueError where there is none.
    """
    config = by_own_files(read_config(path), path)
    built = build(config, environment=environment, reward=reward_of(config))
    states, iteration = _states(path, built.algorithm, config)
    return Trained(config, built, states, iteration)


class TrainedModel(NamedTuple):
    """A model of images as a run left it."""

    config: ImageRunConfig
    model: Any
    params: list[Any]  # the running averages, one a seed
    iteration: int
    facts: dict[str, Any]  # what the run's config left open


def load_image_model(path: str | Path, *, iteration: int | None = None) -> TrainedModel:
    """The newest whole checkpoint of a run on images, which need not be there any more, or that of an iteration.

    Raises ValueError where there is none.
    """
    config = read_image_config(path)
    height, width, channels = _image_shape(path)
    kind = kind_of(config.algorithm)
    model = kind.build_model(config.algorithm, (height, width, channels))
    blank = np.zeros((2, height, width, channels), np.uint8)
    pictures = Pictures(blank, np.zeros(2, np.int64), blank)
    algorithm = kind.make(
        config.algorithm, model, first=pictures, validation=pictures, num_iterations=config.iterations
    )
    states, iteration = _states(path, algorithm, config, iteration)
    facts = open_run(path)[1]["facts"]
    return TrainedModel(config, model, [state.average for state in states], iteration, facts)


def _image_shape(path: str | Path) -> tuple[int, int, int]:
    match open_run(path)[1]:
        case {"facts": {"image_shape": [int(height), int(width), int(channels)]}} if min(height, width, channels) > 0:
            return height, width, channels
    raise ValueError(f"{path}/config.json is damaged: it says no image_shape such as [32, 32, 3]")


def settled_on_first(config: ImageRunConfig) -> ImageRunConfig:
    """A config of two stages with what it takes over from the first one's run; any other as it is.

    Raises ValueError where no such run is named.
    """
    if not isinstance(config.algorithm, two_stage.Config):
        return config
    if config.algorithm.primary is None:
        raise ValueError("no first VAE to build on; name its run folder with --primary RUN")
    path = config.algorithm.primary.absolute()
    algorithm = two_stage.settled(config.algorithm, read_image_config(path).algorithm)
    return dataclasses.replace(config, algorithm=dataclasses.replace(algorithm, primary=path))


def primary_of(config: ImageRunConfig) -> TrainedModel | None:
    """The first of two stages; None for any other model."""
    if not isinstance(config.algorithm, two_stage.Config):
        return None
    assert config.algorithm.primary is not None
    return load_image_model(config.algorithm.primary)


def load_likelihood_model(path: str | Path) -> TrainedModel:
    """As `load_image_model`. Raises ValueError for a model that gives images no likelihood."""
    trained = load_image_model(path)
    if not hasattr(trained.model, "bound"):
        raise ValueError(f"{path} is a run of recipe {trained.config.recipe}, which gives images no likelihood")
    return trained


def _states(
    path: str | Path, algorithm: Algorithm, config: RunConfig | ImageRunConfig, iteration: int | None = None
) -> tuple[list[Any], int]:
    """(the states of a checkpoint, of the newest whole one where none is named, one a seed; its iteration)."""
    one_device = jax.sharding.SingleDeviceSharding(jax.local_devices()[0])  # whatever the run was trained on
    like = jax.tree.map(
        lambda leaf: jax.ShapeDtypeStruct(leaf.shape, leaf.dtype, sharding=one_device),
        jax.eval_shape(over_seeds(algorithm, config.num_seeds).init, root_key(config.seed)),
    )
    state, iteration = load_checkpoint(open_run(path)[0], like, iteration=iteration)
    return _by_seed(state, config.num_seeds), iteration


def _by_seed(states: Any, num_seeds: int) -> list[Any]:
    if num_seeds == 1:
        return [states]
    leaves, structure = jax.tree.flatten(states)
    return [jax.tree.unflatten(structure, [leaf[seed] for leaf in leaves]) for seed in range(num_seeds)]


def load_actor(path: str | Path, config: RunConfig) -> Actor:
    """The policy of a run, that of its first seed, as one that a run of this config may start from.

    Raises ValueError where the same parameters would be another policy there, and for recipes that start from none.
    """
    if not isinstance(config.algorithm, gail.Config):
        raise ValueError(f"init_from is for GAIL's and VAIL's recipes; {config.recipe} starts from nothing")
    trained = load_trained(path)
    for name in ("activation", "distribution"):
        theirs, ours = (getattr(each.policy_config, name) for each in (trained.config, config))
        if theirs != ours:
            raise ValueError(f"init_from has a policy with {name} {theirs}, this run's is {ours}; make them the same")
    return trained.actors[0]


def reward_of(config: RunConfig) -> Reward | None:
    """The learnt reward that the config names, of its run's first seed; None where the task's own is learnt from.

    Raises ValueError as `load_reward` does, and for a reward that would be another without its absorbing states.
    """
    if not config.reward:
        return None
    reward = load_reward(config.reward, make_environment(config.environment))[0]
    learnt_by = read_config(config.reward).algorithm
    if isinstance(learnt_by, gail.Config) and learnt_by.discriminator.absorbing:
        raise ValueError(
            f"the reward of {config.reward} counts absorbing states after an episode's end, which training on it does "
            f"not; give a run without --discriminator.absorbing"
        )
    return reward


def load_reward(path: str | Path, environment: Environment) -> list[Reward]:
    """The reward that a run learnt, one a seed, for use in a task with the same observation.

    Raises ValueError where the run learnt none, or one of other observations or actions, or one that is not finite on
    the task's first observations.
    """
    trained = load_trained(path)
    apply, task = trained.built.algorithm.reward, trained.built.environment
    if apply is None:
        raise ValueError(
            f"{path} is a run of recipe {trained.config.recipe}, which learns no reward; airl, vairl, gail and vail do"
        )
    for what in ("observation", "action"):
        here, there = getattr(environment, f"{what}_size"), getattr(task, f"{what}_size")
        if here != there:
            raise ValueError(
                f"the reward of {path} is of {there} {what}s ({task.name}), {environment.name} has {here}; "
                f"give a run of a task with the same {what}s"
            )
    rewards = [Reward(apply, params) for params in trained.rewards]
    seen = environment.reset(jax.random.key(0), jax.device_count()).observation
    action = jnp.tile(jnp.array(environment.action_low)[None], (len(seen), 1))
    for seed, reward in enumerate(rewards):
        value = np.asarray(reward.apply(reward.params, seen, action, seen))
        finite = all(np.isfinite(leaf).all() for leaf in jax.tree.leaves(jax.device_get(reward.params)))
        if not (finite and np.isfinite(value).all()):
            raise ValueError(f"the reward of {path} (seed {seed}) is not finite: it gives {value[0]} at {seen[0]}")
    return rewards
