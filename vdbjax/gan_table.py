"""`python -m vdbjax.gan_table`: trains every method of VDB Figure 8 for one budget, and tabulates how near each comes.

Run after run, seed 0 of every method first; what is finished is not run again, and what was cut off goes on. After each
run the table, its numbers and the curves are written anew: best and last distance, KL, beta, accuracies.
"""

import dataclasses
import sys
from dataclasses import dataclass
from pathlib import Path
from typing import Any, Literal

from vdbjax import command, limits
from vdbjax.data.images import find_images, load_images
from vdbjax.evaluation.plots import draw_curves
from vdbjax.extractors import load_extractor
from vdbjax.fidelity import drawn
from vdbjax.gan_recipes import FIGURE_8, of_width
from vdbjax.gan_score import Reals, Scored, measuring, reals_of, write_table
from vdbjax.image_build import build_on_images, refuse_other_images
from vdbjax.image_recipes import find_image_recipe
from vdbjax.image_run_config import ImageRunConfig
from vdbjax.images import gan
from vdbjax.run_curves import curves_of
from vdbjax.saved_config import refuse_changes
from vdbjax.trained import read_image_config
from vdbjax.training.checkpoint import saved_iterations
from vdbjax.training.devices import root_key, start_processes, use_all_devices
from vdbjax.training.loop import Stopped, train
from vdbjax.training.memory import keep_memory
from vdbjax.training.metrics import NonFiniteError
from vdbjax.training.run_dir import create_run, open_run, reopen_run, write_whole


@dataclass(frozen=True)
class Options:
    """What the command line gives."""

    data: Path
    """Images to train on and to compare with: a folder or zip of PNG and JPEG, set.zip/train, .npz..."""
    extractor: Path
    """Run folder of cifar-features (the distance is called FD), or Inception's weights (FID)."""
    methods: tuple[str, ...] = tuple(FIGURE_8)
    """Recipes to compare."""
    seeds: int = 1
    """Seeds 0, 1, ... of every method, each a run."""
    iterations: int = 10_000
    """Iterations of every run: the budget."""
    evaluations: int = 10
    """Distances measured over each run, evenly."""
    images: int = 5_000
    """Real images, drawn once, and generated images of each distance."""
    filters: int | None = None
    """Channels at the images' own size; other widths, code and noise in proportion. None: 32, as in the paper."""
    batch_size: int | None = None
    """Images a step. None: 64, as in the paper."""
    learning_rate: float | None = None
    """Step size. None: the recipe's."""
    dual_step_size: float | None = None
    """Step of beta. None: the paper's 1e-5, which takes tens of thousands of iterations to hold the budget; 3e-3 takes
    hundreds."""
    damping: float | None = None
    """Damping of beta. None: none, as in the paper; with a step of 3e-3 the KL then swings by 30 % of the budget."""
    kl: Literal["per-image", "per-place"] = "per-image"
    """What a bottleneck holds at its budget: the KL of an image's whole code, as the paper writes, or the mean over its
    16 places, as its released code does."""
    size: int | None = None
    """Side that images are cropped and resized to. None: as they are."""
    workdir: Path = Path("runs/gan_table")
    """Where the runs lie."""
    out: Path = Path("gan_table")
    """Folder to write gan_table.json, .md and .png to."""

    def __post_init__(self) -> None:
        """Rejects values that cannot work."""
        limits.not_empty(self, "--methods")
        limits.known("method", FIGURE_8, *self.methods)
        limits.at_least(1, self, "--seeds", "--iterations", "--evaluations", "--images", "--filters", "--batch-size")


def config_of(options: Options, method: str, seed: int) -> ImageRunConfig:
    """The method's recipe at this width and for this budget."""
    recipe = find_image_recipe(method)
    return dataclasses.replace(
        recipe,
        algorithm=_sized(options, recipe.algorithm),
        data=find_images(options.data).absolute(),
        size=options.size,
        iterations=options.iterations,
        evaluations=options.evaluations,
        seed=seed,
    )


def _sized(options: Options, config: gan.Config) -> gan.Config:
    config = of_width(config, options.filters or config.filters)
    bottleneck = config.bottleneck and dataclasses.replace(
        config.bottleneck,
        **_given(dual_step_size=options.dual_step_size, damping=options.damping),
    )
    return dataclasses.replace(
        config,
        bottleneck=bottleneck,
        kl=options.kl if bottleneck else config.kl,
        **_given(batch_size=options.batch_size, learning_rate=options.learning_rate),
    )


