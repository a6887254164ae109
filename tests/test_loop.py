"""The training loop on gradient descent for y = 2 x, whose every number can be written down."""

import json
import os
import shutil
import signal
from concurrent.futures import ThreadPoolExecutor
from typing import NamedTuple

import jax
import jax.numpy as jnp
import numpy as np
import pytest

from vdbjax.training import loop
from vdbjax.training.checkpoint import load_checkpoint, saved_iterations
from vdbjax.training.loop import Schedule, Stopped, over_seeds, train
from vdbjax.training.metrics import NonFiniteError
from vdbjax.training.run_dir import RunDir, create_run, held, read_metrics
from vdbjax.types import Algorithm, Metrics

RATE = 0.25
NEVER = 10_000


class State(NamedTuple):
    slope: jax.Array
    step: jax.Array
    key: jax.Array


def regression(*, stop_at: int = NEVER, bad_at: int = NEVER, bad: float = np.nan) -> Algorithm:
    """slope <- slope - RATE (slope - 2) + noise / 100; at `bad_at` a metric is `bad`, at `stop_at` it asks to stop."""

    def init(key: jax.Array) -> State:
        return State(jax.random.uniform(key), jnp.int32(0), key)

    def update(state: State, batch: None) -> tuple[State, Metrics]:
        step = state.step + 1
        noise = 0.01 * jax.random.normal(jax.random.fold_in(state.key, step))
        slope = state.slope - RATE * (state.slope - 2.0) + noise
        metrics = {
            "fit/error": jnp.where(step == bad_at, bad, (slope - 2.0) ** 2),
            "fit/slope": slope,
            "stop": (step >= stop_at).astype(jnp.float32),
        }
        return State(slope, step, state.key), metrics

    def evaluate(state: State, key: jax.Array) -> Metrics:
        return {"eval/slope": state.slope, "eval/draw": jax.random.uniform(key)}

    return Algorithm(init, update, evaluate)


def schedule(count: int = 10, *, evaluations: int = 2, checkpoint_seconds: float = 0.0) -> Schedule:
    return Schedule(count, 7, evaluations, checkpoint_seconds)


@pytest.fixture
def run(tmp_path) -> RunDir:
    return create_run(tmp_path / "run", {})


KEY = jax.random.key(3)


def slopes_by_hand(count: int) -> list[float]:
    key = jax.random.split(KEY)[0]
    slopes = [float(jax.random.uniform(key))]
    for step in range(1, count + 1):
        noise = 0.01 * float(jax.random.normal(jax.random.fold_in(key, step)))
        slopes.append(slopes[-1] - RATE * (slopes[-1] - 2.0) + noise)
    return slopes[1:]


EVALUATED = {
    (10, 2): [5, 10],
    (10, 10): list(range(1, 11)),
    (10, 3): [4, 7, 10],
    (7, 2): [4, 7],
    (3, 10): [1, 2, 3],
    (1, 10): [1],
    (5, 1): [5],
}


@pytest.mark.parametrize(("count", "evaluations"), EVALUATED)
def test_evaluations_are_spread_evenly_and_the_last_is_at_the_end(count, evaluations) -> None:
    plan = schedule(count, evaluations=evaluations)
    assert [i for i in range(1, count + 1) if plan.evaluates(i)] == EVALUATED[count, evaluations]


def test_what_is_logged(run) -> None:
    state, result = train(regression(), run, schedule(), KEY)
    lines = read_metrics(run)
    assert [line["iteration"] for line in lines] == list(range(1, 11))
    assert [line["env_steps"] for line in lines] == [7 * i for i in range(1, 11)]
    assert [line["iteration"] for line in lines if "eval/slope" in line] == [5, 10]
    np.testing.assert_allclose([line["fit/slope"] for line in lines], slopes_by_hand(10), rtol=1e-6)
    np.testing.assert_allclose(
        [line["fit/error"] for line in lines], (np.array(slopes_by_hand(10)) - 2.0) ** 2, rtol=1e-4
    )
    seconds = [line["seconds"] for line in lines]
    assert seconds == sorted(seconds)
    assert seconds[0] > 0
    assert float(state.slope) == lines[-1]["fit/slope"] == result["eval/slope"]
    assert lines[4]["eval/draw"] != lines[9]["eval/draw"]
    assert int(state.step) == 10


