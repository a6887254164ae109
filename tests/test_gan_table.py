"""The table of GANs: its runs, what it measures of them, and how it goes on."""

import dataclasses
import json
import sys
from pathlib import Path

import jax.numpy as jnp
import numpy as np
import pytest

from vdbjax import gan_table
from vdbjax.evaluation.features import FeatureExtractor
from vdbjax.gan_score import distances, reals_of
from vdbjax.gan_table import Options, config_of
from vdbjax.trained import read_image_config
from vdbjax.training.run_dir import create_run, open_run, read_metrics

FEATURES = 6


def means(params, images):
    """Means of blocks of pixels: few, and enough to tell images apart."""
    return images.astype(jnp.float32).reshape(len(images), FEATURES, -1).mean(axis=2) / 255.0


EXTRACTOR = FeatureExtractor("means", "FD", means, {}, "0" * 64, "none", (8, 8, 3))


def pictures(count, seed=0):
    return np.random.default_rng(seed).integers(0, 256, (count, 8, 8, 3)).astype(np.uint8)


def test_like_images_are_nearer_than_others():
    reals = reals_of(EXTRACTOR, pictures(60))
    near, far = distances(reals, pictures(60, seed=1)), distances(reals, pictures(60, seed=1) // 4)
    assert near.keys() == {"eval/fd", "eval/kid"}
    assert 0 < near["eval/fd"] < far["eval/fd"] / 10
    assert abs(near["eval/kid"]) < far["eval/kid"] / 10


def test_too_few_images_are_refused_before_anything_is_trained():
    with pytest.raises(ValueError, match="6 images are too few for a Fréchet distance over 6 features"):
        reals_of(EXTRACTOR, pictures(6))


def test_widths_keep_their_proportion(tmp_path):
    config = config_of(Options(tmp_path, Path("b"), filters=8, dual_step_size=1e-3, damping=0.2), "vgan-gp", 3)
    algorithm = config.algorithm
    assert (algorithm.filters, algorithm.max_filters, algorithm.noise_size) == (8, 64, 64)
    assert (algorithm.bottleneck.latent_size, algorithm.bottleneck.dual_step_size) == (64, 1e-3)
    assert algorithm.bottleneck.damping == 0.2
    assert (config.seed, algorithm.r1, algorithm.batch_size) == (3, 10.0, 64)


def test_what_a_bottleneck_holds_may_be_chosen_and_says_nothing_where_there_is_none(tmp_path):
    options = Options(tmp_path, Path("b"), kl="per-place")
    assert [config_of(options, method, 0).algorithm.kl for method in ("vgan", "gan")] == ["per-place", "per-image"]


def test_a_step_of_0_is_refused_and_not_the_recipes_own(tmp_path):
    for odd in ({"learning_rate": 0.0}, {"dual_step_size": 0.0}):
        with pytest.raises(ValueError, match=rf"{next(iter(odd))} \(0\.0\) must be (positive|above 0)"):
            config_of(Options(tmp_path, Path("b"), **odd), "vgan", 0)


def test_images_may_be_named(tmp_path, monkeypatch):
    monkeypatch.setenv("VDBJAX_DATA", str(tmp_path))
    np.savez(tmp_path / "some.npz", images=pictures(4))
    assert config_of(Options(Path("some.npz"), Path("b")), "gan", 0).data == tmp_path / "some.npz"


@pytest.mark.parametrize("known", [reals_of(EXTRACTOR, pictures(20)).protocol, None])
def test_runs_measured_otherwise_are_refused(tmp_path, known):
    np.savez(tmp_path / "images.npz", images=pictures(4))
    config = config_of(Options(tmp_path / "images.npz", Path("b")), "gan", 0)
    content = {"config": dataclasses.asdict(config)} | ({"protocol": known} if known else {})
    folder = create_run(tmp_path / "gan-0", content).path
    (folder / "diverged.txt").write_text("loss is nan\n")
    was = "FD and KID: means, sha256 0000000000000000, none; 20 real" if known else "an unknown protocol"
    with pytest.raises(ValueError, match=f"is measured by {was}, not by .*; 30 real; choose another --workdir"):
        gan_table._complete(folder, config, reals_of(EXTRACTOR, pictures(30)))


@pytest.fixture
def here(tmp_path, monkeypatch):
    monkeypatch.chdir(tmp_path)
    for name in ("use_all_devices", "start_processes"):
        monkeypatch.setattr(gan_table, name, lambda: None)
    monkeypatch.setattr(gan_table, "load_extractor", lambda path: EXTRACTOR)
    np.savez("images.npz", images=pictures(300))
    return tmp_path


TYPED = "--data images.npz --extractor run --filters 1 --batch-size 4 --images 20 --workdir runs --out table"


def type_(monkeypatch, typed):
    monkeypatch.setattr(sys, "argv", ["vdbjax.gan_table", *f"{TYPED} {typed}".split()])
    gan_table.main()


@pytest.mark.long
def test_a_table_of_two_seeds_goes_on_where_it_stood(here, monkeypatch, capsys):
    type_(monkeypatch, "--methods vgan --iterations 2 --evaluations 2")
    metrics = here / "runs" / "vgan-0" / "metrics.jsonl"
    before, curves = metrics.read_bytes(), metrics.with_name("curves.png")
    curves.unlink()  # as a kill right after the last checkpoint leaves it
    type_(monkeypatch, "--methods vgan --iterations 2 --evaluations 2 --seeds 2")
    assert metrics.read_bytes() == before
    printed = capsys.readouterr().out
    assert "FD and KID: means, sha256 0000000000000000, none; 20 real of 300 from images.npz" in printed
    assert "Budget: 2 iterations of 4 images (0 kimg) each, 1 filters, up to 8." in printed
    row = json.loads((here / "table" / "gan_table.json").read_text())["rows"]["vgan"]
    assert row["seeds"] == [0, 1]
    assert all(best <= last for best, last in zip(row["best"], row["last"]))
    lines = read_metrics(open_run(here / "runs" / "vgan-1")[0])
    assert row["bottleneck/kl_nats"][1] == pytest.approx(lines[-1]["bottleneck/kl_nats"])
    assert (here / "table" / "gan_table.png").is_file()
    assert (here / "runs" / "vgan-1" / "samples" / "0000001.png").is_file()
    with pytest.raises(SystemExit) as stop:
        type_(monkeypatch, "--methods vgan --iterations 2 --evaluations 2 --learning-rate 1")
    assert stop.value.code == 2
    assert "choose another --workdir" in capsys.readouterr().err
    assert curves.is_file()
    type_(monkeypatch, "--methods vgan --iterations 3 --evaluations 1")
    assert read_image_config(here / "runs" / "vgan-0").iterations == 3
    with pytest.raises(SystemExit) as stop:
        type_(monkeypatch, "--methods vgan --iterations 1 --evaluations 1")
    assert stop.value.code == 2
    assert "has 3 iterations, more than --iterations (1); give as many" in capsys.readouterr().err


@pytest.mark.long
def test_a_run_that_diverges_is_reported_and_not_tried_again(here, monkeypatch, capsys):
    for _ in range(2):
        type_(monkeypatch, "--methods vgan --iterations 30 --evaluations 1 --learning-rate 1e30")
        assert "retries with other noise did not help" in capsys.readouterr().out
    row = json.loads((here / "table" / "gan_table.json").read_text())["rows"]["vgan"]
    assert row["last"] == [None]
    assert "is" in row["diverged"][0]


def test_unknown_methods_are_refused(here, monkeypatch, capsys):
    with pytest.raises(SystemExit):
        type_(monkeypatch, "--methods vgan-pg")
    assert "unknown method 'vgan-pg'; did you mean vgan-gp" in capsys.readouterr().err
