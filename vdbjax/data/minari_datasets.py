"""Minari datasets (https://minari.farama.org) in and out: T+1 observations per episode, as in our files."""

import re
import warnings
from pathlib import Path
from typing import Any

import numpy as np

from vdbjax.data.demonstrations import DemonstrationFile, episode_returns, episode_slices, from_episodes
from vdbjax.data.stored_episodes import DemonstrationError

GYMNASIUM_IDS = {
    "hopper": "Hopper-v5",
    "halfcheetah": "HalfCheetah-v5",
    "walker2d": "Walker2d-v5",
    "ant": "Ant-v5",
    "humanoid": "Humanoid-v5",
    "reacher": "Reacher-v5",
}
"""Our task -> the Gymnasium environment that it is faithful to."""


def import_minari(id_or_dir: str | Path, *, task: str | None = None) -> DemonstrationFile:
    """The episodes of a local Minari dataset, named by its id or by the folder that holds it.

    The task follows from the dataset's Gymnasium environment, unless `task` names it. An episode whose last step is not
    terminated counts as truncated. The return of a random policy is the dataset's reference minimum, where it has one.

    Raises:
      DemonstrationError: Minari is not installed; no such dataset; observations or actions that are not vectors; an
        environment that is none of our tasks, or of another task than `task`; what `from_episodes` refuses.
    """
    dataset = _open(id_or_dir)
    name = dataset.id
    for kind, space in (("observations", dataset.observation_space), ("actions", dataset.action_space)):
        if type(space).__name__ != "Box" or len(space.shape) != 1:
            raise DemonstrationError(f"Minari dataset {name}: {kind} are {space}, not vectors (a Box of one dimension)")
    task = _task(dataset, task)
    try:
        episodes = list(dataset.iterate_episodes())
    except (OSError, KeyError) as error:
        raise DemonstrationError(f"Minari dataset {name}: damaged ({error})") from error
    if cut := [i for i, episode in enumerate(episodes) if np.any(episode.terminations[:-1])]:
        raise DemonstrationError(f"Minari dataset {name}: episode {cut[0]} goes on after it terminated")
    demonstrations = from_episodes(
        [episode.observations for episode in episodes],
        [episode.actions for episode in episodes],
        [episode.rewards for episode in episodes],
        [bool(np.any(episode.terminations[-1:])) for episode in episodes],
    )
    metadata = dataset.storage.metadata
    source = f"Minari dataset {name} (algorithm: {metadata.get('algorithm_name') or 'not named'})"
    return DemonstrationFile(demonstrations, task, float(metadata.get("ref_min_score", np.nan)), source)


def export_minari(file: DemonstrationFile, *, dataset_id: str) -> Path:
    """Writes a new local Minari dataset, such as `mujoco/hopper/mine-v0`, and gives its folder.

    The reference scores that Minari normalises returns with are the random policy's mean return and the demonstrations'
    own. Datasets lie in `$MINARI_DATASETS_PATH`, or else in `~/.minari/datasets`.

    Raises:
      DemonstrationError: Minari is not installed; a malformed id; a dataset of this id exists; sizes that are not those
        of the task's Gymnasium environment.
    """
    minari = _minari()
    # Minari would make the folder before it looks at the id.
    if not re.fullmatch(r"([-\w]+/)*[-\w]+-v\d+", dataset_id):
        raise DemonstrationError(f"{dataset_id!r} is no Minari id: it must look like mujoco/hopper/mine-v0")
    folder = minari.storage.datasets_root_dir.get_dataset_path(dataset_id)
    if folder.exists():
        raise DemonstrationError(f"a Minari dataset {dataset_id} exists in {folder}; choose another name or version")
    whole = file.demonstrations
    buffers = [
        minari.data_collector.EpisodeBuffer(
            observations=np.concatenate([whole.observation[s], whole.next_observation[s.stop - 1 : s.stop]]),
            actions=whole.action[s],
            rewards=whole.reward[s],
            terminations=whole.terminated[s],
            truncations=whole.truncated[s],
        )
        for s in episode_slices(whole)
    ]
    with warnings.catch_warnings(action="ignore", category=UserWarning):  # it asks for an author, e-mail and permalink
        dataset = minari.create_dataset_from_buffers(
            dataset_id, buffers, algorithm_name=file.source, **_environment(file)
        )
    scores: dict[str, Any] = {"ref_max_score": float(episode_returns(whole).mean())}
    if np.isfinite(file.random_return):
        scores["ref_min_score"] = file.random_return
    dataset.storage.update_metadata(scores)
    return Path(folder)


def _minari() -> Any:
    try:
        import h5py  # noqa: F401  (Minari asks for it only when it opens a file)
        import minari
        import minari.data_collector
        import minari.storage.datasets_root_dir
    except ImportError as error:
        raise DemonstrationError(f"Minari is not installed ({error}): pip install 'vdbjax[minari]'") from error
    return minari


def _open(id_or_dir: str | Path) -> Any:
    minari = _minari()
    folders = [Path(id_or_dir), minari.storage.datasets_root_dir.get_dataset_path(str(id_or_dir))]
    candidates = [data for folder in folders for data in (folder, folder / "data")]
    found = next((data for data in candidates if (data / "metadata.json").is_file()), None)
    if found is None:
        raise DemonstrationError(
            f"no Minari dataset {str(id_or_dir)!r}, neither as a folder nor in {folders[1].parent}; "
            f"`minari list local` names those that are here, `minari download ID` fetches one"
        )
    try:
        return minari.MinariDataset(found)
    except (OSError, KeyError, ValueError, AssertionError) as error:
        raise DemonstrationError(f"{found}: damaged Minari dataset ({error})") from error


def _task(dataset: Any, task: str | None) -> str:
    environment = dataset.env_spec.id if dataset.env_spec is not None else ""
    known = {gymnasium_id: name for name, gymnasium_id in GYMNASIUM_IDS.items()}.get(environment)
    if task is None and known is None:
        raise DemonstrationError(
            f"Minari dataset {dataset.id}: its environment ({environment or 'not known'}) is none of "
            f"{', '.join(GYMNASIUM_IDS.values())}; say which task it is of"
        )
    if task is not None and known is not None and task != known:
        raise DemonstrationError(f"Minari dataset {dataset.id} is of {environment} (task {known!r}), not of {task!r}")
    return task or str(known)


def _environment(file: DemonstrationFile) -> dict[str, Any]:
    """What Minari is told of the environment: its specification where Gymnasium has it, else only the sizes."""
    import gymnasium

    sizes = file.demonstrations.observation.shape[1:], file.demonstrations.action.shape[1:]
    if file.task not in GYMNASIUM_IDS:
        observation_space, action_space = (gymnasium.spaces.Box(-np.inf, np.inf, size) for size in sizes)
        return {"observation_space": observation_space, "action_space": action_space}
    environment = gymnasium.make(GYMNASIUM_IDS[file.task])
    expected = environment.observation_space.shape, environment.action_space.shape
    if expected != sizes:
        raise DemonstrationError(
            f"demonstrations of {file.task!r} with observations {sizes[0]} and actions {sizes[1]}, but "
            f"{GYMNASIUM_IDS[file.task]} has {expected[0]} and {expected[1]}"
        )
    return {"env": environment}
