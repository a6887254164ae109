"""A clip as the humanoid would move along it: a table over the phase, and the reference at any time read from it."""

from typing import Any, NamedTuple

import jax
import jax.numpy as jnp
import mujoco
import numpy as np
from jaxtyping import Array, Float, Int

from vdbjax.data.mocap import Clip, around, pose_at, velocity_at
from vdbjax.envs.bodies import Bodies, bodies_of
from vdbjax.envs.humanoid_model import BODIES, HUMANOID, Character, to_qpos
from vdbjax.rotations import about, heading, inverse, multiply, rotate, sign_continuous, to_vector

ROWS_HZ = 240
"""Rows of the table a second: between them the reference is interpolated linearly."""

CLEARANCE = 1e-4
"""Metres between the floor and a pose lifted out of it: where they just touch, float32 and float64 may disagree."""

CUTOFF_HZ = 6.0
"""Above it the reference's velocities fade away, as in DeepMimic's released code. Recorded ones are rough: `run`, of 30
frames a second, rolls by 5 rad/s between two of them, and whoever starts there is thrown over."""


class Motion(NamedTuple):
    """A clip's table; n rows a cycle and one more, which is the first again (for clips without loop, the last)."""

    character: Character  # that moves along it
    duration: float  # seconds
    loop: bool
    displacement: Float[Any, " 2"]  # metres a cycle; the table holds the first cycle
    qpos: Float[np.ndarray, "rows nq"]  # hinge angles run on through pi
    qvel: Float[np.ndarray, "rows nv"]
    lift: Float[np.ndarray, " rows"]  # metres that free the pose of the floor
    bodies: Bodies

    @property
    def num_rows(self) -> int:
        """Rows a cycle."""
        return len(self.qpos) - 1


class Anchor(NamedTuple):
    """Where the reference's cycle has been laid: it turns about the vertical and moves to where the character is."""

    position: Float[Array, "num_envs 2"]  # metres
    heading: Float[Array, " num_envs"]  # radians


def make_motion(clip: Clip, model: mujoco.MjModel, character: Character = HUMANOID) -> Motion:
    """The clip's table for the character of this model; its velocities are central differences, smoothed."""
    count = max(2, round(ROWS_HZ * clip.duration))
    seconds = np.linspace(0.0, clip.duration, count + 1)
    qpos, qvel = _generalised(clip, seconds, character)
    bodies = bodies_of(qpos, qvel, character)
    displacement = np.asarray(clip.displacement)[:2]
    lift = np.array([_lift(model, row) for row in qpos])
    bodies = bodies._replace(rotation=sign_continuous(bodies.rotation))
    return Motion(character, clip.duration, clip.loop, displacement, qpos, qvel, lift, bodies)


def _generalised(clip: Clip, seconds: np.ndarray, character: Character) -> tuple[np.ndarray, np.ndarray]:
    """qpos and qvel along the clip; the hinges turn on through pi, each about the multiple of 2 pi nearest 0."""
    where = character.qpos_of_hinges
    begin, end = around(clip, seconds)
    middle, before, after = (to_qpos(pose_at(clip, at), character) for at in (seconds, begin, end))
    moving = velocity_at(clip, seconds)
    velocity, angular = moving.root_velocity, moving.angular[:, 0]
    root = (velocity[:, ::2], angular[:, 1:2]) if character.planar else (velocity, angular)
    turned = after[:, where] - before[:, where]
    qvel = np.concatenate([*root, np.empty_like(turned)], axis=1)
    turned = turned - 2 * np.pi * np.round(turned / (2 * np.pi))
    qvel[:, character.qvel_of_hinges] = turned / (end - begin)[:, None]
    qvel = _smooth(qvel, hertz=len(seconds[1:]) / clip.duration, loop=clip.loop)
    angles = np.unwrap(middle[:, where], axis=0)
    middle[:, where] = angles - 2 * np.pi * np.round(angles.mean(axis=0) / (2 * np.pi))
    return middle, qvel


def _smooth(rows: Float[np.ndarray, "rows columns"], *, hertz: float, loop: bool) -> Float[np.ndarray, "rows columns"]:
    """The rows through a Butterworth filter of second order, forth and back, so that nothing lags. A loop goes round;
    other clips are reflected at their ends."""
    cycle = rows[:-1] if loop else np.concatenate([rows, rows[::-1]])
    gain = 1.0 / (1.0 + (np.fft.rfftfreq(len(cycle), 1.0 / hertz) / CUTOFF_HZ) ** 4)
    smooth = np.fft.irfft(gain[:, None] * np.fft.rfft(cycle, axis=0), n=len(cycle), axis=0)
    return smooth[np.arange(len(rows)) % len(cycle)]


def _lift(model: mujoco.MjModel, qpos: np.ndarray) -> float:
    data = mujoco.MjData(model)
    data.qpos[:] = qpos
    mujoco.mj_forward(model, data)
    deepest = min([0.0, *data.contact.dist.tolist()])
    return CLEARANCE - deepest if deepest < 0 else 0.0


def target_range(motion: Motion, *, margin_rad: float) -> tuple[np.ndarray, np.ndarray]:
    """The lowest and highest PD target of each hinge that holds the clip's own motion, and a margin beyond.

    The force kp (target - q) - kd q' vanishes at q + (kd / kp) q': the target leads the motion by 0.1 s.
    """
    angles, speeds = motion.qpos[:, motion.character.qpos_of_hinges], motion.qvel[:, motion.character.qvel_of_hinges]
    both = np.concatenate([angles + lead_seconds(motion.character) * speeds, angles])
    return both.min(axis=0) - margin_rad, both.max(axis=0) + margin_rad


