"""compress, decompress and compressed from end to end, by a small flow: exact pictures, or one line and nothing."""

import dataclasses
import errno
import os
import struct
import subprocess
import sys
import threading
import zipfile
import zlib
from concurrent.futures import ThreadPoolExecutor
from pathlib import Path
from types import SimpleNamespace

import jax
import numpy as np
import pytest
from coded import resealed
from made_flow import SHAPE, fitting_flow, made_flow, made_pictures
from made_vae import CONFIG, made_vae
from PIL import Image

from vdbjax import compress, compressed, decompress, embedded_model, image_codec, train
from vdbjax.coding import archive, container, rans
from vdbjax.data.images import prepare_images
from vdbjax.data.picture_files import NamedPicture, read_pictures, to_png
from vdbjax.embedded_model import ImageModel
from vdbjax.flows import flowpp
from vdbjax.image_codec import Settings, codec_of, pack
from vdbjax.image_recipes import IMAGE_RECIPES
from vdbjax.images import vdvae
from vdbjax.other_codecs import bits_by_others

COMPILED = Settings(batch_size=4)


@pytest.fixture(scope="module")
def trained():
    return fitting_flow()


@pytest.fixture(scope="module")
def compiled(trained):
    return codec_of(trained, COMPILED)


@pytest.fixture(scope="module")
def two_pictures(trained, compiled):
    """A file of them, as bytes."""
    named = [NamedPicture(f"{i}.png", "RGB", pixels) for i, pixels in enumerate(made_pictures(2, (9, 20, 3)))]
    return container.to_bytes(pack(named, compiled)[0])


@pytest.fixture
def here(tmp_path, monkeypatch, trained, compiled):
    """A folder with a `run` whose flow is at hand, compiled, and with pictures of all kinds."""
    monkeypatch.chdir(tmp_path)
    (tmp_path / "run").mkdir()
    other = trained._replace(params=fitting_flow(seed=1).params)
    runs = {"run": trained, "other": other}

    def load(path):
        if str(path) in runs:
            return runs[str(path)]
        raise ValueError(f"{path} is not a run folder: it has no config.json")

    def codec(flow, settings):
        there = flow.params is trained.params and settings in (COMPILED, compiled.settings)
        return compiled if there else codec_of(flow, settings)

    for module in (compress, compressed, image_codec):
        monkeypatch.setattr(module, "load_model", load)
        monkeypatch.setattr(module, "codec_of", codec)
    write_pictures(tmp_path / "in")
    return tmp_path


def write_pictures(folder: Path) -> dict[str, Image.Image]:
    big = made_pictures(1, (19, 30, 3))[0]
    made = {f"deep/er/{i}.png": Image.fromarray(pixels) for i, pixels in enumerate(made_pictures(12))}
    made |= {
        "colour.png": Image.fromarray(big),
        "see through.png": Image.fromarray(np.dstack([big, big[..., 0]])),
        "grau ä.png": Image.fromarray(big[..., 1]),
    }
    for name, picture in made.items():
        (folder / name).parent.mkdir(parents=True, exist_ok=True)
        picture.save(folder / name)
    return made


def type_(monkeypatch, module, typed):
    monkeypatch.setattr(sys, "argv", [module.__name__, *typed.split()])
    module.main()


PIXELS = np.zeros((8, 8, 3), np.uint8)


@pytest.mark.parametrize(
    ("mode", "pixels"),
    [("RGB", PIXELS.astype(np.int64)), ("RGB", PIXELS / 255), ("L", PIXELS), ("RGB", PIXELS[..., 0]), ("CMYK", PIXELS)],
    ids=["int64", "floats", "too many channels", "no channels", "a mode that no file holds"],
)
def test_pixels_that_would_not_come_back_are_refused(compiled, mode, pixels):
    with pytest.raises(ValueError, match=f"a.png: pixels of mode {mode}, .* must be"):
        pack([NamedPicture("a.png", mode, pixels)], compiled)


