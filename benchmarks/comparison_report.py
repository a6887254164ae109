"""What a comparison found: a summary over the seeds, a table, and the learning curves."""

import statistics
from pathlib import Path
from typing import Any

from matplotlib.figure import Figure
from rich.console import Console
from rich.table import Table

from vdbjax.build import Reference
from vdbjax.evaluation.plots import COLOURS


def summarise(runs: list[dict[str, Any]]) -> dict[str, Any]:
    """Medians over the seeds, mean scores, and how many times as fast ours are as the fastest of the library's."""
    labels = dict.fromkeys(run["label"] for run in runs)
    by_label = {label: [run for run in runs if run["label"] == label] for label in labels}
    speed = {label: statistics.median(run["steps_per_second"] for run in of) for label, of in by_label.items()}
    rival = max(speed[label] for label, of in by_label.items() if not of[0]["ours"])
    return {
        label: {
            "steps_per_second": speed[label],
            "times_as_fast_as_imitation": speed[label] / rival if of[0]["ours"] else None,
            "score": statistics.mean(run["score"] for run in of),
            "stochastic_score": statistics.mean(run["stochastic_score"] for run in of),
            "seconds_to_90_percent": [run["seconds_to_90_percent"] for run in of],
        }
        for label, of in by_label.items()
    }


def show(result: dict[str, Any]) -> None:
    """Prints a row for each run, and the ratio of speeds."""
    table = Table(title=f"Hopper-v5 on {result['device']}")
    headings = ("system", "seed", "steps/s", "steps", "seconds", "s to 90 %", "score, mean action", "score, sampled")
    for heading in headings:
        table.add_column(heading, justify="left" if heading == "system" else "right")
    for run in result["runs"]:
        reached = run["seconds_to_90_percent"]
        numbers = f"{run['steps_per_second']:,.0f}", f"{run['env_steps']:,}", f"{run['seconds']:.0f}"
        scores = f"{run['score']:.3f}", f"{run['stochastic_score']:.3f}"
        table.add_row(run["label"], str(run["seed"]), *numbers, f"{reached:.0f}" if reached else "not reached", *scores)
    Console(width=110).print(table)
    for label, summary in result["summary"].items():
        if ratio := summary["times_as_fast_as_imitation"]:
            print(f"{label}: {ratio:.2f} times the env steps/s of imitation's GAIL at its fastest")


def draw_comparison(runs: list[dict[str, Any]], reference: Reference, out: Path) -> None:
    """Return of the deterministic policy, over environment steps and over seconds."""
    figure = Figure(figsize=(10, 4), layout="constrained")
    colours = dict(zip(dict.fromkeys(run["label"] for run in runs), COLOURS, strict=False))
    panels = {"env_steps": "environment steps", "seconds": "seconds of training, from the start of the process"}
    for axes, (x, name) in zip(figure.subplots(1, 2, sharey=True), panels.items(), strict=True):
        for run in runs:
            label = run["label"] if run["seed"] == runs[0]["seed"] else None
            points = [point[x] for point in run["curve"]], [point["return"] for point in run["curve"]]
            axes.plot(*points, marker="o", markersize=3, color=colours[run["label"]], label=label)
        axes.axhline(0.9 * reference.expert_return, color="0.35", linestyle="--", linewidth=0.9)
        place = axes.get_yaxis_transform()
        axes.text(0.01, 0.9 * reference.expert_return, "90 % of the expert", transform=place, fontsize=8, va="bottom")
        axes.set_xlim(left=0)
        axes.set_xlabel(name)
        axes.grid(color="0.92")
        axes.set_axisbelow(True)
    figure.axes[0].set_ylabel("return, deterministic policy")
    figure.axes[0].legend(fontsize=8)
    figure.savefig(out, dpi=120)
