"""The command `python -m vdbjax.demos`: what it prints, what it hands on, and how it fails."""

import sys
import types

import numpy as np
import pytest

from vdbjax import demos
from vdbjax.data import demonstrations as demo
from vdbjax.data.demonstrations import DemonstrationFile


def _file() -> DemonstrationFile:
    """Three episodes with returns 10, 33 and 161."""
    lengths = (5, 3, 7)
    demonstrations = demo.from_episodes(
        [np.ones((n + 1, 2)) * n for n in lengths],
        [np.ones((n, 1)) for n in lengths],
        [10.0 * e + np.arange(n) for e, n in enumerate(lengths)],
        [True, False, True],
    )
    return DemonstrationFile(demonstrations, "hopper", 17.5, "a tuned expert")


def _command(arguments: list[str], monkeypatch, capsys) -> tuple[int, str, str]:
    monkeypatch.setattr(sys, "argv", ["demos", *arguments])
    code = 0
    try:
        demos.main()
    except SystemExit as stop:
        code = stop.code
    return code, *capsys.readouterr()


def test_info_command(tmp_path, monkeypatch, capsys) -> None:
    path = tmp_path / "a.npz"
    demo.save(path, _file())
    code, out, err = _command(["info", str(path)], monkeypatch, capsys)
    assert (code, err) == (0, "")
    for expected in ("hopper", "a tuned expert", "2 observations, 1 actions", "3 (2 terminated)", "3 to 7, 15 in all"):
        assert expected in out
    assert "68.0 +- 66.4, 10.0 to 161.0" in out  # of 10, 33, 161
    assert f"{path.stat().st_size / 1000:.1f} kB" in out


BAD_COMMANDS = {
    "damaged file": (["info", "{bad}"], "not a demonstration file"),
    "missing file": (["info", "none.npz"], "none.npz: cannot be read"),
    "unknown command": (["inf", "a.npz"], "did you mean info?"),
    "unknown option": (["collect", "run", "--out", "{new}", "--episode", "3"], "did you mean --episodes?"),
    "existing file": (["collect", "run", "--out", "{good}"], "good.npz exists"),
    "no episodes": (["collect", "run", "--out", "{new}", "--episodes", "0"], "--episodes (0) must be at least 1"),
    "no transitions": (["collect", "run", "--out", "{new}", "--transitions", "0"], "--transitions (0) must be at"),
    "import over a file": (["import-minari", "x/y-v0", "--out", "{good}"], "good.npz exists"),
}


@pytest.mark.parametrize("case", BAD_COMMANDS)
def test_bad_commands(case: str, tmp_path, monkeypatch, capsys) -> None:
    files = {name: str(tmp_path / f"{name}.npz") for name in ("good", "bad", "new")}
    demo.save(files["good"], _file())
    before = (tmp_path / "good.npz").read_bytes()
    (tmp_path / "bad.npz").write_text("not a zip")
    arguments, message = BAD_COMMANDS[case]
    code, out, err = _command([argument.format(**files) for argument in arguments], monkeypatch, capsys)
    assert (code, out) == (2, "")
    assert err.startswith("error: ")
    assert err.count("\n") == 1
    assert message in err
    assert (tmp_path / "good.npz").read_bytes() == before
    assert not (tmp_path / "new.npz").exists()


def test_collect_command(tmp_path, monkeypatch, capsys) -> None:
    asked = {}

    def collect_episodes(run, **options):
        asked.update(run=str(run), **options)
        return _file()

    fake = types.ModuleType("vdbjax.episodes")
    fake.collect_episodes = collect_episodes
    monkeypatch.setitem(sys.modules, fake.__name__, fake)
    out_path = tmp_path / "a.npz"
    arguments = ["collect", "runs/x", "--episodes", "3", "--out", str(out_path), "--deterministic", "--min-return", "9"]
    code, out, err = _command(arguments, monkeypatch, capsys)
    assert (code, err) == (0, "")
    assert asked == {
        **{"run": "runs/x", "num_episodes": 3, "num_transitions": None},
        **{"deterministic": True, "seed": 0, "min_return": 9.0},
    }
    np.testing.assert_array_equal(demo.load(out_path).demonstrations.reward, _file().demonstrations.reward)
    assert "3 (2 terminated)" in out
