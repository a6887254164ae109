"""Learning curves: metrics of one run or many, as one figure of panels.

Colour tells groups of runs apart, line style and marker the metrics inside a panel. Runs with the same label are a
group: their seeds are drawn as the mean with a band from the smallest to the largest.
"""

import math
from collections.abc import Iterable, Mapping, Sequence
from pathlib import Path
from typing import Literal, NamedTuple

import numpy as np
from matplotlib.axes import Axes
from matplotlib.figure import Figure
from matplotlib.layout_engine import ConstrainedLayoutEngine
from matplotlib.lines import Line2D
from matplotlib.ticker import EngFormatter, LogFormatter

from vdbjax.evaluation.panels import Panel, Series, choose_panels
from vdbjax.types import Metrics

XAxis = Literal["env_steps", "iteration", "seconds"]

X_LABELS: dict[XAxis, str] = {"env_steps": "control steps", "iteration": "iteration", "seconds": "wall clock (s)"}

COLOURS = (  # told apart with any kind of colour vision: M. A. Petroff, "Accessible Color Sequences" (2021)
    *("#3f90da", "#ffa90e", "#bd1f01", "#832db6", "#a96b59"),
    *("#e76300", "#b9ac70", "#717581", "#92dadb", "#94a4a2"),
)

FORMATS = (".png", ".pdf", ".svg")

MOST_POINTS = 200
"""Of a curve; longer ones are drawn as means over neighbours."""


class RunCurves(NamedTuple):
    """The metrics of a run, oldest first; each line holds `iteration`, `env_steps`, `seconds` and some metrics.

    A metric is a number, or a list with one number a seed.
    """

    label: str
    lines: Sequence[Metrics]
    info_constraint: float | None = None  # nats, where there is a bottleneck


class Curve(NamedTuple):
    """A series of one group of runs."""

    x: np.ndarray  # [iterations]
    y: np.ndarray  # [iterations, seeds]


GroupCurves = dict[tuple[str, Series], Curve]
"""(label, series) -> curve: what a panel shows."""


def check_format(out: Path) -> None:
    """Raises ValueError for the name of a figure that nothing here writes."""
    if out.suffix not in FORMATS:
        raise ValueError(f"figure {out} must end in one of {', '.join(FORMATS)}")


def draw_curves(
    runs: Sequence[RunCurves],
    out: Path,
    *,
    metrics: Sequence[str] = (),
    x: XAxis = "env_steps",
    marks: Mapping[str, float] | None = None,
    mark_name: str = "",
) -> Figure:
    """Writes the figure (.png, .pdf or .svg) and returns it; `metrics` are the ones to draw, all known panels if none.

    A group is drawn as far as all of its runs have come, with the mean over neighbours for points where there are too
    many. Where no run takes control steps the x-axis counts iterations;
    where only some do, the others stand beside them as level lines at their last values. Needs no screen.

    `marks`, label -> height, hold the curves of the first panel against values from elsewhere, such as a paper's: short
    bars at its right edge in the groups' colours, called `mark_name`.

    Raises ValueError for an unknown metric, for more groups than there are colours, and for nothing to draw.
    """
    check_format(out)
    groups = grouped(runs)
    if len(groups) > len(COLOURS):
        raise ValueError(f"{len(groups)} groups of runs are too many to tell apart; draw at most {len(COLOURS)}")
    panels = choose_panels(metrics, known={name for run in runs for line in run.lines for name in line if "/" in name})
    curves = _curves(panels, groups, x)
    if x == "env_steps":
        moving = {panel: by_group for panel, by_group in curves.items() if any(c.x.any() for c in by_group.values())}
        x, curves = ("env_steps", moving) if moving else ("iteration", _curves(panels, groups, "iteration"))
    if not curves:
        raise ValueError("nothing to draw: no metric was logged at the same iterations of all runs of a group")
    figure = _draw_figure(curves, groups, x)
    if marks:
        _draw_marks(figure.axes[0], {label: marks[label] for label in groups if label in marks}, groups, mark_name)
    figure.savefig(out, dpi=120)
    return figure


def grouped(runs: Sequence[RunCurves]) -> dict[str, list[RunCurves]]:
    """Label -> its runs, in the order of first appearance."""
    return {label: [run for run in runs if run.label == label] for label in dict.fromkeys(run.label for run in runs)}


