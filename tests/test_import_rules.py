"""What a room may import: walks the imports of every module of the package and holds them against one table."""

import ast
import importlib
from collections.abc import Iterator
from pathlib import Path

import pytest

import vdbjax

PACKAGE = Path(vdbjax.__file__).parent

ADVERSARIAL_TRAINING = {"bottleneck", "adversarial", "rl", "networks", "envs.env", "types", "limits"}
MAY_IMPORT: dict[str, set[str]] = {
    "__init__": set(),  # every room loads it: what it imports, all import
    "bottleneck": set(),
    "compiler": set(),
    "limits": set(),
    "sharding": set(),
    "types": set(),
    "rotations": set(),
    "coding": set(),
    "adversarial": {"types"},
    "rl": {"types", "limits"},
    "training": {"types"},
    "evaluation": {"types", "rotations", "compiler", "limits"},
    "data": {"types", "rotations", "limits"},
    "networks": {"bottleneck", "types"},
    "flows": {"networks", "types", "limits"},
    "envs": {"types", "rotations", "sharding", "limits", "data.mocap"},
    "imitation": ADVERSARIAL_TRAINING,
    "images": ADVERSARIAL_TRAINING | {"sharding"},
}
"""Room -> what it may import besides itself; any other module at the top, and a room's `__main__`, is a command."""

WITHOUT_JAX = {"__init__", "coding"}
BRINGS_JAX = {"jax", "jaxlib", "flax", "optax", "chex", "distrax", "brax", "orbax", "mujoco.mjx"}
NO_ROOM = {"utils", "core", "common", "base", "helpers"}


def imported_names(source: str, package: tuple[str, ...]) -> Iterator[str]:
    """Absolute dotted names that `source`, a module inside `package`, imports anywhere, down to the name taken."""
    for node in ast.walk(ast.parse(source)):
        if isinstance(node, ast.Import):
            yield from (alias.name for alias in node.names)
        elif isinstance(node, ast.ImportFrom):
            start = package[: len(package) - node.level + 1] if node.level else ()
            module = ".".join((*start, *filter(None, [node.module])))
            yield from (f"{module}.{alias.name}" for alias in node.names)


def is_within(name: str, rooms: set[str]) -> bool:
    return any(name == room or name.startswith(f"{room}.") for room in rooms)


def forbidden_imports(room: str, names: Iterator[str]) -> Iterator[str]:
    for name in names:
        top, _, ours = name.partition(".")
        if top != "vdbjax":
            if room in WITHOUT_JAX and is_within(name, BRINGS_JAX):
                yield f"{room} must do without jax, but imports {name}"
        elif room in MAY_IMPORT and ours != "__version__" and not is_within(ours, MAY_IMPORT[room] | {room}):
            yield f"{room} may not import {name}"


def violations(package: Path) -> list[str]:
    """One line for each broken rule in the tree of modules under `package`."""
    found = []
    for path in sorted(package.rglob("*.py")):
        parts = path.relative_to(package).with_suffix("").parts
        room = parts[0]
        if NO_ROOM.intersection(parts):
            found.append(f"{path}: no room or module is called {NO_ROOM.intersection(parts).pop()}")
        if len(parts) > 2 or (len(parts) == 2 and room not in MAY_IMPORT):
            found.append(f"{path}: no room of the house; name it in MAY_IMPORT, two levels deep at most")
        names = imported_names(path.read_text(), ("vdbjax", *parts[:-1]))
        if parts[-1] != "__main__":  # a command sees everything
            found += [f"{path}: {line}" for line in forbidden_imports(room, names)]
    return found


def test_every_module_imports_only_what_its_room_may():
    assert len(list(PACKAGE.rglob("*.py"))) > 1
    assert not violations(PACKAGE), "\n".join(violations(PACKAGE))


