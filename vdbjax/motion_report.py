"""What finished runs on motion clips say: a table beside the paper's numbers, learning curves, and the discriminators'.

Reads run folders and the scores that `python -m vdbjax.evaluate` left in them, and nothing else.
"""

import json
from collections.abc import Callable, Sequence
from datetime import UTC, datetime
from pathlib import Path
from typing import Any, NamedTuple

import numpy as np

from vdbjax.evaluation.plots import draw_curves
from vdbjax.evaluation.tables import markdown_table, mean_and_spread
from vdbjax.run_curves import curves_of
from vdbjax.training.provenance import provenance
from vdbjax.training.run_dir import open_run, read_metrics, write_json, write_whole

PAPER_CLIPS = ("backflip", "cartwheel", "dance_a", "run", "spinkick")

PAPER = {
    method: dict(zip(PAPER_CLIPS, printed.split(", "), strict=True))
    for method, printed in {
        "motion-bc": "3.01, 2.88, 2.93, 2.63, 2.88",
        "motion-merel": "1.33 ± 0.03, 1.47 ± 0.12, 2.61 ± 0.30, 0.52 ± 0.04, 1.82 ± 0.35",
        "motion-gail": "0.74 ± 0.15, 0.84 ± 0.05, 1.31 ± 0.16, 0.17 ± 0.03, 1.07 ± 0.03",
        "motion-gail-noise": "0.42 ± 0.02, 0.92 ± 0.07, 0.96 ± 0.08, 0.21 ± 0.05, 0.95 ± 0.14",
        "motion-gail-noise-z": "0.67 ± 0.12, 0.72 ± 0.04, 1.14 ± 0.08, 0.14 ± 0.03, 0.64 ± 0.09",
        "motion-gail-gp": "0.62 ± 0.09, 0.69 ± 0.05, 0.80 ± 0.32, 0.12 ± 0.02, 0.64 ± 0.04",
        "motion-vail": "0.36 ± 0.13, 0.40 ± 0.08, 0.40 ± 0.21, 0.13 ± 0.01, 0.34 ± 0.05",
        "motion-vail-gp": "0.46 ± 0.17, 0.31 ± 0.02, 0.15 ± 0.01, 0.10 ± 0.01, 0.31 ± 0.02",
        "motion-tracking": "0.26, 0.21, 0.20, 0.14, 0.19",
    }.items()
}
"""Method -> clip -> mean joint rotation error in radians, as VDB's Table 1 prints it; its dance is taken to be
`dance_a`."""

WATCHED = (
    *("discriminator/policy_accuracy", "discriminator/expert_accuracy"),
    *("bottleneck/kl_nats", "bottleneck/beta"),
)
NOT_MEASURED = "–"


class ScoredRun(NamedTuple):
    """A finished run of one seed, its last policy scored."""

    clip: str
    method: str
    seed: int
    folder: Path


class Report(NamedTuple):
    """What the files should show, and where they lie."""

    clips: tuple[str, ...]
    methods: tuple[str, ...]
    out: Path
    name: str  # what the files' names begin with

    def write_table(self, runs: Sequence[ScoredRun]) -> None:
        """`NAME.json` with every number and `NAME.md` for the eye; `runs` are those that have finished."""
        rows = [
            row_of([run for run in runs if (run.clip, run.method) == (clip, method)], clip=clip, method=method)
            for clip in self.clips
            for method in self.methods
        ]
        newest = max(runs, key=lambda run: _finished(run.folder))
        versions = json.loads((newest.folder / "versions.json").read_text())
        episodes = _score(newest.folder)["episodes"]
        about = {"actions": "mean", "episodes": episodes, "paper": "VDB (Peng et al. 2019), Table 1, radians"}
        write_json(self.out / f"{self.name}.json", {**provenance(versions), **about, "rows": rows})
        write_whole(self.out / f"{self.name}.md", markdown(rows, self.clips, self.methods, episodes=episodes))

    def draw(self, clip: str, runs: Sequence[ScoredRun]) -> None:
        """`NAME_CLIP_error.png` (VDB Figure 10), and of discriminators `NAME_CLIP_discriminator.png` (Figure 12)."""
        shown = sorted((run for run in runs if run.clip == clip), key=lambda run: self.methods.index(run.method))
        curves = [curves_of(run.folder, label=run.method) for run in shown]
        printed = {method: by_clip[clip] for method, by_clip in PAPER.items() if clip in by_clip}
        draw_curves(
            curves,
            self.out / f"{self.name}_{clip}_error.png",
            metrics=("eval/rotation_rad",),
            marks={method: float(cell.split()[0]) for method, cell in printed.items()},
            mark_name="the paper's last policies",
        )
        logged = {name for run in curves for line in run.lines for name in line}
        if metrics := tuple(name for name in WATCHED if name in logged):
            draw_curves(curves, self.out / f"{self.name}_{clip}_discriminator.png", metrics=metrics, x="iteration")


