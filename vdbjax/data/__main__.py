"""`python -m vdbjax.data`: fetch published image sets by name, prepare others, and say what a set holds."""

from dataclasses import dataclass
from pathlib import Path
from typing import Annotated, assert_never

import numpy as np
from tyro.conf import Positional, subcommand

from vdbjax import command, limits
from vdbjax.data.download import Report, download_root
from vdbjax.data.image_sets import SETS, fetch_set
from vdbjax.data.images import ImageSet, find_images, load_images, prepare_images
from vdbjax.training.progress import reporter


@dataclass(frozen=True)
class Fetch:
    """Downloads a published set, checks it, and prepares it; then --data NAME/PART names it to the other commands."""

    name: Positional[str]
    """cifar10, mnist or svhn; or, from files got by hand (the command says which, and where from): celeba,
    imagenet32-2016 and imagenet64-2016 (PixelCNN's and Flow++'s), imagenet32-2017 and imagenet64-2017 (labelled)."""
    out: Path | None = None
    """Folder to write the folder NAME to; by default ~/.cache/vdbjax, where sets are found by name."""
    url: str | None = None
    """Another place of the publisher's files: a mirror, or file:///FOLDER."""

    def __post_init__(self) -> None:
        """Rejects an unknown name."""
        limits.known("set", SETS, self.name)


@dataclass(frozen=True)
class Prepare:
    """Writes images as a folder that opens at once, whatever its size, and is streamed where memory is too small."""

    path: Positional[Path]
    """Folder or zip of PNG and JPEG, set.zip/train, .npz, idx, CIFAR-10's batches, or a prepared set."""
    out: Path
    """Folder to write."""
    size: int | None = None
    """Pixels that images are cropped (to the central square) and resized (by averaging areas) to. None: as they are."""


@dataclass(frozen=True)
class Info:
    """Says what a set holds, and what was done to its pixels."""

    path: Positional[Path]
    """As --data of the other commands: a path, or a name such as cifar10/train."""


Options = (
    Annotated[Fetch, subcommand("fetch")]
    | Annotated[Prepare, subcommand("prepare")]
    | Annotated[Info, subcommand("info")]
)


def fetch(options: Fetch) -> None:
    """Fetches, and says what there is."""

    def told(what: str) -> Report:
        return reporter(what, unit="images") if what.startswith("preparing") else reporter(what, unit="MB", scale=1e6)

    root = options.out or download_root()
    for part, found in fetch_set(options.name, root, url=options.url, told=told).items():
        name = f"{options.name}/{part}" if options.out is None else root / options.name / part
        print(f"--data {name}: {_shown(found)}")
    print(f"downloads are kept in {root / options.name / 'downloads'}")


def prepare(options: Prepare) -> None:
    """Writes the folder."""
    report = reporter("preparing", unit="images")
    found = prepare_images(options.path, options.out, size=options.size, report=lambda done: report(done, None))
    print(f"--data {options.out}: {_shown(found)}")


def info(options: Info) -> None:
    """Prints the set in a few lines."""
    path = find_images(options.path)
    found = load_images(path)
    print(f"{path}: {_shown(found)}")
    if found.labels is not None:
        names = f": {', '.join(found.label_names[:10])}" if found.label_names else ""
        print(f"{len(np.unique(found.labels))} labels{names}{', ...' if len(found.label_names) > 10 else ''}")
    where = "opened as a memmap" if isinstance(found.images, np.memmap) else "read into memory"
    print(f"{found.images.nbytes / 1e6:,.1f} MB, {where}")


def _shown(found: ImageSet) -> str:
    count, height, width, channels = found.images.shape
    colour = "RGB" if channels == 3 else "grey"
    return f"{count:,} {colour} images of {width} x {height}, {found.source}, {found.policy}"


def run(options: Fetch | Prepare | Info) -> None:
    """Does what the command line asks for."""
    match options:
        case Fetch():
            fetch(options)
        case Prepare():
            prepare(options)
        case Info():
            info(options)
        case _:
            assert_never(options)


def main() -> None:
    """The command."""
    command.main(lambda: run(command.parse(Options, prog="python -m vdbjax.data", description=__doc__)))


if __name__ == "__main__":
    main()
