"""`python -m vdbjax.evaluate RUN...`: the true return of trained policies over fresh episodes, or a motion's errors."""

import json
from collections.abc import Callable, Iterator
from dataclasses import asdict, dataclass
from pathlib import Path
from typing import Any, Literal, NamedTuple

import jax
import numpy as np
from rich import box
from rich.console import Console
from rich.table import Table
from tyro.conf import Positional

from vdbjax import command, limits
from vdbjax.build import Reference
from vdbjax.envs.env import engine_of
from vdbjax.envs.locomotion import TASKS, quiet_stderr
from vdbjax.episodes import fresh_key
from vdbjax.evaluation.policy_return import ReturnSummary, gymnasium_returns, summarize
from vdbjax.motion_score import score_policy
from vdbjax.rl.policy import Actor, Policy, act_by_mean, act_by_sampling
from vdbjax.rl.rollout import run_episodes
from vdbjax.run_config import RunConfig
from vdbjax.run_curves import recipe_labels, run_labels
from vdbjax.sharding import in_whole_batches
from vdbjax.trained import Trained, load_trained, read_config
from vdbjax.training.provenance import provenance, versions
from vdbjax.training.run_dir import open_run, write_whole

KINDS = {"deterministic": act_by_mean, "stochastic": act_by_sampling}
GYMNASIUM_BATCH = 50

Play = Callable[[Actor, int], dict[str, np.ndarray]]
"""(policy, seed) -> returns of each of `KINDS`."""


@dataclass(frozen=True)
class Options:
    """What the command line gives."""

    runs: Positional[tuple[Path, ...]]
    """Run folders, as `python -m vdbjax.train` left them."""
    episodes: int = 50
    """Fresh episodes of each policy, for its mean action and again for its sampled ones."""
    seed: int = 0
    """Seed of resets and samples."""
    simulator: Literal["ours", "gymnasium"] = "ours"
    """ours: the run's own engine; gymnasium: Gymnasium's own environment, with its own resets."""
    json: Path | None = None
    """File to write the numbers to, those of single episodes and the machine included."""

    def __post_init__(self) -> None:
        """Rejects values that cannot work."""
        if not self.runs:
            raise ValueError("name at least one run folder")
        limits.at_least(2, self, "--episodes")
        limits.seed(self, "--seed")


class Scored(NamedTuple):
    """One policy, or the mean over several that differ only in their seed."""

    label: str
    config: RunConfig  # as it was written
    iteration: int
    reference: Reference | None
    returns: dict[str, np.ndarray]  # kind of actions -> one return an episode, or a policy

    def score(self, kind: str) -> float | None:
        """The mean return, normalised; None where the run has no reference."""
        return float(self.reference.score(self.returns[kind].mean())) if self.reference else None


def evaluate_run(path: Path, name: str, trained: Trained, options: Options) -> Iterator[Scored]:
    """Every policy of a run, one a seed. Raises ValueError where Gymnasium does not have its task."""
    reference, config = _reference(path), read_config(path)
    play = _in_gymnasium(trained, options) if options.simulator == "gymnasium" else _in_our_engine(trained, options)
    for label, actor in _labelled(name, trained):
        yield Scored(label, config, trained.iteration, reference, play(jax.device_get(actor), options.seed))


def _labelled(name: str, trained: Trained) -> list[tuple[str, Actor]]:
    """The policies of a run with their labels."""
    many = len(trained.actors) > 1
    return [(f"{name} #{index}" if many else name, actor) for index, actor in enumerate(trained.actors)]


def _reference(path: Path) -> Reference | None:
    match open_run(path)[1]:
        case {"facts": {"random_return": float(random), "expert_return": float(expert)}}:
            reference = Reference(random, expert)
            return reference if reference.tells_apart else None
    return None


