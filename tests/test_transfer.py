"""Transfer of rewards, small: every stage once, what is done again and what is not, and what is refused."""

import dataclasses
import json
import shutil

import jax
import jax.numpy as jnp
import numpy as np
import pytest

from vdbjax import reward, trained, transfer
from vdbjax.build import build
from vdbjax.envs.env import EnvironmentConfig, make_environment
from vdbjax.evaluation.reward_map import rank_correlation
from vdbjax.recipes import find_recipe
from vdbjax.rl.reinforcement import Reward
from vdbjax.trained import load_reward, load_trained
from vdbjax.training.checkpoint import load_checkpoint
from vdbjax.training.loop import over_seeds
from vdbjax.training.run_dir import open_run
from vdbjax.transfer_score import CONTROLLERS, write_table
from vdbjax.transfer_settings import SETTINGS, imitation_config, retraining_config

METHODS = ("vairl-gp",)
OPTIONS = transfer.Options(maze="c", methods=METHODS, seeds=2, restarts=2, iterations=6, num_envs=4)


@pytest.fixture(scope="module")
def done(tmp_path_factory):
    """(options, the folder) of a whole small run."""
    options = dataclasses.replace(OPTIONS, out=tmp_path_factory.mktemp("transfer") / "c")
    transfer.run(options)
    return options, options.folder


def checkpoints(folder):
    return {path: path.stat().st_mtime_ns for path in folder.glob("**/checkpoints/*")}


@pytest.mark.long
def test_it_leaves_a_table_and_maps(done):
    _, folder = done
    table, text = json.loads((folder / "table.json").read_text()), (folder / "table.md").read_text()
    score = table["methods"]["vairl-gp"]
    assert np.shape(score["all_returns"]) == np.shape(score["learnt_returns"]) == (2, 2)
    assert score["return"] == [row[i] for row, i in zip(score["all_returns"], score["chosen"])]
    assert score["chosen"] == np.argmax(score["learnt_returns"], axis=1).tolist()
    assert all(-1 <= value <= 1 for value in score["rank_correlation"])
    assert "-9.18 ± 0.4" in text
    assert all(name in text for name in (*CONTROLLERS, "zero action", "expert"))
    assert (folder / "vairl-gp.png").stat().st_size > 10_000


@pytest.mark.long
def test_what_is_done_is_not_done_again(done):
    options, folder = done
    before, table = checkpoints(folder), (folder / "table.md").read_text()
    assert len({path.parent for path in before}) == 5  # of four runs, and of the one whose reward a run keeps
    transfer.run(options)
    assert checkpoints(folder) == before
    assert (folder / "table.md").read_text() == table


@pytest.mark.long
def test_a_stage_that_is_missing_is_done_alone(done, tmp_path):
    options, folder = done
    copy = tmp_path / "c"
    shutil.copytree(folder, copy)
    shutil.rmtree(copy / "retraining")
    missing = dataclasses.replace(options, out=copy, stages=("table",))
    with pytest.raises(ValueError, match=r"retraining/vairl-gp/config.json is missing; run stage retraining first"):
        transfer.run(missing)
    shutil.rmtree(copy / "imitation")
    with pytest.raises(ValueError, match=r"imitation/vairl-gp/config.json is missing; run stage imitation first"):
        transfer.run(dataclasses.replace(missing, stages=("retraining",)))
    (copy / "demonstrations.npz").unlink()
    with pytest.raises(ValueError, match=r"demonstrations.npz is missing; run stage expert first"):
        transfer.run(dataclasses.replace(missing, stages=("imitation",)))


@pytest.mark.long
@pytest.mark.parametrize(
    ("cut_off", "stages", "wanted"),
    [
        ("imitation/vairl-gp", ("retraining",), "imitation"),
        ("retraining/vairl-gp", ("table",), "retraining"),
        ("direct", ("table",), "expert"),
    ],
)
def test_a_stage_that_was_cut_off_is_no_ground_for_the_next(done, tmp_path, cut_off, stages, wanted):
    options, folder = done
    copy = tmp_path / "c"
    shutil.copytree(folder, copy)
    shutil.rmtree(copy / cut_off / "checkpoints")
    with pytest.raises(ValueError, match=rf"{cut_off} has not come to its end; run stage {wanted} first"):
        transfer.run(dataclasses.replace(options, out=copy, stages=stages))


@pytest.mark.long
@pytest.mark.parametrize(
    ("seeds", "restarts", "message"),
    [(2, 1, r"retraining/vairl-gp: .*--num-seeds \(4 -> 2\)"), (4, 1, r"imitation/vairl-gp: .*--num-seeds \(2 -> 4\)")],
)
def test_a_table_of_others_than_were_trained_is_refused(done, seeds, restarts, message):
    options, _ = done
    with pytest.raises(ValueError, match=message):
        transfer.run(dataclasses.replace(options, stages=("table",), seeds=seeds, restarts=restarts))


