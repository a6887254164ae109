"""`python -m vdbjax.train RECIPE`: trains a policy or a model of images, and goes on with a stopped run."""

import dataclasses
import shlex
import sys
import time
from dataclasses import dataclass
from pathlib import Path
from typing import Annotated, Any, Generic, TypeVar

import jax
import jax.numpy as jnp
import numpy as np
from tyro.conf import AvoidSubcommands, arg

from vdbjax import command
from vdbjax.build import Built, build, rollout_bytes
from vdbjax.data.images import find_images
from vdbjax.envs.env import engine_of
from vdbjax.envs.physics import choose_engine
from vdbjax.evaluation.plots import draw_curves
from vdbjax.evaluation.sample_grid import columns_of, write_grid, write_pairs
from vdbjax.flows import flowpp
from vdbjax.image_build import (
    ImagesBuilt,
    build_on_images,
    kind_of,
    refuse_learnt_images,
    refuse_other_images,
)
from vdbjax.image_recipes import IMAGE_RECIPES, find_image_recipe
from vdbjax.image_run_config import ImageRunConfig
from vdbjax.images import classifier, gan, two_stage, vdvae
from vdbjax.imitation import behavioral_cloning
from vdbjax.recipes import RECIPES, find_recipe
from vdbjax.run_config import RunConfig, by_own_files
from vdbjax.run_curves import curves_of
from vdbjax.saved_config import refuse_changes
from vdbjax.trained import (
    load_actor,
    primary_of,
    read_config,
    read_image_config,
    recipe_of,
    reward_of,
    settled_on_first,
)
from vdbjax.training.checkpoint import saved_iterations
from vdbjax.training.devices import (
    available_bytes,
    largest_over_processes,
    root_key,
    start_processes,
    use_all_devices,
)
from vdbjax.training.loop import Stopped, over_seeds, train
from vdbjax.training.memory import keep_memory
from vdbjax.training.metrics import NonFiniteError, mean_over_seeds
from vdbjax.training.run_dir import RunDir, create_run, open_run, reopen_run
from vdbjax.types import Metrics

SAMPLES = 64
"""Images in each grid of samples."""

RECONSTRUCTIONS = 32
"""Images in each grid of reconstructions, which stand below them."""

POLICY_HEADINGS = {
    "maze": "rewards that transfer (--env maze/c, maze/s)",
    "mocap": "motion clips (--env mocap/CLIP)",
    "video": "films of motion clips (--env video/CLIP)",
}
"""Before the slash in a task's name -> what `--help` says of its recipes."""

IMAGE_HEADINGS = {
    flowpp: "flows, for lossless compression (--data IMAGES)",
    gan: "image synthesis (--data IMAGES)",
    vdvae: "distortion-targeted VAEs (--data IMAGES)",
    two_stage: "second stages of VAEs (--data IMAGES --primary RUN)",
    classifier: "features to score images by (--data IMAGES)",
}

AnyConfig = TypeVar("AnyConfig", bound=RunConfig | ImageRunConfig)


@dataclass(frozen=True)
class Options(Generic[AnyConfig]):
    """What the command line gives."""

    run: Annotated[AnyConfig, arg(name="")]
    out: Path | None = None
    """Run folder to make. None: runs/RECIPE-TASK-DATE-TIME."""
    resume: Path | None = None
    """Run folder to go on with, from its newest checkpoint; its own config is the default then."""


def main() -> None:
    """Exits 0 at the end of the run, 2 for bad input, 1 for bad numbers or a full disk, 130 or 143 when stopped."""
    command.main(lambda: _run(sys.argv[1:]))