def _in_our_engine(trained: Trained, options: Options) -> Play:
    environment, policy = trained.built.environment, trained.built.policy
    count = in_whole_batches(options.episodes)

    def both(actor: Actor, key: jax.Array) -> dict[str, jax.Array]:
        return {
            kind: run_episodes(environment, make(policy, actor), key, num_episodes=count).returns
            for kind, make in KINDS.items()
        }

    compiled = jax.jit(both)
    return lambda actor, seed: {
        kind: np.asarray(returns, np.float64)[: options.episodes]
        for kind, returns in compiled(actor, fresh_key(seed)).items()
    }


def _in_gymnasium(trained: Trained, options: Options) -> Play:
    import gymnasium

    name = trained.built.environment.name
    task = TASKS[name].gymnasium_id if name in TASKS else None
    if task is None:
        raise ValueError(f"Gymnasium has no task {name!r}; leave --simulator gymnasium out")
    with quiet_stderr():
        envs = gymnasium.make_vec(
            task,
            num_envs=min(options.episodes, GYMNASIUM_BATCH),
            vectorization_mode="sync",
        )

    policies = {kind: _compiled(make, trained.built.policy) for kind, make in KINDS.items()}

    def returns(act: Callable[..., Any], actor: Actor, seed: int) -> np.ndarray:
        key = fresh_key(seed)
        return gymnasium_returns(
            envs,
            lambda observation, step: act(actor, observation.astype(np.float32), jax.random.fold_in(key, step)),
            num_episodes=options.episodes,
            seed=seed,
        )

    return lambda actor, seed: {kind: returns(act, actor, seed) for kind, act in policies.items()}


def _compiled(make: Callable[..., Any], policy: Policy) -> Callable[..., Any]:
    return jax.jit(lambda actor, observation, key: make(policy, actor)(observation, key)[2])


def averaged(scored: list[Scored]) -> list[Scored]:
    """For each config with several seeds, in one folder or in many, the mean return of each of its policies."""
    groups: dict[str, list[Scored]] = {}
    for label, row in zip(recipe_labels([asdict(row.config) for row in scored]), scored, strict=True):
        groups.setdefault(label, []).append(row)
    return [
        Scored(
            f"{label}, {len(rows)} seeds",
            rows[0].config,
            min(row.iteration for row in rows),
            rows[0].reference,
            {kind: np.array([row.returns[kind].mean() for row in rows]) for kind in KINDS},
        )
        for label, rows in groups.items()
        if len(rows) > 1
    ]


def table_of(scored: list[Scored], *, title: str) -> Table:
    """Two lines a policy; `s.e.` is the standard error of the mean return."""
    table = Table(title=title, box=box.SIMPLE_HEAD, padding=(0, 1, 0, 0))
    table.add_column("run", overflow="fold")
    table.add_column("actions", no_wrap=True)
    for column in ("return", "std", "s.e.", "min", "max", "score"):
        table.add_column(column, justify="right", no_wrap=True)
    for row in scored:
        for kind in KINDS:
            score = row.score(kind)
            numbers = [f"{value:.1f}" for value in summarize(row.returns[kind])]
            table.add_row(row.label, kind, *numbers, "" if score is None else f"{score:.3f}")
    return table


def as_json(scored: list[Scored]) -> list[dict[str, Any]]:
    """What `--json` holds of each row of the table; returns undiscounted, spreads with n - 1."""

    def numbers(row: Scored, kind: str) -> dict[str, Any]:
        summary: ReturnSummary = summarize(row.returns[kind])
        return {**summary._asdict(), "score": row.score(kind), "returns": row.returns[kind].tolist()}

    return [
        {
            "label": row.label,
            "recipe": row.config.recipe,
            "task": row.config.environment.env,
            "iteration": row.iteration,
            **{kind: numbers(row, kind) for kind in KINDS},
        }
        for row in scored
    ]


