"""Many devices and many processes are one: the same numbers as on one, and every process agrees on what to do next."""

import dataclasses
import json
import os
import socket
import subprocess
import sys
from pathlib import Path

import jax
import numpy as np
import pytest

from vdbjax.build import build
from vdbjax.data.demonstrations import DemonstrationFile, from_episodes, save
from vdbjax.envs.env import EnvironmentConfig
from vdbjax.recipes import RECIPES
from vdbjax.run_config import RunConfig
from vdbjax.training import devices
from vdbjax.training.devices import available_bytes, largest_over_processes, root_key, start_processes
from vdbjax.training.loop import train
from vdbjax.training.run_dir import RunDir, create_run, open_run, read_metrics

NUM_ENVS = 4
STEPS = 8
ITERATIONS = 3


@pytest.fixture(scope="module")
def demonstrations(tmp_path_factory) -> Path:
    """Two episodes of noise, of the hopper's sizes."""
    draw = np.random.default_rng(0)
    observations = [draw.normal(size=(n + 1, 11)) for n in (60, 40)]
    actions = [draw.uniform(-1, 1, size=(n, 3)) for n in (60, 40)]
    path = tmp_path_factory.mktemp("demonstrations") / "hopper.npz"
    made = from_episodes(observations, actions, [np.ones(60), np.ones(40)], [False, True])
    save(path, DemonstrationFile(made, "hopper", 0.0, "noise"))
    return path


def tiny_vail(demonstrations: Path, *, iterations: int = ITERATIONS, num_envs: int = NUM_ENVS) -> RunConfig:
    config = RECIPES["vail"].config
    algorithm = dataclasses.replace(
        config.algorithm,
        ppo=dataclasses.replace(
            config.algorithm.ppo, num_epochs=1, minibatch_size=16, rollout_length=STEPS, hidden_sizes=(8, 8)
        ),
        discriminator=dataclasses.replace(config.algorithm.discriminator, hidden_sizes=(8,), batch_size=16),
    )
    return dataclasses.replace(
        config,
        algorithm=algorithm,
        environment=EnvironmentConfig("hopper", engine="c"),
        demonstration=dataclasses.replace(config.demonstration, demonstrations=demonstrations, trajectories=2),
        num_envs=num_envs,
        total_steps=iterations * NUM_ENVS * STEPS,
        evaluations=1,
        eval_episodes=2,
        checkpoint_seconds=0.0,
    )


TYPED = f"""--engine c --trajectories 2 --num-envs {NUM_ENVS} --ppo.num-epochs 1 --ppo.minibatch-size 16
  --ppo.rollout-length {STEPS} --ppo.hidden-sizes 8 8 --discriminator.hidden-sizes 8 --discriminator.batch-size 16
  --evaluations 1 --eval-episodes 2 --checkpoint-seconds 0 --total-steps {ITERATIONS * NUM_ENVS * STEPS}""".split()
"""The same on the command line."""


def lines_of(run: RunDir) -> list[dict]:
    return [{name: value for name, value in line.items() if name != "seconds"} for line in read_metrics(run)]


def assert_close(found: list[dict], expected: list[dict]) -> None:
    assert [line.keys() for line in found] == [line.keys() for line in expected]
    for line, other in zip(found, expected, strict=True):
        for name, value in line.items():
            message = f"{name} in iteration {line['iteration']}"
            np.testing.assert_allclose(value, other[name], rtol=2e-3, atol=2e-4, err_msg=message)


@pytest.fixture(scope="module")
def on_one_device(demonstrations, tmp_path_factory) -> RunDir:
    """The run that the others are held against."""
    run = create_run(tmp_path_factory.mktemp("one") / "run", {})
    built = build(tiny_vail(demonstrations))
    train(built.algorithm, run, built.schedule, root_key(0))
    return run


def train_counting(config: RunConfig, run: RunDir, *, resume: bool = False) -> tuple:
    """The last state, and how often the update was traced."""
    built, traces = build(config), []

    def update(state, batch):
        traces.append(1)
        return built.algorithm.update(state, batch)

    state, _ = train(built.algorithm._replace(update=update), run, built.schedule, root_key(0), resume=resume)
    return state, len(traces)


