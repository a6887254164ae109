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
IDENTITY = (1.0, 0.0, 0.0, 0.0)


class Part(NamedTuple):
    """A body, the joint that holds it to its parent, and its shape. Lengths in metres, in the parent's or own frame."""

    name: str
    parent: str
    offset: Numbers  # of the joint, in the parent's frame
    mass: float  # kg
    shape: str  # sphere, capsule (upright) or foot
    size: Numbers  # radius, and a capsule's half-length
    centre: Numbers  # of the shape and of mass
    axes: str = ""  # of its hinges, in the order in which they turn
    gains: Numbers = ()  # kp (N m/rad), kd (N m s/rad), torque limit (N m) of each of its hinges
    weight: float = 0.0  # of its joint in the tracking reward
    before: Numbers = IDENTITY  # the joint's rotation is before * Rx Rz Ry * after; without hinges, before
    after: Numbers = IDENTITY


def _limbs(side: str, sign: float) -> tuple[Part, ...]:
    """A leg and an arm; `sign` is +1 on the left, where y is positive, and -1 on the right."""

    def mirrored(w: float, x: float, y: float, z: float) -> Numbers:
        numbers = np.array([w, -sign * x, y, -sign * z])
        return tuple((numbers / np.linalg.norm(numbers)).tolist())

    hip, knee, ankle = f"{side}_hip", f"{side}_knee", f"{side}_ankle"
    shoulder, elbow = f"{side}_shoulder", f"{side}_elbow"
    return (
        Part(hip, "root", (0, sign * 0.084887, 0), 4.5, "capsule", (0.055, 0.15), (0, 0, -0.21), "xzy", (500, 50, 200),
             0.5),
        Part(knee, hip, (0, 0, -0.421546), 3.0, "capsule", (0.05, 0.155), (0, 0, -0.2), "y",
             (500, 50, 150), 0.3),
        Part(ankle, knee, (0, 0, -0.40987), 1.0, "foot", (0.0885, 0.045, 0.0275), (0.045, 0, -0.0225),
             "xzy", (400, 40, 90), 0.2),
        Part(shoulder, "chest", (-0.02405, sign * 0.18311, 0.2435), 1.5, "capsule", (0.045, 0.09), (0, 0, -0.14),
             "xzy", (400, 40, 100), 0.3, mirrored(0.144, -0.7, 0.148, 0.684), mirrored(-0.843, 0.113, -0.243, -0.466)),
        Part(elbow, shoulder, (0, 0, -0.274788), 1.0, "capsule", (0.04, 0.0675), (0, 0, -0.12), "y",
             (300, 30, 60), 0.2),
        Part(f"{side}_wrist", elbow, (0, 0, -0.258947), 0.5, "sphere", (0.04,), (0, 0, 0)),
    )  # fmt: skip


PARTS = (
    Part("root", "world", (0, 0, 0), 6.0, "sphere", (0.09,), (0, 0, 0.07), weight=1.0),
    Part("chest", "root", (0, 0, 0.236151), 14.0, "sphere", (0.11,), (0, 0, 0.12), "xzy", (1000, 100, 200), 0.5),
    Part("neck", "chest", (0, 0, 0.223894), 2.0, "sphere", (0.1025,), (0, 0, 0.175), "xzy", (100, 10, 50), 0.3),
    *_limbs("right", -1.0),
    *_limbs("left", 1.0),
)  # fmt: skip
"""All bodies, in the order in which observations and errors list them (the model's own order is depth first)."""

BODIES = tuple(part.name for part in PARTS)


class Character(NamedTuple):
    """A figure of the bodies `BODIES`, with the joints that it has of `JOINTS`."""

    name: str  # of its MuJoCo model
    parts: tuple[Part, ...]
    planar: bool = False  # its root moves in the plane x, z only, and turns about y

    def part(self, name: str) -> Part:
        """The part of a body."""
        return self.parts[BODIES.index(name)]

    @property
    def joints(self) -> tuple[str, ...]:
        """The joints that move, each named after its body."""
        return tuple(part.name for part in self.parts if part.axes)

    @property
    def hinges(self) -> tuple[str, ...]:
        """The hinges and their actuators, in the order of actions."""
        return tuple(hinge for joint in self.joints for hinge in self.hinges_of(joint))

    def hinges_of(self, joint: str) -> tuple[str, ...]:
        """The names of a joint's hinges, in the order in which they turn."""
        return tuple(f"{joint}_{axis}" for axis in self.part(joint).axes)

    @property
    def parents(self) -> tuple[int, ...]:
        """The row of each body's parent; -1 for the root's."""
        return tuple(BODIES.index(part.parent) if part.parent in BODIES else -1 for part in self.parts)

    @property
    def gains(self) -> np.ndarray:
        """kp, kd and torque limit of each hinge; `[hinges, 3]`."""
        return np.array([self.part(joint).gains for joint in self.joints for _ in self.hinges_of(joint)])

    @property
    def qpos_of_height(self) -> int:
        """Where the root's height lies in qpos: after x, and before the turn, where it keeps to the plane."""
        return 1 if self.planar else 2

    @property
    def qpos_of_hinges(self) -> np.ndarray:
        """Where each of `hinges` lies in qpos."""
        names = [hinge for name in self.depth_first("root") for hinge in self.hinges_of(name)]
        return (3 if self.planar else 7) + np.array([names.index(hinge) for hinge in self.hinges])

    @property
    def qvel_of_hinges(self) -> np.ndarray:
        """Where each of `hinges` lies in qvel, where a free root has one number fewer."""
        return self.qpos_of_hinges - (0 if self.planar else 1)

    def depth_first(self, name: str) -> list[str]:
        """The bodies from this one on, in MuJoCo's order."""
        return [name, *(below for part in self.parts if part.parent == name for below in self.depth_first(part.name))]