def test_pictures_come_back_with_names_folders_modes_and_pixels(here, monkeypatch, capsys):
    (here / "in" / "notes.txt").write_text("kept apart")
    type_(monkeypatch, compress, "in --model run --out all.vdbx --batch-size 4 --compare")
    printed = capsys.readouterr().out
    assert "left out 1 files that are no pictures: in/notes.txt" in printed
    for word in ("theoretical", "net", "file", "PNG", "WebP", "MB/s"):
        assert word in printed
    type_(monkeypatch, decompress, "all.vdbx --out back --model run")
    expected = write_pictures(here / "expected")
    found = {file.relative_to("back").as_posix() for file in Path("back").rglob("*.png")}
    assert found == set(expected)
    for name, picture in expected.items():
        again = Image.open(here / "back" / name)
        assert again.mode == picture.mode
        np.testing.assert_array_equal(np.array(again), np.array(picture))
    type_(monkeypatch, compressed, "info all.vdbx")
    printed = capsys.readouterr().out
    assert "15 pictures" in printed
    assert "batches of (4, 8, 8, 3)" in printed
    type_(monkeypatch, compressed, "verify all.vdbx --model run")
    assert "15 pictures, all as their checksums say" in capsys.readouterr().out


@pytest.mark.long
def test_a_model_in_the_file_needs_no_run(here, monkeypatch, capsys):
    type_(monkeypatch, compress, "in/colour.png --model run --out one.vdbx --batch-size 4 --embed-model")
    parts = container.read("one.vdbx").parts
    inside = len(parts["model"]) + len(parts["parameters"])
    assert f"with names, checksums, the model's {inside} bytes and header" in capsys.readouterr().out
    type_(monkeypatch, decompress, "one.vdbx --out back")
    np.testing.assert_array_equal(np.array(Image.open("back/colour.png")), np.array(Image.open("in/colour.png")))


@pytest.mark.long
def test_a_vae_codes_too_and_has_no_sigma(here, monkeypatch, capsys):
    """By `made_vae`, whose means are about 128; with its parameters in the file and without."""
    vae = made_vae(channels=3)
    for module in (image_codec, compress):
        monkeypatch.setattr(module, "load_model", lambda path: vae)
    pixels = np.clip(np.random.default_rng(0).normal(128, 8, size=(40, *SHAPE)), 0, 255).astype(np.uint8)
    np.savez("set.npz", images=pixels)
    type_(monkeypatch, compress, "set.npz --model run --out own.vdbx --batch-size 4 --embed-model")
    assert "that the model codes" in capsys.readouterr().out
    assert container.read("own.vdbx").header.sigma is None
    type_(monkeypatch, decompress, "own.vdbx --out back")
    for index in range(40):
        np.testing.assert_array_equal(np.array(Image.open(f"back/{index:02}.png")), pixels[index])
    type_(monkeypatch, compress, "set.npz --model run --out coarse.vdbx --batch-size 4 --delta 0.9")
    type_(monkeypatch, compressed, "verify coarse.vdbx --model run")
    message = fails(monkeypatch, capsys, compress, "set.npz --model run --out no.vdbx --sigma 0.1")
    assert "sigma (0.1) is of a flow's noise, and the model is a VAE" in message
    message = fails(monkeypatch, capsys, compress, "set.npz --model run --out no.vdbx --delta 2")
    assert "delta (2.0) must be at least 2^-40 and below 1" in message


def test_a_model_that_gives_no_code_is_refused(monkeypatch):
    other = SimpleNamespace(model=object(), config=SimpleNamespace(recipe="gan"))
    monkeypatch.setattr(image_codec, "load_image_model", lambda path, iteration: other)
    with pytest.raises(ValueError, match="r is a run of recipe gan, which no image can be coded by"):
        image_codec.load_model("r")


@pytest.mark.long
def test_a_set_of_images_and_what_a_jpeg_holds(here, monkeypatch, capsys):
    np.savez("set.npz", images=made_pictures(11))
    Image.fromarray(made_pictures(1)[0]).save("photo.jpg")
    type_(monkeypatch, compress, "set.npz photo.jpg --model run --out set.vdbx --batch-size 4")
    assert "note: 1 pictures come back as PNG, under other names: photo.jpg.png" in capsys.readouterr().out
    type_(monkeypatch, decompress, "set.vdbx --out back --model run")
    assert sorted(os.listdir("back")) == [*(f"{i:02}.png" for i in range(11)), "photo.jpg.png"]
    np.testing.assert_array_equal(np.array(Image.open("back/photo.jpg.png")), np.array(Image.open("photo.jpg")))
    np.testing.assert_array_equal(np.array(Image.open("back/10.png")), made_pictures(11)[10])


