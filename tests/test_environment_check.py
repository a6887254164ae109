"""An environment of one's own: what breaks its protocol is told by name, and a run in one is loaded with it."""

import dataclasses

import jax
import jax.numpy as jnp
import numpy as np
import pytest
from probe_environments import FOLLOW

from vdbjax.build import build
from vdbjax.envs.check import check_environment
from vdbjax.envs.env import EnvironmentConfig, make_environment
from vdbjax.recipes import find_recipe
from vdbjax.trained import load_trained
from vdbjax.training.devices import root_key
from vdbjax.training.loop import train
from vdbjax.training.run_dir import create_run


@pytest.mark.parametrize("bound", [np.array([np.inf]), np.array([np.nan]), np.array(1.0), np.ones(2)])
def test_actions_without_a_range_are_refused(bound):
    """As policies would be NaN from the first step on."""
    with pytest.raises(ValueError, match=f"action_high of {FOLLOW.name} must be 1 finite numbers"):
        build(find_recipe("ppo"), environment=FOLLOW._replace(action_high=bound))


def test_a_range_that_ends_where_it_starts_is_refused():
    with pytest.raises(ValueError, match="must lie below action_high"):
        check_environment(FOLLOW._replace(action_low=FOLLOW.action_high))


def changed(**how):
    """FOLLOW, whose steps give something else."""

    def step(state, action, key):
        after, seen = FOLLOW.step(state, action, key)
        return after, seen._replace(**{name: change(getattr(seen, name)) for name, change in how.items()})

    return FOLLOW._replace(step=step)


@pytest.mark.parametrize(
    ("name", "change", "found"),
    [
        ("reward", lambda reward: reward[:, None], r"reward of follow must be float32 \(4,\).* not float32 \(4, 1\)"),
        ("reward", lambda reward: reward.astype(jnp.int32), r"not int32 \(4,\)"),
        ("terminated", lambda done: done.astype(jnp.float32), r"terminated of follow must be bool .* not float32"),
        ("truncated", jnp.any, r"truncated of follow must be bool \(4,\).* not bool \(\)"),
        ("next_observation", lambda seen: seen[:, :1], r"next_observation of follow must be float32 \(4, 2\)"),
    ],
)
def test_a_step_of_another_shape_or_type_is_refused(name, change, found):
    with pytest.raises(ValueError, match=found):
        check_environment(changed(**{name: change}))


def test_an_observation_of_another_size_is_refused():
    with pytest.raises(ValueError, match=r"the observation after a reset of follow must be float32 \(4, 5\)"):
        check_environment(FOLLOW._replace(observation_size=5))


def test_a_state_that_changes_its_shape_is_refused():
    def step(state, action, key):
        after, seen = FOLLOW.step(state, action, key)
        return after._replace(elapsed=after.elapsed.astype(jnp.float32)), seen

    with pytest.raises(ValueError, match=r"another state than a reset: \.elapsed was int32 \(4,\), and is float32"):
        check_environment(FOLLOW._replace(step=step))


@pytest.mark.parametrize("name", ["hopper", "maze/c"])
def test_the_projects_own_keep_the_protocol(name):
    check_environment(make_environment(EnvironmentConfig(env=name, engine="auto")))


def test_they_keep_it_on_two_devices_too(two_devices):
    check_environment(make_environment(EnvironmentConfig(env="hopper", engine="c")))


def test_a_run_is_loaded_with_its_environment(tmp_path):
    config = find_recipe("ppo")
    config = dataclasses.replace(config, num_envs=4, total_steps=128, evaluations=1, eval_episodes=1)
    built = build(config, environment=FOLLOW)
    run = create_run(tmp_path / "run", {"config": dataclasses.asdict(config), "facts": built.facts})
    state, _ = train(built.algorithm, run, built.schedule, root_key(0))
    trained = load_trained(tmp_path / "run", environment=FOLLOW)
    assert trained.built.environment is FOLLOW
    jax.tree.map(np.testing.assert_array_equal, trained.actors[0], state.actor)
