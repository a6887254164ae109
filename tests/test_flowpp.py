"""Flow++: the papers' sizes, what its bound means, and every image recipe, made small, through the train command."""

import dataclasses
import math
import sys
from pathlib import Path

import jax
import jax.numpy as jnp
import numpy as np
import pytest
from PIL import Image

from vdbjax import train
from vdbjax.flows import conditioner, flowpp
from vdbjax.flows.bijection import Condition
from vdbjax.flows.conditioner import Conditioner
from vdbjax.flows.dequantization import Uniform
from vdbjax.flows.flowpp import Config, DequantizerConfig
from vdbjax.image_build import num_parameters, validation_images
from vdbjax.image_recipes import IMAGE_RECIPES
from vdbjax.likelihood import bits_per_dim_of
from vdbjax.recipes import find_recipe
from vdbjax.saved_config import from_dict
from vdbjax.trained import TrainedModel, load_image_model, read_config
from vdbjax.training.run_dir import open_run, read_metrics
from vdbjax.types import Pictures


@pytest.mark.parametrize(
    ("name", "size", "expected"),
    [
        pytest.param("flowpp-cifar10", 32, 31_443_440, marks=pytest.mark.long),
        pytest.param("flowpp-imagenet32", 32, 168_955_724, marks=pytest.mark.slow),
        pytest.param("flowpp-imagenet64", 64, 73_489_960, marks=pytest.mark.slow),
    ],
)
def test_as_many_parameters_as_the_reference(name, size, expected):
    model = flowpp.build_model(IMAGE_RECIPES[name].config.algorithm, (size, size, 3))
    assert num_parameters(model) == expected


@pytest.mark.slow
@pytest.mark.parametrize(("ablation", "millions"), [("uniform", 32.3), ("affine", 32.0), ("no-attention", 31.4)])
def test_ablations_have_as_many_as_the_paper_says(ablation, millions):
    """Table 3.2."""
    model = flowpp.build_model(IMAGE_RECIPES[f"flowpp-cifar10-{ablation}"].config.algorithm, (32, 32, 3))
    assert round(num_parameters(model) / 1e6, 1) == millions


TINY_DEQUANTIZER = {"couplings": 1, "blocks": 1, "context_filters": 4, "context_blocks": 1}
TINY = {
    "filters": 4,
    "blocks": 1,
    "heads": 2,
    "mixtures": 2,
    "batch_size": 8,
    "init_images": 16,
    "layers": ("depth", "columns", "channels"),
}


def tiny(config, **changes):
    """With everything that costs time cut down, and nothing else changed."""
    dequantizer = dataclasses.replace(config.dequantizer, **TINY_DEQUANTIZER)
    return dataclasses.replace(config, dequantizer=dequantizer, **(TINY | changes))


def stripes(count, seed=0):
    """Images [count, 8, 8, 1] of bars with little noise: a model that learns gets far below 8 bits/dim."""
    draw = np.random.default_rng(seed)
    bars = 40 + 60 * draw.integers(0, 4, size=(count, 8, 1, 1)) + np.zeros((count, 8, 8, 1), int)
    return np.clip(bars + draw.integers(-2, 3, size=bars.shape), 0, 255).astype(np.uint8)


@pytest.fixture(scope="module")
def variational():
    """(model, its parameters) with everything in it: both splits, attention, weight norm and a dequantiser."""
    model = flowpp.build_model(tiny(IMAGE_RECIPES["flowpp-imagenet32"].config.algorithm), (8, 8, 1))
    return model, jax.jit(model.init)(jax.random.key(0), jnp.asarray(stripes(16)))


def test_more_noises_give_a_tighter_bound(variational):
    model, params = variational
    images = jnp.asarray(stripes(8, seed=1))
    one, many = (
        jax.jit(lambda params, samples=samples: model.bits_per_dim(params, images, jax.random.key(2), samples=samples))(
            params
        )
        for samples in (1, 16)
    )
    assert one.shape == many.shape == (8,)
    assert jnp.mean(many) < jnp.mean(one)


