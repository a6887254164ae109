"""`python -m vdbjax.render RUN --out clip.mp4`: a clip of one episode of a trained policy."""

from dataclasses import dataclass
from pathlib import Path
from typing import Any, NamedTuple

from tyro.conf import FlagCreatePairsOff, Positional

from vdbjax import command, limits
from vdbjax.evaluation.clip import FORMATS, caption, check_frames, choose_graphics, draw, encode, frame_rows


@dataclass(frozen=True)
class Options:
    """What the command line gives."""

    run: Positional[Path]
    """Run folder, as `python -m vdbjax.train` left it; of several seeds the first."""
    out: Path
    """File to write: .mp4, .gif or .html (one page with the clip inside; for Brax tasks, Brax's own viewer)."""
    seconds: float = 10.0
    """Longest clip, in the simulation's time; it ends with the episode."""
    seed: int = 0
    """Seed of the start and of samples."""
    stochastic: FlagCreatePairsOff[bool] = False
    """Sample each action from the policy; else its mean action."""
    width: int = 640
    """Pixels across, an even number."""
    height: int = 480
    """Pixels down, an even number."""
    fps: int = 30
    """Frames a second."""

    def __post_init__(self) -> None:
        """Rejects values that cannot work."""
        check_frames(self, FORMATS)
        limits.seed(self, "--seed")


class Played(NamedTuple):
    """One episode, or its beginning: T control steps."""

    physics: Any  # the environment's own state before each step; leaves lead with T
    observation: Any  # before each step, [T, n]
    undiscounted_return: float
    num_steps: int
    ended: bool


def play(trained: Any, *, num_steps: int, seed: int, stochastic: bool) -> Played:
    """Up to `num_steps` of one episode, from a fresh start."""
    import jax
    import numpy as np

    from vdbjax.episodes import watch_episodes

    trace = watch_episodes(
        trained,
        num_episodes=1,
        num_steps=num_steps,
        see=lambda env: (env.physics, env.observation),
        seed=seed,
        stochastic=stochastic,
    )
    length = int(trace.alive[:, 0].sum())
    physics, observation = jax.tree.map(lambda leaf: leaf[:length, 0], trace.seen)
    ended = length < num_steps or num_steps == trained.built.environment.episode_length
    return Played(physics, observation, float(trace.reward[:length, 0].sum(dtype=np.float64)), length, ended)


def _locomotion_clip(trained: Any, options: Options, title: str) -> tuple[bytes, Played, float]:
    from vdbjax.envs.locomotion import TASKS, load_model

    environment = trained.built.environment
    task = TASKS[environment.name]
    model = load_model(task)
    step_seconds = model.opt.timestep * task.frame_skip
    played = _play(trained, options, step_seconds)
    rows = frame_rows(played.num_steps, step_seconds=step_seconds, fps=options.fps)
    in_c = not isinstance(played.physics, tuple)
    qpos = _positions(played.physics if in_c else played.physics[0], model)
    frames = draw(model, qpos[rows], width=options.width, height=options.height)
    return encode(frames, options.out.suffix.lower(), fps=options.fps, title=title), played, step_seconds


