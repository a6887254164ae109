"""The one test of all recipes: each is made small and put on a probe, and must keep every promise of the contract."""

import dataclasses
import functools
from collections.abc import Callable
from typing import Any, NamedTuple

import jax
import jax.numpy as jnp
import numpy as np
import pytest
from probe_environments import FILMED, FOLLOW, MOTION, follow_demonstrations

from vdbjax.build import Built, build
from vdbjax.imitation import airl, behavioral_cloning
from vdbjax.recipes import RECIPES, find_recipe
from vdbjax.run_config import DemonstrationConfig
from vdbjax.saved_config import from_dict
from vdbjax.training.checkpoint import load_checkpoint, save_checkpoint
from vdbjax.training.loop import over_seeds
from vdbjax.training.run_dir import RunDir
from vdbjax.types import Algorithm, Metrics


def small(name):
    """The recipe with everything that costs time cut down, and nothing else changed."""
    config = find_recipe(name)
    algorithm = config.algorithm
    if isinstance(algorithm, behavioral_cloning.Config):
        algorithm = dataclasses.replace(algorithm, batch_size=16, steps_per_iteration=4, hidden_sizes=(8,))
    else:
        sizes = {"rollout_length": 8, "minibatch_size": 16, "num_epochs": 2, "hidden_sizes": (8,)}
        ppo = dataclasses.replace(algorithm.ppo, **sizes)
        trpo = dataclasses.replace(algorithm.trpo, rollout_length=8, hidden_sizes=(8,))
        algorithm = dataclasses.replace(algorithm, ppo=ppo, trpo=trpo)
    if hasattr(algorithm, "discriminator"):
        cut: dict[str, Any] = {"batch_size": 16, "hidden_sizes": (8,)}
        if not isinstance(algorithm, airl.Config):
            cut["channels"] = (4,)
        critic = dataclasses.replace(algorithm.discriminator, **cut)
        algorithm = dataclasses.replace(algorithm, discriminator=critic)
    shown = DemonstrationConfig(trajectories=10, every=2) if config.demonstration else None
    changes: dict[str, Any] = {"demonstration": shown, "num_envs": 4, "total_steps": 320, "eval_episodes": 2}
    return dataclasses.replace(config, algorithm=algorithm, **changes)


def probe_for(name):
    """What the recipe learns on; a motion to follow where it is for motions, seen without its phase where it clones."""
    if name.startswith("video-"):
        return FILMED
    if not name.startswith("motion-"):
        return FOLLOW
    return (
        MOTION if find_recipe(name).demonstration is None else FOLLOW._replace(episode_length=8, follow=MOTION.follow)
    )


def build_small(name):
    """Built on the probe, with its expert's demonstrations in the place of the embedded ones."""
    with pytest.MonkeyPatch.context() as patch:
        patch.setattr("vdbjax.build.make_environment", lambda config: probe_for(name))
        patch.setattr("vdbjax.build.embedded", lambda task: follow_demonstrations())
        return build(small(name))


class Trained(NamedTuple):
    """A recipe after two updates of two seeds at once."""

    name: str
    built: Built
    algorithm: Algorithm  # over the seeds
    state: Any
    metrics: Metrics
    compilations: int


SEEDS = 2


class Fresh(NamedTuple):
    """A recipe before training, everything compiled once for all tests."""

    built: Built
    algorithm: Algorithm  # over the seeds
    init: Callable
    update: Callable  # as the loop makes it: the state donated


@functools.cache
def fresh(name):
    """The recipe on its probe."""
    built = build_small(name)
    algorithm = over_seeds(built.algorithm, SEEDS)
    update = jax.jit(lambda state: algorithm.update(state, None), donate_argnums=0)
    return Fresh(built, algorithm, jax.jit(algorithm.init), update)


ALIKE = {f"motion-{name}" for name in ("merel", "gail", "gail-noise", "gail-noise-z", "gail-gp", "vail")}
ALIKE |= {"gail-noise", "gail-noise-z", "gail-gp", "vail", "vail-fixed-beta"}
ALIKE |= {"airl-gp", "vairl", "vairl-beta0", "video-gail"}
"""Recipes that differ from motion-vail-gp, vail-gp, vairl-gp and video-vail in numbers only, or have less; what noise
and penalties do to a step, test_adversarial_step.py holds."""