HUMANOID = Character("mocap_humanoid", PARTS)


def make_model(character: Character = HUMANOID) -> mujoco.MjModel:
    """The character on a floor. Only its bodies and the floor touch; qpos0 has the pelvis in the floor."""
    return mujoco.MjModel.from_xml_string(make_mjcf(character))


def make_mjcf(character: Character = HUMANOID) -> str:
    """The model as MJCF: position actuators with the joints' gains and torque limits, hinges without friction.

    A PD controller whose force is clipped has to be integrated explicitly where it matters most, so the rate and the
    armature go together: implicitfast at 120 Hz needs the armature of 0.05.
    """
    actuators = "\n".join(
        f'<position name="{hinge}" joint="{hinge}" kp="{kp}" kv="{kd}" forcerange="{-limit} {limit}"/>'
        for hinge, (kp, kd, limit) in zip(character.hinges, character.gains.tolist())
    )
    return f"""
<mujoco model="{character.name}">
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
    {_body(character, "root")}
  </worldbody>
  <actuator>{actuators}</actuator>
</mujoco>"""


def _body(character: Character, name: str) -> str:
    part = character.part(name)
    root = name == "root"
    above = np.array(IDENTITY if root else character.part(part.parent).after)
    frame, place = multiply(above, np.array(part.before)), rotate(above, np.array(part.offset, np.float64))
    children = "\n".join(_body(character, child.name) for child in character.parts if child.parent == name)
    joints = _root_joints(character) if root else _hinges(character, name)
    return f'<body name="{name}" pos="{_text(place)}" quat="{_text(frame)}">{joints}{_shape(part)}{children}</body>'


def _root_joints(character: Character) -> str:
    camera = '<camera name="side" mode="trackcom" pos="0 -3.6 .5" xyaxes="1 0 0 0 .1 1"/>'
    if not character.planar:
        return f"<freejoint/>{camera}"
    slides = "".join(
        f'<joint name="root_{name}" type="slide" axis="{axis}" armature="0"/>'
        for name, axis in (("x", "1 0 0"), ("z", "0 0 1"))
    )
    return f'{slides}<joint name="root_y" axis="0 1 0" armature="0"/>{camera}'


def _hinges(character: Character, joint: str) -> str:
    axes = {"x": "1 0 0", "y": "0 1 0", "z": "0 0 1"}
    return "".join(f'<joint name="{hinge}" axis="{axes[hinge[-1]]}"/>' for hinge in character.hinges_of(joint))


def _shape(part: Part) -> str:
    centre = rotate(np.array(part.after), np.array(part.centre, np.float64))  # in MuJoCo's frame of the body
    place = f'pos="{_text(centre)}" quat="{_text(part.after)}" mass="{part.mass}"'
    if part.shape != "foot":
        return f'<geom name="{part.name}" type="{part.shape}" size="{_text(part.size)}" {place}/>'
    # The box gives mass and looks; the spheres inside its corners, as low as its sole, touch the floor.
    soles = "".join(f'<geom class="sole" pos="{_text(centre)}"/>' for centre, _ in spheres(part))
    return f'<geom name="{part.name}" class="solid" type="box" size="{_text(part.size)}" {place}/>{soles}'


def spheres(part: Part) -> list[tuple[Numbers, float]]:
    """(centre in the body's own frame, radius): what of a body can touch the floor; of a capsule its two ends."""
    x, y, z = (float(number) for number in part.centre)
    if part.shape == "sphere":
        return [((x, y, z), part.size[0])]
    if part.shape == "capsule":
        radius, half = part.size
        return [((x, y, z + end * half), radius) for end in (-1, 1)]
    length, width, _ = (size - FOOT_RADIUS for size in part.size)
    return [((x + i * length, y + j * width, z), FOOT_RADIUS) for i in (-1, 1) for j in (-1, 1)]


def _text(numbers: Any) -> str:
    return " ".join(repr(float(number)) for number in numbers)


def to_qpos(pose: Pose, character: Character = HUMANOID) -> Float[np.ndarray, "*batch nq"]:
    """The generalised positions of a pose, in MuJoCo's order: the root's position and rotation, then hinge angles.

    Q = A Rx(a) Rz(b) Ry(c) B, so with R = A^-1 Q B^-1: sin b = -R01, tan a = R21 / R11, tan c = R02 / R00.
    """
    root = _planar_root(pose) if character.planar else (pose.root_position, pose.rotation[..., 0, :])
    where = character.qpos_of_hinges
    angles = np.empty((*pose.root_position.shape[:-1], len(where)))
    for joint in character.joints:
        part, rotation = character.part(joint), pose.rotation[..., 1 + JOINTS.index(joint), :]
        inner = multiply(
            inverse(_like(part.before, rotation)), multiply(rotation, inverse(_like(part.after, rotation)))
        )
        for hinge, angle in zip(character.hinges_of(joint), _angles(inner, alone=part.axes == "y")):
            angles[..., character.hinges.index(hinge)] = angle
    qpos = np.concatenate([*root, angles], axis=-1)
    qpos[..., where] = angles
    return qpos


def _planar_root(pose: Pose) -> tuple[np.ndarray, np.ndarray]:
    """Its x and z, and its turn about y."""
    (turn,) = _angles(pose.rotation[..., 0, :], alone=True)
    return pose.root_position[..., ::2], turn[..., None]


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
