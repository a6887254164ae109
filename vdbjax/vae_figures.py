"""`python -m vdbjax.vae_figures RUN...`: what distortion-targeted VAEs keep of images, and what it costs."""

import json
import sys
from collections.abc import Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import Annotated, Any

import jax
import jax.numpy as jnp
import numpy as np
from PIL import Image
from tyro.conf import Positional, arg

from vdbjax import command, limits
from vdbjax.data.images import load_images
from vdbjax.evaluation.bits_that_matter import (
    Measured,
    draw_against_distortion,
    draw_layer_rates,
    draw_over_iterations,
    draw_rows,
    draw_side_by_side,
    draw_two_stages,
)
from vdbjax.fidelity import drawn
from vdbjax.image_build import difference, validation_images
from vdbjax.images import two_stage, vdvae
from vdbjax.run_curves import run_labels
from vdbjax.trained import TrainedModel, load_image_model
from vdbjax.training.run_dir import open_run, read_metrics, write_whole
from vdbjax.types import Metrics


@dataclass(frozen=True)
class Options:
    """What the command line gives."""

    runs: Positional[Annotated[tuple[Path, ...], arg(metavar="RUN...")]]
    """Run folders of VAEs, of one stage or two, of images of one size."""
    data: Path | None = None
    """Images to measure on. None: those that the first run was evaluated on and not trained on."""
    out: Path = Path("vae_figures")
    """Folder for the figures and numbers.json."""
    images: int = 256
    """How many images the numbers are means over."""
    shown: int = 8
    """Pictures in each row."""
    seed: int = 0
    """Seed of the latents."""

    def __post_init__(self) -> None:
        """Rejects values that cannot work."""
        limits.at_least(1, self, "--images", "--shown")
        limits.seed(self, "--seed")
        if not self.runs:
            raise ValueError("give at least one run folder, as `python -m vdbjax.train` left it")


def measured(name: str, trained: TrainedModel, images: np.ndarray, *, shown: int, seed: int) -> Measured:
    """A run's numbers on images and its pictures, of its first seed."""
    if images.shape[1:] != trained.model.image_shape:
        raise ValueError(
            f"images of shape {images.shape[1:]} do not fit {name}, a model of {trained.model.image_shape}"
        )
    model, params, key = trained.model, trained.params[0], jax.random.key(np.uint32(seed))
    with jax.default_matmul_precision("highest"):
        terms = jax.device_get(jax.jit(model.terms)(params, jnp.asarray(images), key))
    sample = jax.jit(model.sample, static_argnames="num_images")
    return Measured(
        name,
        trained.config.algorithm.gamma,
        float(np.mean(terms.distortion)),
        np.mean(terms.rates, axis=1),
        float(np.mean(terms.bound)),
        float(-np.mean(terms.bound) * model.bits_per_nat_and_dim),
        np.clip(np.floor(256.0 * terms.means[:shown]), 0, 255).astype(np.uint8),
        np.asarray(sample(params, key, num_images=shown)),
        sum(trained.config.algorithm.layers) if isinstance(trained.config.algorithm, two_stage.Config) else 0,
    )


def run(options: Options) -> None:
    """Measures, draws, prints a line a run."""
    command.check_table_folder(options.out)
    models = [_loaded(path) for path in options.runs]
    images = _images(options, models)
    names, found = run_labels(options.runs), []
    for name, trained in zip(names, models, strict=True):
        print(f"measuring {name} on {len(images)} images", file=sys.stderr)
        found.append(measured(name, trained, images, shown=options.shown, seed=options.seed))
        print(
            f"{name}: distortion {found[-1].distortion:.4g}, rate {found[-1].rate:.4g} nats, "
            f"{found[-1].bits_per_dim:.4f} bits/dim"
        )
    options.out.mkdir(parents=True, exist_ok=True)
    _draw(found, images[: options.shown], options.out)
    lines = [read_metrics(open_run(path)[0]) for path in options.runs]
    draw_over_iterations(
        [(name, each.gamma, run) for name, each, run in zip(names, found, lines)], options.out / "over_iterations.png"
    )
    for name, path in zip(names, options.runs, strict=True):
        _draw_early_and_late(path, options.out / f"early_and_late_{name.strip('/').replace('/', '-')}.png")
    numbers = [_numbers(each) | {"training": _tenths(run)} for each, run in zip(found, lines)]
    write_whole(options.out / "numbers.json", json.dumps(numbers, indent=2) + "\n")
    print(options.out)


def _draw(found: Sequence[Measured], images: np.ndarray, out: Path) -> None:
    single = [each for each in found if not each.first_layers]
    double = [each for each in found if each.first_layers]
    draw_rows(
        [("images", images), *((each.title, each.reconstructions) for each in found)], out / "reconstructions.png"
    )
    draw_rows([(each.title, each.samples) for each in found], out / "samples.png")
    draw_layer_rates(found, out / "layer_rates.png")
    if single:
        draw_against_distortion(single, out / "against_distortion.png")
    if double:
        draw_two_stages(single, double, out / "two_stages.png")


def _draw_early_and_late(path: Path, out: Path) -> None:
    """The first and the last grid of reconstructions that the run left, side by side: figure 10."""
    grids = sorted((path / "reconstructions").glob("*.png"))
    if len(grids) < 2:
        return
    shown = [
        (f"iteration {int(grid.stem):,}: each row over what came back of it", np.asarray(Image.open(grid)))
        for grid in (grids[0], grids[-1])
    ]
    draw_side_by_side(shown, out)


def _numbers(each: Measured) -> dict[str, Any]:
    pictures = ("reconstructions", "samples")
    numbers = {name: value for name, value in each._asdict().items() if name not in pictures}
    return numbers | {"layer_rates": each.layer_rates.tolist(), "rate_nats": each.rate}


def _tenths(lines: Sequence[Metrics]) -> list[Metrics]:
    """Means of the training batches over each tenth of a run."""
    tenths = [part for part in np.array_split(np.arange(len(lines)), 10) if len(part)]
    return [
        {"iterations": [lines[part[0]]["iteration"], lines[part[-1]]["iteration"]]}
        | {name: float(np.mean([lines[i][f"vae/{name}"] for i in part])) for name in ("distortion", "rate_nats")}
        for part in tenths
    ]


def _loaded(path: Path) -> TrainedModel:
    trained = load_image_model(path)
    algorithm = trained.config.algorithm
    if not isinstance(algorithm, vdvae.Config) or algorithm.observation != "gaussian":
        raise ValueError(f"{path} is a run of recipe {trained.config.recipe}, which has no squared error to draw")
    return trained


def _images(options: Options, models: Sequence[TrainedModel]) -> np.ndarray:
    first = models[0]
    if options.data is None:
        for path, trained in zip(options.runs, models, strict=True):
            if other := difference(first.facts, trained.facts):
                raise ValueError(
                    f"{path} may have learnt from the images that {options.runs[0]} was evaluated on ({other}); name "
                    f"with --data images that none of the runs learnt from"
                )
        return validation_images(first.config, first.facts)[: options.images]
    images = load_images(options.data, size=first.config.size).images  # class after class, where they have classes
    return np.asarray(drawn(images, min(options.images, len(images)), seed=options.seed))


def main() -> None:
    """The command."""
    command.main(lambda: run(command.parse(Options, prog="python -m vdbjax.vae_figures", description=__doc__)))


if __name__ == "__main__":
    main()
