"""How commands fail: one line on stderr, the nearest names, exit code 2; the lines are pinned word for word."""

import os
import subprocess
import sys
from dataclasses import dataclass
from typing import Annotated, Literal

import pytest
from tyro.conf import subcommand

from vdbjax import command


@dataclass(frozen=True)
class Optimizer:
    learning_rate: float = 1e-3
    """Step size."""


@dataclass(frozen=True)
class Gail:
    """A recipe."""

    out: str
    """Where to write."""
    num_envs: int = 8
    """Environments side by side."""
    engine: Literal["c", "mjx"] = "c"
    """Physics."""
    optimizer: Optimizer = Optimizer()

    def __post_init__(self) -> None:
        if self.num_envs % 8:
            raise ValueError(f"num_envs ({self.num_envs}) must be divisible by 8, see {'/folder' * 20}")


@dataclass(frozen=True)
class Vail(Gail):
    """Another recipe."""

    info_constraint: float = 0.5
    """Nats."""


Recipes = Annotated[Gail, subcommand("gail")] | Annotated[Vail, subcommand("vail")]

LINES = {
    "vail --out x --num-env 4": "unknown option --num-env; did you mean --num-envs?",
    "vail --out x --num_env=4": "unknown option --num_env; did you mean --num-envs?",
    "vail --ou x": "unknown option --ou; did you mean --out?",
    "vail --out x --optimizer.learn-rate 1": "unknown option --optimizer.learn-rate; did you mean "
    "--optimizer.learning-rate?",
    "gail --out x --info-constraint 1": "unknown option --info-constraint; see `python -m it gail --help`",
    "gail --out x -q": "unknown option -q; see `python -m it gail --help`",
    "gail --out x 7": "unknown argument 7; see `python -m it gail --help`",
    "vial --out x": "unknown command vial; did you mean vail?",
    "zzz": "unknown command zzz; choose from gail, vail",
    "": "Expected one of {gail, vail}.",
    "gail": "Missing from python -m it gail: --out STR Where to write. (required)",
    "gail --out x --num-envs q": "--num-envs: invalid literal for int() with base 10: 'q'",
    "gail --out x --num-envs": "Missing value for argument '--num-envs'. Expected 1 values.",
    "gail --out x --engine x": "invalid choice 'x' for argument '--engine'. Expected one of ('c', 'mjx').",
    "gail --out x --num-envs 9": f"num_envs (9) must be divisible by 8, see {'/folder' * 20}",
}


@pytest.mark.parametrize("typed", LINES, ids=lambda typed: typed or "nothing")
@pytest.mark.parametrize("encoding", ["utf-8", "ascii"])
def test_one_line(typed: str, encoding: str, capsys, monkeypatch) -> None:
    monkeypatch.setattr("tyro._fmtlib._should_use_utf8_drawing_chars", lambda: encoding == "utf-8")
    with pytest.raises(SystemExit) as stop:
        command.parse(Recipes, prog="python -m it", args=typed.split())
    assert stop.value.code == 2
    assert capsys.readouterr() == ("", f"error: {LINES[typed]}\n")


def test_good_options_pass() -> None:
    found = command.parse(Recipes, prog="it", args=["vail", "--out", "x", "--num_envs", "16"])
    assert found == Vail(out="x", num_envs=16)


def test_help_goes_to_stdout(capsys) -> None:
    with pytest.raises(SystemExit) as stop:
        command.parse(Recipes, prog="it", description="What it does.", args=["--help"])
    assert not stop.value.code
    out, err = capsys.readouterr()
    assert "What it does." in out
    assert err == ""


def test_arguments_come_from_the_command_line(monkeypatch, capsys) -> None:
    monkeypatch.setattr(sys, "argv", ["it", "vail", "--outt", "x"])
    with pytest.raises(SystemExit):
        command.parse(Recipes, prog="it")
    assert "did you mean --out?" in capsys.readouterr().err


def _raise(error: BaseException) -> None:
    raise error


FAILURES = {
    "value": (ValueError("num_envs (3)\n  is odd"), 2, "error: num_envs (3) is odd\n"),
    "file": (FileNotFoundError(2, "No such file or directory", "a/b"), 2, "error: a/b: no such file or folder\n"),
    "file without a name": (FileNotFoundError("no run here"), 2, "error: no run here\n"),
    "a folder for a file": (IsADirectoryError(21, "Is a directory", "a/b"), 2, "error: a/b: Is a directory\n"),
    "interrupt": (KeyboardInterrupt(), 130, ""),
    "its own exit": (SystemExit(143), 143, ""),
}


@pytest.mark.parametrize("case", FAILURES)
def test_exit_codes(case: str, capsys) -> None:
    error, code, line = FAILURES[case]
    with pytest.raises(SystemExit) as stop:
        command.main(lambda: _raise(error))
    assert stop.value.code == code
    assert capsys.readouterr() == ("", line)


def test_other_errors_keep_their_traceback() -> None:
    with pytest.raises(ZeroDivisionError):
        command.main(lambda: _raise(ZeroDivisionError()))


def test_success_runs_once_and_raises_nothing() -> None:
    calls: list[str] = []
    command.main(lambda: calls.append("ran"))
    assert calls == ["ran"]


def test_a_real_process_without_utf8() -> None:
    environment = {**os.environ, "PYTHONIOENCODING": "ascii"}
    program = [sys.executable, "-m", "vdbjax.demos", "collekt", "run"]
    done = subprocess.run(program, env=environment, capture_output=True, text=True, timeout=60, check=False)
    assert (done.returncode, done.stdout) == (2, "")
    assert done.stderr == "error: unknown command collekt; did you mean collect?\n"


def test_a_name_that_is_no_text_can_be_printed() -> None:
    environment = {**os.environ, "PYTHONIOENCODING": "utf-8:strict"}
    program = [sys.executable, "-c", r"from vdbjax import command; command.main(lambda: print('caf\udce9'))"]
    done = subprocess.run(program, env=environment, capture_output=True, text=True, timeout=60, check=True)
    assert done.stdout == "caf\\udce9\n"


def test_a_reader_that_goes_away_is_no_error() -> None:
    source = "from vdbjax import command; command.main(lambda: print('line\\n' * 100_000, flush=True))"
    with subprocess.Popen([sys.executable, "-c", source], stdout=subprocess.PIPE, stderr=subprocess.PIPE) as process:
        assert process.stdout
        assert process.stderr
        process.stdout.readline()
        process.stdout.close()
        assert process.stderr.read() == b""
    assert process.returncode == 141


def test_what_a_file_cannot_replace_is_refused(tmp_path):
    os.mkfifo(tmp_path / "pipe")
    for overwrite in (False, True):
        with pytest.raises(ValueError, match=r"pipe is no regular file; name another"):
            command.check_writable(tmp_path / "pipe", overwrite=overwrite)


def test_memory_that_xla_cannot_have_is_one_line(capsys):
    def run() -> None:
        raise RuntimeError("RESOURCE_EXHAUSTED: Out of memory allocating 1099511627776 bytes.")

    with pytest.raises(SystemExit) as stop:
        command.main(run)
    assert stop.value.code == 2
    assert capsys.readouterr().err == "error: there is not enough memory for this\n"
