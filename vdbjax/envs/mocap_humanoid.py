"""Motion imitation: the humanoid beside one motion-capture clip (VDB section 5.1, appendix C).

An episode starts at a random phase of the clip, lasts 20 s, and ends early by a fall (`fall_detector`). The
policy sets PD targets 30 times a second. What it observes does not depend on place or heading, and ends with the phase.
The task's own reward is DeepMimic's (Peng et al. 2018, section 5): it tracks the clip.
"""

import math
from collections.abc import Callable
from functools import partial
from typing import Any, Literal, NamedTuple

import jax
import jax.numpy as jnp
import mujoco
import numpy as np
from jaxtyping import Array, Bool, Float

from vdbjax.data.mocap import Clip, ClipError, find_clip, load_clip
from vdbjax.envs.batch import end_of_step, where_done
from vdbjax.envs.bodies import Bodies, bodies_of
from vdbjax.envs.frame import Engine, EngineName, Frame, Implementation, pack, unpack
from vdbjax.envs.humanoid_model import BODIES, CONTROL_HZ, HUMANOID, PHYSICS_HZ, Character, make_model, spheres
from vdbjax.envs.on_host import on_host
from vdbjax.envs.physics import make_engine
from vdbjax.envs.reference_motion import (
    Anchor,
    Motion,
    anchor_at,
    arrived_at,
    bodies_at,
    carried_on,
    cycle_of,
    heading_free,
    laid,
    lead_seconds,
    make_motion,
    moved,
    read,
    relative_rotations,
    target_range,
)
from vdbjax.rotations import angle_between, inverse, rotate, two_columns
from vdbjax.types import Demonstrations, Environment, EnvState, Key, Posture, Step

EPISODE_SECONDS = 20.0
KEPT_OFF = 0.05  # metres above the ground from which on a clip counts as keeping a body off it
TARGET_MARGIN = 0.3  # radians that PD targets may lie beyond those that hold the clip's motion
RELATIVE_RANGE = 0.6  # radians around the clip, with relative targets
OPEN_TURN = 0.8  # of the circle of phases, for clips without loop: over all five sets of a PFNN, the last ones apart
ANGULAR_SCALE = 0.1  # of angular velocities in observations, which reach 30 rad/s
END_EFFECTORS = ("right_ankle", "left_ankle", "right_wrist", "left_wrist")

Targets = Literal["absolute", "relative"]

Velocities = Literal["instantaneous", "mean"]
"""What is observed: velocities of the moment, for a clip the smoothed ones of its poses; or those of the last control
step in the mean, for character and clip alike."""


class MotionState(NamedTuple):
    """`EnvState.physics` of this task; every leaf leads with num_envs."""

    frame: Any  # engine c: float64 state as uint32 words; mjx: a Frame
    bodies: Bodies
    start: Float[Array, " num_envs"]  # seconds into the clip at which the episode began
    anchor: Anchor  # where this cycle of the reference lies: it begins under the character


def make_mocap(
    clip: str,
    *,
    engine: EngineName = "auto",
    implementation: Implementation = "jax",
    targets: Targets = "absolute",
    velocities: Velocities = "instantaneous",
    physics_hz: int = PHYSICS_HZ,
) -> Environment:
    """The task of a clip's name or path. Raises ClipError where there is no such clip or it is damaged.

    Absolute targets span what the clip's own motion needs and 0.3 rad more; relative ones are added to the clip's.
    What velocities are observed is said at `Velocities`.
    Physics steps `physics_hz` times a second, a multiple of 30; the paper's did 1,200 times.
    """
    recorded = load_clip(find_clip(clip))
    environment, motion = follow_clip(
        recorded,
        HUMANOID,
        engine=engine,
        implementation=implementation,
        targets=targets,
        velocities=velocities,
        physics_hz=physics_hz,
    )
    return environment._replace(name=f"mocap/{recorded.name}", demonstrations=_demonstrations(motion, velocities))