def test_the_readme_names_every_module_at_the_top():
    readme = (PACKAGE.parent / "README.md").read_text()
    assert not [path.name for path in PACKAGE.glob("*.py") if path.name not in readme and path.stem != "__init__"]


def is_there(name: str) -> bool:
    """Whether an absolute dotted name is a module, or what a module has."""
    module, _, attribute = name.rpartition(".")
    try:
        return hasattr(importlib.import_module(module), attribute) or bool(importlib.import_module(name))
    except ModuleNotFoundError:
        return False


@pytest.mark.parametrize("folder", ["benchmarks", "notebooks"])
def test_scripts_import_only_what_is_there(folder):
    missing = [
        f"{script.name}: {name}"
        for script in sorted((PACKAGE.parent / folder).glob("*.py"))
        for name in imported_names(script.read_text(), ())
        if name.startswith("vdbjax.") and not is_there(name)
    ]
    assert not missing


BREAKS_A_RULE = {
    "absolute": ("rl/ppo.py", "from vdbjax.imitation.gail import make"),
    "plain_import": ("adversarial/losses.py", "import vdbjax.networks"),
    "whole_package": ("rl/ppo.py", "import vdbjax"),
    "from_package": ("bottleneck.py", "from vdbjax import types"),
    "relative_in_room": ("training/loop.py", "from ..rl import ppo"),
    "relative_at_top": ("networks.py", "from . import recipes"),
    "inside_a_function": ("imitation/gail.py", "def f():\n    from vdbjax.data.demonstrations import load"),
    "sibling_of_the_allowed_module": ("imitation/gail.py", "from vdbjax.envs import batch"),
    "name_that_only_begins_alike": ("envs/batch.py", "from vdbjax.data.mocap_files import clip"),
    "a_command": ("evaluation/plots.py", "from vdbjax.evaluate import main"),
    "the_package_itself": ("__init__.py", "from vdbjax.bottleneck import kl_nats"),
    "jax_in_coder": ("coding/rans.py", "import jax.numpy as jnp"),
    "jax_by_another_library": ("coding/rans.py", "from flax import linen"),
    "types_in_coder": ("coding/rans.py", "from vdbjax.types import Key"),
    "file_called_utils": ("rl/utils.py", ""),
    "folder_called_core": ("core/thing.py", ""),
    "unknown_room": ("attic/thing.py", ""),
    "third_level": ("rl/policies/gaussian.py", ""),
}

KEEPS_THE_RULES = {
    "own_room": (
        "rl/ppo.py",
        "from vdbjax.rl import returns\nfrom .policy import Policy\nfrom vdbjax.types import Key",
    ),
    "allowed_module": ("imitation/gail.py", "from vdbjax.envs.env import Env\nfrom vdbjax.envs import env"),
    "mocap": ("envs/mocap_humanoid.py", "from vdbjax.data.mocap import Clip"),
    "command": ("train.py", "from vdbjax import recipes\nfrom vdbjax.training import loop\nimport vdbjax"),
    "command_of_a_room": ("data/__main__.py", "from vdbjax import command\nfrom vdbjax.training import metrics"),
    "outside_libraries": ("coding/rans.py", "import numpy as np\nfrom . import container"),
    "version": ("training/run_dir.py", "from vdbjax import __version__"),
}


def written(folder: Path, name: str, source: str) -> Path:
    path = folder / name
    path.parent.mkdir(parents=True, exist_ok=True)
    path.write_text(source)
    return folder


@pytest.mark.parametrize(("name", "source"), BREAKS_A_RULE.values(), ids=BREAKS_A_RULE.keys())
def test_the_walk_finds_a_broken_rule(tmp_path, name, source):
    assert len(violations(written(tmp_path, name, source))) >= 1


@pytest.mark.parametrize(("name", "source"), KEEPS_THE_RULES.values(), ids=KEEPS_THE_RULES.keys())
def test_the_walk_lets_allowed_imports_pass(tmp_path, name, source):
    assert violations(written(tmp_path, name, source)) == []
