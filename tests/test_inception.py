"""Inception against PyTorch's numbers, the resizes against Pillow and their formulas, and weights read with care.

inception_torch.json holds what PyTorch gave, inception_torch.py made it.
"""

import base64
import collections
import hashlib
import io
import json
import os
import pickle
import zipfile
from pathlib import Path

import jax
import jax.numpy as jnp
import numpy as np
import pytest
from made_weights import made_pictures, made_weight
from PIL import Image

from vdbjax import extractors
from vdbjax.evaluation import vgan2018
from vdbjax.extractors import inception_extractor, inception_with, load_extractor
from vdbjax.images import resize
from vdbjax.images.inception import NAMES, params_of, shapes
from vdbjax.images.torch_weights import WeightsError, read_torch_weights

TORCH = json.loads((Path(__file__).parent / "inception_torch.json").read_text())
PICTURES = made_pictures(3, 32)


def leaves():
    return [([entry.key for entry in path], leaf) for path, leaf in jax.tree_util.tree_flatten_with_path(shapes())[0]]


@pytest.fixture(scope="module")
def weights():
    """A state dict of made weights, in PyTorch's layout."""
    made = {}
    for (*places, kind), leaf in leaves():
        shape = tuple(leaf.shape[i] for i in (3, 2, 0, 1)) if kind == "kernel" else leaf.shape
        name = ".".join([*places, NAMES[kind]])
        made[name] = made_weight(name, shape)
    return made


def test_it_has_as_many_parameters_as_torchs():
    """23,834,568 of torchvision's, less 2,049,000 of its 1,000 classes; what is stored of the batches not counted."""
    assert sum(leaf.size for (*_, kind), leaf in leaves() if kind not in ("mean", "variance")) == 21_785_568


@pytest.mark.parametrize(("protocol", "variant"), [("pytorch-fid", "fid"), ("vgan2018", "torchvision")])
def test_features_are_torchs(weights, monkeypatch, protocol, variant):
    """Both variants after one resize and scaling; 2,048 numbers by their mean and norm, the first 32 one by one."""
    rule = extractors.PROTOCOLS[protocol]._replace(scale=extractors.PROTOCOLS["pytorch-fid"].scale)
    monkeypatch.setitem(extractors.PROTOCOLS, protocol, rule)
    extractor = inception_with(params_of(weights), protocol, digest="made")
    found = np.asarray(jax.jit(extractor.apply)(extractor.params, PICTURES))
    expected = TORCH[variant]
    assert found.shape == (3, 2048)
    np.testing.assert_allclose(found[:, :32], expected["first"], atol=1e-4)
    np.testing.assert_allclose(found.mean(axis=1), expected["mean"], rtol=1e-5)
    np.testing.assert_allclose(np.linalg.norm(found, axis=1), expected["norm"], rtol=1e-5)


def test_the_variants_differ():
    assert np.max(np.abs(np.array(TORCH["fid"]["first"]) - TORCH["torchvision"]["first"])) > 0.1


def test_the_half_pixel_resize_is_torchs():
    found = resize.bilinear(jnp.asarray(PICTURES, jnp.float32), 299)
    np.testing.assert_allclose(found[0, ::37, ::37], TORCH["fid"]["resized_rows"], atol=1e-3)


@pytest.mark.parametrize("side", [32, 310])
def test_the_bicubic_resize_is_pillows(side):
    picture = made_pictures(1, side)
    channels = [
        Image.fromarray(picture[0, ..., c].astype(np.float32)).resize((299, 299), Image.Resampling.BICUBIC)
        for c in range(3)
    ]
    expected = np.clip(np.stack([np.asarray(each) for each in channels], axis=-1), 0.0, 255.0)
    found = resize.bicubic(jnp.asarray(picture, jnp.float32), 299)[0]
    np.testing.assert_allclose(found, expected, atol=2e-3)


@pytest.mark.parametrize(("height", "width"), [(5, 7), (40, 12)])
def test_tensorflows_resize_is_its_formula(height, width):
    """Without half pixels: y = (1 - w) x[floor(p)] + w x[floor(p) + 1] at p = i old / new, along both axes."""
    image = np.random.default_rng(0).uniform(0, 255, (height, width, 1))
    found = resize.tf1_bilinear(jnp.asarray(image[None], jnp.float32), 16)[0, ..., 0]
    for i in range(16):
        for j in range(16):
            p, q = i * height / 16, j * width / 16
            top, left = int(p), int(q)
            bottom, right = min(top + 1, height - 1), min(left + 1, width - 1)
            upper = (1 - q + left) * image[top, left, 0] + (q - left) * image[top, right, 0]
            lower = (1 - q + left) * image[bottom, left, 0] + (q - left) * image[bottom, right, 0]
            assert found[i, j] == pytest.approx((1 - p + top) * upper + (p - top) * lower, abs=1e-3)


def test_scales():
    pixels = jnp.array([0.0, 128.0, 255.0]).reshape(1, 1, 3, 1) * jnp.ones((1, 1, 1, 3))
    found = {name: rule.scale(pixels)[0, 0] for name, rule in extractors.PROTOCOLS.items()}
    np.testing.assert_allclose(found["fid"][:, 0], [-1.0, 0.0, 127 / 128], atol=1e-6)
    np.testing.assert_allclose(found["pytorch-fid"][:, 0], [-1.0, 1 / 255, 1.0], atol=1e-6)
    np.testing.assert_allclose(found["vgan2018"][0], [-0.488, -0.536, -0.638], atol=1e-6)  # -s / 0.5 + (m - 0.5) / 0.5


