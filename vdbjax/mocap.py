"""`python -m vdbjax.mocap`: look at, draw and download motion-capture clips."""

import io
from dataclasses import dataclass
from pathlib import Path
from typing import Annotated, assert_never

import numpy as np
from jaxtyping import Float
from tyro.conf import Positional, subcommand

from vdbjax import command
from vdbjax.data.download import download as fetch_file
from vdbjax.data.download import is_whole
from vdbjax.data.mocap import (
    CLIPS,
    Clip,
    download_folder,
    find_clip,
    load_clip,
    pose_at,
    read_clip,
    velocity_at,
)
from vdbjax.evaluation.clip import FORMATS, check_frames, choose_graphics, draw, encode
from vdbjax.rotations import angle_between, heading

SHEET = ".png"
SHEET_ROWS, SHEET_COLUMNS = 2, 5
LICENSE_SHA256 = "eb4aa4f4f1e9a18875e996e12a7aaf9dc078562ef5db372b55910c6599dbcdc5"


@dataclass(frozen=True)
class Info:
    """Prints a line on each clip: how long, how fast, how far, and how well its ends meet."""

    clips: Positional[tuple[str, ...]]
    """Names, such as walk, or files."""

    def __post_init__(self) -> None:
        """Rejects an empty list."""
        if not self.clips:
            raise ValueError(f"name at least one clip: a file, or one of {', '.join(CLIPS)}")


@dataclass(frozen=True)
class Render:
    """Draws the motion itself, without physics."""

    clip: Positional[str]
    """Name, such as walk, or file."""
    out: Path
    """File to write: .mp4, .gif, .html (one page with the clip inside), or .png: a sheet of ten pictures."""
    seconds: float | None = None
    """How much of the motion; by default two cycles of a loop (on a sheet one), and the whole of another clip."""
    width: int = 640
    """Pixels across, an even number; each picture of a sheet is half as wide and high."""
    height: int = 480
    """Pixels down, an even number."""
    fps: int = 30
    """Frames a second; a sheet has ten, whatever their time."""

    def __post_init__(self) -> None:
        """Rejects values that cannot work."""
        check_frames(self, (*FORMATS, SHEET))


@dataclass(frozen=True)
class Download:
    """Fetches the clips of DeepMimic with their licence (MIT), and checks each against a fingerprint kept here."""

    out: Path | None = None
    """Folder to write to; by default one that clips are looked up in by name, ~/.cache/vdbjax/deepmimic."""
    url: str = "https://raw.githubusercontent.com/xbpeng/DeepMimic/master"
    """Where DeepMimic's files lie; a mirror works too, as does file:///FOLDER."""


Options = (
    Annotated[Info, subcommand("info")]
    | Annotated[Render, subcommand("render")]
    | Annotated[Download, subcommand("download")]
)


def info(options: Info) -> None:
    """Prints the table."""
    rows = [row_of(read_clip(path), load_clip(path)) for path in map(find_clip, options.clips)]
    columns = rows[0].keys()
    cells = [dict(zip(columns, columns)), *rows]
    widths = {column: max(len(row[column]) for row in cells) for column in columns}
    for row in cells:
        print(
            f"{row['clip']:<{widths['clip']}}", *(f"{row[name]:>{widths[name]}}" for name in columns if name != "clip")
        )
    print(
        "\nx, y, turn: metres and radians that a cycle moves and turns the root; gap: the largest rotation (rad) of a"
        "\njoint from the last pose of the file to its first, closed when the clip is loaded; low, high: the root's"
        "\nheight (m); rad/s: the top speed of a joint, once closed"
    )


def row_of(recorded: Clip, clip: Clip) -> dict[str, str]:
    """What the table says of a clip, as it was recorded and as it was loaded; column -> cell."""
    rotation, height = recorded.pose.rotation, clip.pose.root_position[:, 2]
    change = heading(rotation[-1, 0]) - heading(rotation[0, 0])
    turn = float(np.remainder(change + np.pi, 2 * np.pi) - np.pi)
    gap = angle_between(rotation[-1, 1:], rotation[0, 1:]).max()
    x, y, _ = clip.displacement
    return {
        "clip": clip.name,
        "seconds": f"{clip.duration:.3f}",
        "frames": f"{len(clip.seconds)}",
        "1/s": f"{(len(clip.seconds) - 1) / clip.duration:.1f}",
        "loop": "yes" if clip.loop else "no",
        "x": f"{x:z.2f}" if clip.loop else "",
        "y": f"{y:z.2f}" if clip.loop else "",
        "turn": f"{turn:z.3f}" if clip.loop else "",
        "gap": f"{gap:.2f}" if clip.loop else "",
        "low": f"{height.min():.2f}",
        "high": f"{height.max():.2f}",
        "rad/s": f"{top_joint_speed(clip):.1f}",
    }


