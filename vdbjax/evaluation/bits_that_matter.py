"""Figures of distortion-targeted VAEs: pictures row by row, and numbers against distortion.

Each run is a `Measured`; which of them share a figure is for the caller to say. "Mind Your Bits and Errors", figures 4
to 10.
"""

import math
from collections.abc import Sequence
from pathlib import Path
from typing import Any, NamedTuple

import numpy as np
from jaxtyping import Float, UInt8
from matplotlib.axes import Axes
from matplotlib.figure import Figure
from matplotlib.ticker import LogLocator, MaxNLocator, NullFormatter

from vdbjax.evaluation.plots import COLOURS
from vdbjax.types import Metrics

Pictures = UInt8[np.ndarray, "N height width channels"]


class Measured(NamedTuple):
    """What a trained model gives on images that it was not trained on."""

    name: str
    gamma: float | None
    distortion: float  # squared error of an image, pixels in [0, 1]
    layer_rates: Float[np.ndarray, " layers"]  # nats
    elbo: float  # nats, of dequantised pixels
    bits_per_dim: float
    reconstructions: Pictures
    samples: Pictures
    first_layers: int = 0  # of two stages, how many of the layers are the first one's

    @property
    def rate(self) -> float:
        """Nats an image, over all layers."""
        return float(self.layer_rates.sum())

    @property
    def title(self) -> str:
        """For a row of its pictures."""
        aim = "ELBO" if self.gamma is None else f"γ = {self.gamma:g}"
        return f"{self.name}\n{aim}, D = {self.distortion:.3g}\nrate {self.rate:.1f} nats"


def draw_rows(rows: Sequence[tuple[str, Pictures]], out: Path) -> None:
    """Pictures of one size, a row for each title."""
    columns = min(len(pictures) for _, pictures in rows)
    figure = Figure(figsize=(1.3 + 0.72 * columns, 0.75 * len(rows) + 0.1), layout="constrained")
    places = figure.subplots(len(rows), columns, squeeze=False, gridspec_kw={"wspace": 0.03, "hspace": 0.05})
    for axes_of_row, (title, pictures) in zip(places, rows, strict=True):
        for axes, picture in zip(axes_of_row, pictures, strict=False):
            axes.imshow(picture.squeeze(-1) if picture.shape[-1] == 1 else picture, cmap="gray", vmin=0, vmax=255)
            axes.set_xticks([])
            axes.set_yticks([])
        axes_of_row[0].set_ylabel(title, rotation=0, ha="right", va="center", fontsize=7)
    figure.savefig(out, dpi=150)


def draw_side_by_side(grids: Sequence[tuple[str, UInt8[np.ndarray, "height width ..."]]], out: Path) -> None:
    """Grids of pictures under their titles: figure 10."""
    figure = Figure(figsize=(5.0 * len(grids), 5.2), layout="constrained")
    for axes, (title, grid) in zip(figure.subplots(1, len(grids), squeeze=False)[0], grids, strict=True):
        axes.imshow(grid, cmap="gray", vmin=0, vmax=255, interpolation="nearest")
        axes.set_title(title, fontsize=9)
        axes.set_axis_off()
    figure.savefig(out, dpi=100)


def draw_against_distortion(runs: Sequence[Measured], out: Path) -> None:
    """Rate, log-likelihood given the latents, and ELBO: figure 6."""
    ordered = sorted(runs, key=lambda run: run.distortion)
    values = {
        "rate (nats)": [run.rate for run in ordered],
        "log p(x | z) (nats)": [run.elbo + run.rate for run in ordered],
        "negative ELBO (bits/dim)": [run.bits_per_dim for run in ordered],
    }
    figure = Figure(figsize=(10.5, 3.2), layout="constrained")
    for axes, (label, heights) in zip(figure.subplots(1, 3), values.items(), strict=True):
        axes.plot([run.distortion for run in ordered], heights, marker="o", color=COLOURS[0])
        axes.set_ylabel(label)
        _distortion_axis(axes)
    figure.savefig(out, dpi=120)


