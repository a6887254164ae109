"""Real processes, really killed: what is resumed ends with the same bits as what was never interrupted."""

import os
import random
import signal
import subprocess
import sys
import time
from pathlib import Path

import jax
import numpy as np
import pytest
from made_clip import swinging

from vdbjax.build import build
from vdbjax.trained import load_image_model, read_config
from vdbjax.training.checkpoint import load_checkpoint, saved_iterations
from vdbjax.training.devices import root_key
from vdbjax.training.run_dir import RunDir, open_run, read_metrics

ITERATIONS = 24
TYPED = f"""ppo --engine c --num-envs 4 --ppo.rollout-length 8 --ppo.minibatch-size 16 --ppo.num-epochs 2
  --ppo.hidden-sizes 8 8 --evaluations 1 --eval-episodes 1 --checkpoint-seconds 0 --seed 3
  --total-steps {ITERATIONS * 4 * 8}""".split()
MOTION = f"""--engine c --num-envs 4 --ppo.rollout-length 8 --ppo.minibatch-size 16 --ppo.num-epochs 2
  --ppo.hidden-sizes 8 8 --discriminator.hidden-sizes 8 8 --discriminator.batch-size 16 --discriminator.updates 2
  --evaluations 1 --eval-episodes 1 --checkpoint-seconds 0 --seed 3 --total-steps {ITERATIONS * 4 * 8}""".split()
PATIENCE_SECONDS = 600.0


def begin(*arguments: str) -> subprocess.Popen:
    return subprocess.Popen(
        [sys.executable, "-m", "vdbjax.train", *arguments],
        env={**os.environ, "JAX_NUM_CPU_DEVICES": "1"},
        stdout=subprocess.PIPE,
        stderr=subprocess.PIPE,
        text=True,
    )


def finish(process: subprocess.Popen) -> tuple[int, str, str]:
    """(exit code, stdout, stderr)."""
    try:
        out, err = process.communicate(timeout=PATIENCE_SECONDS)
    finally:
        process.kill()
    return process.returncode, out, err


def number_of_lines(path: Path) -> int:
    file = path / "metrics.jsonl"
    return file.read_bytes().count(b"\n") if file.is_file() else 0


def wait_for(process: subprocess.Popen, path: Path, lines: int) -> None:
    """Until the log has that many lines, or the process has ended."""
    until = time.monotonic() + PATIENCE_SECONDS
    while number_of_lines(path) < lines and process.poll() is None:
        assert time.monotonic() < until, f"{path} has {number_of_lines(path)} lines only"
        time.sleep(0.02)


def kill(process: subprocess.Popen) -> None:
    process.kill()  # SIGKILL: nothing of the process runs after that
    process.communicate()


@pytest.fixture(scope="module")
def whole(tmp_path_factory) -> Path:
    """The run that was never interrupted."""
    path = tmp_path_factory.mktemp("whole") / "run"
    code, out, err = finish(begin(*TYPED, "--out", str(path)))
    assert code == 0, err
    assert "return" in out
    return path


def state_of(run: RunDir) -> list[np.ndarray]:
    """Every leaf of the newest checkpoint, keys as their words; of a model of images, of its averaged parameters."""
    if "data" in open_run(run.path)[1]["config"]:
        trained = load_image_model(run.path)
        assert trained.iteration == ITERATIONS
        return [np.asarray(leaf) for leaf in jax.tree.leaves(trained.params)]
    config = read_config(run.path)
    like = jax.eval_shape(build(config).algorithm.init, root_key(config.seed))
    device = jax.sharding.SingleDeviceSharding(jax.local_devices()[0])
    like = jax.tree.map(lambda leaf: jax.ShapeDtypeStruct(leaf.shape, leaf.dtype, sharding=device), like)
    state, iteration = load_checkpoint(run, like)
    assert iteration == ITERATIONS
    keys_as_words = jax.tree.map(lambda leaf: jax.random.key_data(leaf) if _is_key(leaf) else leaf, state)
    return [np.asarray(leaf) for leaf in jax.tree.leaves(keys_as_words)]


def _is_key(leaf: jax.Array) -> bool:
    return jax.numpy.issubdtype(leaf.dtype, jax.dtypes.prng_key)


def assert_same(path: Path, expected: Path) -> None:
    runs = [open_run(each)[0] for each in (path, expected)]
    states = [state_of(run) for run in runs]
    assert len(states[0]) == len(states[1]) > 20
    for found, other in zip(*states, strict=True):
        assert (found.dtype, found.shape, found.tobytes()) == (other.dtype, other.shape, other.tobytes())
    lines = [[{k: v for k, v in line.items() if k != "seconds"} for line in read_metrics(run)] for run in runs]
    assert lines[0] == lines[1]
    assert [line["iteration"] for line in lines[0]] == list(range(1, ITERATIONS + 1))


