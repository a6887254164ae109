"""Minari datasets in and out, with Minari itself as the other side."""

import sys
import warnings
from pathlib import Path

import numpy as np
import pytest

from vdbjax import demos
from vdbjax.data.demonstrations import DemonstrationError, DemonstrationFile, from_episodes, load, save
from vdbjax.data.minari_datasets import GYMNASIUM_IDS, export_minari, import_minari

LENGTHS = (4, 2)


def _file(task: str = "hopper", observation_size: int = 11, action_size: int = 3) -> DemonstrationFile:
    generator = np.random.default_rng(0)
    demonstrations = from_episodes(
        [generator.normal(size=(n + 1, observation_size)) for n in LENGTHS],
        [generator.uniform(-1, 1, size=(n, action_size)) for n in LENGTHS],
        [generator.normal(size=n) for n in LENGTHS],
        [True, False],
    )
    return DemonstrationFile(demonstrations, task, 18.25, "a tuned expert")


@pytest.fixture
def minari(tmp_path, monkeypatch):
    """Minari with an empty folder of datasets of its own."""
    pytest.importorskip("h5py", reason="needs pip install 'vdbjax[minari]'")
    module = pytest.importorskip("minari", reason="needs pip install 'vdbjax[minari]'")
    monkeypatch.setenv("MINARI_DATASETS_PATH", str(tmp_path / "datasets"))
    return module


def _foreign(minari, dataset_id: str, *, observation_space, action_space, steps, env=None, observations=None):
    """A dataset as another program would make it: one episode of `steps` steps, cut without either flag."""
    buffer = minari.data_collector.EpisodeBuffer(
        observations=np.stack([observation_space.sample()] * (steps + 1)) if observations is None else observations,
        actions=np.stack([action_space.sample()] * steps),
        rewards=np.arange(steps, dtype=float),
        terminations=np.zeros(steps, bool),
        truncations=np.zeros(steps, bool),
    )
    spaces = {"observation_space": observation_space, "action_space": action_space}
    with warnings.catch_warnings(action="ignore", category=UserWarning):
        return minari.create_dataset_from_buffers(dataset_id, [buffer], env=env, **spaces)


def test_round_trip(minari, tmp_path) -> None:
    file = _file()
    folder = export_minari(file, dataset_id="mujoco/hopper/mine-v0")
    assert folder == tmp_path / "datasets" / "mujoco" / "hopper" / "mine-v0"
    for name in ("mujoco/hopper/mine-v0", folder, folder / "data"):
        found = import_minari(name)
        for field, a, b in zip(file.demonstrations._fields, file.demonstrations, found.demonstrations):
            np.testing.assert_array_equal(a, b, err_msg=field)
        assert (found.task, found.random_return) == ("hopper", 18.25)
        assert found.source == "Minari dataset mujoco/hopper/mine-v0 (algorithm: a tuned expert)"


def test_minari_reads_what_was_exported(minari) -> None:
    file = _file()
    export_minari(file, dataset_id="mine-v0")
    dataset = minari.load_dataset("mine-v0")
    assert (dataset.total_episodes, dataset.total_steps) == (2, sum(LENGTHS))
    assert dataset.env_spec.id == "Hopper-v5"
    first, second = dataset.iterate_episodes()
    assert first.observations.shape == (LENGTHS[0] + 1, 11)
    assert (list(first.terminations), list(first.truncations)) == ([False] * 3 + [True], [False] * 4)
    assert (list(second.terminations), list(second.truncations)) == ([False] * 2, [False, True])
    mean_return = np.mean([first.rewards.sum(), second.rewards.sum()])
    # By Minari's own rule a random policy scores 0 and these demonstrations 1.
    np.testing.assert_allclose(minari.get_normalized_score(dataset, np.array([18.25, mean_return])), [0, 1], atol=1e-6)


@pytest.mark.parametrize("task", GYMNASIUM_IDS)
def test_task_is_found_from_the_environment(minari, task: str) -> None:
    gymnasium = pytest.importorskip("gymnasium")
    environment = gymnasium.make(GYMNASIUM_IDS[task])
    sizes = environment.observation_space.shape[0], environment.action_space.shape[0]
    export_minari(_file(task, *sizes), dataset_id=f"{task}-v0")
    assert import_minari(f"{task}-v0").task == task


def test_unknown_task_needs_a_name(minari) -> None:
    export_minari(_file("brax/ant", 5, 2), dataset_id="mine-v0")
    with pytest.raises(DemonstrationError, match=r"environment \(not known\) is none of Hopper-v5, .* say which task"):
        import_minari("mine-v0")
    assert import_minari("mine-v0", task="brax/ant").task == "brax/ant"


def test_episode_without_flags_counts_as_truncated(minari) -> None:
    box = minari_box(3)
    _foreign(minari, "cut-v0", observation_space=box, action_space=minari_box(1), steps=4)
    found = import_minari("cut-v0", task="x").demonstrations
    np.testing.assert_array_equal(found.truncated, [False, False, False, True])
    assert not found.terminated.any()


