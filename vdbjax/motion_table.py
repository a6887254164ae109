"""`python -m vdbjax.motion_table`: trains every method on every motion clip, and sets the errors beside the paper's.

Stage after stage, each a run folder; what is finished is not run again, and what was cut off goes on. After every stage
the table, its numbers and the learning curves are written anew (VDB section 5.1: Table 1, Figures 10 to 12).
"""

import json
import statistics
import sys
from collections.abc import Iterator, Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import Any, NamedTuple

from tyro.conf import FlagCreatePairsOff

from vdbjax import command, limits, stages
from vdbjax.data.demonstrations import episode_lengths, load
from vdbjax.data.mocap import find_clip, load_clip
from vdbjax.evaluation.plots import COLOURS
from vdbjax.motion_report import Report, ScoredRun, error_cell, row_of
from vdbjax.recipes import find_recipe
from vdbjax.stages import Training, call, train
from vdbjax.training.progress import clock
from vdbjax.training.run_dir import open_run, read_metrics

TABLE = (
    *("motion-vail-gp", "motion-vail", "motion-gail", "motion-gail-gp", "motion-gail-noise", "motion-gail-noise-z"),
    *("motion-merel", "motion-bc", "motion-tracking"),
)

ABLATED = "motion-vail-gp"
ABLATION = {
    ABLATED: (),
    f"{ABLATED}-phase-input": ("--discriminator.phase", "input", "--discriminator.hidden-sizes", "405", "405"),
    f"{ABLATED}-no-phase": ("--discriminator.phase", "none", "--discriminator.hidden-sizes", "405", "405"),
    f"{ABLATED}-transition": (
        *("--discriminator.inputs", "transition", "--discriminator.phase", "none"),
        *("--discriminator.hidden-sizes", "340", "340"),
    ),
}
"""What the discriminator sees. As in VDB's Figure 11 the plain networks are so wide that all have as many parameters as
the phase-functioned one. The gradient penalty stays: without it a policy falls out of step even beside that one."""

METHODS = {**{recipe: (recipe,) for recipe in TABLE}, **{name: (ABLATED, *o) for name, o in ABLATION.items()}}
"""Method -> recipe and options of the train command."""

ORACLE, CLONING = "motion-tracking", "motion-bc"
ORACLE_TRANSITIONS = 10_000


@dataclass(frozen=True)
class Options:
    """What the command line gives."""

    clips: tuple[str, ...] = ("run", "backflip", "cartwheel", "dance_a", "spinkick", "walk")
    """Clips by name or file, in the order they are run."""
    methods: tuple[str, ...] = TABLE
    """Recipes; also motion-vail-gp-phase-input, -no-phase and -transition of the ablation."""
    ablation: FlagCreatePairsOff[bool] = False
    """In place of --methods: motion-vail-gp by what its discriminator knows of the phase, or two frames instead."""
    seeds: int = 3
    """Seeds 0, 1, ... of every method and clip, each a run; seed 0 of everything comes first."""
    total_steps: int | None = None
    """Control steps of each run. None: those of each recipe. Cloning takes none."""
    episodes: int = 16
    """Fresh episodes of 20 s that each last policy is scored by."""
    workdir: Path = Path("runs/motion_table")
    """Where the runs lie."""
    out: Path = Path("motion_table")
    """Folder to write motion_table.json, .md and .png files to (of an ablation: motion_ablation...)."""
    render: FlagCreatePairsOff[bool] = False
    """Draw each clip, reference.mp4, and each last policy beside it, clip.mp4 in its run folder."""

    def __post_init__(self) -> None:
        """Rejects values that cannot work."""
        limits.not_empty(self, "--clips", "--methods")
        limits.known("method", METHODS, *self.methods)
        if (count := len(set(self.methods))) > len(COLOURS):
            raise ValueError(
                f"--methods names {count}, of which the curves can tell {len(COLOURS)} apart; give the others to "
                "another --out"
            )
        limits.at_least(1, self, "--seeds", "--total-steps")
        limits.at_least(2, self, "--episodes")


