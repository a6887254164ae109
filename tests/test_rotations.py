"""Quaternions, of NumPy and JAX, against SciPy's rotations; gradients against differences, and finite everywhere."""

import jax
import jax.numpy as jnp
import numpy as np
import pytest
from scipy.spatial.transform import Rotation, Slerp

from vdbjax import rotations

KINDS = {
    "numpy": (lambda x: np.asarray(x, np.float64), 1e-13),
    "numpy float32": (lambda x: np.asarray(x, np.float32), 3e-6),
    "jax": (lambda x: jnp.asarray(x, jnp.float32), 3e-6),
}
COUNT = 200


def unit(seed: int) -> np.ndarray:
    """Quaternions uniform on the sphere, so half of them with w < 0."""
    drawn = np.random.default_rng(seed).normal(size=(COUNT, 4))
    return drawn / np.linalg.norm(drawn, axis=-1, keepdims=True)


A, B = unit(1), unit(2)
VECTOR = np.random.default_rng(3).normal(size=(COUNT, 3))
SHARE = np.random.default_rng(4).uniform(size=COUNT)


def scipy_of(quaternion) -> Rotation:
    return Rotation.from_quat(np.asarray(quaternion, np.float64)[..., [1, 2, 3, 0]])


def from_scipy(rotation: Rotation) -> np.ndarray:
    return rotation.as_quat()[..., [3, 0, 1, 2]]


def slerp_of_scipy() -> np.ndarray:
    pairs = [Rotation.concatenate([scipy_of(a), scipy_of(b)]) for a, b in zip(A, B)]
    return np.array([from_scipy(Slerp([0, 1], pair)(share)) for pair, share in zip(pairs, SHARE)])


def heading_of_scipy() -> np.ndarray:
    forward = scipy_of(A).apply([1.0, 0.0, 0.0])
    return np.arctan2(forward[:, 1], forward[:, 0])


QUATERNIONS = {
    "multiply": ((A, B), lambda: from_scipy(scipy_of(A) * scipy_of(B))),
    "inverse": ((A,), lambda: from_scipy(scipy_of(A).inv())),
    "from_vector": ((VECTOR,), lambda: from_scipy(Rotation.from_rotvec(VECTOR))),
    "slerp": ((A, B, SHARE), slerp_of_scipy),
}
NUMBERS = {
    "rotate": ((A, VECTOR), lambda: scipy_of(A).apply(VECTOR)),
    "angle": ((A,), lambda: scipy_of(A).magnitude()),
    "angle_between": ((A, B), lambda: (scipy_of(A).inv() * scipy_of(B)).magnitude()),
    "to_vector": ((A,), lambda: scipy_of(A).as_rotvec()),
    "heading": ((A,), heading_of_scipy),
    "two_columns": ((A,), lambda: np.concatenate([scipy_of(A).as_matrix()[..., column] for column in (0, 1)], axis=-1)),
}


@pytest.mark.parametrize("kind", KINDS)
@pytest.mark.parametrize("name", QUATERNIONS | NUMBERS)
def test_as_scipy(name, kind):
    convert, tolerance = KINDS[kind]
    arguments, expected = (QUATERNIONS | NUMBERS)[name]
    given = [convert(argument) for argument in arguments]
    found = getattr(rotations, name)(*given)
    assert (type(found), found.dtype) == (type(given[0]), given[0].dtype)
    found, truth = np.asarray(found, np.float64), expected()
    if name in QUATERNIONS:  # either sign is the same rotation
        found = found * np.sign(np.sum(found * truth, axis=-1, keepdims=True))
    np.testing.assert_allclose(found, truth, atol=5 * tolerance)


@pytest.mark.parametrize("kind", KINDS)
@pytest.mark.parametrize("axis", [0, 1, 2])
def test_about_an_axis(axis, kind):
    convert, tolerance = KINDS[kind]
    angles = np.linspace(-3.0, 3.0, 7)
    expected = from_scipy(Rotation.from_rotvec(angles[:, None] * np.eye(3)[axis]))
    np.testing.assert_allclose(rotations.about(axis, convert(angles)), expected, atol=tolerance)


@pytest.mark.parametrize("kind", KINDS)
def test_both_signs_are_the_same_rotation(kind):
    convert, tolerance = KINDS[kind]
    a, b, vector, share = (convert(x) for x in (A, B, VECTOR, SHARE))
    for function, arguments in (
        (rotations.to_vector, ()),
        (rotations.angle, ()),
        (rotations.heading, ()),
        (rotations.two_columns, ()),
        (rotations.rotate, (vector,)),
    ):
        np.testing.assert_allclose(function(-a, *arguments), function(a, *arguments), atol=tolerance)
    np.testing.assert_allclose(rotations.slerp(a, -b, share), rotations.slerp(a, b, share), atol=5 * tolerance)