def top_joint_speed(clip: Clip) -> float:
    """The largest angular speed of a joint, in rad/s, sampled 240 times a second."""
    times = np.arange(0.0, clip.duration, 1 / 240)
    return float(np.linalg.norm(velocity_at(clip, times).angular[:, 1:], axis=-1).max())


def render(options: Render) -> None:
    """Draws, and writes the file."""
    command.check_writable(options.out)
    clip = load_clip(find_clip(options.clip))
    on_sheet = options.out.suffix.lower() == SHEET
    cycles = 2 if clip.loop and not on_sheet else 1
    seconds = cycles * clip.duration if options.seconds is None else options.seconds
    choose_graphics()
    if on_sheet:
        times = np.linspace(0.0, seconds, SHEET_ROWS * SHEET_COLUMNS)
        frames = _draw(clip, times, width=options.width // 2, height=options.height // 2)
        content = contact_sheet(frames, times, title=clip.name)
    else:
        times = np.arange(max(1, round(seconds * options.fps))) / options.fps
        frames = _draw(clip, times, width=options.width, height=options.height)
        content = encode(frames, options.out.suffix.lower(), fps=options.fps, title=f"{clip.name}, {seconds:.2f} s")
    options.out.write_bytes(content)
    print(f"wrote {options.out}: {clip.name}, {seconds:.2f} s, {len(times)} frames")


def _draw(clip: Clip, times: Float[np.ndarray, " frames"], *, width: int, height: int) -> np.ndarray:
    from vdbjax.envs.humanoid_model import make_model, to_qpos  # here, as it brings MuJoCo: after `choose_graphics`

    return draw(make_model(), to_qpos(pose_at(clip, times)), width=width, height=height)


def contact_sheet(frames: np.ndarray, times: Float[np.ndarray, " frames"], *, title: str) -> bytes:
    """A .png of the frames, row after row, each under its time in seconds."""
    from matplotlib.figure import Figure

    height, width = frames.shape[1:3]
    label, dpi = 20, 100  # pixels
    size = SHEET_COLUMNS * width, SHEET_ROWS * (height + label)
    figure = Figure(figsize=(size[0] / dpi, size[1] / dpi), dpi=dpi)
    for index, (frame, seconds) in enumerate(zip(frames, times)):
        row, column = divmod(index, SHEET_COLUMNS)
        left, top = column * width, size[1] - row * (height + label)
        figure.figimage(frame, left, top - label - height)
        words = f"{title} {seconds:.2f} s" if index == 0 else f"{seconds:.2f} s"
        figure.text((left + width / 2) / size[0], (top - label / 2) / size[1], words, ha="center", va="center", size=9)
    buffer = io.BytesIO()
    figure.savefig(buffer, format="png", dpi=dpi)
    return buffer.getvalue()


def download(options: Download) -> None:
    """Fetches what is not there yet; each file appears whole, or not at all."""
    folder = options.out or download_folder()
    wanted = {f"humanoid3d_{name}.txt": ("data/motions/", digest) for name, digest in CLIPS.items()}
    missing = {
        name: (place, digest)
        for name, (place, digest) in (wanted | {"LICENSE": ("", LICENSE_SHA256)}).items()
        if not is_whole(folder / name, digest)
    }
    for name, (place, digest) in missing.items():
        fetch_file(f"{options.url.rstrip('/')}/{place}{name}", folder / name, sha256=digest)
        print(f"{name} {(folder / name).stat().st_size / 1000:.1f} kB")
    print(f"wrote {len(missing)} files to {folder}; {len(wanted) + 1 - len(missing)} were there")


def run(options: Info | Render | Download) -> None:
    """Does what the command line asks for."""
    match options:
        case Info():
            info(options)
        case Render():
            render(options)
        case Download():
            download(options)
        case _:
            assert_never(options)


def main() -> None:
    """The command."""
    command.main(lambda: run(command.parse(Options, prog="python -m vdbjax.mocap", description=__doc__)))


if __name__ == "__main__":
    main()
