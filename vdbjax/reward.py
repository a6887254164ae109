"""`python -m vdbjax.reward RUN`: what reward a run of gail, vail, airl or vairl has learnt, and a map of it."""

from dataclasses import dataclass
from pathlib import Path

import numpy as np
from tyro.conf import Positional

from vdbjax import command
from vdbjax.envs.env import EnvironmentConfig, make_environment
from vdbjax.envs.maze import find_maze
from vdbjax.evaluation.plots import check_format
from vdbjax.trained import load_reward, read_config
from vdbjax.transfer_score import map_rewards


@dataclass(frozen=True)
class Options:
    """What the command line gives."""

    run: Positional[Path]
    """Folder of the run, as `python -m vdbjax.train` left it."""
    map: Path
    """Figure to write (.png, .pdf or .svg): the reward of each seed over the free places of a maze."""
    env: str | None = None
    """Maze to draw it in, such as maze/c-transfer. None: the run's own."""


def run(options: Options) -> None:
    """Draws the map, and says how the rewards rank the places."""
    command.check_writable(options.map)
    check_format(options.map)
    task = options.env or read_config(options.run).environment.env
    if not task.startswith("maze/"):
        raise ValueError(f"{task} is no maze, and only rewards of places can be drawn; give a run in maze/NAME")
    maze = find_maze(task.removeprefix("maze/"))
    rewards = load_reward(options.run, make_environment(EnvironmentConfig(task)))
    found = map_rewards(maze, rewards, options.map)
    for seed, (rank, deviation) in enumerate(zip(found["rank_correlation"], found["reward_deviation"], strict=True)):
        print(f"seed {seed}: rank correlation with the true reward {rank:.3f}, deviation over places {deviation:.3g}")
    if len(rewards) > 1:
        print(f"mean rank correlation {np.mean(found['rank_correlation']):.3f}")
    print(f"{options.map}; train on it by: python -m vdbjax.train trpo --reward {options.run} --env TASK")


def main() -> None:
    """The command."""
    command.main(lambda: run(command.parse(Options, prog="python -m vdbjax.reward", description=__doc__)))


if __name__ == "__main__":
    main()