def follow_clip(
    clip: Clip,
    character: Character,
    *,
    engine: EngineName,
    implementation: Implementation,
    targets: Targets,
    velocities: Velocities = "instantaneous",
    physics_hz: int = PHYSICS_HZ,
) -> tuple[Environment, Motion]:
    """The task of a character beside a clip, and the clip as the character moves along it; without demonstrations."""
    if physics_hz < CONTROL_HZ or physics_hz % CONTROL_HZ:
        raise ValueError(f"physics_hz ({physics_hz}) must be a multiple of the control rate ({CONTROL_HZ})")
    model = make_model(character)
    model.opt.timestep = 1 / physics_hz
    motion = make_motion(clip, model, character)
    low, high = target_range(motion, margin_rad=TARGET_MARGIN)
    if targets == "relative":
        low, high = np.full(len(low), -RELATIVE_RANGE), np.full(len(low), RELATIVE_RANGE)
    physics = make_engine(
        model,
        engine,
        frame_skip=physics_hz // CONTROL_HZ,
        cold_start=True,
        implementation=implementation,
    )
    advance, frames = _advance(model, motion, physics)
    starts = _starts(motion, frames, velocities)
    reset, step = _episodes(motion, advance, starts, targets, velocities)
    environment = Environment(
        name=clip.name,
        observation_size=starts.observation.shape[1],
        action_size=len(low),
        action_low=tuple(low.tolist()),
        action_high=tuple(high.tolist()),
        episode_length=round(EPISODE_SECONDS * CONTROL_HZ),
        reset=reset,
        step=step,
        phase_size=2,
        follow=lambda state: _follow(motion, state),
    )
    return environment, motion


def _episodes(
    motion: Motion, advance: Callable, starts: EnvState, targets: Targets, velocities: Velocities
) -> tuple[Callable, Callable]:
    on_ground = fall_detector(motion)
    length = round(EPISODE_SECONDS * CONTROL_HZ)

    def reset(key: Key, num_envs: int) -> EnvState:
        row = jax.random.randint(key, (num_envs,), 0, len(starts.elapsed))
        return jax.tree.map(lambda table: table[row], starts)

    def step(state: EnvState, action: Array, key: Key) -> tuple[EnvState, Step]:
        before: MotionState = state.physics
        now, seconds = (before.start + steps / CONTROL_HZ for steps in (state.elapsed, state.elapsed + 1))
        if targets == "relative":
            action = action + _leading_pose(motion, now)
        frame, bodies = advance(before.frame, action)
        reward, anchor = follow_reference(motion, before.anchor, bodies, now, seconds)
        fallen = on_ground(bodies) | _flung(bodies)
        elapsed, truncated, done = end_of_step(state.elapsed, fallen, episode_length=length)
        if not motion.loop:  # nothing to follow past the end
            truncated = truncated | (~fallen & (seconds + 1 / CONTROL_HZ > motion.duration))
            done = fallen | truncated
        shown = moved(before.bodies, bodies, 1 / CONTROL_HZ) if velocities == "mean" else bodies
        seen = observe(motion, shown, seconds)
        following = EnvState(MotionState(frame, bodies, before.start, anchor), seen, elapsed)
        after = where_done(jnp, done, reset(key, len(action)), following)
        return after, Step(seen, reward, fallen, truncated)

    return reset, step


def _starts(motion: Motion, frames: Any, velocities: Velocities) -> EnvState:
    """Every start that an episode can have, one for each row that a step follows: what a reset draws from."""
    count = len(_before_a_step(motion))
    seconds = jnp.arange(count) * (motion.duration / motion.num_rows)
    lift = jnp.asarray(motion.lift, jnp.float32)
    bodies = jax.tree.map(lambda column: jnp.asarray(column, jnp.float32), motion.bodies)
    bodies = bodies._replace(position=bodies.position.at[..., 2].add(lift[:, None]))
    frames, bodies = jax.tree.map(lambda table: table[:count], (frames, bodies))
    nowhere = Anchor(jnp.zeros((count, 2)), jnp.zeros(count))
    clip = _shown(motion, seconds, velocities)
    shown = bodies._replace(velocity=clip.velocity, angular=clip.angular)
    seen = jax.jit(partial(observe, motion))(shown, seconds)
    return EnvState(MotionState(frames, bodies, seconds, nowhere), seen, jnp.zeros(count, jnp.int32))


