"""GAIL of the `imitation` library (PyTorch, Stable-Baselines3) and ours, one after the other on one machine.

Both learn Gymnasium's Hopper-v5 from the same subsampled demonstrations for the same environment steps. The library
runs in an environment of its own, with the fastest of its vector environments and thread counts. Evaluations are left
out of speeds and times on both sides; seconds count from the start of the process, compilation included.
"""

import dataclasses
import json
import signal
import subprocess
import sys
import time
from collections.abc import Sequence
from dataclasses import dataclass
from itertools import product
from pathlib import Path
from typing import Any, Literal, NamedTuple

import numpy as np
from comparison_report import draw_comparison, show, summarise
from environments import clean_environment, find_interpreter
from imitation_environment import REQUIREMENTS, SCRIPT
from machine import RESULTS, device_slug, load_average, without_folders
from timings import steps_per_second, timings

from vdbjax import command, limits
from vdbjax.build import Reference
from vdbjax.data.demonstrations import DemonstrationFile, embedded, episode_returns, load, subsample
from vdbjax.training.provenance import provenance
from vdbjax.training.run_dir import RunDir, read_metrics, write_json

CALIBRATION_STEPS = 24_576  # a few rounds of either settings


@dataclass(frozen=True)
class Options:
    """What to compare, and for how long."""

    recipes: tuple[Literal["gail", "vail"], ...] = ("gail", "vail")
    """Recipes of ours, at least one."""
    settings: tuple[Literal["defaults", "tuned"], ...] = ("defaults", "tuned")
    """Hyperparameters of the library: those of its training command, or those tuned by its authors for their Hopper."""
    seeds: tuple[int, ...] = (0,)
    """Each system runs once with each."""
    steps: int = 1_000_000
    """Environment steps of each run."""
    num_envs: int | None = None
    """Environments of ours at once. None: the recipe's own."""
    minutes: float | None = None
    """Stop a run earlier, when so many minutes have passed."""
    evaluations: int = 20
    """Evaluations of the deterministic policy over each run, for the curves and the time to 90 %."""
    eval_episodes: int = 10
    """Episodes of each."""
    final_episodes: int = 50
    """Episodes of the final scores, in Gymnasium's own environment."""
    threads: tuple[int, ...] = (1, 2)
    """Thread counts of torch to choose the fastest from."""
    demonstrations: Path | None = None
    """Demonstration file. None: the ones inside the package."""
    trajectories: int = 4
    """Trajectories to learn from, drawn by the seed."""
    every: int = 20
    """Keep every n-th transition of each."""
    python: Path | None = None
    """Interpreter that has the library. None: an environment is made under the working folder."""
    torch_index: str | None = None
    """Package index to take torch from, where the default one would give a CUDA build."""
    workdir: Path = Path("~/.cache/vdbjax/compare_imitation")
    """Where the environment and the runs lie."""
    out: Path | None = None
    """File to write, with a figure beside it. None: benchmarks/results/compare_imitation_DEVICE.json."""

    def __post_init__(self) -> None:
        """Rejects values that cannot work."""
        limits.not_empty(self, "--recipes", "--settings", "--seeds", "--threads")
        limits.at_least(1, self, "--steps", "--num-envs", "--evaluations", "--eval-episodes", "--final-episodes")
        limits.positive(self, "--minutes")


class Entrant(NamedTuple):
    """One system that runs."""

    label: str
    ours: bool
    name: str  # recipe or settings


class Contest(NamedTuple):
    """What all runs share."""

    options: Options
    python: Path  # the library's
    folder: Path
    file: DemonstrationFile
    reference: Reference


def main() -> None:
    """Runs all, prints the table, writes the file and the figure."""
    signal.signal(signal.SIGTERM, lambda *_: sys.exit(128 + signal.SIGTERM))  # so that no run outlives this process
    command.main(lambda: _run(command.parse(Options, prog="compare_imitation.py", description=__doc__)))


def _run(options: Options) -> None:
    file = load(options.demonstrations, task="hopper") if options.demonstrations else embedded("hopper")
    load_before = load_average()
    workdir = options.workdir.expanduser().resolve()
    python = find_interpreter(
        options.python,
        workdir / "venv",
        script=SCRIPT,
        requirements=REQUIREMENTS,
        torch_index=options.torch_index,
    )
    folder = workdir / "runs" / time.strftime("%Y%m%d-%H%M%S")
    folder.mkdir(parents=True)
    reference = Reference(file.random_return, float(episode_returns(file.demonstrations).mean()))
    contest = Contest(options, python, folder, file, reference)
    print(f"runs and their logs are in {folder}", flush=True)
    calibration: dict[str, dict[str, float]] = {name: _fastest(contest, name) for name in options.settings}
    entrants = [Entrant(f"vdbjax {name}", True, name) for name in options.recipes]
    entrants += [Entrant(f"imitation GAIL, {name}", False, name) for name in options.settings]
    runs = [_compete(contest, entrant, seed, calibration) for seed, entrant in product(options.seeds, entrants)]
    versions = next(run["versions"] for run in runs if run["ours"])
    result = {
        **provenance(versions),
        "load_average_before": load_before,
        "options": without_folders(dataclasses.asdict(options)),
        "reference": reference._asdict(),
        "calibration_steps_per_second": calibration,
        "summary": summarise(runs),
        "runs": runs,
    }
    out = options.out or RESULTS / f"compare_imitation_{device_slug(versions)}.json"
    out.parent.mkdir(parents=True, exist_ok=True)
    write_json(out, result)
    draw_comparison(runs, reference, out.with_suffix(".png"))
    show(result)
    print(f"wrote {out} and {out.with_suffix('.png')}")