def test_the_command_scores_as_the_model_does(variational):
    model, params = variational
    images = stripes(8, seed=1)
    trained = TrainedModel(IMAGE_RECIPES["flowpp-imagenet32"].config, model, [params], 0, {})
    found = bits_per_dim_of(trained, images, samples=3, batch_size=8, seed=2)
    key = jax.random.fold_in(jax.random.key(2), 0)
    expected = model.bits_per_dim(params, jnp.asarray(images), key, samples=3)
    np.testing.assert_allclose(found[0], expected, rtol=1e-4)


def test_the_dequantiser_draws_inside_a_pixel_and_knows_its_density(variational):
    """In one dimension of u, the others held: the density by the drawn u's own change of variables."""
    model, params = variational
    images = jnp.asarray(stripes(2))

    def draw(epsilon):
        features = model.dequantizer.features(params["dequantizer"], images)
        noise, log_det = model.dequantizer.flow.forward(
            params["dequantizer"]["flow"], epsilon.reshape(images.shape), Condition(features)
        )
        return noise, log_det

    key = jax.random.key(3)
    epsilon = jax.random.normal(key, images.shape, jnp.float32)
    noise, log_q = jax.jit(lambda: model.dequantizer.draw(params["dequantizer"], images, key))()
    assert jnp.all((noise > 0) & (noise < 1))
    normal = -0.5 * np.sum(np.asarray(epsilon) ** 2 + np.log(2 * np.pi), axis=(1, 2, 3))
    np.testing.assert_allclose(log_q, normal - jax.jit(draw)(epsilon)[1], rtol=1e-5)


@pytest.mark.parametrize(("heads", "with_features"), [(2, False), (0, True)])
def test_a_loop_over_the_blocks_computes_what_blocks_in_a_row_do(monkeypatch, heads, with_features):
    """Accelerators get the loop, CPUs the row."""
    network = Conditioner(num_parameters=5, filters=4, blocks=3, heads=heads)
    key_x, key_features, key_init = jax.random.split(jax.random.key(0), 3)
    kept = jax.random.normal(key_x, (2, 4, 4, 3))
    features = jax.random.normal(key_features, (2, 4, 4, 6)) if with_features else None
    params = network.init(key_init, kept, features)
    in_a_row = network.apply(params, kept, features)
    monkeypatch.setattr(conditioner, "unrolled", lambda blocks: 1)
    np.testing.assert_allclose(network.apply(params, kept, features), in_a_row, atol=1e-5)


def test_samples_are_what_the_inverse_gives(variational):
    model, params = variational

    def there_and_back(params, key):
        z = jax.random.normal(key, (4, *model.latent_shape), jnp.float32)
        pixels = model.flow.inverse(params["flow"], z, Condition())
        return z, model.flow.forward(params["flow"], pixels, Condition())[0], model.sample(params, key, num_images=4)

    z, again, images = jax.jit(there_and_back)(params, jax.random.key(4))
    np.testing.assert_allclose(again, z, atol=5e-3)  # pixels of up to 256 in float32
    assert images.dtype == jnp.uint8
    assert images.shape == (4, 8, 8, 1)


def test_the_step_size_rises_stays_and_falls():
    at = flowpp.learning_rate(Config(learning_rate=1.0, warmup_steps=10, decay="cosine"), num_iterations=110)
    np.testing.assert_allclose([at(0), at(9), at(60), at(110)], [0.1, 1.0, 0.5, 0.0], atol=1e-6)
    config = IMAGE_RECIPES["flowpp-imagenet32"].config.algorithm
    at = flowpp.learning_rate(config, num_iterations=1)
    found = [float(at(step)) for step in (4_999, 50_000, 50_001, 1_000_000)]
    np.testing.assert_allclose(found, [1e-3, 1e-3, 1e-3 * 0.99995, 3e-4], rtol=1e-5)


def test_mirror_images_are_whole():
    images = jnp.asarray(stripes(64))
    found = flowpp.mirrored_at_random(images, jax.random.key(0))
    kept = np.all(found == images, axis=(1, 2, 3))
    mirrored = np.all(found == images[:, :, ::-1], axis=(1, 2, 3))
    assert np.all(kept | mirrored)
    assert 15 < kept.sum() < 49