def _before_a_step(motion: Motion) -> Float[np.ndarray, " rows"]:
    """The times of the table's rows from which a control step ends within the clip, seconds; all of a loop.

    Raises ClipError where there is none.
    """
    seconds = np.arange(motion.num_rows) * (motion.duration / motion.num_rows)
    if not motion.loop:
        seconds = seconds[seconds + 1 / CONTROL_HZ <= motion.duration]
    if not len(seconds):
        raise ClipError(f"a clip of {motion.duration:.3g} s without a loop is shorter than a control step of 1/30 s")
    return seconds


def _advance(model: mujoco.MjModel, motion: Motion, physics: Engine) -> tuple:
    """(frame, PD targets) -> (frame, bodies) in JAX, and the frames of the table's rows, lifted out of the ground."""
    qpos = motion.qpos.copy()
    qpos[:, motion.character.qpos_of_height] += motion.lift
    at_rest = np.zeros_like(motion.qvel)
    if physics.name == "mjx":
        rows = jax.tree.map(lambda part: jnp.asarray(part, jnp.float32), Frame(qpos, motion.qvel, at_rest, {}))

        def in_jax(frame: Frame, targets: Array) -> tuple[Frame, Bodies]:
            after = physics.advance(frame, nearest_turn(motion, frame.qpos, targets))
            return after, bodies_of(after.qpos, after.qvel, motion.character)

        return in_jax, rows

    nothing = np.zeros((len(qpos), 0))
    words = pack(Frame(qpos, motion.qvel, at_rest, {}), nothing)

    def host(words: np.ndarray, targets: np.ndarray) -> tuple:
        frame = unpack(words, model)[0]
        after = physics.advance(frame, nearest_turn(motion, frame.qpos, targets.astype(np.float64)))
        return pack(after, nothing[:1].repeat(len(targets), axis=0)), after.qpos, after.qvel

    def like(num_envs: int) -> tuple:
        return (
            jax.ShapeDtypeStruct((num_envs, words.shape[1]), jnp.uint32),
            jax.ShapeDtypeStruct((num_envs, model.nq), jnp.float32),
            jax.ShapeDtypeStruct((num_envs, model.nv), jnp.float32),
        )

    def in_c(frame: Array, targets: Array) -> tuple[Array, Bodies]:
        after, qpos, qvel = on_host(host, like, frame, targets)
        return after, bodies_of(qpos, qvel, motion.character)

    return in_c, jnp.asarray(words)


def nearest_turn(
    motion: Motion, qpos: Float[Any, "num_envs nq"], targets: Float[Any, "num_envs action"]
) -> Float[Any, "num_envs action"]:
    """PD targets, radians; of hinges that go right round in a cycle of the clip the same direction within half a turn
    of where the hinge is, so that they are not turned back at the cycle's end."""
    hinges = motion.character.qpos_of_hinges
    round_ = motion.loop & (np.abs(motion.qpos[-1] - motion.qpos[0])[hinges] > math.pi)
    if not round_.any():
        return targets
    full, away = 2 * math.pi, qpos[:, hinges] - targets
    return targets + full * round_[None] * away.__array_namespace__().round(away / full)