def _curves(panels: Sequence[Panel], groups: dict[str, list[RunCurves]], x: XAxis) -> dict[Panel, GroupCurves]:
    """What each panel shows; curves without points and panels without curves are left out."""
    found = {}
    for panel in panels:
        curves = {
            (label, series): thinned(align(runs, series, x))
            for label, runs in groups.items()
            for series in panel.series
        }
        found[panel] = {key: curve for key, curve in curves.items() if len(curve.x)}
    return {panel: by_group for panel, by_group in found.items() if by_group}


def align(runs: Sequence[RunCurves], series: Series, x: XAxis) -> Curve:
    """The series over the seeds of all runs, at the iterations where every run has it; x is averaged over the runs."""
    needed = set(series.metrics)
    tables = [
        {line["iteration"]: (line[x], _per_seed(series, line)) for line in run.lines if needed <= line.keys()}
        for run in runs
    ]
    shared = sorted(set.intersection(*(set(table) for table in tables)))
    return Curve(
        np.array([np.mean([table[i][0] for table in tables]) for i in shared]),
        np.array([np.concatenate([table[i][1] for table in tables]) for i in shared]),
    )


def thinned(curve: Curve) -> Curve:
    """At most `MOST_POINTS` points, each at the last of the neighbours that it is the mean of."""
    size = math.ceil(len(curve.x) / MOST_POINTS)
    if size <= 1 or not curve.x.any():  # of level lines the last value counts
        return curve
    starts = np.arange(0, len(curve.x), size)
    ends = np.append(starts[1:], len(curve.x))
    return Curve(curve.x[ends - 1], np.add.reduceat(curve.y, starts) / (ends - starts)[:, None])


def _per_seed(series: Series, line: Metrics) -> np.ndarray:
    return np.atleast_1d(series.value(*(np.asarray(line[name], np.float64) for name in series.metrics)))


def _draw_figure(curves: dict[Panel, GroupCurves], groups: dict[str, list[RunCurves]], x: XAxis) -> Figure:
    count = len(curves)
    columns = {4: 2}.get(count, min(count, 3 if count <= 9 else 4))
    rows = math.ceil(count / columns)
    figure = Figure(figsize=(4.6 * columns, 3.1 * rows + 0.5), layout=ConstrainedLayoutEngine(w_pad=0.1, h_pad=0.08))
    colours = _colours(groups)
    end = max(float(curve.x[-1]) for by_group in curves.values() for curve in by_group.values())
    places = figure.subplots(rows, columns, squeeze=False).ravel()
    for axes, (panel, by_group) in zip(places, curves.items(), strict=False):
        _draw_panel(axes, panel, by_group, colours)
        _draw_levels(axes, (*panel.levels, *_budgets(panel, groups)))
        axes.set_xlim(0.0, 1.02 * end)
        axes.set_xlabel(X_LABELS[x], fontsize=9)
        if x == "env_steps":
            axes.xaxis.set_major_formatter(EngFormatter(sep=""))
    for axes in places[count:]:
        axes.remove()
    _draw_legend(figure, curves, groups, colours)
    return figure


def _colours(groups: Iterable[str]) -> dict[str, str]:
    return dict(zip(groups, COLOURS, strict=False))


def _draw_panel(axes: Axes, panel: Panel, curves: GroupCurves, colours: dict[str, str]) -> None:
    for (label, series), curve in curves.items():
        _draw_curve(axes, series, curve, colours[label])
    drawn = {series.label: _sample(series) for _, series in curves if series.label}
    if drawn:
        axes.legend(list(drawn.values()), list(drawn), fontsize=7.5, framealpha=0.75, edgecolor="none")
    axes.set_title(panel.title, fontsize=10.5, loc="left")
    axes.set_ylabel(panel.y_label, fontsize=9)
    axes.tick_params(which="both", labelsize=8)
    axes.spines[["top", "right"]].set_visible(False)
    axes.grid(color="0.92", linewidth=0.8)
    axes.set_axisbelow(True)
    axes.ticklabel_format(axis="y", useOffset=False)
    if panel.log and all(np.all(curve.y > 0) for curve in curves.values()):
        axes.set_yscale("log")
        axes.yaxis.set_major_formatter(_PlainLog())
        axes.yaxis.set_minor_formatter(_PlainLog(labelOnlyBase=False))
    if panel.y_range:
        axes.set_ylim(*panel.y_range)


