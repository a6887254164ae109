"""What a setting may be: configs and commands refuse a value in the same words, before anything is made of it.

A setting is named as its user knows it: `learning_rate`, `dequantizer.blocks`, `--num-envs`. None, which stands for
what is left out, is never refused; of a tuple every element must hold.
"""

import difflib
import math
from collections.abc import Callable, Iterable, Sequence
from typing import Any


def at_least(low: int, settings: Any, *names: str) -> None:
    """Raises ValueError for a number below `low`."""
    _refuse(settings, names, lambda value: value >= low, f"must be at least {low}")


def positive(settings: Any, *names: str) -> None:
    """Raises ValueError for a number that is not above 0, or not finite."""
    _refuse(settings, names, lambda value: 0 < value < math.inf, "must be above 0 and finite")


def not_negative(settings: Any, *names: str) -> None:
    """Raises ValueError for a number below 0, or not finite."""
    _refuse(settings, names, lambda value: 0 <= value < math.inf, "must be finite and not negative")


def below_one(settings: Any, *names: str) -> None:
    """Raises ValueError for a share or a decay that is not at least 0 and below 1."""
    _refuse(settings, names, lambda value: 0 <= value < 1, "must be at least 0 and below 1")


def between(low: int, high: int, settings: Any, *names: str) -> None:
    """Raises ValueError for a number below `low` or above `high`."""
    _refuse(settings, names, lambda value: low <= value <= high, f"must lie between {low} and {high}")


def seed(settings: Any, name: str) -> None:
    """Raises ValueError for a seed that 32 bits do not hold."""
    between(0, 2**32 - 1, settings, name)


def not_empty(settings: Any, *names: str) -> None:
    """Raises ValueError for a tuple that names nothing."""
    for name in names:
        if not _value(settings, name):
            raise ValueError(f"{name} names nothing; give at least one")


def ends_in(suffixes: Sequence[str], settings: Any, *names: str) -> None:
    """Raises ValueError for a path of another suffix."""
    _refuse(settings, names, lambda path: path.suffix.lower() in suffixes, f"must end in {' or '.join(suffixes)}")


def known(what: str, choices: Iterable[str], *names: str) -> None:
    """Raises ValueError for a name that is none of the choices: it offers the nearest, or else all of them."""
    choices = list(choices)
    for name in names:
        if name not in choices:
            hint = nearest(name, choices) or f"known are {', '.join(choices)}"
            raise ValueError(f"unknown {what} {name!r}; {hint}")


def nearest(name: str, choices: Sequence[str]) -> str | None:
    """A question that offers what a mistyped name may have meant; None where nothing is near."""
    near = difflib.get_close_matches(name, choices, n=3)
    return f"did you mean {' or '.join(near)}?" if near else None


def _value(settings: Any, name: str) -> Any:
    return getattr(settings, name.rpartition(".")[2].lstrip("-").replace("-", "_"))


def _refuse(settings: Any, names: Sequence[str], holds: Callable[[Any], bool], rule: str) -> None:
    for name in names:
        value = _value(settings, name)
        if isinstance(value, tuple):
            if not all(map(holds, value)):
                raise ValueError(f"{name} {value} {rule} each")
        elif value is not None and not holds(value):
            raise ValueError(f"{name} ({value}) {rule}")
