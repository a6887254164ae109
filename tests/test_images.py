"""Image sets: every format gives the same pixels and labels, and what cannot be used is refused in one line."""

import gzip
import io
import os
import pickle
import struct
import zipfile
import zlib
from pathlib import Path

import numpy as np
import pytest
from PIL import Image

from vdbjax.data import batches
from vdbjax.data.batches import shuffled_batches
from vdbjax.data.images import ImageError, load_images, prepare_images
from vdbjax.data.picture_files import read_pictures

DRAW = np.random.default_rng(0)
PIXELS = DRAW.integers(0, 256, size=(6, 32, 32, 3), dtype=np.uint8)
LABELS = np.array([0, 0, 0, 1, 1, 1])


def png(pixels, **options):
    stream = io.BytesIO()
    Image.fromarray(pixels).save(stream, "PNG", **options)
    return stream.getvalue()


def write_folder(path):
    for i, (pixels, label) in enumerate(zip(PIXELS, LABELS)):
        file = path / ("cat", "dog")[label] / f"{i}.png"
        file.parent.mkdir(parents=True, exist_ok=True)
        file.write_bytes(png(pixels))
    (path / "notes.txt").write_text("not a picture, and not in the way")
    return path


def write_zip(path):
    write_folder(path / "files")
    with zipfile.ZipFile(path / "set.zip", "w") as archive:
        for file in (path / "files").rglob("*.png"):
            archive.write(file, "train" / file.relative_to(path / "files"))
        archive.writestr("test/cat/9.png", png(PIXELS[0]))
    return path / "set.zip" / "train"


def write_npz(path):
    np.savez(path / "set.npz", images=PIXELS, labels=LABELS)
    return path / "set.npz"


def planes():
    return PIXELS.transpose(0, 3, 1, 2).reshape(6, -1)


def write_cifar_binary(path):
    for name, half in (("data_batch_1.bin", slice(0, 3)), ("data_batch_2.bin", slice(3, 6))):
        (path / name).write_bytes(np.concatenate([LABELS[half, None].astype(np.uint8), planes()[half]], 1).tobytes())
    return path


def write_cifar_python(path):
    """As Python 2 left them: names and labels are bytes and a list."""
    (path / "test_batch").write_bytes(pickle.dumps({b"data": planes(), b"labels": LABELS.tolist()}, protocol=2))
    return path / "test_batch"


def write_prepared(path):
    prepare_images(write_folder(path / "files"), path / "ready")
    return path / "ready"


FORMATS = {
    "folder": write_folder,
    "folder in a zip": write_zip,
    "npz": write_npz,
    "CIFAR-10, binary": write_cifar_binary,
    "CIFAR-10, Python": write_cifar_python,
    "prepared": write_prepared,
}


@pytest.mark.parametrize("write", FORMATS.values(), ids=FORMATS.keys())
def test_every_format_gives_the_same_set(write, tmp_path):
    found = load_images(write(tmp_path))
    assert found.images.dtype == np.uint8
    np.testing.assert_array_equal(found.images, PIXELS)
    np.testing.assert_array_equal(found.labels, LABELS)
    assert found.policy == "pixels as stored"


def test_idx_holds_grey_images(tmp_path):
    grey = PIXELS[..., 0]
    content = bytes([0, 0, 8, 3]) + struct.pack(">3I", *grey.shape) + grey.tobytes()
    (tmp_path / "t10k-images-idx3-ubyte.gz").write_bytes(gzip.compress(content))
    found = load_images(tmp_path / "t10k-images-idx3-ubyte.gz")
    np.testing.assert_array_equal(found.images, grey[..., None])
    assert found.labels is None


def test_a_prepared_set_is_a_memmap_and_remembers_what_was_done(tmp_path):
    write_folder(tmp_path / "files")
    found = prepare_images(tmp_path / "files", tmp_path / "ready", size=16)
    assert isinstance(found.images, np.memmap)
    assert found.images.shape == (6, 16, 16, 3)
    assert found.policy == "cropped to the central square, area-averaged to 16 x 16"
    assert found.label_names == ("cat", "dog")
    expected = PIXELS.reshape(6, 16, 2, 16, 2, 3).mean((2, 4))
    assert np.max(np.abs(found.images - expected)) <= 1.0  # each axis is rounded on its own
    with pytest.raises(ImageError, match="exists already"):
        prepare_images(tmp_path / "files", tmp_path / "ready")


