"""GANs of images: the released sizes, a step held against PyTorch's, every regulariser, and the commands."""

import dataclasses
import json
import os
import signal
import sys
from functools import partial
from pathlib import Path
from typing import NamedTuple

import jax
import jax.numpy as jnp
import numpy as np
import optax
import pytest
from PIL import Image

from vdbjax import likelihood, sample, train
from vdbjax.bottleneck import BottleneckConfig
from vdbjax.gan_recipes import FIGURE_8
from vdbjax.image_build import build_on_images
from vdbjax.image_recipes import IMAGE_RECIPES
from vdbjax.images import gan
from vdbjax.images.gan_model import scaled, to_pixels
from vdbjax.trained import load_image_model
from vdbjax.training.checkpoint import saved_iterations
from vdbjax.training.loop import Stopped
from vdbjax.training.run_dir import create_run, open_run, read_metrics
from vdbjax.types import Pictures

SIDE = {"": 32, "-celeba128": 128, "-celebahq1024": 1024}
GENERATORS = {"": 1_700_196, "-celeba128": 33_277_636, "-celebahq1024": 18_810_036}
DISCRIMINATORS = {
    "gan": 647_777,
    "gan-noise": 713_569,
    "gan-sn": 647_777,
    "wgan-gp": 647_777,
    "vgan": 779_361,
    "vgan-gp": 779_361,
    "gan-celeba128": 29_067_969,
    "vgan-gp-celeba128": 31_167_169,
    "gan-gp-celebahq1024": 16_705_201,
    "vgan-gp-celebahq1024": 17_230_513,
}


@pytest.mark.parametrize(("recipe", "expected"), DISCRIMINATORS.items())
def test_as_many_parameters_as_the_released_networks(recipe, expected):
    variant = next(suffix for suffix in reversed(SIDE) if recipe.endswith(suffix))
    config = IMAGE_RECIPES[recipe].config.algorithm
    model = gan.build_model(config, (SIDE[variant], SIDE[variant], 3))
    images = jax.ShapeDtypeStruct((1, *model.image_shape), np.uint8)
    shapes = jax.eval_shape(model.init, jax.random.key(0), images)
    found = {name: sum(leaf.size for leaf in jax.tree.leaves(part)) for name, part in shapes.items()}
    assert found == {"generator": GENERATORS[variant], "discriminator": expected}


STEP = np.load(Path(__file__).with_name("gan_step.npz"))
SIZES = json.loads(str(STEP["sizes"]))
CASES = json.loads(str(STEP["cases"]))


def tree_of(prefix):
    """The arrays of the file whose names begin so, as a tree."""
    tree = {}
    for name in STEP.files:
        if name.startswith(f"{prefix}/"):
            *folders, leaf = name.removeprefix(f"{prefix}/").split("/")
            place = tree
            for folder in folders:
                place = place.setdefault(folder, {})
            place[leaf] = jnp.asarray(STEP[name])
    return tree


def config_of(options):
    vdb = None
    if options["beta"] is not None:
        vdb = BottleneckConfig(SIZES["latent"], options["constraint"], beta_init=options["beta"])
    return gan.Config(
        **{name: SIZES[name] for name in ("filters", "max_filters", "learning_rate")},
        bottleneck=vdb,
        r1=options["r1"],
        kl=options["kl"],
        head_activation=options["head_activation"],
        generator_code="draw" if options["draws"] else "mean",
        noise_size=SIZES["noise"],
    )


