"""VAIL on hopper with thousands of environments: score, control steps and wall clock.

Writes `benchmarks/results/many_environments_DEVICE.json`:

    python benchmarks/many_environments.py
"""

import json
from dataclasses import dataclass
from pathlib import Path

from machine import RESULTS, device_slug, load_average

from vdbjax import command as vdbjax_command
from vdbjax.stages import Training, command, train_all
from vdbjax.training.provenance import provenance, versions
from vdbjax.training.run_dir import open_run, read_metrics, write_json


@dataclass(frozen=True)
class Options:
    """What to run."""

    num_envs: int = 4096
    """Environments in parallel."""
    workdir: Path = Path("runs/many_environments")
    """Where the run lies."""


def main(options: Options) -> None:
    """Trains, evaluates, writes."""
    found, load = versions(), load_average()
    folder = options.workdir / f"vail-{options.num_envs}"
    train_all([Training(folder, ("vail", "--num-envs", str(options.num_envs)))], jobs=1)
    scores = folder / "scores.json"
    command("evaluate", folder, "--episodes", 50, "--json", scores)
    lines = read_metrics(open_run(folder)[0])
    curve = [
        {"env_steps": line["env_steps"], "seconds": line["seconds"], "score": line["eval/score"]}
        for line in lines
        if "eval/score" in line
    ]
    policy = json.loads(scores.read_text())["policies"][0]
    result = {
        **provenance(found),
        "load_average_before": load,
        "num_envs": options.num_envs,
        "env_steps": lines[-1]["env_steps"],
        "seconds": lines[-1]["seconds"],
        "deterministic_score": policy["deterministic"]["score"],
        "stochastic_score": policy["stochastic"]["score"],
        "curve": curve,
    }
    write_json(RESULTS / f"many_environments_{device_slug(found)}.json", result)
    print(json.dumps(result, indent=2))


if __name__ == "__main__":
    vdbjax_command.main(lambda: main(vdbjax_command.parse(Options, prog="many_environments.py", description=__doc__)))