def test_pictures_of_any_size_are_cropped_in_the_middle(tmp_path):
    wide = np.zeros((4, 8, 3), np.uint8)
    wide[:, 2:6] = 200
    (tmp_path / "a.png").write_bytes(png(wide))
    (tmp_path / "b.png").write_bytes(png(np.full((4, 4, 3), 100, np.uint8)))
    found = load_images(tmp_path, size=4)
    np.testing.assert_array_equal(found.images[:, 0, 0, 0], [200, 100])
    assert found.labels is None


def animated():
    stream = io.BytesIO()
    frames = [Image.fromarray(pixels) for pixels in PIXELS[:2]]
    frames[0].save(stream, "PNG", save_all=True, append_images=frames[1:])
    return stream.getvalue()


def several():
    stream = io.BytesIO()
    Image.fromarray(PIXELS[0]).save(stream, "MPO", save_all=True, append_images=[Image.fromarray(PIXELS[1])])
    return stream.getvalue()


def of_version_99(content):
    start = content.index(b"PK\x01\x02") + 6
    return content[:start] + bytes([99, 0]) + content[start + 2 :]


def chunk(kind, content):
    return struct.pack(">I", len(content)) + kind + content + struct.pack(">I", zlib.crc32(kind + content))


def raw_png(depth, colour_type, rows, *others):
    """A PNG of raw rows, 4 x 4, of kinds that Pillow does not write."""
    header = struct.pack(">2I5B", 4, 4, depth, colour_type, 0, 0, 0)
    packed = zlib.compress(b"".join(b"\0" + row for row in rows))
    return b"\x89PNG\r\n\x1a\n" + b"".join(
        [chunk(b"IHDR", header), *others, chunk(b"IDAT", packed), chunk(b"IEND", b"")]
    )


def png16():
    return raw_png(16, 2, [bytes(24)] * 4)


def zipped(members):
    stream = io.BytesIO()
    with zipfile.ZipFile(stream, "w", zipfile.ZIP_DEFLATED) as archive:
        for name, content in members.items():
            archive.writestr(name, content)
    return stream.getvalue()


def spoilt(content):
    start = content.index(b"a.png") + 5
    return content[:start] + b"\xff" * 20 + content[start + 20 :]


BAD = {
    "no such path": ("absent", None, "absent: no such file or folder"),
    "text": ("a.txt", b"hello", "not a set of images; give a folder or zip"),
    "empty zip": ("a.zip", b"", "not a zip file, or cut off"),
    "cut zip": ("a.zip", b"PK\x03\x04" + bytes(50), "not a zip file, or cut off"),
    "text called .npz": ("a.npz", b"hello", "not an .npz file, damaged, or with pickled members"),
    "text called .png": ("s/a.png", b"hello", "a.png: not a PNG or JPEG file"),
    "cut png": ("s/a.png", png(PIXELS[0])[:500], "a.png: damaged or cut off"),
    "zeros at the end of a png": ("s/a.png", png(PIXELS[0])[:-99] + bytes(99), "a.png: damaged or cut off"),
    "several pictures in a jpeg": ("s/a.jpg", several(), "a.jpg: several pictures in one; only single"),
    "a zip of the future": (
        "a.zip",
        of_version_99(zipped({"a.png": b""})),
        "not a zip file, or cut off (zip file version",
    ),
    "16 bits": ("s/a.png", png(np.zeros((4, 4), np.uint16)), "a.png: 16 bits a channel; only 8-bit"),
    "16 bits, colour": ("s/a.png", png16(), "a.png: 16 bits a channel; only 8-bit"),
    "16 bits, in a zip": ("a.zip", zipped({"a.png": png16()}), "a.png: 16 bits a channel; only 8-bit"),
    "spoilt in a zip": ("a.zip", spoilt(zipped({"a.png": bytes(range(256)) * 9})), "a.png is damaged or encrypted"),
    "transparent": ("s/a.png", png(np.zeros((4, 4, 4), np.uint8)), "a.png: transparent; only 8-bit"),
    "animated": ("s/a.png", animated(), "a.png: animated; only single pictures"),
    "no pictures": ("s/a.txt", b"hello", "s: holds no PNG or JPEG files"),
    "cut gzip": ("a.gz", gzip.compress(bytes(1000))[:-20], "a.gz: not a gzip file, or cut off"),
    "idx of floats": ("a.idx", bytes([0, 0, 13, 3]) + bytes(12), "not an idx file of uint8 images"),
    "cut idx": ("a.idx", bytes([0, 0, 8, 3]) + struct.pack(">3I", 2, 4, 4) + bytes(9), "holds 9 bytes of images, its"),
    "idx of 2^60": ("a.idx", bytes([0, 0, 8, 3]) + struct.pack(">3I", 2**20, 2**20, 2**20), "holds 0 bytes"),
    "cut CIFAR": ("data_batch_1.bin", bytes(3072), "3072 bytes are no whole number of"),
    "a pickle that runs code": ("test_batch", pickle.dumps(os.getcwd, 2), "getcwd is not allowed"),
}


