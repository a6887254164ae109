"""The menu of image models: recipe name -> config, and how a config becomes a running algorithm."""

from collections.abc import Callable
from dataclasses import dataclass, replace
from pathlib import Path
from types import ModuleType
from typing import Annotated, Any, Generic, NamedTuple, TypeVar

import jax
import numpy as np
from tyro.conf import Suppress, arg

from vdbjax.bottleneck import BottleneckConfig
from vdbjax.data.batches import shuffled_batches, take
from vdbjax.data.images import load_images
from vdbjax.envs.batch import over_devices
from vdbjax.flows import flowpp
from vdbjax.flows.flowpp import DequantizerConfig
from vdbjax.images import gan
from vdbjax.training.loop import Schedule
from vdbjax.types import Algorithm, Metrics, Pictures

AlgorithmConfig = TypeVar("AlgorithmConfig")


@dataclass(frozen=True)
class ImageRunConfig(Generic[AlgorithmConfig]):
    """All that decides a run on images."""

    recipe: Suppress[str]
    algorithm: Annotated[AlgorithmConfig, arg(name="")]
    data: Path | None = None
    """Images to train on: a folder or zip of PNG and JPEG, set.zip/train, .npz, idx, or CIFAR-10's batches."""
    size: int | None = None
    """Side that images are cropped and resized to. None: as they are."""
    sources: Path | None = None
    """Where a model translates: the pictures to translate, as many as --data holds and in the same order."""
    validation_data: Path | None = None
    """Images to evaluate on. None: some of the training images, held out."""
    validation_images: int = 256
    """How many images are evaluated on, drawn from either; the same for every seed."""
    iterations: int = 4_000
    """Gradient steps."""
    seed: int = 0
    """Seed of everything random."""
    num_seeds: int = 1
    """Independent models at once, by vmap; all see the same batches."""
    evaluations: int = 20
    """Evaluations on the validation images, evenly over the run, each with a grid of samples."""
    checkpoint_seconds: float = 60.0
    """Seconds between checkpoints."""
    retries: int = 3
    """Times that a run goes back to its last checkpoint and draws other noise, where a number is not finite."""

    def __post_init__(self) -> None:
        """Rejects values that cannot work."""
        for name in ("validation_images", "iterations", "num_seeds", "evaluations"):
            if getattr(self, name) < 1:
                raise ValueError(f"{name} ({getattr(self, name)}) must be at least 1")
        if self.retries < 0:
            raise ValueError(f"retries ({self.retries}) must be at least 0")
        if self.size is not None and self.size < 1:
            raise ValueError(f"size ({self.size}) must be at least 1")


class ImageRecipe(NamedTuple):
    """A row of the menu."""

    description: str
    config: ImageRunConfig


CIFAR10 = flowpp.Config()
"""Thesis section 3.3 and the reference code: 31.4 million parameters at 32 x 32 x 3."""

CIFAR10_UNIFORM = flowpp.Config(filters=104, dequantizer=DequantizerConfig(kind="uniform"))
CIFAR10_AFFINE = flowpp.Config(filters=108, mixtures=0)
CIFAR10_NO_ATTENTION = flowpp.Config(filters=105, attention=False, dequantizer=DequantizerConfig(attention=False))
"""Table 3.2: wider where something is left out, so that all have about as many parameters."""

IMAGENET32 = flowpp.Config(
    layers=("columns",) * 7 + ("depth",) + ("channels",) * 3 + ("columns",) * 3,
    filters=128,
    blocks=20,
    pointwise=False,
    weight_norm=True,
    last_nonlinearity=True,
    dropout=0.0,
    dequantizer=DequantizerConfig(couplings=8, blocks=8, context_blocks=8, context_attention=True, context_norm=True),
    batch_size=32,
    init_images=32,
    learning_rate=1e-3,
    warmup_steps=5_000,
    decay="exponential",
    final_learning_rate=3e-4,
    average_decay=0.999222,
)
"""169.0 million parameters at 32 x 32 x 3."""

IMAGENET64 = flowpp.Config(
    layers=("depth",)
    + (("columns",) * 4 + ("depth",) + ("channels",) * 2 + ("columns",) * 2)
    + (("depth",) + ("channels",) * 2 + ("columns",) * 2),
    blocks=16,
    mixtures=4,
    pointwise=False,
    last_nonlinearity=True,
    dropout=0.0,
    dequantizer=DequantizerConfig(blocks=5, attention=False, context_blocks=5, context_norm=True),
    batch_size=72,
    init_images=72,
    learning_rate=4e-4,
    warmup_steps=10_000,
    decay="exponential",
    final_learning_rate=3e-4,
)
"""73.5 million parameters at 64 x 64 x 3. The reference began its warm-up anew at 230,000 and 280,000 steps."""

SMALL = flowpp.Config(
    layers=("depth",) + ("columns",) * 3 + ("channels",) * 2 + ("columns",) * 2,
    filters=32,
    blocks=2,
    attention=False,
    mixtures=4,
    dropout=0.0,
    dequantizer=DequantizerConfig(kind="uniform"),
    batch_size=32,
    init_images=256,
    learning_rate=2e-3,
    warmup_steps=100,
    decay="cosine",
    final_learning_rate=1e-4,
    average_decay=0.998,
    flip=True,
)
"""For two cores: attention would cost 2.7 times the time, and a variational dequantiser gains nothing in an hour."""


