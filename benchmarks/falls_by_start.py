"""From which phases of its clip a motion policy falls: the share of episodes that end in a fall, by where they start.

python benchmarks/falls_by_start.py runs/motion_table/backflip/motion-tracking-0
"""

from dataclasses import dataclass
from pathlib import Path
from typing import Annotated, Any

import jax
import numpy as np
from machine import RESULTS
from matplotlib.figure import Figure
from tyro.conf import Positional, arg

from vdbjax import command
from vdbjax.envs.humanoid_model import CONTROL_HZ
from vdbjax.episodes import fresh_key, in_whole_batches
from vdbjax.rl.policy import act_by_mean
from vdbjax.rl.rollout import trace_episodes
from vdbjax.trained import Trained, load_trained
from vdbjax.training.provenance import provenance, versions
from vdbjax.training.run_dir import write_json

SOON = 1.0  # second


@dataclass(frozen=True)
class Options:
    """Which run to look at."""

    run: Positional[Annotated[Path, arg(metavar="RUN")]]
    """Run folder of a motion recipe."""
    episodes: int = 512
    """Episodes of 20 s by the mean action, from starts all over the clip."""
    parts: int = 20
    """Parts of the clip that starts are counted in."""
    out: Path | None = None
    """File to write; the figure lies beside it. None: benchmarks/results/falls_by_start_CLIP.json."""

    def __post_init__(self) -> None:
        """Rejects values that cannot work."""
        for name in ("episodes", "parts"):
            if getattr(self, name) < 1:
                raise ValueError(f"--{name} ({getattr(self, name)}) must be at least 1")


def main() -> None:
    """Prints a line a part of the clip, and writes the numbers and the figure."""
    command.main(lambda: _run(command.parse(Options, prog="falls_by_start.py", description=__doc__)))


def _run(options: Options) -> None:
    trained = load_trained(options.run)
    clip = trained.built.environment.name.rpartition("/")[2]
    out = options.out or RESULTS / f"falls_by_start_{clip}.json"
    start, seconds_up = episodes_of(trained, options.episodes)
    rows = by_start(start, seconds_up, options.parts)
    for row in rows:
        print(
            f"from {row['from_seconds']:.2f} s: {row['episodes']} episodes, {row['fallen']:.0%} fall, "
            f"{row['fallen_soon']:.0%} within {SOON:g} s"
        )
    fallen = {"fallen": float(np.isfinite(seconds_up).mean()), "fallen_soon": float((seconds_up < SOON).mean())}
    print(f"in all: {fallen['fallen']:.1%} fall, {fallen['fallen_soon']:.1%} within {SOON:g} s")
    write_json(out, {**provenance(versions()), "clip": clip, "episodes": len(start), **fallen, "parts": rows})
    _draw(rows, clip, out.with_suffix(".png"))
    print(f"wrote {out} and .png")


def episodes_of(trained: Trained, episodes: int) -> tuple[np.ndarray, np.ndarray]:
    """(seconds into the clip at which each episode starts, seconds until its fall; infinity without one)."""
    environment = trained.built.environment
    if environment.follow is None:
        raise ValueError(f"recipe {trained.config.recipe} on {environment.name} follows no clip")
    trace = jax.jit(
        lambda actor, key: trace_episodes(
            environment,
            act_by_mean(trained.built.policy, actor),
            key,
            num_episodes=in_whole_batches(episodes),
            num_steps=environment.episode_length,
            see=lambda env: env.physics.start,
        )
    )(jax.device_get(trained.actors[0]), fresh_key(0))
    steps = np.sum(np.asarray(trace.alive), axis=0)
    return np.asarray(trace.seen[0]), np.where(np.asarray(trace.terminated).any(axis=0), steps / CONTROL_HZ, np.inf)


def by_start(start: np.ndarray, seconds_up: np.ndarray, parts: int) -> list[dict[str, Any]]:
    """Shares of falls over equal parts of the clip, those without an episode left out."""
    edges = np.linspace(0.0, start.max(), parts + 1)
    part = np.clip(np.searchsorted(edges, start, side="right") - 1, 0, parts - 1)
    return [
        {
            "from_seconds": float(edges[index]),
            "episodes": int(np.sum(part == index)),
            "fallen": float(np.isfinite(seconds_up[part == index]).mean()),
            "fallen_soon": float((seconds_up[part == index] < SOON).mean()),
        }
        for index in np.unique(part)
    ]


def _draw(rows: list[dict[str, Any]], clip: str, out: Path) -> None:
    figure = Figure(figsize=(6.0, 3.0), layout="constrained")
    axes = figure.subplots()
    start = [row["from_seconds"] for row in rows]
    for name, label in (("fallen", "within 20 s"), ("fallen_soon", f"within {SOON:g} s")):
        axes.step(start, [row[name] for row in rows], where="post", label=label)
    axes.set(xlabel=f"start of the episode in {clip} (s)", ylabel="share that falls", ylim=(-0.02, 1.02))
    axes.legend()
    figure.savefig(out, dpi=120)


if __name__ == "__main__":
    main()
