"""`python -m vdbjax.sample RUN`: images of a trained model, as a grid, as strips from one to another, or as numbers."""

import io
from collections.abc import Callable, Iterator
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import jax
import numpy as np
from tyro.conf import Positional

from vdbjax import command, limits
from vdbjax.data.images import load_images
from vdbjax.evaluation.sample_grid import columns_of, write_grid
from vdbjax.trained import TrainedModel, load_image_model
from vdbjax.training.progress import reporter
from vdbjax.training.run_dir import write_whole

BATCH = 100


@dataclass(frozen=True)
class Options:
    """What the command line gives."""

    run: Positional[Path]
    """Run folder of a model of images, as `python -m vdbjax.train` left it."""
    out: Path | None = None
    """Grid to write (.png)."""
    npz: Path | None = None
    """File to write the images to, as `images`: uint8 [num, height, width, channels]."""
    num: int | None = None
    """Images. None: 64 for a grid, 50,000 for an .npz, 8 strips with --interpolate."""
    interpolate: int | None = None
    """Steps of strips from one image to another, one strip a row of the grid; --num counts strips then."""
    sources: Path | None = None
    """Pictures to translate, for a model that translates."""
    full: bool = False
    """Of a VAE: draw the pixels around their means too, which are shown without."""
    seed: int = 0
    """Seed of the noise."""
    index: int = 0
    """Which of the run's models, where it trained several seeds."""

    def __post_init__(self) -> None:
        """Rejects values that cannot work."""
        if (self.out is None) == (self.npz is None):
            raise ValueError("give either --out GRID.png or --npz FILE.npz")
        limits.at_least(1, self, "--num")
        limits.at_least(2, self, "--interpolate")
        if self.interpolate and self.full:
            raise ValueError("--interpolate is of GANs, --full of VAEs; give one of them")
        if self.interpolate and self.npz:
            raise ValueError("--interpolate makes a grid; give --out GRID.png")
        limits.seed(self, "--seed")
        limits.ends_in((".png",), self, "--out")
        limits.ends_in((".npz",), self, "--npz")


def sampler_of(model: Any, *, batch_size: int = BATCH, full: bool = False) -> Callable[..., Iterator[np.ndarray]]:
    """`draw(params, *, num, seed, sources)` -> batches of images, the last one cut: `num` in all.

    Each batch has a key of its own, so that the images depend on the batch size, and an even share of each class.
    Raises ValueError for sources of another shape than the model's images, and where they are fewer than asked for.
    """
    num_classes = max(1, getattr(model, "num_classes", 0))
    batch_size = max(1, batch_size // num_classes) * num_classes

    @jax.jit
    def draw(params: Any, key: jax.Array, sources: Any) -> jax.Array:
        given = ({} if sources is None else {"sources": sources}) | ({"full": True} if full else {})
        return model.sample(params, key, num_images=batch_size, **given)

    def batches(params: Any, *, num: int, seed: int, sources: Any = None) -> Iterator[np.ndarray]:
        if sources is not None and sources.shape[1:] != model.image_shape:
            raise ValueError(f"--sources: pictures of {sources.shape[1:]} do not fit a model of {model.image_shape}")
        if sources is not None and len(sources) < num:
            raise ValueError(f"--num ({num}) asks for more than the {len(sources)} pictures to translate")
        for start in range(0, num, batch_size):
            key = jax.random.fold_in(jax.random.key(np.uint32(seed)), start)
            rows = np.arange(start, start + batch_size)
            shown = None if sources is None else np.take(sources, rows, axis=0, mode="clip")
            yield np.asarray(draw(params, key, shown))[: num - start]

    return batches


def run(options: Options) -> None:
    """Draws and writes."""
    out = options.out or options.npz
    assert out is not None
    command.check_writable(out)
    trained = load_image_model(options.run)
    _check(options, trained)
    images = (_strips if options.interpolate else _drawn)(trained, options)
    if options.npz:
        content = io.BytesIO()
        np.savez(content, images=images)
        write_whole(options.npz, content.getvalue())
    else:
        write_grid(out, images, columns=options.interpolate or columns_of(trained.model))
    print(f"{len(images)} images of {options.run.resolve().name}, iteration {trained.iteration}, in {out}")


def _check(options: Options, trained: TrainedModel) -> None:
    if not hasattr(trained.model, "sample"):
        raise ValueError(f"{options.run} is a run of recipe {trained.config.recipe}, which draws no images")
    if options.full and not getattr(trained.model, "has_mean_images", False):
        raise ValueError(f"--full: a model of recipe {trained.config.recipe} shows no means; its samples are full ones")
    translates = getattr(trained.model, "translates", False)
    if translates and not options.sources:
        raise ValueError(f"a model of recipe {trained.config.recipe} translates pictures; name them with --sources")
    if options.sources and not translates:
        raise ValueError(f"--sources ({options.sources}): a model of recipe {trained.config.recipe} translates none")
    if not 0 <= options.index < len(trained.params):
        raise ValueError(f"--index ({options.index}) must lie between 0 and {len(trained.params) - 1}")


def _strips(trained: TrainedModel, options: Options) -> np.ndarray:
    """[strips * steps, height, width, channels]."""
    if not hasattr(trained.model, "interpolate") or options.sources:
        raise ValueError(f"a model of recipe {trained.config.recipe} does not interpolate; take one of a GAN")
    strips = trained.model.interpolate(
        trained.params[options.index],
        jax.random.key(np.uint32(options.seed)),
        num_strips=options.num or 8,
        steps=options.interpolate,
    )
    return np.asarray(strips).reshape(-1, *trained.model.image_shape)


def _drawn(trained: TrainedModel, options: Options) -> np.ndarray:
    """[num, height, width, channels], with a line of progress now and then."""
    size = trained.model.image_shape[0]
    sources = load_images(options.sources, size=size).images if options.sources else None
    num = options.num or (64 if options.out else 50_000)
    num = num if options.num or sources is None else min(num, len(sources))
    params, found, done, report = trained.params[options.index], [], 0, reporter("sampling", unit="images")
    draw = sampler_of(trained.model, batch_size=min(BATCH, num), full=options.full)
    for batch in draw(params, num=num, seed=options.seed, sources=sources):
        found.append(batch)
        done += len(batch)
        report(done, num)
    return np.concatenate(found)


def main() -> None:
    """The command."""
    command.main(lambda: run(command.parse(Options, prog="python -m vdbjax.sample", description=__doc__)))


if __name__ == "__main__":
    main()
