"""Seconds an image to code by local bits-back, beside the network's own passes (thesis Tables 3.4 and 3.5).

Compositional coding, layer by layer, at batch 1 and 64; the network alone: a whole forward and a whole inverse pass,
one executable each, in the coder's types; and black-box coding of the whole flow by its Jacobian, at batch 1. Processor
time is given too, as other work on the machine disturbs the clock.

    python benchmarks/coding_time.py RUN --data IMAGES
"""

import math
from collections.abc import Callable
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import jax
import jax.numpy as jnp
import numpy as np
from clock import Timed, fastest, least, timed
from machine import begin
from tyro.conf import Positional

from vdbjax import command
from vdbjax.coding import local_bits_back, rans
from vdbjax.coding.layers import BlackBox, DequantizedFlow, Flow, Rearrangement
from vdbjax.coding.local_bits_back import Precision
from vdbjax.data.picture_files import read_pictures
from vdbjax.embedded_model import ImageModel
from vdbjax.flows import flowpp
from vdbjax.flows.bijection import Condition
from vdbjax.image_codec import Settings, codec_of, load_model

ROWS_OF_A_JACOBIAN = 64  # at once


@dataclass(frozen=True)
class Options:
    """What to measure."""

    run: Positional[Path]
    """Run folder of a flow."""
    data: Path
    """Images of the model's size: a folder, or a set such as an .npz."""
    batch_sizes: tuple[int, ...] = (1, 64)
    """Images at once."""
    repeats: int = 3
    """How often each is timed; the least counts."""
    black_box: bool = True
    """Time black-box coding as well: minutes for 3,072 dimensions."""
    out: Path | None = None
    """File to write. None: benchmarks/results/coding_time_DEVICE.json."""


def main(options: Options) -> None:
    """Measures, prints a line a number and writes the file."""
    report = begin("coding_time", options, options.out)
    pixels = np.stack([p.pixels for p in read_pictures([options.data]).pictures[: max(options.batch_sizes)]])
    trained = load_model(options.run)
    rows = [row for size in options.batch_sizes for row in compositional(options, trained, pixels[:size])]
    rows += black_box(trained, pixels[:1]) if options.black_box else []
    report.write({"seconds_an_image": rows})


def compositional(options: Options, trained: ImageModel, pixels: np.ndarray) -> list[dict[str, Any]]:
    """Rows of the network alone, of encoding and of decoding, and the ratios of these to the first."""
    batch = len(pixels)
    coder = codec_of(trained, Settings(batch)).coder
    values = pixels.astype(np.int64)
    message = rans.random(lanes=coder.lanes, words=3 * values.size, seed=1)

    def encode() -> None:
        coder.encode(message, values)

    def decode() -> None:
        if not np.array_equal(coder.decode(message, batch), values):
            raise AssertionError("pixels came back wrong")

    alone = least(options.repeats, network_alone(trained, pixels))
    encoding, decoding = [], []
    for _ in range(options.repeats):
        encoding.append(timed(encode))
        decoding.append(timed(decode))
    rows = [row("network alone", batch, alone)]
    for what, times in (("encode", encoding), ("decode", decoding)):
        found = fastest(times)
        ratios = {"to_network": found.processor / alone.processor, "wall_to_network": found.wall / alone.wall}
        rows.append(row(what, batch, found) | ratios | {"megabytes_a_second": values.size / found.wall / 1e6})
        print(
            f"  {ratios['to_network']:.2f} times the network alone in processor time, "
            f"{ratios['wall_to_network']:.2f} by the clock, {rows[-1]['megabytes_a_second']:.3g} MB/s",
            flush=True,
        )
    return rows


def network_alone(trained: ImageModel, pixels: np.ndarray) -> Callable[[], None]:
    """One forward and one inverse pass of the flow, in the coder's types. Raises ValueError for a VAE."""
    if not isinstance(trained.model, flowpp.Model):
        raise ValueError("the model is a VAE, which has no passes to time alone; give the run of a flow")
    flow, params = trained.model.flow, jax.tree.map(jnp.asarray, trained.params["flow"])
    forward = jax.jit(lambda params, x: flow.forward(params, x, Condition()))
    inverse = jax.jit(lambda params, z: flow.inverse(params, z, Condition()))
    x = pixels + 0.5

    def passes() -> None:
        with jax.enable_x64(True), jax.default_matmul_precision("highest"):
            z, _ = forward(params, x)
            inverse(params, z).block_until_ready()

    passes()
    return passes


def black_box(trained: ImageModel, pixels: np.ndarray) -> list[dict[str, Any]]:
    """The whole flow as one layer; the noise is uniform, whatever the model's dequantiser is."""
    model, params = trained.model, jax.tree.map(jnp.asarray, trained.params["flow"])
    size = math.prod(model.image_shape)

    def flat(x: Any) -> Any:
        return model.flow.forward(params, x.reshape(1, *model.image_shape), Condition())[0].reshape(-1)

    def back(z: Any) -> Any:
        return model.flow.inverse(params, z.reshape(1, *model.latent_shape), Condition()).reshape(1, -1)

    @jax.jit
    def rows_at(x: Any, chosen: Any) -> Any:
        return jax.vmap(jax.vjp(flat, x)[1])(jax.nn.one_hot(chosen, size, dtype=x.dtype))[0]

    def jacobian(x: np.ndarray) -> np.ndarray:
        starts = range(0, size, ROWS_OF_A_JACOBIAN)
        rows = [np.asarray(rows_at(x[0], np.arange(at, at + ROWS_OF_A_JACOBIAN) % size)) for at in starts]
        return np.concatenate(rows)[None, :size]

    forward, inverse = jax.jit(flat), jax.jit(back)
    layer = BlackBox(lambda x: np.asarray(forward(x[0]))[None], lambda z: np.asarray(inverse(z)), jacobian)
    flatten = Rearrangement(lambda x: x.reshape(len(x), -1), lambda y: y.reshape(len(y), *model.image_shape))
    flow = DequantizedFlow(Flow([flatten, layer], (size,)), None)
    values, precision = pixels.astype(np.int64), Precision(2.0**-12, 2.0**-20)
    message = rans.random(lanes=1, words=4 * values.size, seed=1)
    decoded: list[np.ndarray] = []
    with jax.enable_x64(True), jax.default_matmul_precision("highest"):
        jacobian(values.reshape(1, -1) + 0.5)
        encoding = timed(lambda: local_bits_back.encode_integers(message, flow, values, precision))
        decoding = timed(lambda: decoded.append(local_bits_back.decode_integers(message, flow, 1, precision)))
    if not np.array_equal(decoded[0], values):
        raise AssertionError("pixels came back wrong")
    return [row("black box, encode", 1, encoding), row("black box, decode", 1, decoding)]


def row(what: str, batch: int, found: Timed) -> dict[str, Any]:
    """Seconds an image."""
    print(
        f"{what}, batch {batch}: {found.wall / batch:.4g} s an image, {found.processor / batch:.4g} of processor time"
    )
    return {"what": what, "batch": batch, "wall": found.wall / batch, "processor": found.processor / batch}


if __name__ == "__main__":
    command.main(lambda: main(command.parse(Options, prog="coding_time.py", description=__doc__)))
