"""The run folder: made once, never over another one, and read without trust."""

import errno
import json
import re
import shutil
from importlib import metadata
from pathlib import Path

import jax
import pytest

from vdbjax.training.provenance import versions
from vdbjax.training.run_dir import create_run, held, open_run, read_metrics, reopen_run, write_json

CONFIG = {"config": {"recipe": "vail", "sizes": [64, 64], "rate": 3e-4, "none": None}, "engine": "c"}


def test_what_was_written_is_read(tmp_path) -> None:
    made = create_run(tmp_path / "runs" / "one", CONFIG)
    opened, content = open_run(str(made.path))
    assert opened == made
    assert content == CONFIG
    assert sorted(path.name for path in made.path.iterdir()) == ["checkpoints", "config.json", "versions.json"]


def test_versions_name_the_device_and_the_packages(tmp_path) -> None:
    made = create_run(tmp_path / "run", CONFIG)
    found = json.loads((made.path / "versions.json").read_text())
    assert found == versions()
    assert found["jax"] == jax.__version__
    assert found["mujoco"] == metadata.version("mujoco")
    assert found["device"].startswith("cpu ")
    assert re.fullmatch(r"[0-9a-f]{40}(-dirty)?|unknown", found["commit"])


EXISTING = {
    "a run": lambda path: create_run(path, CONFIG),
    "an empty folder": lambda path: path.mkdir(),
    "a file": lambda path: path.write_text("precious"),
}


@pytest.mark.parametrize("make", EXISTING.values(), ids=EXISTING.keys())
def test_what_exists_is_left_alone(tmp_path, make) -> None:
    path = tmp_path / "run"
    make(path)
    before = {each: each.read_bytes() for each in tmp_path.rglob("*") if each.is_file()}
    with pytest.raises(ValueError, match=r"run folder .*run exists; choose another --out, or go on with --resume"):
        create_run(path, {"config": "another"})
    assert {each: each.read_bytes() for each in tmp_path.rglob("*") if each.is_file()} == before


def test_a_run_has_copies_of_its_files_or_is_not_there(tmp_path, monkeypatch) -> None:
    (tmp_path / "given").write_bytes(b"\0content")
    other = create_run(tmp_path / "other", CONFIG, files={"its own": tmp_path / "given"})
    (other.checkpoints / "3").mkdir()
    (other.path / "curves.png").write_text("")
    files = {"kept": tmp_path / "given", "reward": other.path}
    whole = create_run(tmp_path / "whole", CONFIG, files=files).path
    assert (whole / "kept").read_bytes() == b"\0content"
    assert open_run(whole / "reward") == ((whole / "reward",), open_run(other.path)[1])
    assert (whole / "reward" / "its own").read_bytes() == b"\0content"
    assert (whole / "reward" / "checkpoints" / "3").is_dir()
    assert not (whole / "reward" / "curves.png").exists()

    def full(*_: object) -> None:
        raise OSError(errno.ENOSPC, "No space left on device")

    monkeypatch.setattr(shutil, "copyfile", full)
    with pytest.raises(OSError, match="No space left"):
        create_run(tmp_path / "half", CONFIG, files=files)
    assert not (tmp_path / "half").exists()


def test_a_run_inside_one_that_it_copies_is_refused(tmp_path) -> None:
    other = create_run(tmp_path / "other", CONFIG)
    with pytest.raises(ValueError, match=r"next lies in .*other, which it keeps a copy of; choose another --out"):
        create_run(other.path / "next", CONFIG, files={"reward": other.path})
    assert not (other.path / "next").exists()


def test_a_file_called_as_one_of_the_runs_own_is_refused(tmp_path) -> None:
    (tmp_path / "config.json").write_text("a clip")
    with pytest.raises(ValueError, match="is called as a run calls one of its own files; rename it"):
        create_run(tmp_path / "run", CONFIG, files={"config.json": tmp_path / "config.json"})
    assert not (tmp_path / "run").exists()


def test_the_config_of_a_run_that_is_being_trained_stays_as_it_is(tmp_path) -> None:
    made = create_run(tmp_path / "run", CONFIG)
    with held(made), pytest.raises(ValueError, match="is being trained by another process"):
        reopen_run(made.path, {"recipe": "gail"})
    assert open_run(made.path)[1] == CONFIG
    reopen_run(made.path, {"recipe": "gail"})
    assert open_run(made.path)[1] == CONFIG | {"config": {"recipe": "gail"}}


CONFIG_JSON = "config.json"

NO_RUN = {
    "nothing": (lambda path: None, "is not a run folder: it has no config.json"),
    "a file": (lambda path: path.write_text("text"), "is not a run folder: it has no config.json"),
    "another folder": (lambda path: path.mkdir(), "is not a run folder: it has no config.json"),
    "cut short": (lambda path: (path.mkdir(), (path / CONFIG_JSON).write_text('{"conf')), r"config\.json is damaged"),
    "no text": (lambda path: (path.mkdir(), (path / CONFIG_JSON).write_bytes(b"\xff\xfe")), r"config\.json is damaged"),
}


@pytest.mark.parametrize(("make", "message"), NO_RUN.values(), ids=NO_RUN.keys())
def test_what_is_no_run(tmp_path, make, message) -> None:
    make(tmp_path / "run")
    with pytest.raises(ValueError, match=message):
        open_run(tmp_path / "run")


def test_paths_become_absolute(tmp_path, monkeypatch) -> None:
    monkeypatch.chdir(tmp_path)
    write_json(tmp_path / "a.json", {"file": Path("demos.npz")})
    assert json.loads((tmp_path / "a.json").read_text()) == {"file": str(tmp_path / "demos.npz")}


def test_a_file_is_written_whole_or_not_at_all(tmp_path, monkeypatch) -> None:
    write_json(tmp_path / "a.json", {"old": 1})
    with pytest.raises(TypeError):
        write_json(tmp_path / "a.json", {"new": object()})
    assert json.loads((tmp_path / "a.json").read_text()) == {"old": 1}


def test_metrics_up_to_a_line_cut_short(tmp_path) -> None:
    made = create_run(tmp_path / "run", CONFIG)
    with pytest.raises(ValueError, match=r"has no metrics\.jsonl yet"):
        read_metrics(made)
    made.metrics.write_text('{"iteration": 1}\n{"iteration": 2}\n{"iter')
    assert read_metrics(made) == [{"iteration": 1}, {"iteration": 2}]


def test_damaged_lines_are_left_out_and_that_is_said(tmp_path, capsys) -> None:
    made = create_run(tmp_path / "run", CONFIG)
    made.metrics.write_bytes(b'{"iteration": 1}\n@@\xff{\n[3]\n{"iteration": 4}\n{"iter')
    assert read_metrics(made) == [{"iteration": 1}, {"iteration": 4}]
    assert "metrics.jsonl: line 2 is damaged, 2 in all left out" in capsys.readouterr().err


def test_a_file_that_cannot_be_written_is_named_as_it_was_asked_for(tmp_path) -> None:
    with pytest.raises(FileNotFoundError) as caught:
        write_json(tmp_path / "no" / "a.json", {})
    assert caught.value.filename == str(tmp_path / "no" / "a.json")
