"""Statistics of image sets kept in a folder, found again by what they were computed from."""

import hashlib
import json
import os
import secrets
import zipfile
import zlib
from collections.abc import Callable
from pathlib import Path
from typing import NamedTuple

import numpy as np
from jaxtyping import Float

from vdbjax.evaluation.features import FeatureExtractor, Images, check_shape, digest_of, features_of
from vdbjax.evaluation.frechet import Statistics, statistics_of

FORMAT = 1
"""Raised whenever the same images and weights would give other features than before."""


class Summary(NamedTuple):
    """What metrics are computed from."""

    statistics: Statistics
    features: Float[np.ndarray, "N features"] | None  # float32, where they were asked for


def summary_of(
    extractor: FeatureExtractor,
    images: Images,
    *,
    folder: Path,
    with_features: bool = False,
    batch_size: int = 64,
    report: Callable[[int, int], None] | None = None,
) -> Summary:
    """Statistics of the images' features, and the features themselves where asked for; from the folder if it has them.

    An entry's name is the digest of the pixels, the weights and the preprocessing, never of a path or a date, so that
    changed images or weights cannot meet old numbers. It is written whole or not at all; what is damaged, or lacks the
    features, is computed anew. Raises ValueError as `features_of` does.
    """
    check_shape(extractor, images)
    if not _is_writable(folder):  # before the features are computed, not after
        raise ValueError(f"statistics cannot be kept in {folder}; name another folder")
    key = [FORMAT, extractor.name, extractor.digest, extractor.preprocessing, digest_of(images)]
    path = folder / f"{hashlib.sha256(json.dumps(key).encode()).hexdigest()}.npz"
    found = _read(path, with_features)
    if found is None:
        features = features_of(extractor, images, batch_size=batch_size, report=report)
        found = Summary(statistics_of(features), features if with_features else None)
        _write(path, found)
    return found


def _read(path: Path, with_features: bool) -> Summary | None:
    """None where the entry is not there, damaged, or without the features wanted."""
    try:
        with np.load(path, allow_pickle=False) as entry:  # a zip, which checks what it reads
            features = entry["features"] if with_features else None
            return Summary(Statistics(int(entry["count"]), entry["mean"], entry["scatter"]), features)
    except (OSError, EOFError, KeyError, ValueError, TypeError, zipfile.BadZipFile, zlib.error):
        return None


def _is_writable(folder: Path) -> bool:
    try:
        folder.mkdir(parents=True, exist_ok=True)
    except OSError:
        return False
    return os.access(folder, os.W_OK)


def _write(path: Path, summary: Summary) -> None:
    scratch = path.with_suffix(f".{secrets.token_hex(8)}.part")  # several processes may compute the same entry
    arrays = summary.statistics._asdict() | ({} if summary.features is None else {"features": summary.features})
    with scratch.open("wb") as stream:
        np.savez(stream, **arrays)
    os.replace(scratch, path)