def minari_box(size: int):
    import gymnasium

    return gymnasium.spaces.Box(-1.0, 1.0, (size,), np.float32)


def _discrete_actions(minari) -> None:
    import gymnasium

    discrete = gymnasium.spaces.Discrete(3)
    _foreign(minari, "bad-v0", observation_space=minari_box(2), action_space=discrete, steps=3)
    import_minari("bad-v0", task="x")


def _image_observations(minari) -> None:
    import gymnasium

    box = gymnasium.spaces.Box(-1.0, 1.0, (2, 2), np.float32)
    _foreign(minari, "bad-v0", observation_space=box, action_space=minari_box(1), steps=3)
    import_minari("bad-v0", task="x")


def _observation_missing(minari) -> None:
    observations = np.zeros((3, 2), np.float32)
    spaces = {"observation_space": minari_box(2), "action_space": minari_box(1)}
    _foreign(minari, "bad-v0", **spaces, steps=3, observations=observations)
    import_minari("bad-v0", task="x")


def _old_environment(minari) -> None:
    import gymnasium

    environment = gymnasium.make("Pendulum-v1")
    spaces = {"observation_space": environment.observation_space, "action_space": environment.action_space}
    _foreign(minari, "bad-v0", **spaces, steps=3, env="Pendulum-v1")
    import_minari("bad-v0")


def _other_task(minari) -> None:
    export_minari(_file(), dataset_id="mine-v0")
    import_minari("mine-v0", task="walker2d")


def _existing(minari) -> None:
    export_minari(_file(), dataset_id="mine-v0")
    export_minari(_file(), dataset_id="mine-v0")


def _damaged(minari) -> None:
    folder = export_minari(_file(), dataset_id="mine-v0")
    data = folder / "data" / "main_data.hdf5"
    data.write_bytes(data.read_bytes()[:100])
    import_minari("mine-v0")


def _damaged_description(minari) -> None:
    folder = export_minari(_file(), dataset_id="mine-v0")
    (folder / "data" / "metadata.json").write_text("{")
    import_minari("mine-v0")


REFUSED = {
    "no dataset": (lambda _: import_minari("no/such-v0"), "no Minari dataset 'no/such-v0'.*minari download"),
    "discrete actions": (_discrete_actions, r"bad-v0: actions are Discrete\(3\), not vectors"),
    "images": (_image_observations, "bad-v0: observations are Box.*, not vectors"),
    "T observations": (_observation_missing, r"episode 0: observations \(3, 2\), actions \(3, 1\)"),
    "unknown environment": (_old_environment, r"environment \(Pendulum-v1\) is none of Hopper-v5"),
    "other task": (_other_task, r"is of Hopper-v5 \(task 'hopper'\), not of 'walker2d'"),
    "damaged": (_damaged, "mine-v0: damaged"),
    "damaged description": (_damaged_description, "damaged Minari dataset"),
    "existing id": (_existing, "a Minari dataset mine-v0 exists"),
    "malformed id": (lambda _: export_minari(_file(), dataset_id="mine"), "'mine' is no Minari id"),
    "wrong sizes": (
        lambda _: export_minari(_file("hopper", 5, 3), dataset_id="mine-v0"),
        r"observations \(5,\) and actions \(3,\), but Hopper-v5 has \(11,\) and \(3,\)",
    ),
}


@pytest.mark.parametrize("case", REFUSED)
def test_refused(case: str, minari) -> None:
    call, message = REFUSED[case]
    with pytest.raises(DemonstrationError, match=message) as refused:
        call(minari)
    assert "\n" not in str(refused.value)


def test_refused_export_leaves_nothing(minari, tmp_path) -> None:
    with pytest.raises(DemonstrationError):
        export_minari(_file("hopper", 5, 3), dataset_id="mine-v0")
    assert not (tmp_path / "datasets" / "mine-v0").exists()


@pytest.mark.parametrize("absent", ["minari", "h5py"])
def test_without_minari(absent: str, monkeypatch) -> None:
    monkeypatch.setitem(sys.modules, absent, None)
    with pytest.raises(DemonstrationError, match=r"pip install 'vdbjax\[minari\]'"):
        import_minari("mujoco/hopper/expert-v0")


def test_commands(minari, tmp_path, monkeypatch, capsys) -> None:
    first, second = tmp_path / "first.npz", tmp_path / "second.npz"
    save(first, _file())
    for arguments in (
        ["export-minari", str(first), "--id", "mujoco/hopper/mine-v0"],
        ["import-minari", "mujoco/hopper/mine-v0", "--out", str(second)],
    ):
        monkeypatch.setattr(sys, "argv", ["demos", *arguments])
        demos.main()
    out = capsys.readouterr().out
    assert f"wrote {Path('datasets/mujoco/hopper/mine-v0')}" in out.replace(f"{tmp_path}/", "")
    assert "hopper" in out
    np.testing.assert_array_equal(load(first).demonstrations.reward, load(second).demonstrations.reward)
