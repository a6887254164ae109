"""The file: what was put in comes out, and whatever else it may say ends in one `ContainerError`."""

import json
import os
import resource
import struct
import zlib

import numpy as np
import pytest
from coded import resealed
from hypothesis import given, settings
from hypothesis import strategies as st

from vdbjax.coding import container
from vdbjax.coding.container import Container, ContainerError, Header, StoredImage

HEADER = Header("0123456789abcdef" * 4, "0.10.2", "cpu", "float32", (64, 32, 32, 3), 2.0**-12, 2.0**-22, 8192)
IMAGES = [
    StoredImage("a.png", "RGB", 32, 32, 123),
    StoredImage("folder/b.png", "L", 1, 100, 0),
    StoredImage("folder/\u00e9\udcff \n.png", "RGBA", 7, 5, 2**32 - 1),
]
FULL = Container(HEADER, IMAGES, {"stack": bytes(range(256)) * 4, "model": b""})


def with_header(**changed) -> bytes:
    """FULL with other fields in its header."""
    data = container.to_bytes(FULL)
    _, version, count, length, table = struct.unpack_from("<8s4I", data)
    fields = {**json.loads(data[24 : 24 + length]), **changed}
    text = json.dumps({name: value for name, value in fields.items() if value != "DROP"}).encode()
    return rebuilt(data, version, count, text, table, data[24 + length : -4])


def rebuilt(data, version, count, text, table, rest) -> bytes:
    return resealed(struct.pack("<8s4I", data[:8], version, count, len(text), table) + text + rest + b"\0" * 4)


def test_what_is_written_is_read(tmp_path):
    length = container.write(tmp_path / "file", FULL)
    assert length == (tmp_path / "file").stat().st_size
    read = container.read(tmp_path / "file")
    assert read == FULL
    assert [image.shape for image in read.images] == [(32, 32, 3), (1, 100, 1), (7, 5, 4)]
    assert os.listdir(tmp_path) == ["file"]


def test_a_thousand_images_cost_few_bytes_each():
    images = [StoredImage(f"test/{i:05}.png", "RGB", 32, 32, i) for i in range(1017)]
    length = len(container.to_bytes(Container(HEADER, images, {"stack": b""})))
    assert length / len(images) < 4 + 4.5


def test_every_cut_is_noticed():
    data = container.to_bytes(FULL)
    for end in range(len(data)):
        with pytest.raises(ContainerError):
            container.from_bytes(data[:end])


