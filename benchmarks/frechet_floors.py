"""What distances are between images of one kind: the floors that generated images are to be compared with.

Fréchet distance, kernel distance, precision and recall of two halves of the training set, of the training against the
test set, and of ever fewer training images against all others, on the features of a run of `cifar-features`. Also how
far our trace of a root is from SciPy's `sqrtm` on the same statistics.

    python -m vdbjax.train cifar-features --data $VDBJAX_DATA/cifar10/jpeg60k.zip/train --out runs/cifar-features
    python benchmarks/frechet_floors.py runs/cifar-features
"""

import os
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import numpy as np
from machine import begin
from rich.console import Console
from rich.table import Table
from scipy import linalg
from tyro.conf import Positional

from vdbjax import command
from vdbjax.data.images import load_images
from vdbjax.evaluation.features import features_of
from vdbjax.evaluation.frechet import Statistics, frechet_distance, statistics_of
from vdbjax.evaluation.kernel_distance import kernel_distance
from vdbjax.evaluation.precision_recall import precision_recall
from vdbjax.extractors import load_extractor
from vdbjax.training.progress import reporter
from vdbjax.training.run_dir import open_run, read_metrics

MANIFOLD_IMAGES = 5_000
"""Of each set, for precision and recall."""


@dataclass(frozen=True)
class Options:
    """What to measure with."""

    extractor: Positional[Path]
    """Run folder of cifar-features."""
    train: Path | None = None
    """Training images. None: $VDBJAX_DATA/cifar10/jpeg60k.zip/train."""
    test: Path | None = None
    """Test images. None: $VDBJAX_DATA/cifar10/jpeg60k.zip/test."""
    counts: tuple[int, ...] = (500, 1_000, 2_000, 5_000, 10_000, 25_000)
    """Numbers of training images held against all others."""
    seed: int = 0
    """Seed of the halves, subsets and draws."""
    out: Path | None = None
    """File to write. None: benchmarks/results/frechet_floors_DEVICE.json."""


def main(options: Options) -> None:
    """Measures, prints a table and writes the file."""
    report = begin("frechet_floors", options, options.out)
    extractor = load_extractor(options.extractor)
    paths = [options.train or _cifar("train"), options.test or _cifar("test")]
    train, test = (
        features_of(extractor, load_images(path).images, report=reporter("features", unit="images")) for path in paths
    )
    rows = floors(train, test, options.counts, seed=options.seed)
    last = read_metrics(open_run(options.extractor)[0])[-1]
    result = {
        "extractor": {"name": extractor.name, "sha256": extractor.digest, "preprocessing": extractor.preprocessing},
        "accuracy": last.get("eval/accuracy"),
        "features": train.shape[1],
        "floors": rows,
        "of_scipys_root": against_scipy(statistics_of(train), statistics_of(test)),
    }
    Console(width=110).print(_table(rows))
    print(f"extractor {extractor.name}, sha256 {extractor.digest[:16]}, accuracy {result['accuracy']}")
    report.write(result)


def _cifar(split: str) -> Path:
    if "VDBJAX_DATA" not in os.environ:
        raise ValueError("name the images with --train and --test, or their folder in VDBJAX_DATA")
    return Path(os.environ["VDBJAX_DATA"]) / "cifar10" / "jpeg60k.zip" / split


def floors(train: np.ndarray, test: np.ndarray, counts: tuple[int, ...], *, seed: int) -> list[dict[str, Any]]:
    """One row a pair of sets."""
    order = np.random.default_rng(seed).permutation(len(train))
    half = len(train) // 2
    first, second = train[order[:half]], train[order[half:]]
    rows = [
        {"pair": "two halves of train"} | distances(first, second, seed=seed),
        {"pair": "train, test"} | distances(train, test, seed=seed),
    ]
    for count in counts:
        a, b = statistics_of(train[order[:count]]), statistics_of(train[order[count:]])
        row = {"pair": "some of train, the others", "real": b.count, "fake": a.count}
        rows.append(row | {"FD": frechet_distance(a, b)})
    return rows


def distances(real: np.ndarray, fake: np.ndarray, *, seed: int) -> dict[str, Any]:
    """Every metric of two sets of features."""
    kernel = kernel_distance(real, fake, seed=seed)
    draw = np.random.default_rng(seed).permutation
    count = min(MANIFOLD_IMAGES, len(real), len(fake))
    shares = precision_recall(real[draw(len(real))[:count]], fake[draw(len(fake))[:count]])
    return {
        "real": len(real),
        "fake": len(fake),
        "FD": frechet_distance(statistics_of(real), statistics_of(fake)),
        "KID": kernel.mean,
        "KID_spread": kernel.spread,
        **shares._asdict(),
        "precision_recall_images": count,
    }


def against_scipy(a: Statistics, b: Statistics) -> dict[str, float]:
    """Our distance, the same by SciPy's root, and how far they are apart over the latter."""
    root = linalg.sqrtm(a.covariance @ b.covariance).real
    theirs = float(np.sum((a.mean - b.mean) ** 2) + np.trace(a.covariance + b.covariance - 2.0 * root))
    ours = frechet_distance(a, b)
    return {"ours": ours, "scipy": theirs, "relative_difference": abs(ours - theirs) / theirs}


def _table(rows: list[dict[str, Any]]) -> Table:
    table = Table("pair", "real", "fake", "FD", "KID", "between subsets", "precision", "recall")
    for row in rows:
        more = [f"{row[name]:{form}}" if name in row else "" for name, form in FORMS.items()]
        table.add_row(row["pair"], f"{row['real']:,}", f"{row['fake']:,}", f"{row['FD']:.5f}", *more)
    return table


FORMS = {"KID": ".2e", "KID_spread": ".2e", "precision": ".3f", "recall": ".3f"}


if __name__ == "__main__":
    command.main(lambda: main(command.parse(Options, prog="frechet_floors.py", description=__doc__)))
