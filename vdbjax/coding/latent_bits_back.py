"""Bits-back coding with a hierarchy of Gaussian latents: an image costs its negative ELBO.

The latents are drawn by popping them from the message with their posterior, the image is pushed given them, and they
are pushed with their prior: log q(z | x) bits come back. Latents are bins of one width, whose cost drops out. The
receiver pops latents and image, and pushes the latents back with the posterior, which gives the next image's bits.

Latents that were pushed with a prior wider than they lie leave bits that are not uniform, and the next images' latents,
drawn from just these, would not lie as their posterior says: a tenth of a bit a pixel was lost. So what they are drawn
from, the heads included, is mixed with a fixed sequence before each call, and unmixed after it.

Townsend et al. 2019, "Practical lossless compression with latent variables using bits back coding" (BB-ANS).
"""

import math
from collections.abc import Callable, Sequence
from typing import Any, NamedTuple

import numpy as np
from jaxtyping import Float, Int

from vdbjax.coding.archive import Coder
from vdbjax.coding.discretize import centre_of, gaussian
from vdbjax.coding.rans import Codec, Message
from vdbjax.coding.tiles import Shape

Pixels = Int[np.ndarray, "images height width channels"]
Latents = Float[np.ndarray, "images *shape"]
Normal = tuple[Latents, Latents]
"""Mean and standard deviation, float64."""
Drawn = list[Float[np.ndarray, "images ..."]]
"""Latents of each layer."""


class Layer(NamedTuple):
    """One layer of latents. A stream is whatever the model hands on from layer to layer."""

    prior: Callable[[Any], Normal]  # of the stream before it
    posterior: Callable[[Any, Any], Normal]  # of the stream before it and what is seen of the images
    absorb: Callable[[Any, Latents], Any]  # the stream before it and its latents to the stream after it


class LatentModel(NamedTuple):
    """A model as the coder sees it: plain functions of NumPy arrays, which give the same bits for the same bits."""

    begin: Callable[[int], Any]  # the first stream for so many images
    see: Callable[[Pixels], Any]  # what posteriors see of images
    layers: Sequence[Layer]
    pixels: Callable[[Any], tuple[Latents, float]]  # mean and deviation of the images, given the last stream: v is
    # the bin [v, v + 1)
    size: int  # latents an image
    delta: float  # width of the latents' bins: far below every posterior's standard deviation


def encode(message: Message, images: Pixels, model: LatentModel) -> Drawn:
    """Pushes the images, all at once; gives the latents that were drawn, layer by layer.

    Raises EmptyMessageError where the message does not hold the bits that their latents are drawn from: about
    log2(standard deviation / delta) + 2 each. It is then of no more use.
    """
    _mix(message, len(images) * model.size)
    stream, seen, drawn = model.begin(len(images)), model.see(images), []
    for layer in model.layers:
        bins = _drawn(layer.posterior(stream, seen), model.delta).pop(message)
        drawn.append((layer.prior(stream), bins))
        stream = layer.absorb(stream, centre_of(bins, model.delta))
    _integers(model, stream).push(message, images)
    for (mean, std), bins in reversed(drawn):
        gaussian(mean, std, model.delta).push(message, bins)
    return [centre_of(bins, model.delta) for _, bins in drawn]


def decode(message: Message, count: int, model: LatentModel) -> Pixels:
    """Undoes `encode` of so many images; the message is then what it was before."""
    stream, drawn = model.begin(count), []
    for layer in model.layers:
        bins = gaussian(*layer.prior(stream), model.delta).pop(message)
        drawn.append((layer, stream, bins))
        stream = layer.absorb(stream, centre_of(bins, model.delta))
    images = _integers(model, stream).pop(message)
    seen = model.see(images)
    for layer, stream, bins in reversed(drawn):
        _drawn(layer.posterior(stream, seen), model.delta).push(message, bins)
    _mix(message, count * model.size)
    return images


def coder(model: LatentModel, *, tile: Shape, batch_size: int, lanes: int) -> Coder:
    """What codes tiles of an archive. Raises ValueError for bins that no latents can be coded with."""
    if not 2.0**-40 <= model.delta < 1.0:
        raise ValueError(f"delta ({model.delta}) must be at least 2^-40 and below 1")
    return Coder(
        lambda message, pixels: encode(message, pixels, model),
        lambda message, count: decode(message, count, model),
        -model.size * math.log2(model.delta),
        tile,
        batch_size,
        lanes,
    )


def _mix(message: Message, latents: int) -> None:
    """Exclusive or with a fixed sequence that depends on the message's length; done twice, it is undone.

    It covers as many words as so many latents can be drawn from, two each, however long the message is. A head keeps
    its leading bit, by which it stays in its interval, and the six after it: heads are spread evenly over their
    logarithms, not their values, and to spread them otherwise would cost 0.06 bits each.
    """
    words, heads = message.top(min(2 * latents, message.size)), message.heads
    sequence = np.random.Philox(key=message.size)  # the same in every version of NumPy
    words ^= sequence.random_raw(-(-len(words) // 2)).astype("<u8").view("<u4")[: len(words)]
    leading = np.frexp((heads >> np.uint64(31)).astype(np.float64))[1].astype(np.uint64) + np.uint64(30)
    heads ^= sequence.random_raw(len(heads)) & ((np.uint64(1) << (leading - np.uint64(6))) - np.uint64(1))


def _integers(model: LatentModel, stream: Any) -> Codec:
    mean, std = model.pixels(stream)
    return gaussian(mean, std, 1.0)


def _drawn(posterior: Normal, delta: float) -> Codec:
    mean, std = posterior
    return gaussian(mean, std, delta, escape=False)
