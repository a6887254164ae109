"""Published sets, small ones in their formats, from a server on this machine; and `python -m vdbjax.data`."""

import gzip
import hashlib
import io
import os
import resource
import struct
import tarfile
import zipfile
from pathlib import Path

import numpy as np
import pytest
from local_server import HangsUp, serving
from PIL import Image
from scipy.io import savemat

from vdbjax.data import __main__ as command
from vdbjax.data import image_sets
from vdbjax.data.image_sets import SETS, NamedSet, Part
from vdbjax.data.images import ImageError, load_images, prepare_images

DRAW = np.random.default_rng(0)
PIXELS = DRAW.integers(0, 256, size=(12, 32, 32, 3), dtype=np.uint8)
LABELS = np.arange(12) % 10
PLANES = PIXELS.transpose(0, 3, 1, 2).reshape(12, -1)


def png(pixels: np.ndarray) -> bytes:
    stream = io.BytesIO()
    Image.fromarray(pixels).save(stream, "PNG")
    return stream.getvalue()


def tarred(members: dict[str, bytes], compression: str) -> bytes:
    stream = io.BytesIO()
    with tarfile.open(fileobj=stream, mode=f"w:{compression}") as archive:
        for name, content in members.items():
            entry = tarfile.TarInfo(name)
            entry.size = len(content)
            archive.addfile(entry, io.BytesIO(content))
    return stream.getvalue()


def cifar10() -> dict[str, bytes]:
    rows = np.concatenate([LABELS[:, None].astype(np.uint8), PLANES], axis=1)
    names = [*(f"data_batch_{i}.bin" for i in range(1, 6)), "test_batch.bin"]
    members = {f"cifar-10-batches-bin/{name}": rows[2 * i : 2 * i + 2].tobytes() for i, name in enumerate(names)}
    return {"cifar-10-binary.tar.gz": tarred(members, "gz")}


def idx(array: np.ndarray) -> bytes:
    return gzip.compress(bytes([0, 0, 8, array.ndim]) + struct.pack(f">{array.ndim}I", *array.shape) + array.tobytes())


def mnist() -> dict[str, bytes]:
    grey, labels = np.ascontiguousarray(PIXELS[..., 0]), LABELS.astype(np.uint8)
    return {
        "train-images-idx3-ubyte.gz": idx(grey[:10]),
        "train-labels-idx1-ubyte.gz": idx(labels[:10]),
        "t10k-images-idx3-ubyte.gz": idx(grey[10:]),
        "t10k-labels-idx1-ubyte.gz": idx(labels[10:]),
    }


def matlab(rows: slice) -> bytes:
    stream = io.BytesIO()
    labels = np.where(LABELS[rows] == 0, 10, LABELS[rows])[:, None]
    savemat(stream, {"X": PIXELS[rows].transpose(1, 2, 3, 0), "y": labels.astype(np.uint8)}, do_compression=True)
    return stream.getvalue()


def svhn() -> dict[str, bytes]:
    return {"train_32x32.mat": matlab(slice(0, 10)), "test_32x32.mat": matlab(slice(10, 12))}


def celeba() -> dict[str, bytes]:
    stream = io.BytesIO()
    with zipfile.ZipFile(stream, "w") as archive:
        for i, pixels in enumerate(PIXELS):
            archive.writestr(f"img_align_celeba/{i:06}.png", png(pixels))
    return {"img_align_celeba.zip": stream.getvalue()}


def imagenet_2016() -> dict[str, bytes]:
    members = {f"train_32x32/{i:07}.png": png(pixels) for i, pixels in enumerate(PIXELS[:10])}
    held_out = {f"valid_32x32/{i:07}.png": png(pixels) for i, pixels in enumerate(PIXELS[10:])}
    return {"train_32x32.tar": tarred(members, ""), "valid_32x32.tar": tarred(held_out, "")}


def npz(rows: slice) -> bytes:
    stream = io.BytesIO()
    np.savez(stream, data=PLANES[rows], labels=LABELS[rows] + 1, mean=PLANES.mean(0))
    return stream.getvalue()


def imagenet_2017() -> dict[str, bytes]:
    return {f"train_data_batch_{i}.npz": npz(slice(i - 1, i)) for i in range(1, 11)} | {
        "val_data.npz": npz(slice(10, 12))
    }


