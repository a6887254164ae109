"""The convolution with its own gradient against XLA's."""

import jax
import jax.numpy as jnp
import numpy as np
import pytest
from jax import lax

from vdbjax.images.convolution import convolve, same_convolution, with_bias
from vdbjax.images.gan_resnet import pooled
from vdbjax.sharding import over_devices


def plain(images, kernel):
    return lax.conv_general_dilated(images, kernel, (1, 1), "SAME", dimension_numbers=("NHWC", "HWIO", "NHWC"))


def drawn(*shapes):
    draw = np.random.default_rng(0)
    return [jnp.asarray(draw.normal(size=shape), jnp.float32) for shape in shapes]


CASES = {"3 x 3": (6, 8, 3, 5, 4), "1 x 1": (6, 8, 1, 5, 4), "larger than the cache": (3, 64, 3, 2, 3)}


@pytest.mark.parametrize(("count", "side", "window", "inputs", "outputs"), CASES.values(), ids=CASES)
def test_values_and_slopes_are_those_of_xla(count, side, window, inputs, outputs):
    arrays = drawn((count, side, side, inputs), (window, window, inputs, outputs), (count, side, side, outputs))

    def all_of(convolution):
        value, pullback = jax.vjp(convolution, *arrays[:2])
        return value, *pullback(arrays[2])

    for ours, theirs in zip(jax.jit(all_of, static_argnums=0)(same_convolution), all_of(plain)):
        np.testing.assert_allclose(ours, theirs, rtol=1e-4, atol=1e-4 * float(jnp.abs(theirs).max()))


def test_slopes_of_a_slope_are_those_of_xla():
    images, first, second = drawn((4, 8, 8, 3), (3, 3, 3, 5), (3, 3, 5, 2))

    def penalty(convolution, first, second):
        def critic(images):
            return jnp.sum(jnp.tanh(convolution(jnp.tanh(convolution(images, first)), second)))

        return jnp.sum(jax.grad(critic)(images) ** 2)

    slopes = jax.jit(jax.grad(penalty, (1, 2)), static_argnums=0)
    ours, theirs = (slopes(each, first, second) for each in (same_convolution, plain))
    for a, b in zip(ours, theirs):
        np.testing.assert_allclose(a, b, rtol=1e-4, atol=1e-4 * float(jnp.abs(b).max()))


def test_the_slope_by_a_bias_is_the_sum_over_pixels():
    images, bias, slope = drawn((6, 8, 8, 5), (5,), (6, 8, 8, 5))
    value, pullback = jax.vjp(with_bias, images, bias)
    np.testing.assert_array_equal(value, np.asarray(images) + np.asarray(bias))
    by_images, by_bias = pullback(slope)
    np.testing.assert_array_equal(by_images, slope)
    np.testing.assert_allclose(by_bias, np.sum(slope, (0, 1, 2), dtype=np.float64), atol=1e-4)


def test_several_devices_add_up_their_own_images(two_devices):
    images, kernel, bias = drawn((4, 8, 8, 16), (3, 3, 16, 16), (16,))

    def slopes(convolution, add, images):
        def loss(kernel, bias):
            return jnp.sum(add(convolution(over_devices(images), kernel), bias) ** 2)

        return jax.grad(loss, (0, 1))(kernel, bias)

    compiled = jax.jit(lambda images: slopes(same_convolution, with_bias, images)).lower(images).compile()
    for ours, theirs in zip(
        compiled(images), slopes(plain, lambda images, bias: images + bias[None, None, None], images), strict=True
    ):
        np.testing.assert_allclose(ours, theirs, rtol=1e-4, atol=1e-2)
    assert "all-reduce" in compiled.as_text()
    assert "all-gather" not in compiled.as_text()


@pytest.mark.parametrize("backend", ["cpu", "tpu"])
def test_few_channels_and_other_devices_are_left_to_xla(backend, monkeypatch):
    monkeypatch.setattr(jax, "default_backend", lambda: backend)
    for channels in (8, 16):
        images, kernel, bias = drawn((1, 4, 4, 3), (3, 3, 3, channels), (channels,))
        without, with_one = (
            str(jax.make_jaxpr(lambda *given: convolve(*given))(images, kernel, *given)) for given in ((), (bias,))
        )
        assert ("custom_vjp" in without) == (backend == "cpu" and channels == 16)
        assert ("with_bias" in with_one) == (backend == "cpu")


def test_pooling_means_over_what_lies_inside():
    (images,) = drawn((2, 8, 8, 3))
    padded = np.pad(images, ((0, 0), (1, 1), (1, 1), (0, 0)))
    for row, column in ((0, 0), (1, 3), (3, 2)):
        window = padded[:, 2 * row : 2 * row + 3, 2 * column : 2 * column + 3]
        np.testing.assert_allclose(pooled(images)[:, row, column], window.sum((1, 2)) / 9.0, rtol=1e-5, atol=1e-6)
