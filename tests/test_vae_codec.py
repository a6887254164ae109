"""Bits-back over a VAE's latents: images come back, the message too, and an image costs its negative ELBO."""

import math

import jax
import jax.numpy as jnp
import numpy as np
import pytest
from made_vae import LOG_STD, made_vae

from vdbjax.coding import rans
from vdbjax.coding.latent_bits_back import decode, encode
from vdbjax.coding.rans import EmptyMessageError
from vdbjax.images import vdvae
from vdbjax.vae_codec import latent_model, theoretical_bits


@pytest.fixture(scope="module")
def made():
    """(model, parameters with noise on all of them, images, the model as the coder takes it)."""
    _, model, params, _ = made_vae()
    images = np.clip(np.random.default_rng(1).normal(128, 8, size=(70, 8, 8, 1)), 0, 255).astype(np.int64)
    return model, params, images, latent_model(model, params, batch_size=32)


def negative_elbo(model, params, images, *, draws):
    """Nats of each image, of the masses of the pixels' bins, in float64; the mean over draws."""
    terms = jax.jit(model.terms)
    found = []
    for seed in range(draws):
        rates, _, _, means = terms(params, jnp.asarray(images, jnp.uint8), jax.random.key(seed))
        std = math.exp(LOG_STD)
        edges = (images[..., None] + np.array([0.0, 1.0])) / 256.0
        from_mean = (edges - np.asarray(means, np.float64)[..., None]) / (std * math.sqrt(2.0))
        high, low = (np.vectorize(math.erfc)(side) for side in (from_mean[..., 0], from_mean[..., 1]))
        mirrored = np.vectorize(math.erfc)(-from_mean)
        mass = 0.5 * np.where(from_mean[..., 0] > 0, high - low, mirrored[..., 1] - mirrored[..., 0])
        log_mass = np.log(np.maximum(mass, 2.0**-74))  # an escape's
        found.append(np.sum(np.asarray(rates, np.float64), axis=0) - log_mass.sum(axis=(1, 2, 3)))
    return np.mean(found, axis=0)


MESSAGES = 6
"""Each draws other latents: one message's cost strays from the ELBO by 0.013 bits a number."""


@pytest.mark.long
def test_images_and_message_come_back_and_cost_the_elbo(made):
    model, params, images, coded = made
    chunks = [images[start : start + 32] for start in range(0, len(images), 32)]  # the last of six
    costs, over, bound = [], [], theoretical_bits(coded)
    for seed in range(MESSAGES):
        message = rans.random(16, 20_000, seed=seed)
        before, words = message.bits(), rans.to_bytes(message)
        theoretical = sum(bound(chunk, encode(message, chunk, coded)).sum() for chunk in chunks)
        costs.append((message.bits() - before) / images.size)
        over.append(costs[-1] - theoretical / images.size)
        if seed:
            continue
        received = rans.from_bytes(rans.to_bytes(message), 16)
        for chunk in reversed(chunks):
            np.testing.assert_array_equal(decode(received, len(chunk), coded), chunk)
        assert rans.to_bytes(received) == words
    expected = negative_elbo(model, params, images, draws=8).mean() / math.log(2.0) / math.prod(images.shape[1:])
    error = np.std(costs, ddof=1) / math.sqrt(MESSAGES)
    # The ELBO of the very latents drawn. Beyond 5 deviations the tables' cells have more mass than the Gaussian: one
    # message in seven draws such a latent, and is then 6 to 9 bits (0.002 a number) off.
    assert abs(np.mean(over)) < 1e-3
    assert error < 0.01
    assert abs(np.mean(costs) - expected) < 3 * error


def test_what_lies_below_the_latents_bits_stays_as_it_is(made):
    """So that an image costs the same time however long the message is."""
    _, _, images, coded = made
    message = rans.random(16, 50_000, seed=0)
    before, kept = message.words.copy(), 50_000 - 2 * 2 * coded.size
    encode(message, images[:2], coded)
    assert kept > 40_000
    np.testing.assert_array_equal(message.words[:kept], before[:kept])
    np.testing.assert_array_equal(decode(message, 2, coded), images[:2])
    np.testing.assert_array_equal(message.words, before)


def test_what_cannot_be_coded_is_refused(made):
    model, params, images, coded = made
    with pytest.raises(EmptyMessageError):
        encode(rans.empty(16), images[:1], coded)
    with pytest.raises(ValueError, match=r"33 images at once are more than batch_size \(32\)"):
        encode(rans.random(16, 20_000, seed=1), images[:33], coded)
    with pytest.raises(ValueError, match="not all finite"):
        latent_model(model, params | {"log_variance": np.float32(np.nan)}, batch_size=2)
    mixture = vdvae.Config(gamma=None, observation="mixture", resolutions=(8,), layers=(1,), encoder_blocks=(1,))
    with pytest.raises(ValueError, match="only a VAE of one stage with a Gaussian codes images"):
        latent_model(vdvae.build_model(mixture, (8, 8, 1)), {}, batch_size=2)
