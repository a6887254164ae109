"""Two stages against one, at one final distortion and for equal compute: ELBO, and how near samples come. Section 4.

For each seed: a first VAE held at a large distortion, a second one over it held at the small one, and a VAE held at the
small one at once, for as many steps as the other two cost together, by the floating point operations of their steps.
Bounds are of images that none was trained on; samples are the decoder's means. The features of the Fréchet distance
(FD) and the kernel distance (KID) are those of a `cifar-features` classifier of the same images.

    python benchmarks/two_stages.py --data $VDBJAX_DATA/mnist/t10k-images-idx3-ubyte.gz
"""

import statistics
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import jax
import jax.numpy as jnp
import numpy as np
from machine import begin
from narrow_vae import narrow

from vdbjax import command, limits, stages
from vdbjax.data.images import load_images
from vdbjax.evaluation.bits_that_matter import draw_rows
from vdbjax.extractors import load_extractor
from vdbjax.gan_score import Reals, distances, reals_of
from vdbjax.image_build import kind_of, validation_images
from vdbjax.sample import sampler_of
from vdbjax.stages import Training
from vdbjax.trained import TrainedModel, load_image_model
from vdbjax.training.run_dir import open_run, read_metrics
from vdbjax.types import Pictures

SHOWN = 12  # samples of each in the figure


@dataclass(frozen=True)
class Options:
    """What to train."""

    data: Path
    """Images with labels: cropped to their central squares."""
    size: int = 14
    """Side that they are resized to, 14 or 32."""
    first_gamma: float = 5.0
    """Squared error of the first stage."""
    gamma: float = 2.0
    """Squared error of the second, and of the single stage."""
    first_iterations: int = 1_500
    """Gradient steps of the first stage."""
    second_iterations: int = 1_500
    """Gradient steps of the second."""
    seeds: int = 2
    """Seeds 0, 1, ... of each."""
    images: int = 5_000
    """Real and generated images of each distance."""
    validation_images: int = 1_000
    """Images kept from training, for the bounds."""
    extractor: Path | None = None
    """Run folder of cifar-features of such images. None: one is trained."""
    workdir: Path = Path("runs/two_stages")
    """Where the runs lie; those that are finished are not repeated."""
    out: Path | None = None
    """File to write, and samples beside it. None: benchmarks/results/two_stages_DEVICE.json."""

    def __post_init__(self) -> None:
        """Rejects values that cannot work."""
        limits.at_least(1, self, "--first-iterations", "--second-iterations", "--seeds")
        limits.at_least(1, self, "--images", "--validation-images")
        narrow(self.size)
        if self.gamma >= self.first_gamma:
            raise ValueError(f"gamma ({self.gamma}) must be below first_gamma ({self.first_gamma})")


def main(options: Options) -> None:
    """Trains, prints a line a model, and writes the file and the samples."""
    report = begin("two_stages", options, options.out)
    images, others = _halves(options)
    extractor = load_extractor(options.extractor or _extractor(options))
    reals = reals_of(extractor, images)
    rows, shown = [], []
    for seed in range(options.seeds):
        folders, costs = _trained(options, seed)
        for what, folder in folders.items():
            row, samples = _scored(load_image_model(folder), reals, seed=seed)
            rows.append(
                {"what": what, "seed": seed, "seconds": read_metrics(open_run(folder)[0])[-1]["seconds"], **row}
            )
            print(rows[-1], flush=True)
            if seed == 0:
                shown.append((f"{what}\nD = {row['distortion']:.3g}, FD {row['FD']:.3g}", samples[:SHOWN]))
    result: dict[str, Any] = {
        "extractor": {"name": extractor.name, "sha256": extractor.digest, "preprocessing": extractor.preprocessing},
        "operations_a_step": costs,
        "floor": distances(reals, others),
        "summary": summary(rows),
        "rows": rows,
    }
    print(result["summary"])
    report.write(result)
    draw_rows(shown, report.out.with_suffix(".png"))


def _halves(options: Options) -> tuple[np.ndarray, np.ndarray]:
    """So many real images, and as many others."""
    found = load_images(options.data, size=options.size).images
    if 2 * options.images > len(found):
        raise ValueError(f"images ({options.images}) must be at most half of the {len(found)} in {options.data}")
    first, second = np.random.default_rng(0).permutation(len(found))[: 2 * options.images].reshape(2, -1)
    return np.asarray(found[np.sort(first)]), np.asarray(found[np.sort(second)])


