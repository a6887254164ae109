"""The pieces of the hierarchical VAE against Monte Carlo, hand arithmetic and each other; all models are tiny."""

import math

import jax
import jax.numpy as jnp
import numpy as np
import pytest

from vdbjax.images.gaussians import Gaussian, kl_nats, merged
from vdbjax.images.gradient_skipping import PATIENCE, Skipping, judge, shown_as_finite, usual_so_far
from vdbjax.images.hierarchy import Encoder, Hierarchy, UNet
from vdbjax.images.observation import GaussianHead, MixtureHead, quantised, scaled
from vdbjax.images.vae_blocks import Uniform, drawn, pooled, stacked, upsampled

ENCODER = Encoder((1, 4), (1, 2), width=8, middle=4, image_channels=2, scan=False, remat=False)
HIERARCHY = Hierarchy(ENCODER, layers=(1, 2), latents=3, merging=True)


def gaussians(seed: int, shape: tuple[int, ...]) -> Gaussian:
    draw = np.random.default_rng(seed)
    return Gaussian(jnp.float32(draw.normal(size=shape)), jnp.float32(0.5 * draw.normal(size=shape)))


def log_density(gaussian: Gaussian, z: np.ndarray) -> np.ndarray:
    mean, log_std = (np.asarray(part, np.float64) for part in gaussian)
    return -0.5 * ((z - mean) / np.exp(log_std)) ** 2 - log_std - 0.5 * math.log(2 * math.pi)


def test_kl_agrees_with_monte_carlo():
    posterior, prior = gaussians(0, (4,)), gaussians(1, (4,))
    noise = np.random.default_rng(2).normal(size=(200_000, 4))
    z = np.asarray(posterior.mean) + np.exp(np.asarray(posterior.log_std)) * noise
    ratio = log_density(posterior, z) - log_density(prior, z)
    error = ratio.std(axis=0) / math.sqrt(len(z))
    assert np.all(np.abs(np.asarray(kl_nats(posterior, prior)) - ratio.mean(axis=0)) < 4 * error)
    np.testing.assert_array_equal(kl_nats(prior, prior), np.zeros(4))


def test_merging_adds_precisions_and_is_the_normalised_product():
    prior, seen = gaussians(3, (5,)), gaussians(4, (5,))
    found = merged(prior, seen)
    precision = [np.exp(-2.0 * np.asarray(each.log_std, np.float64)) for each in (prior, seen, found)]
    np.testing.assert_allclose(precision[2], precision[0] + precision[1], rtol=1e-5)
    mean = (precision[0] * np.asarray(prior.mean) + precision[1] * np.asarray(seen.mean)) / precision[2]
    np.testing.assert_allclose(found.mean, mean, rtol=1e-4, atol=1e-6)
    points = np.linspace(-2, 2, 7)[:, None]
    gap = log_density(prior, points) + log_density(seen, points) - log_density(found, points)
    np.testing.assert_allclose(gap - gap[:1], 0.0, atol=1e-4)  # a constant: the product's normaliser


@pytest.mark.parametrize("log_std", [-80.0, 80.0])
def test_merging_stays_finite_where_precisions_overflow(log_std):
    prior, seen = Gaussian(jnp.zeros(1), jnp.zeros(1)), Gaussian(jnp.ones(1), jnp.full(1, log_std))
    gradients = jax.grad(lambda seen: jnp.sum(kl_nats(merged(prior, seen), prior)))(seen)
    assert all(np.all(np.isfinite(leaf)) for leaf in jax.tree.leaves((merged(prior, seen), gradients)))
    if log_std > 0:  # it knows nothing
        np.testing.assert_array_equal(merged(prior, seen).mean, prior.mean)
        np.testing.assert_array_equal(merged(prior, seen).log_std, prior.log_std)


