"""Published image sets by name: fetched, checked, and prepared as memmaps, `NAME/train` and another part.

Listed are sets whose fingerprints are known from more than one place. Where the publisher asks for a login, or has
withdrawn the files, whoever wants the set puts them in a folder by hand, and the rest is the same. ImageNet's two
versions of each size differ in their pixels: bits/dim on one do not compare with those on the other.
"""

import shutil
import tarfile
import tempfile
import zlib
from collections.abc import Callable, Iterable
from pathlib import Path
from typing import NamedTuple

from vdbjax import limits
from vdbjax.data.download import Report, download, is_whole
from vdbjax.data.image_files import IMAGENET_2017_TRAIN, IMAGENET_2017_VALIDATION
from vdbjax.data.images import ImageError, ImageSet, load_images, prepare_images


class Part(NamedTuple):
    """One of a set's parts."""

    path: str  # among the unpacked files
    images: int  # how many there must be


class NamedSet(NamedTuple):
    """Where a set is, and what is in it."""

    title: str
    address: str  # where the files lie; by hand: what to get, and where
    by_hand: bool
    files: dict[str, str | None]  # name -> SHA-256; None: known by their number of images alone
    parts: dict[str, Part]


def _imagenet_2016(size: int, train: str, validation: str) -> NamedSet:
    """As PixelCNN, Flow++ and other density models used it; pictures without labels."""
    return NamedSet(
        f"ImageNet {size} x {size} as downsampled in 2016 (van den Oord et al.)",
        "image-net.org has withdrawn them, https://academictorrents.com holds them",
        True,
        {f"train_{size}x{size}.tar": train, f"valid_{size}x{size}.tar": validation},
        {"train": Part(f"train_{size}x{size}", 1_281_149), "validation": Part(f"valid_{size}x{size}", 49_999)},
    )


def _imagenet_2017(size: int, archives: str) -> NamedSet:
    return NamedSet(
        f"ImageNet {size} x {size} as downsampled in 2017 (Chrabaszcz et al.), by averaging areas",
        f"unzip {archives} of https://image-net.org/download-images.php, which asks for a login",
        True,
        dict.fromkeys((*IMAGENET_2017_TRAIN, IMAGENET_2017_VALIDATION)),
        {"train": Part(".", 1_281_167), "validation": Part(IMAGENET_2017_VALIDATION, 50_000)},
    )


SETS = {
    "cifar10": NamedSet(
        "CIFAR-10 (Krizhevsky 2009)",
        "https://www.cs.toronto.edu/~kriz",
        False,
        {"cifar-10-binary.tar.gz": "c4a38c50a1bc5f3a1c5537f2155ab9d68f9f25eb1ed8d9ddda3db29a59bca1dd"},
        {
            "train": Part("cifar-10-batches-bin", 50_000),
            "test": Part("cifar-10-batches-bin/test_batch.bin", 10_000),
        },
    ),
    "mnist": NamedSet(
        "MNIST (LeCun et al.)",
        "https://storage.googleapis.com/cvdf-datasets/mnist",
        False,
        {
            "train-images-idx3-ubyte.gz": "440fcabf73cc546fa21475e81ea370265605f56be210a4024d2ca8f203523609",
            "train-labels-idx1-ubyte.gz": "3552534a0a558bbed6aed32b30c495cca23d567ec52cac8be1a0730e8010255c",
            "t10k-images-idx3-ubyte.gz": "8d422c7b0a1c1c79245a5bcf07fe86e33eeafee792b84584aec276f5a2dbc4e6",
            "t10k-labels-idx1-ubyte.gz": "f7ae60f92e00ec6debd23a6088c31dbd2371eca3ffa0defaefb259924204aec6",
        },
        {"train": Part("train-images-idx3-ubyte.gz", 60_000), "test": Part("t10k-images-idx3-ubyte.gz", 10_000)},
    ),
    "svhn": NamedSet(
        "Street View House Numbers, cropped digits (Netzer et al. 2011)",
        "http://ufldl.stanford.edu/housenumbers",
        False,
        {
            "train_32x32.mat": "435e94d69a87fde4fd4d7f3dd208dfc32cb6ae8af2240d066de1df7508d083b8",
            "test_32x32.mat": "cdce80dfb2a2c4c6160906d0bd7c68ec5a99d7ca4831afa54f09182025b6a75b",
        },
        {"train": Part("train_32x32.mat", 73_257), "test": Part("test_32x32.mat", 26_032)},
    ),
    "celeba": NamedSet(
        "CelebA, aligned and cropped to 178 x 218 (Liu et al. 2015)",
        "from https://mmlab.ie.cuhk.edu.hk/projects/CelebA.html, under Align&Cropped Images",
        True,
        {"img_align_celeba.zip": "46fb89443c578308acf364d7d379fe1b9efb793042c0af734b6112e4fd3a8c74"},
        {"all": Part("img_align_celeba.zip/img_align_celeba", 202_599)},
    ),
    "imagenet32-2016": _imagenet_2016(
        32,
        "244a323d48f8d72f65ad8b54658c01fed68d2d7bdc77ccb43da58c11e94224e5",
        "862e559462b24cf736212a19f6b0d47b55c2dc8ebdaa95ccecfe71260124c8f7",
    ),
    "imagenet64-2016": _imagenet_2016(
        64,
        "e2a2c1947a748d0d256e98e6d82800d855441dc9e4de2e71a773f1324c4524d7",
        "eeac03ec4f585baf871d2b4cb9c974bfe345e74878a74e5820fe6eb1041629cd",
    ),
    "imagenet32-2017": _imagenet_2017(32, "Imagenet32_train_npz.zip and Imagenet32_val_npz.zip"),
    "imagenet64-2017": _imagenet_2017(
        64, "Imagenet64_train_part1_npz.zip, Imagenet64_train_part2_npz.zip and Imagenet64_val_npz.zip"
    ),
}


