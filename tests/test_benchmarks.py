"""The benchmark scripts run, and what they time is what they say."""

import importlib
import json
import os
import re
import subprocess
import sys
from pathlib import Path
from types import SimpleNamespace

import jax
import numpy as np
import pytest

from vdbjax.recipes import find_recipe

BENCHMARKS = Path(__file__).parents[1] / "benchmarks"

STEPS = 100
LINES = [  # the first takes 5 s longer, which is compilation, and the evaluations take 2 s each
    {"iteration": 1, "env_steps": 1 * STEPS, "seconds": 6.0},
    {"iteration": 2, "env_steps": 2 * STEPS, "seconds": 7.0},
    {"iteration": 3, "env_steps": 3 * STEPS, "seconds": 10.0, "eval/return": 50.0},
    {"iteration": 4, "env_steps": 4 * STEPS, "seconds": 11.0},
    {"iteration": 5, "env_steps": 5 * STEPS, "seconds": 14.0, "eval/return": 90.0},
]


def load(name: str, monkeypatch):
    monkeypatch.syspath_prepend(str(BENCHMARKS))
    return importlib.import_module(name)


def run_script(name: str, *arguments: str, cwd: Path) -> subprocess.CompletedProcess:
    return subprocess.run(
        [sys.executable, str(BENCHMARKS / name), *arguments],
        cwd=cwd,
        env={**os.environ, "PYTHONPATH": str(BENCHMARKS.parent)},
        capture_output=True,
        text=True,
        timeout=600,
    )


@pytest.mark.slow
def test_throughput_of_a_tiny_workload(tmp_path):
    out = tmp_path / "throughput.json"
    options = ["--num-envs", "128", "--seconds", "0.05", "--repeats", "2", "--out", str(out)]
    run = run_script("throughput.py", *options, cwd=tmp_path)
    assert run.returncode == 0, run.stderr[-4000:]
    result = json.loads(out.read_text())
    assert {"date", "commit", "device", "versions", "load_average_before"} <= result.keys()
    (row,) = result["measurements"]
    assert (row["engine"], row["task"], row["num_envs"]) == ("c", "hopper", 128)
    assert row["steps_per_second"].keys() == {"bare", "engine", "rollout", "full"}
    for rates in row["steps_per_second"].values():
        assert 0 < rates["min"] <= rates["median"] <= rates["max"]
        assert len(rates["all"]) == 2
    assert row["compile_seconds"].keys() == {"rollout", "record", "full"}  # MuJoCo's own C is compiled already
    assert min(row["compile_seconds"].values()) > 0
    assert "full/bare" in run.stdout


@pytest.mark.slow
def test_throughput_of_a_motion(tmp_path):
    from made_clip import swinging

    clip, out = swinging(tmp_path), tmp_path / "throughput.json"
    options = ["--tasks", f"mocap/{clip}", "--num-envs", "32", "--substeps", "4", "8", "--out", str(out)]
    run = run_script("throughput.py", *options, "--seconds", "0.05", "--repeats", "1", cwd=tmp_path)
    assert run.returncode == 0, run.stderr[-4000:]
    rows = json.loads(out.read_text())["measurements"]
    assert [row["substeps"] for row in rows] == [4, 8]
    for row in rows:
        assert row["steps_per_second"].keys() == {"bare", "engine", "rollout", "full", "tracking"}
        assert 0 < row["full_to_bare"] < 1


def test_coder_throughput_of_few_symbols(tmp_path):
    out = tmp_path / "coder.json"
    run = run_script(
        "coder_throughput.py", "--symbols", "5000", "--lanes", "512", "--repeats", "2", "--out", str(out), cwd=tmp_path
    )
    assert run.returncode == 0, run.stderr[-4000:]
    result = json.loads(out.read_text())
    assert {"date", "commit", "device", "versions", "load_average_before"} <= result.keys()
    ours, theirs = result["bits_back_job"]["ours"], result["bits_back_job"]["constriction"]
    assert ours["bits_a_symbol"] == pytest.approx(14.05, abs=0.1)
    assert ours["bits_over_ideal"] < theirs["bits_over_ideal"]
    for row in result["sweep"]:
        assert abs(row["bits_over_ideal"]) < 2e-3  # the noise of 5,000 symbols
        assert min(row["encode_ns"], row["decode_ns"]) > 0


@pytest.mark.parametrize("mutations", [300, pytest.param(10_000, marks=pytest.mark.slow)], ids=["few", "ten thousand"])
def test_changed_files_end_in_an_error_or_in_the_exact_pixels(mutations, tmp_path):
    run = run_script("fuzz_container.py", "--mutations", str(mutations), cwd=tmp_path)
    assert run.returncode == 0, run.stdout + run.stderr[-4000:]
    assert "refused: ContainerError" in run.stdout


