"""Control steps per second of bare physics, of a rollout with a policy, and of whole iterations.

All meet the same kind of states: episodes of the initial policy that restart as in training. Bare physics replays
states and controls recorded from such a rollout, and the policy of the full iteration is put back after each one, since
what a robot does decides what its contacts cost.
"""

import dataclasses
import statistics
import tempfile
import time
from collections.abc import Callable
from concurrent.futures import ThreadPoolExecutor
from dataclasses import dataclass
from pathlib import Path
from typing import Any, Literal, NamedTuple

import jax
import mujoco
import numpy as np
from machine import begin
from mujoco import rollout as mujoco_rollout
from rich.console import Console
from rich.table import Table

from vdbjax import command, limits
from vdbjax.build import Built, build
from vdbjax.compiler import compiler_options
from vdbjax.data.demonstrations import DemonstrationFile, from_episodes, save
from vdbjax.data.mocap import find_clip
from vdbjax.envs.engine_c import count_threads
from vdbjax.envs.env import EnvironmentConfig, make_environment
from vdbjax.envs.frame import Frame, Implementation, unpack
from vdbjax.envs.humanoid_model import CONTROL_HZ, make_model
from vdbjax.envs.locomotion import TASKS, load_model
from vdbjax.envs.mocap_humanoid import MotionState, make_mocap
from vdbjax.envs.physics import make_engine
from vdbjax.recipes import find_recipe
from vdbjax.rl.policy import Act, act_by_sampling
from vdbjax.rl.ppo import plan_batch
from vdbjax.rl.rollout import RolloutState, rollout
from vdbjax.run_config import DemonstrationConfig
from vdbjax.training.devices import root_key, use_all_devices
from vdbjax.types import Environment, EnvState, Key

MOCAP = "mocap/"
BURN_IN = 128  # control steps that let the episodes fall out of step with one another


@dataclass(frozen=True)
class Options:
    """What to measure."""

    engines: tuple[Literal["c", "mjx"], ...] = ("c",)
    """c: MuJoCo threads on the host; mjx: wherever JAX runs."""
    tasks: tuple[str, ...] = ("hopper",)
    """Tasks by name; mocap/CLIP too, whose iterations are those of motion-vail and motion-tracking."""
    substeps: tuple[int, ...] = (4,)
    """Physics steps a control step (1/30 s) of mocap/CLIP; other tasks have their own."""
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
            if task.startswith(MOCAP):
                find_clip(task.removeprefix(MOCAP))
            else:
                limits.known("task", [*TASKS, f"{MOCAP}CLIP"], task)
        limits.not_empty(self, "--tasks", "--num-envs", "--substeps")
        limits.at_least(1, self, "--num-envs", "--substeps", "--repeats")
        limits.positive(self, "--seconds")


class Workload(NamedTuple):
    """One combination to measure."""

    engine: Literal["c", "mjx"]
    implementation: Implementation
    task: str
    num_envs: int
    substeps: int  # physics steps a control step


class Physics(NamedTuple):
    """What a task hands to an engine."""

    model: mujoco.MjModel
    frame_skip: int
    derived: tuple[str, ...]
    cold_start: bool


class Measure(NamedTuple):
    """Something to time: `run()` does `steps` control steps, waits for them, and may show what they gave."""

    run: Callable[[], Any]
    steps: int


class Recorded(NamedTuple):
    """Consecutive control steps of a rollout; every leaf is `[time, num_envs, ...]`."""

    physics: Any  # as in EnvState
    control: Any  # in the task's units


def main(options: Options) -> None:
    """Measures, prints a table and writes the file."""
    jax.config.update("jax_enable_compilation_cache", False)  # or compile times would be those of an earlier run
    use_all_devices()
    report = begin("throughput", options, options.out)
    rows = []
    for engine in options.engines:
        for task in options.tasks:
            for substeps in options.substeps if task.startswith(MOCAP) else (TASKS[task].frame_skip,):
                for num_envs in options.num_envs:
                    workload = Workload(engine, options.impl, task, num_envs, substeps)
                    rows.append(measure(options, workload))
                    print(f"measured {engine} {task} x {num_envs}, {substeps} substeps", flush=True)
    Console(width=140).print(_table(rows, report.origin["device"]))
    report.write({"measurements": rows})


def measure(options: Options, workload: Workload) -> dict[str, Any]:
    """One row of the table: medians over the repeats, and their spread."""
    measures, compile_seconds = _prepare(workload)
    print(f"compiled {workload.engine} {workload.task} x {workload.num_envs}, measuring", flush=True)
    for one in measures.values():
        one.run()
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
        **workload._asdict(),
        "implementation": workload.implementation if workload.engine == "mjx" else "c",
        "threads": count_threads() if workload.engine == "c" else None,
        "steps_a_call": {name: one.steps for name, one in measures.items()},
        "steps_per_second": {
            name: {"median": statistics.median(all_), "min": min(all_), "max": max(all_), "all": all_}
            for name, all_ in rates.items()
        },
        "compile_seconds": compile_seconds,
        **ratios,
    }


