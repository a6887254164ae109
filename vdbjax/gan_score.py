"""How near a generator comes to real images while it trains, and the table and curves of many that did."""

import json
import statistics
from collections.abc import Callable, Sequence
from pathlib import Path
from typing import Any, NamedTuple

import jax
import numpy as np

from vdbjax.evaluation.features import FeatureExtractor, features_of
from vdbjax.evaluation.frechet import Statistics, frechet_distance, statistics_of
from vdbjax.evaluation.kernel_distance import kernel_distance
from vdbjax.evaluation.plots import RunCurves, draw_curves
from vdbjax.evaluation.sample_grid import columns_of, write_grid
from vdbjax.evaluation.tables import markdown_table, mean_and_spread
from vdbjax.run_curves import info_constraint_of
from vdbjax.sample import sampler_of
from vdbjax.training.provenance import provenance
from vdbjax.training.run_dir import RunDir, open_run, read_metrics, write_json, write_whole
from vdbjax.types import Metrics

GRID = 64
"""Images of each grid of samples; the same noise every time."""
SUBSETS = 50
LATE = 0.1
"""Share of a run, its end, that KL, beta and accuracies are averaged over."""


class Reals(NamedTuple):
    """What generated images are held against."""

    extractor: FeatureExtractor
    features: np.ndarray
    statistics: Statistics

    @property
    def count(self) -> int:  # type: ignore[override]
        """How many real images, and how many generated ones."""
        return len(self.features)

    @property
    def protocol(self) -> str:
        """What a distance depends on besides the images; those of two protocols are not to be compared."""
        extractor = self.extractor
        by = f"{extractor.name}, sha256 {extractor.digest[:16]}, {extractor.preprocessing}"
        return f"{extractor.distance} and KID: {by}; {self.count:,} real"


def reals_of(extractor: FeatureExtractor, images: np.ndarray) -> Reals:
    """The features of real images. Raises ValueError where they are too few for a distance."""
    features = features_of(extractor, images)
    found = statistics_of(features)
    frechet_distance(found, found)  # raises where they are too few, before anything is trained
    return Reals(extractor, features, found)