class _PlainLog(LogFormatter):
    """Labels the ticks that matplotlib would, as 20 and 0.25, not 2 x 10^1 and 3e-01."""

    def __call__(self, x: float, pos: int | None = None) -> str:
        return f"{x:.3g}" if super().__call__(x, pos) else ""


def _draw_curve(axes: Axes, series: Series, curve: Curve, colour: str) -> None:
    mean, low, high = curve.y.mean(axis=1), curve.y.min(axis=1), curve.y.max(axis=1)
    if not curve.x.any():  # no control steps on an axis of control steps
        axes.axhline(mean[-1], color=colour, linestyle=series.line or "-", linewidth=1.4)
        return
    spread = series.band and curve.y.shape[1] > 1
    marker = series.marker or ("." if len(curve.x) == 1 else "")
    axes.plot(
        curve.x,
        mean,
        color=colour,
        linestyle=series.line,
        linewidth=1.3 if series.band else 1.0,
        marker=marker,
        markersize=5,
        markeredgecolor="white" if series.line else "0.15",  # points lie on the curve of their own colour
        markeredgewidth=0.6,
        zorder=3 if marker else 2,
    )
    if spread and series.line:
        axes.fill_between(curve.x, low, high, color=colour, alpha=0.2, linewidth=0)
    elif spread:
        axes.vlines(curve.x, low, high, color="0.15", linewidth=1.0, zorder=2.5)


def _sample(series: Series) -> Line2D:
    """The series' style for a legend, in no group's colour."""
    return Line2D([], [], color="0.35", linestyle=series.line, marker=series.marker, markersize=5, linewidth=1.4)


def _budgets(panel: Panel, groups: dict[str, list[RunCurves]]) -> list[tuple[float, str]]:
    if not any("bottleneck/kl_nats" in series.metrics for series in panel.series):
        return []
    budgets = {run.info_constraint for runs in groups.values() for run in runs if run.info_constraint is not None}
    return [(budget, f"Ic = {budget:g}") for budget in sorted(budgets)]


def _draw_levels(axes: Axes, levels: Sequence[tuple[float, str]]) -> None:
    for height, name in levels:
        axes.axhline(height, color="0.35", linestyle=(0, (6, 3)), linewidth=0.9, zorder=1.5)
        place = axes.get_yaxis_transform()
        axes.text(1.01, height, name, transform=place, fontsize=7, color="0.35", ha="left", va="center")


def _draw_marks(axes: Axes, marks: Mapping[str, float], groups: Iterable[str], name: str) -> None:
    colours = _colours(groups)
    for label, height in marks.items():
        axes.axhline(height, xmin=0.95, xmax=1.0, color=colours[label], linewidth=3.5, solid_capstyle="butt", zorder=4)
    if marks:
        drawn = [Line2D([], [], color="0.35", linewidth=3.5, solid_capstyle="butt")]
        axes.legend(drawn, [name], fontsize=7.5, framealpha=0.75, edgecolor="none")


def _draw_legend(
    figure: Figure,
    curves: dict[Panel, GroupCurves],
    groups: dict[str, list[RunCurves]],
    colours: dict[str, str],
) -> None:
    drawn = {label: curve for by_group in curves.values() for (label, _), curve in by_group.items()}
    names = [_legend_name(label, drawn[label]) for label in groups if label in drawn]
    columns = int(figure.get_figwidth() / (0.6 + 0.085 * max(map(len, names))))  # inches a name
    figure.legend(
        [Line2D([], [], color=colours[label], linewidth=3) for label in groups if label in drawn],
        names,
        loc="outside upper center",
        ncols=max(1, min(len(names), columns)),
        frameon=False,
        fontsize=10,
    )
    if any(curve.y.shape[1] > 1 for curve in drawn.values()):
        figure.supxlabel("lines and points: mean over seeds; bands and bars: lowest to highest seed", fontsize=8.5)


def _legend_name(label: str, curve: Curve) -> str:
    count = curve.y.shape[1]
    notes = [f"{count} seeds"] * (count > 1) + ["last value"] * (not curve.x.any())
    name = f"{label} ({', '.join(notes)})" if notes else label
    return name.replace("$", r"\$")  # else matplotlib takes what follows for mathematics
