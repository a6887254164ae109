"""`python -m vdbjax.compress PICTURES --model RUN --out FILE`: pictures into one file, at a model's own likelihood.

The model is a flow, which codes by local bits-back, or a VAE, which codes by bits-back over its latents.

Every chunk is decoded before it is kept. Pixels, names and subfolders come back exactly, as PNG files, by `python -m
vdbjax.decompress`; what else a file held, such as comments, colour profiles and a camera's orientation, does not.

The model stays outside the file unless --embed-model is given, and is needed again: its checkpoint is pinned, so that
the run keeps it when it is trained further. The networks' rounding decides: read a file back on the kind of processor
and with the jax, jaxlib, NumPy and XLA_FLAGS that made it. Elsewhere decompressing gives the exact pictures or none.
"""

import time
from collections.abc import Sequence
from dataclasses import dataclass
from pathlib import Path

from tyro.conf import FlagCreatePairsOff, Positional

from vdbjax import command, embedded_model
from vdbjax.coding import container
from vdbjax.data.picture_files import NamedPicture, read_pictures
from vdbjax.embedded_model import ImageModel
from vdbjax.image_codec import Device, Report, Settings, codec_of, load_model, pack, use_device
from vdbjax.other_codecs import bits_by_others
from vdbjax.training.checkpoint import pin_checkpoint
from vdbjax.training.progress import reporter
from vdbjax.training.run_dir import RunDir


@dataclass(frozen=True)
class Options:
    """What the command line gives."""

    pictures: Positional[tuple[Path, ...]]
    """Folders and zips, searched to the bottom, PNG and JPEG files, or sets of images such as an .npz."""
    model: Path
    """Run folder of a flow or of a VAE, as `python -m vdbjax.train` left it; its first seed is taken."""
    out: Path
    """File to write."""
    embed_model: FlagCreatePairsOff[bool] = False
    """Put the model into the file: 4 bytes a parameter."""
    device: Device = "default"
    """cpu: compute on the host, which others have too, even where there is an accelerator."""
    batch_size: int = 16
    """Tiles at once. More pay off on an accelerator, in files of many pictures."""
    sigma: float | None = None
    """Standard deviation of the noise of a flow's coding, where a pixel's width is 1. None: 2^-12; a VAE has none."""
    delta: float | None = None
    """Width of a bin of a flow's grid, a power of two, or of a VAE's latents. None: 2^-20 and 2^-12."""
    compare: FlagCreatePairsOff[bool] = False
    """Compress the pictures by PNG, WebP and, where imagecodecs is installed, JPEG XL as well: at 0.06 MB/s."""
    overwrite: FlagCreatePairsOff[bool] = False
    """Replace the file if it exists."""

    @property
    def settings(self) -> Settings:
        """How pictures are coded."""
        return Settings(self.batch_size, self.sigma, self.delta)


def run(options: Options) -> None:
    """Compresses, writes the file and prints the table."""
    command.check_writable(options.out, overwrite=options.overwrite)
    use_device(options.device)
    found = read_pictures(options.pictures)
    if found.left_out:
        print(f"note: left out {len(found.left_out)} files that are no pictures: {found.left_out[0]} ...")
    trained = load_model(options.model)
    if options.embed_model:
        embedded_model.check_memory(trained, options.batch_size)  # or nobody could decode the file
    else:
        trained = _pinned(options.model, trained)
    codec = codec_of(trained, options.settings)
    start = time.monotonic()
    if found.renamed:
        print(f"note: {len(found.renamed)} pictures come back as PNG, under other names: {found.renamed[0]} ...")
    heard = reporter("compressing", unit="kB", scale=1e3)
    packed, report = pack(found.pictures, codec, embed=options.embed_model, report=heard)
    seconds = time.monotonic() - start - report.bound_seconds
    size = container.write(options.out, packed)
    print(f"{options.out}: {len(found.pictures)} pictures, {report.samples} bytes of pixels in {size} bytes")
    print("\n".join(table(report, size, seconds=seconds)))
    if options.compare:
        print("\n".join(table_of_others(found.pictures)))


def _pinned(run: Path, trained: ImageModel) -> ImageModel:
    """The model, or that of a newer checkpoint, which the run will keep for the file; says where it cannot be kept."""
    try:
        while trained.iteration is not None and not pin_checkpoint(RunDir(run), trained.iteration):
            trained = load_model(run)  # as training goes on, the first one has been removed
    except OSError as error:
        reason = error.strerror or str(error)
        print(
            f"warning: {run} cannot be written ({reason}): training it further will make the file undecodable; "
            f"--embed-model puts the model into the file"
        )
    return trained


def table(report: Report, size: int, *, seconds: float) -> list[str]:
    """Lines of bits/dim and MB/s of a file of `size` bytes, which took so long to make."""
    lines, model = [], f", the model's {report.model_bytes} bytes" if report.model_bytes else ""
    if report.by_model:
        share = f"of the {report.by_model / report.samples:.1%} that the model codes"
        lines += [
            _row("theoretical", report.theoretical_bits / report.by_model, f"the bound with what was drawn, {share}"),
            _row("net", report.net_bits / report.by_model, "the code's length, of the same"),
        ]
    lines += [
        _row("message", report.all_bits / report.samples, "of everything"),
        _row("file", 8 * size / report.samples, f"with names, checksums{model} and header"),
        f"compressed at {report.samples / seconds / 1e6:.3g} MB/s, of which every chunk's decoding is a part: "
        f"encoding {_rate(report, report.encode_seconds)}, decoding {_rate(report, report.decode_seconds)}",
    ]
    if report.outdone:
        lines.append(f"note: {report.outdone} chunks went by the plain codec, which needs fewer bits for them")
    elif not report.by_model and not report.failed:
        few = "the pictures are too few for the model to draw from"
        none = "no picture holds a tile of the model's height, width and channels"
        lines.append(f"note: all went by the plain codec: {few if report.in_tiles else none}")
    if report.failed:
        lines.append(f"warning: {report.failed} chunks did not come back from the model and went by the plain codec")
    return lines


def table_of_others(pictures: Sequence[NamedPicture]) -> list[str]:
    """The same pictures as files of their own by other codecs, without the file system's share."""
    samples = sum(picture.pixels.size for picture in pictures)
    others = bits_by_others([picture.pixels for picture in pictures])
    return [_row(name, bits / samples, "the sum of its files") for name, bits in others.items()]


def _row(name: str, bits_per_dim: float, what: str) -> str:
    return f"{name:12} {bits_per_dim:7.4f} bits/dim  {what}"


def _rate(report: Report, seconds: float) -> str:
    return f"{report.samples / seconds / 1e6:.3g} MB/s" if seconds else "at once"


def main() -> None:
    """The command."""
    command.main(lambda: run(command.parse(Options, prog="python -m vdbjax.compress", description=__doc__)))


if __name__ == "__main__":
    main()