def test_every_flipped_bit_is_noticed():
    data = container.to_bytes(FULL)
    for bit in range(8 * len(data)):
        flipped = bytearray(data)
        flipped[bit // 8] ^= 1 << bit % 8
        with pytest.raises(ContainerError):
            container.from_bytes(bytes(flipped))


def absurd() -> dict[str, bytes]:
    data = container.to_bytes(FULL)
    _, version, count, length, table = struct.unpack_from("<8s4I", data)
    rest = data[24 + length : -4]

    def header_text(text: bytes) -> bytes:
        return rebuilt(data, version, count, text, table, rest)

    def preamble(*numbers: int) -> bytes:
        return resealed(struct.pack("<8s4I", data[:8], *numbers) + data[24:])

    def with_table(table: bytes, count: int = count) -> bytes:
        body = data[24 : 24 + length] + table + b"\0" * 4 * count + b"\0" * 1024
        return resealed(struct.pack("<8s4I", data[:8], version, count, length, len(table)) + body + b"\0" * 4)

    def table_of(names: bytes, heights: list[int], widths: list[int], modes: list[int]) -> bytes:
        numbers = np.array([*heights, *widths], "<u4").tobytes() + bytes(modes)
        return with_table(zlib.compress(names + numbers), len(heights))

    return {
        "empty": b"",
        "text": b"no container at all, but text\n" * 10,
        "PNG": b"\x89PNG\r\n\x1a\n" + b"\0" * 100,
        "another version": preamble(version + 1, count, length, table),
        "no images": preamble(version, 0, length, table),
        "4 billion images": preamble(version, 2**32 - 1, length, table),
        "a header of 4 GB": preamble(version, count, 2**32 - 1, table),
        "a table of 4 GB": preamble(version, count, length, 2**32 - 1),
        "a table cut short": preamble(version, count, length, table - 1),
        "no JSON": header_text(b"{"),
        "no UTF-8": header_text(b"\xff" * 20),
        "deep JSON": header_text(b"[" * 60_000),
        "a list": header_text(b"[1]"),
        "a number of digits": header_text(b'{"lanes": ' + b"9" * 10_000 + b"}"),
        "a field missing": with_header(sigma="DROP"),
        "a field more": with_header(more=1),
        "2^60 lanes": with_header(lanes=2**60),
        "no lanes": with_header(lanes=0),
        "half a lane": with_header(lanes=0.5),
        "true lanes": with_header(lanes=True),
        "a batch of 2^60": with_header(batch_shape=[2**60, 32, 32, 3]),
        "a batch whose product is 2^60": with_header(batch_shape=[2**20, 2**20, 2**20]),
        "a batch that is a number": with_header(batch_shape=7),
        "a batch of text": with_header(batch_shape=["64"]),
        "sigma 0": with_header(sigma=0.0),
        "sigma NaN": with_header(sigma=float("nan")),
        "sigma infinite": with_header(sigma=float("inf")),
        "delta as text": with_header(delta="small"),
        "delta below 0": with_header(delta=-1.0),
        "a digest too short": with_header(model_digest="abc"),
        "a digest that is none": with_header(model_digest="z" * 64),
        "a digest that is a list": with_header(model_digest=["0"] * 64),
        "a version that is a number": with_header(jax_version=1),
        "a long device": with_header(device_kind="x" * 1000),
        "a part of 2^60 bytes": with_header(parts=[["stack", 2**60]]),
        "a part of -1 bytes": with_header(parts=[["stack", 1025], ["model", -1]]),
        "parts of one name": with_header(parts=[["stack", 1000], ["stack", 24]]),
        "parts that are no pairs": with_header(parts=[["stack"]]),
        "parts that are no lists": with_header(parts=["stack"]),
        "parts that are a number": with_header(parts=5),
        "a part without name": with_header(parts=[[[], 1024]]),
        "a bomb": with_table(zlib.compress(b"\0" * 10**8)),
        "no zlib": with_table(b"\1" * 50),
        "a table of nothing": with_table(zlib.compress(b"")),
        "bytes after the table": with_table(zlib.compress(b"a\0" + b"\1" * 9) + b"more", 1),
        "mode 3": table_of(b"a\0", [1], [1], [3]),
        "height 0": table_of(b"a\0", [0], [1], [0]),
        "height 2^32 - 1": table_of(b"a\0", [2**32 - 1], [1], [0]),
        "2^48 pixels": table_of(b"a\0", [2**24], [2**24], [0]),
        "names too few": table_of(b"a\0", [1, 1], [1, 1], [0, 0]),
        "a name twice": table_of(b"a\0a\0", [1, 1], [1, 1], [0, 0]),
        "a name that is a folder": table_of(b"a\0a/b\0", [1, 1], [1, 1], [0, 0]),
        "no name": table_of(b"\0", [1], [1], [0]),
        "the folder itself": table_of(b".\0", [1], [1], [0]),
        "the folder above": table_of(b"../a\0", [1], [1], [0]),
        "the folder above, later": table_of(b"a/../../b\0", [1], [1], [0]),
        "an absolute name": table_of(b"/etc/passwd\0", [1], [1], [0]),
        "a folder's name": table_of(b"a/\0", [1], [1], [0]),
        "a long name": table_of(b"a/" * 2500 + b"a\0", [1], [1], [0]),
        "folders 65 deep": table_of(b"a/" * 65 + b"a\0", [1], [1], [0]),
        "a long name of a folder": table_of(b"a" * 256 + b"/b\0", [1], [1], [0]),
    }


ABSURD = absurd()


@pytest.mark.parametrize("data", ABSURD.values(), ids=ABSURD.keys())
def test_what_cannot_be_ends_in_one_line(data):
    before = resource.getrusage(resource.RUSAGE_SELF).ru_maxrss
    with pytest.raises(ContainerError) as caught:
        container.from_bytes(data)
    assert "\n" not in str(caught.value)
    assert len(str(caught.value)) < 250
    assert resource.getrusage(resource.RUSAGE_SELF).ru_maxrss - before < 64 * 1024  # kilobytes


@pytest.mark.parametrize(
    "broken",
    [
        FULL._replace(images=[]),
        FULL._replace(images=[IMAGES[0], IMAGES[0]]),
        FULL._replace(images=[IMAGES[0]._replace(name="../up.png")]),
        FULL._replace(images=[IMAGES[0]._replace(name="\ud800")]),
        FULL._replace(images=[IMAGES[0]._replace(mode="CMYK")]),
        FULL._replace(images=[IMAGES[0]._replace(crc=-1)]),
        FULL._replace(images=[IMAGES[0]._replace(height=2**20, width=2**20)]),
        FULL._replace(header=HEADER._replace(lanes=2**60)),
        FULL._replace(parts={"x" * 1000: b""}),
    ],
)
def test_what_could_not_be_read_is_not_written(broken, tmp_path):
    with pytest.raises(ContainerError):
        container.write(tmp_path / "file", broken)
    assert not os.listdir(tmp_path)


def test_a_file_that_cannot_be_written_leaves_nothing(tmp_path, monkeypatch):
    with pytest.raises(ContainerError, match=r"cannot write .*missing"):
        container.write(tmp_path / "missing" / "file", FULL)

    (tmp_path / "file").write_bytes(b"of before")

    def full_disk(handle):
        raise OSError(28, "No space left on device")

    monkeypatch.setattr(os, "fsync", full_disk)
    with pytest.raises(ContainerError, match="No space left on device"):
        container.write(tmp_path / "file", FULL)
    assert os.listdir(tmp_path) == ["file"]
    assert (tmp_path / "file").read_bytes() == b"of before"


def test_a_file_that_cannot_be_read_is_named(tmp_path):
    with pytest.raises(ContainerError, match="missing"):
        container.read(tmp_path / "missing")
    with pytest.raises(ContainerError, match="cannot read"):
        container.read(tmp_path)
    (tmp_path / "text.png").write_text("text")
    with pytest.raises(ContainerError, match=r"text\.png: not a file of compressed images"):
        container.read(tmp_path / "text.png")


def test_pixels_are_held_against_their_checksum():
    pixels = np.random.default_rng(0).integers(256, size=(4, 5, 3)).astype(np.uint8)
    image = StoredImage("a", "RGB", 4, 5, container.image_crc(pixels))
    assert container.is_exact(image, pixels)
    assert container.is_exact(image, np.asfortranarray(pixels))
    assert not container.is_exact(image, pixels.reshape(5, 4, 3))
    pixels[2, 2, 1] ^= 1
    assert not container.is_exact(image, pixels)


def test_a_digest_is_of_names_shapes_and_numbers():
    weights = {"a": np.arange(6, dtype=np.float32).reshape(2, 3), "b": np.ones(2)}
    digest = container.digest_of(weights)
    assert digest == container.digest_of({"b": np.ones(2), "a": np.asfortranarray(weights["a"])})
    assert digest == container.digest_of({**weights, "a": weights["a"].astype(">f4")})
    others = [weights["a"].reshape(3, 2), weights["a"].astype(np.float64), weights["a"] + 1]
    assert len({digest, *(container.digest_of({**weights, "a": other}) for other in others)}) == 4


@settings(max_examples=300, deadline=None, derandomize=True)
@given(st.data())
def test_any_change_is_an_error_or_changes_nothing(data):
    """Also where the checksum is made to fit again: what is then read is written as it was read."""
    file = bytearray(container.to_bytes(FULL))
    for _ in range(data.draw(st.integers(1, 4))):
        at = data.draw(st.integers(0, len(file) - 1))
        file[at : at + data.draw(st.integers(0, 3))] = data.draw(st.binary(max_size=4))
    changed = resealed(bytes(file)) if data.draw(st.booleans()) else bytes(file)
    try:
        found = container.from_bytes(changed)
    except ContainerError:
        return
    assert container.from_bytes(container.to_bytes(found)) == found
