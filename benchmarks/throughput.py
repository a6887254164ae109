"""Control steps per second of bare physics, of a rollout with a policy, and of whole VAIL iterations.

All three meet the same kind of states: episodes of the initial policy that restart as in training. Bare physics replays
states and controls recorded from such a rollout, and the policy of the full iteration is put back after each one, since
what a robot does decides what its contacts cost.
"""

import dataclasses
import os
import statistics
import tempfile
import time
from collections.abc import Callable
from dataclasses import dataclass
from pathlib import Path
from typing import Any, Literal, NamedTuple

import jax
import mujoco
import numpy as np
from machine import RESULTS, device_slug, load_average
from mujoco import rollout as mujoco_rollout
from rich.console import Console
from rich.table import Table

from vdbjax import command
from vdbjax.data.demonstrations import DemonstrationFile, from_episodes, save
from vdbjax.envs.env import EnvironmentConfig, make_environment
from vdbjax.envs.locomotion import TASKS, load_model
from vdbjax.envs.physics import Frame, Implementation, make_engine, unpack
from vdbjax.recipes import Built, DemonstrationConfig, build, find_recipe
from vdbjax.rl.policy import Act, act_by_sampling
from vdbjax.rl.ppo import plan_batch
from vdbjax.rl.rollout import RolloutState, rollout
from vdbjax.training.devices import root_key, use_all_devices
from vdbjax.training.provenance import provenance, versions
from vdbjax.training.run_dir import write_json
from vdbjax.types import Environment, EnvState, Key

BURN_IN = 128  # control steps that let the episodes fall out of step with one another


@dataclass(frozen=True)
class Options:
    """What to measure."""

    engines: tuple[Literal["c", "mjx"], ...] = ("c",)
    """c: MuJoCo threads on the host; mjx: wherever JAX runs."""
    tasks: tuple[str, ...] = ("hopper",)
    """Tasks by name."""
    num_envs: tuple[int, ...] = (32,)
    """Numbers of environments."""
    impl: Implementation = "jax"
    """What mjx runs on."""
    seconds: float = 5.0
    """How long each measure runs, each time."""
    repeats: int = 3
    """How often each measure runs; they take turns, so that a disturbance does not hit one of them alone."""
    out: Path | None = None
    """File to write. None: benchmarks/results/throughput_DEVICE.json."""

    def __post_init__(self) -> None:
        """Rejects values that cannot work."""
        for task in self.tasks:
            if task not in TASKS:
                raise ValueError(f"unknown task {task!r}; known are {', '.join(TASKS)}")
        if min(*self.num_envs, self.repeats) < 1 or not self.seconds > 0:
            raise ValueError(
                f"num_envs {self.num_envs}, repeats ({self.repeats}) and seconds ({self.seconds}) must be positive"
            )


class Measure(NamedTuple):
    """Something to time: `run()` does `steps` control steps, waits for them, and may show what they gave."""

    run: Callable[[], Any]
    steps: int


class Recorded(NamedTuple):
    """Consecutive control steps of a rollout; every leaf is `[time, num_envs, ...]`."""

    physics: Any  # as in EnvState
    control: Any  # in the task's units


def main() -> None:
    """Measures, prints a table and writes the file."""
    command.main(lambda: _run(command.parse(Options, prog="throughput.py", description=__doc__)))


def _run(options: Options) -> None:
    jax.config.update("jax_enable_compilation_cache", False)  # or compile times would be those of an earlier run
    use_all_devices()
    found = versions()
    out = options.out or RESULTS / f"throughput_{device_slug(found)}.json"
    result = {
        **provenance(found),
        "load_average_before": load_average(),
        "options": {name: value for name, value in dataclasses.asdict(options).items() if name != "out"},
        "measurements": [],
    }
    for engine in options.engines:
        for task in options.tasks:
            for num_envs in options.num_envs:
                result["measurements"].append(measure(options, engine, task, num_envs))
                print(f"measured {engine} {task} x {num_envs}", flush=True)
    out.parent.mkdir(parents=True, exist_ok=True)
    write_json(out, result)
    Console(width=110).print(_table(result["measurements"], found["device"]))
    print(f"wrote {out}")