def test_each_iteration_gets_its_own_batch_also_after_a_stop(run) -> None:
    algorithm = regression()._replace(update=lambda state, batch: (state, {"fit/batch": batch.sum()}))
    batches = lambda index: np.array([index, 0.5], np.float32)  # noqa: E731
    seen: list[int] = []
    train(algorithm, run, schedule(3), KEY, batches=batches)
    train(algorithm, run, schedule(), KEY, batches=batches, resume=True, after_evaluation=lambda _, i: seen.append(i))
    assert [line["fit/batch"] for line in read_metrics(run)] == [i + 0.5 for i in range(10)]
    assert seen == [5, 10]


def test_the_loop_does_what_a_plain_scan_does(run) -> None:
    algorithm = regression()
    state, _ = train(algorithm, run, schedule(), KEY)
    start = algorithm.init(jax.random.split(KEY)[0])
    expected, history = jax.lax.scan(algorithm.update, start, None, length=10)
    np.testing.assert_allclose(state.slope, expected.slope, rtol=1e-6)
    np.testing.assert_allclose([line["fit/slope"] for line in read_metrics(run)], history["fit/slope"], rtol=1e-6)


def test_checkpoints_come_with_time_and_at_the_end(run, monkeypatch) -> None:
    saved = []
    save = loop.save_checkpoint
    monkeypatch.setattr(loop, "save_checkpoint", lambda run, state, i: (saved.append(i), save(run, state, i)))
    clock = iter(range(0, 10_000, 10))  # each look at the clock is ten seconds on
    monkeypatch.setattr(loop.time, "monotonic", lambda: float(next(clock)))
    train(regression(), run, schedule(9, checkpoint_seconds=45.0), KEY)
    assert saved[-1] == 9
    assert 1 < len(saved) < 9
    assert len(set(np.diff(saved[:-1]))) <= 1


def test_the_metric_stop_ends_the_run_with_an_evaluation_and_a_checkpoint(run) -> None:
    _, result = train(regression(stop_at=4), run, schedule(checkpoint_seconds=1e9), KEY)
    lines = read_metrics(run)
    assert [line["iteration"] for line in lines] == [1, 2, 3, 4]
    assert "eval/slope" in lines[-1]
    assert result["eval/slope"] == lines[-1]["eval/slope"]
    assert saved_iterations(run) == [4]
    # A run that stopped by itself is over, as one that has reached its end.
    again, same = train(regression(stop_at=4), run, schedule(), KEY, resume=True)
    assert int(again.step) == 4
    assert same == {name: lines[-1][name] for name in ("eval/slope", "eval/draw")}
    assert read_metrics(run) == lines


@pytest.mark.parametrize("seeds", [3, 7, 10])  # all at once; one after the other; by fives
def test_many_seeds_are_that_many_runs(run, seeds) -> None:
    state, result = train(over_seeds(regression(), seeds), run, schedule(), KEY)
    lines = read_metrics(run)
    assert np.shape(lines[0]["fit/slope"]) == (seeds,)
    assert len(set(lines[-1]["fit/slope"])) == seeds
    assert result["eval/slope"].shape == (seeds,)
    assert len(set(lines[-1]["eval/draw"])) == seeds
    key_init, _ = jax.random.split(KEY)
    for seed, key in enumerate(jax.random.split(key_init, seeds)):
        alone, _ = jax.lax.scan(regression().update, regression().init(key), None, length=10)
        np.testing.assert_allclose(state.slope[seed], alone.slope, rtol=1e-6)


def test_all_seeds_must_ask_to_stop(run) -> None:
    first, second = regression(stop_at=3), regression(stop_at=6)

    def update(state: State, batch: None) -> tuple[State, Metrics]:
        (after, metrics), (_, later) = first.update(state, batch), second.update(state, batch)
        return after, metrics | {"stop": jnp.stack([metrics["stop"], later["stop"]])}

    train(first._replace(update=update), run, schedule(), KEY)
    assert len(read_metrics(run)) == 6


@pytest.mark.parametrize("bad", [np.nan, np.inf, -np.inf])
def test_bad_numbers_stop_the_run_and_harm_no_checkpoint(run, bad) -> None:
    with pytest.raises(NonFiniteError) as error:
        train(regression(bad_at=5, bad=bad), run, schedule(), KEY)
    assert str(error.value) == f"iteration 5: fit/error is {bad}; the checkpoint of iteration 4 in {run.path} is good"
    assert [line["iteration"] for line in read_metrics(run)] == [1, 2, 3, 4]
    assert saved_iterations(run) == [4, 3, 2]
    state, iteration = load_checkpoint(run, regression().init(KEY))
    assert iteration == int(state.step) == 4
    assert np.isfinite(state.slope)