def draw_two_stages(single: Sequence[Measured], double: Sequence[Measured], out: Path) -> None:
    """ELBO against the final distortion, single stages as level lines: figure 8."""
    figure = Figure(figsize=(5.2, 3.8), layout="constrained")
    axes = figure.subplots()
    ordered = sorted(double, key=lambda run: run.distortion)
    points = [run.distortion for run in ordered], [run.bits_per_dim for run in ordered]
    axes.plot(*points, marker="o", color=COLOURS[0], label="two stages")
    for run, colour in zip(single, COLOURS[1:] * len(single), strict=False):
        axes.axhline(run.bits_per_dim, color=colour, linestyle="--", label=f"one stage, D = {run.distortion:.3g}")
    axes.set_ylabel("negative ELBO (bits/dim)")
    _distortion_axis(axes)
    axes.legend(fontsize=8)
    figure.savefig(out, dpi=120)


def draw_over_iterations(runs: Sequence[tuple[str, float | None, Sequence[Metrics]]], out: Path) -> None:
    """Distortion and rate of the training batches, (label, gamma, lines) a run, a dashed line at gamma: figure 9.

    Batches are pale; the lines are running means over a hundredth of a run.
    """
    figure = Figure(figsize=(10.5, 3.8), layout="constrained")
    panels = {"vae/distortion": "squared error of an image", "vae/rate_nats": "rate (nats)"}
    for axes, (metric, label) in zip(figure.subplots(1, 2), panels.items(), strict=True):
        for (name, gamma, lines), colour in zip(runs, COLOURS * len(runs), strict=False):
            kept = [line for line in lines if metric in line]
            heights = [float(np.mean(line[metric])) for line in kept]
            iterations, span = [line["iteration"] for line in kept], max(1, len(kept) // 100)
            means = np.convolve(heights, np.full(span, 1.0 / span), mode="valid")
            axes.plot(iterations, heights, color=colour, linewidth=0.5, alpha=0.25)
            axes.plot(iterations[span - 1 :], means, color=colour, linewidth=1.2, label=name)
            if gamma is not None and metric == "vae/distortion":
                axes.axhline(gamma, color=colour, linestyle="--", linewidth=0.8, label=f"target {gamma:g}")
        axes.set_yscale("log")
        axes.set_xlabel("iteration")
        axes.set_ylabel(label)
        axes.legend(fontsize=7)
    figure.savefig(out, dpi=120)


def draw_layer_rates(runs: Sequence[Measured], out: Path) -> None:
    """The rate of each layer of latents, from the top down; of two stages the second's after the first's."""
    columns = min(3, len(runs))
    rows = math.ceil(len(runs) / columns)
    figure = Figure(figsize=(4.2 * columns, 2.6 * rows), layout="constrained")
    places: Any = figure.subplots(rows, columns, squeeze=False)
    for axes, run in zip(places.ravel(), runs, strict=False):
        colours = [COLOURS[int(i >= run.first_layers > 0)] for i in range(len(run.layer_rates))]
        axes.bar(np.arange(len(run.layer_rates)), run.layer_rates, color=colours)
        axes.xaxis.set_major_locator(MaxNLocator(integer=True))
        axes.set_title(run.title.replace("\n", ", "), fontsize=8)
        axes.set_xlabel("layer", fontsize=8)
        axes.set_ylabel("rate (nats)", fontsize=8)
    for axes in places.ravel()[len(runs) :]:
        axes.remove()
    figure.savefig(out, dpi=120)


def _distortion_axis(axes: Axes) -> None:
    axes.set_xscale("log")
    axes.xaxis.set_major_locator(LogLocator(subs=(1.0, 2.0, 3.0, 5.0, 7.0)))
    axes.xaxis.set_major_formatter("{x:g}")
    axes.xaxis.set_minor_formatter(NullFormatter())
    axes.set_xlabel("squared error of an image")
    axes.grid(color="0.92")
