"""Rotations as unit quaternions (w, x, y, z), for NumPy and JAX arrays alike: the result is of the arguments' kind.

`multiply(a, b)` turns by b first, then by a. Angles are radians. q and -q are the same rotation, and every function
here gives the same for both, up to that sign.
"""

from typing import Any

from jaxtyping import Float

Quaternion = Float[Any, "*batch 4"]
Vector = Float[Any, "*batch 3"]
Components = tuple[Any, ...]
"""A quaternion's four or a vector's three numbers, as arrays beside one another."""


def multiply(a: Quaternion, b: Quaternion) -> Quaternion:
    """The rotation b, followed by the rotation a."""
    return _joined(product(_apart(a), _apart(b)))


def product(a: Components, b: Components) -> Components:
    """`multiply` of rotations that lie apart."""
    (aw, ax, ay, az), (bw, bx, by, bz) = a, b
    return (
        aw * bw - ax * bx - ay * by - az * bz,
        aw * bx + ax * bw + ay * bz - az * by,
        aw * by - ax * bz + ay * bw + az * bx,
        aw * bz + ax * by - ay * bx + az * bw,
    )


def sign_continuous(rotations: Quaternion) -> Quaternion:
    """The same rotations, each by the sign that is nearer to the one before; the first axis is time."""
    xp = rotations.__array_namespace__()
    apart = xp.sum(rotations[1:] * rotations[:-1], axis=-1, keepdims=True) < 0.0
    return xp.concatenate([rotations[:1], rotations[1:] * xp.cumprod(xp.where(apart, -1.0, 1.0), axis=0)])


def inverse(a: Quaternion) -> Quaternion:
    """The rotation back."""
    xp = a.__array_namespace__()
    return xp.concatenate([a[..., :1], -a[..., 1:]], axis=-1)


def rotate(a: Quaternion, vector: Vector) -> Vector:
    """The vector turned by the rotation: v + 2 w (u x v) + 2 u x (u x v), with a = (w, u)."""
    return _joined(turned(_apart(a), _apart(vector)))


def turned(a: Components, vector: Components) -> Components:
    """`rotate` of a rotation and a vector that lie apart."""
    w, axis = a[0], a[1:]
    twice = tuple(2.0 * number for number in crossed(axis, vector))
    return tuple(v + w * t + more for v, t, more in zip(vector, twice, crossed(axis, twice)))


def crossed(a: Components, b: Components) -> Components:
    """The cross product of two vectors."""
    (ax, ay, az), (bx, by, bz) = a, b
    return ay * bz - az * by, az * bx - ax * bz, ax * by - ay * bx


def angle(a: Quaternion) -> Float[Any, "*batch"]:
    """How far it turns, in [0, pi]. Exact also near 0, where an arccosine of w would lose half the digits."""
    xp = a.__array_namespace__()
    return 2.0 * xp.arctan2(_length(a[..., 1:]), xp.abs(a[..., 0]))


def angle_between(a: Quaternion, b: Quaternion) -> Float[Any, "*batch"]:
    """The geodesic distance of two rotations, in [0, pi]."""
    return angle(multiply(inverse(a), b))


def to_vector(a: Quaternion) -> Vector:
    """The rotation vector: axis times angle, the angle in [0, pi]."""
    xp = a.__array_namespace__()
    length = _length(a[..., 1:])
    small = length < 1e-6
    # 2 atan2(s, w) / s tends to 2 / w; the inner where keeps the unused branch, and its gradient, finite.
    factor = 2.0 * xp.arctan2(length, xp.abs(a[..., 0])) / xp.where(small, 1.0, length)
    factor = xp.where(small, 2.0, factor)
    return xp.where(a[..., 0] < 0.0, -factor, factor)[..., None] * a[..., 1:]


def from_vector(vector: Vector) -> Quaternion:
    """The rotation of a rotation vector, with w >= 0 for angles up to pi."""
    xp = vector.__array_namespace__()
    half = 0.5 * _length(vector)
    small = half < 1e-6
    factor = xp.where(small, 0.5, 0.5 * xp.sin(half) / xp.where(small, 1.0, half))
    return xp.concatenate([xp.cos(half)[..., None], factor[..., None] * vector], axis=-1)


def about(axis: int, angle_rad: Float[Any, "*batch"]) -> Quaternion:
    """The rotation about x, y or z (0, 1, 2) by an angle."""
    xp = angle_rad.__array_namespace__()
    parts = [xp.zeros_like(angle_rad)] * 3
    parts[axis] = xp.sin(0.5 * angle_rad)
    return xp.stack([xp.cos(0.5 * angle_rad), *parts], axis=-1)


def slerp(a: Quaternion, b: Quaternion, share: Float[Any, "*batch"]) -> Quaternion:
    """From a (share 0) to b (share 1) the shorter way, at constant angular velocity."""
    return multiply(a, from_vector(share[..., None] * to_vector(multiply(inverse(a), b))))


def heading(a: Quaternion) -> Float[Any, "*batch"]:
    """The direction, about the vertical z, in which the rotation leaves the x axis (0 where it is left vertical)."""
    xp = a.__array_namespace__()
    w, x, y, z = (a[..., i] for i in range(4))
    left, ahead = 2.0 * (x * y + w * z), 1.0 - 2.0 * (y * y + z * z)
    # arctan2(0, 0) is 0, but its gradient NaN.
    return xp.arctan2(left, xp.where((left == 0.0) & (ahead == 0.0), 1.0, ahead))


def two_columns(a: Quaternion) -> Float[Any, "*batch 6"]:
    """The first two columns of the rotation matrix: a continuous description for networks (Zhou et al. 2019)."""
    xp = a.__array_namespace__()
    w, x, y, z = (a[..., i] for i in range(4))
    first = (1 - 2 * (y * y + z * z), 2 * (x * y + w * z), 2 * (x * z - w * y))
    second = (2 * (x * y - w * z), 1 - 2 * (x * x + z * z), 2 * (y * z + w * x))
    return xp.stack([*first, *second], axis=-1)


def _length(vector: Float[Any, "*batch n"]) -> Float[Any, "*batch"]:
    """The Euclidean norm, with gradient 0 at 0."""
    xp = vector.__array_namespace__()
    square = xp.sum(vector * vector, axis=-1)
    zero = square == 0.0
    return xp.where(zero, 0.0, xp.sqrt(xp.where(zero, 1.0, square)))


def _apart(a: Float[Any, "*batch n"]) -> Components:
    return tuple(a[..., i] for i in range(a.shape[-1]))


def _joined(parts: Components) -> Any:
    return parts[0].__array_namespace__().stack(parts, axis=-1)