def test_prepared_sets_and_names_are_numbered(here, monkeypatch):
    np.savez("set.npz", images=made_pictures(11))
    prepare_images("set.npz", "kept/ready")
    monkeypatch.setenv("VDBJAX_DATA", str(here / "kept"))
    for name in ("kept/ready", "ready"):
        found = read_pictures([Path(name)])
        assert [picture.name for picture in found.pictures] == [f"{i:02}.png" for i in range(11)]
        np.testing.assert_array_equal([picture.pixels for picture in found.pictures], made_pictures(11))


def test_a_zip_is_read_as_the_folder_it_holds(tmp_path):
    colour, clear = made_pictures(1)[0], np.zeros((3, 5, 4), np.uint8)
    with zipfile.ZipFile(tmp_path / "album.zip", "w") as archive:
        for name, pixels in (("a/colour.png", colour), ("clear.png", clear)):
            archive.writestr(name, to_png(pixels))
        archive.writestr("a/words.txt", "no picture")
        archive.writestr("__MACOSX/a/colour.png", "no picture either")
    found = read_pictures([tmp_path / "album.zip"])
    assert [(picture.name, picture.mode) for picture in found.pictures] == [
        ("a/colour.png", "RGB"),
        ("clear.png", "RGBA"),
    ]
    np.testing.assert_array_equal(found.pictures[0].pixels, colour)
    assert sorted(path.name for path in found.left_out) == ["colour.png", "words.txt"]
    (inside,) = read_pictures([tmp_path / "album.zip" / "a"]).pictures
    assert inside.name == "colour.png"


def test_members_of_a_zip_that_are_one_path_are_refused_and_none_is_lost(tmp_path):
    def with_names(*names):
        with zipfile.ZipFile(tmp_path / "album.zip", "w") as archive:
            for name in names:
                archive.writestr(name, to_png(made_pictures(1)[0]))
        return [tmp_path / "album.zip"]

    found = read_pictures(with_names("/a/b.png", "./c.png")).pictures
    assert [picture.name for picture in found] == ["a/b.png", "c.png"]
    for other in ("./b.png", "/b.png"):
        with pytest.raises(ValueError, match=r"album\.zip: holds 2 pictures b\.png; rename all but one"):
            read_pictures(with_names("b.png", other))


def test_what_a_path_holds_decides_not_how_it_is_called(tmp_path):
    (tmp_path / "cam.bin").mkdir()
    for name in ("cam.bin/cat.png", "picture"):
        (tmp_path / name).write_bytes(to_png(made_pictures(1)[0]))
    found = read_pictures([tmp_path / "cam.bin", tmp_path / "picture"])
    assert [picture.name for picture in found.pictures] == ["cat.png", "picture.png"]
    assert found.renamed == ["picture.png"]
    digits = bytes([0, 0, 8, 3]) + struct.pack(">3I", 2, 3, 3) + bytes(range(18))
    (tmp_path / "t10k-images-idx3-ubyte").write_bytes(digits)
    first, second = read_pictures([tmp_path / "t10k-images-idx3-ubyte"]).pictures
    assert (first.name, second.name) == ("0.png", "1.png")
    assert second.pixels[0, 0, 0] == 9


@pytest.mark.parametrize("sigma", [1e-19, 2e6])
def test_a_deviation_that_no_file_holds_is_refused_before_the_work(here, monkeypatch, capsys, sigma):
    said = fails(monkeypatch, capsys, compress, f"in --model run --out out.vdbx --batch-size 4 --sigma {sigma}")
    assert "sigma (" in said
    assert "must lie between 2^-60 and 2^20" in said
    assert "compressing" not in capsys.readouterr().err