@pytest.mark.long
def test_killed_and_stopped_twice(whole, tmp_path) -> None:
    path = tmp_path / "run"
    process = begin(*TYPED, "--out", str(path))
    wait_for(process, path, 4)
    kill(process)
    assert saved_iterations(open_run(path)[0])  # else the next process would begin anew, which the slow test covers
    for number, code, lines in ((signal.SIGTERM, 143, 8), (signal.SIGINT, 130, 12)):
        process = begin("--resume", str(path))
        wait_for(process, path, lines)
        process.send_signal(number)
        found, out, err = finish(process)
        assert found == code, err
        assert out.endswith(f"stopped and saved; go on with: python -m vdbjax.train --resume {path}\n")
        assert "Traceback" not in err
        assert saved_iterations(open_run(path)[0])[0] == number_of_lines(path)
    code, _, err = finish(begin("--resume", str(path)))
    assert code == 0, err
    assert_same(path, whole)


@pytest.mark.slow
def test_killed_at_ten_random_moments(whole, tmp_path) -> None:
    """Some fall into the start of the process, some before the first checkpoint, some into the saving of one."""
    path, draw, killed = tmp_path / "run", random.Random(0), 0
    process = begin(*TYPED, "--out", str(path))
    while killed < 10:
        until = time.monotonic() + PATIENCE_SECONDS
        while not (path / "config.json").is_file():
            assert time.monotonic() < until
            time.sleep(0.02)
        if killed % 2:  # at work
            wait_for(process, path, min(number_of_lines(path) + draw.randrange(1, 5), ITERATIONS - 1))
        else:  # at any time
            time.sleep(draw.uniform(0.0, 8.0))
        time.sleep(draw.uniform(0.0, 0.2))
        kill(process)
        killed += 1
        process = begin("--resume", str(path))
    code, _, err = finish(process)
    assert code == 0, err
    assert_same(path, whole)


@pytest.mark.slow
def test_motion_imitation_killed_and_stopped(tmp_path) -> None:
    """The character's own state, the discriminator, beta and the reference's anchors go on too."""
    task = ["--env", f"mocap/{swinging(tmp_path)}"]
    paths = {name: tmp_path / name for name in ("whole", "resumed")}
    code, _, err = finish(begin("motion-vail-gp", *MOTION, *task, "--out", str(paths["whole"])))
    assert code == 0, err
    process = begin("motion-vail-gp", *MOTION, *task, "--out", str(paths["resumed"]))
    wait_for(process, paths["resumed"], 6)
    kill(process)
    process = begin("--resume", str(paths["resumed"]))
    wait_for(process, paths["resumed"], 14)
    process.send_signal(signal.SIGTERM)
    assert finish(process)[0] == 143
    code, _, err = finish(begin("--resume", str(paths["resumed"])))
    assert code == 0, err
    assert_same(paths["resumed"], paths["whole"])


IMAGE_MODELS = {
    "vdvae-small": "--resolutions 1 8 --layers 1 2 --encoder-blocks 1 2 --width 8 --bottleneck-width 4 --gamma 4",
}
"""Recipe -> what makes it small, on images of 8 x 8."""


@pytest.mark.slow
@pytest.mark.parametrize("recipe", IMAGE_MODELS)
def test_a_model_of_images_killed_and_stopped(tmp_path, recipe) -> None:
    """The multiplier, what is known of the gradients and the place in the data go on too."""
    data, paths = tmp_path / "images.npz", {name: tmp_path / name for name in ("whole", "resumed")}
    np.savez(data, images=np.random.default_rng(0).integers(0, 256, size=(100, 8, 8, 1), dtype=np.uint8))
    typed = f"""{IMAGE_MODELS[recipe]} --data {data} --batch-size 8 --validation-images 16 --evaluations 1
      --checkpoint-seconds 0 --seed 3 --iterations {ITERATIONS}""".split()
    code, _, err = finish(begin(recipe, *typed, "--out", str(paths["whole"])))
    assert code == 0, err
    process = begin(recipe, *typed, "--out", str(paths["resumed"]))
    wait_for(process, paths["resumed"], 6)
    kill(process)
    process = begin("--resume", str(paths["resumed"]))
    wait_for(process, paths["resumed"], 14)
    process.send_signal(signal.SIGTERM)
    assert finish(process)[0] == 143
    code, _, err = finish(begin("--resume", str(paths["resumed"])))
    assert code == 0, err
    assert_same(paths["resumed"], paths["whole"])
