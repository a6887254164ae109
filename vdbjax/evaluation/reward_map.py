"""Rewards drawn over a plane, with walls and trajectories (VDB Figures 13 to 15), and how well two of them agree."""

import math
from collections.abc import Sequence
from pathlib import Path
from typing import NamedTuple

import numpy as np
from jaxtyping import Bool, Float
from matplotlib.axes import Axes
from matplotlib.figure import Figure

CELLS = 60  # along the longer side


class Ground(NamedTuple):
    """What a map is drawn on; metres."""

    low: tuple[float, float]
    high: tuple[float, float]
    walls: Sequence[tuple[float, float, float, float]]  # x and y of both ends
    start: tuple[float, float]
    goal: tuple[float, float]

    def cells(self) -> Float[np.ndarray, "rows columns 2"]:
        """The middles of square cells, from the lower left on."""
        size = max(b - a for a, b in zip(self.low, self.high)) / CELLS
        x, y = (np.arange(a + size / 2, b, size) for a, b in zip(self.low, self.high))
        return np.stack(np.meshgrid(x, y), axis=-1)


class Map(NamedTuple):
    """One panel."""

    title: str
    values: Float[np.ndarray, "rows columns"]  # of the ground's cells
    paths: Float[np.ndarray, "time episodes 2"] | None = None


def rank_correlation(
    one: Float[np.ndarray, "*shape"], other: Float[np.ndarray, "*shape"], where: Bool[np.ndarray, "*shape"]
) -> float:
    """Spearman's rank correlation over the chosen cells; 0 where one of the two is constant there."""
    from scipy.stats import spearmanr

    pair = np.asarray(one)[where], np.asarray(other)[where]
    return float(spearmanr(*pair).statistic) if all(np.ptp(values) > 0 for values in pair) else 0.0


def draw_maps(maps: Sequence[Map], ground: Ground, free: Bool[np.ndarray, "rows columns"], out: Path) -> None:
    """Writes a figure of one panel a map, each with colours of its own (rewards have no common scale)."""
    width, height = (b - a for a, b in zip(ground.low, ground.high))
    columns = min(len(maps), 6)
    rows = math.ceil(len(maps) / columns)
    panel = 2.6 if width >= height else 2.0
    figure = Figure(figsize=(columns * panel, rows * (panel * height / width + 0.5)), layout="constrained")
    axes = figure.subplots(rows, columns, squeeze=False).flat
    for place, entry in zip(axes, maps):
        _draw(place, entry, ground, free)
    for place in list(axes)[len(maps) :]:
        place.set_axis_off()
    figure.supxlabel("dark to bright: each map's lowest reward to its highest\nred: start, green: goal", fontsize=7)
    figure.savefig(out, dpi=130, bbox_inches="tight")  # else two-line titles of tall mazes are cut off


def _draw(axes: Axes, entry: Map, ground: Ground, free: np.ndarray) -> None:
    extent = (ground.low[0], ground.high[0], ground.low[1], ground.high[1])
    shown = np.where(free, entry.values, np.nan)
    axes.imshow(shown, origin="lower", extent=extent, cmap="viridis", interpolation="nearest")
    for x0, y0, x1, y1 in ground.walls:
        axes.plot([x0, x1], [y0, y1], color="black", linewidth=3, solid_capstyle="round")
    if entry.paths is not None:
        axes.plot(entry.paths[..., 0], entry.paths[..., 1], color="white", linewidth=0.8, alpha=0.8)
    axes.plot(*ground.start, "o", color="red", markersize=6)
    axes.plot(*ground.goal, "o", color="lime", markersize=6)
    axes.set_title(entry.title, fontsize=8)
    axes.set_xticks([])
    axes.set_yticks([])