def _motion_clip(trained: Any, options: Options, title: str) -> tuple[bytes, Played, float]:
    """The character on the left, the reference on the right; of a film's task each with its 64 x 64 picture on top."""
    import numpy as np

    from vdbjax.data.mocap import find_clip, load_clip, pose_at
    from vdbjax.envs.humanoid_model import CONTROL_HZ, HUMANOID, make_model, to_qpos
    from vdbjax.envs.planar_humanoid import PLANAR, projected

    environment, step_seconds = trained.built.environment, 1 / CONTROL_HZ
    played = _play(trained, options, step_seconds)
    rows = frame_rows(played.num_steps, step_seconds=step_seconds, fps=options.fps)
    kind, _, name = trained.config.environment.env.partition("/")
    clip, character = load_clip(find_clip(name)), HUMANOID
    if kind == "video":
        clip, character = projected(clip), PLANAR
    model, seconds = make_model(character), float(played.physics.start[0]) + rows * step_seconds
    sides = _positions(played.physics.frame, model)[rows], to_qpos(pose_at(clip, seconds), character)
    halves = [draw(model, qpos, width=options.width // 2, height=options.height) for qpos in sides]
    if environment.film:
        for half, pictures in zip(halves, _pictures(environment, played, rows)):
            size = min(pictures.shape[1], *half.shape[1:3])
            half[:, :size, :size] = pictures[:, :size, :size]
    for half, name in zip(halves, ("policy", "clip")):
        caption(half, name)
    frames = np.concatenate(halves, axis=2)
    return encode(frames, options.out.suffix.lower(), fps=options.fps, title=title), played, step_seconds


def _pictures(environment: Any, played: Played, rows: Any) -> tuple[Any, Any]:
    """What the discriminator sees at these steps, and the film at the same phases."""
    import numpy as np

    from vdbjax.imitation.pixel_reward import frame_at

    seen = played.observation[rows]
    wanted = frame_at(environment.film, seen[:, -environment.phase_size :])
    return np.asarray(environment.picture(seen)), np.asarray(wanted)


def _play(trained: Any, options: Options, step_seconds: float) -> Played:
    steps = min(trained.built.environment.episode_length, max(1, round(options.seconds / step_seconds)))
    return play(trained, num_steps=steps, seed=options.seed, stochastic=options.stochastic)


def _positions(frame: Any, model: Any) -> Any:
    """qpos of each step, from the words of engine c or a frame of mjx."""
    import numpy as np

    from vdbjax.envs.frame import Frame, unpack

    in_mjx = isinstance(frame, Frame)
    return np.asarray(frame.qpos if in_mjx else unpack(np.asarray(frame), model)[0].qpos, np.float64)


def _brax_page(trained: Any, options: Options, _: str) -> tuple[bytes, Played, float]:
    import jax
    from brax import envs
    from brax.io import html

    config = trained.config.environment
    raw = envs.get_environment(config.env.removeprefix("brax/"), backend=config.backend)
    played = _play(trained, options, float(raw.dt))
    states = played.physics.pipeline_state
    each = [jax.tree.map(lambda leaf, row=row: leaf[row], states) for row in range(played.num_steps)]
    page = html.render(raw.sys.tree_replace({"opt.timestep": raw.dt}), each, height=options.height, colab=False)
    return page.encode(), played, float(raw.dt)


def _task_of(path: Path) -> str:
    """From the config as it was written: what reads it whole imports MuJoCo, before the graphics are chosen."""
    from vdbjax.training.run_dir import open_run

    match open_run(path)[1].get("config"):
        case {"environment": {"env": str(task)}}:
            return task
        case {"recipe": recipe, "data": _}:
            raise ValueError(
                f"{path} is a run of recipe {recipe!r}, a model of images; python -m vdbjax.sample draws what it makes"
            )
    raise ValueError(f"{path}/config.json is damaged: it names no task")


def run(options: Options) -> None:
    """Plays, draws, writes."""
    command.check_writable(options.out)
    from vdbjax.training.run_dir import write_whole

    task = _task_of(options.run)
    if task.startswith("maze/"):
        raise ValueError(f"{task} has nothing to film; its rewards are drawn by python -m vdbjax.reward RUN --map FILE")
    on_brax = task.startswith("brax/")
    if on_brax and options.out.suffix.lower() != ".html":
        raise ValueError(f"Brax tasks are shown by Brax's own viewer: let --out ({options.out}) end in .html")
    if not on_brax:
        choose_graphics()
    from vdbjax.trained import load_trained

    trained = load_trained(options.run)
    title = f"{trained.config.recipe} on {trained.built.environment.name}, iteration {trained.iteration}"
    make = _brax_page if on_brax else _motion_clip if trained.built.environment.follow else _locomotion_clip
    content, played, step_seconds = make(trained, options, title)
    write_whole(options.out, content)
    ending = "the whole episode" if played.ended else "up to --seconds"
    print(
        f"wrote {options.out}: {title}; {played.num_steps} steps, {played.num_steps * step_seconds:.1f} s, {ending}, "
        f"return {played.undiscounted_return:.1f}"
    )


def main() -> None:
    """The command."""
    command.main(lambda: run(command.parse(Options, prog="python -m vdbjax.render", description=__doc__)))


if __name__ == "__main__":
    main()
