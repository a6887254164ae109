"""`python -m vdbjax.plot RUN...`: learning curves of one run, or of many in comparison."""

from dataclasses import dataclass
from pathlib import Path
from typing import Annotated, Literal

from tyro.conf import Positional, arg

from vdbjax import command
from vdbjax.evaluation.plots import XAxis, draw_curves
from vdbjax.run_curves import curves_of, named_config, recipe_labels, run_labels


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
