"""Distances between sets of features, against closed forms, brute force and SciPy."""

import os
from pathlib import Path

import jax
import numpy as np
import pytest

from vdbjax.data.images import load_images
from vdbjax.evaluation.frechet import Statistics, frechet_distance, merge, statistics_of
from vdbjax.evaluation.kernel_distance import kernel_distance, squared_discrepancy
from vdbjax.evaluation.precision_recall import precision_recall
from vdbjax.images import classifier

DRAW = np.random.default_rng(0)
FEATURES = (DRAW.normal(size=(500, 6)) @ DRAW.normal(size=(6, 6)) + 5.0).astype(np.float32)


def gaussian(mean, covariance, count=1_000):
    return Statistics(count, np.array(mean, float), np.array(covariance, float) * (count - 1))


def test_statistics_are_those_of_numpy():
    found = statistics_of(FEATURES)
    wide = FEATURES.astype(np.float64)
    assert found.count == 500
    np.testing.assert_allclose(found.mean, wide.mean(0), rtol=1e-14)
    np.testing.assert_allclose(found.covariance, np.cov(wide, rowvar=False), rtol=1e-12)


@pytest.mark.parametrize("seed", range(4))
def test_parts_merge_to_the_whole_in_any_order_and_grouping(seed):
    draw = np.random.default_rng(seed)
    cuts = np.sort(draw.choice(np.arange(1, 500), 9, replace=False))
    parts = [statistics_of(part) for part in np.split(FEATURES, cuts)]
    while len(parts) > 1:
        a, b = draw.choice(len(parts), 2, replace=False)
        parts = [part for i, part in enumerate(parts) if i not in (a, b)] + [merge(parts[a], parts[b])]
    whole = statistics_of(FEATURES)
    assert parts[0].count == whole.count
    np.testing.assert_allclose(parts[0].mean, whole.mean, rtol=1e-13)
    np.testing.assert_allclose(parts[0].scatter, whole.scatter, rtol=1e-11)


def test_a_large_offset_loses_nothing():
    far = statistics_of(FEATURES.astype(np.float64) + 1e6)
    np.testing.assert_allclose(far.covariance, statistics_of(FEATURES).covariance, rtol=1e-7)


def test_gaussians_that_commute_have_a_closed_form():
    """|m|^2 + sum (s - t)^2, s and t being standard deviations."""
    turn, _ = np.linalg.qr(np.random.default_rng(1).normal(size=(4, 4)))
    s, t, shift = np.array([1.0, 2.0, 0.5, 0.0]), np.array([3.0, 0.1, 0.5, 1.0]), np.array([1.0, -2.0, 0.0, 0.5])
    a, b = gaussian(np.zeros(4), turn * s**2 @ turn.T), gaussian(shift, turn * t**2 @ turn.T)
    expected = np.sum(shift**2) + np.sum((s - t) ** 2)
    assert frechet_distance(a, b) == pytest.approx(expected, abs=1e-7)
    assert frechet_distance(b, a) == pytest.approx(expected, abs=1e-7)
    assert frechet_distance(a, a) == pytest.approx(0.0, abs=1e-7)


@pytest.fixture(scope="module")
def real_features():
    """Features of real images, by a classifier that has learnt nothing yet."""
    if "VDBJAX_DATA" not in os.environ:
        pytest.skip("needs the folder that VDBJAX_DATA names")
    folder = Path(os.environ["VDBJAX_DATA"]) / "cifar10"
    model = classifier.build_model(classifier.Config(filters=(16, 32)), (32, 32, 3))
    train, test = (load_images(folder / f"exact_{name}.npz").images for name in ("train", "test"))
    params, features = jax.jit(model.init)(jax.random.key(0), test[:1]), jax.jit(model.features)
    return [np.concatenate([features(params, rows[i : i + 500]) for i in (0, 500)]) for rows in (train, test)]


def test_it_agrees_with_scipys_root_on_real_features(real_features):
    linalg = pytest.importorskip("scipy.linalg")
    a, b = (statistics_of(features) for features in real_features)
    root = linalg.sqrtm(a.covariance @ b.covariance)
    expected = np.sum((a.mean - b.mean) ** 2) + np.trace(a.covariance + b.covariance - 2.0 * root.real)
    assert expected > 1e-3
    assert frechet_distance(a, b) == pytest.approx(expected, rel=1e-4, abs=1e-9)


