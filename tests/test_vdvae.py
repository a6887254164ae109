"""Hierarchical VAEs: sizes, the distortion's dual, one run of each kind through the commands, and bad input."""

import dataclasses
import json
import shutil
import sys
from pathlib import Path

import jax
import jax.numpy as jnp
import numpy as np
import optax
import pytest
from PIL import Image

from vdbjax import sample, train, vae_figures
from vdbjax.bottleneck import DualState, dual_update
from vdbjax.image_build import num_parameters, validation_images
from vdbjax.image_recipes import IMAGE_RECIPES
from vdbjax.images import two_stage, vdvae
from vdbjax.images.vdvae import HIGHEST_LAMBDA, LOWEST_LAMBDA, Config, fitting
from vdbjax.trained import load_image_model
from vdbjax.training.run_dir import open_run, read_metrics
from vdbjax.types import Pictures

IMAGENET32 = dataclasses.replace(
    IMAGE_RECIPES["vdvae-cifar10"].config.algorithm,
    layers=(2, 5, 10, 20, 41),
    encoder_blocks=(6, 7, 9, 10, 16),
    width=512,
    bottleneck_width=128,
)


@pytest.mark.parametrize(
    ("config", "layers", "millions"),
    [(IMAGE_RECIPES["vdvae-cifar10"].config.algorithm, 43, 39.146), (IMAGENET32, 78, 119.281)],
    ids=["cifar10", "imagenet32"],
)
def test_as_many_layers_and_parameters_as_vdvae(config, layers, millions):
    assert sum(config.layers) == layers
    assert round(num_parameters(vdvae.build_model(config, (32, 32, 3))) / 1e6, 3) == millions


@pytest.mark.parametrize(("name", "side", "layers"), [("vdvae-svhn", 32, 48), ("vdvae-celeba64", 64, 56)])
def test_as_many_layers_as_the_paper_says(name, side, layers):
    model = vdvae.build_model(IMAGE_RECIPES[name].config.algorithm, (side, side, 3))
    images = jax.ShapeDtypeStruct((2, side, side, 3), np.uint8)
    params = jax.eval_shape(model.init, jax.random.key(0), images)
    terms = jax.eval_shape(model.terms, params, images, jax.random.key(0))
    assert terms.rates.shape == (layers, 2)


@pytest.mark.parametrize("gamma", [0.25, 0.5, 2.0])
def test_the_dual_finds_the_known_multiplier(gamma):
    """R = ½ log(1 / s) and D = s, at each step at the best s for lambda: (1 - lambda) / (2 lambda)."""
    along = optax.scale_by_adam(b1=0.0, b2=0.999)

    def step(state, _):
        distortion = (1.0 - state.beta) / (2.0 * state.beta)
        settings = {"constraint": gamma, "step_size": 1e-3, "lower": LOWEST_LAMBDA, "upper": HIGHEST_LAMBDA}
        state = dual_update(state, distortion, **settings, direction=along)
        return state, (state.beta, distortion)

    start = jnp.float32(HIGHEST_LAMBDA)
    state = DualState(start, along.init(start))
    _, (beta, distortion) = jax.jit(lambda s: jax.lax.scan(step, s, None, 4_000))(state)
    assert np.all((beta >= LOWEST_LAMBDA) & (beta <= HIGHEST_LAMBDA))
    np.testing.assert_allclose(beta[-200:].mean(), 1.0 / (1.0 + 2.0 * gamma), rtol=0.02)
    np.testing.assert_allclose(distortion[-200:].mean(), gamma, rtol=0.02)


@pytest.mark.parametrize(("side", "expected"), [(32, [1, 4, 8, 16, 32]), (28, [1, 7, 14, 28]), (7, [1, 7]), (1, [1])])
def test_resolutions_that_fit(side, expected):
    assert fitting(side) == expected
    Config(resolutions=tuple(expected), layers=(1,) * len(expected), encoder_blocks=(1,) * len(expected))


TINY = {
    "resolutions": (1, 8),
    "layers": (1, 2),
    "encoder_blocks": (1, 2),
    "width": 8,
    "bottleneck_width": 4,
    "latents": 2,
    "batch_size": 8,
}
FLAGS = (
    "--resolutions 1 8 --layers 1 2 --encoder-blocks 1 2 --width 8 --bottleneck-width 4 --latents 2 --batch-size 8 "
    "--validation-images 16 --warmup-steps 5 --average-decay 0.9 --learning-rate 1e-2 --checkpoint-seconds 1e9"
)
SHORT = f"--data bars.npz {FLAGS} --evaluations 2"


