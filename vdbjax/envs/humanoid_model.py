"""The mocap humanoid: 15 bodies of 45 kg in all, 28 actuated degrees of freedom, as a MuJoCo model.

Sizes, masses, torque limits and PD gains are those of DeepMimic's character (humanoid3d.txt and humanoid3d_ctrl.txt of
github.com/xbpeng/DeepMimic), turned from its axes (y up) to MuJoCo's (x forward, y left, z up). Every spherical joint
is three hinges x, z, y: of all orders the one that stays away from gimbal lock in every clip, once the shoulders' axes
are turned as `Part.before` and `Part.after` say.
"""

from typing import Any, NamedTuple

import mujoco
import numpy as np
from jaxtyping import Float

from vdbjax.data.mocap import JOINTS, Pose
from vdbjax.rotations import inverse, multiply, rotate

PHYSICS_HZ = 120
"""The highest armature-free rate at which the clipped PD forces stay stable is 480 Hz; with `ARMATURE` it is 120."""
CONTROL_HZ = 30
ARMATURE = 0.05  # kg m^2 at every hinge, about a forearm's own inertia
FOOT_RADIUS = 0.0275  # metres; four spheres a foot, as C and MJX pick different contact points of a box

Numbers = tuple[float, ...]


class Part(NamedTuple):
    """A body, the joint that holds it to its parent, and its shape. Lengths in metres, in the parent's or own frame."""

    name: str
    parent: str
    offset: Numbers  # of the joint, in the parent's frame
    mass: float  # kg
    shape: str  # sphere, capsule (upright) or foot
    size: Numbers  # radius, and a capsule's half-length
    centre: Numbers  # of the shape and of mass
    gains: Numbers = ()  # kp (N m/rad), kd (N m s/rad), torque limit (N m) of each of its hinges
    weight: float = 0.0  # of its joint in the tracking reward
    before: Numbers = (1.0, 0.0, 0.0, 0.0)  # the joint's rotation is before * Rx Rz Ry * after
    after: Numbers = (1.0, 0.0, 0.0, 0.0)


def _limbs(side: str, sign: float) -> tuple[Part, ...]:
    """A leg and an arm; `sign` is +1 on the left, where y is positive, and -1 on the right."""

    def mirrored(w: float, x: float, y: float, z: float) -> Numbers:
        numbers = np.array([w, -sign * x, y, -sign * z])
        return tuple((numbers / np.linalg.norm(numbers)).tolist())

    hip, knee, ankle = f"{side}_hip", f"{side}_knee", f"{side}_ankle"
    shoulder, elbow = f"{side}_shoulder", f"{side}_elbow"
    return (
        Part(hip, "root", (0, sign * 0.084887, 0), 4.5, "capsule", (0.055, 0.15), (0, 0, -0.21), (500, 50, 200), 0.5),
        Part(knee, hip, (0, 0, -0.421546), 3.0, "capsule", (0.05, 0.155), (0, 0, -0.2), (500, 50, 150), 0.3),
        Part(ankle, knee, (0, 0, -0.40987), 1.0, "foot", (0.0885, 0.045, 0.0275), (0.045, 0, -0.0225),
             (400, 40, 90), 0.2),
        Part(shoulder, "chest", (-0.02405, sign * 0.18311, 0.2435), 1.5, "capsule", (0.045, 0.09), (0, 0, -0.14),
             (400, 40, 100), 0.3, mirrored(0.144, -0.7, 0.148, 0.684), mirrored(-0.843, 0.113, -0.243, -0.466)),
        Part(elbow, shoulder, (0, 0, -0.274788), 1.0, "capsule", (0.04, 0.0675), (0, 0, -0.12), (300, 30, 60), 0.2),
        Part(f"{side}_wrist", elbow, (0, 0, -0.258947), 0.5, "sphere", (0.04,), (0, 0, 0)),
    )  # fmt: skip