VDB = BottleneckConfig(latent_size=256, info_constraint=0.1, beta_init=0.1, dual_step_size=1e-5)
"""VDB appendix E.1; beta's start is the released code's."""

FIGURE_8 = {
    "gan": gan.Config(),
    "gan-noise": gan.Config(instance_noise=1.0),
    "gan-sn": gan.Config(spectral_norm=True),
    "gan-gp": gan.Config(r1=10.0),
    "wgan-gp": gan.Config(game="wasserstein", wgan_gp=10.0),
    "vgan": gan.Config(bottleneck=VDB),
    "vgan-sn": gan.Config(bottleneck=VDB, spectral_norm=True),
    "vgan-gp": gan.Config(bottleneck=VDB, r1=10.0),
}
"""The rows of VDB Figure 8, on CIFAR-10."""


def _celeba(name: str) -> gan.Config:
    """128 x 128."""
    config = FIGURE_8[name]
    vdb = replace(VDB, latent_size=1024, info_constraint=0.2) if config.bottleneck else None
    return replace(config, bottleneck=vdb, filters=64, max_filters=1024, batch_size=32, average_half_life=22.2)


def _celebahq(name: str, batch_size: int) -> gan.Config:
    """1024 x 1024."""
    config = FIGURE_8[name]
    vdb = replace(VDB, latent_size=512) if config.bottleneck else None
    half_life = 0.693 * batch_size
    sizes: dict[str, Any] = {"filters": 16, "max_filters": 512, "batch_size": batch_size, "flip": False}
    return replace(config, bottleneck=vdb, average_half_life=half_life, **sizes)


VGAN_SMALL = replace(
    FIGURE_8["vgan-gp"],
    bottleneck=replace(VDB, latent_size=64, dual_step_size=1e-3),
    filters=8,
    max_filters=64,
    noise_size=64,
    batch_size=32,
    learning_rate=2e-4,
    average_half_life=5.0,
)
"""For two cores: a sixteenth of the arithmetic; beta moves as far in an hour as the paper's in its 750,000 steps."""


def _menu(*rows: tuple[str, str, Any, int]) -> dict[str, ImageRecipe]:
    return {
        name: ImageRecipe(description, ImageRunConfig(name, config, iterations=iterations))
        for name, description, config, iterations in rows
    }


IMAGE_RECIPES = _menu(
    ("flowpp-small", "Flow++ that trains in minutes on two cores", SMALL, 4_000),
    ("flowpp-cifar10", "Flow++ of CIFAR-10 (Ho et al. 2019): 31.4 million parameters", CIFAR10, 300_000),
    ("flowpp-cifar10-uniform", "the same with uniform dequantisation (Table 3.2)", CIFAR10_UNIFORM, 300_000),
    ("flowpp-cifar10-affine", "the same with affine couplings (Table 3.2)", CIFAR10_AFFINE, 300_000),
    ("flowpp-cifar10-no-attention", "the same without self-attention (Table 3.2)", CIFAR10_NO_ATTENTION, 300_000),
    ("flowpp-imagenet32", "Flow++ of ImageNet 32 x 32: 169.0 million parameters", IMAGENET32, 300_000),
    ("flowpp-imagenet64", "Flow++ of ImageNet 64 x 64: 73.5 million parameters", IMAGENET64, 230_000),
    ("vgan-small", "VGAN with gradient penalty that trains in an hour on two cores", VGAN_SMALL, 20_000),
    ("gan", "GAN of CIFAR-10 (VDB Figure 8): 2.3 million parameters", FIGURE_8["gan"], 750_000),
    ("gan-noise", "GAN with noise on the discriminator's last features", FIGURE_8["gan-noise"], 750_000),
    ("gan-sn", "GAN with spectral normalisation", FIGURE_8["gan-sn"], 750_000),
    ("gan-gp", "GAN with gradient penalty (R1)", FIGURE_8["gan-gp"], 750_000),
    ("wgan-gp", "Wasserstein GAN with gradient penalty", FIGURE_8["wgan-gp"], 750_000),
    ("vgan", "GAN with the bottleneck", FIGURE_8["vgan"], 750_000),
    ("vgan-sn", "GAN with the bottleneck and spectral normalisation", FIGURE_8["vgan-sn"], 750_000),
    ("vgan-gp", "GAN with the bottleneck and gradient penalty", FIGURE_8["vgan-gp"], 750_000),
    ("gan-celeba128", "GAN of CelebA 128 x 128: 62 million parameters", _celeba("gan"), 300_000),
    ("gan-gp-celeba128", "the same with gradient penalty", _celeba("gan-gp"), 300_000),
    ("vgan-celeba128", "the same with the bottleneck", _celeba("vgan"), 300_000),
    ("vgan-gp-celeba128", "the same with both", _celeba("vgan-gp"), 300_000),
    ("gan-gp-celebahq1024", "GAN of CelebA-HQ 1024 x 1024, gradient penalty", _celebahq("gan-gp", 24), 300_000),
    ("vgan-gp-celebahq1024", "the same with the bottleneck", _celebahq("vgan-gp", 8), 300_000),
)