def lead_seconds(character: Character) -> np.ndarray:
    """kd / kp of each hinge, by which a PD controller lags behind its target."""
    return character.gains[:, 1] / character.gains[:, 0]


def read(motion: Motion, values: Any, seconds: Float[Array, " num_envs"]) -> Any:
    """A tree of the table's columns at these times, between the two rows next to each."""
    cycles = seconds / motion.duration
    place = (cycles - jnp.floor(cycles) if motion.loop else jnp.clip(cycles, 0.0, 1.0)) * motion.num_rows
    row = jnp.clip(jnp.floor(place).astype(jnp.int32), 0, motion.num_rows - 1)
    share = place - row

    def between(column: Any) -> Array:
        column = jnp.asarray(column, jnp.float32)
        weight = share.reshape(-1, *[1] * (column.ndim - 1))
        return (1.0 - weight) * column[row] + weight * column[row + 1]

    return jax.tree.map(between, values)


def bodies_at(motion: Motion, seconds: Float[Array, " num_envs"]) -> Bodies:
    """The reference's first cycle at the phase of these times."""
    found = read(motion, motion.bodies, seconds)
    return found._replace(rotation=found.rotation / jnp.linalg.norm(found.rotation, axis=-1, keepdims=True))


def moved(before: Bodies, after: Bodies, seconds: float) -> Bodies:
    """The bodies `after`, with their mean velocities since `before`, so many seconds earlier."""
    turned = to_vector(multiply(after.rotation, inverse(before.rotation)))
    return after._replace(velocity=(after.position - before.position) / seconds, angular=turned / seconds)


def arrived_at(motion: Motion, seconds: Float[Array, " num_envs"], step: float) -> Bodies:
    """The reference at these times with its mean velocities over the `step` seconds before; without a loop, within the
    first step, over that."""
    end = seconds if motion.loop else jnp.maximum(seconds, step)
    before, after = (carried_on(motion, bodies_at(motion, at), cycle_of(motion, at)) for at in (end - step, end))
    mean = moved(before, after, step)
    return bodies_at(motion, seconds)._replace(velocity=mean.velocity, angular=mean.angular)


def cycle_of(motion: Motion, seconds: Float[Array, " num_envs"]) -> Int[Array, " num_envs"]:
    """How many cycles have been completed."""
    if not motion.loop:
        return jnp.zeros(seconds.shape, jnp.int32)
    return jnp.floor(seconds / motion.duration).astype(jnp.int32)


def carried_on(motion: Motion, bodies: Bodies, cycles: Int[Array, " num_envs"]) -> Bodies:
    """The reference moved on by the displacement of so many cycles, as in the world of the clip."""
    offset = cycles[:, None] * jnp.asarray(motion.displacement, jnp.float32)[None]
    return laid(bodies, Anchor(offset, jnp.zeros(len(cycles))))


def laid(bodies: Bodies, anchor: Anchor) -> Bodies:
    """The reference where the anchor says: turned about the origin's vertical, then moved."""
    turn = about(2, anchor.heading)

    def turned(vectors: Array) -> Array:
        return rotate(_for_each(turn, vectors), vectors)

    shift = jnp.concatenate([anchor.position, jnp.zeros((len(anchor.position), 1))], axis=-1)
    return Bodies(
        turned(bodies.position) + shift[:, None],
        multiply(_for_each(turn, bodies.rotation), bodies.rotation),
        turned(bodies.velocity),
        turned(bodies.angular),
        rotate(turn, bodies.centre_of_mass) + shift,
    )


def facing(character: Character, bodies: Bodies) -> Float[Any, "*batch"]:
    """The root's heading, radians; that of a planar character is always 0, upside down too."""
    root = bodies.rotation[..., 0, :]
    return root.__array_namespace__().zeros_like(root[..., 0]) if character.planar else heading(root)


def anchor_at(motion: Motion, bodies: Bodies, reference: Bodies) -> Anchor:
    """What lays the reference, as it comes from the table, under the character: same heading, root above root."""
    turn = facing(motion.character, bodies) - facing(motion.character, reference)
    moved = rotate(about(2, turn), reference.position[:, 0])
    return Anchor((bodies.position[:, 0] - moved)[:, :2], turn)


def relative_rotations(bodies: Bodies, character: Character = HUMANOID) -> Float[Array, "*batch joints 4"]:
    """The root's rotation in the world, then that of each joint which moves: of its body relative to the parent."""
    rows = np.array([BODIES.index(joint) for joint in character.joints])
    parents = np.array(character.parents)[rows]
    joints = multiply(inverse(bodies.rotation[..., parents, :]), bodies.rotation[..., rows, :])
    return jnp.concatenate([bodies.rotation[..., :1, :], joints], axis=-2)


def heading_free(bodies: Bodies, character: Character = HUMANOID) -> Bodies:
    """The bodies as seen from the root: positions from the root's place on the ground, all turned by its heading."""
    ground = bodies.position[:, 0] * jnp.array([[1.0, 1.0, 0.0]])
    above = bodies._replace(position=bodies.position - ground[:, None], centre_of_mass=bodies.centre_of_mass - ground)
    return laid(above, Anchor(jnp.zeros((len(ground), 2)), -facing(character, bodies)))


def _for_each(turn: Array, like: Array) -> Array:
    """The same rotation for every body."""
    return jnp.broadcast_to(turn[..., None, :], (*like.shape[:-1], 4))
