"""`python -m vdbjax.demos`: collect, look at, import and export expert demonstrations."""

from dataclasses import dataclass
from pathlib import Path
from typing import Annotated, assert_never

from tyro.conf import FlagCreatePairsOff, Positional, subcommand

from vdbjax import command, limits
from vdbjax.data.demonstrations import DemonstrationFile, episode_lengths, episode_returns, load, save


@dataclass(frozen=True)
class Collect:
    """Runs the policy of a training run and keeps its episodes."""

    run: Positional[Path]
    """Folder of the run, as `python -m vdbjax.train` left it."""
    out: Path
    """File to write (.npz)."""
    episodes: int = 25
    """Number of episodes to keep."""
    transitions: int | None = None
    """Keep so many transitions in place of a number of episodes; the last episode is cut where they are enough."""
    deterministic: FlagCreatePairsOff[bool] = False
    """Take the policy's mean action, where else each is drawn from the policy, as in training."""
    seed: int = 0
    """Seed of resets and samples."""
    min_return: float | None = None
    """Keep only episodes of at least this undiscounted return, in the task's reward; goes on until there are enough."""
    overwrite: FlagCreatePairsOff[bool] = False
    """Replace the file if it exists."""


@dataclass(frozen=True)
class Info:
    """Prints what a demonstration file holds."""

    file: Positional[Path]
    """Demonstration file (.npz)."""


@dataclass(frozen=True)
class ImportMinari:
    """Writes the episodes of a local Minari dataset to a demonstration file."""

    dataset: Positional[str]
    """Minari id, such as mujoco/hopper/expert-v0, or the folder of a dataset."""
    out: Path
    """File to write (.npz)."""
    task: str | None = None
    """Task that the demonstrations are of; by default found from the dataset's Gymnasium environment."""
    overwrite: FlagCreatePairsOff[bool] = False
    """Replace the file if it exists."""


@dataclass(frozen=True)
class ExportMinari:
    """Writes a demonstration file as a new local Minari dataset."""

    file: Positional[Path]
    """Demonstration file (.npz)."""
    id: str
    """Minari id of the new dataset, such as mujoco/hopper/mine-v0."""


Options = (
    Annotated[Collect, subcommand("collect")]
    | Annotated[Info, subcommand("info")]
    | Annotated[ImportMinari, subcommand("import-minari")]
    | Annotated[ExportMinari, subcommand("export-minari")]
)


def description_of(file: DemonstrationFile, *, size_bytes: int) -> str:
    """A few lines on what a demonstration file holds; lengths in control steps, returns undiscounted."""
    demonstrations = file.demonstrations
    lengths, returns = episode_lengths(demonstrations), episode_returns(demonstrations)
    rows = {
        "task": file.task,
        "source": file.source,
        "sizes": f"{demonstrations.observation.shape[1]} observations, {demonstrations.action.shape[1]} actions",
        "episodes": f"{len(lengths)} ({int(demonstrations.terminated.sum())} terminated)",
        "lengths": f"{lengths.mean():.1f} +- {lengths.std():.1f} steps, {lengths.min()} to {lengths.max()}, "
        f"{lengths.sum()} in all",
        "returns": f"{returns.mean():.1f} +- {returns.std():.1f}, {returns.min():.1f} to {returns.max():.1f}",
        "random policy": f"{file.random_return:.1f}" if file.random_return == file.random_return else "not known",
        "file": f"{size_bytes / 1000:.1f} kB",
    }
    return "\n".join(f"{name:<14} {value}" for name, value in rows.items())


def collect(options: Collect) -> None:
    """Collects episodes of a run's policy into a file."""
    command.check_writable(options.out, overwrite=options.overwrite)  # before the episodes are run, not after
    limits.at_least(1, options, "--episodes", "--transitions")
    limits.seed(options, "--seed")
    from vdbjax.episodes import collect_episodes  # here, because the other commands need no policy

    file = collect_episodes(
        options.run,
        num_episodes=options.episodes,
        num_transitions=options.transitions,
        deterministic=options.deterministic,
        seed=options.seed,
        min_return=options.min_return,
    )
    save(options.out, file, overwrite=options.overwrite)
    info(options.out)


def info(path: Path) -> None:
    """Prints what a demonstration file holds."""
    file = load(path)
    print(description_of(file, size_bytes=path.stat().st_size))


def run(options: Collect | Info | ImportMinari | ExportMinari) -> None:
    """Does what the command line asks for."""
    from vdbjax.data.minari_datasets import export_minari, import_minari

    match options:
        case Collect():
            collect(options)
        case Info():
            info(options.file)
        case ImportMinari():
            command.check_writable(options.out, overwrite=options.overwrite)
            save(options.out, import_minari(options.dataset, task=options.task), overwrite=options.overwrite)
            info(options.out)
        case ExportMinari():
            print(f"wrote {export_minari(load(options.file), dataset_id=options.id)}")
        case _:
            assert_never(options)


def main() -> None:
    """The command."""
    command.main(lambda: run(command.parse(Options, prog="python -m vdbjax.demos", description=__doc__)))


if __name__ == "__main__":
    main()