def bars(count, seed=0):
    """Images [count, 8, 8, 1] of four grey levels in rows, with little noise."""
    draw = np.random.default_rng(seed)
    images = 40 + 60 * draw.integers(0, 4, size=(count, 8, 1, 1)) + np.zeros((count, 8, 8, 1), int)
    return np.clip(images + draw.integers(-2, 3, size=images.shape), 0, 255).astype(np.uint8)


@pytest.fixture
def here(tmp_path, monkeypatch):
    """A folder with images alone, whose command lays no mesh, as that would outlive it."""
    monkeypatch.chdir(tmp_path)
    monkeypatch.setattr(train, "use_all_devices", lambda: None)
    monkeypatch.setattr(train, "start_processes", lambda: None)
    np.savez("bars.npz", images=bars(200))


@pytest.fixture(scope="module")
def runs(tmp_path_factory):
    """A folder with images and two runs: `first`, and `second` over it.

    One device, as the mesh that the command sets would outlive it.
    """
    with pytest.MonkeyPatch.context() as patch:
        folder = tmp_path_factory.mktemp("runs")
        patch.chdir(folder)
        patch.setattr(train, "use_all_devices", lambda: None)
        patch.setattr(train, "start_processes", lambda: None)
        np.savez("bars.npz", images=bars(200))
        type_(patch, train, f"vdvae-small {SHORT} --gamma 4.0 --out first --iterations 60")
        type_(patch, train, f"two-stage-small --data bars.npz {FLAGS} --evaluations 2 --primary first --gamma 1.0 "
              "--out second --iterations 10")  # fmt: skip
        yield folder


def type_(patch, module, typed):
    patch.setattr(sys, "argv", [module.__name__, *typed.split()])
    module.main()


def lines_of(path):
    return [{k: v for k, v in line.items() if k != "seconds"} for line in read_metrics(open_run(path)[0])]


@pytest.mark.long
def test_the_distortion_falls_and_grids_are_drawn(runs):
    lines = lines_of(runs / "first")
    assert lines[-1]["vae/distortion"] < 0.7 * lines[0]["vae/distortion"]
    assert {"eval/distortion", "eval/rate_nats", "eval/bits_per_dim"} <= lines[-1].keys()
    assert all(LOWEST_LAMBDA <= line["vae/lambda"] <= HIGHEST_LAMBDA + 1e-6 for line in lines)
    for kind, rows in (("samples", 8), ("reconstructions", 4)):  # 64 samples; 16 validation images in pairs of rows
        assert Image.open(runs / "first" / kind / "0000060.png").size == (8 * 65 - 1, rows * 65 - 1)


@pytest.mark.long
@pytest.mark.parametrize("name", ["first", "second"])
def test_full_samples_are_the_means_with_the_noise_of_the_pixels(runs, monkeypatch, tmp_path, name):
    for out, flag in (("means", ""), ("full", "--full")):
        type_(monkeypatch, sample, f"{name} --npz {tmp_path / out}.npz --num 64 {flag}")
    means, full = (np.load(tmp_path / f"{out}.npz")["images"].astype(float) for out in ("means", "full"))
    trained = load_image_model(runs / name)
    last = trained.params[0].get("second", trained.params[0])
    inside = (means > 100) & (means < 156)  # where little is cut off
    assert np.std((full - means)[inside]) == pytest.approx(256 * np.exp(0.5 * last["log_variance"]), rel=0.1)


@pytest.mark.long
def test_another_gamma_is_refused_on_resuming(runs, monkeypatch, capsys):
    monkeypatch.chdir(runs)
    with pytest.raises(SystemExit) as stop:
        type_(monkeypatch, train, "vdvae-small --resume first --gamma 2.0 --iterations 70")
    assert stop.value.code == 2
    assert "--gamma (4.0 -> 2.0)" in capsys.readouterr().err


@pytest.mark.long
def test_a_gamma_out_of_reach_is_said_and_stops_where_asked(here, monkeypatch, capsys):
    type_(monkeypatch, train, f"vdvae-small {SHORT} --gamma 1e-6 --give-up-after 4 --out short --iterations 8")
    lines = lines_of(Path("short"))
    assert len(lines) == 4
    printed = capsys.readouterr().out
    assert f"gamma 1e-06 was not reached: the distortion came to {lines[-1]['eval/distortion']:.4g}" in printed


