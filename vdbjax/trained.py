"""A finished or stopped run, loaded again: its config, its task and its policy."""

from pathlib import Path
from typing import Any, NamedTuple

import jax

from vdbjax.recipes import Built, RunConfig, build, find_recipe, from_dict
from vdbjax.rl.policy import Actor
from vdbjax.training.checkpoint import load_checkpoint
from vdbjax.training.devices import root_key
from vdbjax.training.loop import over_seeds
from vdbjax.training.run_dir import open_run


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


def read_config(path: str | Path) -> RunConfig:
    """The config a run was started with. Raises ValueError where the folder holds none, or one of another version."""
    _, content = open_run(path)
    try:
        return from_dict(find_recipe(content["config"]["recipe"]), content["config"])
    except (KeyError, TypeError) as error:
        raise ValueError(f"{path}/config.json is damaged: {error!r}") from None


def load_trained(path: str | Path) -> Trained:
    """The newest whole checkpoint of a run. Raises ValueError where there is none."""
    config = read_config(path)
    built = build(config)
    algorithm = over_seeds(built.algorithm, config.num_seeds)
    one_device = jax.sharding.SingleDeviceSharding(jax.local_devices()[0])  # whatever the run was trained on
    like = jax.tree.map(
        lambda leaf: jax.ShapeDtypeStruct(leaf.shape, leaf.dtype, sharding=one_device),
        jax.eval_shape(algorithm.init, root_key(config.seed)),
    )
    state, iteration = load_checkpoint(open_run(path)[0], like)
    return Trained(config, built, _by_seed(state, config.num_seeds), iteration)


def _by_seed(states: Any, num_seeds: int) -> list[Any]:
    if num_seeds == 1:
        return [states]
    leaves, structure = jax.tree.flatten(states)
    return [jax.tree.unflatten(structure, [leaf[seed] for leaf in leaves]) for seed in range(num_seeds)]


def load_actor(path: str | Path) -> Actor:
    """The policy of a run, that of its first seed."""
    return load_trained(path).actors[0]