def observe(motion: Motion, bodies: Bodies, seconds: Float[Array, " num_envs"]) -> Float[Array, "num_envs observation"]:
    """Root height, the other bodies' places relative to the root, all rotations (two columns of the matrix), linear
    and angular velocities, all in the root's heading; at the end cosine and sine of the phase, which goes round in a
    cycle, and in a clip without loop not to its end: `OPEN_TURN`.

    Of a planar character only what can change: x and z, the first column's x and z, and the velocities about y.
    """
    seen = heading_free(bodies, motion.character)
    root, others = seen.position[:, :1], seen.position[:, 1:]
    turns = 2 * jnp.pi * (1 if motion.loop else OPEN_TURN) * seconds / motion.duration
    places, columns, spins = (
        (slice(0, 3, 2), slice(0, 3, 2), slice(1, 2)) if motion.character.planar else [slice(6)] * 3
    )
    parts = (
        root[..., 2],
        (others - root)[..., places],
        two_columns(seen.rotation)[..., columns],
        seen.velocity[..., places],
        ANGULAR_SCALE * seen.angular[..., spins],
        jnp.stack([jnp.cos(turns), jnp.sin(turns)], axis=-1),
    )
    return jnp.concatenate([part.reshape(len(seconds), -1) for part in parts], axis=-1)


def observe_clip(
    motion: Motion, seconds: Float[Array, " num_envs"], velocities: Velocities = "instantaneous"
) -> Float[Array, "num_envs observation"]:
    """What would be observed in the clip itself."""
    return observe(motion, _shown(motion, seconds, velocities), seconds)


def _shown(motion: Motion, seconds: Float[Array, " num_envs"], velocities: Velocities) -> Bodies:
    return arrived_at(motion, seconds, 1 / CONTROL_HZ) if velocities == "mean" else bodies_at(motion, seconds)


def tracking_reward(bodies: Bodies, reference: Bodies, character: Character = HUMANOID) -> Float[Array, " num_envs"]:
    """DeepMimic's reward, in [0, 1]: 0.65 pose + 0.1 velocity + 0.15 end effectors + 0.1 centre of mass.

    Each is exp(-scale * sum of squared errors), scales 2, 0.1, 40 and 10 (Peng et al. 2018, eq. 6 to 9), the sums over
    joints weighted as in its released code: root 1, chest and hips .5, neck, knees and shoulders .3, ankles and elbows
    .2, scaled to a mean of 1.
    """
    given = np.array([character.part(name).weight for name in ("root", *character.joints)], np.float32)
    weights = jnp.asarray(given / given.mean())[None]
    a, b = relative_rotations(bodies, character), relative_rotations(reference, character)
    pose = jnp.sum(weights * angle_between(a, b) ** 2, axis=-1)
    speeds = _relative_velocities(bodies, character) - _relative_velocities(reference, character)
    velocity = jnp.sum(weights * _squared(speeds), axis=-1)
    ends = np.array([BODIES.index(name) for name in END_EFFECTORS])
    near, far = heading_free(bodies, character), heading_free(reference, character)
    reach = jnp.sum(_squared(near.position[:, ends] - far.position[:, ends]), axis=-1)
    centre = _squared(bodies.centre_of_mass - reference.centre_of_mass)
    return (
        0.65 * jnp.exp(-2.0 * pose)
        + 0.1 * jnp.exp(-0.1 * velocity)
        + 0.15 * jnp.exp(-40.0 * reach)
        + 0.1 * jnp.exp(-10.0 * centre)
    )


def _relative_velocities(bodies: Bodies, character: Character) -> Float[Array, "num_envs joints 3"]:
    """Angular velocities of the joints in the frames of their parents, the root's in the world."""
    rows = np.array([BODIES.index(joint) for joint in character.joints])
    parents = np.array(character.parents)[rows]
    joints = rotate(inverse(bodies.rotation[:, parents]), bodies.angular[:, rows] - bodies.angular[:, parents])
    return jnp.concatenate([bodies.angular[:, :1], joints], axis=1)


def _squared(vectors: Array) -> Array:
    return jnp.sum(vectors**2, axis=-1)


