"""The classifier learns, keeps the contract and refuses what it cannot learn from; its run is measured with."""

import dataclasses
import json
import sys

import jax
import jax.numpy as jnp
import numpy as np
import optax
import pytest
from PIL import Image

from vdbjax import fidelity, train
from vdbjax.image_build import build_on_images
from vdbjax.image_recipes import find_image_recipe
from vdbjax.images import classifier
from vdbjax.images.classifier import Config, accuracy, build_model, cross_entropy_nats, make
from vdbjax.trained import load_image_model
from vdbjax.training.run_dir import open_run, read_metrics
from vdbjax.types import Pictures

TINY = Config(classes=2, filters=(4, 8), batch_size=8)


def striped(count: int, seed: int = 0, noise: float = 40.0) -> Pictures:
    """Stripes across (class 0) or along (class 1), 8 x 8 x 1, under noise."""
    draw = np.random.default_rng(seed)
    labels = draw.integers(0, 2, count)
    across = np.where((np.arange(8) + draw.integers(0, 2, (count, 1))) % 2, 60.0, 190.0)
    images = np.where(labels[:, None, None] == 0, across[:, :, None], across[:, None, :])
    noisy = np.clip(images + noise * draw.normal(size=images.shape), 0, 255)
    return Pictures(noisy[..., None].astype(np.uint8), labels)


def test_losses():
    logits, labels = jnp.log(jnp.array([[0.25, 0.75], [0.9, 0.1]])), jnp.array([1, 1])
    assert cross_entropy_nats(logits, labels) == pytest.approx(-np.mean(np.log([0.75, 0.1])), rel=1e-6)
    smooth = -np.mean([0.05 * np.log(0.25) + 0.95 * np.log(0.75), 0.05 * np.log(0.9) + 0.95 * np.log(0.1)])
    assert cross_entropy_nats(logits, labels, smoothing=0.1) == pytest.approx(smooth, rel=1e-6)
    assert accuracy(logits, labels) == 0.5


@pytest.mark.parametrize(
    ("changes", "message"),
    [
        ({"classes": 1}, r"classes \(1\) must be at least 2"),
        ({"filters": ()}, r"filters \(\) must be"),
        ({"filters": (24,)}, r"filters \(24,\) must be up to 16, or multiples of it"),
        ({"batch_size": 0}, r"batch_size \(0\)"),
        ({"learning_rate": 0.0}, r"learning_rate \(0.0\) must be above 0"),
        ({"weight_decay": np.nan}, r"weight_decay \(nan\) must be finite and not negative"),
        ({"warmup_steps": -1}, r"warmup_steps \(-1\) must be finite and not negative"),
        ({"average_decay": 1.0}, r"average_decay \(1.0\) must be at least 0 and below 1"),
    ],
)
def test_a_config_that_cannot_work_is_refused(changes, message):
    with pytest.raises(ValueError, match=message):
        Config(**changes)


@pytest.mark.parametrize(
    ("pictures", "message"),
    [
        (striped(4)._replace(labels=None), "learns from labels, and these images have none"),
        (Pictures(np.zeros((2, 4, 4, 1), np.uint8), np.zeros(2, int)), r"do not fit a model of \(8, 8, 1\)"),
        (striped(4)._replace(labels=np.array([0, 1, 2, 1])), r"classes \(2\) must be above the highest label \(2\)"),
    ],
)
def test_pictures_that_it_cannot_learn_from_are_refused(pictures, message):
    with pytest.raises(ValueError, match=message):
        make(TINY, build_model(TINY, (8, 8, 1)), first=striped(4), validation=pictures, num_iterations=4)


def test_labels_of_all_images_are_looked_at(tmp_path):
    images, labels, _ = striped(200)
    np.savez(tmp_path / "images.npz", images=images, labels=np.where(np.arange(200) == 150, 7, labels))
    config = dataclasses.replace(
        find_image_recipe("cifar-features"), algorithm=TINY, data=tmp_path / "images.npz", validation_images=2
    )
    with pytest.raises(ValueError, match=r"classes \(2\) must be above the highest label \(7\)"):
        build_on_images(config)


