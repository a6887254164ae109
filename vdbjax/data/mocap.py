"""Motion-capture clips of DeepMimic's humanoid: read from file, repaired, and looked up at any time.

Axes are MuJoCo's: x forward, y left, z up. Rotations are unit quaternions (w, x, y, z); q and -q are the same one, and
a joint that winds by 2 pi in a cycle comes back as -q. Format and clips: github.com/xbpeng/DeepMimic, data/motions.
"""

import difflib
import json
import os
from pathlib import Path
from typing import Any, NamedTuple

import numpy as np
from jaxtyping import Float, Real

from vdbjax.data.download import download_root
from vdbjax.rotations import about, angle_between, from_vector, inverse, multiply, sign_continuous, slerp, to_vector

JOINTS = (
    *("chest", "neck"),
    *("right_hip", "right_knee", "right_ankle", "right_shoulder", "right_elbow"),
    *("left_hip", "left_knee", "left_ankle", "left_shoulder", "left_elbow"),
)
"""The joints in the files' order, each named after the body that it carries."""

REVOLUTE = ("knee", "elbow")
"""Ends of the names of joints that turn about y only; the others are spherical."""

LONGEST_SECONDS = 3600.0
"""Of a clip: durations in milliseconds, say, would ask for more memory than there is."""

NUMBERS = 8 + sum(1 if joint.endswith(REVOLUTE) else 4 for joint in JOINTS)
"""What a frame holds: its duration, root position and rotation, then a quaternion or an angle for each joint."""

MIRROR = (0, 1, 2, *range(8, 13), *range(3, 8))  # rows of `Pose.rotation`, right and left changed
ALIKE_RAD = 1e-3  # within which a frame counts as another's mirror image
BLEND_SECONDS = 0.3
HALF_DIFFERENCE_SECONDS = 1 / 60
NEAR_ZERO = 0.1  # the published clips have quaternions of lengths from 0.58

Times = Real[np.ndarray, "*batch"] | float | int
"""Seconds from a clip's start."""

CLIPS = {
    "backflip": "ffc5e117f69364e239eeedc86d6a30ab854500a375a1c137a405f1b7652905e6",
    "cartwheel": "17453459a40ec4ea08346072748ae3c7c384b49e619753e9779637fa8a9f7c49",
    "crawl": "104a3b675131a43e7a214e24c0ed631c6a0d814b85c8b66b71ce63b23a5731ae",
    "dance_a": "15ef3731f594edc9ed078170f1075815cc164acaca9e35a46db12a31ac64b717",
    "dance_b": "b5a9d7a3f2304f6242776d7ff6d19d1f6bcb98d78d68622761c3843b614a92b5",
    "dance_spin": "c79919274430cb7de08972f439bad1ccac21bdca19c2c319c705948f025bddf1",
    "getup_facedown": "1bd1a96e9175f65eb66e10f225473b4467bd70c68e283f4006b2ab090e337c0b",
    "getup_faceup": "5936c32d51dad9b0cd5e61df681079d160436cdce845c312f200d7a347c4040d",
    "jump": "a433557e94b193d8a95530572a0e32f387eb6d9996987b4216efb65444c3c641",
    "punch": "1ab4b654cecdb4ff3b2a4bf4086e50397bef28435bb59ab3aedd6a6bdc926fde",
    "roll": "50d75c2243b2859f8dcae4ad8fa14b59054dd9ee529b4fb52ec14470cd982c55",
    "run": "2cbe488023b243e5769299158ce7c78875ec4b701a2ffe6c0beeaf83d16ca87b",
    "spinkick": "e293f84c00e5a3cefaf8e9e9952ac39cfcdc8a9d445b5c1d24c67a271c97d43c",
    "stealthy_walk": "7db28ee85721eea0ae44c3e726fb48bb5532d38f5d9aff8e18d791227476f5bb",
    "walk": "32d082c3599bc40aac50b1afa196ff1e2cf3842bb40f0541ab088845f6328a41",
    "zombie_walk": "6935eaa0a83a0ca13fbf4aaba58efa391f582a83436875fe08212b2029bcfbac",
}
"""The clips that `python -m vdbjax.mocap download` fetches, each with the SHA-256 of its file."""


