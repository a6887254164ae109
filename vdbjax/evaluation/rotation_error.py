"""How far an imitated motion is from its reference, pose against pose: in joint angles, and in metres.

A rotation is a unit quaternion (w, x, y, z), and q and -q are the same. Joint 0 is the root: its rotation in the world;
the other joints' are relative to their parents. Body 0 is the root too: positions are in the world, z up.

"Without heading" means that the whole reference is first turned about the vertical, by the turn that brings its root's
rotation nearest to the character's. Setting both headings (the direction in which the root's x axis points) to zero
instead would do the same to upright bodies, but a somersault's heading jumps by pi where that axis passes the vertical:
a backflip one frame late would be 2.5 rad off at the root with its heading "removed", and 0.6 rad with it.
"""

from typing import Any, NamedTuple

import jax.numpy as jnp
import numpy as np
from jaxtyping import Array, Bool, Float

from vdbjax import rotations
from vdbjax.types import Posture

Rotations = Float[Any, "*batch joints 4"]


class MotionErrors(NamedTuple):
    """How far poses are apart: at each step, or in the mean over an episode."""

    rotation_rad: Float[Array, "*batch"]  # as VDB scores it
    rotation_without_heading_rad: Float[Array, "*batch"]
    root_position_m: Float[Array, "*batch"]  # Euclidean, in the world
    body_position_m: Float[Array, "*batch"]  # relative to the root, without heading; mean over the other bodies


def rotation_error(character: Rotations, reference: Rotations) -> Float[Any, "*batch"]:
    """Mean over the joints of the angle between the two rotations, in [0, pi] radians.

    (1 / J) sum over j of 2 arccos |<character_j, reference_j>|, the root counting as one joint of J; `[..., 1:, :]` of
    both gives the error of the others alone. For NumPy and JAX arrays. VDB section 5.1; the paper gives no formula.
    """
    return rotations.angle_between(character, reference).mean(axis=-1)


def rotation_error_without_heading(character: Rotations, reference: Rotations) -> Float[Any, "*batch"]:
    """`rotation_error` at the best turn of the whole reference about the vertical, radians; never above it.

    The root's share becomes the angle between the directions in which the two roots see the vertical. For NumPy and
    JAX arrays.
    """
    root = reference[..., 0, :]
    turned = rotations.multiply(_nearest_turn(character[..., 0, :], root), root)
    xp = reference.__array_namespace__()
    return rotation_error(character, xp.concatenate([turned[..., None, :], reference[..., 1:, :]], axis=-2))


def motion_errors(character: Posture, reference: Posture) -> MotionErrors:
    """All errors of each pose."""
    (rotation, position), (reference_rotation, reference_position) = character, reference
    turn = _nearest_turn(rotation[..., 0, :], reference_rotation[..., 0, :])[..., None, :]
    relative, reference_relative = (x[..., 1:, :] - x[..., :1, :] for x in (position, reference_position))
    turned = rotations.rotate(jnp.broadcast_to(turn, (*relative.shape[:-1], 4)), reference_relative)
    return MotionErrors(
        rotation_error(rotation, reference_rotation),
        rotation_error_without_heading(rotation, reference_rotation),
        jnp.linalg.norm(position[..., 0, :] - reference_position[..., 0, :], axis=-1),
        jnp.linalg.norm(relative - turned, axis=-1).mean(axis=-1),
    )


def over_episode(
    errors: MotionErrors, alive: Bool[Array, "time *batch"], fallen: Bool[Array, "time *batch"]
) -> MotionErrors:
    """Means over an episode's full length, each field [time *batch] -> [*batch].

    Rotation errors count pi at every step after a fall, so that falling never pays; the errors in metres, which have
    no such bound, are means over the steps alive (NaN where there is none). Steps neither alive nor fallen, after the
    end of a clip that does not repeat, do not count; those after a fall do, however short the clip. What `errors` holds
    after the end does not matter, NaN included. VDB appendix C.
    """
    steps_alive, steps = alive.sum(axis=0), (alive | fallen).sum(axis=0)
    rotation = [
        (jnp.where(alive, error, 0.0).sum(axis=0) + jnp.pi * fallen.sum(axis=0)) / steps for error in errors[:2]
    ]
    position = [jnp.where(alive, error, 0.0).sum(axis=0) / steps_alive for error in errors[2:]]
    return MotionErrors(*rotation, *position)


def dtw_rotation_error(character: Float[Any, "time joints 4"], reference: Float[Any, "time2 joints 4"]) -> float:
    """Rotation error without heading of two motions aligned by dynamic time warping, radians.

    A path pairs frames from (first, first) to (last, last), and each pair follows the one before by one frame in one
    motion or in both. Among all paths the one with the least sum of errors counts, of several the one with the fewest
    pairs; the result is its sum divided by its number of pairs. So neither timing nor speed counts, except that nothing
    is left out. On the host, in float64.

    Raises ValueError for a motion without frames.
    """
    character, reference = np.asarray(character, np.float64), np.asarray(reference, np.float64)
    if not len(character) or not len(reference):
        raise ValueError(
            f"character ({len(character)} frames) and reference ({len(reference)} frames) need one frame each at least"
        )
    # Row by row: faster than all pairs at once, which take 0.7 GB for 600 frames each.
    rows = [rotation_error_without_heading(np.broadcast_to(pose, reference.shape), reference) for pose in character]
    total, pairs = _least_path(np.stack(rows))
    return total / pairs


def _nearest_turn(character: rotations.Quaternion, reference: rotations.Quaternion) -> rotations.Quaternion:
    """The turn T about the vertical with T * reference nearest to the character.

    With D = character * reference^-1 = (w, x, y, z): <T, D> is greatest at the angle 2 atan2(z, w).
    """
    difference = rotations.multiply(character, rotations.inverse(reference))
    xp = difference.__array_namespace__()
    return rotations.about(2, 2.0 * xp.arctan2(difference[..., 3], difference[..., 0]))


def _least_path(cost: Float[np.ndarray, "time time2"]) -> tuple[float, float]:
    """Sum and number of pairs of the warping path with the least (sum, number).

    total[i, j] = cost[i, j] + min(total[i - 1, j - 1], total[i - 1, j], total[i, j - 1]), an antidiagonal at a time.
    """
    height, width = cost.shape
    row, column = np.indices(cost.shape)
    diagonals = np.full((height + width - 1, height), np.inf)
    diagonals[row + column, row] = cost
    # (total, pairs) of the last two antidiagonals, at i + 1; every path starts from a pair (-1, -1) that costs nothing.
    before, last = np.full((2, height + 1), np.inf), np.full((2, height + 1), np.inf)
    before[:, 0] = 0.0
    for costs in diagonals:
        total, pairs = np.stack([before[:, :-1], last[:, :-1], last[:, 1:]], axis=1)
        least = total.min(axis=0)
        fewest = np.where(total == least, pairs, np.inf).min(axis=0)
        before, last = last, np.full((2, height + 1), np.inf)
        last[:, 1:] = least + costs, fewest + 1.0
    return float(last[0, -1]), float(last[1, -1])