class Stage(NamedTuple):
    """One run. Each seed has its own, in place of a run of all seeds by vmap: so the whole table stands after the first
    seed, a stop costs one seed at most, and more seeds can be added later."""

    clip: str  # as the options name it
    name: str  # as the clip names itself
    method: str
    seed: int

    def __str__(self) -> str:
        """For progress lines."""
        return f"{self.method} on {self.name}, seed {self.seed}"


class Table:
    """The stages of the options and the files that they leave."""

    def __init__(self, options: Options) -> None:
        """Raises ValueError for clips that cannot be read, and for runs in the folder that were asked for otherwise."""
        for folder in (options.workdir, options.out):
            command.check_table_folder(folder)
        self.options = options
        self.methods = tuple(ABLATION) if options.ablation else tuple(dict.fromkeys(options.methods))
        self.names = {clip: load_clip(find_clip(clip)).name for clip in options.clips}
        if len(set(self.names.values())) < len(self.names):
            raise ValueError(f"--clips {' '.join(self.names)}: two are of the same name; rename one's file")
        table = "motion_ablation" if options.ablation else "motion_table"
        self.report = Report(tuple(self.names.values()), self.methods, options.out, table)
        self.stages = list(self._stages())
        for stage in self.stages:
            self._check_steps(stage)

    def _stages(self) -> Iterator[Stage]:
        known = set()
        for seed in range(self.options.seeds):
            for clip, name in self.names.items():
                for method in self.methods:
                    # Cloning learns from the tracking policy of seed 0, whatever its own seed and the methods are.
                    needed = [Stage(clip, name, ORACLE, 0)] * (method == CLONING)
                    for stage in (*needed, Stage(clip, name, method, seed)):
                        if stage not in known:
                            known.add(stage)
                            yield stage

    def folder(self, stage: Stage) -> Path:
        """Where its run lies."""
        return self.options.workdir / stage.name / f"{stage.method}-{stage.seed}"

    def _total_steps(self, stage: Stage) -> int | None:
        return self.options.total_steps or find_recipe(METHODS[stage.method][0]).total_steps

    def _check_steps(self, stage: Stage) -> None:
        """Learning rates fall to 0 over a run, so that a longer one is not a shorter one gone on with."""
        folder, wanted = self.folder(stage), self._total_steps(stage)
        if stage.method == CLONING or not (folder / "config.json").exists():
            return
        found = open_run(folder)[1].get("config", {}).get("total_steps")
        if found != wanted:
            raise ValueError(f"{folder} is a run of {found} steps, not of {wanted}; choose another --workdir")

    def draw_references(self) -> None:
        """The clips themselves; where nothing can draw, the command says so and ends the table."""
        for clip, name in self.names.items():
            file = self.options.workdir / name / "reference.mp4"
            if not file.exists():
                file.parent.mkdir(parents=True, exist_ok=True)
                stages.run_or_exit("mocap", "render", clip, "--out", file)

    def is_done(self, stage: Stage) -> bool:
        """Whether nothing is left to do."""
        folder = self.folder(stage)
        return Training(folder, ()).finished and self._is_scored(folder) and self._is_drawn(folder)

    def _is_scored(self, folder: Path) -> bool:
        try:
            return json.loads((folder / "score.json").read_text())["episodes"] == self.options.episodes
        except FileNotFoundError:
            return False

    def _is_drawn(self, folder: Path) -> bool:
        return not self.options.render or (folder / "clip.mp4").exists()

    def complete(self, stage: Stage) -> int:
        """Trains, scores and draws what is missing; the exit code of the first command that fails, or 0."""
        folder = self.folder(stage)
        score = ("--episodes", self.options.episodes, "--json", folder / "score.json")
        return (
            (self._collect(stage) if stage.method == CLONING else 0)
            or train(Training(folder, self._arguments(stage)))
            or (0 if self._is_scored(folder) else call("evaluate", folder, *score))
            or (0 if self._is_drawn(folder) else call("render", folder, "--out", folder / "clip.mp4"))
        )

    def _arguments(self, stage: Stage) -> tuple[str, ...]:
        arguments = (*METHODS[stage.method], "--env", f"mocap/{stage.clip}", "--seed", str(stage.seed))
        if stage.method != CLONING:
            return (*arguments, "--total-steps", str(self._total_steps(stage)))
        file = self._oracle(stage)
        episodes = len(episode_lengths(load(file).demonstrations)) if file.exists() else 0
        return (*arguments, "--demonstrations", str(file), "--trajectories", str(episodes))

    def _oracle(self, stage: Stage) -> Path:
        return self.options.workdir / stage.name / "oracle.npz"

    def _collect(self, stage: Stage) -> int:
        """What cloning learns from: a clip has no actions, so a policy's that tracks it (VDB section 5.1)."""
        if self._oracle(stage).exists():
            return 0
        oracle = self.folder(stage._replace(method=ORACLE, seed=0))
        if not Training(oracle, ()).finished:
            print(f"error: {oracle}, which {stage} clones, has not come to its end", file=sys.stderr, flush=True)
            return 1
        return call("demos", "collect", oracle, "--transitions", ORACLE_TRANSITIONS, "--out", self._oracle(stage))

    def scored(self) -> list[ScoredRun]:
        """All that is finished and asked for."""
        asked = [stage for stage in self.stages if stage.method in self.methods]
        return [ScoredRun(s.name, s.method, s.seed, self.folder(s)) for s in asked if self.is_done(s)]

    def write(self, clips: Sequence[str]) -> None:
        """The table, and the figures of these clips."""
        if runs := self.scored():
            self.options.out.mkdir(parents=True, exist_ok=True)
            self.report.write_table(runs)
            for clip in {run.clip for run in runs} & set(clips):
                self.report.draw(clip, runs)

    def seconds_left(self, stages: Sequence[Stage]) -> float:
        """An estimate: as long as finished runs of the same method took, or else as all took; NaN before the first."""
        took: dict[str, list[float]] = {}
        for stage in self.stages:
            if Training(self.folder(stage), ()).finished:
                took.setdefault(stage.method, []).append(_last(self.folder(stage))["seconds"])
        typical = statistics.median([s for all_ in took.values() for s in all_]) if took else float("nan")
        return sum(statistics.median(took.get(stage.method, [typical])) for stage in stages)

    def result_of(self, stage: Stage) -> str:
        """What a finished stage gave, in a few words."""
        folder = self.folder(stage)
        row = row_of([ScoredRun(stage.name, stage.method, stage.seed, folder)], clip=stage.name, method=stage.method)
        fallen = row["scores"]["fallen_fraction"]["mean"]
        return f"error {error_cell(row)} rad, fallen {fallen:.0%}, trained for {clock(_last(folder)['seconds'])}"