def run(options: Options) -> None:
    """Plays, prints the table, writes the file."""
    if options.json:
        command.check_writable(options.json)
    loaded = {path: load_trained(path) for path in options.runs}
    if any(trained.built.environment.follow for trained in loaded.values()):
        return _run_motions(loaded, options)
    console, scored = Console(stderr=True), []
    for (path, trained), name in zip(loaded.items(), run_labels(list(loaded)), strict=True):
        with console.status(f"{path}: {options.episodes} episodes of each kind of actions") as status:
            for row in evaluate_run(path, name, trained, options):
                scored.append(row)
                status.update(f"{path}: {row.label} done, returns around {row.returns['deterministic'].mean():.0f}")
    summary = averaged(scored)
    engines = ", ".join(sorted({engine_of(row.config.environment) for row in scored}))
    where = "Gymnasium's own environment" if options.simulator == "gymnasium" else f"engine {engines}"
    _console().print(table_of([*scored, *summary], title=f"{options.episodes} fresh episodes each, {where}"))
    if options.json:
        content = {**_asked(options), "simulator": options.simulator}
        rows = {"policies": as_json(scored), "over_seeds": as_json(summary)}
        write_whole(options.json, json.dumps(content | rows, indent=2) + "\n")


MOTION_COLUMNS = {
    "no heading": "rotation_without_heading_rad",
    "warped": "dtw_rotation_rad",
    "root m": "root_position_m",
    "bodies m": "body_position_m",
    "fallen": "fallen",
    "return": "return",
}


def _run_motions(loaded: dict[Path, Trained], options: Options) -> None:
    """The errors of policies that follow a motion, by mean actions; after a fall each step left counts pi."""
    if strangers := [str(path) for path, trained in loaded.items() if not trained.built.environment.follow]:
        raise ValueError(f"{', '.join(strangers)} follows no motion; evaluate it apart from those that do")
    if options.simulator == "gymnasium":
        raise ValueError("Gymnasium has no motion tasks; leave --simulator gymnasium out")
    console, rows = Console(stderr=True), []
    for (path, trained), name in zip(loaded.items(), run_labels(list(loaded)), strict=True):
        count, config = in_whole_batches(options.episodes), read_config(path)
        about = {"recipe": config.recipe, "task": config.environment.env, "iteration": trained.iteration}
        score = score_policy(trained.built.environment, trained.built.policy, num_episodes=count)
        with console.status(f"{path}: {options.episodes} episodes"):
            for label, actor in _labelled(name, trained):
                found = score(jax.device_get(actor), fresh_key(options.seed))
                numbers = {name: values[: options.episodes] for name, values in found.items()}
                rows.append({"label": label, **about, **numbers})
    _console().print(_motion_table(rows, title=f"{options.episodes} episodes each; rotation errors in radians"))
    if options.json:
        content = {**_asked(options), "policies": rows}
        write_whole(options.json, json.dumps(content, indent=2, default=lambda array: array.tolist()) + "\n")


def _asked(options: Options) -> dict[str, Any]:
    """What a file of numbers begins with."""
    return {**provenance(versions()), "episodes": options.episodes, "seed": options.seed}


def _console() -> Console:
    """As wide as the terminal; wide enough for a row in a file, where rich would take 80 columns."""
    console = Console()
    return console if console.is_terminal else Console(width=120)


def _motion_table(rows: list[dict[str, Any]], *, title: str) -> Table:
    """Means over the episodes, and the deviation of the error that the paper reports."""
    table = Table(title=title, box=box.SIMPLE_HEAD, padding=(0, 1, 0, 0))
    table.add_column("run", overflow="fold")
    for column in ("rotation", *MOTION_COLUMNS):
        table.add_column(column, justify="right", no_wrap=True)
    for row in rows:
        rotation = row["rotation_rad"]
        means = [f"{np.nanmean(row[name]):.3f}" for name in MOTION_COLUMNS.values()]
        table.add_row(row["label"], f"{rotation.mean():.3f} ± {rotation.std(ddof=1):.3f}", *means)
    return table


def main() -> None:
    """The command."""
    command.main(lambda: run(command.parse(Options, prog="python -m vdbjax.evaluate", description=__doc__)))


if __name__ == "__main__":
    main()