def fall_detector(motion: Motion) -> Callable[[Bodies], Bool[Array, " num_envs"]]:
    """What tells whether a body is on the ground that the clip keeps off it: in a run all but the feet, in a cartwheel
    all but feet and hands. In the paper it is the torso; but then a policy learns to rest on hand and knee, where an
    adversarial reward, which is positive everywhere, goes on for ever."""
    sensed = [
        (BODIES.index(part.name), centre, radius)
        for part in motion.character.parts
        if part.shape != "foot"
        for centre, radius in spheres(part)
    ]
    rows, centres, radii = (np.array(column) for column in zip(*sensed))

    def clearance(bodies: Bodies) -> Float[Array, "num_envs spheres"]:
        rotation = bodies.rotation[:, rows]
        reach = rotate(rotation, jnp.broadcast_to(jnp.asarray(centres, jnp.float32)[None], (*rotation.shape[:-1], 3)))
        return bodies.position[:, rows, 2] + reach[..., 2] - jnp.asarray(radii, jnp.float32)[None]

    in_the_clip = jax.jit(clearance)(jax.tree.map(lambda column: jnp.asarray(column, jnp.float32), motion.bodies))
    kept_off = jnp.min(in_the_clip, axis=0) > KEPT_OFF
    return lambda bodies: jnp.any((clearance(bodies) < 0) & kept_off[None], axis=-1)


def _flung(bodies: Bodies) -> Bool[Array, " num_envs"]:
    """Whether a body moves as none can: at 100 m/s or more."""
    return jnp.any(~(jnp.abs(bodies.velocity) < 100.0), axis=(1, 2))


def follow_reference(
    motion: Motion, anchor: Anchor, bodies: Bodies, begin: Float[Array, " num_envs"], end: Float[Array, " num_envs"]
) -> tuple[Float[Array, " num_envs"], Anchor]:
    """The tracking reward of a control step from `begin` to `end` (seconds), after which the bodies are as given; and
    where the reference lies from there on.

    A new cycle of it begins where the character is, as in DeepMimic's released code: else the policy, which observes
    neither place nor heading, would be judged by both. The step that ends in a new cycle is judged by the old one.
    """
    reference = bodies_at(motion, end)
    begun = cycle_of(motion, end) - cycle_of(motion, begin)
    reward = tracking_reward(bodies, laid(carried_on(motion, reference, begun), anchor), motion.character)
    return reward, where_done(jnp, begun > 0, anchor_at(motion, bodies, reference), anchor)


def _leading_pose(motion: Motion, seconds: Array) -> Float[Array, "num_envs action"]:
    """The clip's hinge angles where a PD controller, which lags by kd / kp, should be told of them."""
    angles = motion.qpos[:, motion.character.qpos_of_hinges]
    later = float(lead_seconds(motion.character).mean())
    return read(motion, angles, seconds + later)


def _follow(motion: Motion, state: EnvState) -> tuple[Posture, Posture]:
    seconds = state.physics.start + state.elapsed / CONTROL_HZ
    reference = carried_on(motion, bodies_at(motion, seconds), cycle_of(motion, seconds))

    def posture(bodies: Bodies) -> Posture:
        return Posture(relative_rotations(bodies, motion.character), bodies.position)

    return posture(state.physics.bodies), posture(reference)


def _demonstrations(motion: Motion, velocities: Velocities) -> Demonstrations:
    """The clip as transitions of one control step, one from each row of the table; a clip has no actions."""
    seconds = _before_a_step(motion)
    count = len(seconds)
    now, later = (jnp.asarray(s, jnp.float32) for s in (seconds, seconds + 1 / CONTROL_HZ))
    nothing, never = np.zeros(count, np.float32), np.zeros(count, bool)
    seen = jax.jit(partial(observe_clip, motion, velocities=velocities))
    return Demonstrations(
        observation=np.asarray(seen(now)),
        action=np.zeros((count, len(motion.character.hinges)), np.float32),
        next_observation=np.asarray(seen(later)),
        reward=nothing,
        terminated=never,
        truncated=np.arange(count) == count - 1,
    )
