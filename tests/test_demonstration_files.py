"""Demonstration files: what is written is read again, and what is damaged, wrong or of another task is refused."""

import io
import pickle
import zipfile

import numpy as np
import pytest
from made_demonstrations import LENGTHS, assert_same, made_demonstrations, made_file, members_of

from vdbjax.data import demonstrations as demo
from vdbjax.data.demonstrations import DemonstrationError, DemonstrationFile


def test_file_round_trip(tmp_path) -> None:
    path = tmp_path / "new" / "hopper.npz"
    demo.save(path, made_file())
    found = demo.load(str(path), task="hopper", observation_size=2, action_size=1)
    assert_same(found.demonstrations, made_demonstrations())
    assert found[1:] == ("hopper", 17.5, "a tuned expert")
    assert [entry.name for entry in path.parent.iterdir()] == ["hopper.npz"]  # no temporary file stays
    assert members_of(path)["observations"].shape == (sum(LENGTHS) + len(LENGTHS), 2)


def test_unknown_random_return_survives(tmp_path) -> None:
    demo.save(tmp_path / "a.npz", made_file()._replace(random_return=float("nan")))
    assert np.isnan(demo.load(tmp_path / "a.npz").random_return)


def test_save_overwrites_only_when_asked(tmp_path) -> None:
    path = tmp_path / "a.npz"
    demo.save(path, made_file())
    before = path.read_bytes()
    with pytest.raises(DemonstrationError, match=r"a\.npz exists"):
        demo.save(path, made_file("walker2d"))
    assert path.read_bytes() == before
    demo.save(path, made_file("walker2d"), overwrite=True)
    assert demo.load(path).task == "walker2d"


def test_failed_save_leaves_the_old_file(tmp_path, monkeypatch) -> None:
    path = tmp_path / "a.npz"
    demo.save(path, made_file())
    before = path.read_bytes()
    monkeypatch.setattr("os.fsync", lambda _: (_ for _ in ()).throw(OSError("disk full")))
    with pytest.raises(OSError, match="disk full"):
        demo.save(path, made_file("walker2d"), overwrite=True)
    assert path.read_bytes() == before
    assert list(tmp_path.iterdir()) == [path]


def _with(**changes):
    """A file whose members are changed by functions; None removes one."""

    def write(path) -> None:
        demo.save(path, made_file())
        members = members_of(path)
        for name, change in changes.items():
            old = members.pop(name)
            if change is not None:
                members[name] = change(old)
        with path.open("wb") as stream:
            np.savez_compressed(stream, **members)

    return write


def _set(index, value):
    def change(array):
        array = array.copy()
        array[index] = value
        return array

    return change


def _pickle(path) -> None:
    path.write_bytes(pickle.dumps({"observations": np.zeros((3, 2))}))


def _truncated(path) -> None:
    demo.save(path, made_file())
    path.write_bytes(path.read_bytes()[:-200])