ReporterOf = Callable[[str], Report]
"""Given what is being done, gives what is to be told how far that is."""


def fetch_set(name: str, root: Path, *, url: str | None = None, told: ReporterOf) -> dict[str, ImageSet]:
    """Fetches and prepares what is not there yet of a set, under `root/name`; part -> its images.

    Downloads stay in `root/name/downloads`, unpacked files only until the parts are ready. `url` is another place of
    the files. Raises ValueError, in one line, for an unknown name, what must be got by hand, cannot be had, written or
    unpacked, or has another number of images than published.
    """
    limits.known("set", SETS, name)
    wanted, folder = SETS[name], root / name
    missing = {part: content for part, content in wanted.parts.items() if not (folder / part).exists()}
    if missing:
        _get_files(name, wanted, folder / "downloads", url or wanted.address, told)
        with tempfile.TemporaryDirectory(dir=folder, prefix=".unpacked-") as unpacked:
            files = _unpacked(folder / "downloads", wanted.files, Path(unpacked), told)
            for part, content in missing.items():
                _prepare(files / content.path, folder / part, wanted.title, content.images, told(f"preparing {part}"))
    return {part: load_images(folder / part) for part in wanted.parts}


def _get_files(name: str, wanted: NamedSet, folder: Path, url: str, told: ReporterOf) -> None:
    """Downloads the files that are not there, or says how a person gets them."""
    if wanted.by_hand and (absent := [file for file in wanted.files if not (folder / file).is_file()]):
        raise ValueError(
            f"{name} must be got by hand ({wanted.address}): put {', '.join(absent)} into {folder}, then run this again"
        )
    for file, sha256 in wanted.files.items():
        if sha256 is None or is_whole(folder / file, sha256):
            continue
        if wanted.by_hand:
            raise ValueError(f"{folder / file} is not the file it should be: its SHA-256 is not {sha256[:16]}...")
        download(f"{url.rstrip('/')}/{file}", folder / file, sha256=sha256, report=told(file))


def _unpacked(downloads: Path, files: Iterable[str], target: Path, told: ReporterOf) -> Path:
    """Where the files lie once every .tar is unpacked: the folder they are in, where none is one."""
    archives = [downloads / file for file in files if file.endswith((".tar", ".tar.gz"))]
    for archive in archives:
        report, total = told(f"unpacking {archive.name}"), archive.stat().st_size
        try:
            with archive.open("rb") as raw, tarfile.open(fileobj=raw) as members:
                for member in members:
                    members.extract(member, target, filter="data")
                    report(raw.tell(), total)
        except (OSError, EOFError, zlib.error, tarfile.TarError) as error:
            raise ValueError(f"{archive} cannot be unpacked into {target} ({error})") from error
    return target if archives else downloads


def _prepare(source: Path, out: Path, title: str, count: int, report: Report) -> None:
    found = prepare_images(source, out, source=title, report=lambda done: report(done, count))
    if len(found.images) != count:
        shutil.rmtree(out)
        raise ImageError(f"{source} holds {len(found.images)} images, the published set {count}")