def test_bad_evaluations_count_but_for_those_that_may_be_unknown(run) -> None:
    found = {"eval/root_position_m": jnp.nan, "eval/slope": jnp.inf}
    bad = regression()._replace(evaluate=lambda state, key: found)
    with pytest.raises(NonFiniteError, match=r"iteration 5: eval/slope is inf; the checkpoint of iteration 4 in"):
        train(bad, run, schedule(), KEY)
    assert len(read_metrics(run)) == 4


def test_bad_numbers_of_one_seed_count(run) -> None:
    algorithm = regression()

    def update(state: State, batch: None) -> tuple[State, Metrics]:
        after, metrics = algorithm.update(state, batch)
        return after, metrics | {"fit/error": jnp.array([0.0, jnp.nan])}

    with pytest.raises(NonFiniteError, match=r"iteration 1: fit/error is \[0.0, nan\]; nothing was saved"):
        train(algorithm._replace(update=update), run, schedule(), KEY)


def interrupted(algorithm: Algorithm, at: int, number: int) -> Algorithm:
    """The same algorithm, during whose iteration `at` the process gets a signal."""

    def send(step: np.ndarray) -> np.ndarray:
        if step == at:
            os.kill(os.getpid(), number)
        return np.int32(0)

    def update(state: State, batch: None) -> tuple[State, Metrics]:
        after, metrics = algorithm.update(state, batch)
        zero = jax.pure_callback(send, jax.ShapeDtypeStruct((), jnp.int32), after.step)
        return after._replace(step=after.step + zero), metrics

    return algorithm._replace(update=update)


@pytest.mark.parametrize(("number", "code"), [(signal.SIGINT, 130), (signal.SIGTERM, 143)])
def test_a_signal_saves_and_a_resumed_run_is_the_uninterrupted_one(run, tmp_path, number, code) -> None:
    before = signal.getsignal(number)
    with pytest.raises(Stopped) as stop:
        train(interrupted(regression(), 4, number), run, schedule(checkpoint_seconds=1e9), KEY)
    assert stop.value.code == code
    assert signal.getsignal(number) == before
    (done,) = saved_iterations(run)
    assert done in (4, 5)  # the iteration at work when the signal came, or the next one
    assert len(read_metrics(run)) == done
    state, result = train(regression(), run, schedule(), KEY, resume=True)
    whole = create_run(tmp_path / "whole", {})
    expected, expected_result = train(regression(), whole, schedule(), KEY)
    assert float(state.slope) == float(expected.slope)
    assert result == expected_result
    without_time = [
        [{name: value for name, value in line.items() if name != "seconds"} for line in read_metrics(each)]
        for each in (run, whole)
    ]
    assert without_time[0] == without_time[1]


def test_a_signal_in_the_last_iteration_is_not_forgotten(run) -> None:
    with pytest.raises(Stopped):
        train(interrupted(regression(), 10, signal.SIGTERM), run, schedule(), KEY)
    assert saved_iterations(run)[0] == 10
    state, result = train(regression(), run, schedule(), KEY, resume=True)
    assert int(state.step) == 10
    assert result["eval/slope"] == state.slope


def test_a_signal_before_the_first_iteration_stops_at_once(run, capfd) -> None:
    def init(key: jax.Array) -> State:
        os.kill(os.getpid(), signal.SIGTERM)
        return regression().init(key)

    with pytest.raises(Stopped) as stop:
        train(regression()._replace(init=init), run, schedule(), KEY)
    assert stop.value.code == 143
    assert not saved_iterations(run)
    assert "stopping as soon as the step at work is done and saved; once more to stop at once" in capfd.readouterr().err
    state, _ = train(regression(), run, schedule(), KEY, resume=True)
    assert int(state.step) == 10