@pytest.mark.parametrize("form", ["zip", "pickles"])
def test_both_formats_of_torch_are_read(form, tmp_path):
    (tmp_path / "a.pth").write_bytes(base64.b64decode(TORCH[form]))
    found = read_torch_weights(tmp_path / "a.pth")
    row = np.arange(12, dtype=np.float32)
    expected = {"whole": row.reshape(3, 4), "turned": row.reshape(3, 4).T, "part": row[5:9], "count": np.array(7)}
    assert found.keys() == expected.keys() | {"half"}
    for name, array in expected.items():
        np.testing.assert_array_equal(found[name], array)
        assert found[name].dtype == array.dtype
    assert found["half"].dtype == np.float16


def zipped(pickled: bytes, **storages: bytes) -> bytes:
    stream = io.BytesIO()
    with zipfile.ZipFile(stream, "w") as archive:
        archive.writestr("a/data.pkl", pickled)
        for key, content in storages.items():
            archive.writestr(f"a/data/{key}", content)
    return stream.getvalue()


class Call:
    """Pickles as a call of the named function."""

    def __init__(self, function, *arguments):
        self.call = function, arguments

    def __reduce__(self):
        return self.call


BAD_WEIGHTS = {
    "empty": b"",
    "text": b"hello",
    "a zip of something else": zipped(b"")[:0] + b"PK\x03\x04" + bytes(40),
    "code in the zip": zipped(pickle.dumps({"a": Call(os.getcwd)}, 2)),
    "code in the pickles": pickle.dumps(Call(os.getcwd), 2),
    "builtins": zipped(pickle.dumps({"a": Call(eval, "1")}, 2)),
    "no dict": zipped(pickle.dumps([1], 2)),
    "no tensors": zipped(pickle.dumps(collections.OrderedDict(a=1), 2)),
    "half of a file": base64.b64decode(TORCH["zip"])[:700],
    "cut storages": base64.b64decode(TORCH["pickles"])[:-20],
}


@pytest.mark.parametrize("content", BAD_WEIGHTS.values(), ids=BAD_WEIGHTS.keys())
def test_bad_weights_are_refused_in_one_line_and_run_nothing(content, tmp_path):
    (tmp_path / "a.pth").write_bytes(content)
    with pytest.raises(WeightsError) as error:
        read_torch_weights(tmp_path / "a.pth")
    assert "a.pth: not a state dict that PyTorch saved, or damaged (" in str(error.value)
    assert "\n" not in str(error.value)


def test_strides_cannot_reach_outside_of_a_storage(tmp_path):
    content = base64.b64decode(TORCH["pickles"])
    (tmp_path / "a.pth").write_bytes(content)
    turned = b"K\x04K\x03\x86q"  # the shape (4, 3)
    assert turned in content
    (tmp_path / "a.pth").write_bytes(content.replace(turned, b"K\x14K\x03\x86q"))
    with pytest.raises(WeightsError, match="does not fit into its storage"):
        read_torch_weights(tmp_path / "a.pth")


def test_weights_of_another_network_are_refused(weights):
    with pytest.raises(ValueError, match=r"Conv2d_1a_3x3\.conv\.weight is missing"):
        params_of({name: array for name, array in weights.items() if name != "Conv2d_1a_3x3.conv.weight"})
    with pytest.raises(ValueError, match=r"Mixed_7c\.branch_pool\.bn\.bias has shape \(7,\), not \(192,\)"):
        params_of(weights | {"Mixed_7c.branch_pool.bn.bias": np.zeros(7, np.float32)})


def test_missing_and_wrong_files_of_weights_are_one_clear_line(tmp_path):
    with pytest.raises(WeightsError, match=r"absent\.pth: no such file or run folder; protocol fid needs .*-6726825d"):
        load_extractor(tmp_path / "absent.pth")
    path = tmp_path / "pt_inception-2015-12-05-6726825d.pth"
    path.write_bytes(b"something else")
    begins = hashlib.sha256(b"something else").hexdigest()[:8]
    with pytest.raises(WeightsError, match=f"the SHA-256 begins with {begins}: not the weights of protocol fid"):
        inception_extractor(path, "fid")
    with pytest.raises(ValueError, match=r"protocol fid is one of Inception's weights, and .* is a run; leave it out"):
        load_extractor(tmp_path, protocol="fid")


def test_the_images_of_vgan2018():
    images = made_pictures(80, 8)
    reals = vgan2018.sampled_reals(images, seed=0)
    assert reals.shape == (9984, 8, 8, 3)
    lower = np.floor(reals).astype(np.uint8)
    known = {image.tobytes() for image in np.concatenate([images, images[:, :, ::-1]])}
    assert {image.tobytes() for image in lower} <= known
    assert len({min(image.tobytes(), image[:, ::-1].tobytes()) for image in lower[:64]}) == 64
    assert 0.4 < np.mean([image.tobytes() in {i.tobytes() for i in images} for image in lower]) < 0.6
    assert 0.9 < (reals - lower).max() <= 127.5 / 128
    with pytest.raises(ValueError, match="63 real images are too few for protocol vgan2018, which draws 64"):
        vgan2018.sampled_reals(images[:63], seed=0)
    with pytest.raises(ValueError, match="80 fake images are too few for protocol vgan2018, which takes 5,056"):
        vgan2018.sampled_fakes(images, seed=0)
    assert vgan2018.sampled_fakes(np.tile(images, (64, 1, 1, 1)), seed=0).shape == (5056, 8, 8, 3)
