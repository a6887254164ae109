"""All that decides a run of a model of images."""

from dataclasses import dataclass
from pathlib import Path
from typing import Annotated, Generic, TypeVar

from tyro.conf import Suppress, arg

from vdbjax import limits

AlgorithmConfig = TypeVar("AlgorithmConfig")


@dataclass(frozen=True)
class ImageRunConfig(Generic[AlgorithmConfig]):
    """All that decides a run on images."""

    recipe: Suppress[str]
    algorithm: Annotated[AlgorithmConfig, arg(name="")]
    data: Path | None = None
    """Images to train on: a folder or zip of PNG and JPEG, set.zip/train, .npz, idx, CIFAR-10's batches, or a name such
    as cifar10/train of what `python -m vdbjax.data fetch` fetched."""
    size: int | None = None
    """Side that images are cropped and resized to. None: as they are."""
    sources: Path | None = None
    """Where a GAN translates (--translate): the pictures to translate, as many as --data holds, in the same order."""
    validation_data: Path | None = None
    """Images to evaluate on. None: some of the training images, held out."""
    validation_images: int | None = None
    """How many images are evaluated on, drawn from either; the same for every seed. None: 256, or where they are held
    out of --data a tenth of it if that is fewer."""
    iterations: int = 4_000
    """Gradient steps."""
    seed: int = 0
    """Seed of everything random."""
    num_seeds: int = 1
    """Independent models at once, by vmap; all see the same batches."""
    evaluations: int = 20
    """Evaluations on the validation images, evenly over the run, each with a grid of samples."""
    checkpoint_seconds: float = 60.0
    """Seconds between checkpoints."""
    retries: int = 3
    """Times that a run goes back to its last checkpoint and draws other noise, where a number is not finite."""

    def __post_init__(self) -> None:
        """Rejects values that cannot work."""
        limits.not_negative(self, "checkpoint_seconds")
        limits.at_least(1, self, "validation_images", "iterations", "num_seeds", "evaluations", "size")
        limits.at_least(0, self, "retries")
