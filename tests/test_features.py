"""Features of images: batches, devices, shapes, and statistics kept by content."""

import jax
import jax.numpy as jnp
import numpy as np
import pytest
from made_weights import made_pictures

from vdbjax.evaluation.features import FeatureExtractor, digest_of, digest_of_params, features_of
from vdbjax.evaluation.statistics_cache import summary_of
from vdbjax.images import classifier

IMAGES = made_pictures(70, 16)
MODEL = classifier.build_model(classifier.Config(filters=(4, 8)), (16, 16, 3))


@pytest.fixture(scope="module")
def extractor():
    params = jax.jit(MODEL.init)(jax.random.key(0), jnp.asarray(IMAGES[:1]))
    return FeatureExtractor("small", "FD", MODEL.features, params, digest_of_params(params), "none", (16, 16, 3))


def test_features_do_not_depend_on_the_batch(extractor):
    """Nor on the two devices that it is laid over, nor on the padding of the last one."""
    assert jax.local_device_count() == 2
    heard = []
    many = features_of(extractor, IMAGES, batch_size=64, report=lambda *counts: heard.append(counts))
    alone = jax.jit(MODEL.features)
    single = np.concatenate([alone(extractor.params, IMAGES[i : i + 1]) for i in range(70)])
    assert many.shape == (70, 8)
    np.testing.assert_allclose(many, single, atol=1e-5)
    np.testing.assert_allclose(features_of(extractor, IMAGES, batch_size=1), single, atol=1e-5)
    assert heard == [(64, 70), (70, 70)]


@pytest.mark.parametrize(
    ("images", "message"),
    [
        (np.zeros((2, 8, 8, 3), np.uint8), "images of 8 x 8 x 3 do not fit small, which takes 16 x 16 x 3"),
        (np.zeros((2, 16, 16, 1), np.uint8), "images of 16 x 16 x 1 do not fit"),
        (IMAGES[:0], "no images"),
    ],
)
def test_images_of_another_shape_are_refused(extractor, images, message):
    with pytest.raises(ValueError, match=message):
        features_of(extractor, images)


def test_digests_tell_numbers_shapes_types_and_names_apart():
    digests = [
        digest_of(IMAGES),
        digest_of(IMAGES[::-1]),
        digest_of(IMAGES.reshape(70, 3, 16, 16)),
        digest_of(IMAGES.view(np.int8)),
        digest_of_params({"a": IMAGES, "b": IMAGES[0]}),
        digest_of_params({"b": IMAGES, "a": IMAGES[0]}),
        digest_of(np.float32(1.0)),
        digest_of(np.float32(2.0)),
    ]
    assert len(set(digests)) == len(digests)
    assert digest_of(IMAGES) == digest_of(IMAGES.copy())


def never(params, images):
    raise AssertionError("features were computed again")


def test_statistics_are_found_again_by_content_alone(extractor, tmp_path):
    first = summary_of(extractor, IMAGES, folder=tmp_path)
    assert first.features is None
    assert first.statistics.count == 70
    (entry,) = tmp_path.iterdir()
    again = summary_of(extractor._replace(apply=never), IMAGES.copy(), folder=tmp_path)
    np.testing.assert_array_equal(again.statistics.scatter, first.statistics.scatter)
    changed = IMAGES.copy()
    changed[3, 0, 0, 0] ^= 1
    for other, images in (
        (extractor, changed),
        (extractor._replace(digest="another"), IMAGES),
        (extractor._replace(preprocessing="resized"), IMAGES),
    ):
        with pytest.raises(AssertionError, match="computed again"):
            summary_of(other._replace(apply=never), images, folder=tmp_path)
    assert list(tmp_path.iterdir()) == [entry]  # what failed left nothing


def test_features_are_kept_where_they_are_asked_for(extractor, tmp_path):
    summary_of(extractor, IMAGES, folder=tmp_path)
    found = summary_of(extractor, IMAGES, folder=tmp_path, with_features=True)  # the entry lacks them
    again = summary_of(extractor._replace(apply=never), IMAGES, folder=tmp_path, with_features=True)
    np.testing.assert_array_equal(again.features, found.features)
    np.testing.assert_array_equal(again.features, features_of(extractor, IMAGES))


DAMAGE = {
    "empty": lambda content: b"",
    "cut off": lambda content: content[: len(content) // 2],
    "a changed byte": lambda content: content[:400] + bytes([content[400] ^ 1]) + content[401:],
    "text": lambda content: b"hello",
}


@pytest.mark.parametrize("damage", DAMAGE.values(), ids=DAMAGE.keys())
def test_a_damaged_entry_is_computed_anew(extractor, tmp_path, damage):
    first = summary_of(extractor, IMAGES, folder=tmp_path)
    (entry,) = tmp_path.iterdir()
    whole = entry.read_bytes()
    entry.write_bytes(damage(whole))
    again = summary_of(extractor, IMAGES, folder=tmp_path)
    np.testing.assert_array_equal(again.statistics.mean, first.statistics.mean)
    np.testing.assert_array_equal(again.statistics.scatter, first.statistics.scatter)
    assert entry.read_bytes() == whole


def test_a_folder_that_cannot_be_written_is_refused_before_the_work(extractor, tmp_path):
    (tmp_path / "file").write_text("")
    with pytest.raises(ValueError, match=r"statistics cannot be kept in .*; name another folder"):
        summary_of(extractor._replace(apply=never), IMAGES, folder=tmp_path / "file")
