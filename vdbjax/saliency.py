"""`python -m vdbjax.saliency RUN... --out saliency.png`: where in a picture the discriminator looks (VDB Figure 5)."""

from dataclasses import dataclass
from pathlib import Path
from typing import Annotated, Any, NamedTuple

import numpy as np
from jaxtyping import Float, UInt8
from tyro.conf import Positional, arg

from vdbjax import command, limits

FORMATS = (".png", ".pdf", ".svg")
SIDES = ("demonstration", "policy")
STEPS = 30  # of the policy: a second, about a cycle of a gait


@dataclass(frozen=True)
class Options:
    """What the command line gives."""

    runs: Positional[Annotated[tuple[Path, ...], arg(metavar="RUN...")]]
    """Run folders of recipes whose discriminator sees pictures, such as video-vail; of several seeds the first."""
    out: Path
    """Figure to write (.png, .pdf or .svg)."""
    pictures: int = 6
    """Pictures of the demonstration, over one cycle of it, and as many of the policy."""
    seed: int = 0
    """Seed of the policy's start."""

    def __post_init__(self) -> None:
        """Rejects values that cannot work."""
        if not self.runs:
            raise ValueError("give at least one run folder, as `python -m vdbjax.train video-vail` leaves it")
        limits.ends_in(FORMATS, self, "--out")
        limits.between(1, 50, self, "--pictures")
        limits.seed(self, "--seed")


class Looked(NamedTuple):
    """Pictures, and how much the discriminator's verdict hangs on each of their pixels."""

    frames: UInt8[np.ndarray, "pictures 64 64 3"]
    slope: Float[np.ndarray, "pictures 64 64"]  # |d logit / d pixel|, over the colours; pixels in [0, 1]


def look(trained: Any, *, pictures: int, seed: int) -> tuple[Looked, Looked]:
    """(demonstration, policy) by a run's discriminator; the policy acts by its mean.

    Raises ValueError where the run has no discriminator of pictures.
    """
    import jax
    import jax.numpy as jnp

    from vdbjax.imitation import gail

    algorithm, environment = trained.config.algorithm, trained.built.environment
    if not isinstance(algorithm, gail.Config) or algorithm.discriminator.inputs != "frame":
        raise ValueError(f"recipe {trained.config.recipe} has no discriminator of pictures; give a run of video-vail")
    judge, film = gail.make_judge(algorithm, environment, None, num_envs=trained.config.num_envs)
    state = jax.tree.map(jnp.asarray, trained.states[0].discriminator)
    seen = jnp.asarray(played(trained, pictures=pictures, seed=seed))
    kept = judge.judge(seen, seen[:, :0], seen, jnp.zeros(len(seen), bool))
    rows = np.linspace(0, len(film.features), pictures, endpoint=False).astype(int)
    sides = {"demonstration": jax.tree.map(lambda leaf: leaf[rows], film)}
    sides["policy"] = kept._replace(features=environment.picture(seen))

    def logits(frames: Any, blend: Any) -> Any:
        return jnp.sum(judge.logit(state, frames, blend))

    slopes = [jax.grad(logits)(side.features / 255.0, side.blend) for side in sides.values()]
    demonstration, policy = (
        Looked(np.asarray(side.features), np.linalg.norm(np.asarray(slope), axis=-1))
        for side, slope in zip(sides.values(), slopes)
    )
    return demonstration, policy


def played(trained: Any, *, pictures: int, seed: int) -> Any:
    """Observations of one episode, evenly over its first second, or up to where it ended before."""
    from vdbjax.episodes import watch_episodes

    trace = watch_episodes(trained, num_episodes=1, num_steps=STEPS, see=lambda env: env.observation, seed=seed)
    rows = np.linspace(0, int(trace.alive[:, 0].sum()), pictures, endpoint=False).astype(int)
    return trace.seen[rows, 0]


def draw(looked: dict[str, tuple[Looked, Looked]], out: Path) -> None:
    """Writes the figure: for each run pictures and slopes, of the demonstration and of the policy."""
    from matplotlib.figure import Figure

    height, width = 4 * len(looked), len(next(iter(looked.values()))[0].frames)
    figure = Figure(figsize=(1.5 + 1.25 * width, 1.3 * height), layout="constrained")
    panels = figure.subplots(height, width, squeeze=False)
    for group, (label, sides) in enumerate(looked.items()):
        top = max(float(side.slope.max()) for side in sides)
        for place, (name, side) in enumerate(zip(SIDES, sides)):
            row = 4 * group + 2 * place
            for column in range(width):
                panels[row, column].imshow(side.frames[column])
                panels[row + 1, column].imshow(side.slope[column], cmap="inferno", vmin=0.0, vmax=top)
            panels[row, 0].set_ylabel(f"{label}\n{name}", fontsize=8)
            mean = float(side.slope.mean())
            panels[row + 1, 0].set_ylabel(f"slope to {top:.2g}\nmean {mean:.2g}", fontsize=8)
    for panel in panels.ravel():
        panel.set_xticks([])
        panel.set_yticks([])
    figure.savefig(out, dpi=120)


def run(options: Options) -> None:
    """Plays, looks, writes."""
    command.check_writable(options.out)
    from vdbjax.run_curves import run_labels
    from vdbjax.trained import load_trained

    labels = run_labels(options.runs)
    looked = {
        label: look(load_trained(path), pictures=options.pictures, seed=options.seed)
        for label, path in zip(labels, options.runs, strict=True)
    }
    draw(looked, options.out)
    for label, sides in looked.items():
        means = ", ".join(f"{name} {side.slope.mean():.3g}" for name, side in zip(SIDES, sides))
        print(f"{label}: mean slope of the logit a pixel: {means}")
    print(f"wrote {options.out}")


def main() -> None:
    """The command."""
    command.main(lambda: run(command.parse(Options, prog="python -m vdbjax.saliency", description=__doc__)))


if __name__ == "__main__":
    main()