def test_without_a_checkpoint_it_begins_anew_and_keeps_the_metrics(run, capfd) -> None:
    train(regression(), run, schedule(), KEY)
    lines = run.metrics.read_text()
    shutil.rmtree(run.checkpoints)
    run.checkpoints.mkdir()
    state, _ = train(regression(), run, schedule(), KEY, resume=True)
    assert int(state.step) == 10
    assert "has no checkpoint: it begins anew; its metrics are kept in metrics-before.jsonl" in capfd.readouterr().err
    assert (run.path / "metrics-before.jsonl").read_text() == lines
    assert len(read_metrics(run)) == 10
    shutil.rmtree(run.checkpoints)
    train(regression(), run, schedule(), KEY, resume=True)
    assert (run.path / "metrics-before.jsonl").read_text().startswith(lines)
    assert len((run.path / "metrics-before.jsonl").read_text().splitlines()) == 20


def test_no_two_train_in_one_folder(run) -> None:
    with held(run), pytest.raises(ValueError, match="is being trained by another process; wait for it, or stop it"):
        train(regression(), run, schedule(), KEY)
    assert not run.metrics.exists()
    train(regression(), run, schedule(), KEY)


def test_it_trains_in_any_thread(run) -> None:
    """Though signals come to the main one alone."""
    with ThreadPoolExecutor(1) as pool:
        _, found = pool.submit(train, regression(), run, schedule(), KEY).result()
    assert found == train(regression(), run, schedule(), KEY, resume=True)[1]


def test_a_second_signal_is_not_held_back(run) -> None:
    with loop._signals() as caught:
        os.kill(os.getpid(), signal.SIGINT)
        assert caught == [signal.SIGINT]
        with pytest.raises(KeyboardInterrupt):
            os.kill(os.getpid(), signal.SIGINT)


def test_resuming_goes_back_to_the_checkpoint_and_makes_the_lost_lines_again(run) -> None:
    train(regression(), run, schedule(6), KEY)
    lines = read_metrics(run)
    with run.metrics.open("a") as stream:  # lines past the checkpoint, the last one cut short by the kill
        stream.write(json.dumps({"iteration": 7, "seconds": 1.0, "fit/slope": -1.0}) + "\n" + '{"iteration": 8, "fi')
    train(regression(), run, schedule(9), KEY, resume=True)
    found = read_metrics(run)
    assert [line["iteration"] for line in found] == list(range(1, 10))
    assert found[:6] == lines
    np.testing.assert_allclose([line["fit/slope"] for line in found], slopes_by_hand(9), rtol=1e-6)
    assert found[6]["seconds"] > found[5]["seconds"]  # the clock goes on where it stood


def test_resuming_before_the_first_checkpoint_begins_anew(run) -> None:
    run.metrics.write_text('{"iteration": 1, "env_steps": 7, "seconds": 9.0, "fit/slope": 1.0}\n')
    state, _ = train(regression(), run, schedule(4), KEY, resume=True)
    assert int(state.step) == 4
    assert [line["iteration"] for line in read_metrics(run)] == [1, 2, 3, 4]


def test_resuming_from_damaged_checkpoints_only_is_an_error(run) -> None:
    train(regression(), run, schedule(2), KEY)
    content = run.metrics.read_bytes()
    for folder in run.checkpoints.iterdir():
        (folder / "sha256.json").unlink()
    with pytest.raises(ValueError, match="all of its 2 checkpoints are damaged"):
        train(regression(), run, schedule(4), KEY, resume=True)
    assert run.metrics.read_bytes() == content


def test_a_finished_run_stays_as_it_is(run) -> None:
    _, result = train(regression(), run, schedule(4), KEY)
    content = run.metrics.read_bytes()
    state, again = train(regression(), run, schedule(4), KEY, resume=True)
    assert run.metrics.read_bytes() == content
    assert again == result
    assert int(state.step) == 4


def test_a_run_cut_short_after_its_last_evaluation_is_evaluated(run) -> None:
    with pytest.raises(Stopped):
        train(interrupted(regression(), 2, signal.SIGINT), run, schedule(evaluations=1, checkpoint_seconds=1e9), KEY)
    (done,) = saved_iterations(run)
    state, result = train(regression(), run, schedule(done, evaluations=1), KEY, resume=True)
    assert int(state.step) == done
    assert result["eval/slope"] == state.slope


def test_one_compilation_serves_the_whole_run(run) -> None:
    traces = []
    algorithm = regression()

    def update(state: State, batch: None) -> tuple[State, Metrics]:
        traces.append(1)
        return algorithm.update(state, batch)

    train(algorithm._replace(update=update), run, schedule(), KEY)
    assert len(traces) == 1
