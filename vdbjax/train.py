"""`python -m vdbjax.train RECIPE`: trains a recipe, and goes on with a stopped run."""

import dataclasses
import shlex
import sys
import time
from dataclasses import dataclass
from pathlib import Path
from typing import Annotated, Any, Generic

import jax
from tyro.conf import AvoidSubcommands, arg

from vdbjax import command
from vdbjax.envs.physics import choose_engine
from vdbjax.evaluation.plots import draw_curves
from vdbjax.recipes import RECIPES, AlgorithmConfig, Built, RunConfig, build, find_recipe, rollout_bytes
from vdbjax.trained import load_actor, read_config
from vdbjax.training.devices import available_bytes, root_key, start_processes, use_all_devices
from vdbjax.training.loop import Stopped, over_seeds, train
from vdbjax.training.metrics import NonFiniteError, mean_over_seeds
from vdbjax.training.run_dir import RunDir, create_run, open_run
from vdbjax.types import Metrics

MAY_CHANGE = ("total_steps", "evaluations", "eval_episodes", "checkpoint_seconds")


@dataclass(frozen=True)
class Options(Generic[AlgorithmConfig]):
    """What the command line gives."""

    run: Annotated[RunConfig[AlgorithmConfig], arg(name="")]
    out: Path | None = None
    """Run folder to make. None: runs/RECIPE-TASK-DATE-TIME."""
    resume: Path | None = None
    """Run folder to go on with, from its newest checkpoint; its own config is the default then."""


def main() -> None:
    """Exits 0 at the end of the run, 2 for bad input, 1 for bad numbers or a full disk, 130 or 143 when stopped."""
    command.main(lambda: _run(sys.argv[1:]))


def _run(arguments: list[str]) -> None:
    if not arguments or arguments[0] in ("-h", "--help"):
        print("usage: python -m vdbjax.train RECIPE [OPTIONS]\n\nrecipes:")
        print("\n".join(f"  {name:<16} {recipe.description}" for name, recipe in RECIPES.items()))
        print("\noptions and their defaults: python -m vdbjax.train RECIPE --help")
        return
    options = _parse(*arguments[:1], arguments[1:])
    start_processes()
    use_all_devices()
    config = options.run
    actor = load_actor(config.demonstration.init_from) if config.demonstration and config.demonstration.init_from else None
    built = build(config, start_from=actor)
    _check_memory(config, built)
    run = open_run(options.resume)[0] if options.resume else _create(options, built)
    print(_first_line(config, built, run), flush=True)
    try:
        _, result = train(
            over_seeds(built.algorithm, config.num_seeds),
            run,
            built.schedule,
            root_key(config.seed),
            resume=options.resume is not None,
        )
    except Stopped as stop:
        print(f"stopped and saved; go on with: python -m vdbjax.train {config.recipe} --resume {shlex.quote(str(run.path))}")
        sys.exit(stop.code)
    except (NonFiniteError, OSError) as error:
        sys.exit(f"error: {error}")
    if jax.process_index() == 0:
        draw_curves([run.path], run.path / "curves.png")
        print(_last_line(result, run))


def _parse(recipe: str, arguments: list[str]) -> Options:
    """The options; their defaults are the recipe's, or on a resumed run those it was started with."""
    default = find_recipe(recipe)
    resumed = next((b for a, b in zip(arguments, arguments[1:], strict=False) if a == "--resume"), None)
    if resumed:
        default = read_config(resumed)
        if default.recipe != recipe:
            raise ValueError(f"{resumed} is a run of recipe {default.recipe!r}, not of {recipe!r}")
    kind: Any = Options[type(default.algorithm)]  # type: ignore[misc]
    options = command.parse(
        AvoidSubcommands[kind],
        prog=f"python -m vdbjax.train {recipe}",
        description=RECIPES[recipe].description,
        args=arguments,
        default=Options(default),
    )
    if resumed:
        _refuse_changes(default, options.run)
    return options


def _refuse_changes(before: RunConfig, after: RunConfig) -> None:
    old, new = (_flat(dataclasses.asdict(config)) for config in (before, after))
    changed = [name for name in old if old[name] != new[name] and name not in MAY_CHANGE]
    if changed:
        what = ", ".join(f"{name} ({old[name]} -> {new[name]})" for name in changed)
        raise ValueError(f"a resumed run keeps its config, but {what}; only {', '.join(MAY_CHANGE)} may change")


def _flat(tree: dict[str, Any], prefix: str = "") -> dict[str, Any]:
    leaves = {}
    for name, value in tree.items():
        leaves |= _flat(value, f"{prefix}{name}.") if isinstance(value, dict) else {prefix + name: value}
    return leaves


def _check_memory(config: RunConfig, built: Built) -> None:
    asked, available = rollout_bytes(config, built.environment), available_bytes()
    if asked > available:
        raise ValueError(
            f"num_envs ({config.num_envs}) asks for {asked / 2**30:,.1f} GiB for rollouts of {config.num_seeds} seeds, "
            f"and {available / 2**30:,.1f} GiB are free; take fewer environments"
        )


def _create(options: Options, built: Built) -> RunDir:
    config = options.run
    task = config.environment.env.replace("/", "-")
    out = options.out or Path("runs") / f"{config.recipe}-{task}-{time.strftime('%Y%m%d-%H%M%S')}"
    content = {"config": dataclasses.asdict(config), "engine": _engine(config), "facts": built.facts}
    return create_run(out, content)


def _engine(config: RunConfig) -> str:
    name = config.environment.env
    return config.environment.backend if name.startswith("brax/") else choose_engine(config.environment.engine)


def _first_line(config: RunConfig, built: Built, run: RunDir) -> str:
    device = jax.devices()[0]
    return (
        f"{config.recipe} on {built.environment.name}, engine {_engine(config)}, {config.num_envs} environments, "
        f"{jax.device_count()} x {device.platform} {device.device_kind}, into {run.path}"
    )


def _last_line(result: Metrics, run: RunDir) -> str:
    shown = [
        ("return", "eval/return", ".0f"),
        ("normalised score", "eval/score", ".3f"),
        ("return of the stochastic policy", "eval/stochastic_return", ".0f"),
        ("its score", "eval/stochastic_score", ".3f"),
    ]
    values = [f"{label} {mean_over_seeds(result[name]):{form}}" for label, name, form in shown if name in result]
    return f"{', '.join(values)} | {run.path / 'curves.png'}"


if __name__ == "__main__":
    main()
