"""What a run's folder has for a figure: its metrics, its name and its budget, by its config as it was written."""

from collections.abc import Sequence
from pathlib import Path
from typing import Any

from vdbjax.evaluation.plots import RunCurves
from vdbjax.saved_config import by_option
from vdbjax.training.run_dir import RunDir, open_run, read_metrics

CHANGES_NO_CURVE = ("seed", "num_seeds", "evaluations", "eval_episodes", "checkpoint_seconds")


def curves_of(path: Path, *, label: str | None = None) -> RunCurves:
    """The curves of a run folder, by default under its recipe's name.

    Raises ValueError where the path is no run folder, or has no metrics yet.
    """
    run, config = named_config(path)
    lines = read_metrics(run)
    if not lines:
        raise ValueError(f"{path} has no metrics yet: its first iteration has not ended")
    return RunCurves(label or config["recipe"], lines, info_constraint_of(config))


def info_constraint_of(config: dict[str, Any]) -> float | None:
    """The budget of a run's bottleneck in nats, where it has one, by its config as it was written."""
    match config["algorithm"]:
        case {"bottleneck": {"info_constraint": float() | int() as budget}}:
            return budget
    return None


def named_config(path: Path) -> tuple[RunDir, dict[str, Any]]:
    """The run and its config as it was written, so that runs of other versions can be drawn too."""
    run, content = open_run(path)
    match content:
        case {"config": {"recipe": str(), "algorithm": {}, "data": str()}}:
            return run, content["config"]
        case {"config": {"recipe": str(), "algorithm": {}, "environment": {"env": str()}}}:
            return run, content["config"]
    raise ValueError(f"{run.config} is damaged: it does not say which recipe and algorithm learnt which task or data")


def run_labels(paths: Sequence[Path]) -> list[str]:
    """The folders' names, or where two are equal the paths."""
    names = [path.resolve().name for path in paths]
    return names if len(set(names)) == len(names) else [str(path) for path in paths]


def recipe_labels(configs: Sequence[dict[str, Any]]) -> list[str]:
    """The recipes' names with whatever else tells the runs apart: the task, and settings other than seeds."""
    tasks = [
        config["environment"]["env"] if "environment" in config else "/".join(Path(config["data"]).parts[-2:])
        for config in configs
    ]
    names = [f"{c['recipe']} on {task}" if len(set(tasks)) > 1 else c["recipe"] for c, task in zip(configs, tasks)]
    settings = [
        {name: value for name, value in by_option(config).items() if name not in CHANGES_NO_CURVE} for config in configs
    ]
    return [
        ", ".join([name, *_differing(own, [other for n, other in zip(names, settings, strict=True) if n == name])])
        for name, own in zip(names, settings, strict=True)
    ]


def _differing(own: dict[str, Any], others: list[dict[str, Any]]) -> list[str]:
    return [f"{name} {value}" for name, value in own.items() if any(other.get(name) != value for other in others)]