def test_the_bound_takes_no_time_of_the_coding(compiled, monkeypatch):
    """Of a chunk by the model, on a clock that goes on where the bound is worked out alone."""
    now = [0.0]

    def bound(pixels, drawn):
        now[0] += 7.0
        return np.ones(len(pixels))

    monkeypatch.setattr(image_codec, "time", SimpleNamespace(monotonic=lambda: now[0]))
    chunk = archive.Chunk(archive.Kind.MODEL, 2, 4)
    coded = archive.Coded(rans.empty(4), chunk, np.zeros((2, *SHAPE), np.int64), None, 9.0, 0.0, 1.0, 2.0)
    report = image_codec._added(image_codec.Report(), coded, compiled._replace(theoretical_bits=bound))
    assert (report.bound_seconds, report.encode_seconds, report.theoretical_bits) == (7.0, 1.0, 2.0)


def test_webp_keeps_what_lies_under_transparent_pixels_and_is_left_out_of_a_panorama():
    noise = np.random.default_rng(0).integers(0, 256, (32, 32, 4), dtype=np.uint8)
    noise[..., 3] = 0
    assert bits_by_others([noise])["WebP"] > 5 * noise.size
    assert "WebP" not in bits_by_others([np.zeros((1, 16_384, 1), np.uint8)])


def test_a_table_without_the_model_says_why():
    lines = compress.table(image_codec.Report(samples=100, all_bits=500.0), 80, seconds=1.0)
    assert any(line.startswith("note: all went by the plain codec: no picture holds a tile") for line in lines)
    lines = compress.table(image_codec.Report(samples=100, in_tiles=50, all_bits=500.0), 80, seconds=1.0)
    assert any(line.startswith("note: all went by the plain codec: the pictures are too few") for line in lines)
    lines = compress.table(image_codec.Report(samples=100, outdone=2, all_bits=500.0), 80, seconds=1.0)
    assert any(line.startswith("note: 2 chunks went by the plain codec, which needs fewer bits") for line in lines)


@pytest.mark.long
def test_what_files_cost(here, monkeypatch, capsys):
    type_(monkeypatch, compressed, "bench in --model run --counts 1 3 --batch-size 4")
    lines = capsys.readouterr().out.splitlines()
    assert [line.split(":")[0].strip() for line in lines] == ["1 pictures", "3 pictures"]


def fails(monkeypatch, capsys, module, typed):
    """The one line of a command that must fail, after any of its progress."""
    with pytest.raises(SystemExit) as stop:
        type_(monkeypatch, module, typed)
    lines = capsys.readouterr().err.splitlines()
    error = [line for line in lines if not line.startswith("note: ") and not line.endswith(" left")]
    assert stop.value.code == 2
    assert len(error) == 1
    assert error[0].startswith("error: ")
    return error[0]


