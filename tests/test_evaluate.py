"""Scores and demonstrations from trained runs: summaries, both simulators, and whole episodes kept on the way."""

import dataclasses
import json
import sys
from pathlib import Path
from types import SimpleNamespace

import jax
import numpy as np
import pytest
from tiny_run import tiny_run

from vdbjax import episodes, evaluate
from vdbjax.data.demonstrations import episode_lengths, episode_returns, load
from vdbjax.episodes import collect_episodes
from vdbjax.evaluation.policy_return import gymnasium_returns, summarize
from vdbjax.recipes import find_recipe
from vdbjax.run_config import DemonstrationConfig


@pytest.fixture(scope="session")
def run_folder(tmp_path_factory):
    return tiny_run(tmp_path_factory.getbasetemp())


def test_summary_by_hand():
    summary = summarize([1.0, 2.0, 6.0])
    np.testing.assert_allclose(summary, [3.0, 7**0.5, (7 / 3) ** 0.5, 1.0, 6.0])  # (4 + 1 + 9) / 2 = 7
    with pytest.raises(ValueError, match="at least 2"):
        summarize([1.0])


class Countdown:
    """A vector environment in which episode k lasts `lengths[k]` steps and then restarts, as Gymnasium's do."""

    num_envs = 2

    def __init__(self, lengths):
        self.lengths, self.seeds = iter(lengths), []

    def reset(self, *, seed):
        self.seeds.append(seed)
        self.left = np.array([next(self.lengths), next(self.lengths)])
        return self.left[:, None], {}

    def step(self, action):
        assert action.shape == (2,)
        self.left -= 1
        ended = self.left == 0
        self.left[ended] = 1  # the next episode, which must not count
        even = np.arange(2) == 0
        return self.left[:, None], action * 1.0, ended & even, ended & ~even, {}


def test_gymnasium_returns_count_each_first_episode_once():
    envs = Countdown([1, 3, 2, 5])
    returns = gymnasium_returns(envs, lambda observation, step: np.array([1.0, 10.0]), num_episodes=3, seed=7)
    np.testing.assert_array_equal(returns, [1.0, 30.0, 2.0])
    assert envs.seeds == [7, 9]


@pytest.fixture(scope="module")
def both_simulators(run_folder, tmp_path_factory):
    folder, found = tmp_path_factory.mktemp("json"), {}
    for simulator in ("ours", "gymnasium"):
        file = folder / f"{simulator}.json"
        evaluate.run(evaluate.Options((run_folder,), episodes=20, simulator=simulator, json=file))
        found[simulator] = json.loads(file.read_text())
    return found


def scored(seed: int, mean: float, *, env: str = "hopper", **changes: object) -> evaluate.Scored:
    recipe = find_recipe("vail")
    environment = dataclasses.replace(recipe.environment, env=env)
    config = dataclasses.replace(recipe, environment=environment, seed=seed, **changes)
    returns = np.array([mean - 1.0, mean + 1.0])
    return evaluate.Scored(f"run {seed}", config, 5, None, dict.fromkeys(evaluate.KINDS, returns))


def test_runs_that_differ_in_their_seeds_are_averaged_and_those_of_another_task_apart():
    shown = DemonstrationConfig(Path("given.npz"))
    rows = [
        scored(0, 10.0),
        scored(1, 30.0, evaluations=3),
        scored(0, 5.0, env="walker2d"),
        scored(1, 7.0, env="walker2d"),
    ]
    rows += [scored(0, 1.0, demonstration=shown), scored(1, 2.0, demonstration=shown), scored(2, 9.0, num_envs=64)]
    found = {row.label: row.returns["deterministic"].tolist() for row in evaluate.averaged(rows)}
    assert list(found.values()) == [[10.0, 30.0], [5.0, 7.0], [1.0, 2.0]]
    embedded, walking, given = found
    assert walking == "vail on walker2d, 2 seeds"
    assert embedded.startswith("vail on hopper, ")
    assert "given.npz" in given


@pytest.mark.parametrize("kind", evaluate.KINDS)
def test_our_engine_and_gymnasium_agree(both_simulators, kind):
    for ours, theirs in zip(both_simulators["ours"]["policies"], both_simulators["gymnasium"]["policies"], strict=True):
        a, b = ours[kind], theirs[kind]
        assert len(a["returns"]) == len(b["returns"]) == 20
        error = np.hypot(a["standard_error"], b["standard_error"])
        assert 0 < error < 0.5 * a["mean"]
        assert abs(a["mean"] - b["mean"]) < 5 * error


def test_the_file_says_where_its_numbers_come_from(both_simulators):
    content = both_simulators["gymnasium"]
    assert (content["episodes"], content["seed"], content["simulator"]) == (20, 0, "gymnasium")
    assert content["versions"]["jax"] == jax.__version__
    assert content["device"].startswith("cpu")


def test_seeds_are_different_policies_and_are_averaged(both_simulators):
    content = both_simulators["ours"]
    means = [row["deterministic"]["mean"] for row in content["policies"]]
    assert len(means) == 2
    assert means[0] != means[1]
    (summary,) = content["over_seeds"]
    np.testing.assert_allclose(summary["deterministic"]["returns"], means)
    np.testing.assert_allclose(summary["deterministic"]["std"], abs(means[0] - means[1]) / 2**0.5)
    assert summary["deterministic"]["score"] is None  # recipe ppo has no expert to be measured by