def _extractor(options: Options) -> Path:
    folder = options.workdir / "features"
    common = ("--data", options.data, "--size", options.size, "--evaluations", 2)
    _complete(folder, "cifar-features", *common, "--iterations", 500)
    return folder


def _trained(options: Options, seed: int) -> tuple[dict[str, Path], dict[str, float]]:
    """(what -> its run folder, what -> operations of one of its steps)."""
    folders = {
        what: options.workdir / f"{what.replace(' ', '-')}-{seed}" for what in ("first", "two stages", "one stage")
    }
    first, second, single = folders.values()
    common = (*narrow(options.size), "--data", options.data, "--seed", seed, "--evaluations", 2)
    common += ("--validation-images", options.validation_images)
    steps, more = options.first_iterations, options.second_iterations
    held = ("--gamma", options.gamma)
    _complete(first, "vdvae-small", *common, "--gamma", options.first_gamma, "--iterations", steps)
    _complete(second, "two-stage-small", *common, *held, "--primary", first, "--iterations", more)
    costs = {"first": _operations(first), "second": _operations(second)}
    equal = steps + round(more * costs["second"] / costs["first"])
    _complete(single, "vdvae-small", *common, *held, "--iterations", equal)
    return folders, costs | {"steps of one stage": equal}


def _complete(folder: Path, recipe: str, *arguments: object) -> None:
    if code := stages.train(Training(folder, (recipe, *map(str, arguments)))):
        raise ValueError(f"training {folder} ended with {code}")


def _operations(folder: Path) -> float:
    """Floating point operations of a gradient step, as XLA counts them before it optimises."""
    trained = load_image_model(folder)
    config, shape = trained.config.algorithm, trained.model.image_shape
    pictures = Pictures(np.zeros((config.batch_size, *shape), np.uint8))
    algorithm = kind_of(config).make(config, trained.model, first=pictures, validation=pictures, num_iterations=1)
    state = jax.eval_shape(algorithm.init, jax.random.key(0))
    costs: Any = jax.jit(algorithm.update).lower(state, pictures).cost_analysis()
    return float(costs["flops"])


def _scored(trained: TrainedModel, reals: Reals, *, seed: int) -> tuple[dict[str, Any], np.ndarray]:
    """(numbers, samples) of a trained model."""
    images = jnp.asarray(validation_images(trained.config, trained.facts))
    params = trained.params[0]
    with jax.default_matmul_precision("highest"):
        terms = jax.device_get(jax.jit(trained.model.terms)(params, images, jax.random.key(seed)))
    samples = np.concatenate(list(sampler_of(trained.model)(params, num=reals.count, seed=seed)))
    bits = -terms.bound * trained.model.bits_per_nat_and_dim
    found = distances(reals, samples)
    return {
        "iterations": trained.iteration,
        "gamma": trained.config.algorithm.gamma,
        "distortion": float(np.mean(terms.distortion)),
        "rate_nats": float(np.mean(np.sum(terms.rates, axis=0))),
        "elbo_nats": float(np.mean(terms.bound)),
        "bits_per_dim": float(np.mean(bits)),
        "bits_per_dim_error": float(np.std(bits, ddof=1) / np.sqrt(len(bits))),
        "FD": found["eval/fd"],
        "KID": found["eval/kid"],
    }, samples


def summary(rows: list[dict[str, Any]]) -> dict[str, dict[str, list[float]]]:
    """Of each model, mean and deviation over the seeds."""
    found: dict[str, dict[str, list[float]]] = {}
    for what in dict.fromkeys(row["what"] for row in rows):
        for name in ("distortion", "rate_nats", "elbo_nats", "bits_per_dim", "FD", "KID"):
            values = [row[name] for row in rows if row["what"] == what]
            spread = statistics.stdev(values) if len(values) > 1 else 0.0
            found.setdefault(what, {})[name] = [statistics.fmean(values), spread]
    return found


if __name__ == "__main__":
    command.main(lambda: main(command.parse(Options, prog="two_stages.py", description=__doc__)))