def _fastest(contest: Contest, settings: str) -> dict[str, float]:
    """Steps per second of short runs, `VECTOR THREADS` -> rate, the fastest first."""
    rates = {}
    for vector, threads in product(("dummy", "subproc"), contest.options.threads):
        folder = contest.folder / f"calibration_{settings}_{vector}_{threads}"
        short = {"steps": CALIBRATION_STEPS, "evaluations": 0}
        _imitation(contest, folder, 0, [*_how(settings, f"{vector} {threads}"), *_flags(short)])
        rates[f"{vector} {threads}"] = steps_per_second(read_metrics(RunDir(folder)))
    ranked = dict(sorted(rates.items(), key=lambda item: -item[1]))
    print(f"imitation, {settings}: " + ", ".join(f"{how} {rate:,.0f}/s" for how, rate in ranked.items()), flush=True)
    return ranked


def _how(settings: str, vector_and_threads: str) -> list[str]:
    vector, threads = vector_and_threads.split()
    return _flags({"settings": settings, "vector": vector, "threads": threads})


def _compete(contest: Contest, entrant: Entrant, seed: int, calibration: dict[str, dict[str, float]]) -> dict[str, Any]:
    """One run, with its timings and its final scores."""
    folder, began = contest.folder / f"{entrant.label.replace(' ', '_').replace(',', '')}_{seed}", time.time()
    if entrant.ours:
        found = _vdbjax(contest, folder, seed, entrant.name)
    else:
        found = _budgeted_imitation(contest, folder, seed, _how(entrant.name, next(iter(calibration[entrant.name]))))
    lines = read_metrics(RunDir(folder))
    start_up = (folder / "metrics.jsonl").stat().st_mtime - began - lines[-1]["seconds"]
    timed = timings(lines, start_up=max(0.0, start_up), goal=0.9 * contest.reference.expert_return)
    scores = {
        f"{kind}score": float(np.mean(contest.reference.score(np.array(found[f"{kind}returns"]))))
        for kind in ("", "stochastic_")
    }
    speed = f"{timed['steps_per_second']:,.0f} steps/s"
    print(f"{entrant.label}, seed {seed}: {speed}, score {scores['score']:.3f}", flush=True)
    return {"label": entrant.label, "ours": entrant.ours, "seed": seed, **timed, **scores, **found}


def _vdbjax(contest: Contest, folder: Path, seed: int, recipe: str) -> dict[str, Any]:
    options = contest.options
    arguments = {
        "seed": seed,
        "total-steps": options.steps,
        "evaluations": options.evaluations,
        "eval-episodes": options.eval_episodes,
        "trajectories": options.trajectories,
        "every": options.every,
        "out": folder,
        "demonstrations": options.demonstrations and options.demonstrations.resolve(),
        "num-envs": options.num_envs,
    }
    arguments = {name: value for name, value in arguments.items() if value is not None}
    train = [sys.executable, "-m", "vdbjax.train", recipe, *_flags(arguments)]
    log = folder.with_suffix(".log")
    stopped = _execute(train, log, minutes=options.minutes)
    scores = folder.with_suffix(".json")
    wanted = {"simulator": "gymnasium", "episodes": options.final_episodes, "json": scores}
    _execute([sys.executable, "-m", "vdbjax.evaluate", str(folder), *_flags(wanted)], log)
    policy = _read(scores)["policies"][0]
    return {
        "stopped_by_time": stopped,
        "versions": _read(folder / "versions.json"),
        "returns": policy["deterministic"]["returns"],
        "stochastic_returns": policy["stochastic"]["returns"],
    }


def _flags(values: dict[str, Any]) -> list[str]:
    return [text for name, value in values.items() for text in (f"--{name}", str(value))]


def _read(path: Path) -> dict[str, Any]:
    return json.loads(path.read_text())


def _budgeted_imitation(contest: Contest, folder: Path, seed: int, how: Sequence[str]) -> dict[str, Any]:
    options = contest.options
    budget = {
        "steps": options.steps,
        "minutes": options.minutes or float("inf"),
        "evaluations": options.evaluations,
        "eval-episodes": options.eval_episodes,
        "final-episodes": options.final_episodes,
    }
    _imitation(contest, folder, seed, [*how, *_flags(budget)])
    return _read(folder / "summary.json") | {"how": " ".join(how)}


def _imitation(contest: Contest, folder: Path, seed: int, arguments: Sequence[str]) -> None:
    options, given = contest.options, folder / "demonstrations.npz"
    folder.mkdir()
    chosen = subsample(contest.file.demonstrations, trajectories=options.trajectories, every=options.every, seed=seed)
    ended = chosen.terminated | chosen.truncated
    np.savez(given, obs=chosen.observation, acts=chosen.action, next_obs=chosen.next_observation, dones=ended)
    command_line = [str(contest.python), str(SCRIPT), *_flags({"demonstrations": given, "out": folder, "seed": seed})]
    _execute([*command_line, *arguments], folder / "output.log", env=clean_environment())


def _execute(
    arguments: Sequence[str], log: Path, *, minutes: float | None = None, env: dict[str, str] | None = None
) -> bool:
    """Runs a process to its end, or stops it after so many minutes by SIGTERM: True then. Raises where it fails."""
    with log.open("a") as output:
        process = subprocess.Popen(arguments, stdout=output, stderr=subprocess.STDOUT, env=env)
        try:
            process.wait(minutes and 60 * minutes)
        except subprocess.TimeoutExpired:
            process.terminate()
        except BaseException:
            process.kill()
            raise
        code = process.wait()
    if code not in (0, 128 + signal.SIGTERM):
        last = (log.read_text().strip() or "no output").splitlines()[-1]
        raise ValueError(f"{' '.join(arguments[1:4])} ended with {code}, see {log}: {last}")
    return code != 0


if __name__ == "__main__":
    main()