class ClipError(ValueError):
    """A clip that cannot be used; the message is one line that names the file, its fault, and the way out."""


class Pose(NamedTuple):
    """Where the humanoid is."""

    root_position: Float[Any, "*batch 3"]  # metres, in the world
    rotation: Float[Any, "*batch 13 4"]  # the root's in the world, then those of `JOINTS` relative to their parents


class Velocity(NamedTuple):
    """How it moves."""

    root_velocity: Float[Any, "*batch 3"]  # m/s, in the world
    angular: Float[Any, "*batch 13 3"]  # rad/s, of `Pose.rotation`, each in the turning body's own frame


class Clip(NamedTuple):
    """A motion of F frames; of a loop, the last frame is the first one of the next cycle."""

    name: str
    loop: bool
    seconds: Float[np.ndarray, " F"]  # time of each frame, from 0
    pose: Pose  # leaves lead with F

    @property
    def duration(self) -> float:
        """Seconds from the first frame to the last."""
        return float(self.seconds[-1])

    @property
    def displacement(self) -> Float[np.ndarray, "3"]:
        """How far a cycle carries the root, in metres; its z is 0, and all of it is where the clip is no loop."""
        position = self.pose.root_position
        return (position[-1] - position[0]) * np.array([1.0, 1.0, 0.0]) * self.loop


def load_clip(path: str | Path) -> Clip:
    """The clip of a file, converted to our axes; a loop is closed (`close_loop`).

    Raises:
      ClipError: no file, not JSON in UTF-8, no frames or fewer than two, frames that are not 44 finite numbers,
        durations that are not positive or add up to more than an hour, a quaternion near zero, or a word other than
        wrap and none for `Loop`.
    """
    clip = read_clip(path)
    return close_loop(clip) if clip.loop else clip


def read_clip(path: str | Path) -> Clip:
    """The clip of a file as it was recorded: converted as by `load_clip`, but a loop's ends do not meet.

    From the file's axes (y up, z to the right): (x, y, z) -> (x, -z, y), quaternion (w, x, y, z) -> (w, x, -z, y), and
    an angle about its z is the negative angle about our y. Quaternions are normalised, which some files need by 20 %,
    and their signs made continuous. The last frame's duration does not count: nothing follows it.
    """
    path = Path(path)
    content = _content(path)
    frames = _frames(content, path)
    if not np.all(frames[:-1, 0] > 0.0):
        frame = int(np.argmin(frames[:-1, 0] > 0.0))
        raise ClipError(
            f"{path}: frame {frame} lasts {frames[frame, 0]:g} s; each but the last must last longer than 0"
        )
    if (total := float(frames[:-1, 0].sum())) > LONGEST_SECONDS:
        raise ClipError(f"{path}: its frames last {total:g} s in all, and at most {LONGEST_SECONDS:g} are read")
    if content.get("Loop") not in ("wrap", "none"):
        found = f"is {content['Loop']!r}" if "Loop" in content else "is missing"
        raise ClipError(f'{path}: "Loop" {found}; it must be "wrap", for a motion that repeats, or "none"')
    return Clip(
        name=path.stem.removeprefix("humanoid3d_"),
        loop=content["Loop"] == "wrap",
        seconds=np.concatenate([[0.0], np.cumsum(frames[:-1, 0])]),
        pose=Pose(frames[:, [1, 3, 2]] * [1.0, -1.0, 1.0], sign_continuous(_rotations(frames, path))),
    )