def measure(options: Options, engine: Literal["c", "mjx"], task: str, num_envs: int) -> dict[str, Any]:
    """One row of the table: medians over the repeats, and their spread."""
    measures = _prepare(options, engine, task, num_envs)
    first_calls = {name: (_seconds(one.run), _seconds(one.run)) for name, one in measures.items()}
    rates: dict[str, list[float]] = {name: [] for name in measures}
    for _ in range(options.repeats):
        for name, one in measures.items():
            rates[name].append(_rate(one, options.seconds))
    ratios = {
        f"{name}_to_bare": statistics.median(a / b for a, b in zip(rates[name], rates["bare"], strict=True))
        for name in rates
        if name != "bare"
    }
    return {
        "engine": engine,
        "implementation": options.impl if engine == "mjx" else "c",
        "task": task,
        "num_envs": num_envs,
        "threads": _threads() if engine == "c" else None,
        "steps_a_call": {name: one.steps for name, one in measures.items()},
        "steps_per_second": {
            name: {"median": statistics.median(all_), "min": min(all_), "max": max(all_), "all": all_}
            for name, all_ in rates.items()
        },
        "compile_seconds": {name: max(0.0, first - second) for name, (first, second) in first_calls.items()},
        **ratios,
    }


def _seconds(run: Callable[[], Any]) -> float:
    start = time.perf_counter()
    run()
    return time.perf_counter() - start


def _rate(one: Measure, seconds: float) -> float:
    start, calls = time.perf_counter(), 0
    while (elapsed := time.perf_counter() - start) < seconds or not calls:
        one.run()
        calls += 1
    return calls * one.steps / elapsed


def _prepare(options: Options, engine: Literal["c", "mjx"], task: str, num_envs: int) -> dict[str, Measure]:
    """The measures of one combination, with the episodes burnt in."""
    with tempfile.TemporaryDirectory() as folder:
        file = Path(folder) / "stand_in.npz"
        config = dataclasses.replace(
            find_recipe("vail"),
            environment=EnvironmentConfig(task, engine, options.impl),
            demonstration=DemonstrationConfig(file),
            num_envs=num_envs,
        )
        _save_stand_in(file, task)
        built = build(config)
    length = plan_batch(config.algorithm.ppo, num_envs).rollout_length
    state = jax.jit(built.algorithm.init)(root_key(0))
    act = act_by_sampling(built.policy, state.actor)
    burnt_in = _burn_in(built.environment, act, state.rollout)
    recorded = jax.jit(lambda state, key: _record(built.environment, act, state, key, length=length))
    bare = _bare_c if engine == "c" else _bare_mjx
    return {
        **bare(task, recorded(burnt_in, root_key(1)), options.impl),
        "rollout": _rollout(built.environment, act, burnt_in, length),
        "full": _full(built, state._replace(rollout=burnt_in), length * num_envs),
    }


def _save_stand_in(path: Path, task: str) -> None:
    """Four episodes of noise: what it costs to learn from demonstrations does not depend on what they show."""
    environment, draw = make_environment(EnvironmentConfig(task, "c")), np.random.default_rng(0)
    steps = environment.episode_length
    observations = [draw.normal(size=(steps + 1, environment.observation_size)) for _ in range(4)]
    actions = [draw.uniform(environment.action_low, environment.action_high, (steps, environment.action_size))] * 4
    episodes = from_episodes(observations, actions, [np.arange(steps)] * 4, [False] * 4)
    save(path, DemonstrationFile(episodes, task, 0.0, "noise"))


def _burn_in(environment: Environment, act: Act, state: RolloutState) -> RolloutState:
    return jax.jit(lambda state, key: rollout(environment, act, state, key, length=BURN_IN)[0])(state, root_key(2))


def _record(environment: Environment, act: Act, state: RolloutState, key: Key, *, length: int) -> Recorded:
    def forward(env: EnvState, key: Key) -> tuple[EnvState, Recorded]:
        key_act, key_env = jax.random.split(key)
        control = act(env.observation, key_act)[2]
        return environment.step(env, control, key_env)[0], Recorded(env.physics, control)

    return jax.lax.scan(forward, state.env, jax.random.split(key, length))[1]


def _bare_c(task: str, recorded: Recorded, implementation: Implementation) -> dict[str, Measure]:
    """`bare` is mujoco.rollout over all recorded steps in one call; `engine` is ours, a batch after the other."""
    model, skip = load_model(TASKS[task]), TASKS[task].frame_skip
    control = np.asarray(recorded.control, np.float64)
    frames = [unpack(bits, model)[0] for bits in np.asarray(recorded.physics)]
    engine = make_engine(model, "c", frame_skip=skip, derived=TASKS[task].derived)

    def advance() -> list[Frame]:
        return [engine.advance(frame, given) for frame, given in zip(frames, control, strict=True)]

    steps = control.shape[0] * control.shape[1]
    return {"bare": Measure(_rollout_in_c(model, frames, control, skip), steps), "engine": Measure(advance, steps)}


