"""Steps of the mazes and of TRPO a second, and the whole table of transferred rewards with its wall clock.

    python benchmarks/maze.py

Writes `benchmarks/results/maze_speed_DEVICE.json`, and for each maze `transfer_MAZE_DEVICE`, a folder with the table
and the maps of each method. Stages that are done are not repeated: `seconds_of_this_call` counts what was left to do,
`stage_seconds` the training of each stage, whenever that was.
"""

import dataclasses
import json
import shutil
import statistics
import time
from collections.abc import Callable
from dataclasses import dataclass
from pathlib import Path

import jax
import jax.numpy as jnp
from machine import RESULTS, begin, device_slug

from vdbjax import command
from vdbjax.build import build
from vdbjax.envs.env import EnvironmentConfig
from vdbjax.envs.frame import Frame
from vdbjax.envs.maze import MAZES, advance
from vdbjax.recipes import MAZE_TRPO, find_recipe
from vdbjax.stages import run_or_exit
from vdbjax.training.run_dir import open_run, read_metrics, write_json
from vdbjax.transfer_settings import METHODS

ENVS, STEPS = 4096, 500


@dataclass(frozen=True)
class Options:
    """What to run."""

    mazes: tuple[str, ...] = ("c", "s")
    """Mazes of the table."""
    methods: tuple[str, ...] = METHODS
    """Rows of the table."""
    seeds: int = 5
    """Seeds of every row, by vmap."""
    repeats: int = 5
    """Turns of each speed; their median counts."""
    workdir: Path = Path("runs")
    """Where the stages lie, in transfer-MAZE."""


def main(options: Options) -> None:
    """Speeds first, while nothing else is at work."""
    report = begin("maze_speed", options)
    speeds = {f"maze/{maze}": maze_speed(maze, options.repeats) for maze in options.mazes}
    iterations = {f"maze/{maze}": trpo_speed(maze, options.repeats) for maze in options.mazes}
    print(json.dumps({"control steps/s": speeds, "TRPO iterations/s": iterations}, indent=2), flush=True)
    report.write({"control_steps_per_second": speeds, "environments": ENVS, "trpo_iterations_per_second": iterations})
    device = device_slug(report.origin["versions"])
    for maze in options.mazes:
        _table(maze, options, report.origin, RESULTS / f"transfer_{maze}_{device}")


def maze_speed(maze: str, repeats: int) -> float:
    """Control steps a second of the closed form under random controls, drawing these included."""

    @jax.jit
    def run(key: jax.Array) -> Frame:
        place = jnp.tile(jnp.array([MAZES[maze].start]), (ENVS, 1))
        limit = MAZES[maze].control_limit

        def step(frame: Frame, key: jax.Array) -> tuple[Frame, None]:
            return advance(MAZES[maze], frame, limit * jax.random.uniform(key, place.shape, minval=-1.0)), None

        start = Frame(place, jnp.zeros_like(place), jnp.zeros_like(place), {})
        return jax.lax.scan(step, start, jax.random.split(key, STEPS))[0]

    return ENVS * STEPS / _seconds(lambda index: run(jax.random.key(index)), repeats)


def trpo_speed(maze: str, repeats: int) -> float:
    """Iterations of TRPO a second, 100 episodes of 100 steps each, of one seed."""
    recipe = find_recipe("trpo")
    algorithm = dataclasses.replace(recipe.algorithm, trpo=MAZE_TRPO)
    config = dataclasses.replace(
        recipe, algorithm=algorithm, environment=EnvironmentConfig(f"maze/{maze}"), num_envs=100
    )
    made = build(config).algorithm
    start = jax.jit(made.init)(jax.random.key(0))
    run = jax.jit(lambda state: jax.lax.scan(made.update, state, None, 20)[0].actor)
    return 20 / _seconds(lambda index: run(start), repeats)


def _seconds(run: Callable[[int], object], repeats: int) -> float:
    """Median over the turns, after one that compiles."""
    jax.block_until_ready(run(0))
    turns = []
    for index in range(repeats):
        started = time.perf_counter()
        jax.block_until_ready(run(index))
        turns.append(time.perf_counter() - started)
    return statistics.median(turns)


def _table(maze: str, options: Options, origin: dict[str, object], out: Path) -> None:
    folder, started = options.workdir / f"transfer-{maze}", time.monotonic()
    run_or_exit("transfer", "--maze", maze, "--methods", *options.methods, "--seeds", options.seeds, "--out", folder)
    table = json.loads((folder / "table.json").read_text())
    seconds = {"seconds_of_this_call": time.monotonic() - started, "stage_seconds": _stage_seconds(folder)}
    out.mkdir(exist_ok=True)
    write_json(out / "table.json", {**table, **origin, **seconds})
    for name in ("table.md", *(f"{method}.png" for method in options.methods)):
        shutil.copy(folder / name, out)


def _stage_seconds(folder: Path) -> dict[str, float]:
    # Not deeper: a run keeps the run of its reward.
    runs = sorted(path.parent for depth in ("*", "*/*") for path in folder.glob(f"{depth}/config.json"))
    return {str(run.relative_to(folder)): read_metrics(open_run(run)[0])[-1]["seconds"] for run in runs}


if __name__ == "__main__":
    command.main(lambda: main(command.parse(Options, prog="maze.py", description=__doc__)))
