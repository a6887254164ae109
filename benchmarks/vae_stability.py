"""The standard VAE, whose variance is learnt, beside one held at a distortion. Figure 1.

Both have one architecture, seed and batches, and no gradient of either is skipped for its size. What is counted: steps
whose gradient is not finite, or larger than 10 times the median of the 100 before; and batches whose bits/dim lie more
than 1 above the median of the 100 before. "Mind Your Bits and Errors" (2021), section 2.

    python benchmarks/vae_stability.py --data $VDBJAX_DATA/mnist/t10k-images-idx3-ubyte.gz
"""

import sys
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import numpy as np
from machine import begin
from matplotlib.figure import Figure
from narrow_vae import narrow

from vdbjax import command, limits, stages
from vdbjax.evaluation.plots import COLOURS
from vdbjax.stages import Training
from vdbjax.training.run_dir import open_run, read_metrics
from vdbjax.types import Metrics

BEFORE = 100  # steps that a step is held against
LARGE = 10.0  # times their median gradient
JUMP = 1.0  # bits/dim above their median
END = 0.1  # share of a run whose means it comes to
ENDS = ("distortion", "rate_nats", "bits_per_dim")
WITHOUT_SKIPPING = ("--skip-above", "1e30", "--retries", "0")
PANELS = {
    "vae/distortion": "squared error of an image",
    "vae/rate_nats": "rate (nats)",
    "vae/gradient_norm": "gradient's norm",
    "vae/bits_per_dim": "negative ELBO (bits/dim)",
}


@dataclass(frozen=True)
class Options:
    """What to train."""

    data: Path
    """Images: cropped to their central squares."""
    size: int = 14
    """Side that they are resized to, 14 or 32."""
    deep: bool = False
    """Take 28 layers, of images of 14 x 14, in place of 5 or 7."""
    gamma: float | None = None
    """Squared error of the second. None: that which the first comes to."""
    learning_rates: tuple[float, ...] = (2e-3,)
    """Adam's step sizes; both VAEs are trained with each."""
    iterations: int = 1_000
    """Gradient steps of each."""
    seed: int = 0
    """Seed of each."""
    workdir: Path = Path("runs/vae_stability")
    """Where the runs lie; those that are finished are not repeated."""
    out: Path | None = None
    """File to write, and its figure beside it. None: benchmarks/results/vae_stability_DEVICE.json."""

    def __post_init__(self) -> None:
        """Rejects values that cannot work."""
        narrow(self.size, deep=self.deep)
        limits.at_least(2 * BEFORE, self, "--iterations")
        limits.not_empty(self, "--learning-rates")


def main(options: Options) -> None:
    """Trains, prints a line a run, and writes the file and the figure."""
    report = begin("vae_stability", options, options.out)
    rows, curves = [], []
    for rate in options.learning_rates:
        standard = _trained(options, rate, None)
        gamma = options.gamma or stability(standard)["distortion"]
        targeted = _trained(options, rate, gamma)
        for name, aim, lines in (("standard", None, standard), ("targeted", gamma, targeted)):
            rows.append({"what": name, "learning_rate": rate, "gamma": aim, **stability(lines)})
            print(rows[-1], flush=True)
        curves.append((rate, gamma, standard, targeted))
    report.write({"rows": rows})
    draw(curves, report.out.with_suffix(".png"))


def _trained(options: Options, rate: float, gamma: float | None) -> list[Metrics]:
    """The lines of a run; with no gamma it is the standard VAE."""
    aim = "None" if gamma is None else f"{gamma:.4g}"
    folder = options.workdir / f"{'standard' if gamma is None else f'held-at-{aim}'}-{rate:g}-{options.seed}"
    training = Training(
        folder,
        (
            *("vdvae-small", "--data", str(options.data), *narrow(options.size, deep=options.deep)),
            *(*WITHOUT_SKIPPING, "--gamma", aim, "--learning-rate", str(rate)),
            *("--iterations", str(options.iterations), "--seed", str(options.seed)),
            *("--evaluations", "2", "--validation-images", "1000"),
        ),
    )
    if code := stages.train(training):
        print(f"{folder} ended with {code}: what it left is counted", file=sys.stderr)
    return read_metrics(open_run(folder)[0])


def stability(lines: list[Metrics]) -> dict[str, Any]:
    """Counts over a run, and where it came to; the first 100 steps are left out."""
    norms, bits, skipped = (np.array([line[f"vae/{name}"] for line in lines])
                            for name in ("gradient_norm", "bits_per_dim", "skipped"))  # fmt: skip
    usual = np.median(np.lib.stride_tricks.sliding_window_view(norms, BEFORE)[:-1], axis=1)
    level = np.median(np.lib.stride_tricks.sliding_window_view(bits, BEFORE)[:-1], axis=1)
    late = lines[-round(END * len(lines)) :]
    return {
        "iterations": len(lines),
        "not_finite": int(skipped.sum()),
        "large_gradients": int(np.sum(norms[BEFORE:] > LARGE * usual)),
        "largest_to_usual": float(np.max(norms[BEFORE:] / usual)),
        "jumps_of_bits_per_dim": int(np.sum(bits[BEFORE:] > level + JUMP)),
        "largest_jump": float(np.max(bits[BEFORE:] - level)),
        **{name: float(np.mean([line[f"vae/{name}"] for line in late])) for name in ENDS},
    }


def draw(curves: list[tuple[float, float, list[Metrics], list[Metrics]]], out: Path) -> None:
    """A row for each learning rate: distortion, rate, gradient and bound of both over the iterations."""
    figure = Figure(figsize=(13, 3.1 * len(curves)), layout="constrained")
    places = figure.subplots(len(curves), len(PANELS), squeeze=False)
    for row, (rate, gamma, *both) in zip(places, curves, strict=True):
        for axes, (metric, label) in zip(row, PANELS.items(), strict=True):
            for name, lines, colour in zip(("variance learnt", f"held at {gamma:.3g}"), both, COLOURS, strict=False):
                heights = [line[metric] for line in lines]
                axes.plot([line["iteration"] for line in lines], heights, color=colour, linewidth=0.7, label=name)
            axes.set_yscale("linear" if metric == "vae/bits_per_dim" else "log")
            axes.set_xlabel("iteration")
            axes.set_ylabel(label)
        row[0].set_title(f"learning rate {rate:g}", fontsize=9)
        row[0].legend(fontsize=8)
    figure.savefig(out, dpi=120)


if __name__ == "__main__":
    command.main(lambda: main(command.parse(Options, prog="vae_stability.py", description=__doc__)))
