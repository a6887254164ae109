"""From which phases of its clip a motion policy falls: the share of episodes that end in a fall, by where they start,
and how fast the root turns there: as the episodes start, which is the clip's state, and as the policy passes by later.

python benchmarks/falls_by_start.py runs/motion_table/backflip/motion-tracking-0
"""

from dataclasses import dataclass
from pathlib import Path
from typing import Annotated, Any, NamedTuple

import jax.numpy as jnp
import numpy as np
from machine import RESULTS
from matplotlib.figure import Figure
from tyro.conf import Positional, arg

from vdbjax import command, limits
from vdbjax.data.mocap import find_clip, load_clip
from vdbjax.envs.humanoid_model import CONTROL_HZ
from vdbjax.episodes import watch_episodes
from vdbjax.trained import Trained, load_trained
from vdbjax.training.provenance import provenance, versions
from vdbjax.training.run_dir import write_json

SOON, LATER = 1.0, 4.0  # seconds


class Episodes(NamedTuple):
    """What is looked at of E episodes, T control steps each."""

    start: np.ndarray  # [E] seconds into the clip
    seconds_up: np.ndarray  # [E] until the fall; infinity without one
    phase: np.ndarray  # [T, E] seconds into the clip
    spin: np.ndarray  # [T, E] of the root, rad/s; NaN after the end


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
        limits.at_least(1, self, "--episodes", "--parts")


def main(options: Options) -> None:
    """Prints a line a part of the clip, and writes the numbers and the figure."""
    trained = load_trained(options.run)
    clip = trained.built.environment.name.rpartition("/")[2]
    out = options.out or RESULTS / f"falls_by_start_{clip}.json"
    found = episodes_of(trained, options.episodes)
    rows = by_start(found, options.parts)
    for row in rows:
        print(
            f"from {row['from_seconds']:.2f} s: {row['episodes']} episodes, {row['fallen']:.0%} fall, "
            f"{row['fallen_soon']:.0%} within {SOON:g} s; the root turns by {row['spin_at_start']:.1f} rad/s there"
            + (f", and by {row['spin_later']:.1f} later" if row["spin_later"] is not None else "")
        )
    fallen = _shares(found.seconds_up)
    print(f"in all: {fallen['fallen']:.1%} fall, {fallen['fallen_soon']:.1%} within {SOON:g} s")
    write_json(out, {**provenance(versions()), "clip": clip, "episodes": len(found.start), **fallen, "parts": rows})
    _draw(rows, clip, out.with_suffix(".png"))
    print(f"wrote {out} and .png")


def episodes_of(trained: Trained, episodes: int) -> Episodes:
    """Plays them. Raises ValueError for a task without a clip."""
    environment = trained.built.environment
    if environment.follow is None:
        raise ValueError(f"recipe {trained.config.recipe} on {environment.name} follows no clip")
    trace = watch_episodes(
        trained,
        num_episodes=episodes,
        num_steps=environment.episode_length,
        see=lambda env: (env.physics.start, jnp.linalg.norm(env.physics.bodies.angular[:, 0], axis=-1)),
    )
    (start, *_), spin = trace.seen
    alive, fell = trace.alive, trace.terminated.any(axis=0)
    phase = (start + np.arange(len(alive))[:, None] / CONTROL_HZ) % clip_seconds(trained)
    return Episodes(start, np.where(fell, alive.sum(axis=0) / CONTROL_HZ, np.inf), phase, np.where(alive, spin, np.nan))


def clip_seconds(trained: Trained) -> float:
    """How long the clip is."""
    return load_clip(find_clip(trained.config.environment.env.partition("/")[2])).duration


def by_start(found: Episodes, parts: int) -> list[dict[str, Any]]:
    """Shares of falls over equal parts of the clip, those without an episode left out; where the policy never comes by
    later there is no spin of it."""
    edges = np.linspace(0.0, found.start.max(), parts + 1)

    def part_of(phase: np.ndarray) -> np.ndarray:
        return np.clip(np.searchsorted(edges, phase, side="right") - 1, 0, parts - 1)

    started, passed = part_of(found.start), part_of(found.phase)
    later = np.arange(len(passed))[:, None] >= LATER * CONTROL_HZ
    return [
        {
            "from_seconds": float(edges[index]),
            "episodes": int(np.sum(started == index)),
            **_shares(found.seconds_up[started == index]),
            "spin_at_start": float(found.spin[0, started == index].mean()),
            "spin_later": _mean(found.spin[later & (passed == index) & np.isfinite(found.spin)]),
        }
        for index in np.unique(started)
    ]


def _mean(values: np.ndarray) -> float | None:
    return float(values.mean()) if len(values) else None


def _shares(seconds_up: np.ndarray) -> dict[str, float]:
    return {"fallen": float(np.isfinite(seconds_up).mean()), "fallen_soon": float((seconds_up < SOON).mean())}


def _draw(rows: list[dict[str, Any]], clip: str, out: Path) -> None:
    figure = Figure(figsize=(10.0, 3.0), layout="constrained")
    start = [row["from_seconds"] for row in rows]
    left, right = figure.subplots(1, 2)
    for panel, name, label in (
        (left, "fallen", "within 20 s"),
        (left, "fallen_soon", f"within {SOON:g} s"),
        (right, "spin_at_start", "the clip's state, as an episode starts"),
        (right, "spin_later", f"the policy, after {LATER:g} s"),
    ):
        values = [np.nan if row[name] is None else row[name] for row in rows]
        panel.step(start, values, where="post", label=label)
    left.set(xlabel=f"start of the episode in {clip} (s)", ylabel="share that falls", ylim=(-0.02, 1.02))
    right.set(xlabel=f"time in {clip} (s)", ylabel="the root turns by (rad/s)")
    for panel in (left, right):
        panel.legend(fontsize=8)
    figure.savefig(out, dpi=120)


if __name__ == "__main__":
    command.main(lambda: main(command.parse(Options, prog="falls_by_start.py", description=__doc__)))