def test_pooling_averages_and_upsampling_repeats():
    x = jnp.arange(32.0).reshape(1, 4, 4, 2)
    np.testing.assert_array_equal(pooled(x, 2)[0, 0, 0], np.mean([[0, 1], [2, 3], [8, 9], [10, 11]], axis=0))
    np.testing.assert_array_equal(pooled(upsampled(x, 3), 3), x)
    np.testing.assert_array_equal(upsampled(x, 2)[0, :2, :2, 0], np.zeros((2, 2)))


def test_parameters_start_uniform_within_their_limits_and_each_anew():
    plan = stacked({"kernel": Uniform((50, 20), 0.25), "bias": Uniform((3,), 0.0)}, 2)
    found = drawn(jax.random.key(0), plan | {"gain": jnp.ones(2)})
    assert found["kernel"].shape == (2, 50, 20)
    assert 0.24 < np.abs(found["kernel"]).max() <= 0.25
    assert abs(np.var(found["kernel"]) - 0.25**2 / 3) < 0.002
    assert not np.allclose(found["kernel"][0], found["kernel"][1])
    np.testing.assert_array_equal(found["bias"], np.zeros((2, 3)))
    np.testing.assert_array_equal(found["gain"], np.ones(2))


def params_of(hierarchy: Hierarchy, seed: int = 0):
    """Noise for all parameters, so that nothing is 0."""
    shapes = jax.eval_shape(lambda: drawn(jax.random.key(0), hierarchy.plan()))
    draw = np.random.default_rng(seed)
    return jax.tree.map(lambda leaf: np.float32(0.4 * draw.normal(size=leaf.shape)), shapes)


@pytest.fixture(scope="module")
def tiny():
    """(parameters, images)."""
    return params_of(HIERARCHY), np.random.default_rng(9).normal(size=(3, 4, 4, 2)).astype(np.float32)


def losses(hierarchy: Hierarchy, params, image, given=None):
    features, rates = hierarchy.infer(params, image, jax.random.key(5), given=given)
    return jnp.mean(features**2) + jnp.mean(rates), (features, rates)


@pytest.fixture(scope="module")
def unrolled(tiny):
    """(gradients, (features, rates)) of the layers laid out one after the other."""
    return jax.jit(lambda p, x: jax.grad(lambda p: losses(HIERARCHY, p, x), has_aux=True)(p))(*tiny)


@pytest.mark.parametrize("remat", [False, pytest.param(True, marks=pytest.mark.long)])
def test_a_scan_gives_the_same_numbers_and_gradients(tiny, unrolled, remat):
    scanned = HIERARCHY._replace(encoder=ENCODER._replace(scan=True, remat=remat))
    assert str(scanned.plan()) == str(HIERARCHY.plan())
    found = jax.jit(lambda p, x: jax.grad(lambda p: losses(scanned, p, x), has_aux=True)(p))(*tiny)
    for one, other in zip(*map(jax.tree.leaves, (found, unrolled)), strict=True):
        largest = max(1.0, float(np.abs(other).max()))  # what a sum's rounding errors grow with
        np.testing.assert_allclose(one, other, rtol=2e-4, atol=1e-5 * largest)


def test_rates_have_a_line_for_each_layer_and_all_parameters_take_part(unrolled):
    gradients, (features, rates) = unrolled
    assert features.shape == (3, 4, 4, 8)
    assert rates.shape == (3, 3)
    assert np.all(np.asarray(rates) > 0)
    still = [
        jax.tree_util.keystr(path) for path, leaf in jax.tree_util.tree_leaves_with_path(gradients) if not leaf.any()
    ]
    assert not still