KINDS: dict[type, ModuleType] = {flowpp.Config: flowpp, gan.Config: gan}
"""Config -> the module that makes its model: `build_model(config, image_shape)`, `make(config, model, *, first,
validation, num_iterations)`. A model has `image_shape` and `init(key, images)`, where it can `sample` and `bound`; its
state has `average`, the parameters that everything but training uses, `step` and `key`."""


def kind_of(config: Any) -> ModuleType:
    """The module that an image model's config belongs to."""
    return KINDS[type(config)]


class ImagesBuilt(NamedTuple):
    """A config and its images made real."""

    algorithm: Algorithm
    model: Any
    batches: Callable[[int], Pictures]  # by the iteration, counted from 0
    validation: Pictures
    schedule: Schedule
    facts: dict[str, Any]  # what the config left open, for config.json and the first line


def build_on_images(config: ImageRunConfig) -> ImagesBuilt:
    """The algorithm on the config's images. Raises ValueError for what does not fit together."""
    if config.data is None:
        raise ValueError("no images to train on; name them with --data FOLDER, ZIP or NPZ")
    num_devices = jax.sharding.get_abstract_mesh().size
    if num_devices > 1 and config.algorithm.batch_size % num_devices:
        raise ValueError(
            f"batch_size ({config.algorithm.batch_size}) must be divisible by the number of devices ({num_devices})"
        )
    found = load_images(config.data, size=config.size)
    pictures = Pictures(found.images, found.labels, _sources(config, len(found.images)))
    among, validation = _split(config, pictures)
    height, width, channels = found.images.shape[1:]
    kind = kind_of(config.algorithm)
    model = kind.build_model(config.algorithm, (height, width, channels))
    first = np.random.default_rng(config.seed).permutation(among)[: num_first_images(config.algorithm)]
    algorithm = kind.make(
        config.algorithm,
        model,
        first=take(pictures, np.sort(first)),
        validation=validation,
        num_iterations=config.iterations,
    )
    facts = {
        "image_shape": [height, width, channels],
        "images": len(among),
        "validation_images": len(validation.images),
        "image_policy": found.policy,
        "parameters": num_parameters(model),
        "devices": jax.device_count(),
    }
    batches = shuffled_batches(pictures, among=among, batch_size=config.algorithm.batch_size, seed=config.seed)
    schedule = Schedule(config.iterations, 0, config.evaluations, config.checkpoint_seconds)
    return ImagesBuilt(_over_devices(algorithm), model, batches, validation, schedule, facts)


def _sources(config: ImageRunConfig, expected: int) -> Any:
    if config.sources is None:
        return None
    if config.validation_data:
        raise ValueError("sources belong to --data alone; leave --validation-data out, and some of those are held out")
    found = load_images(config.sources, size=config.size).images
    if len(found) != expected:
        raise ValueError(f"{config.sources} holds {len(found)} pictures for the {expected} images of {config.data}")
    return found


def num_first_images(config: Any) -> int:
    """How many images the first parameters are fitted to."""
    return getattr(config, "init_images", config.batch_size)


def num_parameters(model: Any) -> int:
    """How many numbers are learnt, by shapes alone."""
    images = jax.ShapeDtypeStruct((2, *model.image_shape), np.uint8)
    params = jax.eval_shape(model.init, jax.random.key(0), images)
    return sum(leaf.size for leaf in jax.tree.leaves(params))


def _over_devices(algorithm: Algorithm) -> Algorithm:
    """The same algorithm, each batch laid over all devices."""

    def update(state: Any, batch: Pictures) -> tuple[Any, Metrics]:
        return algorithm.update(state, over_devices(batch))

    return algorithm._replace(update=update)


def _split(config: ImageRunConfig, pictures: Pictures) -> tuple[np.ndarray, Pictures]:
    """(indices of the pictures to train on, those to validate on)."""
    total, order = len(pictures.images), np.random.default_rng(0).permutation
    if config.validation_data is not None:
        held_out = load_images(config.validation_data, size=config.size)
        if held_out.images.shape[1:] != pictures.images.shape[1:]:
            raise ValueError(
                f"{config.validation_data} holds images of shape {held_out.images.shape[1:]}, {config.data} of "
                f"{pictures.images.shape[1:]}; give a --size for both"
            )
        chosen = np.sort(order(len(held_out.images))[: config.validation_images])
        return np.arange(total), take(Pictures(held_out.images, held_out.labels), chosen)
    if total <= config.validation_images:
        raise ValueError(
            f"validation_images ({config.validation_images}) leaves none of {total} images to train on; take fewer, "
            f"or name --validation-data"
        )
    chosen = order(total)
    held_out = take(pictures, np.sort(chosen[: config.validation_images]))
    return np.sort(chosen[config.validation_images :]), held_out