@pytest.mark.long
def test_two_stages_start_as_the_first_and_report_the_joint_bound(runs):
    trained = load_image_model(runs / "second")
    first = load_image_model(runs / "first").params[0]
    kept = trained.params[0]["first"]
    assert all(np.array_equal(a, b) for a, b in zip(*map(jax.tree.leaves, (first, kept)), strict=True))
    model, images = trained.model, jnp.asarray(bars(8, seed=3))
    start = jax.jit(model.starting_from(first).init)(jax.random.key(1), images)

    def both(params, key):
        key_first, _ = jax.random.split(key)
        return model.first.terms(params["first"], images, key_first), model.terms(params, images, key)

    one, two = jax.jit(both)(start, jax.random.key(2))
    np.testing.assert_allclose(two.means, one.means, atol=1e-6)
    np.testing.assert_allclose(two.distortion, one.distortion, rtol=1e-4)
    np.testing.assert_array_equal(two.rates[:3], one.rates)
    assert two.rates.shape == (6, 8)
    np.testing.assert_allclose(two.bound, two.log_likelihood - np.sum(two.rates, axis=0), rtol=1e-5)


@pytest.mark.long
def test_a_first_vae_of_other_images_is_refused(runs, monkeypatch, capsys):
    monkeypatch.chdir(runs)
    np.savez("coloured.npz", images=bars(40).repeat(3, axis=-1))
    typed = "two-stage-small --primary first --gamma 0.5 --data coloured.npz --validation-images 8 --out third"
    with pytest.raises(SystemExit) as stop:
        type_(monkeypatch, train, typed)
    assert stop.value.code == 2
    assert "the first VAE is not of images of (8, 8, 3)" in capsys.readouterr().err
    assert not Path("third").exists()


@pytest.mark.long
def test_what_the_first_learnt_stays(runs):
    lines = lines_of(runs / "second")
    started = lines_of(runs / "first")[-1]["eval/distortion"]
    assert lines[0]["vae/distortion"] < 1.5 * started  # not that of a new model
    assert lines[-1]["iteration"] == 10


@pytest.mark.long
def test_the_figures_and_numbers_of_both(runs, monkeypatch, capsys):
    monkeypatch.chdir(runs)
    type_(monkeypatch, vae_figures, "first second --data bars.npz --images 16 --shown 4 --out figures")
    made = {path.name for path in Path("figures").iterdir()}
    assert made == {
        *("reconstructions.png", "samples.png", "against_distortion.png", "two_stages.png", "over_iterations.png"),
        *("layer_rates.png", "early_and_late_first.png", "early_and_late_second.png", "numbers.json"),
    }
    numbers = json.loads(Path("figures/numbers.json").read_text())
    assert [len(each["layer_rates"]) for each in numbers] == [3, 6]
    np.testing.assert_allclose(numbers[1]["rate_nats"], sum(numbers[1]["layer_rates"]), rtol=1e-5)
    tenth = numbers[0]["training"][3]
    assert tenth["iterations"] == [19, 24]
    np.testing.assert_allclose(tenth["distortion"], np.mean([x["vae/distortion"] for x in lines_of("first")[18:24]]))
    assert f"first: distortion {numbers[0]['distortion']:.4g}" in capsys.readouterr().out


@pytest.mark.long
def test_figures_of_folders_of_one_name(runs, monkeypatch):
    monkeypatch.chdir(runs)
    for place in ("here", "there"):
        shutil.copytree("first", Path(place) / "run")
    type_(monkeypatch, vae_figures, "here/run there/run --data bars.npz --images 4 --shown 2 --out of-one-name")
    assert {"early_and_late_here-run.png", "early_and_late_there-run.png", "numbers.json"} <= {
        path.name for path in Path("of-one-name").iterdir()
    }


@pytest.mark.long
def test_without_data_the_figures_are_of_images_that_were_held_out(runs, monkeypatch, capsys):
    monkeypatch.chdir(runs)
    trained = load_image_model("first")
    found, among = validation_images(trained.config, trained.facts), bars(200)
    assert found.shape == (16, 8, 8, 1)
    known = {image.tobytes() for image in among}
    assert all(image.tobytes() in known for image in found)
    assert not np.array_equal(found, among[:16])
    facts = json.loads(Path("first/config.json").read_text())
    shutil.copytree("first", "elsewhere")
    Path("elsewhere/config.json").write_text(json.dumps(facts | {"facts": facts["facts"] | {"images": 150}}))
    with pytest.raises(SystemExit):
        type_(monkeypatch, vae_figures, "first elsewhere --out none")
    assert (
        "elsewhere may have learnt from the images that first was evaluated on (images was 184 and is 150); name"
        in (capsys.readouterr().err)
    )
    before = Path("bars.npz").read_bytes()
    np.savez("bars.npz", images=np.concatenate([among, among[:1]]))
    try:
        with pytest.raises(ValueError, match=r"not those that the run was started on \(images was 184 and is 185\)"):
            validation_images(trained.config, trained.facts)
    finally:
        Path("bars.npz").write_bytes(before)


