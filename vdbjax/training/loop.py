"""The one training loop: compiled iterations, metrics, evaluation, checkpoints, and a way to stop at any time."""

import contextlib
import os
import signal
import sys
import threading
import time
from collections.abc import Callable, Iterator
from dataclasses import dataclass
from types import FrameType
from typing import Any

import jax
import jax.numpy as jnp

from vdbjax.training.checkpoint import load_checkpoint, save_checkpoint, saved_iterations
from vdbjax.training.devices import largest_over_processes, layout_of, on_every_device
from vdbjax.training.memory import ready
from vdbjax.training.metrics import MetricsLog, NonFiniteError, first_bad, mean_over_seeds, to_host
from vdbjax.training.progress import Progress
from vdbjax.training.run_dir import RunDir, held
from vdbjax.types import Algorithm, Metrics


@dataclass(frozen=True)
class Schedule:
    """How long a run lasts and how often it looks up. Counts are iterations."""

    num_iterations: int
    env_steps_per_iteration: int  # over all environments of one seed; 0 where none are taken
    evaluations: int  # evenly spread over the run, the last one at its end
    checkpoint_seconds: float

    def evaluates(self, iteration: int) -> bool:
        """Whether an evaluation falls on this iteration."""
        before, after = ((i * self.evaluations) // self.num_iterations for i in (iteration - 1, iteration))
        return after > before


class Stopped(Exception):
    """The run was asked to stop, and what it had done has been saved; `code` is what the process should exit with."""

    def __init__(self, signal_number: int) -> None:
        """128 plus the signal, as shells have it."""
        super().__init__(signal.Signals(signal_number).name)
        self.code = 128 + signal_number


SEEDS_AT_ONCE_ON_CPU = 5
"""Twenty policies of a maze learn faster by fives than all at once."""


def over_seeds(algorithm: Algorithm, num_seeds: int) -> Algorithm:
    """The algorithm for many seeds, by vmap; for one seed, itself. States and metrics lead with the seeds."""
    if num_seeds == 1:
        return algorithm
    most = SEEDS_AT_ONCE_ON_CPU if jax.default_backend() == "cpu" else num_seeds
    at_once = max(size for size in range(1, min(most, num_seeds) + 1) if num_seeds % size == 0)

    def split(key: jax.Array) -> jax.Array:
        return jax.random.split(key, num_seeds)

    def over(function: Callable[..., Any], *arguments: Any) -> Any:
        if at_once == num_seeds:
            return jax.vmap(function)(*arguments)
        return jax.lax.map(lambda own: function(*own), arguments, batch_size=at_once)

    return Algorithm(
        # One after the other: LAPACK's batched QR (orthogonal weights) can deadlock on XLA's threads if cores are few.
        init=lambda key: jax.lax.map(algorithm.init, split(key)),
        update=lambda state, batch: over(lambda own: algorithm.update(own, batch), state),
        evaluate=lambda state, key: over(algorithm.evaluate, state, split(key)),
    )


def train(
    algorithm: Algorithm,
    run: RunDir,
    schedule: Schedule,
    key: jax.Array,
    *,
    resume: bool = False,
    batches: Callable[[int], Any] | None = None,
    after_evaluation: Callable[[Any, int], None] | None = None,
    retries: int = 0,
    options: dict[str, str] | None = None,
) -> tuple[Any, Metrics]:
    """Trains to the end of the schedule, or until the metric `stop` is 1; returns the last state and its evaluation.

    `batches` gives the batch of each iteration, counted from 0, to algorithms that do not make their own data: a pure
    function, so that a resumed run sees the same. `after_evaluation` sees the state and the iterations done.
    `options` are the compiler's.

    At a bad metric the run goes back to its newest checkpoint, or to its start, and on with other noise, up to
    `retries` times in the life of this process.

    Raises Stopped after SIGINT or SIGTERM, with the state saved if an iteration has ended, NonFiniteError at the first
    bad metric after that, with the newest checkpoint left as it was, and ValueError where another process trains in the
    same folder.
    """
    for attempt in range(retries + 1):
        try:
            with held(run), _signals() as caught:
                again = resume or attempt > 0
                return _train(algorithm, run, schedule, key, again, attempt, batches, after_evaluation, options, caught)
        except NonFiniteError as error:
            if attempt == retries:
                tried = f"; {retries} retries with other noise did not help" if retries else ""
                raise NonFiniteError(f"{error}{tried}") from None
            print(f"{error}; going back (retry {attempt + 1} of {retries})", file=sys.stderr, flush=True)
    raise AssertionError


def _train(
    algorithm: Algorithm,
    run: RunDir,
    schedule: Schedule,
    key: jax.Array,
    resume: bool,
    attempt: int,
    batches: Callable[[int], Any] | None,
    after_evaluation: Callable[[Any, int], None] | None,
    options: dict[str, str] | None,
    caught: list[int],
) -> tuple[Any, Metrics]:
    """As `train`, up to the first bad metric; other attempts than 0 draw other noise from the start on. Signals that
    have come are in `caught`."""
    key_init, key_eval = jax.random.split(key)
    state, iteration = _first_state(algorithm, run, key_init, resume, attempt)
    update, evaluate = _compiled(algorithm, state, options)

    def evaluated() -> Metrics:
        return jax.device_get(evaluate(state, jax.random.fold_in(key_eval, iteration)))

    log, progress = MetricsLog(run, resume_at=iteration), Progress(schedule.num_iterations, done=iteration)
    result = {name: value for name, value in log.last.items() if name.startswith("eval/")}
    finished = iteration >= schedule.num_iterations or _asks_to_stop(log.last)
    started, last_good = time.monotonic(), iteration
    saved_at = started
    (stop,) = largest_over_processes(max(caught, default=0))
    if stop:  # before there is anything to save
        raise Stopped(stop)
    with log:
        while not finished:
            state, metrics = update(state, ready(batches(iteration)) if batches else None)
            iteration += 1
            (line,) = to_host(metrics)
            _check_finite(line, iteration, run, last_good)
            finished = _asks_to_stop(line) or iteration == schedule.num_iterations
            if finished or schedule.evaluates(iteration):
                result = evaluated()
                _check_finite(result, iteration, run, last_good)
                line |= {name: value.tolist() for name, value in result.items()}
                if after_evaluation:
                    after_evaluation(state, iteration)
            steps, seconds = iteration * schedule.env_steps_per_iteration, time.monotonic() - started
            line = {"iteration": iteration, "env_steps": steps, "seconds": log.seconds_before + seconds, **line}
            log.write(line)
            late = time.monotonic() - saved_at > schedule.checkpoint_seconds
            due, stop = largest_over_processes(late, max(caught, default=0))
            progress.show(line, final=finished or stop > 0)
            if finished or stop or due:
                save_checkpoint(run, state, iteration)
                saved_at, last_good = time.monotonic(), iteration
            if stop:  # at the very end too: whoever trains one run after the other must not go on
                raise Stopped(stop)
    if not result:  # resumed at an end that was set after the last evaluation
        result = evaluated()
    return state, result


def _first_state(algorithm: Algorithm, run: RunDir, key: jax.Array, resume: bool, attempt: int) -> tuple[Any, int]:
    """(the state that the run begins with or goes on from, the iterations that it has behind it)."""
    state, iteration = jax.jit(algorithm.init)(key), 0
    if resume and saved_iterations(run):
        state, iteration = load_checkpoint(run, state)
        if jax.process_index() == 0:
            print(f"going on from iteration {iteration}", file=sys.stderr, flush=True)
    elif resume and not attempt:  # stopped before the first one, or they were lost
        _begin_anew(run)
    return (_with_other_noise(state, attempt) if attempt else state), iteration


def _begin_anew(run: RunDir) -> None:
    """Keeps the metrics that a run without a checkpoint has, after any that were kept before, and says so."""
    if jax.process_index() > 0 or not run.metrics.is_file():
        return
    kept = run.metrics.with_name("metrics-before.jsonl")
    with kept.open("a") as file:
        file.write(run.metrics.read_text())
    run.metrics.unlink()
    print(f"{run.path} has no checkpoint: it begins anew; its metrics are kept in {kept.name}", file=sys.stderr)


def _with_other_noise(state: Any, attempt: int) -> Any:
    """The state with another key, by which all of its draws are others."""
    fold = jax.random.fold_in if state.key.ndim == 0 else jax.vmap(jax.random.fold_in, in_axes=(0, None))
    return state._replace(key=jax.jit(fold)(state.key, attempt))


def _compiled(
    algorithm: Algorithm, state: Any, options: dict[str, str] | None
) -> tuple[Callable[[Any, Any], tuple[Any, Metrics]], Callable[[Any, jax.Array], Metrics]]:
    """One iteration, whose metrics are stacked `[1, ...]`, and an evaluation; every process gets the metrics whole."""
    layout = layout_of(state)

    def update(state: Any, batch: Any) -> tuple[Any, Metrics]:
        # Not a scan of length 1: it stays a loop, in which XLA's CPU convolutions take ten times as long.
        state, metrics = algorithm.update(state, batch)
        return state, on_every_device(jax.tree.map(lambda metric: jnp.asarray(metric)[None], metrics))

    def evaluate(state: Any, key: jax.Array) -> Metrics:
        return on_every_device(algorithm.evaluate(state, key))

    return (
        jax.jit(update, donate_argnums=0, out_shardings=(layout, None), compiler_options=options),
        jax.jit(evaluate, compiler_options=options),
    )


def _asks_to_stop(line: Metrics) -> bool:
    return mean_over_seeds(line.get("stop", 0.0)) == 1.0


def _check_finite(line: Metrics, iteration: int, run: RunDir, last_good: int) -> None:
    if bad := first_bad(line):
        kept = f"the checkpoint of iteration {last_good} in {run.path} is good" if last_good else "nothing was saved"
        raise NonFiniteError(f"iteration {iteration}: {bad} is {line[bad]}; {kept}")


STOPPING = b"\nstopping as soon as the step at work is done and saved; once more to stop at once\n"


@contextlib.contextmanager
def _signals() -> Iterator[list[int]]:
    """Collects SIGINT and SIGTERM, so that the iteration at work can end and be saved; a second one kills.

    Python gives signals to the main thread alone: in another nothing is collected.
    """
    caught: list[int] = []
    if threading.current_thread() is not threading.main_thread():
        yield caught
        return

    def remember(number: int, frame: FrameType | None) -> None:
        caught.append(number)
        signal.signal(number, before[number])
        os.write(2, STOPPING)  # not by print, which the signal may have interrupted

    before: dict[int, Any] = {number: signal.signal(number, remember) for number in (signal.SIGINT, signal.SIGTERM)}
    try:
        yield caught
    finally:
        for number, handler in before.items():
            signal.signal(number, handler)