def a_step(config, case):
    """(losses, gradients, parameters after) of both networks, as `update` puts them together."""
    model = gan.build_model(config, (SIZES["size"], SIZES["size"], 3))
    params = {name: tree_of(f"{case}/{name}") for name in ("generator", "discriminator")}
    keys = jax.random.split(jax.random.key(7), 4)
    labels = jnp.zeros(len(STEP["real"]), jnp.int32)
    drawn = gan.Draws(jnp.asarray(STEP["real"]), labels, None, jnp.asarray(STEP["noise"]), keys)
    for key, code in zip(keys, STEP["codes"]):
        # Up to rounding, which is another in unoptimised code; else the file must be made anew.
        np.testing.assert_allclose(jax.random.normal(key, code.shape), code, rtol=1e-5)
    beta = jnp.float32(config.bottleneck.beta_init if config.bottleneck else 0.0)

    @jax.jit
    def step(params):
        optimizer = gan.optimizer_of(config)
        fake = model.generate(params["generator"], drawn.noise[0], labels)
        (loss, told), slope = jax.value_and_grad(partial(gan.discriminator_loss, config, model), has_aux=True)(
            params["discriminator"], None, fake, drawn, beta
        )
        change, _ = optimizer.update(slope, optimizer.init(params["discriminator"]))
        discriminator = optax.apply_updates(params["discriminator"], change)
        loss_g, slope_g = jax.value_and_grad(partial(gan.loss_of_generator, config, model))(
            params["generator"], discriminator, drawn
        )
        change, _ = optimizer.update(slope_g, optimizer.init(params["generator"]))
        after = {"generator": optax.apply_updates(params["generator"], change), "discriminator": discriminator}
        slopes = {"generator": slope_g, "discriminator": slope}
        return jnp.stack([loss, loss_g, told.kl_nats]), slopes, after

    return step(params)


@pytest.mark.parametrize("case", CASES)
def test_a_step_is_pytorchs(case):
    losses, slopes, after = a_step(config_of(CASES[case]), case)
    np.testing.assert_allclose(losses, STEP[f"{case}/losses"], rtol=1e-4)
    for name in ("generator", "discriminator"):
        theirs = tree_of(f"{case}/{name}_slope")
        largest = max(float(jnp.abs(leaf).max()) for leaf in jax.tree.leaves(theirs))
        for mine, leaf in zip(*map(jax.tree.leaves, (slopes[name], theirs)), strict=True):
            np.testing.assert_allclose(mine, leaf, rtol=1e-4, atol=1e-5 * largest)
        moved = tree_of(f"{case}/{name}_after")
        for mine, leaf, slope in zip(*map(jax.tree.leaves, (after[name], moved, theirs)), strict=True):
            certain = np.abs(slope) > 1e-4 * largest  # RMSprop's first step is the sign of the slope
            np.testing.assert_allclose(np.asarray(mine)[certain], np.asarray(leaf)[certain], rtol=1e-4, atol=1e-6)


class Classes(NamedTuple):
    """A model whose images are their classes, drawn in turn as a GAN's are."""

    num_classes: int

    def sample(self, params, key, *, num_images):
        return jnp.arange(num_images) % self.num_classes


@pytest.mark.parametrize("classes", [1, 10, 43, 200])
def test_each_class_has_an_even_share_of_many_samples(classes):
    found = np.concatenate(list(sample.sampler_of(Classes(classes))(None, num=1_000, seed=0)))
    counts = np.bincount(found, minlength=classes)
    assert len(found) == 1_000
    assert counts.max() - counts.min() <= 1


def test_sources_of_another_shape_are_refused():
    draw = sample.sampler_of(gan.build_model(gan.Config(translate=True, filters=2, max_filters=4), (16, 16, 3)))
    with pytest.raises(ValueError, match=r"pictures of \(16, 16, 1\) do not fit a model of \(16, 16, 3\)"):
        next(draw(None, num=2, seed=0, sources=np.zeros((2, 16, 16, 1), np.uint8)))


def test_pixels_there_and_back():
    pixels = jnp.arange(256, dtype=jnp.uint8).reshape(1, 16, 16, 1)
    np.testing.assert_array_equal(to_pixels(scaled(pixels)), pixels)
    many = jnp.tile(pixels, (50, 1, 1, 1))
    spread = scaled(many) + jax.random.uniform(jax.random.key(0), many.shape) / 128.0  # as in training
    np.testing.assert_array_equal(to_pixels(spread), many)
    np.testing.assert_array_equal(to_pixels(jnp.array([-2.0, 2.0]).reshape(1, 1, 2, 1)).ravel(), [0, 255])


