"""How a config and its images become a running algorithm."""

from collections.abc import Callable
from types import ModuleType
from typing import Any, NamedTuple

import jax
import numpy as np

from vdbjax.compiler import compiler_options
from vdbjax.data.batches import shuffled_batches, take
from vdbjax.data.images import ImageSet, load_images
from vdbjax.evaluation.features import digest_of
from vdbjax.flows import flowpp
from vdbjax.image_run_config import ImageRunConfig
from vdbjax.images import classifier, gan, two_stage, vdvae
from vdbjax.sharding import check_shares, over_devices
from vdbjax.training.loop import Schedule
from vdbjax.types import Algorithm, Metrics, Pictures

VALIDATION_IMAGES = 256
"""How many images a run is evaluated on, where there are enough and no other number is given."""

IMAGES_TOLD_BY = 100

KINDS: dict[type, ModuleType] = {
    flowpp.Config: flowpp,
    gan.Config: gan,
    classifier.Config: classifier,
    vdvae.Config: vdvae,
    two_stage.Config: two_stage,
}
"""Config -> the module that makes its model: `build_model(config, image_shape)`, `make(config, model, *, first,
validation, num_iterations)`. A model has `image_shape` and `init(key, images)`, where it can `sample` and `bound`; its
state has `average`, the parameters that everything but training uses, `step` and `key`."""

WITH_OPTIONS = (flowpp, gan)
"""Whose training the compiler's options make faster; that of hierarchical VAEs they slow down."""

WITH_LABELS = (classifier, gan)
"""That learn from labels, or may: `check_labels(config, labels)` sees those of all images to train on."""


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
    options: dict[str, str]  # the compiler's


def build_on_images(config: ImageRunConfig, *, first_params: Any = None) -> ImagesBuilt:
    """The algorithm on the config's images; of two stages, over a first one with these parameters.

    Raises ValueError for what does not fit together.
    """
    if config.data is None:
        raise ValueError("no images to train on; name them with --data FOLDER, ZIP or NPZ")
    check_shares("batch_size", config.algorithm.batch_size)
    found = load_images(config.data, size=config.size)
    pictures = Pictures(found.images, found.labels, _sources(config, len(found.images)))
    among, validation = _split(config, pictures, found.label_names)
    height, width, channels = found.images.shape[1:]
    kind = kind_of(config.algorithm)
    if kind in WITH_LABELS:
        kind.check_labels(config.algorithm, None if found.labels is None else found.labels[among])
    model = kind.build_model(config.algorithm, (height, width, channels))
    model = model if first_params is None else model.starting_from(first_params)
    first = np.random.default_rng(config.seed).permutation(among)[: num_first_images(config.algorithm)]
    algorithm = kind.make(
        config.algorithm,
        model,
        first=take(pictures, np.sort(first)),
        validation=validation,
        num_iterations=config.iterations,
    )
    facts = {
        **_told_apart(pictures, among, validation),
        "image_source": found.source,
        "image_policy": found.policy,
        "parameters": num_parameters(model),
        "devices": jax.device_count(),
    }
    batches = shuffled_batches(pictures, among=among, batch_size=config.algorithm.batch_size, seed=config.seed)
    schedule = Schedule(config.iterations, 0, config.evaluations, config.checkpoint_seconds)
    options = compiler_options() if kind in WITH_OPTIONS else {}
    return ImagesBuilt(with_batches_over_devices(algorithm), model, batches, validation, schedule, facts, options)


def refuse_other_images(before: dict[str, Any], facts: dict[str, Any]) -> None:
    """Raises ValueError where the images that a run's config names are not those of its facts from before.

    One picture more would deal out anew which are learnt from and which are held out.
    """
    if other := difference(before, facts):
        raise ValueError(
            f"the images are not those that the run was started on ({other}); name these with --data, or train anew"
        )


TOLD_APART_BY = ("images", "validation_images", "image_shape", "images_sha256")
"""The facts that together tell a run's images from others."""


def refuse_learnt_images(of_first: dict[str, Any], facts: dict[str, Any]) -> None:
    """Raises ValueError where a first stage may have learnt from the images that a second one is evaluated on."""
    if other := difference(of_first, facts):
        raise ValueError(
            f"the first stage may have learnt from images that this one is evaluated on ({other}); give the --data and "
            f"--validation-images of the first, or --validation-data"
        )