@pytest.mark.long
def test_a_folder_that_was_moved_is_found_done(done, tmp_path):
    options, folder = done
    copy = tmp_path / "elsewhere"
    shutil.copytree(folder, copy)
    before = checkpoints(copy)
    transfer.run(dataclasses.replace(options, out=copy))
    assert checkpoints(copy) == before


@pytest.mark.long
def test_each_policy_learns_from_its_seeds_reward(done):
    _, folder = done
    rewards = [jax.device_get(params) for params in load_trained(folder / "imitation" / "vairl-gp").rewards]
    retrained = load_trained(folder / "retraining" / "vairl-gp")
    assert len(rewards) == 2
    assert len(retrained.actors) == 4
    run = retrained.config
    built = build(run, reward=trained.reward_of(run))
    like = jax.jit(over_seeds(built.algorithm, 4).init)(jax.random.key(0))
    state, _ = load_checkpoint(open_run(folder / "retraining" / "vairl-gp")[0], like)
    for row in range(4):
        mine = jax.tree.map(lambda leaf, row=row: np.asarray(leaf[row]), state.reward)
        jax.tree.map(np.testing.assert_array_equal, mine, rewards[row // 2])


def test_restarts_begin_in_ways_of_their_own(tmp_path):
    """The first as TRPO begins; every other one wide, all but the first leaning, and each with its seed's reward."""
    setting = SETTINGS["s"]._replace(num_envs=2, iterations=1)
    own = Reward(lambda params, seen, action, later: params * seen[..., 0], jnp.float32(1.0))
    built = build(retraining_config(setting, tmp_path, seeds=2, restarts=4), reward=own)
    algorithm = over_seeds(built.algorithm, 8)
    params = [jnp.float32(seed) for seed in range(2) for _ in range(4)]
    varied = jax.jit(transfer._each_its_own(algorithm, params, 4, 0.4).init)(jax.random.key(0))
    plain = jax.jit(algorithm.init)(jax.random.key(0))
    std = np.exp(varied.actor.params["params"]["log_std"])
    np.testing.assert_allclose(std, np.tile([[0.4], [1.0]], (4, 2)), rtol=1e-6)
    heads = [state.actor.params["params"]["Dense_0"]["bias"] for state in (varied, plain)]
    leans = np.any(np.not_equal(*heads), axis=1)
    np.testing.assert_array_equal(leans, [False, True, True, True] * 2)
    np.testing.assert_array_equal(varied.reward, np.repeat([0.0, 1.0], 4))


@pytest.mark.long
def test_other_settings_need_another_folder(done):
    options, _ = done
    with pytest.raises(ValueError, match=r"--num-envs \(4 -> 8\).*choose another --out"):
        transfer.run(dataclasses.replace(options, num_envs=8))
    with pytest.raises(ValueError, match="total_steps 800, not 1200, which come of --iterations; give those"):
        transfer.run(dataclasses.replace(options, iterations=7))


@pytest.mark.long
def test_a_reward_is_at_hand_without_the_demonstrations_it_came_from(done):
    _, folder = done
    shown, away = folder / "demonstrations.npz", folder / "away.npz"
    shown.rename(away)
    try:
        assert len(load_reward(folder / "imitation" / METHODS[0], make_environment(EnvironmentConfig("maze/c")))) == 2
    finally:
        away.rename(shown)


@pytest.mark.long
def test_another_seed_wants_another_folder(done):
    options, folder = done
    with pytest.raises(ValueError, match=r"expert: .*--seed \(0 -> 3\).*choose another --out"):
        transfer.run(dataclasses.replace(options, seed=3))
    setting = dataclasses.replace(options, seed=3).setting
    assert imitation_config(setting, "airl", folder / "demonstrations.npz", seeds=2).seed == 3
    assert retraining_config(setting, folder / "imitation" / "airl", seeds=2, restarts=1).seed == 4


def test_a_run_is_no_place_for_a_table(tmp_path):
    (tmp_path / "config.json").touch()
    with pytest.raises(ValueError, match="is the folder of a run; name another"):
        transfer.run(transfer.Options(out=tmp_path))


@pytest.mark.parametrize(
    ("changes", "message"),
    [
        ({"maze": "z"}, "unknown maze 'z'; known are c, s, ant"),
        ({"methods": ("vial",)}, "unknown method 'vial'; did you mean vail"),
        ({"seeds": 0}, r"--seeds \(0\) must be at least 1"),
        ({"num_envs": 0}, r"--num-envs \(0\) must be at least 1"),
    ],
)
def test_options_that_cannot_work_are_refused(changes, message):
    with pytest.raises(ValueError, match=message):
        transfer.Options(**changes)


@pytest.mark.long
def test_a_saved_reward_is_drawn_and_trained_on(done, tmp_path, capsys):
    _, folder = done
    run = folder / "imitation" / "vairl-gp"
    reward.run(reward.Options(run, tmp_path / "map.png", "maze/c-transfer"))
    assert "mean rank correlation" in capsys.readouterr().out
    assert (tmp_path / "map.png").stat().st_size > 10_000
    config = find_recipe("trpo")
    algorithm = dataclasses.replace(config.algorithm, reward=run)
    config = dataclasses.replace(
        config, algorithm=algorithm, environment=EnvironmentConfig("maze/s"), num_envs=2, total_steps=400
    )
    built = build(config, reward=trained.reward_of(config))
    state, metrics = jax.jit(lambda key: built.algorithm.update(built.algorithm.init(key), None))(jax.random.key(0))
    learnt = load_reward(run, built.environment)[0]
    jax.tree.map(np.testing.assert_array_equal, state.reward, learnt.params)
    assert float(metrics["reward/variance"]) < 1.0


@pytest.mark.long
def test_what_was_learnt_on_a_reward_needs_its_run_no_more(done, tmp_path):
    _, folder = done
    run = folder / "retraining" / "vairl-gp"
    kept = load_trained(shutil.copytree(run, tmp_path / "elsewhere"))
    assert kept.config.reward == tmp_path / "elsewhere" / "reward"
    away = (folder / "imitation").rename(folder / "away")
    try:
        again = load_trained(tmp_path / "elsewhere")
    finally:
        away.rename(folder / "imitation")
    jax.tree.map(np.testing.assert_array_equal, again.actors, load_trained(run).actors)


@pytest.mark.long
def test_a_reward_that_does_not_fit_is_refused(done, tmp_path, monkeypatch):
    _, folder = done
    run = folder / "imitation" / "vairl-gp"
    with pytest.raises(ValueError, match=r"is of 2 observations \(maze/c\), hopper has 11; give a run of a task"):
        load_reward(run, make_environment(EnvironmentConfig("hopper")))
    with pytest.raises(ValueError, match="is a run of recipe trpo, which learns no reward"):
        load_reward(folder / "expert", make_environment(EnvironmentConfig("maze/c")))
    with pytest.raises(ValueError, match="is not a run folder"):
        reward.run(reward.Options(tmp_path, tmp_path / "map.png"))
    with pytest.raises(ValueError, match="unknown maze 'x'"):
        reward.run(reward.Options(run, tmp_path / "map.png", "maze/x"))
    with pytest.raises(ValueError, match="hopper is no maze"):
        reward.run(reward.Options(run, tmp_path / "map.png", "hopper"))
    sound = load_trained(run)
    broken = [jax.tree.map(lambda leaf: leaf * np.nan, state.learnt_reward) for state in sound.states]
    states = [state._replace(learnt_reward=params) for state, params in zip(sound.states, broken, strict=True)]
    monkeypatch.setattr(trained, "load_trained", lambda path: sound._replace(states=states))
    with pytest.raises(ValueError, match=r"\(seed 0\) is not finite: it gives nan"):
        load_reward(run, make_environment(EnvironmentConfig("maze/c")))


def test_a_table_of_tasks_without_maps_has_no_columns_of_them(tmp_path):
    score = {"return": [1.0, 3.0], "all_returns": [[1.0], [3.0]], "imitation_return": [5.0, 7.0]}
    said = write_table(tmp_path, "ant", {"gail": score}, {"expert": 9.0})
    lines = (tmp_path / "table.md").read_text().splitlines()
    assert [line.count("|") for line in lines] == [7] * 4
    assert lines[3] == "| expert |  |  |  |  | 9.0 |"
    assert lines[2] == "| gail | **2.00 ± 1.41** | 1.0 3.0 | 2.00 ± 1.41 |  | 6.00 ± 1.41 |"
    assert "Passed over" not in said
    assert {"commit", "device"} <= json.loads((tmp_path / "table.json").read_text()).keys()


def test_rank_correlation_by_hand():
    one = np.array([[1.0, 2.0], [3.0, 9.0]])
    where = np.array([[True, True], [True, False]])
    assert rank_correlation(one, np.array([[10.0, 30.0], [20.0, -5.0]]), where) == pytest.approx(0.5)
    assert rank_correlation(one, np.ones((2, 2)), where) == 0.0