TINY = {"filters": 2, "max_filters": 4, "noise_size": 4, "batch_size": 4}


def tiny(config, **changes):
    vdb = config.bottleneck and dataclasses.replace(config.bottleneck, latent_size=4)
    return dataclasses.replace(config, bottleneck=vdb, **(TINY | changes))


def pictures(count, seed=0):
    draw = np.random.default_rng(seed)
    images = draw.integers(0, 256, (count, 8, 8, 3)).astype(np.uint8)
    return Pictures(images, draw.integers(0, 3, count), images[:, ::-1])


VARIANTS = {name: (config, {}) for name, config in FIGURE_8.items()} | {
    "conditional": (FIGURE_8["vgan-gp"], {"conditional": True, "num_classes": 3}),
    "pix2pix": (FIGURE_8["vgan"], {"translate": True, "l1": 100.0}),
    "minimax": (FIGURE_8["gan"], {"game": "minimax"}),
    "bfloat16": (FIGURE_8["vgan-gp"], {"bfloat16": True}),
}
EVERYTHING = (FIGURE_8["vgan-sn"], {"conditional": True, "num_classes": 3, "r1": 1.0, "wgan_gp": 1.0})


def made(config, changes):
    config = tiny(config, **changes)
    model = gan.build_model(config, (8, 8, 3))
    return config, model, gan.make(config, model, first=pictures(4), validation=pictures(4), num_iterations=2)


@pytest.mark.parametrize("name", VARIANTS)
def test_shapes_and_types_stay(name):
    config, model, algorithm = made(*VARIANTS[name])
    batch = jax.tree.map(jnp.asarray, pictures(4))
    start = jax.eval_shape(algorithm.init, jax.random.key(0))
    state, metrics = jax.eval_shape(algorithm.update, start, batch)
    assert state == start
    assert all((leaf.shape, leaf.dtype) == ((), jnp.float32) for leaf in metrics.values())
    assert all(leaf.dtype == jnp.float32 for leaf in jax.tree.leaves((state.params, state.average)))
    assert ("bottleneck/kl_nats" in metrics) == (config.bottleneck is not None)
    given = {"sources": batch.images} if model.translates else {}
    images = jax.eval_shape(partial(model.sample, num_images=4, **given), state.average, jax.random.key(1))
    assert (images.shape, images.dtype) == ((4, 8, 8, 3), jnp.uint8)


@pytest.mark.parametrize(
    ("config", "changes"),
    [
        pytest.param(*EVERYTHING, id="everything", marks=pytest.mark.long),
        *[pytest.param(*row, id=name, marks=pytest.mark.slow) for name, row in VARIANTS.items()],
    ],
)
def test_every_number_is_finite_and_every_weight_moves(config, changes):
    config, _, algorithm = made(config, changes)
    start = jax.jit(algorithm.init)(jax.random.key(0))
    update, state = jax.jit(algorithm.update), start
    for seed in (1, 2):
        state, metrics = update(state, jax.tree.map(jnp.asarray, pictures(4, seed)))
        assert all(np.isfinite(value) for value in metrics.values())
    for before, after in zip(*map(jax.tree.leaves, (start.params, state.params)), strict=True):
        assert (
            not np.array_equal(before, after) or before.size == 1
        )  # the one label's sign, and a Wasserstein critic's offset, have no slope
    if config.bottleneck:
        violation = metrics["bottleneck/kl_nats"] - config.bottleneck.info_constraint
        assert np.sign(violation) == np.sign(metrics["bottleneck/beta"] - config.bottleneck.beta_init)


@pytest.mark.slow
def test_a_scan_does_what_the_loop_does():
    config = tiny(FIGURE_8["vgan"])
    model = gan.build_model(config, (4, 4, 3))
    small = Pictures(pictures(8).images[:, :4, :4])
    algorithm = gan.make(config, model, first=small, validation=small, num_iterations=2)
    batches = Pictures(jnp.asarray(small.images).reshape(2, 4, 4, 4, 3))
    scanned, _ = jax.jit(lambda key: jax.lax.scan(algorithm.update, algorithm.init(key), batches))(jax.random.key(0))
    assert int(scanned.step) == 2
    assert all(np.isfinite(leaf).all() for leaf in jax.tree.leaves(scanned.params))


