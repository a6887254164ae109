"""Metrics on their way out: what stands in the files."""

import json
import struct

import jax.numpy as jnp
import numpy as np
import pytest

from vdbjax.training.metrics import MetricsLog, first_bad, mean_over_seeds, to_host
from vdbjax.training.run_dir import RunDir, create_run, read_metrics


@pytest.fixture
def run(tmp_path) -> RunDir:
    return create_run(tmp_path / "run", {})


def _line(iteration: int, **values: float) -> dict:
    return {"iteration": iteration, "env_steps": 10 * iteration, "seconds": 0.5 * iteration, **values}


def _events(run: RunDir) -> list:
    """TensorBoard's events, oldest first: each record is its length, a checksum, the event, a checksum."""
    from tensorboardX.proto.event_pb2 import Event

    found = []
    for path in sorted(run.path.glob("events.out.tfevents.*"), key=lambda path: int(path.suffix[1:])):
        content = path.read_bytes()
        while content:
            (length,) = struct.unpack("<Q", content[:8])
            found.append(Event.FromString(content[12 : 12 + length]))
            content = content[16 + length :]
    return found


def test_stacked_metrics_become_lines() -> None:
    lines = to_host({"b": jnp.array([1.0, 2.0]), "a": jnp.array([[1.0, 2.0], [3.0, 4.0]]), "n": jnp.array([1, 2])})
    assert lines == [{"a": [1.0, 2.0], "b": 1.0, "n": 1.0}, {"a": [3.0, 4.0], "b": 2.0, "n": 2.0}]


def test_what_is_told_of_ended_episodes_is_left_out_until_one_has_of_every_seed() -> None:
    returns, lengths = jnp.array([[0.0, 0.0], [-5.0, 0.0], [-5.0, 0.0]]), jnp.array([[0, 0], [9, 0], [9, 4]])
    lines = to_host({"episode/return": returns, "episode/length": lengths, "episode/terminated_fraction": jnp.ones(3)})
    assert lines[0] == lines[1] == {"episode/terminated_fraction": 1.0}
    assert lines[2] == lines[0] | {"episode/return": [-5.0, 0.0], "episode/length": [9.0, 4.0]}


BAD = {
    "none": ({"a": 1.0, "b": [1.0, 2.0]}, None),
    "nan": ({"a": 1.0, "b": float("nan"), "c": float("nan")}, "b"),
    "infinity": ({"a": float("-inf")}, "a"),
    "one seed": ({"a": [1.0, 2.0], "b": [1.0, float("nan")]}, "b"),
}


@pytest.mark.parametrize(("line", "expected"), BAD.values(), ids=BAD.keys())
def test_the_first_bad_metric(line, expected) -> None:
    assert first_bad(line) == expected


def test_mean_over_seeds() -> None:
    assert mean_over_seeds(3.0) == mean_over_seeds([2.0, 4.0]) == mean_over_seeds(np.array([3.0])) == 3.0


def test_every_line_is_on_disk_at_once(run) -> None:
    with MetricsLog(run) as log:
        for iteration in (1, 2):
            log.write(_line(iteration, **{"policy/loss": [0.1, 0.2]}))
            assert json.loads(run.metrics.read_text().splitlines()[-1])["iteration"] == iteration
    assert read_metrics(run) == [_line(i, **{"policy/loss": [0.1, 0.2]}) for i in (1, 2)]


def test_numbers_come_back_exactly(run) -> None:
    value = float(np.float32(0.1))
    with MetricsLog(run) as log:
        log.write(_line(1, **{"a/b": value}))
    assert read_metrics(run)[0]["a/b"] == value


def test_tensorboard_gets_the_means_over_seeds(run) -> None:
    with MetricsLog(run) as log:
        log.write(_line(3, **{"policy/loss": [1.0, 2.0], "eval/return": 7.0}))
    first, event = _events(run)
    assert first.file_version == "brain.Event:2"
    assert event.step == 3
    assert {value.tag: value.simple_value for value in event.summary.value} == {"policy/loss": 1.5, "eval/return": 7.0}


def test_a_resumed_log_drops_what_will_be_made_again(run) -> None:
    with MetricsLog(run) as log:
        for iteration in (1, 2, 3):
            log.write(_line(iteration, **{"a/b": 0.0}))
    with MetricsLog(run, resume_at=2) as log:
        assert log.seconds_before == 1.0
        assert log.last == _line(2, **{"a/b": 0.0})
        log.write(_line(3, **{"a/b": 1.0}))
    assert [(line["iteration"], line["a/b"]) for line in read_metrics(run)] == [(1, 0.0), (2, 0.0), (3, 1.0)]
    from tensorboardX.proto.event_pb2 import SessionLog

    starts = [event for event in _events(run) if event.session_log.status == SessionLog.START]
    assert [event.step for event in starts] == [3]  # TensorBoard drops the earlier events from this step on


def test_a_kill_while_the_log_is_cut_loses_nothing(run, monkeypatch) -> None:
    with MetricsLog(run) as log:
        for iteration in (1, 2, 3):
            log.write(_line(iteration))
    before = run.metrics.read_bytes()

    def killed(*arguments: object) -> None:
        raise KeyboardInterrupt

    monkeypatch.setattr("os.replace", killed)
    with pytest.raises(KeyboardInterrupt):
        MetricsLog(run, resume_at=2)
    assert run.metrics.read_bytes() == before


def test_a_full_disk_is_an_error_and_no_hang(run) -> None:
    """A writing thread that died would leave the queue full, and `write` waiting for ever."""

    class Full:
        def write_event(self, event: object) -> None:
            raise OSError(28, "No space left on device")

        def flush(self) -> None: ...

        def close(self) -> None: ...

    log = MetricsLog(run)
    log._files._events = Full()
    with pytest.raises(OSError, match="No space"):
        log.write(_line(1, **{"a/b": 0.0}))


def test_only_the_first_process_writes(run, monkeypatch) -> None:
    monkeypatch.setattr("jax.process_index", lambda: 1)
    with MetricsLog(run) as log:
        log.write(_line(1, **{"a/b": 0.0}))
    assert not run.metrics.exists()
    assert not _events(run)
