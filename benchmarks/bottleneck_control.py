"""What the bottleneck does to the discriminator: fixed beta against adaptive beta, and VAIL against GAIL's variants.

The settings of VDB Figures 6 and 12, on hopper from the packaged demonstrations. Writes
`benchmarks/results/bottleneck_control_DEVICE.png` and `.json`:

    python benchmarks/bottleneck_control.py
"""

import json
from dataclasses import dataclass
from pathlib import Path

import numpy as np
from machine import begin

from vdbjax import command
from vdbjax.evaluation.plots import draw_curves
from vdbjax.run_curves import curves_of
from vdbjax.stages import Training, train_all
from vdbjax.training.run_dir import open_run, read_metrics

VARIANTS = {
    "VAIL, adaptive beta": ("vail",),
    "VAIL, dual step 0.1": ("vail", "--bottleneck.dual-step-size", "0.1"),  # ten times the recipe's
    "VAIL, beta 0.01": ("vail-fixed-beta", "--bottleneck.beta-init", "0.01"),
    "VAIL, beta 0.1": ("vail-fixed-beta", "--bottleneck.beta-init", "0.1"),
    "VAIL, beta 1": ("vail-fixed-beta", "--bottleneck.beta-init", "1.0"),
    "VAIL-GP": ("vail-gp",),
    "GAIL": ("gail",),
    "GAIL-noise": ("gail-noise",),
    "GAIL-noise z": ("gail-noise-z",),
    "GAIL-GP": ("gail-gp",),
}
DRAWN = (
    "episode/return",
    "bottleneck/kl_nats",
    "bottleneck/beta",
    "discriminator/policy_accuracy",
    "discriminator/expert_accuracy",
)


@dataclass(frozen=True)
class Options:
    """What to run."""

    workdir: Path = Path("runs/bottleneck_control")
    """Where the runs lie; finished ones are not repeated."""
    steps: int = 500_000
    """Control steps of each run and seed."""
    seeds: int = 2
    """Seeds, by vmap, of the runs that are not finished yet."""
    warm_up: int = 150_000
    """Control steps after which the KL should hold the constraint."""
    jobs: int = 2
    """Runs at a time."""
    out: Path | None = None
    """File to write; the figure lies beside it. None: benchmarks/results/bottleneck_control_DEVICE.json."""


def main(options: Options) -> None:
    """Trains the variants and draws them."""
    report = begin("bottleneck_control", options, options.out)
    shared = ("--num-seeds", str(options.seeds), "--total-steps", str(options.steps))
    folders = {label: options.workdir / label.replace(" ", "-").replace(",", "") for label in VARIANTS}
    train_all([Training(folders[label], (*VARIANTS[label], *shared)) for label in VARIANTS], jobs=options.jobs)
    draw_curves(
        [curves_of(folder, label=label) for label, folder in folders.items()],
        report.out.with_suffix(".png"),
        metrics=DRAWN,
    )
    rows = {label: summary(folder, options.warm_up) for label, folder in folders.items()}
    print(json.dumps(rows, indent=2))
    report.write({"rows": rows})


def summary(folder: Path, warm_up: int) -> dict[str, float]:
    """Means over seeds and over all iterations after the warm-up; the KL averaged over 10 iterations at a time, for
    each seed and for their mean, which is the curve that is drawn."""
    lines = [line for line in read_metrics(open_run(folder)[0]) if line["env_steps"] > warm_up]
    row = {
        "seeds": np.size(lines[-1]["eval/score"]),
        "policy_accuracy": _mean(lines, "discriminator/policy_accuracy"),
        "expert_accuracy": _mean(lines, "discriminator/expert_accuracy"),
        "final_return": float(np.mean(lines[-1]["eval/return"])),
        "final_score": float(np.mean(lines[-1]["eval/score"])),
    }
    if "bottleneck/kl_nats" in lines[0]:
        kl = np.array([np.atleast_1d(line["bottleneck/kl_nats"]) for line in lines])
        smooth = kl[: len(kl) // 10 * 10].reshape(-1, 10, kl.shape[1]).mean(axis=1)
        row["kl_nats"] = float(kl.mean())
        row["share_of_kl_within_10_percent_of_0.5"] = float(np.mean(np.abs(smooth - 0.5) <= 0.05))
        mean_curve = smooth.mean(axis=1)
        row["share_of_mean_kl_within_10_percent_of_0.5"] = float(np.mean(np.abs(mean_curve - 0.5) <= 0.05))
    return row


def _mean(lines: list, name: str) -> float:
    return float(np.mean([line[name] for line in lines]))


if __name__ == "__main__":
    command.main(lambda: main(command.parse(Options, prog="bottleneck_control.py", description=__doc__)))