def test_seeds_under_vmap_start_as_separate_ones():
    model = gan.build_model(tiny(FIGURE_8["vgan"]), (4, 4, 3))
    keys, images = jax.random.split(jax.random.key(0), 2), jnp.zeros((1, 4, 4, 3), jnp.uint8)
    first = jax.jit(lambda key: model.init(key, images))
    together = jax.jit(jax.vmap(lambda key: model.init(key, images)))(keys)
    separate = jax.tree.map(lambda *leaves: np.stack(leaves), *map(first, keys))
    jax.tree.map(np.testing.assert_array_equal, together, separate)


def test_a_running_average_half_new_after_its_half_life():
    config = gan.Config(batch_size=50, average_half_life=10.0)
    assert config.average_decay ** (10_000 / 50) == pytest.approx(0.5)
    assert gan.Config().average_decay == pytest.approx(0.999, abs=1e-5)  # the released code's


REFUSED = {
    "both codes": ({"instance_noise": 1.0, "bottleneck": BottleneckConfig()}, "is for a code without a bottleneck"),
    "l1 of nothing": ({"l1": 1.0}, r"l1 \(1.0\) is for translations"),
    "negative": ({"r1": -1.0}, r"r1 \(-1.0\) must be finite and not negative"),
    "no number": ({"average_half_life": np.nan}, r"average_half_life \(nan\) must be above 0 and finite"),
    "a KL of nothing": ({"kl": "per-place"}, "kl 'per-place' is for a code with a bottleneck"),
    "a draw of nothing": (
        {"generator_code": "draw"},
        "generator_code 'draw' and head_activation 'none' are",
    ),
    "nothing to follow": ({"head_activation": "leaky_relu"}, "are for a code, which this discriminator has not"),
    "two conditions": ({"conditional": True, "translate": True}, "do not go together"),
}


@pytest.mark.parametrize(("changes", "message"), REFUSED.values(), ids=REFUSED.keys())
def test_a_config_that_cannot_work_is_refused(changes, message):
    with pytest.raises(ValueError, match=message):
        gan.Config(**changes)


def test_images_that_do_not_fit_are_refused():
    with pytest.raises(ValueError, match="images of 8 x 4 are no squares"):
        gan.build_model(gan.Config(), (8, 4, 3))
    with pytest.raises(ValueError, match="images of side 12 cannot be halved down to 4"):
        gan.build_model(gan.Config(), (12, 12, 3))
    shown, bare = pictures(4), Pictures(pictures(4).images)
    for config, given, message in (
        (gan.Config(conditional=True), bare, "conditional needs labels"),
        (gan.Config(conditional=True, num_classes=1), shown, "num_classes is 1"),
        (gan.Config(translate=True), bare, "translate needs a source"),
    ):
        model = gan.build_model(config, (8, 8, 3))
        with pytest.raises(ValueError, match=message):
            gan.make(config, model, first=given, validation=given, num_iterations=1)


def test_labels_of_all_images_must_be_those_of_the_classes(tmp_path):
    many = pictures(40)
    stray = np.r_[5, many.labels[1:]]  # others are 0, 1 and 2
    np.savez(tmp_path / "images.npz", images=many.images, labels=stray)
    recipe = IMAGE_RECIPES["vgan-small"].config
    for num_classes, message in ((4, "labels reach 5, but num_classes is 4"), (6, r"\(6\): no image .* class 3")):
        algorithm = tiny(recipe.algorithm, conditional=True, num_classes=num_classes)
        config = dataclasses.replace(recipe, algorithm=algorithm, data=tmp_path / "images.npz", validation_images=4)
        with pytest.raises(ValueError, match=message):
            build_on_images(config)