FIRST = {"ppo", "trpo", "bc", "vail-gp", "vairl-gp", "motion-vail-gp", "video-vail"}
"""Those that between them have nearly all there is."""


def mark_of(name):
    return [] if name in FIRST else [pytest.mark.slow if name in ALIKE else pytest.mark.long]


EACH = [pytest.param(name, marks=mark_of(name)) for name in RECIPES]


@pytest.fixture(scope="module", params=EACH)
def trained(request):
    """Every recipe, once."""
    built, algorithm, init, update = fresh(request.param)
    state, _ = update(init(jax.random.key(0)))
    state, metrics = update(state)
    return Trained(request.param, built, algorithm, state, metrics, update._cache_size())


def host(tree):
    """NumPy arrays; keys as their words."""
    is_key = lambda leaf: jnp.issubdtype(leaf.dtype, jax.dtypes.prng_key)  # noqa: E731
    return jax.tree.map(lambda leaf: np.asarray(jax.random.key_data(leaf) if is_key(leaf) else leaf), tree)


def test_metrics_are_finite_numbers_of_a_group(trained):
    for name, value in trained.metrics.items():
        assert value.shape == (SEEDS,), name
        assert np.all(np.isfinite(value)), name
        assert "/" in name or name == "stop"


def test_everything_has_moved_and_stayed_finite(trained):
    before, after = host(fresh(trained.name).init(jax.random.key(0))), host(trained.state)
    np.testing.assert_array_equal(after.step, 2)
    np.testing.assert_array_equal(after.key, before.key)
    for part in ("agent", "discriminator", "params"):  # those that the recipe has
        old, new = (jax.tree.leaves(getattr(state, part, {})) for state in (before, after))
        assert all(np.all(np.isfinite(leaf)) for leaf in new), part
        assert not old or any(not np.array_equal(a, b) for a, b in zip(old, new, strict=True)), part


def test_the_second_call_is_not_traced_again(trained):
    assert trained.compilations == 1


def test_seeds_differ(trained):
    learner = getattr(RECIPES[trained.name].config.algorithm, "ppo", None)
    for path, leaf in jax.tree_util.tree_leaves_with_path(host(trained.state.actor.params)):
        scheduled = learner and learner.final_std and path[-1].key == "log_std"
        assert np.array_equal(leaf[0], leaf[1]) == bool(scheduled), path


def test_the_recipe_logs_what_it_is_watched_by(trained):
    config = RECIPES[trained.name].config.algorithm
    watched = {"policy/validation_nats", "stop"}
    if hasattr(config, "ppo"):
        watched = {"episode/return", "policy/entropy_nats", "policy/gradient_norm", "reward/mean", "reward/variance"}
    if hasattr(config, "discriminator"):
        told = {f"discriminator/{what}" for what in ("expert_accuracy", "policy_accuracy", "entropy_nats")}
        watched |= told if getattr(config.discriminator, "loss", "logistic") == "logistic" else set()
        if config.bottleneck:
            watched |= {"bottleneck/kl_nats", "bottleneck/beta"}
        if config.discriminator.gradient_penalty:
            watched |= {"discriminator/gradient_penalty"}
    assert watched <= trained.metrics.keys()
    assert ("bottleneck/beta" in trained.metrics) == bool(getattr(config, "bottleneck", None))


def test_a_checkpoint_keeps_every_bit(trained, tmp_path):
    run = RunDir(tmp_path)
    save_checkpoint(run, trained.state, 2)
    restored, iteration = load_checkpoint(run, fresh(trained.name).init(jax.random.key(1)))
    assert iteration == 2
    assert jax.tree.structure(restored) == jax.tree.structure(trained.state)
    jax.tree.map(np.testing.assert_array_equal, host(restored), host(trained.state))
    shapes = [jax.eval_shape(lambda tree: tree, state) for state in (restored, trained.state)]
    assert shapes[0] == shapes[1]  # weak types too, which would make a resumed run compile twice