def difference(before: dict[str, Any], facts: dict[str, Any]) -> str:
    """How the images of two runs differ, in a few words; none where they are the same, or an older run does not say."""
    known = [name for name in TOLD_APART_BY if name in before and name in facts]
    return next(
        (f"{name} was {before[name]} and is {facts[name]}" for name in known if before[name] != facts[name]), ""
    )


def _told_apart(pictures: Pictures, among: np.ndarray, validation: Pictures) -> dict[str, Any]:
    values = len(among), len(validation.images), list(pictures.images.shape[1:]), _digest(pictures, validation)
    return dict(zip(TOLD_APART_BY, values, strict=True))


def _digest(*sets: Pictures) -> str:
    """Tells sets apart by at most `IMAGES_TOLD_BY` images of each, evenly spread, with labels and sources."""
    spread = [np.linspace(0, len(each.images) - 1, min(len(each.images), IMAGES_TOLD_BY), dtype=int) for each in sets]
    return digest_of(*jax.tree.leaves([take(each, chosen) for each, chosen in zip(sets, spread, strict=True)]))


def validation_images(config: ImageRunConfig, facts: dict[str, Any]) -> np.ndarray:
    """The images that a run is evaluated on. Raises ValueError where they are not there any more, or are other ones
    than the run's facts say."""
    if config.data is None:
        raise ValueError(f"the run of recipe {config.recipe} names no images")
    found = load_images(config.data, size=config.size)
    pictures = Pictures(found.images, found.labels, _sources(config, len(found.images)))
    among, validation = _split(config, pictures, found.label_names)
    refuse_other_images(facts, _told_apart(pictures, among, validation))
    return np.asarray(validation.images)


def _sources(config: ImageRunConfig, expected: int) -> Any:
    if config.sources is None:
        return None
    if not getattr(config.algorithm, "translate", False):
        raise ValueError(f"--sources ({config.sources}) are for a GAN that translates, by --translate; leave them out")
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


def with_batches_over_devices(algorithm: Algorithm) -> Algorithm:
    """The same algorithm, each batch laid over all devices."""

    def update(state: Any, batch: Pictures) -> tuple[Any, Metrics]:
        return algorithm.update(state, over_devices(batch))

    return algorithm._replace(update=update)


def _split(config: ImageRunConfig, pictures: Pictures, label_names: tuple[str, ...]) -> tuple[np.ndarray, Pictures]:
    """(indices of the pictures to train on, those to validate on)."""
    total, order = len(pictures.images), np.random.default_rng(0).permutation
    if config.validation_data is not None:
        held_out = load_images(config.validation_data, size=config.size)
        if held_out.images.shape[1:] != pictures.images.shape[1:]:
            raise ValueError(
                f"{config.validation_data} holds images of shape {held_out.images.shape[1:]}, {config.data} of "
                f"{pictures.images.shape[1:]}; give a --size for both"
            )
        chosen = np.sort(order(len(held_out.images))[: config.validation_images or VALIDATION_IMAGES])
        return np.arange(total), take(Pictures(held_out.images, _labels_by_name(config, held_out, label_names)), chosen)
    count = config.validation_images or min(VALIDATION_IMAGES, max(1, total // 10))
    if total <= count:
        raise ValueError(
            f"--validation-images ({count}) leaves none of {total} images to train on; take fewer, or name "
            f"--validation-data"
        )
    chosen = order(total)
    return np.sort(chosen[count:]), take(pictures, np.sort(chosen[:count]))


def _labels_by_name(config: ImageRunConfig, held_out: ImageSet, names: tuple[str, ...]) -> Any:
    """The held-out labels as the training images count them, where folders name them."""
    if held_out.labels is None or not held_out.label_names or held_out.label_names == names:
        return held_out.labels
    if unknown := [name for name in held_out.label_names if name not in names]:
        raise ValueError(f"{config.validation_data} has a class {unknown[0]}, which {config.data} has not")
    return np.array([names.index(name) for name in held_out.label_names])[held_out.labels]