def test_each_layers_rate_agrees_with_monte_carlo(tiny):
    """The mean over draws of log q(z) - log p(z), layer after layer along the chain, against what `infer` sums up."""
    params, image = tiny
    image = np.tile(image[:1], (4_000, 1, 1, 1))

    def chain(params, image, key):
        seen, x = HIERARCHY.encoder.apply(params["encoder"], image), jnp.zeros((len(image), 0, 0, 0))
        ratios = []
        for place, count in enumerate(HIERARCHY.layers):
            x = HIERARCHY.enter(params, place, x, None)
            for number in range(count):
                layer = jax.tree.map(lambda leaf, number=number: leaf[number], params["stacks"][place])
                prior, after = HIERARCHY.prior(layer, x)
                posterior = HIERARCHY.posterior(layer, x, seen[place], prior)
                z = posterior.at(jax.random.normal(jax.random.fold_in(key, len(ratios)), posterior.mean.shape))
                densities = [
                    -0.5 * ((z - each.mean) / jnp.exp(each.log_std)) ** 2 - each.log_std for each in (posterior, prior)
                ]
                ratios.append(jnp.sum(densities[0] - densities[1], axis=(1, 2, 3)))
                x = HIERARCHY.absorb(layer, after, z)
        return jnp.stack(ratios), HIERARCHY.infer(params, image, key)[1]

    ratios, rates = (np.asarray(each, np.float64) for each in jax.jit(chain)(params, image, jax.random.key(1)))
    error = np.hypot(ratios.std(axis=1), rates.std(axis=1)) / math.sqrt(ratios.shape[1])
    assert np.all(np.abs(ratios.mean(axis=1) - rates.mean(axis=1)) < 4 * error)


def test_a_given_image_reaches_every_resolution():
    given = HIERARCHY._replace(given=UNet(ENCODER._replace(blocks=(1, 1))))
    params, image = params_of(given), np.random.default_rng(3).normal(size=(2, 4, 4, 2)).astype(np.float32)
    features = jax.jit(lambda p, x: given.see(p, x))(params, image)
    assert [each.shape for each in features] == [(2, 1, 1, 8), (2, 4, 4, 8)]
    assert all(not np.allclose(each[0], each[1]) for each in features)


def test_pixels_scale_and_come_back():
    images = jnp.arange(256, dtype=jnp.uint8).reshape(1, 16, 16, 1)
    np.testing.assert_array_equal(quantised(scaled(images)), images)
    np.testing.assert_array_equal(quantised(jnp.float32([[[[-1.0, 2.0]]]])), [[[[0, 255]]]])


def test_the_gaussians_likelihood_is_the_density_of_dequantised_pixels():
    images = jnp.uint8([[[[10], [200]]]])
    means, key = jnp.float32([[[[0.1], [0.7]]]]), jax.random.key(0)
    found = GaussianHead().log_likelihood(images, means, math.log(0.01), key)
    noise = np.asarray(jax.random.uniform(key, images.shape), np.float64)
    points, centres = np.asarray(images) + noise, 256.0 * np.asarray(means, np.float64)
    std = 25.6  # of pixels in [0, 256]
    expected = -0.5 * ((points - centres) / std) ** 2 - math.log(std * math.sqrt(2 * math.pi))
    np.testing.assert_allclose(found, [expected.sum()], rtol=1e-5)


@pytest.fixture(scope="module")
def mixture():
    """(head, outputs of one pixel [1, 1, 1, 27]) of two mixtures; some scales far too small, some far too large."""
    head = MixtureHead(2)
    outputs = np.random.default_rng(0).normal(size=(1, 1, 1, head.num_outputs(3))).astype(np.float32)
    outputs[..., 8:10] = [-20.0, 3.0]  # red's scales
    return head, outputs