@pytest.mark.parametrize(("name", "content", "message"), BAD.values(), ids=BAD.keys())
def test_what_cannot_be_used_is_refused_in_one_line(name, content, message, tmp_path):
    path = tmp_path / name
    if content is not None:
        path.parent.mkdir(exist_ok=True)
        path.write_bytes(content)
    with pytest.raises(ImageError) as error:
        load_images(tmp_path / Path(name).parts[0])
    assert message in str(error.value)
    assert "\n" not in str(error.value)


@pytest.mark.filterwarnings("error")
def test_large_pictures_are_read_in_silence_and_much_larger_ones_refused(tmp_path, monkeypatch):
    monkeypatch.setattr(Image, "MAX_IMAGE_PIXELS", 1_000)
    (tmp_path / "a.png").write_bytes(png(np.zeros((40, 40), np.uint8)))
    assert load_images(tmp_path).images.shape == (1, 40, 40, 1)
    (tmp_path / "a.png").write_bytes(png(np.zeros((50, 50), np.uint8)))
    with pytest.raises(ImageError, match=r"a.png: larger than 2,000 pixels; cut it up first"):
        load_images(tmp_path)


def test_pictures_of_one_bit_are_black_and_white(tmp_path):
    (tmp_path / "a.png").write_bytes(png(np.eye(8, dtype=bool)))
    np.testing.assert_array_equal(load_images(tmp_path).images[0, :, :, 0], 255 * np.eye(8))


def test_grey_among_colour_is_no_matter_of_size(tmp_path):
    for name, pixels in (("a.png", PIXELS[0]), ("b.png", PIXELS[0, :, :, 0])):
        (tmp_path / name).write_bytes(png(pixels))
    with pytest.raises(ImageError, match="make all grey, or all RGB"):
        load_images(tmp_path, size=16)


@pytest.mark.parametrize("content", [b"", b"\x93NUMPY\x01\x00\x10\x00{((((((((((((((("], ids=["empty", "garbled"])
def test_a_prepared_set_that_is_damaged_is_refused(tmp_path, content):
    write_folder(tmp_path / "files")
    prepare_images(tmp_path / "files", tmp_path / "ready")
    (tmp_path / "ready" / "images.npy").write_bytes(content)
    with pytest.raises(ImageError, match="not a prepared image set, or damaged"):
        load_images(tmp_path / "ready")


def test_two_sizes_need_one_named(tmp_path):
    for name, side in (("a.png", 4), ("b.png", 6)):
        (tmp_path / name).write_bytes(png(np.zeros((side, side, 3), np.uint8)))
    with pytest.raises(ImageError, match=r"b\.png: 6 x 6 with 3 channels, but a\.png is 4 x 4 .* give a size"):
        load_images(tmp_path)