def _last(folder: Path) -> dict[str, Any]:
    return read_metrics(open_run(folder)[0])[-1]


def run(options: Options) -> None:
    """All stages, in order; one that fails does not stop the others."""
    table = Table(options)
    if options.render:  # the references first: that nothing can draw should not show after the first training
        table.draw_references()
    missing = [stage for stage in table.stages if not table.is_done(stage)]
    print(f"{len(table.stages)} runs, {len(table.stages) - len(missing)} of them finished", flush=True)
    table.write(table.report.clips)
    failed = []
    for index, stage in enumerate(missing):
        place = f"[{len(table.stages) - len(missing) + index + 1}/{len(table.stages)}] {stage}"
        left = missing[index:]
        print(f"{place}: begins; {len(left)} left, for about {clock(table.seconds_left(left))}", flush=True)
        if code := table.complete(stage):
            failed.append(stage)
            print(f"{place}: failed with exit code {code}", flush=True)
            continue
        table.write([stage.name])
        print(f"{place}: {table.result_of(stage)}", flush=True)
    if failed:
        sys.exit(
            f"error: {len(failed)} of {len(table.stages)} runs failed, and the same command tries them again: "
            f"{'; '.join(map(str, failed))}"
        )
    print(f"wrote {options.out / table.report.name}.md, .json and .png files")


def main() -> None:
    """The command."""
    command.main(lambda: run(command.parse(Options, prog="python -m vdbjax.motion_table", description=__doc__)))


if __name__ == "__main__":
    main()