def close_loop(clip: Clip) -> Clip:
    """The loop with its last frame led onto the first one of the next cycle: displaced horizontally, else the same.

    Recorded loops end up to 1 rad beside their first pose, and up to 0.4 rad off their first heading, so that a motion
    that goes round would jump there, at joint speeds of 15 to 34 rad/s between frames. With E the rotation from the
    last pose to the first, the end of the clip is multiplied by E^s, s = u^2 (3 - 2 u), where u rises from 0 to 1 over
    the last 0.3 s (over the last half of a shorter clip): s starts and ends level, so that speeds at the seam stay as
    recorded. The root's height is led likewise. The horizontal way of a cycle is kept: it carries the motion along.

    Of a step and its mirror image, as `walk` and `run` are, only the last frame is led. They jump between step and
    image as well, by up to 0.5 rad, and would turn to one side if only one of the two jumps were smoothed.
    """
    last = clip.seconds[-1] - clip.seconds[-2]
    window = last if _is_step_and_mirror_image(clip) else min(BLEND_SECONDS, 0.5 * clip.duration)
    rise = np.clip((clip.seconds - (clip.duration - window)) / window, 0.0, 1.0)
    share = rise**2 * (3.0 - 2.0 * rise)
    position, rotation = clip.pose
    lift = (position[0] - position[-1]) * np.array([0.0, 0.0, 1.0])
    # From the right: in the bodies' own frames, as the feet then sink less than when turned in their parents'.
    turn = to_vector(multiply(inverse(rotation[-1]), rotation[0]))
    led = multiply(rotation, from_vector(share[:, None, None] * turn))
    return clip._replace(pose=Pose(position + share[:, None] * lift, sign_continuous(led)))


def find_clip(name: str) -> Path:
    """The file of a clip, by its path or by its name.

    A name is looked up as humanoid3d_NAME.txt in $VDBJAX_DATA/deepmimic, then in `download_folder()`.

    Raises:
      ClipError: neither is there.
    """
    if Path(name).is_file():
        return Path(name)
    data = os.environ.get("VDBJAX_DATA")
    folders = [*([Path(data) / "deepmimic"] if data else []), download_folder()]
    for folder in folders:
        if (path := folder / f"humanoid3d_{name}.txt").is_file():
            return path
    near = difflib.get_close_matches(Path(name).stem.removeprefix("humanoid3d_"), CLIPS, n=3)
    if name in CLIPS or not near:
        hint = "`python -m vdbjax.mocap download` fetches the clips " + ", ".join(CLIPS)
    else:
        hint = f"did you mean {' or '.join(near)}? `python -m vdbjax.mocap download` fetches the clips"
    looked = " or ".join(str(folder) for folder in folders)
    raise ClipError(f"clip {name}: no such file, and no humanoid3d_{name}.txt in {looked}; {hint}")


def download_folder() -> Path:
    """Where downloaded clips lie."""
    return download_root() / "deepmimic"


def pose_at(clip: Clip, seconds: Times) -> Pose:
    """The pose at any time, or at times of any shape: slerp between frames.

    A loop goes on for ever both ways, other clips hold their ends.
    """
    seconds = np.asarray(seconds, np.float64)
    cycle = np.floor(seconds / clip.duration) * clip.loop
    inside = np.clip(seconds - cycle * clip.duration, 0.0, clip.duration)
    row = np.clip(np.searchsorted(clip.seconds, inside, side="right") - 1, 0, len(clip.seconds) - 2)
    share = (inside - clip.seconds[row]) / (clip.seconds[row + 1] - clip.seconds[row])
    (position, rotation), weight = clip.pose, share[..., None]
    along = position[row] + weight * (position[row + 1] - position[row])
    turned = slerp(rotation[row], rotation[row + 1], np.broadcast_to(weight, rotation[row].shape[:-1]))
    return Pose(along + cycle[..., None] * clip.displacement, turned)


def velocity_at(clip: Clip, seconds: Times) -> Velocity:
    """The velocity at any time, or at times of any shape.

    log(R(t - h)^-1 R(t + h)) / 2h with h = 1/60 s, and alike for the root's position.

    Without a loop the difference stops at the clip's ends, and is 0 where they have been held for h.
    """
    before, after = around(clip, seconds)
    span = np.where(after > before, after - before, 1.0)
    start, stop = pose_at(clip, before), pose_at(clip, after)
    turned = to_vector(multiply(inverse(start.rotation), stop.rotation))
    return Velocity((stop.root_position - start.root_position) / span[..., None], turned / span[..., None, None])


def around(clip: Clip, seconds: Times) -> tuple[Float[np.ndarray, "*batch"], Float[np.ndarray, "*batch"]]:
    """The times h = 1/60 s before and after, between which a velocity is taken; without a loop no further than the
    clip's ends."""
    first, last = (-np.inf, np.inf) if clip.loop else (0.0, clip.duration)
    before, after = (np.asarray(seconds, np.float64) + h for h in (-HALF_DIFFERENCE_SECONDS, HALF_DIFFERENCE_SECONDS))
    return np.asarray(np.clip(before, first, last)), np.asarray(np.clip(after, first, last))


