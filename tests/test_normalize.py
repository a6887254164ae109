"""Running moments against NumPy over everything at once."""

import jax
import jax.numpy as jnp
import numpy as np
import pytest

from vdbjax.rl.normalize import empty_moments, merge_moments, normalize, sample_moments

SPLITS = {
    "one batch": [300],
    "halves": [150, 150],
    "uneven": [1, 7, 92, 200],
    "singles first": [1, 1, 1, 297],
}
SHAPES = {"scalar": (), "vector": (3,), "matrix": (2, 3)}


@pytest.mark.parametrize("shape", SHAPES.values(), ids=SHAPES.keys())
@pytest.mark.parametrize("split", SPLITS.values(), ids=SPLITS.keys())
def test_merged_moments_are_those_of_the_whole_stream(split, shape):
    # A drift makes the batches differ: an average of variances would be far off.
    drift = np.linspace(-3.0, 5.0, 300).reshape(-1, *[1] * len(shape))
    stream = np.random.default_rng(0).standard_normal((300, *shape)) + drift
    moments, start = empty_moments(shape), 0
    for size in split:
        moments = merge_moments(moments, sample_moments(jnp.float32(stream[start : start + size])))
        start += size
    assert float(moments.total) == 300.0
    np.testing.assert_allclose(moments.mean, stream.mean(axis=0), rtol=1e-4, atol=1e-5)
    np.testing.assert_allclose(moments.variance, stream.var(axis=0), rtol=1e-4)


def test_merging_does_not_depend_on_the_order():
    a, b = (sample_moments(x) for x in (jnp.arange(5.0), 3.0 * jnp.arange(11.0)))
    for one, other in zip(merge_moments(a, b), merge_moments(b, a)):
        np.testing.assert_allclose(one, other, rtol=1e-6)


@pytest.mark.parametrize("batch", [(), (4,), (5, 4)])
def test_normalising_with_nothing_seen_changes_nothing_but_the_extremes(batch):
    values = 12.0 * jnp.linspace(-1.0, 1.0, int(np.prod(batch)) * 3).reshape(*batch, 3)
    np.testing.assert_allclose(normalize(empty_moments((3,)), values), np.clip(values, -10.0, 10.0), rtol=1e-6)


def test_normalised_values_have_mean_0_and_deviation_1():
    noise = jax.random.normal(jax.random.key(0), (1000, 2))
    values = jnp.array([[5.0, -2.0]]) + jnp.array([[0.1, 30.0]]) * noise
    scaled = normalize(sample_moments(values), values)
    np.testing.assert_allclose(jnp.mean(scaled, axis=0), 0.0, atol=1e-4)
    np.testing.assert_allclose(jnp.std(scaled, axis=0), 1.0, rtol=1e-3)