@pytest.mark.parametrize(
    ("members", "message"),
    [
        ({"pixels": PIXELS}, "has no array called images, only pixels"),
        ({"images": PIXELS.astype(float)}, "type float64, not"),
        ({"images": PIXELS[:0]}, "holds no images"),
        ({"images": PIXELS, "labels": LABELS[:2]}, "labels of shape (2,)"),
        ({"images": np.array([{}])}, "with pickled members"),
        ({"images": PIXELS, "labels": LABELS - 1}, "label -1 is below 0"),
        ({"data": planes(), "labels": LABELS}, "label 0 is below 1"),
        ({"data": planes(), "labels": np.array(["cat"] * 6)}, "type <U3 for 6 images"),
        ({"data": np.uint8(3), "labels": LABELS}, "an array of shape () holds no rows"),
    ],
)
def test_an_npz_of_something_else_is_refused(members, message, tmp_path):
    np.savez(tmp_path / "a.npz", **members)
    with pytest.raises(ImageError) as error:
        load_images(tmp_path / "a.npz")
    assert message in str(error.value)


def test_batches_of_which_some_have_labels_are_refused(tmp_path):
    np.savez(tmp_path / "train_data_batch_1.npz", data=planes(), labels=LABELS + 1)
    np.savez(tmp_path / "train_data_batch_2.npz", images=PIXELS)
    with pytest.raises(ImageError, match="one has labels and the other none"):
        load_images(tmp_path)


@pytest.mark.parametrize("odd", [PIXELS.astype(float), PIXELS[:5], PIXELS[..., 0]], ids=["float", "short", "flat"])
def test_a_prepared_set_that_was_changed_is_refused(odd, tmp_path):
    prepare_images(write_npz(tmp_path), tmp_path / "ready")
    np.save(tmp_path / "ready" / "images.npy", odd)
    with pytest.raises(ImageError, match=r"ready: (images have|labels of) shape"):
        load_images(tmp_path / "ready")


def test_names_in_a_zip_may_begin_with_a_dot(tmp_path):
    (tmp_path / "a.zip").write_bytes(zipped({"./cat/0.png": png(PIXELS[0]), "./dog/1.png": png(PIXELS[1])}))
    found = load_images(tmp_path / "a.zip")
    np.testing.assert_array_equal(found.images, PIXELS[:2])
    assert found.label_names == ("cat", "dog")
    np.testing.assert_array_equal(load_images(tmp_path / "a.zip" / "dog").images, PIXELS[1:2])


def test_links_to_folders_are_followed_once(tmp_path):
    write_folder(tmp_path / "files")
    (tmp_path / "set").mkdir()
    (tmp_path / "set" / "all").symlink_to(tmp_path / "files")
    np.testing.assert_array_equal(load_images(tmp_path / "set").images, PIXELS)
    (tmp_path / "set" / "again").symlink_to(tmp_path / "set")
    with pytest.raises(ImageError, match="which is in the folder already"):
        load_images(tmp_path / "set")


def test_what_is_no_file_is_not_waited_for(tmp_path):
    write_folder(tmp_path / "files")
    os.mkfifo(tmp_path / "files" / "cat" / "pipe.png")
    assert len(load_images(tmp_path / "files").images) == len(PIXELS)


def test_a_link_that_leads_nowhere_is_no_picture_left_out(tmp_path):
    (tmp_path / "gone.png").symlink_to(tmp_path / "nothing")
    with pytest.raises(ImageError, match=r"no such file"):
        read_pictures([tmp_path])


