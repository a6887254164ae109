"""Progress lines: what they say, and of which the rate is."""

import io

import pytest

from vdbjax.training.progress import Progress, reporter


def _line(iteration: int, **values: float) -> dict:
    return {"iteration": iteration, "env_steps": 10 * iteration, "seconds": 0.5 * iteration, **values}


class Terminal(io.StringIO):
    def isatty(self) -> bool:
        return True


@pytest.fixture
def clock(monkeypatch) -> list[float]:
    """The time, to be set by the test."""
    now = [0.0]
    monkeypatch.setattr("time.monotonic", lambda: now[0])
    return now


VAIL = {"episode/return": 123.4, "bottleneck/kl_nats": [0.4, 0.6], "bottleneck/beta": 0.01, "policy/loss": 9.0}


def test_the_progress_line(clock) -> None:
    stream = Terminal()
    progress = Progress(100, stream=stream)
    clock[0] = 30.0  # the first iteration compiles, which the rate leaves out
    progress.show(_line(1, **VAIL))
    clock[0] = 40.0
    progress.show(_line(6, **VAIL) | {"env_steps": 12_010})
    last = stream.getvalue().split("\r\033[K")[-1]
    # 12,000 steps in 10 s; 94 iterations are left at 2 s each
    assert last == "iteration 6/100 | 12,010 steps | 1,200 steps/s | return 123.4 | KL 0.5 | beta 0.01 | 0:03:08 left"


def test_the_remaining_time_is_not_known_at_first(clock) -> None:
    stream = io.StringIO()
    Progress(100, stream=stream).show(_line(1), final=True)
    assert stream.getvalue() == "iteration 1/100 | 10 steps\n"


def test_a_report_leaves_out_what_comes_before_its_first_call(clock, capsys) -> None:
    report = reporter("scoring", unit="kB", scale=1e3)
    clock[0] = 60.0  # all compiles
    report(5_000, 105_000)
    clock[0] = 65.0  # not yet
    report(30_000, 105_000)
    clock[0] = 80.0
    report(65_000, 105_000)
    # 60 kB in 20 s
    assert capsys.readouterr().err.splitlines() == [
        "scoring | 5/105 kB",
        "scoring | 65/105 kB | 3 kB/s | 0:00:13 left",
    ]


def test_a_run_without_control_steps_shows_none(clock) -> None:
    stream = io.StringIO()
    progress = Progress(4, stream=stream)
    progress.show(_line(1) | {"env_steps": 0})
    clock[0] = 20.0
    progress.show(_line(3, **{"policy/validation_nats": 1.25}) | {"env_steps": 0})
    assert stream.getvalue().splitlines()[-1] == "iteration 3/4 | 0.1 iterations/s | validation 1.25 | 0:00:10 left"


def test_a_resumed_run_counts_its_own_rate(clock) -> None:
    stream = io.StringIO()
    progress = Progress(10, done=5, stream=stream)
    progress.show(_line(6))
    clock[0] = 11.0
    progress.show(_line(8))
    assert "| 2 steps/s |" in stream.getvalue()  # 20 steps in 11 s


def test_a_terminal_is_rewritten_in_place_and_a_file_gets_a_line_now_and_then(clock) -> None:
    terminal, file = Terminal(), io.StringIO()
    shown = [Progress(1000, stream=stream) for stream in (terminal, file)]
    for iteration in range(1, 301):
        clock[0] = 0.1 * iteration
        for progress in shown:
            progress.show(_line(iteration))
    for progress in shown:
        progress.show(_line(301), final=True)
    assert terminal.getvalue().count("\n") == 1
    assert terminal.getvalue().endswith("left\n")
    assert 90 < terminal.getvalue().count("\r\033[K") < 160
    assert file.getvalue().count("\n") in (3, 4)
    assert "\r" not in file.getvalue()


def test_only_the_first_process_shows_it(monkeypatch) -> None:
    monkeypatch.setattr("jax.process_index", lambda: 1)
    stream = io.StringIO()
    Progress(3, stream=stream).show(_line(1), final=True)
    assert stream.getvalue() == ""