def _given(**values: Any) -> dict[str, Any]:
    """Those that are; the recipe has the others."""
    return {name: value for name, value in values.items() if value is not None}


def run(options: Options) -> None:
    """All runs, in order."""
    for folder in (options.workdir, options.out):
        command.check_table_folder(folder)
    keep_memory()
    start_processes()
    use_all_devices()
    found = load_images(options.data, size=options.size)
    reals = reals_of(load_extractor(options.extractor), drawn(found.images, options.images, seed=0))
    plan = [(method, seed) for seed in range(options.seeds) for method in dict.fromkeys(options.methods)]
    done: list[Scored] = []
    for index, (method, seed) in enumerate(plan):
        folder = options.workdir / f"{method}-{seed}"
        print(f"[{index + 1}/{len(plan)}] {method}, seed {seed}, in {folder}", flush=True)
        diverged = _complete(folder, config_of(options, method, seed), reals)
        if not diverged:
            draw_curves([curves_of(folder)], folder / "curves.png")
        done.append(Scored(method, seed, folder, diverged))
        table = write_table(
            options.out,
            done,
            distance=reals.extractor.distance,
            protocol=_protocol(options, reals, len(found.images), found.policy),
            budget=_budget(options),
        )
    print(table, end="")


def _complete(folder: Path, config: ImageRunConfig, reals: Reals) -> str | None:
    """Trains, goes on, or finds it done; the report of a run that diverged."""
    report = folder / "diverged.txt"
    if (folder / "config.json").is_file():
        done = max(saved_iterations(open_run(folder)[0]), default=0)
        _check_same(folder, config, reals.protocol, done)
        if report.is_file():
            return report.read_text().strip()
        if done == config.iterations:
            return None
        built = build_on_images(config)
        refuse_other_images(open_run(folder)[1].get("facts", {}), built.facts)
        run = reopen_run(folder, dataclasses.asdict(config))
    else:
        built = build_on_images(config)
        content = {"config": dataclasses.asdict(config), "facts": built.facts, "protocol": reals.protocol}
        run = create_run(folder, content)
    given: dict[str, Any] = {
        "batches": built.batches,
        "after_evaluation": measuring(run, built.model, reals),
        "options": built.options,
    }
    try:
        train(
            built.algorithm,
            run,
            built.schedule,
            root_key(config.seed),
            resume=True,
            retries=config.retries,
            **given,
        )
    except NonFiniteError as error:
        write_whole(report, f"{error}\n")
        return str(error)
    return None


def _check_same(folder: Path, config: ImageRunConfig, protocol: str, done: int) -> None:
    """Raises ValueError for a run of other settings or distances, or of more iterations `done` than the budget."""
    before, measured_by = read_image_config(folder), open_run(folder)[1].get("protocol", "an unknown protocol")
    if measured_by != protocol:
        raise ValueError(f"{folder} is measured by {measured_by}, not by {protocol}; choose another --workdir")
    try:
        refuse_changes(before, config)
    except ValueError as error:
        raise ValueError(f"{folder}: {error}; choose another --workdir") from None
    if done > config.iterations:
        raise ValueError(
            f"{folder} has {done} iterations, more than --iterations ({config.iterations}); give as many, or choose "
            "another --workdir"
        )


def _budget(options: Options) -> str:
    config = config_of(options, options.methods[0], 0).algorithm
    thousands = options.iterations * config.batch_size / 1_000
    held = " A bottleneck holds the mean KL of its code's places." if options.kl == "per-place" else ""
    return (
        f"Budget: {options.iterations:,} iterations of {config.batch_size} images ({thousands:,.0f} kimg) each, "
        f"{config.filters} filters, up to {config.max_filters}.{held}"
    )


def _protocol(options: Options, reals: Reals, total: int, policy: str) -> str:
    return (
        f"{reals.protocol} of {total:,} from {options.data} ({policy}), drawn with seed 0, against {reals.count:,} "
        "of the averaged generator."
    )


def main() -> None:
    """Exits 0 at the end, 2 for bad input, 1 for a full disk, 130 or 143 when stopped; the same command goes on."""
    command.main(_main)


def _main() -> None:
    options = command.parse(Options, prog="python -m vdbjax.gan_table", description=__doc__)
    try:
        run(options)
    except Stopped as stop:
        print("stopped and saved; the same command goes on", flush=True)
        sys.exit(stop.code)
    except OSError as error:
        sys.exit(f"error: {error}")


if __name__ == "__main__":
    main()
