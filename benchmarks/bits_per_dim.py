"""Bits/dim of a flow's or a VAE's lossless code: the theoretical bound, the net length, whole files.

Net: every image by the model, on a message of random bits, less those bits. File: what `vdbjax.compress` writes,
for several numbers of images. What a flow's noise and grid cost is a sweep of sigma and delta (thesis Figure 3.6): the
net length over the bound.

    python benchmarks/bits_per_dim.py RUN --data IMAGES
"""

from dataclasses import dataclass
from pathlib import Path
from typing import Any

import numpy as np
from machine import begin
from matplotlib.figure import Figure
from tyro.conf import Positional

from vdbjax import command
from vdbjax.coding import container, local_bits_back, rans
from vdbjax.coding.local_bits_back import Precision
from vdbjax.data.picture_files import NamedPicture, read_pictures
from vdbjax.flow_codec import dequantized_flow
from vdbjax.flows import flowpp
from vdbjax.image_codec import ImageCodec, Settings, codec_of, load_model, pack
from vdbjax.other_codecs import bits_by_others

SWEEP = [(s, d) for s in (-14, -12, -10, -8, -6) for d in (-32, -28, -24, -20, -16, -12) if d < s]
"""log2 of sigma and of delta."""


@dataclass(frozen=True)
class Options:
    """What to measure."""

    run: Positional[Path]
    """Run folder of a flow or of a VAE."""
    data: Path
    """Images of the model's size: a folder, or a set such as an .npz."""
    images: int | None = None
    """The first so many of the images. None: all."""
    counts: tuple[int, ...] = (1, 10, 100, 1000)
    """Numbers of images in a file; a file of all is made too."""
    sweep_images: int = 64
    """Images of a flow's sweep; 0 leaves it out."""
    batch_size: int = 16
    """Tiles at once."""
    out: Path | None = None
    """File to write, and its figure beside it. None: benchmarks/results/bits_per_dim_DEVICE.json."""


def main(options: Options) -> None:
    """Measures, prints and writes the file and the figure."""
    report = begin("bits_per_dim", options, options.out)
    pictures = read_pictures([options.data]).pictures[: options.images]
    trained = load_model(options.run)
    codec = codec_of(trained, Settings(options.batch_size))
    if {picture.pixels.shape for picture in pictures} != {codec.coder.tile}:
        raise ValueError(f"{options.data}: its images are not all of the model's size, {codec.coder.tile}")
    whole = net_length(pictures, codec)
    print(
        f"{len(pictures)} images: net {whole['net']:.4f}, theoretical {whole['theoretical']:.4f} bits/dim", flush=True
    )
    counts = sorted({min(count, len(pictures)) for count in (*options.counts, len(pictures))})
    files = [file_length(pictures[:count], codec) for count in counts]
    sweep = swept(pictures[: options.sweep_images], codec) if isinstance(trained.model, flowpp.Model) else []
    report.write({"net": whole, "files": files, "sweep": sweep})
    if sweep:
        draw_sweep(sweep, report.out.with_suffix(".png"))


def net_length(pictures: list[NamedPicture], codec: ImageCodec) -> dict[str, float]:
    """Bits/dim, and how many bits/dim lay on the message before the first batch; fails where pixels differ after."""
    pixels, coder = np.stack([picture.pixels for picture in pictures]).astype(np.int64), codec.coder
    batches = [pixels[start : start + coder.batch_size] for start in range(0, len(pixels), coder.batch_size)]
    message = rans.random(lanes=coder.lanes, words=int(len(batches[0]) * coder.first_draw) // 8, seed=1)
    before, words, theoretical, drawn = message.bits(), message.size, 0.0, 0.0
    for index, batch in enumerate(batches):
        theoretical += float(codec.theoretical_bits(batch, coder.encode(message, batch)).sum())
        if index == 0:
            drawn = 32.0 * (words - message.untouched)
    net = message.bits() - before
    for batch in reversed(batches):
        if not np.array_equal(coder.decode(message, len(batch)), batch):
            raise AssertionError("pixels came back wrong")
    return {
        "images": len(pixels),
        "net": net / pixels.size,
        "theoretical": theoretical / pixels.size,
        "over": (net - theoretical) / pixels.size,
        "initial": drawn / batches[0].size,
    }


def swept(pictures: list[NamedPicture], codec: ImageCodec) -> list[dict[str, float]]:
    """The net length of a flow for each sigma and delta, compiled once."""
    trained, coder = codec.trained, codec.coder
    model = dequantized_flow(trained.model, trained.params, batch_size=coder.batch_size)
    same: dict[str, Any] = {"tile": coder.tile, "batch_size": coder.batch_size, "lanes": coder.lanes}
    rows = []
    for s, d in SWEEP if pictures else []:
        other = local_bits_back.coder(model, Precision(2.0**s, 2.0**d), **same)
        rows.append({"log2_sigma": s, "log2_delta": d} | net_length(pictures, codec._replace(coder=other)))
    return rows


def file_length(pictures: list[NamedPicture], codec: ImageCodec) -> dict[str, Any]:
    """Bits/dim of a file, and of the same images by other codecs."""
    packed, report = pack(pictures, codec)
    size = len(container.to_bytes(packed))
    others = {name: bits / report.samples for name, bits in bits_by_others([p.pixels for p in pictures]).items()}
    row = {"images": len(pictures), "bytes": size, "file": 8 * size / report.samples, "others": others}
    beside = ", ".join(f"{name} {value:.3f}" for name, value in others.items())
    print(f"file of {len(pictures)} images: {size} bytes, {row['file']:.4f} bits/dim ({beside})", flush=True)
    return row | {"by_model": report.by_model / report.samples, "chunks_that_failed": report.failed}


def draw_sweep(rows: list[dict[str, float]], out: Path) -> None:
    """Net bits/dim over the bound against sigma, a line for each delta."""
    figure = Figure(figsize=(6, 4), layout="constrained")
    axes = figure.subplots()
    for delta in sorted({row["log2_delta"] for row in rows}):
        line = sorted(
            (row["log2_sigma"], row["net"] - row["theoretical"]) for row in rows if row["log2_delta"] == delta
        )
        axes.plot(*zip(*line), marker="o", label=f"$\\delta = 2^{{{delta:.0f}}}$")
    axes.set_yscale("symlog", linthresh=1e-4)
    axes.set_xlabel("log2 sigma")
    axes.set_ylabel("net length over the bound (bits/dim)")
    axes.legend()
    figure.savefig(out, dpi=150)
    print(f"wrote {out}")


if __name__ == "__main__":
    command.main(lambda: main(command.parse(Options, prog="bits_per_dim.py", description=__doc__)))