def row_of(runs: Sequence[ScoredRun], *, clip: str, method: str) -> dict[str, Any]:
    """One cell with all its numbers: of each error the mean over a run's episodes, and mean and spread of these."""
    found = [_run_of(run) for run in sorted(runs, key=lambda run: run.seed)]
    names = found[0]["scores"] if found else ()
    return {
        "clip": clip,
        "method": method,
        "paper": PAPER.get(method, {}).get(clip),
        "scores": {name: _moments([one["scores"][name] for one in found]) for name in names},
        "runs": [{name: value for name, value in one.items() if name != "scores"} for one in found],
    }


def _moments(values: Sequence[float]) -> dict[str, Any]:
    """Mean, deviation (n - 1; None of one value) and the values themselves."""
    return {
        "mean": float(np.mean(values)),
        "std": float(np.std(values, ddof=1)) if len(values) > 1 else None,
        "seeds": list(values),
    }


def _run_of(run: ScoredRun) -> dict[str, Any]:
    (policy,) = _score(run.folder)["policies"]
    scores = {name: float(np.mean(episodes)) for name, episodes in policy.items() if isinstance(episodes, list)}
    last = read_metrics(open_run(run.folder)[0])[-1]
    versions = json.loads((run.folder / "versions.json").read_text())
    return {
        "seed": run.seed,
        "env_steps": last["env_steps"],
        "iterations": last["iteration"],
        "training_seconds": last["seconds"],
        "finished": _finished(run.folder),
        "commit": versions.get("commit", "unknown"),
        "device": versions["device"],
        "scores": {"fallen_fraction" if name == "fallen" else name: value for name, value in scores.items()},
    }


def _score(folder: Path) -> dict[str, Any]:
    return json.loads((folder / "score.json").read_text())


def _finished(folder: Path) -> str:
    return datetime.fromtimestamp((folder / "curves.png").stat().st_mtime, UTC).isoformat(timespec="seconds")


def markdown(rows: Sequence[dict[str, Any]], clips: Sequence[str], methods: Sequence[str], *, episodes: int) -> str:
    """Rotation errors beside the paper's, and below them how often the character fell."""
    by_place = {(row["method"], row["clip"]): row for row in rows}

    def table(cell: Callable[[dict[str, Any]], str]) -> str:
        return markdown_table(["method", *clips], ([m, *(cell(by_place[m, clip]) for clip in clips)] for m in methods))

    runs = [run for row in rows for run in row["runs"]]
    steps, where, commits = ({run[name] for run in runs} for name in ("env_steps", "device", "commit"))
    counts = [f"{count:,}" for count in sorted(steps - {0})] or ["none"]  # cloning takes none
    trained = " to ".join(dict.fromkeys((counts[0], counts[-1])))
    lines = [
        "Mean joint rotation error in radians, ours (the paper's): mean actions of the last policies over "
        f"{episodes} fresh episodes a seed; after a fall every step left counts pi. Mean ± deviation over seeds, one "
        "seed where no deviation stands.",
        "",
        table(error_cell),
        "Share of the episodes that ended in a fall:",
        "",
        table(_fallen_cell),
        f"Control steps a run: {trained}. Device: {', '.join(sorted(where))}. "
        f"Finished: {max(run['finished'] for run in runs)}. Commit: {', '.join(sorted(commits))}.",
    ]
    return "\n".join(lines) + "\n"


def error_cell(row: dict[str, Any]) -> str:
    """Ours, and the paper's in brackets as printed there."""
    ours = mean_and_spread(row["scores"]["rotation_rad"]["seeds"]) if row["runs"] else NOT_MEASURED
    return f"{ours} ({row['paper']})" if row["paper"] else ours


def _fallen_cell(row: dict[str, Any]) -> str:
    return f"{row['scores']['fallen_fraction']['mean']:.0%}" if row["runs"] else NOT_MEASURED
