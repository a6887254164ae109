"""`python -m vdbjax.likelihood RUN --data IMAGES`: bits/dim of images under a trained model."""

import json
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import jax
import jax.numpy as jnp
import numpy as np
from tyro.conf import Positional

from vdbjax import command, limits
from vdbjax.data.images import load_images
from vdbjax.trained import TrainedModel, load_likelihood_model
from vdbjax.training.progress import reporter
from vdbjax.training.run_dir import write_whole


@dataclass(frozen=True)
class Options:
    """What the command line gives."""

    run: Positional[Path]
    """Run folder of a model of images, as `python -m vdbjax.train` left it."""
    data: Path
    """Images to score: a folder or zip of PNG and JPEG, set.zip/test, .npz, idx, CIFAR-10's batches, or a name such as
    cifar10/test of what `python -m vdbjax.data fetch` fetched."""
    size: int | None = None
    """Side that images are cropped and resized to. None: as they are."""
    samples: int = 1
    """Noises an image: 1 is what a bits-back code costs, more give a tighter bound of the likelihood."""
    batch_size: int = 64
    """Images at once."""
    seed: int = 0
    """Seed of the noises."""
    json: Path | None = None
    """File to write the numbers to, bits/dim of single images included."""

    def __post_init__(self) -> None:
        """Rejects values that cannot work."""
        limits.at_least(1, self, "--samples", "--batch-size")
        limits.seed(self, "--seed")


def bits_per_dim_of(
    trained: TrainedModel, images: np.ndarray, *, samples: int, batch_size: int, seed: int
) -> np.ndarray:
    """[seeds, N]: the bound of each image under the model of each seed. Ragged batches are padded to the one shape.

    Raises ValueError for images of another shape than the model's.
    """
    if images.shape[1:] != trained.model.image_shape:
        raise ValueError(
            f"images of shape {images.shape[1:]} do not fit a model of {trained.model.image_shape}; give a --size"
        )
    bound = jax.jit(trained.model.bound)

    def score(params: Any, batch: jax.Array, key: jax.Array) -> np.ndarray:
        """As `Model.bits_per_dim`; its loop stands out here, for XLA's CPU convolutions are slow inside of one."""
        total = np.full(len(batch), -np.inf)
        for k in range(samples):
            total = np.logaddexp(total, np.asarray(bound(params, batch, jax.random.fold_in(key, k)), np.float64))
        return (np.log(samples) - total) * trained.model.bits_per_nat_and_dim

    found, report = [], reporter("scoring", unit="images")
    for start in range(0, len(images), batch_size):
        batch = np.asarray(images[start : start + batch_size])
        padded = jnp.asarray(np.pad(batch, ((0, batch_size - len(batch)), (0, 0), (0, 0), (0, 0))))
        key = jax.random.fold_in(jax.random.key(np.uint32(seed)), start)
        with jax.default_matmul_precision("highest"):
            found.append(np.array([score(params, padded, key)[: len(batch)] for params in trained.params], np.float64))
        report(start + len(batch), len(images))
    return np.concatenate(found, axis=1)


def run(options: Options) -> None:
    """Scores, prints a line a seed, writes the file."""
    if options.json:
        command.check_writable(options.json)
    trained = load_likelihood_model(options.run)
    found = load_images(options.data, size=options.size)
    values = bits_per_dim_of(
        trained, found.images, samples=options.samples, batch_size=options.batch_size, seed=options.seed
    )
    noises = f"{options.samples} noise{'s' if options.samples > 1 else ''} each"
    for index, row in enumerate(values):
        error = row.std(ddof=1) / np.sqrt(len(row)) if len(row) > 1 else float("nan")
        print(
            f"{options.run.resolve().name}{f' #{index}' if len(values) > 1 else ''}, iteration {trained.iteration}: "
            f"{row.mean():.4f} bits/dim (s.e. {error:.4f}) on {len(row)} images, {noises} ({found.policy})"
        )
    if options.json:
        content = {"run": options.run.name, "iteration": trained.iteration, "samples": options.samples}
        numbers = {"seed": options.seed, "policy": found.policy, "bits_per_dim": values.tolist()}
        write_whole(options.json, json.dumps(content | numbers, indent=2) + "\n")


def main() -> None:
    """The command."""
    command.main(lambda: run(command.parse(Options, prog="python -m vdbjax.likelihood", description=__doc__)))


if __name__ == "__main__":
    main()