SMALL = {
    "cifar10": (cifar10, {"train": slice(0, 10), "test": slice(10, 12)}),
    "mnist": (mnist, {"train": slice(0, 10), "test": slice(10, 12)}),
    "svhn": (svhn, {"train": slice(0, 10), "test": slice(10, 12)}),
    "celeba": (celeba, {"all": slice(0, 12)}),
    "imagenet32-2016": (imagenet_2016, {"train": slice(0, 10), "validation": slice(10, 12)}),
    "imagenet32-2017": (imagenet_2017, {"train": slice(0, 10), "validation": slice(10, 12)}),
}
"""A set -> a small one of the same files and names; and which of the images are in which part."""


def publish(name: str, folder: Path, monkeypatch) -> NamedSet:
    """Writes the small set, and puts its fingerprints and counts in place of the true ones."""
    (files, parts), true = (SMALL[name][0](), SMALL[name][1]), SETS[name]
    folder.mkdir(parents=True, exist_ok=True)
    for file, content in files.items():
        (folder / file).write_bytes(content)
    prints = {file: true.files[file] and hashlib.sha256(content).hexdigest() for file, content in files.items()}
    counted = {part: Part(true.parts[part].path, rows.stop - rows.start) for part, rows in parts.items()}
    small = true._replace(files=prints, parts=counted)
    monkeypatch.setitem(image_sets.SETS, name, small)
    return small


@pytest.fixture
def cache(tmp_path, monkeypatch) -> Path:
    monkeypatch.setenv("XDG_CACHE_HOME", str(tmp_path / "cache"))
    monkeypatch.setenv("VDBJAX_DATA", str(tmp_path / "data"))
    return tmp_path / "cache" / "vdbjax"


def run(arguments: list[str], monkeypatch, capsys) -> tuple[int, str, str]:
    monkeypatch.setattr("sys.argv", ["data", *arguments])
    code = 0
    try:
        command.main()
    except SystemExit as stop:
        code = stop.code
    return code, *capsys.readouterr()


def refused(done: tuple[int, str, str], message: str) -> None:
    code, _, err = done
    assert (code, err.count("\n")) == (2, 1), err
    assert err.startswith("error: ")
    assert message in err


@pytest.mark.parametrize("name", SMALL)
def test_fetch_gives_every_pixel_and_label(name, cache, tmp_path, monkeypatch, capsys):
    published = cache / name / "downloads" if SETS[name].by_hand else tmp_path / "published"
    publish(name, published, monkeypatch)
    with serving(published) as address:
        code, out, err = run(["fetch", name, "--url", address], monkeypatch, capsys)
    assert (code, err) == (0, "")
    labelled = name not in ("celeba", "imagenet32-2016")
    for part, rows in SMALL[name][1].items():
        assert f"--data {name}/{part}: {rows.stop - rows.start} " in out
        found = load_images(f"{name}/{part}")
        assert isinstance(found.images, np.memmap)
        assert (found.source, found.policy) == (SETS[name].title, "pixels as stored")
        np.testing.assert_array_equal(found.images, PIXELS[rows, ..., :1] if name == "mnist" else PIXELS[rows])
        np.testing.assert_array_equal(found.labels, LABELS[rows] if labelled else None)
    assert sorted(path.name for path in (cache / name).iterdir()) == sorted([*SMALL[name][1], "downloads"])
    again = run(["fetch", name, "--url", "http://127.0.0.1:9"], monkeypatch, capsys)  # nobody there, nobody asked
    assert again[:2] == (0, out)


def test_what_is_got_by_hand_is_asked_for_and_checked(cache, monkeypatch, capsys):
    refused(run(["fetch", "imagenet32-2017"], monkeypatch, capsys), "unzip Imagenet32_train_npz.zip and")
    refused(run(["fetch", "celeba"], monkeypatch, capsys), f"put img_align_celeba.zip into {cache}/celeba/downloads")
    folder = cache / "celeba" / "downloads"
    publish("celeba", folder, monkeypatch)
    (folder / "img_align_celeba.zip").write_bytes(b"a web page")
    refused(run(["fetch", "celeba"], monkeypatch, capsys), "is not the file it should be")


def test_a_set_of_another_number_of_images_is_refused(cache, monkeypatch, capsys):
    small = publish("imagenet32-2017", cache / "imagenet32-2017" / "downloads", monkeypatch)
    parts = small.parts | {"train": Part(".", 11)}
    monkeypatch.setitem(image_sets.SETS, "imagenet32-2017", small._replace(parts=parts))
    refused(run(["fetch", "imagenet32-2017"], monkeypatch, capsys), "holds 10 images, the published set 11")
    assert [path.name for path in (cache / "imagenet32-2017").iterdir()] == ["downloads"]