def _rollout_in_c(
    model: mujoco.MjModel, frames: list[Frame], control: np.ndarray, skip: int
) -> Callable[[], np.ndarray]:
    qpos, qvel, warmstart = (np.concatenate([frame[i] for frame in frames]) for i in range(3))
    start = np.concatenate([np.zeros((len(qpos), 1)), qpos, qvel], axis=1)  # time, qpos, qvel: MuJoCo's full state
    held = np.repeat(control.reshape(len(start), 1, -1), skip, axis=1)
    state = np.empty((len(start), skip, start.shape[1]))
    sensors = np.empty((len(start), skip, model.nsensordata))
    pool = mujoco_rollout.Rollout(nthread=_threads())
    data = [mujoco.MjData(model) for _ in range(_threads())]

    def advance() -> np.ndarray:
        pool.rollout(model, data, start, held, nstep=skip, initial_warmstart=warmstart, state=state, sensordata=sensors)
        return state[:, -1]

    return advance


def _threads() -> int:
    """As many as engine c takes."""
    return len(os.sched_getaffinity(0)) if hasattr(os, "sched_getaffinity") else os.cpu_count() or 1


def _bare_mjx(task: str, recorded: Recorded, implementation: Implementation) -> dict[str, Measure]:
    """A compiled scan of MJX's steps and nothing else; it gives all that a step gives, so nothing is left out."""
    model = load_model(TASKS[task])
    engine = make_engine(
        model, "mjx", frame_skip=TASKS[task].frame_skip, derived=TASKS[task].derived, implementation=implementation
    )
    frames, _ = recorded.physics
    scan = jax.jit(lambda given: jax.lax.scan(lambda _, step: (None, engine.advance(*step)), None, given)[1])
    steps = recorded.control.shape[0] * recorded.control.shape[1]
    return {"bare": Measure(lambda: jax.block_until_ready(scan((frames, recorded.control))), steps)}


def _rollout(environment: Environment, act: Act, state: RolloutState, length: int) -> Measure:
    step = jax.jit(lambda state, key: rollout(environment, act, state, key, length=length))
    return Measure(_going_on(lambda state, i: step(state, root_key(i))[0], state), length * len(state.episode_return))


def _full(built: Built, state: Any, steps: int) -> Measure:
    """Iterations as the training loop runs them, metrics fetched; the initial policy and discriminator are put back."""
    update = jax.jit(lambda state: jax.lax.scan(built.algorithm.update, state, None, length=1))

    def iterate(before: Any, _: int) -> Any:
        after, metrics = update(before)
        jax.device_get(metrics)
        return after._replace(agent=state.agent, discriminator=state.discriminator)

    return Measure(_going_on(iterate, state), steps)


def _going_on(step: Callable[[Any, int], Any], state: Any) -> Callable[[], None]:
    """Calls of `step(state, call)` that go on from one another, each waited for."""
    calls = iter(range(2**31))

    def run() -> None:
        nonlocal state
        state = jax.block_until_ready(step(state, next(calls)))

    return run


def _table(measurements: list[dict[str, Any]], device: str) -> Table:
    table = Table(title=f"control steps per second on {device}: median, ± half the spread")
    for heading in ("engine", "task", "envs", "bare", "engine alone", "rollout", "full VAIL", "full/bare", "compile s"):
        table.add_column(heading, justify="left" if heading in ("engine", "task") else "right")
    for row in measurements:
        rates = {
            name: f"{rate['median']:,.0f} ±{(rate['max'] - rate['min']) / 2 / rate['median']:.0%}"
            for name, rate in row["steps_per_second"].items()
        }
        cells = (rates.get(name, "") for name in ("bare", "engine", "rollout", "full"))
        engine = row["engine"] if row["engine"] == "c" else f"mjx-{row['implementation']}"
        ratio, compiled = f"{row['full_to_bare']:.2f}", f"{row['compile_seconds']['full']:.1f}"
        table.add_row(engine, row["task"], f"{row['num_envs']:,}", *cells, ratio, compiled)
    return table


if __name__ == "__main__":
    main()