def test_the_mixtures_probabilities_of_a_channel_sum_to_one(mixture):
    """Blue's, given red and green; and all of grey."""
    head, outputs = mixture
    likelihood = jax.jit(head.log_likelihood)
    pixels = np.zeros((256, 1, 1, 3), np.uint8)
    pixels[..., 0], pixels[..., 1], pixels[:, 0, 0, 2] = 120, 7, np.arange(256)
    blue = likelihood(jnp.asarray(pixels), jnp.tile(outputs, (256, 1, 1, 1)))
    pixels[..., 2] = 0
    reds = np.arange(256, dtype=np.uint8)
    grey = likelihood(jnp.asarray(reds[:, None, None, None]), jnp.tile(outputs[..., :10], (256, 1, 1, 1)))
    np.testing.assert_allclose(jax.nn.logsumexp(grey), 0.0, atol=1e-4)
    logits, means, log_scales, weights = (np.asarray(p, np.float64) for p in head._parts(jnp.asarray(outputs), 3))
    x = np.array([120, 7]) / 127.5 - 1.0

    def mass(value, mean, log_scale):
        edges = [-np.inf if value == 0 else value - 0.5, np.inf if value == 255 else value + 0.5]
        high, low = (0.5 + 0.5 * np.tanh(0.5 * (e / 127.5 - 1.0 - mean) / np.exp(log_scale)) for e in edges[::-1])
        return high - low

    chosen = np.exp(logits[0, 0, 0]) / np.exp(logits[0, 0, 0]).sum()
    before = [
        chosen[k]
        * mass(120, means[0, 0, 0, 0, k], log_scales[0, 0, 0, 0, k])
        * mass(7, means[0, 0, 0, 1, k] + weights[0, 0, 0, 0, k] * x[0], log_scales[0, 0, 0, 1, k])
        for k in range(2)
    ]
    np.testing.assert_allclose(jax.nn.logsumexp(blue), np.log(sum(before)), atol=1e-3)


def test_the_mixtures_gradients_stay_finite_and_its_draws_are_its_own(mixture):
    head, outputs = mixture
    images = jnp.uint8([0, 255, 128]).reshape(1, 1, 1, 3)
    gradients = jax.jit(jax.grad(lambda o: jnp.sum(head.log_likelihood(images, o))))(jnp.asarray(outputs))
    assert np.all(np.isfinite(gradients))
    grey = np.zeros((1, 1, 1, 6), np.float32)
    grey[..., 2:4], grey[..., 4:] = [-0.5, 0.5], -3.0
    found = np.asarray(MixtureHead(2).draw(jnp.tile(grey, (1, 100, 100, 1)), 1, jax.random.key(0)), np.float64)
    assert abs((found / 127.5 - 1.0 < 0).mean() - 0.5) < 0.05
    np.testing.assert_allclose(np.abs(found / 127.5 - 1.0).mean(), 0.5, atol=0.01)


@pytest.fixture(scope="module")
def judged():
    return jax.jit(lambda state, norm: judge(state, norm, factor=10.0))


def test_gradients_far_above_the_usual_are_skipped_and_bad_ones_always(judged):
    state = usual_so_far()
    for _ in range(60):
        applied, state = judged(state, jnp.float32(2.0))
        assert applied
    assert not judged(state, jnp.float32(21.0))[0]
    assert judged(state, jnp.float32(19.0))[0]
    for bad in (jnp.nan, jnp.inf):
        applied, after = judged(state, jnp.float32(bad))
        assert not applied
        assert after.log_level == state.log_level


def test_skipping_cannot_lock_up(judged):
    """From the smallest level to the largest norm there is."""
    state = Skipping(jnp.log(jnp.float32(1e-37)), jnp.int32(1000), jnp.int32(0))
    for step in range(400):  # noqa: B007
        applied, state = judged(state, jnp.float32(1e38))
        if applied:
            break
    gap = math.log(1e38) - math.log(1e-37)
    assert step <= math.log(gap / math.log(10.0)) / -math.log(0.99) + 1


def test_a_run_that_cannot_go_on_shows_it(judged):
    state, shown = usual_so_far(), []
    for _ in range(PATIENCE):
        _, state = judged(state, jnp.float32(jnp.nan))
        shown.append(np.isfinite(shown_as_finite(state, jnp.float32(jnp.nan))))
    assert all(shown[:-1])
    assert not shown[-1]