def _run(arguments: list[str]) -> None:
    if not arguments or arguments[0] in ("-h", "--help"):
        print(_help())
        return
    options = _parse(*_recipe_first(arguments))
    if isinstance(options.run, ImageRunConfig):
        keep_memory()
    start_processes()
    use_all_devices()
    config = _settled(options.run)
    key, built = root_key(config.seed), _build(config, options.resume)
    try:
        if options.resume:
            if isinstance(built, ImagesBuilt):
                refuse_other_images(open_run(options.resume)[1].get("facts", {}), built.facts)
            run = reopen_run(options.resume, dataclasses.asdict(config))
        else:
            run = _create(options.out, config, built)
        _say(_first_line(config, built, run))
        if max(saved_iterations(run), default=0) >= built.schedule.num_iterations:
            _say("nothing is left to train; it goes on where it is given more steps or iterations")
        algorithm = over_seeds(built.algorithm, config.num_seeds)
        extra = _on_images(built, run, config.retries) if isinstance(built, ImagesBuilt) else {}
        state, result = train(
            algorithm, run, built.schedule, key, resume=options.resume is not None, options=built.options, **extra
        )
        if jax.process_index() == 0:
            draw_curves([curves_of(run.path)], run.path / "curves.png")
        _say(_last_line(result, run))
        if short := _shortfall(config, state, result):
            _say(short)
    except Stopped as stop:
        again = f"python -m vdbjax.train --resume {shlex.quote(str(run.path))}"
        saved = "and saved" if saved_iterations(run) else "before anything could be saved"
        _say(f"stopped {saved}; go on with: {again}")
        sys.exit(stop.code)
    except (NonFiniteError, OSError) as error:
        sys.exit(f"error: {error}")


def _help() -> str:
    """The recipes, under headings that say what each learns."""
    headings: dict[str, list[str]] = {}
    for name, recipe in (RECIPES | IMAGE_RECIPES).items():
        headings.setdefault(_heading(recipe.config), []).append(f"  {name:<27} {recipe.description}")
    menu = "\n\n".join("\n".join([f"{heading}:", *rows]) for heading, rows in headings.items())
    usage = "usage: python -m vdbjax.train RECIPE [OPTIONS]\n       python -m vdbjax.train --resume RUN [OPTIONS]"
    options = "options and their defaults: python -m vdbjax.train RECIPE --help"
    return f"{usage}\n\n{menu}\n\n{options}"


def _heading(config: AnyConfig) -> str:
    if isinstance(config, ImageRunConfig):
        return IMAGE_HEADINGS[kind_of(config.algorithm)]
    kind, named, _ = config.environment.env.partition("/")
    return POLICY_HEADINGS[kind] if named else "policies of a task (--env hopper, walker2d, brax/NAME, ...)"


def _shortfall(config: Any, state: Any, result: Metrics) -> str | None:
    """What to say of a model that was to hold a distortion and never came near it."""
    if getattr(config.algorithm, "gamma", None) is None or np.all(state.reached):
        return None
    return (
        f"gamma {config.algorithm.gamma:g} was not reached: the distortion came to "
        f"{mean_over_seeds(result['eval/distortion']):.4g}; train for longer, or ask for a larger one"
    )


def _say(text: str) -> None:
    """Prints, in the first of several processes."""
    if jax.process_index() == 0:
        print(text, flush=True)


def _recipe_first(arguments: list[str]) -> tuple[str, list[str]]:
    """The recipe, which a run that is gone on with knows itself, and the options."""
    if not arguments[0].startswith("-"):
        return arguments[0], arguments[1:]
    if resumed := _resumed(arguments):
        return recipe_of(resumed), arguments
    if arguments[0] == "--resume":
        raise ValueError("--resume needs the folder of a run")
    raise ValueError(f"name a recipe before {arguments[0]}; `python -m vdbjax.train` lists them")


