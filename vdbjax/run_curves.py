"""What a run's folder has for a figure: its metrics, its name and its budget, by its config as it was written."""

from pathlib import Path
from typing import Any

from vdbjax.evaluation.plots import RunCurves
from vdbjax.training.run_dir import RunDir, open_run, read_metrics


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
