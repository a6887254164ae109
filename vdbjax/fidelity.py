"""`python -m vdbjax.fidelity REAL FAKE --extractor RUN|WEIGHTS`: how near generated images are to real ones.

Prints the Fréchet distance, and where asked the kernel distance (KID), precision and recall, each with all that it
depends on: compare only numbers whose lines differ in nothing but the fakes.
"""

import sys
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import numpy as np
from tyro.conf import Positional

from vdbjax import command, limits
from vdbjax.data.download import download_root
from vdbjax.data.images import ImageSet, load_images
from vdbjax.evaluation import vgan2018
from vdbjax.evaluation.features import FeatureExtractor
from vdbjax.evaluation.frechet import frechet_distance
from vdbjax.evaluation.kernel_distance import kernel_distance
from vdbjax.evaluation.precision_recall import precision_recall
from vdbjax.evaluation.statistics_cache import Summary, summary_of
from vdbjax.extractors import ProtocolName, load_extractor
from vdbjax.training.progress import reporter
from vdbjax.training.run_dir import write_json

SUBSETS, NEIGHBOURS = 100, 3


@dataclass(frozen=True)
class Options:
    """What the command line gives."""

    real: Positional[Path]
    """Real images: a folder or zip of PNG and JPEG, set.zip/train, .npz, idx, or CIFAR-10's batches."""
    fake: Positional[Path]
    """Generated images, in any of these."""
    extractor: Path
    """Run folder of cifar-features (the distance is called FD), or Inception's weights as a .pth of PyTorch (FID)."""
    protocol: ProtocolName | None = None
    """How Inception is used; None: fid. Each but vgan2018 takes pt_inception-2015-12-05-6726825d.pth."""
    kid: bool = False
    """Also the kernel distance."""
    kid_subset_size: int = 1_000
    """Images of each of its 100 subsets."""
    precision_recall: bool = False
    """Also precision and recall, by 3 nearest neighbours. Takes time with the square of the number of images."""
    images: int | None = None
    """How many images of each set are compared, drawn at random; more than the extractor has features. None: all."""
    size: int | None = None
    """Side that images are cropped and resized to before anything else. None: as they are."""
    batch_size: int = 64
    """Images at once."""
    seed: int = 0
    """Seed of all that is drawn."""
    cache: Path | None = None
    """Folder that statistics are kept in, by the content of images and weights. None: ~/.cache/vdbjax/statistics."""
    json: Path | None = None
    """File to write the numbers to."""

    def __post_init__(self) -> None:
        """Rejects values that cannot work."""
        limits.at_least(2, self, "--images", "--kid-subset-size")
        limits.at_least(1, self, "--batch-size", "--size")
        limits.seed(self, "--seed")
        if self.protocol == "vgan2018" and self.images is not None:
            raise ValueError(
                f"protocol vgan2018 decides how many images are compared; leave out images ({self.images})"
            )


def run(options: Options) -> None:
    """Prints a line a number, and writes the file."""
    if options.json:
        command.check_writable(options.json)
    extractor = load_extractor(options.extractor, protocol=options.protocol)
    sets = [load_images(path, size=options.size) for path in (options.real, options.fake)]
    chosen = _chosen(options, *sets)
    _check_subsets(options, min(len(images) for images in chosen))
    folder = options.cache or download_root() / "statistics"
    summaries = [
        summary_of(
            extractor,
            images,
            folder=folder,
            with_features=options.kid or options.precision_recall,
            batch_size=options.batch_size,
            report=reporter("features", unit="images"),
        )
        for images in chosen
    ]
    metrics, lines = _metrics(options, extractor, *summaries)
    protocol = _protocol(options, extractor, sets, chosen)
    for line in lines:
        print(f"{line} | {' | '.join(protocol.values())}")
    if options.json:
        write_json(options.json, {"metrics": metrics, "protocol": protocol})


def _chosen(options: Options, real: ImageSet, fake: ImageSet) -> list[np.ndarray]:
    """The images compared."""
    if options.protocol == "vgan2018":
        reals = vgan2018.sampled_reals(real.images, seed=options.seed)
        return [reals, vgan2018.sampled_fakes(fake.images, seed=options.seed)]
    return [drawn(found.images, options.images, seed=options.seed) for found in (real, fake)]


def drawn(images: Any, count: int | None, *, seed: int) -> Any:
    """So many images, without replacement, in their order; None: all. Raises ValueError where there are fewer."""
    if count is None:
        return images
    if count > len(images):
        raise ValueError(
            f"images ({count}) is more than the {len(images)} of a set; take fewer, or leave it out for all"
        )
    return images[np.sort(np.random.default_rng(seed).choice(len(images), count, replace=False))]


def _check_subsets(options: Options, fewest: int) -> None:
    """Before anything takes long: whether KID's subsets are within the smaller set."""
    if options.kid and options.kid_subset_size > fewest:
        raise ValueError(
            f"--kid-subset-size ({options.kid_subset_size}) is more than the {fewest} images of a set; take smaller "
            "subsets, or more images"
        )


def _metrics(
    options: Options, extractor: FeatureExtractor, real: Summary, fake: Summary
) -> tuple[dict[str, float], list[str]]:
    """(name -> number, what is printed of each)."""
    metrics: dict[str, float] = {}
    lines: list[str] = []
    try:
        metrics[extractor.distance] = frechet_distance(real.statistics, fake.statistics)
        lines.append(f"{extractor.distance} {metrics[extractor.distance]:.4f}")
    except ValueError as error:  # too few images
        if not options.kid:
            raise
        print(f"note: {error}", file=sys.stderr)
    if options.kid:
        kernel = kernel_distance(
            real.features, fake.features, subsets=SUBSETS, subset_size=options.kid_subset_size, seed=options.seed
        )
        metrics |= {"KID": kernel.mean, "KID spread": kernel.spread}
        lines.append(
            f"KID {kernel.mean:.6f} (deviation {kernel.spread:.6f} between {SUBSETS} subsets of "
            f"{options.kid_subset_size:,})"
        )
    if options.precision_recall:
        shares = precision_recall(real.features, fake.features, neighbours=NEIGHBOURS)
        metrics |= shares._asdict()
        lines.append(f"precision {shares.precision:.4f}, recall {shares.recall:.4f} (k = {NEIGHBOURS})")
    return metrics, lines


def _protocol(
    options: Options, extractor: FeatureExtractor, sets: list[ImageSet], chosen: list[np.ndarray]
) -> dict[str, str]:
    """All that the numbers depend on, in words."""
    words = {
        "extractor": f"{extractor.name}, sha256 {extractor.digest[:16]}",
        "preprocessing": extractor.preprocessing,
    }
    paths = zip(("real", "fake"), (options.real, options.fake), sets, chosen)
    for which, path, found, used in paths:
        words[which] = f"{len(used):,} {which} of {len(found.images):,} from {path} ({found.policy})"
    everything = options.protocol != "vgan2018" and options.images is None
    subsets = f"; KID's subsets with seed {options.seed}" if options.kid else ""
    return words | {"drawn": "all images" + subsets if everything else f"drawn with seed {options.seed}"}


def main() -> None:
    """The command."""
    command.main(lambda: run(command.parse(Options, prog="python -m vdbjax.fidelity", description=__doc__)))


if __name__ == "__main__":
    main()