NAMED = re.findall(r"^## (\S+\.py)$", (BENCHMARKS / "README.md").read_text(), re.MULTILINE)


@pytest.mark.long
def test_coding_a_flow_is_timed_beside_its_passes(monkeypatch):
    from made_flow import made_flow

    coding_time, trained = load("coding_time", monkeypatch), made_flow()
    pixels = np.random.default_rng(0).integers(0, 256, (2, *trained.model.image_shape))
    rows = coding_time.compositional(SimpleNamespace(repeats=1), trained, pixels)
    rows += coding_time.black_box(trained, pixels[:1])
    whole = ["black box, encode", "black box, decode"]
    assert [row["what"] for row in rows] == ["network alone", "encode", "decode", *whole]
    assert all(row["processor"] > 0 for row in rows)


def test_its_page_names_every_benchmark():
    scripts = {path.name for path in BENCHMARKS.glob("*.py") if "command.parse(" in path.read_text()}
    assert sorted(NAMED) == sorted(scripts)


@pytest.mark.long
@pytest.mark.parametrize("script", NAMED)
def test_help(script, tmp_path):
    run = run_script(script, "--help", cwd=tmp_path)
    assert run.returncode == 0, run.stderr[-4000:]
    assert run.stdout.startswith(f"usage: {script}")


def test_bad_input_is_one_line(tmp_path):
    run = run_script("throughput.py", "--tasks", "hoper", cwd=tmp_path)
    assert (run.returncode, run.stdout) == (2, "")
    assert run.stderr.startswith("error: ")
    assert "unknown task 'hoper'" in run.stderr


def test_both_bare_measures_do_the_same_physics(monkeypatch):
    throughput = load("throughput", monkeypatch)
    from vdbjax.envs.locomotion import make_locomotion
    from vdbjax.types import EnvState

    environment = make_locomotion("hopper", engine="c")

    def record(env: EnvState, key):
        control = jax.random.uniform(key, (3, environment.action_size), minval=-1.0)
        return environment.step(env, control, key)[0], throughput.Recorded(env.physics, control)

    start, keys = environment.reset(jax.random.key(0), 3), jax.random.split(jax.random.key(1), 60)
    final, recorded = jax.lax.scan(record, start, keys)
    assert int(final.elapsed.min()) < 60  # at least one episode restarted on the way
    measures = throughput._bare_c(throughput._physics("hopper", 4), recorded)
    assert {measure.steps for measure in measures.values()} == {180}
    ours = np.concatenate([np.concatenate([frame.qpos, frame.qvel], axis=1) for frame in measures["engine"].run()])
    np.testing.assert_allclose(measures["bare"].run()[:, 1:], ours, rtol=0, atol=1e-9)


def test_timings_leave_evaluations_out(monkeypatch):
    timings = load("timings", monkeypatch)
    assert timings.steps_per_second(LINES) == pytest.approx(STEPS / 1.0)
    assert timings.training_seconds(LINES) == pytest.approx([6.0, 7.0, 8.0, 9.0, 10.0])
    found = timings.timings(LINES, start_up=3.0, goal=90.0)
    assert found["seconds_to_90_percent"] == pytest.approx(13.0)
    assert found["env_steps_to_90_percent"] == 5 * STEPS
    assert timings.timings(LINES, start_up=3.0, goal=90.1)["seconds_to_90_percent"] is None


def test_too_few_iterations_cannot_be_timed(monkeypatch):
    with pytest.raises(ValueError, match="1 iterations are too few"):
        load("timings", monkeypatch).steps_per_second(LINES[:1])


def test_narrow_vaes_are_what_the_train_command_takes(monkeypatch):
    from vdbjax.train import _parse

    narrow = load("narrow_vae", monkeypatch).narrow
    for size, deep, layers in ((14, False, 5), (32, False, 7), (14, True, 28)):
        config = _parse("vdvae-small", ["--data", "images.npz", *narrow(size, deep=deep)]).run
        assert (config.size, config.algorithm.resolutions[-1]) == (size, size)
        assert sum(config.algorithm.layers) == layers
    with pytest.raises(ValueError, match=r"size \(15\) must be one of 14, 32"):
        narrow(15)
    with pytest.raises(ValueError, match=r"size \(32\) must be one of 14"):
        narrow(32, deep=True)