def test_the_algorithm_keeps_the_contract():
    model = build_model(TINY, (8, 8, 1))
    algorithm = make(TINY, model, first=striped(8), validation=striped(8), num_iterations=4)
    start = jax.jit(algorithm.init)(jax.random.key(0))
    batches = jax.tree.map(lambda leaf: jnp.asarray(leaf).reshape(3, 8, *leaf.shape[1:]), striped(24))
    state, metrics = jax.jit(lambda state, batches: jax.lax.scan(algorithm.update, state, batches))(start, batches)
    assert jax.eval_shape(lambda s: s, state) == jax.eval_shape(lambda s: s, start)
    assert int(state.step) == 3
    assert all(np.all(np.isfinite(value)) and value.shape == (3,) for value in metrics.values())
    assert optax.tree.norm(optax.tree.sub(start.params, state.params)) > 0


@pytest.fixture(scope="module")
def here(tmp_path_factory):
    """A folder with a run of stripes, its images, and others."""
    folder = tmp_path_factory.mktemp("fidelity")
    for name, pictures in (("train", striped(200)), ("test", striped(60, 1)), ("noisy", striped(60, 2, noise=90.0))):
        np.savez(folder / f"{name}.npz", images=pictures.images, labels=pictures.labels)
    np.savez(folder / "few.npz", images=striped(8).images)
    np.savez(folder / "larger.npz", images=np.zeros((20, 16, 16, 1), np.uint8))
    typed = "--classes 2 --filters 4 8 --batch-size 8 --warmup-steps 5 --average-decay 0.9 --learning-rate 1e-2"
    with pytest.MonkeyPatch.context() as patch:  # one device, as the mesh that the command sets would outlive it
        patch.setattr(train, "use_all_devices", lambda: None)
        patch.setattr(train, "start_processes", lambda: None)
        data = f"--data {folder}/train.npz --validation-data {folder}/test.npz --validation-images 60"
        run = f"cifar-features {data} {typed} --iterations 80 --evaluations 1 --out {folder}/run"
        patch.setattr(sys, "argv", ["vdbjax.train", *run.split()])
        train.main()
    return folder


def test_a_run_learns_and_is_loaded(here):
    lines = read_metrics(open_run(here / "run")[0])
    assert lines[-1]["eval/accuracy"] > 0.9
    assert (here / "run" / "curves.png").is_file()
    trained = load_image_model(here / "run")
    assert isinstance(trained.model, classifier.Model)
    assert dataclasses.asdict(trained.config.algorithm)["filters"] == (4, 8)
    images, labels, _ = striped(60, 1)
    found = accuracy(jax.jit(trained.model.logits)(trained.params[0], images), jnp.asarray(labels))
    assert found == pytest.approx(lines[-1]["eval/accuracy"], abs=1e-3)


def test_held_out_classes_are_told_by_their_names(tmp_path):
    for name, classes in (("train", ("cat", "dog", "frog")), ("test", ("dog", "frog")), ("other", ("cow", "dog"))):
        for number, label in enumerate(classes):
            (tmp_path / name / label).mkdir(parents=True)
            for copy in range(8):
                picture = Image.fromarray(np.full((8, 8), 10 * len(label) + copy + number, np.uint8))
                picture.save(tmp_path / name / label / f"{copy}.png")
    config = dataclasses.replace(
        find_image_recipe("cifar-features"),
        algorithm=Config(classes=3, filters=(4,), batch_size=8),
        data=tmp_path / "train",
        validation_data=tmp_path / "test",
    )
    assert build_on_images(config).validation.labels.tolist() == [1] * 8 + [2] * 8
    with pytest.raises(ValueError, match=r"other has a class cow, which .*train has not"):
        build_on_images(dataclasses.replace(config, validation_data=tmp_path / "other"))