def distances(reals: Reals, images: np.ndarray, *, seed: int = 0) -> Metrics:
    """Fréchet and kernel distance of as many generated images."""
    features = features_of(reals.extractor, images)
    size = min(1_000, reals.count // 2)
    kernel = kernel_distance(reals.features, features, subsets=SUBSETS, subset_size=size, seed=seed)
    name = reals.extractor.distance.lower().replace(" ", "_")
    return {f"eval/{name}": frechet_distance(reals.statistics, statistics_of(features)), "eval/kid": kernel.mean}


def measuring(run: RunDir, model: Any, reals: Reals) -> Callable[[Any, int], None]:
    """What the loop calls after each evaluation: a grid of samples, and a line of `distances.jsonl`."""
    draw = sampler_of(model)

    def measure(state: Any, iteration: int) -> None:
        images = np.concatenate(list(draw(state.average, num=reals.count, seed=0)))
        if jax.process_index() == 0:
            write_grid(run.path / "samples" / f"{iteration:07}.png", images[:GRID], columns=columns_of(model))
            known = {line["iteration"]: line for line in _lines(run)} | {
                iteration: {"iteration": iteration, **distances(reals, images)}
            }
            content = [json.dumps(known[each]) + "\n" for each in sorted(known)]
            write_whole(_file(run), "".join(content))

    return measure


def _file(run: RunDir) -> Path:
    return run.path / "distances.jsonl"


def _lines(run: RunDir) -> list[Metrics]:
    return [json.loads(line) for line in _file(run).read_text().splitlines()] if _file(run).is_file() else []


class Scored(NamedTuple):
    """A run and what it gave."""

    method: str
    seed: int
    folder: Path
    diverged: str | None  # the report, where it stopped for a number that was not finite

    def lines(self) -> list[Metrics]:
        """Its metrics, with the distances of its evaluations."""
        run, _ = open_run(self.folder)
        measured = {line["iteration"]: line for line in _lines(run)}
        return [line | measured.get(line["iteration"], {}) for line in read_metrics(run)]


def row_of(runs: Sequence[Scored], *, distance: str) -> dict[str, Any]:
    """Numbers of one method, a list each with one number a seed."""
    row: dict[str, Any] = {"seeds": [run.seed for run in runs], "diverged": [run.diverged for run in runs]}
    late_names = ("bottleneck/kl_nats", "bottleneck/beta", "discriminator/real_accuracy", "discriminator/fake_accuracy")
    for run in runs:
        lines = run.lines()
        measured = [line for line in lines if f"eval/{distance}" in line]
        best = min(measured, key=lambda line: line[f"eval/{distance}"], default={})
        last = measured[-1] if measured else {}
        values = {
            "best": best.get(f"eval/{distance}"),
            "best_iteration": best.get("iteration"),
            "last": last.get(f"eval/{distance}"),
            "last_kid": last.get("eval/kid"),
            "iterations": lines[-1]["iteration"] if lines else 0,
            "seconds": lines[-1]["seconds"] if lines else 0.0,
        }
        late = lines[-max(1, round(LATE * len(lines))) :]
        values |= {
            name: statistics.fmean(line[name] for line in late) for name in late_names if lines and name in late[0]
        }
        for name, value in values.items():
            row.setdefault(name, []).append(value)
    return row


def write_table(out: Path, runs: Sequence[Scored], *, distance: str, protocol: str, budget: str) -> str:
    """Writes gan_table.json, with the versions of the first run, .md and .png; returns the table."""
    methods = list(dict.fromkeys(run.method for run in runs))
    rows = {
        method: row_of([run for run in runs if run.method == method], distance=distance.lower().replace(" ", "_"))
        for method in methods
    }
    head = ["method", "seeds", f"{distance} best", "at", f"{distance} last", "KID last"]
    head += ["KL (nats)", "beta", "real told", "fake told", "seconds"]
    table = markdown_table(head, ([method, str(len(row["seeds"])), *_cells(row)] for method, row in rows.items()))
    broken = [f"{run.method}, seed {run.seed}: {run.diverged}" for run in runs if run.diverged]
    notes = f"KL, beta and shares told rightly: means over the last {LATE:.0%} of a run. Seconds: all, compilation too."
    text = "\n".join([budget, protocol, notes, "", table, *broken]).rstrip() + "\n"
    out.mkdir(parents=True, exist_ok=True)
    write_whole(out / "gan_table.md", text)
    made_by = provenance(json.loads((runs[0].folder / "versions.json").read_text()))
    content = {**made_by, "budget": budget, "protocol": protocol, "distance": distance, "rows": rows}
    write_json(out / "gan_table.json", content)
    _draw(out / "gan_table.png", runs, f"eval/{distance.lower().replace(' ', '_')}")
    return text


CELLS = {
    "best": ".2f",
    "best_iteration": ",.0f",
    "last": ".2f",
    "last_kid": ".4f",
    "bottleneck/kl_nats": ".3f",
    "bottleneck/beta": ".3g",
    "discriminator/real_accuracy": ".0%",
    "discriminator/fake_accuracy": ".0%",
    "seconds": ",.0f",
}
"""Column of a row -> how it is written."""


def _cells(row: dict[str, Any]) -> tuple[str, ...]:
    return tuple(_cell(row.get(name, []), form) for name, form in CELLS.items())


def _cell(values: Sequence[Any], form: str) -> str:
    """Mean over the seeds, with the spread of two or more."""
    known = [value for value in values if value is not None]
    return mean_and_spread(known, form) if known else "-"


def _draw(out: Path, runs: Sequence[Scored], distance: str) -> None:
    budgets = [info_constraint_of(open_run(run.folder)[1]["config"]) for run in runs]
    curves = [RunCurves(run.method, run.lines(), budget) for run, budget in zip(runs, budgets, strict=True)]
    accuracies = ("discriminator/real_accuracy", "discriminator/fake_accuracy")
    shown = (distance, "eval/kid", *accuracies, "bottleneck/kl_nats", "bottleneck/beta")
    known = {name for run in curves for line in run.lines for name in line}
    if distance not in known:  # all diverged before the first
        return
    draw_curves(curves, out, metrics=[name for name in shown if name in known], x="iteration")