def test_what_counts_as_unstable(monkeypatch):
    """Of 400 steps one gradient is large, two batches lie high, one is not finite; early ones are left out."""
    stability = load("vae_stability", monkeypatch).stability
    lines = [
        {
            "vae/gradient_norm": 1.0,
            "vae/bits_per_dim": 5.0,
            "vae/skipped": 0.0,
            "vae/distortion": 2.0,
            "vae/rate_nats": 8.0,
        }
        for _ in range(400)
    ]
    for at, name, value in (
        *((20, "gradient_norm", 500.0), (200, "gradient_norm", 30.0), (250, "gradient_norm", 9.0)),
        *((200, "bits_per_dim", 8.0), (300, "bits_per_dim", 6.5), (310, "skipped", 1.0), (399, "distortion", 6.0)),
    ):
        lines[at][f"vae/{name}"] = value
    assert stability(lines) == {
        "iterations": 400,
        "not_finite": 1,
        "large_gradients": 1,
        "largest_to_usual": 30.0,
        "jumps_of_bits_per_dim": 2,
        "largest_jump": 3.0,
        "distortion": 2.1,
        "rate_nats": 8.0,
        "bits_per_dim": 5.0,
    }


def test_a_phase_that_is_off_is_told_and_nothing_else(monkeypatch):
    phase_slope = load("phase_slope", monkeypatch)
    angle = np.array([0.0, 1.0, 6.0])
    body = np.arange(6.0).reshape(3, 2)
    seen = np.concatenate([body, np.cos(angle)[:, None], np.sin(angle)[:, None]], axis=1)
    told = np.asarray(phase_slope.turn(jax.numpy.asarray(seen), 0.25))
    np.testing.assert_array_equal(told[:, :2], body)
    later = angle + np.pi / 2
    np.testing.assert_allclose(told[:, 2:], np.stack([np.cos(later), np.sin(later)], axis=1), atol=1e-6)


@pytest.mark.parametrize(("recipe", "phase_size"), [("vail", 0), ("airl", 2), ("motion-merel", 2), ("video-vail", 2)])
def test_a_run_that_judges_no_phase_is_refused(recipe, phase_size, monkeypatch):
    phase_slope = load("phase_slope", monkeypatch)
    environment = SimpleNamespace(phase_size=phase_size)
    built = SimpleNamespace(environment=environment, algorithm=SimpleNamespace(reward=None))
    with pytest.raises(ValueError, match=f"recipe {recipe} judges no states by their phase"):
        phase_slope.slopes(SimpleNamespace(config=find_recipe(recipe), built=built), episodes=1)


def test_falls_are_counted_where_their_episodes_start(monkeypatch):
    falls = load("falls_by_start", monkeypatch)
    start, seconds_up = np.array([0.0, 0.1, 0.6, 0.7, 1.0]), np.array([np.inf, 0.5, 3.0, np.inf, np.inf])
    spin = np.full((200, 5), np.nan)
    spin[0], spin[150:, 3] = [1.0, 3.0, 5.0, 7.0, 9.0], 4.0  # one is still up, and always in the part it began in
    spin[150:, [0, 4]] = 2.0
    found = falls.Episodes(start, seconds_up, np.broadcast_to(start, spin.shape), spin)
    names = ("from_seconds", "episodes", "fallen", "fallen_soon", "spin_at_start", "spin_later")
    assert [tuple(row[name] for name in names) for row in falls.by_start(found, 4)] == [
        (0.0, 2, 0.5, 0.5, 2.0, 2.0),
        (0.5, 2, 0.5, 0.0, 6.0, 4.0),
        (0.75, 1, 0.0, 0.0, 9.0, 2.0),
    ]


def test_a_run_that_follows_no_clip_has_no_falls_by_start(monkeypatch):
    falls = load("falls_by_start", monkeypatch)
    built = SimpleNamespace(environment=SimpleNamespace(follow=None, name="hopper"))
    with pytest.raises(ValueError, match="recipe vail on hopper follows no clip"):
        falls.episodes_of(SimpleNamespace(config=find_recipe("vail"), built=built), 1)


def test_phase_slope_of_nothing_is_one_line(tmp_path):
    run = run_script("phase_slope.py", cwd=tmp_path)
    assert run.returncode == 2
    assert run.stderr.startswith("error: ")
    assert run.stderr.count("\n") == 1


def test_the_seconds_of_a_table_are_those_of_its_stages(monkeypatch, tmp_path):
    """Not of the run whose reward a stage keeps, which has no metrics."""
    for name, seconds in (("expert", 3.0), ("imitation/vairl", 5.0), ("retraining/vairl", 7.0)):
        (tmp_path / name).mkdir(parents=True)
        (tmp_path / name / "config.json").write_text("{}")
        lines = [json.dumps({"iteration": i, "seconds": i * seconds / 2}) for i in (1, 2)]
        (tmp_path / name / "metrics.jsonl").write_text("\n".join(lines))
    (tmp_path / "retraining/vairl/reward").mkdir()
    (tmp_path / "retraining/vairl/reward/config.json").write_text("{}")
    found = load("maze", monkeypatch)._stage_seconds(tmp_path)
    assert found == {"expert": 3.0, "imitation/vairl": 5.0, "retraining/vairl": 7.0}