DAMAGED = {
    "shape": ({}, {"image_shape": [8, 8, "x"]}, r"run/config\.json is damaged: it says no image_shape"),
    "no facts": ({}, [], r"run/config\.json is damaged: it says no image_shape"),
    "seed": ({"seed": "a"}, {}, r"run/config\.json: seed \('a'\) must be of type int"),
    "of a policy": ({"recipe": "vail"}, {}, "run: recipe 'vail' trains no model of images"),
}


@pytest.mark.parametrize(("changes", "facts", "message"), DAMAGED.values(), ids=DAMAGED.keys())
def test_a_config_that_holds_no_such_run_is_named(tmp_path, changes, facts, message):
    config = dataclasses.asdict(IMAGE_RECIPES["vgan-small"].config) | changes
    create_run(tmp_path / "run", {"config": config, "facts": facts})
    with pytest.raises(ValueError, match=message):
        load_image_model(tmp_path / "run")


@pytest.fixture
def here(tmp_path, monkeypatch):
    """An empty folder with images. One device, as the mesh that the command sets would outlive it."""
    monkeypatch.chdir(tmp_path)
    monkeypatch.setattr(train, "use_all_devices", lambda: None)
    monkeypatch.setattr(train, "start_processes", lambda: None)
    np.savez("images.npz", images=pictures(40).images, labels=pictures(40).labels)
    return tmp_path


TYPED = (
    "vgan-small --data images.npz --filters 2 --max-filters 4 --noise-size 4 --bottleneck.latent-size 4 --batch-size 4 "
    "--validation-images 8 --evaluations 1 --checkpoint-seconds 1e9"
)


def type_(monkeypatch, typed, module=train):
    monkeypatch.setattr(sys, "argv", ["vdbjax", *typed.split()])
    module.main()


@pytest.mark.long
def test_a_run_is_drawn_from_and_has_no_likelihood(here, monkeypatch, capsys):
    type_(monkeypatch, f"{TYPED} --iterations 2 --out run")
    printed = capsys.readouterr().out
    assert "on 32 images of 8 x 8 x 3" in printed
    assert "KL (nats)" in printed
    assert Image.open("run/samples/0000002.png").size == (8 * 65 - 1, 8 * 65 - 1)
    assert (here / "run" / "curves.png").is_file()
    type_(monkeypatch, "run --out grid.png --num 6", sample)
    assert Image.open("grid.png").size == (3 * 65 - 1, 2 * 65 - 1)
    type_(monkeypatch, "run --out strips.png --num 2 --interpolate 5", sample)
    assert Image.open("strips.png").size == (5 * 65 - 1, 2 * 65 - 1)
    type_(monkeypatch, "run --npz images-of-run.npz --num 105 --seed 1", sample)
    with np.load("images-of-run.npz") as file:
        assert (file["images"].shape, file["images"].dtype) == ((105, 8, 8, 3), np.uint8)
    for module, typed, message in (
        (likelihood, "run --data images.npz", "recipe vgan-small, which gives images no likelihood"),
        (sample, "run --out a.jpg", "--out (a.jpg) must end in .png"),
        (sample, "run", "give either --out GRID.png or --npz FILE.npz"),
        (sample, "run --out grid.png --full", "a model of recipe vgan-small shows no means"),
        (sample, "run --out grid.png --sources a", "--sources (a): a model of recipe vgan-small translates none"),
        (train, "vgan-small --data images.npz --sources images.npz", "are for a GAN that translates, by --translate"),
        (sample, "run --out grid.png --index 1", "--index (1) must lie between 0 and 0"),
    ):
        with pytest.raises(SystemExit) as stop:
            type_(monkeypatch, typed, module)
        assert stop.value.code == 2
        error = capsys.readouterr().err
        assert message in error
        assert error.count("\n") == 1


