"""What averaging a motion policy gives: errors of the policy that a run keeps beside those of the last one that acted.

python benchmarks/averaged_policy.py runs/motion_table/run/motion-vail-*
"""

from dataclasses import dataclass
from pathlib import Path
from typing import Annotated, Any

import numpy as np
from machine import begin
from tyro.conf import Positional, arg

from vdbjax import command, limits
from vdbjax.evaluate import fresh_key
from vdbjax.motion_score import score_policy
from vdbjax.trained import Trained, load_trained

SHOWN = ("rotation_rad", "rotation_without_heading_rad", "fallen", "return")


@dataclass(frozen=True)
class Options:
    """Which runs to look at."""

    runs: Positional[Annotated[tuple[Path, ...], arg(metavar="RUN...")]]
    """Run folders of motion-gail, motion-vail and their variants."""
    episodes: int = 256
    """Episodes of 20 s by the mean action, of each policy; the same starts for all."""
    seed: int = 0
    """Of those starts."""
    out: Path | None = None
    """File to write. None: benchmarks/results/averaged_policy_DEVICE.json."""

    def __post_init__(self) -> None:
        """Rejects values that cannot work."""
        if not self.runs:
            raise ValueError("name at least one run folder")
        limits.at_least(1, self, "--episodes")
        limits.seed(self, "--seed")


def main(options: Options) -> None:
    """Prints two lines a run and seed, and writes the numbers."""
    report = begin("averaged_policy", options, options.out)
    report.write({"policies": [row for path in options.runs for row in _rows(path, load_trained(path), options)]})


def _rows(path: Path, trained: Trained, options: Options) -> list[dict[str, Any]]:
    if not getattr(trained.config.algorithm, "averaged_share", 0):
        raise ValueError(f"{path} averages no policy; train it with --averaged-share")
    score = score_policy(trained.built.environment, trained.built.policy, num_episodes=options.episodes)
    rows = []
    for seed, state in enumerate(trained.states):
        for kind, actor in (("kept", state.actor), ("last", state.learning.actor)):
            found = score(actor, fresh_key(options.seed))
            means = {name: float(np.mean(found[name])) for name in SHOWN}
            print(f"{path}, policy {seed}, {kind}: " + ", ".join(f"{name} {means[name]:.4g}" for name in SHOWN))
            rows.append({"run": path.name, "policy": seed, "kind": kind, "iteration": trained.iteration, **means})
    return rows


if __name__ == "__main__":
    command.main(lambda: main(command.parse(Options, prog="averaged_policy.py", description=__doc__)))
