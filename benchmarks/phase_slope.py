"""Whether a learnt reward tells a character that it is out of step: the reward of the clip, and of the policy, as they
are told a phase that is off by up to half a cycle.

python benchmarks/phase_slope.py runs/motion_table/run/motion-vail-0 runs/motion_table/run/motion-vail-gp-0
"""

from dataclasses import dataclass
from pathlib import Path
from typing import Annotated, Any

import jax
import jax.numpy as jnp
import numpy as np
from jaxtyping import Array, Float
from machine import RESULTS
from matplotlib.figure import Figure
from tyro.conf import Positional, arg

from vdbjax import command, limits
from vdbjax.envs.humanoid_model import CONTROL_HZ
from vdbjax.episodes import watch_episodes
from vdbjax.imitation import gail
from vdbjax.run_curves import run_labels
from vdbjax.trained import Trained, load_trained
from vdbjax.training.provenance import provenance, versions
from vdbjax.training.run_dir import write_json

SHIFTS = np.linspace(-0.5, 0.5, 41)  # of a cycle
SPANS = {"policy, first 0.5 s": (0.0, 0.5), "policy, 2 s to 4 s": (2.0, 4.0)}  # of an episode


@dataclass(frozen=True)
class Options:
    """Which runs to look at."""

    runs: Positional[Annotated[tuple[Path, ...], arg(metavar="RUN...")]]
    """Run folders of motion-vail, motion-gail and the like, whose discriminator knows the phase."""
    episodes: int = 32
    """Episodes of each policy, by its mean action."""
    out: Path = RESULTS / "phase_slope.json"
    """File to write; the figure lies beside it."""

    def __post_init__(self) -> None:
        """Rejects values that cannot work."""
        if not self.runs:
            raise ValueError("give at least one run folder, as `python -m vdbjax.train motion-vail` leaves it")
        limits.at_least(1, self, "--episodes")


def main(options: Options) -> None:
    """Prints a line a curve, and writes the numbers and the figure."""
    curves = {
        label: slopes(load_trained(run), episodes=options.episodes)
        for label, run in zip(run_labels(options.runs), options.runs, strict=True)
    }
    for label, rows in curves.items():
        for name, rewards in rows.items():
            tenth = [float(np.interp(shift, SHIFTS, rewards)) for shift in (-0.1, 0.0, 0.1)]
            print(f"{label}, {name}: reward {tenth[1]:.2f}; {tenth[0]:.2f} and {tenth[2]:.2f} a tenth of a cycle off")
    draw(curves, options.out.with_suffix(".png"))
    write_json(options.out, {**provenance(versions()), "shift_cycles": SHIFTS.tolist(), "reward": curves})
    print(f"wrote {options.out} and .png")


def slopes(trained: Trained, *, episodes: int) -> dict[str, list[float]]:
    """Mean rewards over `SHIFTS`, of the clip's states and of the policy's in each span that it has not fallen in."""
    config, environment, reward = trained.config, trained.built.environment, trained.built.algorithm.reward
    if not (environment.phase_size and isinstance(config.algorithm, gail.Config) and _judges_phase(config.algorithm)):
        raise ValueError(f"recipe {config.recipe} judges no states by their phase; give a run of motion-vail")
    clip = environment.demonstrations
    assert reward
    assert clip

    @jax.jit
    def told(params: Any, seen: Array, shift: Array) -> Array:
        turned = turn(seen, shift)
        return reward(params, turned, jnp.zeros((len(seen), environment.action_size)), turned).mean()

    def curve(seen: Array) -> list[float]:
        return [float(told(trained.rewards[0], seen, shift)) for shift in SHIFTS]

    steps = round(max(end for _, end in SPANS.values()) * CONTROL_HZ)
    trace = watch_episodes(trained, num_episodes=episodes, num_steps=steps, see=lambda env: env.observation)
    rows = {"clip": curve(jnp.asarray(clip.observation))}
    for name, span in SPANS.items():
        begin, end = (round(seconds * CONTROL_HZ) for seconds in span)
        standing = np.asarray(trace.alive[begin:end])
        if standing.any():
            rows[name] = curve(trace.seen[begin:end][standing])
    return rows


def _judges_phase(algorithm: gail.Config) -> bool:
    return algorithm.discriminator.phase != "none" and algorithm.discriminator.inputs == "state"


def turn(observation: Float[Array, "N observation"], cycles: Array) -> Float[Array, "N observation"]:
    """The observations with another phase: their last two numbers are its cosine and sine."""
    angle = jnp.arctan2(observation[:, -1], observation[:, -2]) + 2 * jnp.pi * cycles
    return observation.at[:, -2:].set(jnp.stack([jnp.cos(angle), jnp.sin(angle)], axis=-1))


def draw(curves: dict[str, dict[str, list[float]]], out: Path) -> None:
    """A panel a run."""
    figure = Figure(figsize=(4.2 * len(curves), 3.4), layout="constrained")
    panels = figure.subplots(1, len(curves), squeeze=False, sharey=True)[0]
    for panel, (label, rows) in zip(panels, curves.items()):
        for name, rewards in rows.items():
            panel.plot(SHIFTS, rewards, label=name)
        panel.set_title(label)
        panel.set_xlabel("phase told, off by (cycles)")
        panel.set_yscale("log")
    panels[0].set_ylabel("learnt reward of a control step")
    max(panels, key=lambda panel: len(panel.lines)).legend(fontsize=8)  # a policy that fell has fewer curves
    figure.savefig(out, dpi=120)


if __name__ == "__main__":
    command.main(lambda: main(command.parse(Options, prog="phase_slope.py", description=__doc__)))
