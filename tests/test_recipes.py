"""The one test of all recipes: each is made small and put on a probe, and must keep every promise of the contract."""

import dataclasses
from typing import Any, NamedTuple

import jax
import jax.numpy as jnp
import numpy as np
import pytest
from probe_environments import FOLLOW, follow_demonstrations

from vdbjax import recipes
from vdbjax.imitation import behavioral_cloning
from vdbjax.recipes import RECIPES, Built, DemonstrationConfig, build, find_recipe, from_dict
from vdbjax.training.checkpoint import load_checkpoint, save_checkpoint
from vdbjax.training.loop import over_seeds
from vdbjax.training.run_dir import RunDir
from vdbjax.types import Metrics


def small(name):
    """The recipe with everything that costs time cut down, and nothing else changed."""
    config = find_recipe(name)
    algorithm = config.algorithm
    if isinstance(algorithm, behavioral_cloning.Config):
        algorithm = dataclasses.replace(algorithm, batch_size=16, steps_per_iteration=4, hidden_sizes=(8,))
    else:
        sizes = {"rollout_length": 8, "minibatch_size": 16, "num_epochs": 2, "hidden_sizes": (8,)}
        algorithm = dataclasses.replace(algorithm, ppo=dataclasses.replace(algorithm.ppo, **sizes))
    if hasattr(algorithm, "discriminator"):
        critic = dataclasses.replace(algorithm.discriminator, batch_size=16, hidden_sizes=(8,))
        algorithm = dataclasses.replace(algorithm, discriminator=critic)
    shown = DemonstrationConfig(trajectories=10, every=2) if config.demonstration else None
    changes: dict[str, Any] = {"demonstration": shown, "num_envs": 4, "total_steps": 320, "eval_episodes": 2}
    return dataclasses.replace(config, algorithm=algorithm, **changes)


def build_small(name):
    """Built on the probe, with its expert's demonstrations in the place of the embedded ones."""
    with pytest.MonkeyPatch.context() as patch:
        patch.setattr(recipes, "make_environment", lambda config: FOLLOW)
        patch.setattr(recipes, "embedded", lambda task: follow_demonstrations())
        return build(small(name))


class Trained(NamedTuple):
    """A recipe after two updates, as the loop makes them: compiled, the state donated."""

    name: str
    built: Built
    update: Any
    state: Any
    metrics: Metrics


@pytest.fixture(scope="module", params=RECIPES)
def trained(request):
    """Every recipe, once."""
    built = build_small(request.param)
    update = jax.jit(lambda state: built.algorithm.update(state, None), donate_argnums=0)
    state, _ = update(jax.jit(built.algorithm.init)(jax.random.key(0)))
    state, metrics = update(state)
    return Trained(request.param, built, update, state, metrics)


def host(tree):
    """NumPy arrays; keys as their words."""
    is_key = lambda leaf: jnp.issubdtype(leaf.dtype, jax.dtypes.prng_key)  # noqa: E731
    return jax.tree.map(lambda leaf: np.asarray(jax.random.key_data(leaf) if is_key(leaf) else leaf), tree)


def test_metrics_are_finite_numbers_of_a_group(trained):
    for name, value in trained.metrics.items():
        assert np.shape(value) == (), name
        assert np.isfinite(value), name
        assert "/" in name or name == "stop"


def test_everything_has_moved_and_stayed_finite(trained):
    fresh = host(jax.jit(trained.built.algorithm.init)(jax.random.key(0)))
    state = host(trained.state)
    assert int(state.step) == 2
    for part in ("agent", "discriminator", "params"):  # those that the recipe has
        before, after = (jax.tree.leaves(getattr(s, part, {})) for s in (fresh, state))
        assert all(np.all(np.isfinite(leaf)) for leaf in after), part
        assert not before or any(not np.array_equal(a, b) for a, b in zip(before, after, strict=True)), part
    np.testing.assert_array_equal(state.key, fresh.key)


def test_the_second_call_is_not_traced_again(trained):
    assert trained.update._cache_size() == 1