@pytest.mark.parametrize(("depth", "row"), [(1, b"\x40"), (2, b"\x1b"), (4, b"\x05\xff"), (8, b"\0\5\5\1")])
def test_one_grey_of_few_bits_may_be_transparent(tmp_path, depth, row):
    """The pixel of value 1 in the rows of 1 and 2 bits, of 5 in the others."""
    value = 1 if depth < 4 else 5
    (tmp_path / "a.png").write_bytes(raw_png(depth, 0, [row] * 4, chunk(b"tRNS", struct.pack(">H", value))))
    (picture,) = read_pictures([tmp_path]).pictures
    grey = np.unpackbits(np.frombuffer(row, np.uint8)).reshape(-1, depth)[:4] @ (2 ** np.arange(depth)[::-1])
    np.testing.assert_array_equal(picture.pixels[0, :, 3], np.where(grey == value, 0, 255))
    np.testing.assert_array_equal(picture.pixels[0, :, 0], grey * (255 // (2**depth - 1)))


def test_grey_with_transparency_is_kept_whole(tmp_path):
    grey, alpha = np.arange(16, dtype=np.uint8).reshape(4, 4), np.arange(0, 160, 10, dtype=np.uint8).reshape(4, 4)
    Image.fromarray(np.stack([grey, alpha], axis=-1), "LA").save(tmp_path / "a.png")
    (picture,) = read_pictures([tmp_path]).pictures
    assert picture.mode == "RGBA"
    np.testing.assert_array_equal(picture.pixels, np.stack([grey, grey, grey, alpha], axis=-1))


ORIENTATION = 0x0112
"""Of EXIF: 1 is upright, 6 to be turned by a quarter clockwise."""


@pytest.mark.parametrize(("held", "turns"), [(1, 0), (3, 2), (6, -1), (8, 1)])
@pytest.mark.parametrize("name", ["a.png", "a.jpg"])
def test_pictures_to_learn_from_are_upright_and_those_to_compress_as_they_are_stored(tmp_path, held, turns, name):
    told = Image.Exif()
    told[ORIENTATION] = held
    Image.fromarray(PIXELS[0]).save(tmp_path / name, exif=told, **({"quality": 100} if name.endswith("jpg") else {}))
    stored = read_pictures([tmp_path]).pictures[0].pixels
    for path in (tmp_path, tmp_path / name):
        np.testing.assert_array_equal(load_images(path).images[0], np.rot90(stored, turns))


@pytest.mark.parametrize("told", [b"MM", b"no EXIF at all"])
def test_an_orientation_that_cannot_be_read_leaves_the_picture_as_it_is(tmp_path, told):
    (tmp_path / "a.png").write_bytes(png(PIXELS[0], exif=told))
    np.testing.assert_array_equal(load_images(tmp_path).images[0], PIXELS[0])


def test_an_epoch_shows_each_row_once_and_any_batch_can_be_asked_for():
    rows, among = np.arange(100) * 10, np.arange(5, 27)
    batch = shuffled_batches(rows, among=among, batch_size=5, seed=1)
    epochs = [np.concatenate([batch(4 * epoch + i) for i in range(4)]) for epoch in range(2)]
    assert all(len(set(epoch)) == 20 and set(epoch) <= set(among * 10) for epoch in epochs)
    assert not np.array_equal(*epochs)
    again = shuffled_batches(rows, among=among, batch_size=5, seed=1)
    np.testing.assert_array_equal(again(6), batch(6))
    with pytest.raises(ValueError, match=r"batch_size \(23\) is more than the 22 images"):
        shuffled_batches(rows, among=among, batch_size=23, seed=0)


def test_what_exceeds_the_memory_is_read_ahead_and_the_same(tmp_path, monkeypatch):
    np.save(tmp_path / "rows.npy", np.arange(110).reshape(22, 5))
    rows = np.load(tmp_path / "rows.npy", mmap_mode="r")
    plain = batches.shuffled_batches(rows, among=np.arange(22), batch_size=5, seed=1)
    monkeypatch.setattr(batches, "_memory_bytes", lambda: rows.nbytes)
    ahead = batches.shuffled_batches(rows, among=np.arange(22), batch_size=5, seed=1)
    assert "read_ahead" in ahead.__qualname__
    assert "read_ahead" not in plain.__qualname__
    for index in (*range(9), 6, 7, 400, 401, 0):  # over epochs, back and forth as resumed runs are
        np.testing.assert_array_equal(ahead(index), plain(index))


@pytest.mark.skipif("VDBJAX_DATA" not in os.environ, reason="needs the folder that VDBJAX_DATA names")
def test_real_sets():
    data = Path(os.environ["VDBJAX_DATA"])
    assert load_images(data / "cifar10" / "exact_test.npz").images.shape == (1017, 32, 32, 3)
    assert load_images(data / "mnist" / "t10k-images-idx3-ubyte.gz").images.shape == (10_000, 28, 28, 1)
    assert load_images("mnist/t10k-images-idx3-ubyte.gz").labels[:5].tolist() == [7, 2, 1, 0, 4]
    jpeg = load_images(data / "cifar10" / "jpeg60k.zip" / "test" / "ship")
    assert jpeg.images.shape == (1000, 32, 32, 3)