def test_shapes_that_the_layers_cannot_halve_are_refused():
    with pytest.raises(ValueError, match=r"cannot halve 7 x 7 x 1, which they make of images of 7 x 7 x 1"):
        flowpp.build_model(tiny(Config()), (7, 7, 1))
    with pytest.raises(ValueError, match=r"cannot halve 8 x 8 x 3"):
        flowpp.build_model(Config(layers=("channels",)), (8, 8, 3))


@pytest.mark.parametrize(
    ("changes", "message"),
    [
        ({"filters": 30}, r"filters \(30\) must be divisible by heads \(4\)"),
        ({"dropout": 1.0}, r"dropout \(1.0\) must be at least 0 and below 1"),
        ({"layers": ("depth",)}, r"layers name no coupling"),
        ({"learning_rate": 0.0}, r"learning_rate \(0.0\) must be above 0"),
        ({"batch_size": 0}, r"batch_size \(0\) must be at least 1"),
        ({"warmup_steps": -5}, r"warmup_steps \(-5\) must be at least 0"),
        ({"learning_rate": math.nan}, r"learning_rate \(nan\) must be above 0 and finite"),
        ({"final_learning_rate": math.nan}, r"final_learning_rate \(nan\) must be finite and not negative"),
        ({"decay_rate": -2.0}, r"decay_rate \(-2.0\) must be above 0 and at most 1"),
        (
            {"dequantizer": DequantizerConfig(context_attention=True, context_filters=30)},
            r"dequantizer.context_filters \(30\) must be divisible by heads \(4\)",
        ),
    ],
)
def test_a_config_that_cannot_work_is_refused(changes, message):
    with pytest.raises(ValueError, match=message):
        Config(**changes)


@pytest.mark.parametrize("name", ["couplings", "blocks", "context_filters"])
def test_noise_of_nothing_is_refused(name):
    with pytest.raises(ValueError, match=rf"dequantizer.{name} \(0\) must be at least 1"):
        DequantizerConfig(**{name: 0})


@pytest.mark.parametrize("name", IMAGE_RECIPES)
def test_a_config_survives_its_json(name):
    config = IMAGE_RECIPES[name].config
    assert from_dict(config, dataclasses.asdict(config)) == config


@pytest.fixture
def here(tmp_path, monkeypatch):
    """An empty folder with images. One device, as the mesh that the command sets would outlive it."""
    monkeypatch.chdir(tmp_path)
    monkeypatch.setattr(train, "use_all_devices", lambda: None)
    monkeypatch.setattr(train, "start_processes", lambda: None)
    np.savez("bars.npz", images=stripes(200))
    return tmp_path


SIZES = (
    "--filters 4 --blocks 1 --mixtures 2 --batch-size 8 --init-images 16 --layers depth columns channels "
    "--validation-images 16 --learning-rate 1e-2 --warmup-steps 5 --average-decay 0.9 --checkpoint-seconds 1e9"
)


def type_(monkeypatch, typed):
    monkeypatch.setattr(sys, "argv", ["vdbjax.train", *typed.split()])
    train.main()


@pytest.mark.long
def test_a_run_learns_draws_and_is_loaded_without_its_images(here, monkeypatch, capsys):
    type_(monkeypatch, f"flowpp-small --data bars.npz --out run {SIZES} --iterations 40 --evaluations 2 --seed 1")
    printed = capsys.readouterr().out
    assert "on 184 images of 8 x 8 x 1 from" in printed
    assert "bits/dim on the validation images" in printed
    run = here / "run"
    lines = read_metrics(open_run(run)[0])
    assert lines[-1]["eval/bits_per_dim"] < lines[19]["eval/bits_per_dim"] < 8.0
    assert lines[-1]["flow/bits_per_dim"] < lines[0]["flow/bits_per_dim"] - 0.5
    assert Image.open(run / "samples" / "0000040.png").size == (8 * 65 - 1, 8 * 65 - 1)
    assert (run / "curves.png").is_file()
    (here / "bars.npz").unlink()
    trained = load_image_model(run)
    assert (trained.iteration, trained.model.image_shape, len(trained.params)) == (40, (8, 8, 1), 1)
    assert isinstance(trained.model.dequantizer, Uniform)
    found = bits_per_dim_of(trained, stripes(20, seed=5), samples=1, batch_size=16, seed=0)
    assert found.shape == (1, 20)
    assert abs(found[0, :16].mean() - lines[-1]["eval/bits_per_dim"]) < 0.5
    assert abs(found[0, 16:].mean() - lines[-1]["eval/bits_per_dim"]) < 1.0  # the padded batch's own images
    with pytest.raises(ValueError, match=r"shape \(4, 4, 1\) do not fit a model of \(8, 8, 1\)"):
        bits_per_dim_of(trained, np.zeros((2, 4, 4, 1), np.uint8), samples=1, batch_size=16, seed=0)
    with pytest.raises(ValueError, match="trains a model of images, which has no policy"):
        read_config(run)


