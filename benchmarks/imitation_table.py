"""Experts, and how well they are imitated from 1, 4 and 11 trajectories of about 50 transitions each.

Trains experts by PPO, collects their demonstrations, learns from these by every method, scores the last policies in our
own engine and in Gymnasium's, and writes `benchmarks/results/experts_DEVICE.json`, `imitation_table_DEVICE.json` and
`.md`:

    python benchmarks/imitation_table.py

Finished stages are not repeated, so a run that was cut off goes on; rows already in the table stay there until they are
trained again. All seeds of a row learn from one draw of trajectories.
"""

import json
from collections.abc import Iterator
from dataclasses import dataclass
from datetime import UTC, datetime
from pathlib import Path
from typing import NamedTuple

import numpy as np
from machine import Report, begin

from vdbjax import command
from vdbjax.evaluation.tables import markdown_table, mean_and_spread
from vdbjax.stages import Training, run_or_exit, train_all
from vdbjax.training.run_dir import open_run, read_metrics

EXPERT_STEPS = {"hopper": 1_500_000, "halfcheetah": 2_000_000, "walker2d": 1_000_000}
STEPS = {"hopper": 1_000_000, "halfcheetah": 1_500_000, "walker2d": 1_500_000}
PACKAGED = ("hopper",)  # tasks whose demonstrations are those inside the package
SIMULATORS = ("ours", "gymnasium")
POLICIES = ("deterministic", "stochastic")


@dataclass(frozen=True)
class Options:
    """What to run."""

    tasks: tuple[str, ...] = ("hopper", "halfcheetah", "walker2d")
    """Tasks."""
    methods: tuple[str, ...] = ("vail", "gail", "bc")
    """Recipes."""
    trajectories: tuple[int, ...] = (4, 1, 11)
    """Numbers of trajectories, in the order they are run."""
    seeds: int = 3
    """Seeds of every row, by vmap."""
    jobs: int = 2
    """Runs at a time."""
    workdir: Path = Path("runs/imitation_table")
    """Where runs and demonstrations lie."""


class Row(NamedTuple):
    """One cell of the table."""

    task: str
    method: str
    trajectories: int

    def folder(self, workdir: Path) -> Path:
        """Where its run lies."""
        return workdir / self.task / f"{self.method}-{self.trajectories}"


def main(options: Options) -> None:
    """All stages, in order."""
    experts, report = begin("experts", options), begin("imitation_table", options)
    train_all(list(_experts(options)), jobs=1)
    experts.write({"returns": _expert_returns(options)})
    demonstrations = {task: _collect(options, task) for task in options.tasks if task not in PACKAGED}
    rows = [Row(t, m, k) for k in options.trajectories for t in options.tasks for m in options.methods]
    for count in options.trajectories:  # the table is written after each, so that an early end leaves what is known
        trainings = [_training(options, row, demonstrations.get(row.task)) for row in rows if row.trajectories == count]
        train_all(trainings, jobs=options.jobs)
        finished = [row for row in rows if (row.folder(options.workdir) / "curves.png").exists()]
        scores = {row: _scores(options, row) for row in finished}
        _write_table(report, scores)


def _experts(options: Options) -> Iterator[Training]:
    for task in options.tasks:
        arguments = ("ppo", "--env", task, "--num-seeds", str(options.seeds), "--total-steps", str(EXPERT_STEPS[task]))
        yield Training(options.workdir / "expert" / task, (*arguments, "--evaluations", "5"))


def _expert_returns(options: Options) -> dict:
    rows = {}
    for task in options.tasks:
        last = read_metrics(open_run(options.workdir / "expert" / task)[0])[-1]
        rows[task] = {name: last[f"eval/{name}"] for name in ("return", "stochastic_return")}
        rows[task] |= {"mean": float(np.mean(last["eval/return"])), "env_steps_per_seed": last["env_steps"]}
    return rows


def _collect(options: Options, task: str) -> Path:
    """Eleven episodes of the stochastic expert (its first seed); the worst are left out, as falls teach nothing."""
    out = options.workdir / f"{task}.npz"
    if not out.exists():
        expert = options.workdir / "expert" / task
        typical = np.atleast_1d(read_metrics(open_run(expert)[0])[-1]["eval/stochastic_return"])[0]
        run_or_exit("demos", "collect", expert, "--episodes", 11, "--min-return", 0.9 * typical, "--out", out)
    return out


def _training(options: Options, row: Row, demonstrations: Path | None) -> Training:
    arguments = [row.method, "--env", row.task]
    if demonstrations:
        arguments += ["--demonstrations", str(demonstrations)]
    arguments += ["--trajectories", str(row.trajectories), "--num-seeds", str(options.seeds)]
    if row.method != "bc":
        arguments += ["--total-steps", str(STEPS[row.task])]
    return Training(row.folder(options.workdir), tuple(arguments))


def _scores(options: Options, row: Row) -> dict:
    """What the evaluate command says of the run's last policies, in both simulators."""
    folder = row.folder(options.workdir)
    trained = datetime.fromtimestamp((folder / "curves.png").stat().st_mtime, UTC).isoformat(timespec="seconds")
    scores = {"trained": trained, "env_steps_per_seed": read_metrics(open_run(folder)[0])[-1]["env_steps"]}
    for simulator in SIMULATORS:
        out = folder / f"{simulator}.json"
        if not out.exists():
            run_or_exit("evaluate", folder, "--episodes", 50, "--simulator", simulator, "--json", out)
        scores[simulator] = json.loads(out.read_text())
    return scores


def _write_table(report: Report, scores: dict[Row, dict]) -> None:
    earlier = json.loads(report.out.read_text())["rows"] if report.out.exists() else []
    cells = {_key(cell): cell for cell in earlier} | {row: _brief(row, found) for row, found in scores.items()}
    ordered = [cells[row] for row in sorted(cells, key=lambda row: (row.task, row.trajectories, row.method))]
    report.write({"rows": ordered})
    heads = ["task", "trajectories", "method", "control steps a seed", "deterministic", "stochastic"]
    heads += ["deterministic, Gymnasium", "stochastic, Gymnasium"]
    rows = []
    for cell in ordered:
        where = [cell["task"], str(cell["trajectories"]), cell["method"], f"{cell['env_steps_per_seed']:,}"]
        numbers = [mean_and_spread(cell[simulator][policy]) for simulator in SIMULATORS for policy in POLICIES]
        rows.append([*where, *numbers])
    table = markdown_table(heads, rows)
    report.out.with_suffix(".md").write_text(table)
    print(table)


def _key(cell: dict) -> Row:
    return Row(cell["task"], cell["method"], cell["trajectories"])


def _brief(row: Row, found: dict) -> dict:
    """A cell with the scores of its seeds, without the returns of single episodes."""
    scores = {
        simulator: {policy: [each[policy]["score"] for each in found[simulator]["policies"]] for policy in POLICIES}
        for simulator in SIMULATORS
    }
    return {**row._asdict(), **found, **scores}


if __name__ == "__main__":
    command.main(lambda: main(command.parse(Options, prog="imitation_table.py", description=__doc__)))
