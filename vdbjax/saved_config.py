"""A config as its run's folder keeps it: read back from its JSON, told by its options, held against another."""

import dataclasses
from pathlib import Path
from typing import Any, Literal, get_args, get_origin, get_type_hints

UNNAMED = ("algorithm", "environment", "demonstration")
"""The parts of a config whose options stand without their name."""

MAY_CHANGE = (
    *("--total-steps", "--iterations", "--max-iterations", "--evaluations", "--eval-episodes", "--checkpoint-seconds"),
    *("--scan", "--remat"),  # how a model is compiled, not what it is
    *("--data", "--sources", "--validation-data", "--primary"),  # where it lies, not what it is
)
"""Options that a resumed run may be given anew."""


def by_option(config: dict[str, Any], prefix: str = "") -> dict[str, Any]:
    """The settings of a config, as a dict, under the names of their options, `ppo.clip` for --ppo.clip."""
    settings: dict[str, Any] = {}
    for name, value in config.items():
        within = "" if f"{prefix}{name}" in UNNAMED else f"{prefix}{name}."
        settings |= by_option(value, within) if isinstance(value, dict) else {f"{prefix}{name}": value}
    return settings


def refuse_changes(before: Any, after: Any) -> None:
    """Raises ValueError for what a resumed run may not change, with both values."""
    old, new = (_by_typed_option(config) for config in (before, after))
    changed = [name for name in old if old[name] != new[name] and name not in MAY_CHANGE]
    if changed:
        what = ", ".join(f"{name} ({old[name]} -> {new[name]})" for name in changed)
        free = ", ".join(name for name in MAY_CHANGE if name in old)
        raise ValueError(f"a resumed run keeps its config: {what} cannot change, only {free}")


def _by_typed_option(config: Any) -> dict[str, Any]:
    """The settings by their options as they are typed; paths as they are from anywhere."""
    settings = by_option(dataclasses.asdict(config))
    return {
        f"--{name.replace('_', '-')}": value.absolute() if isinstance(value, Path) else value
        for name, value in settings.items()
    }


def from_dict(default: Any, values: Any) -> Any:
    """A config from its JSON, `default` giving the types.

    Names that an earlier version did not write take the defaults of their class, which leave all as it was then; other
    missing names, unknown ones, and values of another type raise ValueError.
    """
    if not isinstance(values, dict):
        raise ValueError(f"{values!r} stands where the settings of {type(default).__name__} should")
    fields = {entry.name: getattr(default, entry.name) for entry in dataclasses.fields(default)}
    needed = {entry.name for entry in dataclasses.fields(default) if entry.default is entry.default_factory}
    if odd := (values.keys() - fields.keys()) | (needed - values.keys()):
        raise ValueError(f"this config is of another version of {type(default).__name__}: {', '.join(sorted(odd))}")
    types = get_type_hints(type(default))
    return type(default)(**{name: _restored(name, fields[name], value, types[name]) for name, value in values.items()})


def _restored(name: str, default: Any, value: Any, kind: Any) -> Any:
    if dataclasses.is_dataclass(default):
        return from_dict(default, value)
    if not _fits(value, kind):
        raise ValueError(f"{name} ({value!r}) must be of type {kind.__name__ if isinstance(kind, type) else kind}")
    if isinstance(value, str) and Path in get_args(kind):
        return Path(value)
    return tuple(value) if isinstance(value, list) else value


def _fits(value: Any, kind: Any) -> bool:
    """Whether a value, as it was or as JSON has it, is of a field's type."""
    inner = get_args(kind)
    if get_origin(kind) is Literal:
        return value in inner
    if get_origin(kind) is tuple:
        return isinstance(value, tuple | list) and all(_fits(each, inner[0]) for each in value)
    if inner:  # a union
        return any(_fits(value, each) for each in inner)
    allowed = {float: float | int, Path: Path | str}.get(kind, kind)
    return isinstance(value, allowed) and (kind is bool or not isinstance(value, bool))
