"""`python -m vdbjax.render RUN --out clip.mp4`: a clip of one episode of a trained policy."""

import os
from dataclasses import dataclass
from pathlib import Path
from typing import Any, NamedTuple

from tyro.conf import FlagCreatePairsOff, Positional

from vdbjax import command
from vdbjax.evaluation.clip import FORMATS, choose_graphics, draw, encode, frame_rows


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
    overwrite: FlagCreatePairsOff[bool] = False
    """Replace the file if it exists."""

    def __post_init__(self) -> None:
        """Rejects values that cannot work."""
        if self.out.suffix.lower() not in FORMATS:
            raise ValueError(f"--out {self.out} ends in none of {', '.join(FORMATS)}")
        for name in ("width", "height"):
            if getattr(self, name) < 2 or getattr(self, name) % 2:
                raise ValueError(f"--{name} ({getattr(self, name)}) must be an even number, as video codecs need")
        if self.seconds <= 0 or not 1 <= self.fps <= 100:
            raise ValueError(f"--seconds ({self.seconds:g}) must be above 0, and --fps ({self.fps}) from 1 to 100")


class Played(NamedTuple):
    """One episode, or its beginning: T control steps."""

    physics: Any  # the environment's own state before each step; leaves lead with T
    undiscounted_return: float
    num_steps: int
    ended: bool


def play(trained: Any, *, num_steps: int, seed: int, stochastic: bool) -> Played:
    """Up to `num_steps` of one episode, from a fresh start."""
    import jax
    import numpy as np

    from vdbjax.episodes import fresh_key, in_whole_batches
    from vdbjax.rl.policy import act_by_mean, act_by_sampling

    environment, make = trained.built.environment, act_by_sampling if stochastic else act_by_mean

    def forward(actor: Any, env: Any, key: Any) -> tuple[Any, tuple]:
        key_act, key_env = jax.random.split(key)
        command = make(trained.built.policy, actor)(env.observation, key_act)[2]
        after, step = environment.step(env, command, key_env)
        first = jax.tree.map(lambda leaf: leaf[0], (env.physics, step.reward, step.terminated | step.truncated))
        return after, first

    def episode(actor: Any, key: Any) -> tuple:
        key_start, key_steps = jax.random.split(key)
        start = environment.reset(key_start, in_whole_batches(1))
        keys = jax.random.split(key_steps, num_steps)
        return jax.lax.scan(lambda env, key: forward(actor, env, key), start, keys)[1]

    actor = jax.device_get(trained.actors[0])
    physics, reward, done = jax.device_get(jax.jit(episode)(actor, fresh_key(seed)))
    length = int(np.argmax(done)) + 1 if done.any() else num_steps
    physics = jax.tree.map(lambda leaf: leaf[:length], physics)
    return Played(physics, float(reward[:length].sum(dtype=np.float64)), length, bool(done.any()))


def _mujoco_clip(trained: Any, options: Options, title: str) -> tuple[bytes, Played, float]:
    import jax
    import numpy as np

    from vdbjax.envs.locomotion import TASKS, load_model
    from vdbjax.envs.physics import unpack

    environment = trained.built.environment
    task = TASKS[environment.name]
    model = load_model(task)
    step_seconds = model.opt.timestep * task.frame_skip
    steps = min(environment.episode_length, max(1, round(options.seconds / step_seconds)))
    played = play(trained, num_steps=steps, seed=options.seed, stochastic=options.stochastic)
    in_c = isinstance(played.physics, np.ndarray | jax.Array)
    qpos = (unpack(np.asarray(played.physics), model)[0] if in_c else played.physics[0]).qpos
    rows = frame_rows(played.num_steps, step_seconds=step_seconds, fps=options.fps)
    frames = draw(model, np.asarray(qpos, np.float64)[rows], width=options.width, height=options.height)
    return encode(frames, options.out.suffix.lower(), fps=options.fps, title=title), played, step_seconds


def _brax_page(trained: Any, options: Options) -> tuple[bytes, Played, float]:
    import jax
    from brax import envs
    from brax.io import html

    config = trained.config.environment
    raw = envs.get_environment(config.env.removeprefix("brax/"), backend=config.backend)
    steps = min(trained.built.environment.episode_length, max(1, round(options.seconds / raw.dt)))
    played = play(trained, num_steps=steps, seed=options.seed, stochastic=options.stochastic)
    states = played.physics.pipeline_state
    each = [jax.tree.map(lambda leaf, row=row: leaf[row], states) for row in range(played.num_steps)]
    page = html.render(raw.sys.tree_replace({"opt.timestep": raw.dt}), each, height=options.height, colab=False)
    return page.encode(), played, float(raw.dt)


def run(options: Options) -> None:
    """Plays, draws, writes."""
    _check_writable(options)
    from vdbjax.training.run_dir import open_run

    on_brax = str(open_run(options.run)[1]["config"]["environment"]["env"]).startswith("brax/")
    if on_brax and options.out.suffix.lower() != ".html":
        raise ValueError(f"Brax tasks are shown by Brax's own viewer: let --out ({options.out}) end in .html")
    if not on_brax:
        choose_graphics()
    from vdbjax.trained import load_trained

    trained = load_trained(options.run)
    title = f"{trained.config.recipe} on {trained.built.environment.name}, iteration {trained.iteration}"
    content, played, step_seconds = _brax_page(trained, options) if on_brax else _mujoco_clip(trained, options, title)
    options.out.write_bytes(content)
    ending = "the whole episode" if played.ended else "up to --seconds"
    print(
        f"wrote {options.out}: {title}; {played.num_steps} steps, {played.num_steps * step_seconds:.1f} s, {ending}, "
        f"return {played.undiscounted_return:.1f}"
    )


def _check_writable(options: Options) -> None:
    """Before the episode is played, not after."""
    out = options.out
    if out.exists() and not options.overwrite:
        raise ValueError(f"{out} exists; choose another name, or give --overwrite")
    if not out.absolute().parent.is_dir():
        raise ValueError(f"{out}: the folder {out.absolute().parent} does not exist")
    if not os.access(out if out.exists() else out.absolute().parent, os.W_OK):
        raise ValueError(f"{out} cannot be written: permission denied")


def main() -> None:
    """The command."""
    command.main(lambda: run(command.parse(Options, prog="python -m vdbjax.render", description=__doc__)))


if __name__ == "__main__":
    main()