def _parse(recipe: str, arguments: list[str]) -> Options:
    """The options; their defaults are the recipe's, or on a resumed run those it was started with."""
    of_images, resumed = recipe in IMAGE_RECIPES, _resumed(arguments)
    default: Any
    if resumed:
        default = read_image_config(resumed) if of_images else read_config(resumed)
        if default.recipe != recipe:
            raise ValueError(f"{resumed} is a run of recipe {default.recipe!r}, not of {recipe!r}")
    else:
        default = find_image_recipe(recipe) if of_images else find_recipe(recipe)
    kind: Any = Options[type(default)[type(default.algorithm)]]  # type: ignore[misc]
    options = command.parse(
        AvoidSubcommands[kind],  # type: ignore[misc]
        prog=f"python -m vdbjax.train {recipe}",
        description=(RECIPES | IMAGE_RECIPES)[recipe].description,
        args=arguments,
        default=Options(default),
    )
    if options.resume:
        if options.out:
            raise ValueError(f"--out ({options.out}) makes a new run, --resume ({options.resume}) goes on with one")
        refuse_changes(default, _by_whole_paths(options.run) if of_images else options.run)
    return options


def _resumed(arguments: list[str]) -> str | None:
    """The run folder after --resume, needed before the options can be parsed."""
    for name, following in zip(arguments, [*arguments[1:], None], strict=False):
        if name == "--resume":
            return following
        if name.startswith("--resume="):
            return name.removeprefix("--resume=")
    return None


def _settled(config: Any) -> Any:
    """The config with the engine that `auto` means here and whole paths, so that the run can be opened elsewhere."""
    if isinstance(config, ImageRunConfig):
        return settled_on_first(_by_whole_paths(config))
    environment, (kind, _, name) = config.environment, config.environment.env.partition("/")
    if kind in ("brax", "maze"):
        return config
    if kind in ("mocap", "video") and Path(name).is_file():
        environment = dataclasses.replace(environment, env=f"{kind}/{Path(name).absolute()}")
    engine: Any = choose_engine(environment.engine)
    return dataclasses.replace(config, environment=dataclasses.replace(environment, engine=engine))


def _by_whole_paths(config: ImageRunConfig) -> ImageRunConfig:
    """The config with its images by their whole paths, by whatever name they were given."""
    named = {name: getattr(config, name) for name in ("data", "sources", "validation_data")}
    paths: dict[str, Any] = {name: find_images(path).absolute() for name, path in named.items() if path}
    return dataclasses.replace(config, **paths)


def _build(config: Any, resumed: Path | None) -> Built | ImagesBuilt:
    if isinstance(config, ImageRunConfig):
        primary = primary_of(config)
        of_images = build_on_images(config, first_params=primary and primary.params[0])
        if primary and not resumed and not config.validation_data:
            refuse_learnt_images(primary.facts, of_images.facts)
        return of_images
    if isinstance(config.algorithm, behavioral_cloning.Config) and config.total_steps and not resumed:
        raise ValueError(
            f"total_steps ({config.total_steps}): cloning takes no control steps; max_iterations bounds it"
        )
    own = by_own_files(config, resumed) if resumed else config
    start = own.demonstration and own.demonstration.init_from
    built = build(own, start_from=load_actor(start, own) if start else None, reward=reward_of(own))
    _check_memory(config, built)
    return built


def _on_images(built: ImagesBuilt, run: RunDir, retries: int) -> dict[str, Any]:
    """What the loop needs for a model of images: its batches, and who draws its pictures after each evaluation."""
    given = {"batches": built.batches, "retries": retries}
    if not hasattr(built.model, "sample"):
        return given
    sources = built.validation.sources
    told: dict[str, Any] = {} if sources is None else {"sources": jnp.asarray(sources[:SAMPLES])}
    count = SAMPLES if sources is None else len(told["sources"])
    sample = jax.jit(lambda params, key: built.model.sample(params, key, num_images=count, **told))
    shown = built.validation.images[:RECONSTRUCTIONS]
    reconstruct = jax.jit(lambda params, key: built.model.reconstruct(params, jnp.asarray(shown), key))

    def draw(state: Any, iteration: int) -> None:
        average = state.average
        if np.ndim(state.step):  # the first of several seeds
            average = jax.tree.map(lambda leaf: leaf[0], average)
        images = jax.device_get(sample(average, jax.random.key(0)))
        if jax.process_index() == 0:
            write_grid(run.path / "samples" / f"{iteration:07}.png", images, columns=columns_of(built.model))
        if hasattr(built.model, "reconstruct"):
            found = jax.device_get(reconstruct(average, jax.random.key(0)))
            if jax.process_index() == 0:
                write_pairs(run.path / "reconstructions" / f"{iteration:07}.png", shown, found)

    return given | {"after_evaluation": draw}


