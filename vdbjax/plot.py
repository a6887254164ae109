"""`python -m vdbjax.plot RUN...`: learning curves of one run, or of many in comparison."""

from collections.abc import Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import Annotated, Any, Literal

from tyro.conf import Positional, arg

from vdbjax import command
from vdbjax.evaluation.plots import XAxis, draw_curves
from vdbjax.run_curves import curves_of, named_config
from vdbjax.saved_config import by_option

CHANGES_NO_CURVE = ("seed", "num_seeds", "evaluations", "eval_episodes", "checkpoint_seconds")


@dataclass(frozen=True)
class Options:
    """What the command line gives."""

    runs: Positional[Annotated[tuple[Path, ...], arg(metavar="RUN...")]]
    """Run folders, as `python -m vdbjax.train` left them."""
    out: Path = Path("curves.png")
    """Figure to write (.png, .pdf or .svg)."""
    metrics: tuple[str, ...] = ()
    """Metrics to draw, such as eval/score bottleneck/kl_nats. None given: all that have a panel."""
    x: XAxis = "env_steps"
    """What the x-axis counts. Runs that take no control steps count iterations."""
    group_by: Literal["recipe", "run"] = "recipe"
    """What shares a curve: runs of one recipe that differ in seeds only, or the seeds of one run."""


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


def run(options: Options) -> None:
    """Draws what the command line asks for."""
    if not options.runs:
        raise ValueError("give at least one run folder, as `python -m vdbjax.train` left it")
    command.check_writable(options.out)
    by_run = options.group_by == "run"
    labels = run_labels(options.runs) if by_run else recipe_labels([named_config(path)[1] for path in options.runs])
    curves = [curves_of(path, label=label) for path, label in zip(options.runs, labels, strict=True)]
    draw_curves(curves, options.out, metrics=options.metrics, x=options.x)
    print(options.out)


def main() -> None:
    """The command."""
    command.main(lambda: run(command.parse(Options, prog="python -m vdbjax.plot", description=__doc__)))


if __name__ == "__main__":
    main()
