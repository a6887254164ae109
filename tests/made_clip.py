"""A motion-capture clip for tests on machines that have none."""

import json
from pathlib import Path

import numpy as np

from vdbjax.data.mocap import JOINTS

ONE = (1.0, 0.0, 0.0, 0.0)


def swinging(folder: Path, *, loop: str = "wrap", rate: float = 30.0, name: str = "swing.txt") -> Path:
    """A made clip of one second: the humanoid stands, sways and swings its arms, and drifts forward by 0.3 m."""
    seconds = np.arange(round(rate) + 1) / rate
    frames = []
    for t in seconds:
        swing = np.sin(2 * np.pi * t)
        joints: dict = {
            joint: (0.0,) if joint.endswith(("knee", "elbow")) else (1.0, 0.0, 0.0, 0.0) for joint in JOINTS
        }
        for side, sign in (("right", 1.0), ("left", -1.0)):
            joints[f"{side}_shoulder"] = (np.cos(sign * swing / 4), 0.0, 0.0, np.sin(sign * swing / 4))
            joints[f"{side}_elbow"] = (0.5 + 0.3 * swing,)
        root = 0.3 * t, 0.9, 0.0, np.cos(0.05 * swing), np.sin(0.05 * swing), 0.0, 0.0
        frames.append([1 / rate * (t < 1.0), *root, *(x for joint in joints.values() for x in joint)])
    path = folder / name
    path.write_text(json.dumps({"Loop": loop, "Frames": np.asarray(frames, float).tolist()}))
    return path
