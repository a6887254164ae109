"""Video imitation by VAIL, GAIL and pixel differences (VDB Figure 6, left): rotation error while they learn.

Writes `benchmarks/results/video_imitation_DEVICE.json` and `.png`; the clip is looked up as by
`python -m vdbjax.mocap`:

    python benchmarks/video_imitation.py
"""

import json
from dataclasses import dataclass
from pathlib import Path

import numpy as np
from machine import begin
from timings import steps_per_second

from vdbjax import command
from vdbjax.evaluation.plots import draw_curves
from vdbjax.run_curves import curves_of
from vdbjax.stages import Training, train_all
from vdbjax.training.run_dir import open_run, read_metrics

RECIPES = ("video-vail", "video-gail", "video-pixel")
DRAWN = (
    "eval/rotation_rad",
    "eval/fallen_fraction",
    "discriminator/policy_accuracy",
    "discriminator/expert_accuracy",
    "bottleneck/kl_nats",
    "bottleneck/beta",
    "reward/mean",
    "reward/variance",
)


@dataclass(frozen=True)
class Options:
    """What to run."""

    clip: str = "run"
    """Clip whose film is imitated."""
    workdir: Path = Path("runs/video_imitation")
    """Where the runs lie; finished ones are not repeated."""
    steps: int = 3_000_000
    """Control steps of each run."""
    seed: int = 0
    """Seed of each run."""
    out: Path | None = None
    """File to write; the figure lies beside it. None: benchmarks/results/video_imitation_DEVICE.json."""


def main(options: Options) -> None:
    """Trains one after the other, then draws and writes what they came to."""
    report = begin("video_imitation", options, options.out)
    shared = ("--env", f"video/{options.clip}", "--total-steps", str(options.steps), "--seed", str(options.seed))
    folders = {recipe: options.workdir / f"{recipe}-{options.clip}-{options.steps}" for recipe in RECIPES}
    train_all([Training(folder, (recipe, *shared)) for recipe, folder in folders.items()], jobs=1)
    curves = [curves_of(folder, label=recipe) for recipe, folder in folders.items()]
    draw_curves(curves, report.out.with_suffix(".png"), metrics=DRAWN)
    rows = {recipe: summary(folder) for recipe, folder in folders.items()}
    print(json.dumps(rows, indent=2))
    report.write({"rows": rows})


def summary(folder: Path) -> dict:
    """Speed, the evaluations, and the discriminator's accuracy over the last half of the run."""
    lines = read_metrics(open_run(folder)[0])
    late = lines[len(lines) // 2 :]
    watched = ("discriminator/policy_accuracy", "discriminator/expert_accuracy", "bottleneck/kl_nats")
    evaluations = [line for line in lines if "eval/rotation_rad" in line]
    return {
        "steps_per_second": steps_per_second(lines),
        "env_steps": [line["env_steps"] for line in evaluations],
        "rotation_rad": [line["eval/rotation_rad"] for line in evaluations],
        "fallen_fraction": [line["eval/fallen_fraction"] for line in evaluations],
        **{name: float(np.mean([line[name] for line in late])) for name in watched if name in late[0]},
    }


if __name__ == "__main__":
    command.main(lambda: main(command.parse(Options, prog="video_imitation.py", description=__doc__)))