def test_the_recipe_logs_what_it_is_watched_by(trained):
    config = RECIPES[trained.name].config.algorithm
    watched = {"policy/validation_nats", "stop"}
    if hasattr(config, "ppo"):
        watched = {"episode/return", "policy/entropy_nats", "policy/gradient_norm", "reward/mean", "reward/variance"}
    if hasattr(config, "discriminator"):
        watched |= {f"discriminator/{what}" for what in ("expert_accuracy", "policy_accuracy", "entropy_nats")}
        if config.bottleneck:
            watched |= {"bottleneck/kl_nats", "bottleneck/beta"}
        if config.discriminator.gradient_penalty:
            watched |= {"discriminator/gradient_penalty"}
    assert watched <= trained.metrics.keys()
    assert ("bottleneck/beta" in trained.metrics) == bool(getattr(config, "bottleneck", None))


def test_a_checkpoint_keeps_every_bit(trained, tmp_path):
    run = RunDir(tmp_path)
    save_checkpoint(run, trained.state, 2)
    like = jax.jit(trained.built.algorithm.init)(jax.random.key(1))
    restored, iteration = load_checkpoint(run, like)
    assert iteration == 2
    assert jax.tree.structure(restored) == jax.tree.structure(trained.state)
    jax.tree.map(np.testing.assert_array_equal, host(restored), host(trained.state))
    jax.tree.map(lambda a, b: np.testing.assert_array_equal(a.dtype, b.dtype), restored, trained.state)
    # Training goes on from either to the same bits; copies, because the update takes its argument's memory.
    again = [host(trained.update(jax.tree.map(jnp.copy, state))[0]) for state in (restored, trained.state)]
    jax.tree.map(np.testing.assert_array_equal, *again)
    assert trained.update._cache_size() == 1


def test_two_seeds_at_once_are_two_runs(trained):
    """Each seed's state is that of a run of its own from its own key."""
    both = over_seeds(trained.built.algorithm, 2)
    start = jax.jit(both.init)(jax.random.key(3))
    alone = [jax.tree.map(lambda leaf, seed=seed: leaf[seed], start) for seed in (0, 1)]
    state, metrics = jax.jit(lambda state: both.update(state, None))(start)
    assert all(value.shape == (2,) for value in metrics.values())
    learnt = [host(trained.update(one)[0]) for one in alone]
    for leaf, *expected in zip(jax.tree.leaves(host(state)), *map(jax.tree.leaves, learnt), strict=True):
        np.testing.assert_allclose(leaf, np.stack(expected), rtol=1e-2, atol=1e-3)
    parameters = [np.concatenate([leaf.ravel() for leaf in jax.tree.leaves(one.actor.params)]) for one in learnt]
    assert np.max(np.abs(parameters[0] - parameters[1])) > 0.01


def test_evaluation_is_finite_and_changes_nothing(trained):
    before = host(trained.state)
    found = jax.jit(trained.built.algorithm.evaluate)(trained.state, jax.random.key(4))
    assert all(np.isfinite(value) for value in found.values())
    assert float(found["eval/length"]) == 5.0
    assert ("eval/score" in found) == (RECIPES[trained.name].config.demonstration is not None)
    if "eval/score" in found:
        facts = trained.built.facts  # 0 is a random policy, 1 the expert
        expected = (found["eval/return"] - facts["random_return"]) / (facts["expert_return"] - facts["random_return"])
        assert float(found["eval/score"]) == pytest.approx(float(expected), rel=1e-5)
    jax.tree.map(np.testing.assert_array_equal, host(trained.state), before)


@pytest.mark.parametrize("name", RECIPES)
def test_a_config_survives_its_json(name):
    config = small(name)
    assert from_dict(find_recipe(name), dataclasses.asdict(config)) == config


@pytest.mark.parametrize("name", RECIPES)
def test_the_schedule_counts_the_steps_asked_for(name):
    schedule = build_small(name).schedule
    if RECIPES[name].config.algorithm.__class__ is behavioral_cloning.Config:
        assert schedule.env_steps_per_iteration == 0
    else:
        assert (schedule.env_steps_per_iteration, schedule.num_iterations) == (32, 10)


def test_an_unknown_recipe_is_refused_with_the_nearest():
    with pytest.raises(ValueError, match=r"unknown recipe 'vial'; did you mean .*vail"):
        find_recipe("vial")