BAD = {
    "size": ("vdvae-small --gamma 4 --size 12", "images are 12 x 12; give others, such as --resolutions 1 3 6 12"),
    "gamma": ("vdvae-small --gamma 0", "gamma (0.0) must be above 0; for the ELBO alone give None"),
    "mixture": ("vdvae-small --observation mixture", "gamma (20.0) is a squared error, which observation 'mixture'"),
    "no gamma": ("vdvae-small --gamma None --give-up-after 5", "give_up_after (5) waits for a gamma"),
    "no multiple": ("vdvae-small --resolutions 3 8", "resolutions (3, 8): 8 is no multiple of 3"),
    "counts": ("vdvae-small --layers 1", "must be equally many"),
    "no first": ("two-stage-small", "no first VAE to build on; name its run folder with --primary RUN"),
}
BAD_FIRSTS = {
    "of another kind": ("two-stage-small --primary second", "is no run of a VAE with a Gaussian"),
    "evaluated on what it learnt": (
        "two-stage-small --primary first --gamma 1 --validation-images 40",
        "the first stage may have learnt from images that this one is evaluated on (images was 184 and is 160); give",
    ),
    "gamma above its own": ("two-stage-small --primary first --gamma 5", "gamma (5.0) must be below the first VAE's"),
}


def is_refused(monkeypatch, capsys, typed, message):
    recipe, *rest = typed.split()
    with pytest.raises(SystemExit) as stop:
        type_(monkeypatch, train, f"{recipe} {SHORT} {' '.join(rest)} --out bad")
    error = capsys.readouterr().err
    assert stop.value.code == 2
    assert message in error
    assert error.count("\n") == 1
    assert not Path("bad").exists()


@pytest.mark.parametrize(("typed", "message"), BAD.values(), ids=BAD.keys())
def test_bad_input_ends_in_one_line(here, monkeypatch, capsys, typed, message):
    is_refused(monkeypatch, capsys, typed, message)


@pytest.mark.long
@pytest.mark.parametrize(("typed", "message"), BAD_FIRSTS.values(), ids=BAD_FIRSTS.keys())
def test_a_first_vae_that_does_not_fit_is_refused(runs, here, monkeypatch, capsys, typed, message):
    monkeypatch.chdir(runs)
    is_refused(monkeypatch, capsys, typed, message)


KINDS = {
    "elbo": Config(**TINY, gamma=None),
    "mixture": Config(**TINY, gamma=None, observation="mixture", posterior="direct", weight_decay=0.01),
}


@pytest.mark.long
@pytest.mark.parametrize("config", KINDS.values(), ids=KINDS.keys())
def test_the_algorithm_keeps_the_contract_without_a_gamma(config):
    model = vdvae.build_model(config, (8, 8, 1))
    algorithm = vdvae.make(config, model, first=Pictures(bars(8)), validation=Pictures(bars(8)), num_iterations=4)
    start = jax.jit(algorithm.init)(jax.random.key(0))
    update, state, batch = jax.jit(algorithm.update), start, Pictures(jnp.asarray(bars(8)))
    for _ in range(3):
        state, metrics = update(state, batch)
    assert jax.eval_shape(lambda s: s, state) == jax.eval_shape(lambda s: s, start)
    assert all(np.isfinite(value) for value in metrics.values())
    moved = [not np.array_equal(a, b) for a, b in zip(*map(jax.tree.leaves, (start.params, state.params)), strict=True)]
    assert np.mean(moved) > 0.9
    head = jax.tree.map(lambda leaf: leaf * jnp.nan, state.params["head"])
    broken = state._replace(params=state.params | {"head": head})
    after, metrics = update(broken, batch)  # a gradient that is not finite changes nothing, and says so
    for name in ("params", "average", "optimizer"):
        for one, other in zip(*(jax.tree.leaves(getattr(each, name)) for each in (broken, after)), strict=True):
            np.testing.assert_array_equal(one, other)
    assert float(metrics["vae/skipped"]) == 1.0
    assert all(np.isfinite(value) for value in metrics.values())


def test_a_config_that_differs_in_its_first_alone_is_settled():
    first = Config(**TINY, gamma=4.0)
    found = two_stage.settled(two_stage.Config(gamma=1.0, primary=Path("first")), first)
    assert {name: getattr(found, name) for name in TINY if name != "batch_size"} == {
        name: value for name, value in TINY.items() if name != "batch_size"
    }