def _check_memory(config: RunConfig, built: Built) -> None:
    asked, available = rollout_bytes(config, built.environment), available_bytes()
    if asked > available:
        raise ValueError(
            f"num_envs ({config.num_envs}) asks for {asked / 2**30:,.1f} GiB for rollouts of {config.num_seeds} seeds, "
            f"and {available / 2**30:,.1f} GiB are free; take fewer environments"
        )


def _create(out: Path | None, config: Any, built: Built | ImagesBuilt) -> RunDir:
    started = time.localtime(*largest_over_processes(int(time.time())))
    content: dict[str, Any] = {"config": dataclasses.asdict(config), "facts": built.facts}
    files: dict[str, Path] = {}
    if isinstance(built, ImagesBuilt):
        learnt = config.data.stem
    else:
        learnt, content["engine"] = built.environment.name.replace("/", "-"), engine_of(config.environment)
        files = config.files
    out = out or Path("runs") / f"{config.recipe}-{learnt}-{time.strftime('%Y%m%d-%H%M%S', started)}"
    if isinstance(built, ImagesBuilt) and out.resolve().is_relative_to(config.data.resolve()):
        raise ValueError(f"{out} lies in {config.data}, where its figures would be learnt from; choose another --out")
    return create_run(out, content, files=files)


def _first_line(config: Any, built: Built | ImagesBuilt, run: RunDir) -> str:
    device = jax.devices()[0]
    devices = f"{jax.device_count()} x {device.platform} {device.device_kind}"
    if isinstance(built, ImagesBuilt):
        facts = built.facts
        shape = " x ".join(map(str, facts["image_shape"]))
        return (
            f"{config.recipe}, {facts['parameters']:,} parameters, on {facts['images']:,} images of {shape} from "
            f"{config.data} ({facts['image_policy']}), {devices}, into {run.path}"
        )
    return (
        f"{config.recipe} on {built.environment.name}, engine {engine_of(config.environment)}, "
        f"{config.num_envs} environments, {devices}, into {run.path}"
    )


def _last_line(result: Metrics, run: RunDir) -> str:
    shown = [
        ("return of the mean action", "eval/return", ",.1f"),
        ("normalised score", "eval/score", ".3f"),
        ("mean joint rotation error (rad)", "eval/rotation_rad", ".3f"),
        ("fallen", "eval/fallen_fraction", ".0%"),
        ("return of the stochastic policy", "eval/stochastic_return", ",.1f"),
        ("its score", "eval/stochastic_score", ".3f"),
        ("bits/dim on the validation images", "eval/bits_per_dim", ".4f"),
        ("accuracy on the validation images", "eval/accuracy", ".1%"),
        ("distortion", "eval/distortion", ".4g"),
        ("rate (nats)", "eval/rate_nats", ".4g"),
        ("held-out images told", "eval/real_accuracy", ".0%"),
        ("fakes of the averaged generator told", "eval/fake_accuracy", ".0%"),
        ("KL (nats)", "eval/kl_nats", ".3f"),
    ]
    values = [f"{label} {mean_over_seeds(result[name]):{form}}" for label, name, form in shown if name in result]
    return f"{', '.join(values)} | {run.path / 'curves.png'}"


if __name__ == "__main__":
    main()
