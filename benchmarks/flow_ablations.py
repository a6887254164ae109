"""Flow++ with a piece left out, at one number of steps and about as many parameters: does it order as in Table 3.2?

Thesis section 3.3.2, in small: `flowpp-small` with self-attention and variational dequantisation, and in place of each
in turn what it is held against, with more filters where that makes fewer parameters. Bits/dim are of the single-sample
bound, of images that none was trained on.

    python benchmarks/flow_ablations.py --data IMAGES --validation-data OTHERS
"""

import statistics
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import numpy as np
from machine import begin
from matplotlib.figure import Figure

from vdbjax import command, limits, stages
from vdbjax.evaluation.plots import COLOURS
from vdbjax.stages import Training
from vdbjax.training.run_dir import open_run, read_metrics
from vdbjax.types import Metrics

VARIATIONAL = (
    *("--dequantizer.kind", "variational", "--dequantizer.couplings", "2", "--dequantizer.blocks", "1"),
    *("--dequantizer.context-filters", "16", "--dequantizer.context-blocks", "1"),
)
VARIANTS = {
    "Flow++": ("--filters", "24", "--attention", *VARIATIONAL),
    "no self-attention": ("--filters", "26", "--no-attention", *VARIATIONAL, "--dequantizer.no-attention"),
    "affine coupling": ("--filters", "32", "--attention", *VARIATIONAL, "--mixtures", "0"),
    "uniform dequantization": ("--filters", "28", "--attention"),
}
"""What is trained -> its options. Of 552, 561, 566 and 595 thousand parameters at 16 x 16."""

PAPER = {
    "Flow++": 3.165,
    "no self-attention": 3.193,
    "affine coupling": 3.200,
    "uniform dequantization": 3.292,
}
"""Table 3.2, bits/dim after 400 epochs of CIFAR-10 at 32 x 32."""


@dataclass(frozen=True)
class Options:
    """What to train."""

    data: Path
    """Images to learn: cropped to their central squares."""
    validation_data: Path
    """Others, which the bits/dim are of."""
    size: int = 16
    """Side that they are resized to."""
    iterations: int = 1_000
    """Gradient steps of each flow."""
    seeds: int = 2
    """Seeds 0, 1, ... of each."""
    evaluations: int = 5
    """Evaluations, evenly over a run."""
    workdir: Path = Path("runs/flow_ablations")
    """Where the runs lie; those that are finished are not repeated."""
    out: Path | None = None
    """File to write, and its figure beside it. None: benchmarks/results/flow_ablations_DEVICE.json."""

    def __post_init__(self) -> None:
        """Rejects values that cannot work."""
        limits.at_least(1, self, "--size", "--iterations", "--seeds", "--evaluations")


def main(options: Options) -> None:
    """Trains, prints a line a flow, and writes the file and the figure."""
    report = begin("flow_ablations", options, options.out)
    curves: dict[str, list[list[Metrics]]] = {}
    for seed in range(options.seeds):
        for name in VARIANTS:
            curves.setdefault(name, []).append(_trained(options, name, seed))
            print(f"{name}, seed {seed}: {_row(curves[name][-1:])}", flush=True)
    report.write({"rows": {name: {"paper": PAPER[name], **_row(runs)} for name, runs in curves.items()}})
    draw(curves, report.out.with_suffix(".png"))


def _trained(options: Options, name: str, seed: int) -> list[Metrics]:
    """The lines of a run."""
    folder = options.workdir / f"{name.replace(' ', '-')}-{seed}"
    shared = ("--data", options.data, "--validation-data", options.validation_data, "--size", options.size)
    length = ("--iterations", options.iterations, "--evaluations", options.evaluations, "--seed", seed)
    arguments = ("flowpp-small", *VARIANTS[name], *map(str, shared + length))
    if code := stages.train(Training(folder, arguments)):
        raise ValueError(f"training {folder} ended with {code}")
    return read_metrics(open_run(folder)[0])


def _row(runs: list[list[Metrics]]) -> dict[str, Any]:
    """Bits/dim at the end of each seed, their mean, and the seconds that training took."""
    bits = [lines[-1]["eval/bits_per_dim"] for lines in runs]
    return {
        "bits_per_dim": statistics.fmean(bits),
        "seeds": bits,
        "seconds": [lines[-1]["seconds"] for lines in runs],
    }


def draw(curves: dict[str, list[list[Metrics]]], out: Path) -> None:
    """Bits/dim over the steps (Figure 3.1): of the training batches light, of the others dark; and what the others
    have above the mean of the first flow's seeds."""
    figure = Figure(figsize=(11, 4.5), layout="constrained")
    whole, above = figure.subplots(1, 2)
    level = np.mean([_over_steps(lines, "eval/bits_per_dim")[1] for lines in next(iter(curves.values()))], axis=0)
    for (name, runs), colour in zip(curves.items(), COLOURS, strict=False):
        for lines in runs:
            steps, bits = _over_steps(lines, "eval/bits_per_dim")
            whole.plot(*_over_steps(lines, "flow/bits_per_dim"), color=colour, linewidth=0.4, alpha=0.35)
            whole.plot(steps, bits, color=colour, marker=".", label=name)
            above.plot(steps, bits - level, color=colour, marker=".", label=name)
            name = "_"  # one entry of the legend for all seeds
    last = [line["eval/bits_per_dim"] for runs in curves.values() for lines in runs for line in lines[-1:]]
    whole.set_ylim(min(last) - 0.1, max(last) + 1.0)
    whole.set_ylabel("bits/dim")
    above.set_ylabel(f"bits/dim above {next(iter(curves))}, other images")
    for axes in (whole, above):
        axes.set_xlabel("step")
        axes.legend()
    figure.savefig(out, dpi=120)


def _over_steps(lines: list[Metrics], name: str) -> tuple[np.ndarray, np.ndarray]:
    there = [line for line in lines if name in line]
    return np.array([line["iteration"] for line in there]), np.array([line[name] for line in there])


if __name__ == "__main__":
    command.main(lambda: main(command.parse(Options, prog="flow_ablations.py", description=__doc__)))