def _bad_checksum(path) -> None:
    demo.save(path, made_file())
    with zipfile.ZipFile(path) as archive:
        member = archive.getinfo("rewards.npy")
    data = bytearray(path.read_bytes())
    data[member.header_offset + 30 + len(member.filename) + 20 + member.compress_size // 2] ^= 0xFF
    path.write_bytes(data)


def _npy(path) -> None:
    with path.open("wb") as stream:
        np.save(stream, np.zeros(3))


BAD_FILES = {
    "missing": (lambda path: None, "cannot be read .No such file"),
    "folder": (lambda path: path.mkdir(), "cannot be read .Is a directory"),
    "empty": (lambda path: path.write_bytes(b""), "not a demonstration file"),
    "text": (lambda path: path.write_text("episode,reward\n0,1\n"), "not a demonstration file"),
    "pickle": (_pickle, "not a demonstration file .an .npz without pickle"),
    "npy": (_npy, "not a demonstration file"),
    "truncated": (_truncated, "damaged, truncated"),
    "checksum": (_bad_checksum, "damaged"),
    "pickled member": (_with(rewards=lambda x: np.array([{}, None], dtype=object)), "pickled members .*allow_pickle"),
    "other npz": (lambda path: np.savez(path, x=np.zeros(3)), "not a demonstration file .without format, .*rewards"),
    "member missing": (_with(actions=None), r"not a demonstration file \(without actions\)"),
    "other format": (_with(format=lambda x: np.asarray("other")), "format other 1, but this version reads"),
    "newer version": (_with(format_version=lambda x: x + 1), "format vdbjax-demonstrations 2, but .* 1"),
    "labels not single": (_with(random_return=lambda x: np.zeros(2)), "not single values"),
    "observations of 3 dimensions": (_with(observations=lambda x: x[:, None]), r"observations has shape \(18, 1, 2\)"),
    "rewards a text": (_with(rewards=lambda x: x.astype(str)), "rewards has shape .* and type <U"),
    "one action short": (_with(actions=lambda x: x[:-1]), "actions has 14 rows, but 3 episodes of 15 .* need 15"),
    "one observation short": (_with(observations=lambda x: x[:-1]), "observations has 17 rows, .* need 18"),
    "flags short": (_with(terminated=lambda x: x[:-1]), "terminated has 2 rows, .* need 3"),
    "no episodes": (_with(episode_lengths=lambda x: x[:0], terminated=lambda x: x[:0]), "no episodes"),
    "empty episode": (_with(episode_lengths=lambda x: np.array([5, 0, 10])), r"episode 1 is empty \(length 0\)"),
    "negative length": (_with(episode_lengths=lambda x: np.array([5, 11, -1])), r"episode 2 is empty \(length -1\)"),
    "NaN last observation": (_with(observations=_set((9, 1), np.nan)), r"observations of episode 1 .*first at step 3"),
    "infinite action": (_with(actions=_set(8, np.inf)), r"actions of episode 2 hold .*first at step 0"),
    "NaN reward": (_with(rewards=_set(4, np.nan)), r"rewards of episode 0 hold .*first at step 4"),
}


@pytest.mark.parametrize("case", BAD_FILES)
def test_bad_files(case: str, tmp_path) -> None:
    write, message = BAD_FILES[case]
    path = tmp_path / "bad.npz"
    write(path)
    with pytest.raises(DemonstrationError, match=message) as refused:
        demo.load(path)
    assert "\n" not in str(refused.value)
    assert str(path) in str(refused.value)


def test_any_flipped_byte_is_noticed_or_harmless(tmp_path) -> None:
    path = tmp_path / "a.npz"
    demo.save(path, made_file())
    whole, good = path.read_bytes(), demo.load(path)
    refused = 0
    for position in range(0, len(whole), 5):
        path.write_bytes(whole[:position] + bytes([whole[position] ^ 0xFF]) + whole[position + 1 :])
        try:
            found = demo.load(path)
        except DemonstrationError:
            refused += 1
        else:  # dates and the like
            assert_same(found.demonstrations, good.demonstrations)
            assert found[1:] == good[1:]
    assert refused > len(whole) // 5 / 3


def test_saving_nan_is_refused(tmp_path) -> None:
    whole = made_demonstrations()
    spoiled = whole._replace(next_observation=_set((6, 0), np.nan)(whole.next_observation))
    spoiled = spoiled._replace(observation=_set((7, 0), np.nan)(whole.observation))
    with pytest.raises(DemonstrationError, match=r"observations of episode 1 hold NaN or infinity \(first at step 2\)"):
        demo.save(tmp_path / "a.npz", DemonstrationFile(spoiled, "hopper", 0.0, ""))
    assert not list(tmp_path.iterdir())


OTHER_TASKS = {
    "name and sizes": (
        {"task": "hopper", "observation_size": 11, "action_size": 3},
        r"demonstrations of 'walker2d' \(2 observations, 1 actions\) given to task 'hopper' \(11, 3\)",
    ),
    "name": ({"task": "hopper"}, r"of 'walker2d' \(2 observations, 1 actions\) given to task 'hopper'$"),
    "observations": ({"observation_size": 11}, r"given to task 'walker2d' \(11, 1\)"),
    "actions": ({"task": "walker2d", "observation_size": 2, "action_size": 6}, r"given to task 'walker2d' \(2, 6\)"),
}


@pytest.mark.parametrize("case", OTHER_TASKS)
def test_another_task_is_refused(case: str, tmp_path) -> None:
    demo.save(tmp_path / "a.npz", made_file("walker2d"))
    expected, message = OTHER_TASKS[case]
    with pytest.raises(DemonstrationError, match=message):
        demo.load(tmp_path / "a.npz", **expected)


def test_embedded(tmp_path, monkeypatch) -> None:
    monkeypatch.setattr(demo, "EMBEDDED", tmp_path / "embedded")
    with pytest.raises(DemonstrationError, match=r"'hopper' come with the package \(of: none\)"):
        demo.embedded("hopper")
    demo.save(tmp_path / "embedded" / "hopper.npz", made_file())
    assert_same(demo.embedded("hopper").demonstrations, made_demonstrations())
    with pytest.raises(DemonstrationError, match=r"'ant' come with the package \(of: hopper\).*vdbjax.demos collect"):
        demo.embedded("ant")


def test_bytes_hold_no_pickle(tmp_path) -> None:
    demo.save(tmp_path / "a.npz", made_file())
    with zipfile.ZipFile(tmp_path / "a.npz") as archive:
        names = archive.namelist()
        arrays = [np.lib.format.read_array(io.BytesIO(archive.read(name)), allow_pickle=False) for name in names]
    assert names
    assert not any(array.dtype.hasobject for array in arrays)