def phase_at(clip: Clip, seconds: Times) -> Float[np.ndarray, "*batch"]:
    """The share of the cycle that is over, in [0, 1); of a clip that is no loop, held at its ends."""
    share = np.asarray(seconds, np.float64) / clip.duration
    share = share - np.floor(share) if clip.loop else np.clip(share, 0.0, 1.0)
    # Just below a whole cycle the difference rounds to 1.
    return np.asarray(np.minimum(share, np.nextafter(1.0, 0.0)))


def _is_step_and_mirror_image(clip: Clip) -> bool:
    """Whether the frames' second half shows the first one with right and left changed; the last frame does not count.

    Seen in a mirror that stands in the plane of x and z, the rotation (w, x, y, z) is (w, -x, y, -z).
    """
    half, odd = divmod(len(clip.seconds) - 1, 2)
    if odd:
        return False
    image = clip.pose.rotation[:half, MIRROR] * [1.0, -1.0, 1.0, -1.0]
    return bool(angle_between(clip.pose.rotation[half:-1], image).max() < ALIKE_RAD)


def _content(path: Path) -> dict[str, Any]:
    """What the file holds, once it is known to hold frames."""
    again = "if it is damaged, `python -m vdbjax.mocap download` fetches the published clips"
    try:
        content = json.loads(path.read_bytes().decode("utf-8-sig"))
    except OSError as error:
        raise ClipError(f"{path}: cannot be read ({error.strerror or error}); name a clip or its file") from error
    except UnicodeDecodeError as error:
        raise ClipError(f"{path}: not a clip, as it is not UTF-8 text; {again}") from error
    except (ValueError, RecursionError) as error:
        raise ClipError(f"{path}: not a clip, as it is not JSON ({error}); {again}") from error
    frames = content.get("Frames") if isinstance(content, dict) else None
    if not isinstance(frames, list) or not frames:
        raise ClipError(f'{path}: not a clip, as it has no list of frames under "Frames"; {again}')
    return content


def _frames(content: dict[str, Any], path: Path) -> Float[np.ndarray, "F 44"]:
    """The frames as one table of finite numbers."""
    frames = content["Frames"]
    for index, frame in enumerate(frames):
        if not isinstance(frame, list) or len(frame) != NUMBERS:
            found = f"{len(frame)} numbers" if isinstance(frame, list) else f"{json.dumps(frame)[:40]}"
            raise ClipError(
                f"{path}: frame {index} is of {found}, not of {NUMBERS};"
                f" only clips of DeepMimic's humanoid3d can be read, one list a frame"
            )
        for place, number in enumerate(frame):
            if isinstance(number, bool) or not isinstance(number, int | float) or not abs(number) < 1e300:
                raise ClipError(
                    f"{path}: number {place} of frame {index} is {json.dumps(number)[:40]}, not a finite number;"
                    f" repair or cut out this frame"
                )
    if len(frames) < 2:
        raise ClipError(f"{path}: one frame is no motion; a clip needs at least 2")
    return np.array(frames, np.float64)


def _rotations(frames: Float[np.ndarray, "F 44"], path: Path) -> Float[np.ndarray, "F 13 4"]:
    """The root's and joints' rotations in our axes, normalised."""
    parts, start = [], 4
    for name in ("root", *JOINTS):
        if name.endswith(REVOLUTE):
            parts.append(about(1, -frames[:, start]))
            start += 1
            continue
        part = frames[:, [start, start + 1, start + 3, start + 2]] * [1.0, 1.0, -1.0, 1.0]
        length = np.linalg.norm(part, axis=-1, keepdims=True)
        if length.min() < NEAR_ZERO:
            raise ClipError(
                f"{path}: the quaternion of {name} in frame {length.argmin()} has length {length.min():.3g},"
                f" so it is no rotation; repair or cut out this frame"
            )
        parts.append(part / length)
        start += 4
    return np.stack(parts, axis=1)