def _rate(one: Measure, seconds: float) -> float:
    start, calls = time.perf_counter(), 0
    while (elapsed := time.perf_counter() - start) < seconds or not calls:
        one.run()
        calls += 1
    return calls * one.steps / elapsed


def _prepare(workload: Workload) -> tuple[dict[str, Measure], dict[str, float]]:
    """The measures of one combination, with the episodes burnt in, and the seconds that each took to compile.

    All compile at the same time, which is what a machine of many cores is for: MJX takes minutes.
    """
    learners = dict(zip(("full", "tracking"), _learners(workload), strict=False))
    vail = learners["full"]
    length = plan_batch(find_recipe(_recipes(workload.task)[0]).algorithm.ppo, workload.num_envs).rollout_length
    steps = length * workload.num_envs
    states = {name: jax.jit(built.algorithm.init)(root_key(0)) for name, built in learners.items()}
    state = states["full"]
    act = act_by_sampling(vail.policy, state.actor)
    physics = _physics(workload.task, workload.substeps)

    def step(state: RolloutState, key: Key) -> RolloutState:
        return rollout(vail.environment, act, state, key, length=length)[0]

    def record(state: RolloutState, key: Key) -> Recorded:
        return _record(vail.environment, act, state, key, length=length)

    wanted: dict[str, tuple[Callable[..., Any], tuple[Any, ...]]] = {
        "rollout": (step, (state.rollout, root_key(0))),
        "record": (record, (state.rollout, root_key(0))),
        **{name: (_iteration(built), (states[name],)) for name, built in learners.items()},
    }
    if workload.engine == "mjx":
        scan = _bare_mjx(physics, workload)
        wanted["bare"] = (scan, (jax.eval_shape(record, state.rollout, root_key(0)),))
    compiled, seconds = _compiled(wanted)
    burnt_in = state.rollout
    for i in range(-(-BURN_IN // length)):
        burnt_in = compiled["rollout"](burnt_in, root_key(i))
    recording = compiled["record"](burnt_in, root_key(1))
    if workload.engine == "c":
        bare = _bare_c(physics, recording)
    else:
        bare = {"bare": Measure(lambda: jax.block_until_ready(compiled["bare"](recording)), steps)}
    going = {"rollout": _going_on(lambda state, i: compiled["rollout"](state, root_key(i)), burnt_in)}
    going |= {name: _full(compiled[name], states[name]._replace(rollout=burnt_in)) for name in learners}
    return {**bare, **{name: Measure(run, steps) for name, run in going.items()}}, seconds


def _compiled(
    wanted: dict[str, tuple[Callable[..., Any], tuple[Any, ...]]],
) -> tuple[dict[str, Callable[..., Any]], dict[str, float]]:
    """Executables of functions at these arguments, and the seconds from the start to the end of each."""
    lowered = {name: jax.jit(function).lower(*arguments) for name, (function, arguments) in wanted.items()}
    start, seconds = time.perf_counter(), {}

    def compile_one(name: str) -> Callable[..., Any]:
        found = lowered[name].compile(compiler_options={**compiler_options()})
        seconds[name] = time.perf_counter() - start
        return found

    with ThreadPoolExecutor(len(lowered)) as pool:
        return dict(zip(lowered, pool.map(compile_one, lowered), strict=True)), seconds


def _recipes(task: str) -> tuple[str, ...]:
    """VAIL first."""
    return ("motion-vail", "motion-tracking") if task.startswith(MOCAP) else ("vail",)


def _learners(workload: Workload) -> list[Built]:
    """The recipes on the task; those of a motion share its environment."""
    place = EnvironmentConfig(workload.task, workload.engine, workload.implementation)
    configs = [
        dataclasses.replace(find_recipe(name), environment=place, num_envs=workload.num_envs)
        for name in _recipes(workload.task)
    ]
    if workload.task.startswith(MOCAP):
        environment = make_mocap(
            workload.task.removeprefix(MOCAP),
            engine=workload.engine,
            implementation=workload.implementation,
            physics_hz=CONTROL_HZ * workload.substeps,
        )
        return [build(config, environment=environment) for config in configs]
    with tempfile.TemporaryDirectory() as folder:
        file = Path(folder) / "stand_in.npz"
        _save_stand_in(file, workload.task)
        return [build(dataclasses.replace(config, demonstration=DemonstrationConfig(file))) for config in configs]


def _physics(task: str, substeps: int) -> Physics:
    if not task.startswith(MOCAP):
        return Physics(load_model(TASKS[task]), substeps, TASKS[task].derived, False)
    model = make_model()
    model.opt.timestep = 1 / (CONTROL_HZ * substeps)
    return Physics(model, substeps, (), True)


def _save_stand_in(path: Path, task: str) -> None:
    """Four episodes of noise: what it costs to learn from demonstrations does not depend on what they show."""
    environment, draw = make_environment(EnvironmentConfig(task, "c")), np.random.default_rng(0)
    steps = environment.episode_length
    observations = [draw.normal(size=(steps + 1, environment.observation_size)) for _ in range(4)]
    actions = [draw.uniform(environment.action_low, environment.action_high, (steps, environment.action_size))] * 4
    episodes = from_episodes(observations, actions, [np.arange(steps)] * 4, [False] * 4)
    save(path, DemonstrationFile(episodes, task, 0.0, "noise"))


def _record(environment: Environment, act: Act, state: RolloutState, key: Key, *, length: int) -> Recorded:
    def forward(env: EnvState, key: Key) -> tuple[EnvState, Recorded]:
        key_act, key_env = jax.random.split(key)
        control = act(env.observation, key_act)[2]
        return environment.step(env, control, key_env)[0], Recorded(env.physics, control)

    return jax.lax.scan(forward, state.env, jax.random.split(key, length))[1]


def _bare_c(physics: Physics, recorded: Recorded) -> dict[str, Measure]:
    """`bare` is mujoco.rollout over all recorded steps in one call; `engine` is ours, a batch after the other."""
    model, skip, derived, cold = physics
    control = np.asarray(recorded.control, np.float64)
    words = recorded.physics.frame if isinstance(recorded.physics, MotionState) else recorded.physics
    frames = [unpack(bits, model)[0] for bits in np.asarray(words)]
    engine = make_engine(model, "c", frame_skip=skip, derived=derived, cold_start=cold)

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
    pool = mujoco_rollout.Rollout(nthread=count_threads())
    data = [mujoco.MjData(model) for _ in range(count_threads())]

    def advance() -> np.ndarray:
        pool.rollout(model, data, start, held, nstep=skip, initial_warmstart=warmstart, state=state, sensordata=sensors)
        return state[:, -1]

    return advance


def _bare_mjx(physics: Physics, workload: Workload) -> Callable[[Recorded], Any]:
    """A scan of MJX's steps and nothing else; it gives all that a step gives, so nothing is left out."""
    model, skip, derived, cold = physics
    engine = make_engine(
        model,
        "mjx",
        frame_skip=skip,
        derived=derived,
        cold_start=cold,
        implementation=workload.implementation,
    )

    def scan(recorded: Recorded) -> Any:
        frames = recorded.physics.frame if isinstance(recorded.physics, MotionState) else recorded.physics[0]
        return jax.lax.scan(lambda _, step: (None, engine.advance(*step)), None, (frames, recorded.control))[1]

    return scan


def _iteration(built: Built) -> Callable[[Any], tuple[Any, Any]]:
    return lambda state: jax.lax.scan(built.algorithm.update, state, None, length=1)


def _full(update: Callable[[Any], tuple[Any, Any]], state: Any) -> Callable[[], None]:
    """Iterations as the training loop runs them, metrics fetched; the initial policy and discriminator are put back."""
    learners = {name: getattr(state, name) for name in ("agent", "discriminator") if hasattr(state, name)}

    def iterate(before: Any, _: int) -> Any:
        after, metrics = update(before)
        jax.device_get(metrics)
        return after._replace(**learners)

    return _going_on(iterate, state)


def _going_on(step: Callable[[Any, int], Any], state: Any) -> Callable[[], None]:
    """Calls of `step(state, call)` that go on from one another, each waited for."""
    calls = iter(range(2**31))

    def run() -> None:
        nonlocal state
        state = jax.block_until_ready(step(state, next(calls)))

    return run


def _table(measurements: list[dict[str, Any]], device: str) -> Table:
    table = Table(title=f"control steps per second on {device}: median, ± half the spread")
    headings = ("engine", "task", "substeps", "envs", "bare", "engine alone", "rollout", "full VAIL", "tracking")
    for heading in (*headings, "full/bare", "compile s"):
        table.add_column(heading, justify="left" if heading in ("engine", "task") else "right")
    for row in measurements:
        rates = {
            name: f"{rate['median']:,.0f} ±{(rate['max'] - rate['min']) / 2 / rate['median']:.0%}"
            for name, rate in row["steps_per_second"].items()
        }
        cells = (rates.get(name, "") for name in ("bare", "engine", "rollout", "full", "tracking"))
        engine = row["engine"] if row["engine"] == "c" else f"mjx-{row['implementation']}"
        ratio, compiled = f"{row['full_to_bare']:.2f}", f"{row['compile_seconds']['full']:.1f}"
        table.add_row(engine, row["task"], str(row["substeps"]), f"{row['num_envs']:,}", *cells, ratio, compiled)
    return table


if __name__ == "__main__":
    command.main(lambda: main(command.parse(Options, prog="throughput.py", description=__doc__)))