PARTS = (
    Part("root", "world", (0, 0, 0), 6.0, "sphere", (0.09,), (0, 0, 0.07), weight=1.0),
    Part("chest", "root", (0, 0, 0.236151), 14.0, "sphere", (0.11,), (0, 0, 0.12), (1000, 100, 200), 0.5),
    Part("neck", "chest", (0, 0, 0.223894), 2.0, "sphere", (0.1025,), (0, 0, 0.175), (100, 10, 50), 0.3),
    *_limbs("right", -1.0),
    *_limbs("left", 1.0),
)  # fmt: skip
"""All bodies, in the order in which observations and errors list them (the model's own order is depth first)."""

BODIES = tuple(part.name for part in PARTS)
TORSO = ("root", "chest", "neck")
PARENTS = tuple(BODIES.index(part.parent) if part.parent in BODIES else -1 for part in PARTS)
AFTER = np.array([part.after for part in PARTS])
"""A body's true rotation is that of MuJoCo's frame times this."""

_PARTS = {part.name: part for part in PARTS}
_REVOLUTE = ("knee", "elbow")


def hinges(joint: str) -> tuple[str, ...]:
    """The names of a joint's hinges, in the order in which they turn."""
    return (f"{joint}_y",) if joint.endswith(_REVOLUTE) else tuple(f"{joint}_{axis}" for axis in "xzy")


HINGES = tuple(name for joint in JOINTS for name in hinges(joint))
"""The hinges and their actuators, in the order of actions."""


def make_model() -> mujoco.MjModel:
    """The humanoid on a floor. Only its bodies and the floor touch; qpos0 has the pelvis in the floor."""
    return mujoco.MjModel.from_xml_string(make_mjcf())


def make_mjcf() -> str:
    """The model as MJCF: position actuators with the joints' gains and torque limits, hinges without friction.

    A PD controller whose force is clipped has to be integrated explicitly where it matters most, so the rate and the
    armature go together: implicitfast at 120 Hz needs the armature of 0.05.
    """
    actuators = "\n".join(
        f'<position name="{hinge}" joint="{hinge}" kp="{kp}" kv="{kd}" forcerange="{-limit} {limit}"/>'
        for joint in JOINTS
        for hinge in hinges(joint)
        for kp, kd, limit in [_PARTS[joint].gains]
    )
    return f"""
<mujoco model="mocap_humanoid">
  <compiler angle="radian" autolimits="true"/>
  <option timestep="{1 / PHYSICS_HZ!r}" integrator="implicitfast"/>
  <visual><headlight ambient=".35 .35 .35" diffuse=".5 .5 .5"/><quality shadowsize="2048"/></visual>
  <default>
    <joint armature="{ARMATURE}"/>
    <geom contype="0" conaffinity="1" condim="3" friction=".9 .005 .0001" rgba=".78 .62 .46 1"/>
    <default class="solid"><geom conaffinity="0"/></default>
    <default class="sole"><geom type="sphere" size="{FOOT_RADIUS}" mass="0" group="3"/></default>
  </default>
  <asset>
    <texture name="grid" type="2d" builtin="checker" rgb1=".36 .43 .49" rgb2=".43 .5 .56" width="300" height="300"/>
    <texture name="sky" type="skybox" builtin="gradient" rgb1=".8 .87 .93" rgb2="1 1 1" width="32" height="256"/>
    <material name="grid" texture="grid" texrepeat="20 20"/>
  </asset>
  <worldbody>
    <light pos="0 0 6" dir="0 0 -1" diffuse=".4 .4 .4" mode="trackcom"/>
    <geom name="floor" type="plane" size="10 10 .1" material="grid" rgba="1 1 1 1" contype="1" conaffinity="0"/>
    {_body("root")}
  </worldbody>
  <actuator>{actuators}</actuator>
</mujoco>"""


def _body(name: str) -> str:
    part = _PARTS[name]
    frame = multiply(np.array(_PARTS[part.parent].after), np.array(part.before)) if name != "root" else part.before
    place = _turned(part.parent, part.offset) if name != "root" else part.offset
    children = "\n".join(_body(child.name) for child in PARTS if child.parent == name)
    camera = '<camera name="side" mode="trackcom" pos="0 -3.6 .5" xyaxes="1 0 0 0 .1 1"/>'
    joints = f"<freejoint/>{camera}" if name == "root" else _hinges(name) if part.gains else ""
    return f'<body name="{name}" pos="{_text(place)}" quat="{_text(frame)}">{joints}{_shape(part)}{children}</body>'