def test_a_small_set_gives_up_a_tenth_for_validation(here):
    config = dataclasses.replace(IMAGE_RECIPES["flowpp-small"].config, data=Path("bars.npz"))
    assert len(validation_images(config, {})) == 20
    assert len(validation_images(dataclasses.replace(config, validation_images=50), {})) == 50


BAD = {
    "no images": ("", "no images to train on; name them with --data FOLDER, ZIP or NPZ"),
    "absent": ("--data absent.npz", "absent.npz: no such file or folder"),
    "all held out": ("--data bars.npz --validation-images 200", "leaves none of 200 images to train on"),
    "batch": ("--data bars.npz --batch-size 185", "batch_size (185) is more than the 184 images"),
    "no image": ("--data bars.npz --validation-images 0", "validation_images (0) must be at least 1"),
    "no iterations": ("--data bars.npz --iterations 0", "iterations (0) must be at least 1"),
    "odd size": ("--data bars.npz --size 7", "layers cannot halve 7 x 7 x 1"),
    "a policy's flag": ("--data bars.npz --num-envs 4", "unknown option --num-envs"),
}


@pytest.mark.parametrize(("typed", "message"), BAD.values(), ids=BAD.keys())
def test_bad_input_ends_in_one_line(here, monkeypatch, capsys, typed, message):
    with pytest.raises(SystemExit) as stop:
        type_(monkeypatch, f"flowpp-small {SIZES} {typed} --out run")
    error = capsys.readouterr().err
    assert stop.value.code == 2
    assert message in error
    assert error.count("\n") == 1
    assert not (here / "run").exists()


def test_an_image_recipe_is_no_policy():
    with pytest.raises(ValueError, match="'flowpp-small' trains a model of images"):
        find_recipe("flowpp-small")


DEQUANTIZER_OF_A_KIND = DequantizerConfig(kind="uniform", **TINY_DEQUANTIZER)


@pytest.mark.parametrize(
    "config",
    [
        pytest.param(tiny(Config(), dropout=0.2, layers=("columns",)), id="dropout", marks=pytest.mark.long),
        pytest.param(
            tiny(Config(dequantizer=DEQUANTIZER_OF_A_KIND), mixtures=0, attention=False, layers=("columns",)),
            id="ablations",
        ),
    ],
)
def test_the_algorithm_keeps_the_contract(config):
    model = flowpp.build_model(config, (8, 8, 1))
    algorithm = flowpp.make(
        config, model, first=Pictures(stripes(16)), validation=Pictures(stripes(8)), num_iterations=4
    )
    start = jax.jit(algorithm.init)(jax.random.key(0))
    batches = Pictures(jnp.asarray(stripes(24)).reshape(3, 8, 8, 8, 1))
    state, metrics = jax.jit(lambda state, batches: jax.lax.scan(algorithm.update, state, batches))(start, batches)
    assert jax.eval_shape(lambda s: s, state) == jax.eval_shape(lambda s: s, start)
    assert int(state.step) == 3
    assert all(np.all(np.isfinite(value)) and value.shape == (3,) for value in metrics.values())
    moved = [not np.array_equal(a, b) for a, b in zip(*map(jax.tree.leaves, (start.params, state.params)), strict=True)]
    assert np.mean(moved) > 0.9