def test_a_server_that_hangs_up(cache, tmp_path, monkeypatch, capsys):
    publish("svhn", tmp_path, monkeypatch)
    with serving(tmp_path, HangsUp) as address:
        size = (tmp_path / "train_32x32.mat").stat().st_size
        done = run(["fetch", "svhn", "--url", address], monkeypatch, capsys)
        refused(done, f"train_32x32.mat cannot be fetched (cut off after {size} of {size + 1} bytes)")
    assert not any((cache / "svhn" / "downloads").iterdir())


def test_a_fetch_goes_on_where_it_was_stopped(cache, tmp_path, monkeypatch, capsys):
    publish("mnist", tmp_path, monkeypatch)
    content = (tmp_path / "t10k-images-idx3-ubyte.gz").read_bytes()
    (tmp_path / "t10k-images-idx3-ubyte.gz").write_bytes(b"maintenance")
    with serving(tmp_path) as address:
        refused(run(["fetch", "mnist", "--url", address], monkeypatch, capsys), "t10k-images-idx3-ubyte.gz is not the")
        (tmp_path / "t10k-images-idx3-ubyte.gz").write_bytes(content)
        (tmp_path / "train-images-idx3-ubyte.gz").unlink()  # is there already
        assert run(["fetch", "mnist", "--url", address], monkeypatch, capsys)[0] == 0


def test_prepare_and_info(cache, tmp_path, monkeypatch, capsys):
    np.savez(tmp_path / "set.npz", images=PIXELS, labels=LABELS)
    out = str(tmp_path / "half")
    code, text, _ = run(["prepare", str(tmp_path / "set.npz"), "--out", out, "--size", "16"], monkeypatch, capsys)
    policy = "cropped to the central square, area-averaged to 16 x 16"
    assert (code, text) == (0, f"--data {out}: 12 RGB images of 16 x 16, set.npz, {policy}\n")
    _, text, _ = run(["info", out], monkeypatch, capsys)
    assert text.endswith("10 labels\n0.0 MB, opened as a memmap\n")
    smaller = prepare_images(out, tmp_path / "quarter", size=8)
    assert smaller.policy == f"{policy}; then cropped to the central square, area-averaged to 8 x 8"
    assert load_images(out, size=8).policy == smaller.policy
    refused(run(["prepare", out, "--out", out], monkeypatch, capsys), "half: exists already")
    refused(
        run(["prepare", out, "--out", f"{out}2", "--size", "0"], monkeypatch, capsys), "--size (0) must be at least 1"
    )
    refused(
        run(["info", "cifar10/tran"], monkeypatch, capsys),
        "sets such as cifar10/train get there by `python -m vdbjax.data fetch`",
    )
    refused(run(["fetch", "cifar"], monkeypatch, capsys), "unknown set 'cifar'; did you mean cifar10")


def test_a_full_disk_leaves_nothing(tmp_path):
    np.savez(tmp_path / "set.npz", images=PIXELS)
    soft, hard = resource.getrlimit(resource.RLIMIT_FSIZE)
    resource.setrlimit(resource.RLIMIT_FSIZE, (10_000, hard))
    try:
        with pytest.raises(ImageError, match=r"ready: cannot be written \(File too large\)"):
            prepare_images(tmp_path / "set.npz", tmp_path / "ready")
    finally:
        resource.setrlimit(resource.RLIMIT_FSIZE, (soft, hard))
    assert [path.name for path in tmp_path.iterdir()] == ["set.npz"]


@pytest.mark.skipif("VDBJAX_DATA" not in os.environ, reason="needs the folder that VDBJAX_DATA names")
def test_the_published_fingerprint_is_that_of_real_images(tmp_path, monkeypatch):
    real = Path(os.environ["VDBJAX_DATA"]) / "mnist"
    name = "t10k-images-idx3-ubyte.gz"
    only = SETS["mnist"]._replace(files={name: SETS["mnist"].files[name]}, parts={"test": SETS["mnist"].parts["test"]})
    monkeypatch.setitem(image_sets.SETS, "mnist", only)
    with serving(real) as address:
        found = image_sets.fetch_set("mnist", tmp_path, url=address, told=lambda what: lambda done, total: None)
    np.testing.assert_array_equal(found["test"].images, load_images(real / name).images)
