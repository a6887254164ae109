"""Demonstrations of three short made episodes, in which every number tells where it belongs."""

import numpy as np

from vdbjax.data import demonstrations as demo
from vdbjax.data.demonstrations import DemonstrationFile
from vdbjax.types import Demonstrations

LENGTHS = (5, 3, 7)
TERMINATED = [True, False, True]


def made_episodes() -> tuple[list[np.ndarray], list[np.ndarray], list[np.ndarray], list[bool]]:
    """Episode e has observations 100 e + t, so that every number tells where it belongs."""
    observations = [100.0 * e + np.arange(n + 1)[:, None] + [0.0, 0.25] for e, n in enumerate(LENGTHS)]
    actions = [-100.0 * e - np.arange(n)[:, None] for e, n in enumerate(LENGTHS)]
    rewards = [10.0 * e + np.arange(n) for e, n in enumerate(LENGTHS)]
    return observations, actions, rewards, list(TERMINATED)


def made_demonstrations() -> Demonstrations:
    return demo.from_episodes(*made_episodes())


def made_file(task: str = "hopper") -> DemonstrationFile:
    return DemonstrationFile(made_demonstrations(), task, 17.5, "a tuned expert")


def members_of(path) -> dict[str, np.ndarray]:
    with np.load(path) as archive:
        return dict(archive)


def assert_same(left: Demonstrations, right: Demonstrations) -> None:
    for name, a, b in zip(left._fields, left, right):
        np.testing.assert_array_equal(a, b, err_msg=name)
        assert a.dtype == b.dtype, name
