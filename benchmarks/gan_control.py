"""How well beta holds the KL of GANs' discriminators at its budget Ic: over all iterations after a warm-up.

python benchmarks/gan_control.py runs/gan_table/vgan-0 runs/gan_table/vgan-gp-0 --warm-up 500
"""

from dataclasses import dataclass
from pathlib import Path
from typing import Annotated, Any

import numpy as np
from machine import RESULTS
from tyro.conf import Positional, arg

from vdbjax import command
from vdbjax.trained import read_image_config
from vdbjax.training.provenance import provenance, versions
from vdbjax.training.run_dir import open_run, read_metrics, write_json

WINDOW = 50


@dataclass(frozen=True)
class Options:
    """Which runs to look at."""

    runs: Positional[Annotated[tuple[Path, ...], arg(metavar="RUN...")]]
    """Run folders of GANs with the bottleneck."""
    warm_up: int = 500
    """Iterations that are left out."""
    out: Path = RESULTS / "gan_control.json"
    """File to write."""


def main(options: Options) -> None:
    """Prints a line a run and writes the file."""
    rows = {path.name: summary(path, options.warm_up) for path in options.runs}
    for name, row in rows.items():
        print(
            f"{name}: KL {row['kl_nats']:.4f} of {row['info_constraint']} nats after iteration {options.warm_up}; "
            f"within 10 % over {row['share_within_10_percent']:.0%} of windows of {WINDOW} iterations; "
            f"beta {row['beta']:.4f}"
        )
    write_json(options.out, {**provenance(versions()), "warm_up": options.warm_up, "window": WINDOW, "runs": rows})
    print(f"wrote {options.out}")


def summary(path: Path, warm_up: int) -> dict[str, Any]:
    """Means after the warm-up, and the settings. Raises ValueError for a run without a bottleneck, or too short."""
    config = read_image_config(path)
    bottleneck = config.algorithm.bottleneck
    if bottleneck is None:
        raise ValueError(f"{path} has no bottleneck")
    if config.num_seeds > 1:
        raise ValueError(f"{path} is a run of {config.num_seeds} seeds; give runs of one")
    lines = [line for line in read_metrics(open_run(path)[0]) if line["iteration"] > warm_up]
    if len(lines) < WINDOW:
        raise ValueError(f"{path} has {len(lines)} iterations after {warm_up}; {WINDOW} are needed")
    kl = np.array([line["bottleneck/kl_nats"] for line in lines])
    windows = kl[: len(kl) // WINDOW * WINDOW].reshape(-1, WINDOW).mean(axis=1)
    constraint = bottleneck.info_constraint
    return {
        "recipe": config.recipe,
        "iterations": lines[-1]["iteration"],
        "batch_size": config.algorithm.batch_size,
        "filters": config.algorithm.filters,
        "info_constraint": constraint,
        "mean_scale": bottleneck.mean_scale,
        "beta_init": bottleneck.beta_init,
        "dual_step_size": bottleneck.dual_step_size,
        "damping": bottleneck.damping,
        "kl_nats": float(kl.mean()),
        "share_within_10_percent": float(np.mean(np.abs(windows - constraint) <= 0.1 * constraint)),
        "windows": windows.tolist(),
        "beta": float(np.mean([line["bottleneck/beta"] for line in lines])),
    }


if __name__ == "__main__":
    command.main(lambda: main(command.parse(Options, prog="gan_control.py", description=__doc__)))