def write_bad(folder: Path) -> None:
    folder.mkdir()
    (folder / "text.png").write_text("no picture")
    Image.fromarray(np.zeros((4, 4), np.uint16)).save(folder / "grey16.png")
    frames = [Image.fromarray(np.full((4, 4), level, np.uint8)) for level in (0, 200)]
    frames[0].save(folder / "moving.gif", save_all=True, append_images=frames[1:])
    frames[0].save(folder / "moving.png", save_all=True, append_images=frames[1:])
    rows = b"".join(b"\0" + bytes(6 * 2) for _ in range(2))
    header = struct.pack(">2I5B", 2, 2, 16, 2, 0, 0, 0)
    chunks = [(b"IHDR", header), (b"IDAT", zlib.compress(rows)), (b"IEND", b"")]
    body = b"".join(struct.pack(">I", len(d)) + k + d + struct.pack(">I", zlib.crc32(k + d)) for k, d in chunks)
    (folder / "rgb16.png").write_bytes(b"\x89PNG\r\n\x1a\n" + body)
    whole = (folder / "moving.png").read_bytes()
    (folder / "cut.png").write_bytes(whole[: len(whole) // 2])
    (folder / "empty").mkdir()


BAD_PICTURES = {
    "text": ("bad/text.png", "text.png: not a PNG or JPEG file"),
    "16 bits, grey": ("bad/grey16.png", "grey16.png: 16 bits a channel"),
    "16 bits, colour": ("bad/rgb16.png", "rgb16.png: 16 bits a channel"),
    "an animated GIF": ("bad/moving.gif", "moving.gif: animated"),
    "an animated PNG": ("bad/moving.png", "moving.png: animated"),
    "cut off": ("bad/cut.png", "cut.png: "),
    "several": (
        "bad",
        "cut.png: not a PNG or JPEG file; 5 of 5 pictures cannot be read, the others are grey16.png, moving.png",
    ),
    "none": ("bad/empty", "bad/empty: no PNG or JPEG files"),
    "nothing": ("", "no pictures are named; name at least one folder, zip or picture"),
    "absent": ("absent.png", "absent.png: no such file"),
    "two of one name": ("in/colour.png in/colour.png", "2 pictures would come back as colour.png; rename all but one"),
}


@pytest.mark.parametrize(("typed", "message"), BAD_PICTURES.values(), ids=BAD_PICTURES.keys())
def test_pictures_that_cannot_be_compressed(here, monkeypatch, capsys, typed, message):
    write_bad(here / "bad")
    assert message in fails(monkeypatch, capsys, compress, f"{typed} --model run --out out.vdbx --batch-size 4")
    assert not (here / "out.vdbx").exists()


BAD_OPTIONS = {
    "no run": ("--model nowhere --out out.vdbx", "nowhere is not a run folder"),
    "no batch": ("--model run --out out.vdbx --batch-size 0", "batch_size (0) must lie between 1 and 4096"),
    "a delta of no power of two": (
        "--model run --out out.vdbx --batch-size 4 --delta 0.3",
        "delta (0.3) must be a power of two",
    ),
    "no delta": ("--model run --out out.vdbx --batch-size 4 --delta 0", "delta (0.0) must be above 0"),
    "no folder": ("--model run --out none/out.vdbx", "none does not exist"),
    "a folder": ("--model run --out in", "in is a folder"),
    "a file that is there": ("--model run --out in/colour.png", "in/colour.png exists; choose another name"),
}


@pytest.mark.parametrize(("typed", "message"), BAD_OPTIONS.values(), ids=BAD_OPTIONS.keys())
def test_options_that_cannot_work(here, monkeypatch, capsys, typed, message):
    assert message in fails(monkeypatch, capsys, compress, f"in {typed}")
    assert not (here / "out.vdbx").exists()


@pytest.fixture
def small(here, two_pictures):
    """The file."""
    (here / "small.vdbx").write_bytes(two_pictures)
    return here / "small.vdbx"


def rewritten(data: bytes, **changes) -> bytes:
    found = container.from_bytes(data)
    return container.to_bytes(found._replace(header=found.header._replace(**changes)))


def swapped(data: bytes) -> bytes:
    found = container.from_bytes(data)
    return container.to_bytes(found._replace(images=found.images[::-1]))


def torn(data: bytes) -> bytes:
    found = container.from_bytes(data)
    message = bytearray(found.parts["message"])
    message[len(message) // 2] ^= 1
    return container.to_bytes(found._replace(parts={**found.parts, "message": bytes(message)}))


def short(data: bytes) -> bytes:
    found = container.from_bytes(data)
    return container.to_bytes(found._replace(parts={**found.parts, "message": found.parts["message"][:-400]}))


def huge(data: bytes) -> bytes:
    """The header's length too is what it says."""
    header = data.replace(b"[4,8,8,3]", b"[4,8,8,%d]" % 2**60)
    (length,) = struct.unpack_from("<I", header, 16)
    return resealed(header[:16] + struct.pack("<I", length + len(header) - len(data)) + header[20:])


BAD_FILES = {
    "empty": (lambda data: b"", "the file is empty"),
    "foreign": (lambda data: b"\x89PNG\r\n\x1a\n" + data, "not a file of compressed images"),
    "cut off": (lambda data: data[:-30], "damaged or cut off"),
    "a bit": (lambda data: data[:200] + bytes([data[200] ^ 4]) + data[201:], "its checksum does not match"),
    "a bit, sealed again": (torn, "the file is whole, so either its networks round otherwise here"),
    "a message cut off": (short, "do not come back"),
    "pictures in another order": (swapped, "do not come back"),
    "another model": (lambda data: rewritten(data, model_digest="0" * 64), "the file is of model 000000000000"),
    "other tiles": (lambda data: rewritten(data, batch_shape=(4, 16, 16, 3)), "tiles (16, 16, 3)"),
    "a batch of 2^24": (lambda data: rewritten(data, batch_shape=(2**20, *SHAPE)), "batch_size (1048576) must lie"),
    "a size of 2^60": (huge, "no batch_shape: (4, 8, 8, 1152921504606846976)"),
    "another delta": (lambda data: rewritten(data, delta=2.0**-60), "delta"),
}


@pytest.mark.parametrize(("change", "message"), BAD_FILES.values(), ids=BAD_FILES.keys())
def test_files_that_are_none(small, monkeypatch, capsys, change, message):
    small.write_bytes(change(small.read_bytes()))
    assert message in fails(monkeypatch, capsys, decompress, "small.vdbx --out back --model run")
    assert not Path("back").exists()


def test_the_wrong_run_and_no_run_are_refused(small, monkeypatch, capsys):
    assert "the file is of model" in fails(monkeypatch, capsys, decompress, "small.vdbx --out back --model other")
    assert "name the run" in fails(monkeypatch, capsys, decompress, "small.vdbx --out back")


def test_another_jax_version_is_told_and_tried(small, monkeypatch, capsys):
    """The same numbers here, so that the pictures come back."""
    small.write_bytes(rewritten(small.read_bytes(), jax_version="0.9.9"))
    type_(monkeypatch, decompress, "small.vdbx --out back --model run")
    assert "made elsewhere (jax 0.9.9 there" in capsys.readouterr().err
    assert len(os.listdir("back")) == 2


def test_a_file_is_held_against_what_it_says_of_its_machine(compiled):
    header = compiled.header
    kind, jaxlib, instructions = header.device_kind.split("; ")
    assert image_codec.differences(header) == ""
    assert image_codec.differences(header._replace(device_kind=kind)) == ""  # all that files said before
    other = header._replace(device_kind=f"{kind}; {jaxlib}; instructions avx")
    assert image_codec.differences(other) == f"instructions avx there, {instructions} here"


def test_an_embedded_model_that_is_none_is_refused(trained):
    parts = embedded_model.to_parts(trained)
    again = embedded_model.from_parts(parts)
    assert embedded_model.digest(again.params) == embedded_model.digest(trained.params)
    assert again.config == trained.config
    huge = dataclasses.replace(trained.config, blocks=10**9)
    bad = [
        {**parts, "model": b"none"},
        {**parts, "model": b"[]"},
        {**parts, "model": parts["model"].replace(b'"flow"', b'"none"')},
        {**parts, "model": parts["model"].replace(b'"filters":4', b'"filters":"x"')},
        {**parts, "parameters": parts["parameters"][:-4]},
        {"model": parts["model"]},
        *({**parts, "model": parts["model"].replace(b"[8,8,3]", shape)} for shape in (b"[8,8,0]", b"[-8,8,3]")),
        embedded_model.to_parts(trained._replace(config=huge)),
    ]
    for each in bad:
        with pytest.raises(container.ContainerError, match="the model inside the file"):
            embedded_model.from_parts(each)


@pytest.mark.parametrize("scan", [True, False])
def test_an_embedded_model_gets_memory_for_its_latents(scan):
    """A few parameters can stand for any number of them, in one array or in many."""
    wide = dataclasses.replace(
        CONFIG, resolutions=(1, 512), layers=(1, 10), encoder_blocks=(1, 1), width=1, latents=64, scan=scan
    )
    latents = vdvae.build_model(wide, (512, 512, 3))
    like = jax.eval_shape(latents.init, jax.random.key(0), jax.ShapeDtypeStruct((1, 512, 512, 3), np.uint8))
    hostile = ImageModel(wide, latents, jax.tree.map(lambda leaf: np.zeros(leaf.shape, leaf.dtype), like))
    header = container.Header("0" * 64, "0.10", "cpu", "float32", (1, 512, 512, 3), None, 0.1, 4)
    found = container.Container(header, [], embedded_model.to_parts(hostile))
    with pytest.raises(container.ContainerError, match="with batches of 1 the model needs arrays of 640 MiB"):
        image_codec.opened(found, None)


def test_an_embedded_model_gets_memory_for_attention(trained):
    """A few parameters can compare any number of pairs of places."""
    attending = dataclasses.replace(trained.config, attention=True)
    with pytest.raises(container.ContainerError, match="needs arrays of 512 MiB"):
        embedded_model.check_memory(made_flow(attending, (128, 256, 3)), 1)
    embedded_model.check_memory(trained, image_codec.MAX_BATCH)


@pytest.mark.parametrize("name", [name for name in IMAGE_RECIPES if name.startswith(("flowpp", "vdvae"))])
@pytest.mark.slow
def test_recipes_fit_into_files_with_batches_of_64(name):
    config = IMAGE_RECIPES[name].config.algorithm
    side = 64 if "64" in name else 32
    model = (flowpp if name.startswith("flowpp") else vdvae).build_model(config, (side, side, 3))
    like = jax.eval_shape(model.init, jax.random.key(0), jax.ShapeDtypeStruct((2, side, side, 3), np.uint8))
    embedded_model.check_memory(ImageModel(config, model, like), 64)


@pytest.mark.long
def test_a_full_disk_leaves_nothing(small, monkeypatch, capsys):
    def full(*arguments, **options):
        raise OSError(errno.ENOSPC, "No space left on device")

    as_usual, decompressing = Path.open, "small.vdbx --out back --model run"

    def new_files_full(path, mode="r", *rest, **options):
        return full() if "x" in mode else as_usual(path, mode, *rest, **options)

    with monkeypatch.context() as patch:
        patch.setattr(Path, "open", new_files_full)
        assert "cannot write back: No space left" in fails(patch, capsys, decompress, decompressing)
    monkeypatch.setattr(os, "fsync", full)
    typed = "in/colour.png --model run --out full.vdbx --batch-size 4"
    assert "cannot write full.vdbx: No space left" in fails(monkeypatch, capsys, compress, typed)
    assert sorted(os.listdir()) == ["in", "run", "small.vdbx"]


def test_what_a_killed_process_left_is_not_among_the_pictures(tmp_path):
    left = tmp_path / ".vdbjax-0.partial"
    left.mkdir()
    (left / "stale.png").write_bytes(b"")
    decompress.write_pictures(tmp_path / "back", ["a.png"], list(made_pictures(1)))
    assert os.listdir(tmp_path / "back") == ["a.png"]
    with pytest.raises(container.ContainerError, match="cannot write"):  # so are a.png and A.png on some disks
        decompress.write_pictures(tmp_path / "twice", ["a.png", "a.png"], list(made_pictures(2)))
    assert sorted(os.listdir(tmp_path)) == [left.name, "back"]


def test_processes_of_one_number_do_not_meet(tmp_path, monkeypatch):
    """As containers have them, whose processes are all called 1."""
    within = threading.Barrier(2, timeout=60)

    def slowly(pixels):
        within.wait()  # both folders are half-written
        return to_png(pixels)

    monkeypatch.setattr(decompress, "to_png", slowly)
    with ThreadPoolExecutor(2) as pool:
        names = {"a": ["0.png", "1.png"], "b": ["2.png", "3.png"]}
        for done in [
            pool.submit(decompress.write_pictures, tmp_path / out, given, list(made_pictures(2)))
            for out, given in names.items()
        ]:
            done.result()
    assert {out: sorted(os.listdir(tmp_path / out)) for out in names} == names


def test_a_target_that_is_there_stays(small, monkeypatch, capsys):
    assert "in exists; name another folder" in fails(monkeypatch, capsys, decompress, "small.vdbx --out in --model run")
    assert "none does not exist" in fails(monkeypatch, capsys, decompress, "small.vdbx --out none/back --model run")


@pytest.mark.long
def test_a_file_outlives_further_training_of_its_run(tmp_path, monkeypatch, capsys):
    """One device, as the mesh that the command sets would outlive it."""
    monkeypatch.chdir(tmp_path)
    for name in ("use_all_devices", "start_processes"):
        monkeypatch.setattr(train, name, lambda: None)
    np.savez("set.npz", images=made_pictures(40))
    sizes = "--filters 4 --blocks 1 --mixtures 2 --batch-size 8 --init-images 16 --layers columns"
    rest = "--validation-images 8 --evaluations 1 --checkpoint-seconds 0"
    type_(monkeypatch, train, f"flowpp-small --data set.npz --out run {sizes} {rest} --iterations 2")
    type_(monkeypatch, compress, "set.npz --model run --out set.vdbx --batch-size 4")
    type_(monkeypatch, train, "--resume run --iterations 7")
    assert sorted(path.name for path in Path("run/checkpoints").iterdir()) == ["2", "5", "6", "7", "pinned-2"]
    capsys.readouterr()
    type_(monkeypatch, compressed, "verify set.vdbx --model run")
    assert "40 pictures, all as their checksums say" in capsys.readouterr().out
    Path("run/checkpoints/pinned-2").unlink()
    assert "which run does not hold" in fails(monkeypatch, capsys, compressed, "verify set.vdbx --model run")


def test_a_run_that_cannot_be_written_is_told_of(here, trained, monkeypatch, capsys):
    monkeypatch.setattr(compress, "load_model", lambda path: trained._replace(iteration=7))  # run has no checkpoints
    Image.fromarray(made_pictures(1)[0, ..., 0]).save("grey.png")  # which the flow has no part in
    type_(monkeypatch, compress, "grey.png --model run --out one.vdbx --batch-size 4")
    assert "warning: run cannot be written (No such file" in capsys.readouterr().out


def test_a_checkpoint_that_goes_while_it_is_loaded_is_not_what_the_file_needs(here, trained, monkeypatch, capsys):
    """As under a run that is being trained."""
    loaded, pinned = iter([3, 5]), []

    def pin(run, iteration):
        pinned.append(iteration)
        return iteration == 5

    monkeypatch.setattr(compress, "load_model", lambda path: trained._replace(iteration=next(loaded)))
    monkeypatch.setattr(compress, "pin_checkpoint", pin)
    type_(monkeypatch, compress, "in/colour.png --model run --out one.vdbx --batch-size 4")
    assert pinned == [3, 5]
    assert "warning" not in capsys.readouterr().out


def test_names_do_not_drive_the_terminal(here, monkeypatch, capsys):
    Image.fromarray(made_pictures(1)[0]).save("in/\x1b[2Jname\n.png")
    type_(monkeypatch, compress, "in --model run --out names.vdbx --batch-size 4")
    capsys.readouterr()
    type_(monkeypatch, compressed, "info names.vdbx")
    printed = capsys.readouterr().out
    assert r"\x1b[2Jname\n.png" in printed
    assert "\x1b" not in printed


@pytest.mark.slow
def test_another_process_and_other_threads_decode_a_trained_run(tmp_path):
    """Trained, compressed and decompressed by processes of their own, the last ones on one thread and on two."""
    np.savez(tmp_path / "set.npz", images=made_pictures(60))
    sizes = "--filters 4 --blocks 1 --mixtures 2 --batch-size 8 --init-images 16 --layers depth columns channels"
    rest = "--validation-images 8 --iterations 20 --evaluations 1"

    def command(typed, **environment):
        done = subprocess.run(
            [sys.executable, "-m", *typed.split()],
            cwd=tmp_path,
            env={**os.environ, "PYTHONPATH": str(Path(compress.__file__).parents[1]), **environment},
            capture_output=True,
            text=True,
        )
        assert done.returncode == 0, done.stderr
        return done.stdout

    command(f"vdbjax.train flowpp-small --data set.npz --out run {sizes} {rest}", JAX_NUM_CPU_DEVICES="1")
    command("vdbjax.compress set.npz --model run --out set.vdbx")
    flags = os.environ.get("XLA_FLAGS", "")  # those that the file was made with, and one thread
    one = {"XLA_FLAGS": f"{flags} --xla_cpu_multi_thread_eigen=false", "OMP_NUM_THREADS": "1"}
    one["OPENBLAS_NUM_THREADS"] = "1"
    for environment in (one, {"OMP_NUM_THREADS": "2", "OPENBLAS_NUM_THREADS": "2"}):
        found = command("vdbjax.compressed verify set.vdbx --model run", **environment)
        assert "60 pictures, all as their checksums say" in found
