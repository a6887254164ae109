"""What XLA compiles with must not change what is computed, nor fail where it is not known."""

import jax
import jax.numpy as jnp
import numpy as np
import pytest

from vdbjax import compiler


def test_convolutions_stay_what_they_are() -> None:
    key_images, key_kernel = jax.random.split(jax.random.key(0))
    images, kernel = jax.random.normal(key_images, (4, 8, 8, 16)), jax.random.normal(key_kernel, (3, 3, 16, 8))

    def convolve(images: jax.Array, kernel: jax.Array) -> jax.Array:
        return jax.lax.conv_general_dilated(images, kernel, (1, 1), "SAME", dimension_numbers=("NHWC", "HWIO", "NHWC"))

    found = jax.jit(convolve, compiler_options=compiler.compiler_options())(images, kernel)
    expected = sum(
        jnp.pad(images, ((0, 0), (1, 1), (1, 1), (0, 0)))[:, row : row + 8, column : column + 8] @ kernel[row, column]
        for row in range(3)
        for column in range(3)
    )
    np.testing.assert_allclose(found, expected, atol=1e-4)


@pytest.mark.skipif(jax.default_backend() != "cpu", reason="the choice is one for CPUs")
def test_the_jaxlib_in_use_knows_the_choice() -> None:
    assert compiler.compiler_options() == compiler.ON_CPU


@pytest.mark.parametrize(("backend", "options"), [("gpu", compiler.ON_CPU), ("cpu", {"xla_cpu_no_such_choice": "1"})])
def test_no_choice_is_made_where_there_is_none(monkeypatch, backend, options) -> None:
    monkeypatch.setattr(jax, "default_backend", lambda: backend)
    monkeypatch.setattr(compiler, "ON_CPU", options)
    assert compiler.compiler_options() == {}
