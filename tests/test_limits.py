"""What settings are refused: each rule by itself, and no number of any recipe that is none."""

import dataclasses
import math
from pathlib import Path
from typing import NamedTuple

import pytest

from vdbjax import limits
from vdbjax.image_recipes import IMAGE_RECIPES
from vdbjax.recipes import RECIPES


class Settings(NamedTuple):
    value: object = None


REFUSED = {
    "too few": (limits.at_least, (2,), 1, r"value \(1\) must be at least 2"),
    "one of several too small": (limits.at_least, (1,), (64, 0), r"value \(64, 0\) must be at least 1 each"),
    "nothing": (limits.positive, (), 0.0, r"value \(0\.0\) must be above 0 and finite"),
    "endless": (limits.positive, (), math.inf, r"value \(inf\) must be above 0 and finite"),
    "no number": (limits.positive, (), math.nan, r"value \(nan\) must be above 0 and finite"),
    "negative": (limits.not_negative, (), -1.0, r"value \(-1\.0\) must be finite and not negative"),
    "no number but 0 or more": (limits.not_negative, (), math.nan, r"value \(nan\) must be finite and not negative"),
    "all of it": (limits.below_one, (), 1.0, r"value \(1\.0\) must be at least 0 and below 1"),
    "outside": (limits.between, (0, 1), 1.5, r"value \(1\.5\) must lie between 0 and 1"),
    "a seed of 33 bits": (limits.seed, (), 2**32, r"value \(4294967296\) must lie between 0 and 4294967295"),
    "an empty list": (limits.not_empty, (), (), "value names nothing; give at least one"),
    "another suffix": (
        limits.ends_in,
        ((".mp4", ".gif"),),
        Path("a.avi"),
        r"value \(a\.avi\) must end in \.mp4 or \.gif",
    ),
}
TAKEN = {
    "the least": (limits.at_least, (2,), 2),
    "several": (limits.at_least, (1,), (1, 2)),
    "none of them": (limits.at_least, (1,), ()),
    "left out": (limits.positive, (), None),
    "nothing": (limits.not_negative, (), 0.0),
    "both ends": (limits.between, (0, 1), (0, 1)),
    "the last seed": (limits.seed, (), 2**32 - 1),
    "capitals": (limits.ends_in, ((".png",),), Path("A.PNG")),
}


@pytest.mark.parametrize(("rule", "bounds", "value", "message"), REFUSED.values(), ids=REFUSED.keys())
def test_what_a_rule_refuses(rule, bounds, value, message):
    with pytest.raises(ValueError, match=message):
        rule(*bounds, Settings(value), "value")


@pytest.mark.parametrize(("rule", "bounds", "value"), TAKEN.values(), ids=TAKEN.keys())
def test_what_a_rule_takes(rule, bounds, value):
    assert rule(*bounds, Settings(value), "value") is None


@pytest.mark.parametrize("name", ["value", "--value", "settings.value"])
def test_a_setting_is_named_as_its_user_types_it(name):
    with pytest.raises(ValueError, match=rf"^{name} \(0\) must"):
        limits.at_least(1, Settings(0), name)


def numbers_of(config, path=()):
    """(names of the fields down to it) of every float of a config."""
    for field in dataclasses.fields(config):
        value = getattr(config, field.name)
        if dataclasses.is_dataclass(value):
            yield from numbers_of(value, (*path, field.name))
        elif isinstance(value, float):
            yield *path, field.name


def replaced(config, path, value):
    name, *rest = path
    return dataclasses.replace(config, **{name: replaced(getattr(config, name), rest, value) if rest else value})


@pytest.mark.parametrize("recipe", [*RECIPES, *IMAGE_RECIPES])
def test_no_recipe_takes_what_is_no_number(recipe):
    config = (RECIPES | IMAGE_RECIPES)[recipe].config
    taken = []
    for path in numbers_of(config):
        for odd in (math.nan, math.inf, -1.0):
            try:
                replaced(config, path, odd)
            except ValueError:
                continue
            taken.append((".".join(path), odd))
    assert not taken