def type_(monkeypatch, typed):
    monkeypatch.setattr(sys, "argv", ["vdbjax.fidelity", *typed.split()])
    fidelity.main()


def test_the_command_prints_every_number_with_its_protocol(here, monkeypatch, capsys):
    monkeypatch.chdir(here)
    asked = "--extractor run --kid --kid-subset-size 20 --precision-recall --cache kept --json a.json"
    type_(monkeypatch, f"train.npz test.npz {asked} --images 60")
    near = json.loads((here / "a.json").read_text())
    lines = capsys.readouterr().out.splitlines()
    assert [line.split()[0] for line in lines] == ["FD", "KID", "precision"]
    for line in lines:
        assert "cifar-features after 80 iterations, sha256 " in line
        assert "no resize" in line
        assert "60 real of 200 from train.npz (pixels as stored)" in line
        assert "60 fake of 60 from test.npz (pixels as stored)" in line
        assert "drawn with seed 0" in line
    assert len(list((here / "kept").iterdir())) == 2
    type_(monkeypatch, f"train.npz noisy.npz {asked} --images 60")
    far = json.loads((here / "a.json").read_text())
    assert far["metrics"]["FD"] > 2 * near["metrics"]["FD"] > 0
    assert far["metrics"]["KID"] > near["metrics"]["KID"]
    assert far["metrics"]["precision"] < near["metrics"]["precision"] <= 1
    assert far["protocol"]["extractor"] == near["protocol"]["extractor"]
    type_(monkeypatch, "train.npz test.npz --extractor run --kid --kid-subset-size 20 --seed 3")
    assert "all images; KID's subsets with seed 3" in capsys.readouterr().out


def test_images_too_few_for_a_frechet_distance_have_a_kernel_distance(here, monkeypatch, capsys):
    monkeypatch.chdir(here)
    type_(monkeypatch, "train.npz few.npz --extractor run --kid --kid-subset-size 8 --cache kept")
    shown = capsys.readouterr()
    assert [line.split()[0] for line in shown.out.splitlines()] == ["KID"]
    assert "note: 8 images are too few for a Fréchet distance over 8 features" in shown.err


BAD = {
    "few": ("train.npz few.npz --extractor run", "8 images are too few for a Fréchet distance over 8 features"),
    "shape": ("train.npz larger.npz --extractor run", "images of 16 x 16 x 1 do not fit cifar-features"),
    "draw": ("train.npz test.npz --extractor run --images 61", "images (61) is more than the 60 of a set"),
    "subsets": (
        "train.npz test.npz --extractor run --kid",
        "--kid-subset-size (1000) is more than the 60 images",
    ),
    "weights": ("train.npz test.npz --extractor a.pth", "a.pth: no such file or run folder; protocol fid needs"),
    "protocol": ("train.npz test.npz --extractor run --protocol fid", "run is a run; leave it out"),
    "count": ("train.npz test.npz --extractor a.pth --protocol vgan2018 --images 9", "leave out images (9)"),
    "no set": ("train.npz absent --extractor run", "absent: no such file or folder"),
    "json": ("train.npz test.npz --extractor run --json no/a.json", "no/a.json: the folder"),
    "size": ("train.npz test.npz --extractor run --size -4", "--size (-4) must be at least 1"),
    "one": ("train.npz test.npz --extractor run --images 1", "--images (1) must be at least 2"),
}


@pytest.mark.parametrize(("typed", "message"), BAD.values(), ids=BAD.keys())
def test_bad_input_ends_in_one_line(here, monkeypatch, capsys, typed, message):
    monkeypatch.chdir(here)
    with pytest.raises(SystemExit) as stop:
        type_(monkeypatch, f"{typed} --cache kept")
    error = capsys.readouterr().err
    assert stop.value.code == 2
    assert message in error
    assert error.count("\n") == 1