@pytest.mark.parametrize("code", ["mean", "draw"])
def test_the_generator_sees_the_code_that_the_config_names(code):
    config = tiny(gan.Config(instance_noise=5.0, generator_code=code))
    model = gan.build_model(config, (8, 8, 3))
    params = model.init(jax.random.key(0), jnp.asarray(pictures(1).images))
    drawn = gan._drawn(config, model, jax.tree.map(jnp.asarray, pictures(4)), jax.random.key(1))
    losses = [
        float(
            gan.loss_of_generator(
                config, model, params["generator"], params["discriminator"], drawn._replace(keys=keys)
            )
        )
        for keys in jax.random.split(jax.random.key(2), (2, 4))
    ]
    assert (losses[0] == losses[1]) == (code == "mean")


def test_resuming_on_other_images_is_refused(here, monkeypatch, capsys):
    def refused(typed, message):
        with pytest.raises(SystemExit) as stop:
            type_(monkeypatch, typed)
        assert stop.value.code == 2
        assert message in capsys.readouterr().err

    def instead(*arguments, **options):
        raise Stopped(signal.SIGINT)

    monkeypatch.setattr(train, "train", instead)
    for typed in (f"{TYPED} --iterations 2 --out run", "--resume run"):
        with pytest.raises(SystemExit):
            type_(monkeypatch, typed)
    os.rename("images.npz", "elsewhere.npz")
    refused("--resume run", "images.npz")
    with pytest.raises(SystemExit) as stop:
        type_(monkeypatch, "--resume run --data elsewhere.npz")
    assert stop.value.code == 130  # as far as training
    changed = pictures(40).images
    changed[3, 0, 0, 0] ^= 1
    np.savez("changed.npz", images=changed, labels=pictures(40).labels)
    np.savez("more.npz", images=pictures(41).images, labels=pictures(41).labels)
    before = (here / "run" / "config.json").read_text()
    refused("--resume run --data changed.npz", "not those that the run was started on (images_sha256 was")
    refused("--resume run --data more.npz", "(images was 32 and is 33); name these with --data, or train anew")
    assert (here / "run" / "config.json").read_text() == before


def test_a_run_among_its_own_images_is_refused(here, monkeypatch, capsys):
    (here / "pictures").mkdir()
    for number, image in enumerate(pictures(20).images):
        Image.fromarray(image).save(here / "pictures" / f"{number}.png")
    with pytest.raises(SystemExit):
        type_(monkeypatch, f"{TYPED.replace('images.npz', 'pictures')} --iterations 2 --out pictures/run")
    assert "pictures/run lies in" in capsys.readouterr().err
    assert not (here / "pictures" / "run").exists()


@pytest.mark.long
def test_resumed_in_the_middle_it_ends_with_the_same_bits(here, monkeypatch):
    type_(monkeypatch, f"{TYPED} --iterations 4 --out whole")
    type_(monkeypatch, f"{TYPED} --iterations 2 --out cut")
    type_(monkeypatch, "vgan-small --resume cut --iterations 4")
    whole, cut = (load_image_model(here / name) for name in ("whole", "cut"))
    assert whole.iteration == cut.iteration == 4
    for mine, other in zip(*map(jax.tree.leaves, (whole.params, cut.params)), strict=True):
        assert np.asarray(mine).tobytes() == np.asarray(other).tobytes()
    lines = [read_metrics(open_run(here / name)[0]) for name in ("whole", "cut")]
    assert [line["discriminator/loss"] for line in lines[0]] == [line["discriminator/loss"] for line in lines[1]]


@pytest.mark.long
def test_numbers_that_blow_up_go_back_to_the_checkpoint_and_then_stop(here, monkeypatch, capsys):
    with pytest.raises(SystemExit) as stop:
        type_(monkeypatch, f"{TYPED} --iterations 50 --learning-rate 1e30 --retries 2 --checkpoint-seconds 0 --out run")
    report = str(stop.value.code)
    assert "2 retries with other noise did not help" in report
    assert capsys.readouterr().err.count("going back (retry") == 2
    run, _ = open_run(here / "run")
    newest = max(saved_iterations(run), default=0)
    assert len(read_metrics(run)) <= newest + 1
    if newest:
        assert f"the checkpoint of iteration {newest}" in report
