"""The planar humanoid: the mocap humanoid seen from the side, with 12 degrees of freedom (VDB appendix C).

Bodies, masses, gains and torque limits are the humanoid's. Its root moves in the plane x, z and turns about y; chest,
hips, knees, ankles and shoulders turn about y, and neck and elbows are fixed.
"""

import numpy as np
from jaxtyping import Float

from vdbjax.data.mocap import JOINTS, Clip, Pose
from vdbjax.envs.humanoid_model import BODIES, IDENTITY, PARTS, Character, Part
from vdbjax.rotations import about, multiply, rotate

ELBOW_BEND = -1.0  # radians about y, between those of walking and of running

FIXED = {"neck": IDENTITY, "right_elbow": tuple(about(1, np.array(ELBOW_BEND)).tolist())}
FIXED["left_elbow"] = FIXED["right_elbow"]


def _in_plane(part: Part) -> Part:
    if part.name in FIXED:
        return part._replace(axes="", gains=(), before=FIXED[part.name])
    return part._replace(axes=part.axes and "y", before=IDENTITY, after=IDENTITY)


PLANAR = Character("planar_humanoid", tuple(map(_in_plane, PARTS)), planar=True)


def projected(clip: Clip) -> Clip:
    """The clip as a camera beside it sees it, which looks along y: every body turned to its direction in the picture.

    A body's direction is that in which it extends: upwards for the trunk, along the limb, forwards for a foot. Limbs
    that leave the plane come out longer than the camera sees them, so the root is raised until the lower foot is as
    high as in the clip.
    """
    rotation, turns = clip.pose.rotation, {"root": _pitch(clip.pose.rotation[:, 0], "root")}
    parent = {part.name: part.parent for part in PARTS}
    world = {"root": rotation[:, 0]}
    relative = [about(1, turns["root"])]
    for index, joint in enumerate(JOINTS, start=1):
        world[joint] = multiply(world[parent[joint]], rotation[:, index])
        turns[joint] = _pitch(world[joint], joint)
        fixed = np.broadcast_to(np.array(FIXED.get(joint, IDENTITY)), rotation[:, 0].shape)
        relative.append(fixed if joint in FIXED else about(1, turns[joint] - turns[parent[joint]]))
    flat = Pose(clip.pose.root_position * [1.0, 0.0, 1.0], np.stack(relative, axis=1))
    lift = _lowest_ankle(clip.pose) - _lowest_ankle(flat)
    return clip._replace(pose=flat._replace(root_position=flat.root_position + lift[:, None] * [0.0, 0.0, 1.0]))


def _pitch(world: Float[np.ndarray, "F 4"], body: str) -> Float[np.ndarray, " F"]:
    """The turn about y that brings the body's direction at rest to the one it has in the plane."""
    along = np.array([1.0, 0.0, 0.0] if body.endswith("ankle") else [0.0, 0.0, 1.0])
    seen = rotate(world, np.broadcast_to(along, (len(world), 3)))
    at_rest = np.arctan2(along[0], along[2])
    return np.unwrap(np.arctan2(seen[:, 0], seen[:, 2]) - at_rest)


def _lowest_ankle(pose: Pose) -> Float[np.ndarray, " F"]:
    """Height of the lower ankle, metres."""
    position, world = {"root": pose.root_position}, {"root": pose.rotation[:, 0]}
    for index, joint in enumerate(JOINTS, start=1):
        part = PARTS[BODIES.index(joint)]
        offset = np.broadcast_to(np.array(part.offset, np.float64), pose.root_position.shape)
        position[joint] = position[part.parent] + rotate(world[part.parent], offset)
        world[joint] = multiply(world[part.parent], pose.rotation[:, index])
    return np.minimum(position["right_ankle"][:, 2], position["left_ankle"][:, 2])