@pytest.mark.parametrize("kind", KINDS)
@pytest.mark.parametrize("angle", [0.0, 1e-18, 1e-9, 1e-6, 3e-6, 1e-3, 1.0, 3.0, 3.1415])
def test_vectors_come_back_at_every_angle(angle, kind):
    convert, tolerance = KINDS[kind]
    direction = VECTOR / np.linalg.norm(VECTOR, axis=-1, keepdims=True)
    there = rotations.from_vector(convert(angle * direction))
    np.testing.assert_allclose(rotations.to_vector(there), angle * direction, atol=tolerance * angle, rtol=tolerance)
    np.testing.assert_allclose(rotations.angle(there), angle, atol=1e-19, rtol=tolerance)  # squares underflow
    np.testing.assert_allclose(np.linalg.norm(there, axis=-1), 1.0, atol=tolerance)


def test_hand_arithmetic():
    quarter = rotations.about(2, np.array(0.5 * np.pi))  # x to y
    np.testing.assert_allclose(rotations.rotate(quarter, np.array([1.0, 2.0, 3.0])), [-2.0, 1.0, 3.0], atol=1e-15)
    assert rotations.heading(quarter) == pytest.approx(0.5 * np.pi)
    over = rotations.multiply(rotations.about(0, np.array(0.5 * np.pi)), quarter)  # x to y, and on to z
    np.testing.assert_allclose(rotations.rotate(over, np.array([1.0, 0.0, 0.0])), [0.0, 0.0, 1.0], atol=1e-15)
    np.testing.assert_allclose(rotations.two_columns(quarter), [0, 1, 0, -1, 0, 0], atol=1e-15)


HALF, ONE, UP = np.eye(4)[1], np.eye(4)[0], np.array([0.5, 0.5, -0.5, 0.5])
HARD = {
    "identity": ONE,
    "minus identity": -ONE,
    "half turn": HALF,
    "x axis straight up": UP,
    "near": ONE + 1e-20 * HALF,
}


@pytest.mark.parametrize("name", ["to_vector", "angle", "heading", "two_columns", "inverse"])
@pytest.mark.parametrize("place", HARD)
def test_gradients_are_finite(name, place):
    gradient = jax.jacobian(getattr(rotations, name))(jnp.asarray(HARD[place], jnp.float32))
    assert np.isfinite(gradient).all()


def test_the_straight_up_case_is_singular():
    """Else the gradient there would prove nothing."""
    up = jnp.asarray(UP, jnp.float32)
    np.testing.assert_array_equal(rotations.rotate(up, jnp.array([1.0, 0.0, 0.0])), [0.0, 0.0, 1.0])
    assert rotations.heading(up) == 0.0


@pytest.mark.parametrize("place", HARD)
def test_gradients_of_equal_rotations_are_finite(place):
    a = jnp.asarray(HARD[place], jnp.float32)
    assert np.isfinite(jax.jacobian(rotations.angle_between, argnums=(0, 1))(a, a)).all()
    assert np.isfinite(jax.jacobian(rotations.slerp, argnums=(0, 1))(a, a, jnp.array(0.3))).all()


def test_gradients_where_the_angle_is_0():
    """q = (1, v / 2) to first order."""
    at_zero = jax.jacobian(rotations.from_vector)(jnp.zeros(3))
    np.testing.assert_allclose(at_zero, np.eye(4)[:, 1:] / 2)
    for sign in (1.0, -1.0):
        at_one = jax.jacobian(rotations.to_vector)(sign * jnp.asarray(ONE, jnp.float32))
        np.testing.assert_allclose(at_one, 2 * sign * np.eye(4)[1:])
    np.testing.assert_array_equal(jax.grad(rotations.angle)(jnp.asarray(ONE, jnp.float32)), 0.0)


@pytest.mark.parametrize("name", QUATERNIONS | NUMBERS)
def test_gradients_against_differences(name):
    arguments = [argument[:5] for argument in (QUATERNIONS | NUMBERS)[name][0]]
    function, step = getattr(rotations, name), 1e-6
    directions = [np.random.default_rng(5).normal(size=argument.shape) for argument in arguments]
    above, below = (function(*(x + sign * step * d for x, d in zip(arguments, directions))) for sign in (1.0, -1.0))
    as_jax = [[jnp.asarray(x, jnp.float32) for x in xs] for xs in (arguments, directions)]
    _, derivative = jax.jvp(function, as_jax[0], as_jax[1])
    np.testing.assert_allclose(derivative, (above - below) / (2 * step), rtol=1e-3, atol=1e-4)