@pytest.mark.long
def test_two_devices_give_the_numbers_of_one(demonstrations, on_one_device, two_devices, tmp_path) -> None:
    """Also where the run is resumed; each process compiles its update once."""
    run, config = create_run(tmp_path / "run", {}), tiny_vail(demonstrations)
    built = build(config)
    # The schedule alone is cut, not the config, whose learning rate falls over the whole run.
    train(built.algorithm, run, dataclasses.replace(built.schedule, num_iterations=1, evaluations=0), root_key(0))
    state, traces = train_counting(config, run, resume=True)
    assert traces == 1
    # The episodes really lie on both devices.
    assert len(state.rollout.env.observation.sharding.device_set) == 2
    assert {shard.data.shape[0] for shard in state.rollout.env.observation.addressable_shards} == {NUM_ENVS // 2}
    found = lines_of(run)
    # That first part ended with an evaluation, as every end does.
    found[0] = {name: value for name, value in found[0].items() if not name.startswith("eval/")}
    assert_close(found, lines_of(on_one_device))


def test_environments_must_divide_over_the_devices(demonstrations, two_devices) -> None:
    with pytest.raises(ValueError, match=r"num_envs \(5\) must be divisible by the number of devices \(2\)"):
        build(tiny_vail(demonstrations, num_envs=5))


MANY = """
import jax
from vdbjax.envs.env import EnvironmentConfig, make_environment
from vdbjax.training.devices import start_processes, use_all_devices

start_processes()
use_all_devices()
environment = make_environment(EnvironmentConfig("hopper", engine="c"))
action = jax.numpy.zeros((4096, 3))
step = lambda state, key: (environment.step(state, action, key)[0], None)
steps = jax.jit(lambda state, keys: jax.lax.scan(step, state, keys)[0])
state = jax.jit(lambda key: environment.reset(key, 4096))(jax.random.key(0))
print(steps(state, jax.random.split(jax.random.key(1), 10)).observation.sharding.shard_shape((4096, 11)))
"""


@pytest.mark.slow
def test_large_callbacks_on_all_cores_do_not_wait_for_each_other() -> None:
    """As many devices as cores, and arrays so large that the threads which the callbacks hold must copy them."""
    count = 2 ** max(1, (os.cpu_count() or 1) - 1).bit_length()  # at least the cores, and a divisor of 4,096
    environment = {**os.environ, "JAX_NUM_CPU_DEVICES": str(count)}
    environment.pop("PJRT_NPROC", None)
    done = subprocess.run(
        [sys.executable, "-c", MANY], env=environment, capture_output=True, text=True, timeout=300, check=False
    )
    assert done.stdout == f"({4096 // count}, 11)\n", done.stderr


@pytest.mark.parametrize(("cores", "num_devices", "threads"), [(1, 1, "2"), (2, 1, "2"), (2, 2, "3"), (8, 2, "8")])
def test_a_thread_stays_free(monkeypatch, started, cores, num_devices, threads) -> None:
    monkeypatch.setattr("os.cpu_count", lambda: cores)
    monkeypatch.setattr(type(jax.config), "jax_num_cpu_devices", num_devices)
    start_processes()
    assert os.environ["PJRT_NPROC"] == threads


def _free_port() -> int:
    with socket.socket() as server:
        server.bind(("localhost", 0))
        return server.getsockname()[1]


@pytest.mark.slow
def test_two_processes_train_together(demonstrations, on_one_device, tmp_path) -> None:
    out = tmp_path / "run"
    command = [sys.executable, "-m", "vdbjax.train", "vail", *TYPED]
    command += ["--demonstrations", str(demonstrations), "--out", str(out)]
    job = {"JAX_COORDINATOR_ADDRESS": f"localhost:{_free_port()}", "JAX_NUM_PROCESSES": "2", "JAX_NUM_CPU_DEVICES": "1"}
    processes = [
        subprocess.Popen(
            command,
            env={**os.environ, **job, "JAX_PROCESS_ID": str(index)},
            stdout=subprocess.PIPE,
            stderr=subprocess.PIPE,
            text=True,
        )
        for index in range(2)
    ]
    try:
        said = [process.communicate(timeout=600) for process in processes]
    finally:
        for process in processes:
            process.kill()
    assert [process.returncode for process in processes] == [0, 0], said
    first, second = said
    assert "2 x cpu" in first[0]
    assert "curves.png" in first[0]
    assert "iteration 3/3" in first[1]
    assert second[0].replace("[Gloo]", "").count("vail on hopper") == 0
    assert "iteration" not in second[1]
    run, content = open_run(out)
    assert content["facts"]["devices"] == 2
    assert len(list(out.glob("events.*"))) == 1
    assert [line["iteration"] for line in read_metrics(run)] == [1, 2, 3]
    assert_close(lines_of(run), lines_of(on_one_device))


JOBS = {
    "nothing": ({}, None),
    "all three": (
        {"JAX_COORDINATOR_ADDRESS": "host:1", "JAX_NUM_PROCESSES": "4", "JAX_PROCESS_ID": "3"},
        (("host:1",), {"num_processes": 4, "process_id": 3}),
    ),
    "one Slurm task": ({"SLURM_NTASKS": "1"}, None),
    "Slurm": ({"SLURM_NTASKS": "2"}, ((), {})),
    "Open MPI": ({"OMPI_COMM_WORLD_SIZE": "2"}, ((), {})),
}


@pytest.fixture
def started(monkeypatch) -> list:
    """What `jax.distributed.initialize` was called with."""
    calls: list = []
    monkeypatch.setattr("jax.distributed.initialize", lambda *a, **k: calls.append((a, k)))
    for name in (*devices.PROCESS_VARIABLES, "SLURM_NTASKS", "OMPI_COMM_WORLD_SIZE", "PJRT_NPROC"):
        monkeypatch.delenv(name, raising=False)
    return calls


@pytest.mark.parametrize(("environment", "expected"), JOBS.values(), ids=JOBS.keys())
def test_processes_start_where_the_environment_describes_them(monkeypatch, started, environment, expected) -> None:
    for name, value in environment.items():
        monkeypatch.setenv(name, value)
    start_processes()
    assert started == ([expected] if expected else [])


def test_half_a_description_is_refused(monkeypatch, started) -> None:
    monkeypatch.setenv("JAX_COORDINATOR_ADDRESS", "host:1")
    monkeypatch.setenv("JAX_PROCESS_ID", "0")
    with pytest.raises(ValueError, match="JAX_PROCESS_ID is set, but JAX_NUM_PROCESSES is not"):
        start_processes()
    assert started == []


def test_one_process_agrees_with_itself() -> None:
    assert largest_over_processes(3, 0, True) == [3, 0, True]


@pytest.mark.parametrize("seed", [-1, 2**32])
def test_seeds_out_of_range(seed) -> None:
    with pytest.raises(ValueError, match=rf"seed \({seed}\) must lie between 0 and 4294967295"):
        root_key(seed)


def test_seeds_at_the_edge_differ() -> None:
    keys = [jax.random.key_data(root_key(seed)).tolist() for seed in (0, 1, 2**31, 2**32 - 1)]
    assert len({json.dumps(key) for key in keys}) == 4


def test_free_memory_is_that_of_this_machine() -> None:
    total = os.sysconf("SC_PAGE_SIZE") * os.sysconf("SC_PHYS_PAGES")
    assert 2**26 < available_bytes() <= total


def test_accelerators_count_what_they_have_left(monkeypatch) -> None:
    class Accelerator:
        def memory_stats(self) -> dict:
            return {"bytes_limit": 1000, "bytes_in_use": 100}

    monkeypatch.setattr("jax.local_devices", lambda: [Accelerator(), Accelerator()])
    assert available_bytes() == 1800
