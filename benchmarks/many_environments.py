"""VAIL on hopper with thousands of environments: score, control steps and wall clock.

Writes `benchmarks/results/many_environments_DEVICE.json`:

    python benchmarks/many_environments.py
"""

import json
from dataclasses import dataclass
from pathlib import Path

from machine import begin

from vdbjax import command
from vdbjax.stages import Training, run_or_exit, train_all
from vdbjax.training.run_dir import open_run, read_metrics


@dataclass(frozen=True)
class Options:
    """What to run."""

    num_envs: int = 4096
    """Environments in parallel."""
    workdir: Path = Path("runs/many_environments")
    """Where the run lies."""
    out: Path | None = None
    """File to write. None: benchmarks/results/many_environments_DEVICE.json."""


def main(options: Options) -> None:
    """Trains, evaluates, writes."""
    report = begin("many_environments", options, options.out)
    folder = options.workdir / f"vail-{options.num_envs}"
    train_all([Training(folder, ("vail", "--num-envs", str(options.num_envs)))], jobs=1)
    scores = folder / "scores.json"
    run_or_exit("evaluate", folder, "--episodes", 50, "--json", scores)
    lines = read_metrics(open_run(folder)[0])
    curve = [
        {"env_steps": line["env_steps"], "seconds": line["seconds"], "score": line["eval/score"]}
        for line in lines
        if "eval/score" in line
    ]
    policy = json.loads(scores.read_text())["policies"][0]
    result = {
        "env_steps": lines[-1]["env_steps"],
        "seconds": lines[-1]["seconds"],
        "deterministic_score": policy["deterministic"]["score"],
        "stochastic_score": policy["stochastic"]["score"],
        "curve": curve,
    }
    print(json.dumps(result, indent=2))
    report.write(result)


if __name__ == "__main__":
    command.main(lambda: main(command.parse(Options, prog="many_environments.py", description=__doc__)))