BAD_STATISTICS = {
    "none": (lambda: statistics_of(FEATURES[:0]), "at least 1 image, got 0"),
    "not finite": (lambda: statistics_of(np.array([[1.0], [np.nan]])), "features of image 1 are not finite"),
    "sizes": (lambda: merge(statistics_of(FEATURES), statistics_of(FEATURES[:, :2])), "of 6 and of 2 features do not"),
    "one": (lambda: statistics_of(FEATURES[:1]).covariance, "at least 2 images, got 1"),
    "too few": (
        lambda: frechet_distance(statistics_of(FEATURES), statistics_of(FEATURES[:6])),
        "6 images are too few for a Fréchet distance over 6 features, which needs at least 7; take more images",
    ),
    "kernel": (lambda: kernel_distance(FEATURES, FEATURES[:9], subset_size=10, seed=0), "9 images are fewer than"),
    "neighbours": (lambda: precision_recall(FEATURES, FEATURES[:3]), "3 images are too few for balls"),
}


@pytest.mark.parametrize(("run", "message"), BAD_STATISTICS.values(), ids=BAD_STATISTICS.keys())
def test_too_few_or_wrong_features_are_refused(run, message):
    with pytest.raises(ValueError) as error:
        run()
    assert message in str(error.value)


def test_the_kernel_distance_is_its_double_sum():
    x, y = FEATURES[:5].astype(float), FEATURES[5:9].astype(float) - 4.0

    def mean(a, b, same):
        pairs = [(u @ v / 6 + 1) ** 3 for i, u in enumerate(a) for j, v in enumerate(b) if not (same and i == j)]
        return np.mean(pairs)

    expected = mean(x, x, True) + mean(y, y, True) - 2 * mean(x, y, False)
    assert squared_discrepancy(x, y) == pytest.approx(expected, rel=1e-12)


def test_the_kernel_distance_is_unbiased_where_the_frechet_distance_is_not():
    draws = np.random.default_rng(3).normal(size=(300, 2, 12, 4))
    values = [squared_discrepancy(x, y) for x, y in draws]
    assert abs(np.mean(values)) < 4 * np.std(values) / np.sqrt(300)
    assert min(values) < 0.0
    assert np.mean([frechet_distance(statistics_of(x), statistics_of(y)) for x, y in draws[:20]]) > 0.5


def test_the_kernel_distance_of_subsets_is_drawn_by_its_seed():
    first = kernel_distance(FEATURES, FEATURES + 1.0, subsets=5, subset_size=100, seed=1)
    assert first == kernel_distance(FEATURES, FEATURES + 1.0, subsets=5, subset_size=100, seed=1)
    assert first.mean > first.spread > 0


def test_precision_and_recall_of_a_line():
    """Balls to the nearest neighbour: reals reach 1 about 0, 1, 2 and 8 about 10; fakes 1 about 2.5, 3.5 and 96.5."""
    real, fake = np.array([[0.0], [1.0], [2.0], [10.0]]), np.array([[2.5], [3.5], [100.0]])
    found = precision_recall(real, fake, neighbours=1)
    assert found.precision == pytest.approx(2 / 3)  # 2.5 near 2, 3.5 in the ball of 10; 100 is nowhere
    assert found.recall == pytest.approx(2 / 4)  # 2 near 2.5, and 10 in the ball of 100


def test_precision_tells_what_is_generated_badly_recall_what_is_missing():
    real, inner = np.random.default_rng(4).normal(size=(400, 2)), np.random.default_rng(5).normal(size=(400, 2))
    narrow = precision_recall(real, 0.1 * inner)
    assert narrow.precision > 0.95
    assert narrow.recall < 0.2
    wide = precision_recall(0.1 * inner, real)
    assert wide == (narrow.recall, narrow.precision)
    assert precision_recall(real, real) == (1.0, 1.0)
    assert precision_recall(real, real + 100.0) == (0.0, 0.0)