def test_evaluation_is_finite_and_scores_by_the_reference(trained):
    found = jax.jit(trained.algorithm.evaluate)(trained.state, jax.random.key(4))
    assert all(np.all(np.isfinite(value)) for value in found.values())
    motion = probe_for(trained.name).follow is not None
    assert ("eval/score" in found) == (RECIPES[trained.name].config.demonstration is not None and not motion)
    if motion:  # up to 1 radian while it stands, and pi for three of eight steps where it falls
        fallen = 3 / 8 * np.pi * found["eval/fallen_fraction"]
        assert np.all((fallen < found["eval/rotation_rad"]) & (found["eval/rotation_rad"] < fallen + 1.0))
    else:
        np.testing.assert_array_equal(found["eval/length"], 5.0)
    if "eval/score" in found:
        facts = trained.built.facts  # 0 is a random policy, 1 the expert
        expected = (found["eval/return"] - facts["random_return"]) / (facts["expert_return"] - facts["random_return"])
        np.testing.assert_allclose(found["eval/score"], expected, rtol=1e-5)


@pytest.mark.parametrize("name", ["bc", "vail-gp"])
def test_two_seeds_at_once_are_two_runs(name):
    """Each seed's state is that of a run of its own from its own key."""
    built, _, init, update_together = fresh(name)
    together, _ = update_together(init(jax.random.key(0)))
    start, update = init(jax.random.key(0)), jax.jit(built.algorithm.update)
    for seed in range(SEEDS):
        of_seed = lambda tree, seed=seed: jax.tree.map(lambda leaf: leaf[seed], tree)  # noqa: E731
        alone, _ = update(of_seed(start), None)
        for one, other in zip(*map(jax.tree.leaves, (host(alone), host(of_seed(together)))), strict=True):
            np.testing.assert_allclose(one, other, rtol=1e-2, atol=1e-3)


@pytest.mark.parametrize("name", RECIPES)
def test_a_config_survives_its_json(name):
    config = small(name)
    assert from_dict(find_recipe(name), dataclasses.asdict(config)) == config


def test_a_config_of_an_earlier_version_has_the_defaults_of_what_came_later():
    config = find_recipe("motion-vail")
    damped = dataclasses.replace(config.algorithm.bottleneck, damping=0.5)
    recipe = dataclasses.replace(config, algorithm=dataclasses.replace(config.algorithm, bottleneck=damped))
    written = dataclasses.asdict(config)
    del written["algorithm"]["bottleneck"]["damping"]
    assert from_dict(recipe, written) == config
    written["algorithm"]["bottleneck"]["dumping"] = 0.5
    with pytest.raises(ValueError, match="of another version of BottleneckConfig: dumping"):
        from_dict(recipe, written)
    del written["algorithm"]
    with pytest.raises(ValueError, match="of another version of RunConfig: algorithm"):
        from_dict(recipe, written)


ODD = {
    "no settings": ([], r"\[\] stands where the settings of RunConfig should"),
    "no algorithm": ({"algorithm": None}, "None stands where the settings of Config should"),
    "a seed in words": ({"seed": "a"}, r"seed \('a'\) must be of type int"),
    "a choice that is none": ({"environment": {"engine": "d"}}, r"engine \('d'\) must be of type .*'mjx'"),
    "a yes": ({"num_seeds": True}, r"num_seeds \(True\) must be of type int"),
    "a bottleneck in words": ({"algorithm": {"bottleneck": "x"}}, "'x' stands where the settings of BottleneckConfig"),
    "sizes in words": ({"algorithm": {"ppo": {"hidden_sizes": [64, "x"]}}}, r"hidden_sizes .* tuple\[int"),
}


@pytest.mark.parametrize(("changes", "message"), ODD.values(), ids=ODD.keys())
def test_a_config_of_other_types_is_refused(changes, message):
    def changed(written, changes):
        inner = {name: changed(written[name], value) for name, value in changes.items() if isinstance(value, dict)}
        return written | changes | inner

    recipe = find_recipe("vail")
    with pytest.raises(ValueError, match=message):
        from_dict(recipe, changes and changed(dataclasses.asdict(recipe), changes))


@pytest.mark.parametrize("name", EACH)
def test_the_schedule_counts_the_steps_asked_for(name):
    schedule = fresh(name).built.schedule
    if RECIPES[name].config.algorithm.__class__ is behavioral_cloning.Config:
        assert schedule.env_steps_per_iteration == 0
    else:
        assert (schedule.env_steps_per_iteration, schedule.num_iterations) == (32, 10)


def test_an_unknown_recipe_is_refused_with_the_nearest():
    with pytest.raises(ValueError, match=r"unknown recipe 'vial'; did you mean .*vail"):
        find_recipe("vial")
