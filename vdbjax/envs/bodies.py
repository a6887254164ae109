"""Where a character's bodies are and how they move, from its generalised positions and velocities.

MuJoCo's kinematics, for a batch at once, in NumPy or JAX: MuJoCo's own take one environment after the other, and leave
all threads but one of a host idle. Inside, a vector is a tuple of its components, each `[bodies, num_envs]`, whose last
axis is long enough for a processor's vectors.
"""

from typing import Any, NamedTuple

import jax
import numpy as np
from jaxtyping import Float

from vdbjax.envs.humanoid_model import HUMANOID, Character
from vdbjax.rotations import Components, crossed, product, turned

STILL = (0.0, 0.0, 0.0)
UPRIGHT = (1.0, 0.0, 0.0, 0.0)


class Bodies(NamedTuple):
    """Where all bodies are and how they move, in the world; in the order of `humanoid_model.BODIES`."""

    position: Float[Any, "*batch bodies 3"]  # metres, of the joint that holds the body
    rotation: Float[Any, "*batch bodies 4"]
    velocity: Float[Any, "*batch bodies 3"]  # metres per second
    angular: Float[Any, "*batch bodies 3"]  # radians per second
    centre_of_mass: Float[Any, "*batch 3"]  # of the whole character, metres


def bodies_of(
    qpos: Float[Any, "num_envs nq"], qvel: Float[Any, "num_envs nv"], character: Character = HUMANOID
) -> Bodies:
    """The bodies of states; NumPy or JAX, as they are."""
    qpos, qvel = qpos.T, qvel.T
    turn, spin = _joints(qpos, qvel, character)
    place, first_turn, speed, first_spin = _root(qpos, qvel, character)
    turn, spin = _with_root(turn, first_turn), _with_root(spin, first_spin)
    rotation = turn
    for _ in range(_depth(character)):  # each pass carries the rotations one joint further out
        rotation = product(_above(rotation, UPRIGHT, character), turn)
    frame = _above(rotation, UPRIGHT, character)
    arm = turned(frame, _with_root(_numbers(character, "offset", qpos), place))
    reach = turned(rotation, _numbers(character, "centre", qpos))
    with jax.default_matmul_precision("highest"):
        angular = _summed(turned(frame, spin), character)
        swing = crossed(_above(angular, STILL, character), arm)
        position, velocity = _summed(arm, character), _summed(_with_root(swing, speed), character)
        centre = _weighted(tuple(joint + beyond for joint, beyond in zip(position, reach)), character)
    return Bodies(_by_env(position), _by_env(rotation), _by_env(velocity), _by_env(angular), centre)


def _root(qpos: Any, qvel: Any, character: Character) -> tuple[Components, ...]:
    """Its position, rotation, velocity and angular velocity, of a free joint in the frame that it has turned to."""
    xp = qpos.__array_namespace__()
    if character.planar:
        nothing, half = xp.zeros_like(qpos[0]), 0.5 * qpos[2]
        turn = (xp.cos(half), nothing, xp.sin(half), nothing)
        return (qpos[0], nothing, qpos[1]), turn, (qvel[0], nothing, qvel[1]), (nothing, qvel[2], nothing)
    length = xp.sqrt(xp.sum(qpos[3:7] ** 2, axis=0))
    turn = tuple(number / length for number in qpos[3:7])
    return tuple(qpos[:3]), turn, tuple(qvel[:3]), turned(turn, tuple(qvel[3:6]))


def _joints(qpos: Any, qvel: Any, character: Character) -> tuple[Components, Components]:
    """Rotation and angular velocity of every body in its parent's frame: before * Rx Rz Ry * after, by the hinges that
    there are. The root's rows mean nothing."""
    xp = qpos.__array_namespace__()
    x, z, y = (0.5 * _by_body(qpos, character.qpos_of_hinges, character, axis) for axis in "xzy")
    x_speed, z_speed, y_speed = (_by_body(qvel, character.qvel_of_hinges, character, axis) for axis in "xzy")
    before, after = (_numbers(character, name, qpos) for name in ("before", "after"))
    nothing = xp.zeros_like(x)
    first, middle = (xp.cos(x), xp.sin(x), nothing, nothing), (xp.cos(z), nothing, nothing, xp.sin(z))
    last = (xp.cos(y), nothing, xp.sin(y), nothing)
    turn = product(before, product(first, product(middle, product(last, after))))
    across, along, up = turned(middle, (nothing, y_speed, nothing))
    across, along, up = turned(first, (across, along, up + z_speed))
    return turn, turned(before, (across + x_speed, along, up))


def _by_body(rows: Any, where: np.ndarray, character: Character, axis: str) -> Float[Any, "bodies num_envs"]:
    """Of each body the number of its hinge about this axis, 0 where it has none."""
    xp = rows.__array_namespace__()
    names = [f"{part.name}_{axis}" for part in character.parts]
    found = np.array([where[character.hinges.index(name)] if name in character.hinges else -1 for name in names])
    return xp.concatenate([rows, xp.zeros_like(rows[:1])])[found]


def _numbers(character: Character, name: str, like: Any) -> Components:
    """A vector of every part."""
    xp, columns = like.__array_namespace__(), np.array([getattr(part, name) for part in character.parts]).T
    return tuple(xp.asarray(column, dtype=like.dtype)[:, None] for column in columns)


def _with_root(vectors: Components, root: Components) -> Components:
    """The vectors, with the root's row put in."""
    xp = root[0].__array_namespace__()
    return tuple(
        xp.concatenate([row[None], xp.broadcast_to(rows[1:], (len(rows) - 1, *row.shape))])
        for rows, row in zip(vectors, root, strict=True)
    )


def _above(vectors: Components, world: tuple[float, ...], character: Character) -> Components:
    """The vector of each body's parent, the root's being the world's."""
    xp = vectors[0].__array_namespace__()
    rows = np.array(character.parents)  # -1 for the root, which is the row put last
    return tuple(
        xp.concatenate([column, xp.full_like(column[:1], number)])[rows]
        for column, number in zip(vectors, world, strict=True)
    )


def _summed(vectors: Components, character: Character) -> Components:
    """Of each body the sum of its own and of all bodies' between it and the world."""
    rows = np.eye(len(character.parts))
    for row, parent in enumerate(character.parents):
        rows[row] += rows[parent] if parent >= 0 else 0.0
    return tuple(column.__array_namespace__().asarray(rows, dtype=column.dtype) @ column for column in vectors)


def _weighted(vectors: Components, character: Character) -> Float[Any, "num_envs n"]:
    """The mean over the bodies, by their masses."""
    xp, masses = vectors[0].__array_namespace__(), np.array([part.mass for part in character.parts])
    share = xp.asarray(masses / masses.sum(), dtype=vectors[0].dtype)
    return xp.stack([share @ column for column in vectors], axis=-1)


def _by_env(vectors: Components) -> Float[Any, "num_envs bodies n"]:
    return vectors[0].__array_namespace__().stack(vectors, axis=-1).swapaxes(0, 1)


def _depth(character: Character) -> int:
    """Joints between the root and the body farthest from it."""
    found = [0]
    for parent in character.parents[1:]:
        found.append(found[parent] + 1)
    return max(found)