def test_score_lies_between_the_random_policy_and_the_expert(tmp_path):
    facts = {"random_return": 20.0, "expert_return": 120.0}
    (tmp_path / "config.json").write_text(json.dumps({"facts": facts}))
    reference = evaluate._reference(tmp_path)
    returns = {kind: np.array([60.0, 80.0]) for kind in evaluate.KINDS}
    row = evaluate.Scored("a", SimpleNamespace(), 1, reference, returns)
    assert row.score("deterministic") == 0.5
    for useless in (float("nan"), 120.0):
        (tmp_path / "config.json").write_text(json.dumps({"facts": {**facts, "random_return": useless}}))
        assert evaluate._reference(tmp_path) is None
    (tmp_path / "config.json").write_text(json.dumps({"facts": []}))
    assert evaluate._reference(tmp_path) is None


def test_table_names_every_policy(run_folder, capsys, monkeypatch):
    fixed = {kind: np.array([1.0, 3.0]) for kind in evaluate.KINDS}
    monkeypatch.setattr(evaluate, "_in_our_engine", lambda trained, options: lambda actor, seed: fixed)
    monkeypatch.setattr(sys, "argv", ["evaluate", str(run_folder), "--episodes", "2"])
    evaluate.main()
    out = capsys.readouterr().out
    for expected in ("tiny #0", "tiny #1", "ppo, 2 seeds", "deterministic", "stochastic", "2.0", "1.4"):
        assert expected in out


BAD_COMMANDS = {
    "no run": ([], "name at least one run folder"),
    "no such run": (["{folder}/none"], "not a run folder"),
    "one episode": (["{folder}", "--episodes", "1"], "--episodes (1) must be at least 2"),
    "unknown simulator": (["{folder}", "--simulator", "bullet"], "gymnasium"),
    "unwritable file": (["{folder}", "--json", "{folder}/none/a.json"], "none does not exist"),
}


@pytest.mark.parametrize("case", BAD_COMMANDS)
def test_bad_commands(case, tmp_path, monkeypatch, capsys):
    arguments, message = BAD_COMMANDS[case]
    monkeypatch.setattr(sys, "argv", ["evaluate", *(argument.format(folder=tmp_path) for argument in arguments)])
    with pytest.raises(SystemExit) as stop:
        evaluate.main()
    assert stop.value.code == 2
    err = capsys.readouterr().err
    assert err.startswith("error: ")
    assert err.count("\n") == 1
    assert message in err


@pytest.mark.long
def test_collect_command_keeps_whole_episodes(run_folder, tmp_path):
    from vdbjax import demos

    path = tmp_path / "a.npz"
    demos.collect(demos.Collect(run_folder, path, episodes=3, deterministic=True, seed=4))
    file = load(path, task="hopper", observation_size=11, action_size=3)
    content = file.demonstrations
    assert episode_lengths(content).shape == (3,)
    assert content.terminated.sum() == 3  # this policy falls
    assert np.abs(content.action).max() <= 1.0
    assert 5 < file.random_return < 50
    for part in ("ppo after 8 iterations (512 steps)", "mean actions", "engine c"):
        assert part in file.source


@pytest.fixture
def no_random_policy(monkeypatch):
    """Spares the tests that look elsewhere a compilation."""
    monkeypatch.setattr(episodes, "random_return", lambda environment, key: 0.0)


def test_collected_episodes_replay_in_gymnasium(run_folder, no_random_policy):
    import gymnasium

    file = collect_episodes(run_folder, num_episodes=1, deterministic=False, seed=3)
    content = file.demonstrations
    hopper = gymnasium.make("Hopper-v5").unwrapped
    hopper.reset(seed=0)
    hopper.set_state(np.r_[0.0, content.observation[0, :5]], content.observation[0, 5:])
    for row in range(len(content.reward)):
        observation, reward, terminated, _, _ = hopper.step(content.action[row])
        # Observations are kept in float32, and a fall makes small differences grow.
        np.testing.assert_allclose(content.next_observation[row], observation, atol=2e-3)
        np.testing.assert_allclose(content.reward[row], reward, atol=2e-3)
        assert content.terminated[row] == terminated


@pytest.mark.long
def test_collect_keeps_as_many_transitions_as_asked_for(run_folder, no_random_policy):
    whole = collect_episodes(run_folder, num_episodes=1, deterministic=False, seed=3).demonstrations
    count = len(whole.reward) + 3
    found = collect_episodes(run_folder, num_episodes=9, num_transitions=count, deterministic=False, seed=3)
    cut = found.demonstrations
    np.testing.assert_array_equal(cut.reward[:-3], whole.reward)
    assert np.flatnonzero(cut.terminated | cut.truncated).tolist() == [count - 4, count - 1]
    assert cut.truncated[-1]  # nobody knows how the last one would have ended


@pytest.mark.long
def test_collect_gives_up_on_returns_out_of_reach(run_folder, no_random_policy, monkeypatch):
    monkeypatch.setattr(episodes, "GIVE_UP_AFTER", 2)
    with pytest.raises(ValueError, match=r"min_return \(100000\) was reached by 0 of 2 episodes.*the best return was"):
        collect_episodes(run_folder, num_episodes=1, deterministic=False, seed=0, min_return=1e5)


@pytest.mark.long
def test_collect_keeps_the_episodes_above_min_return(run_folder, no_random_policy):
    # Of this policy's sampled episodes about half reach 15, and some do not reach 10.
    good = collect_episodes(run_folder, num_episodes=6, deterministic=False, seed=0, min_return=15.0).demonstrations
    assert len(episode_returns(good)) == 6
    assert episode_returns(good).min() >= 15.0