def _hinges(joint: str) -> str:
    axes = {"x": "1 0 0", "y": "0 1 0", "z": "0 0 1"}
    return "".join(f'<joint name="{hinge}" axis="{axes[hinge[-1]]}"/>' for hinge in hinges(joint))


def _shape(part: Part) -> str:
    place = f'pos="{_text(_turned(part.name, part.centre))}" quat="{_text(part.after)}" mass="{part.mass}"'
    if part.shape != "foot":
        return f'<geom name="{part.name}" type="{part.shape}" size="{_text(part.size)}" {place}/>'
    # The box gives mass and looks; four spheres inside its corners, as low as its sole, touch the floor.
    length, width, _ = (size - FOOT_RADIUS for size in part.size)
    x, y, z = part.centre
    corners = [(x + i * length, y + j * width, z) for i in (-1, 1) for j in (-1, 1)]
    soles = "".join(f'<geom class="sole" pos="{_text(corner)}"/>' for corner in corners)
    return f'<geom name="{part.name}" class="solid" type="box" size="{_text(part.size)}" {place}/>{soles}'


def _turned(body: str, vector: Any) -> np.ndarray:
    """A vector of the body's own frame, in MuJoCo's frame of it."""
    after = _PARTS[body].after if body in _PARTS else (1.0, 0.0, 0.0, 0.0)
    return rotate(np.array(after), np.asarray(vector, np.float64))


def _text(numbers: Any) -> str:
    return " ".join(repr(float(number)) for number in numbers)


def to_qpos(pose: Pose) -> Float[np.ndarray, "*batch nq"]:
    """The generalised positions of a pose, in MuJoCo's order: the root's position and rotation, then hinge angles.

    Q = A Rx(a) Rz(b) Ry(c) B, so with R = A^-1 Q B^-1: sin b = -R01, tan a = R21 / R11, tan c = R02 / R00.
    """
    qpos = np.empty((*pose.root_position.shape[:-1], 7 + len(HINGES)))
    qpos[..., :3], qpos[..., 3:7] = pose.root_position, pose.rotation[..., 0, :]
    where = qpos_of_hinges()
    for index, joint in enumerate(JOINTS, start=1):
        part, rotation = _PARTS[joint], pose.rotation[..., index, :]
        inner = multiply(
            inverse(_like(part.before, rotation)), multiply(rotation, inverse(_like(part.after, rotation)))
        )
        for hinge, angle in zip(hinges(joint), _angles(inner, alone=joint.endswith(_REVOLUTE))):
            qpos[..., where[HINGES.index(hinge)]] = angle
    return qpos


def qpos_of_hinges() -> np.ndarray:
    """Where each of `HINGES` lies in qpos; six less for qvel, whose root has one number fewer."""
    names = [hinge for name in _depth_first("root") if _PARTS[name].gains for hinge in hinges(name)]
    return np.array([7 + names.index(hinge) for hinge in HINGES])


def _depth_first(name: str) -> list[str]:
    return [name, *(below for part in PARTS if part.parent == name for below in _depth_first(part.name))]


def _like(quaternion: Numbers, rotation: np.ndarray) -> np.ndarray:
    return np.broadcast_to(np.array(quaternion), rotation.shape)


def _angles(rotation: np.ndarray, *, alone: bool) -> tuple[Any, ...]:
    """The angles of the hinges x, z, y, or of y alone."""
    w, x, y, z = (rotation[..., i] for i in range(4))
    if alone:
        return (2.0 * np.arctan2(y * np.where(w < 0, -1.0, 1.0), np.abs(w)),)
    middle = np.arcsin(np.clip(2.0 * (w * z - x * y), -1.0, 1.0))
    first = np.arctan2(2.0 * (y * z + w * x), 1.0 - 2.0 * (x * x + z * z))
    last = np.arctan2(2.0 * (x * z + w * y), 1.0 - 2.0 * (y * y + z * z))
    return first, middle, last
