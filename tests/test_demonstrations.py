"""Demonstration files, their episodes and their subsampling, held against arrays written out by hand."""

import numpy as np
import pytest
from made_demonstrations import LENGTHS, assert_same, made_demonstrations

from vdbjax.data import demonstrations as demo
from vdbjax.data.demonstrations import DemonstrationError, DemonstrationFile
from vdbjax.types import Demonstrations


def test_episodes_become_transitions() -> None:
    found = demo.from_episodes(
        [[[1.0], [2.0], [3.0]], [[7.0], [8.0]]], [[[0.1], [0.2]], [[0.3]]], [[10.0, 20.0], [30.0]], [False, True]
    )
    np.testing.assert_array_equal(found.observation, [[1], [2], [7]])
    np.testing.assert_array_equal(found.next_observation, [[2], [3], [8]])
    np.testing.assert_array_equal(found.action, np.float32([[0.1], [0.2], [0.3]]))
    np.testing.assert_array_equal(found.reward, [10, 20, 30])
    np.testing.assert_array_equal(found.terminated, [False, False, True])
    np.testing.assert_array_equal(found.truncated, [False, True, False])
    assert [x.dtype for x in found] == [np.float32] * 4 + [bool] * 2


def test_episode_bookkeeping() -> None:
    whole = made_demonstrations()
    assert demo.episode_slices(whole) == [slice(0, 5), slice(5, 8), slice(8, 15)]
    np.testing.assert_array_equal(demo.episode_lengths(whole), LENGTHS)
    np.testing.assert_array_equal(demo.episode_returns(whole), [10.0, 33.0, 161.0])


def test_returns_are_summed_in_float64() -> None:
    whole = demo.from_episodes([np.zeros((3, 1))], [np.zeros((2, 1))], [[2.0**24, 1.0]], [True])
    assert demo.episode_returns(whole)[0] == 2.0**24 + 1  # float32 would give 2^24


def test_subsample_keeps_true_successors_and_flags() -> None:
    whole = made_demonstrations()
    rows = {float(x[0]): i for i, x in enumerate(whole.observation)}
    for seed in range(20):
        some = demo.subsample(whole, trajectories=2, every=3, seed=seed)
        chosen = [rows[float(x[0])] for x in some.observation]
        assert_same(some, Demonstrations(*(field[chosen] for field in whole)))
        episode = some.observation[:, 0] // 100
        assert len(set(episode)) == 2
        for e in set(episode):
            steps = some.observation[episode == e, 0] % 100
            assert steps[0] < 3
            np.testing.assert_array_equal(np.diff(steps), 3)
            assert steps[-1] + 3 >= LENGTHS[int(e)]  # none left out at the end


def test_subsample_offsets_and_choice_are_uniform() -> None:
    whole = made_demonstrations()
    draws = [demo.subsample(whole, trajectories=1, every=4, seed=seed).observation[0, 0] for seed in range(2400)]
    starts, counts = np.unique(draws, return_counts=True)
    # Each episode has probability 1/3; offsets lie below min(every, T) = 4, 3, 4.
    np.testing.assert_array_equal(starts, [0, 1, 2, 3, 100, 101, 102, 200, 201, 202, 203])
    expected = 2400 / 3 / np.array([4] * 4 + [3] * 3 + [4] * 4)
    assert np.all(np.abs(counts - expected) < 5 * np.sqrt(expected))


def test_subsample_seeded_and_nested() -> None:
    whole = made_demonstrations()
    draw = {k: demo.subsample(whole, trajectories=k, every=3, seed=4) for k in (1, 2, 3)}
    assert_same(draw[2], demo.subsample(whole, trajectories=2, every=3, seed=4))
    for few, more in ((1, 2), (2, 3)):
        assert set(draw[few].observation[:, 0]) < set(draw[more].observation[:, 0])


def test_subsample_of_everything_is_everything() -> None:
    whole = made_demonstrations()
    some = demo.subsample(whole, trajectories=3, every=1, seed=0)
    np.testing.assert_array_equal(np.sort(some.observation[:, 0]), np.sort(whole.observation[:, 0]))


def test_subsampled_demonstrations_cannot_be_taken_for_whole(tmp_path) -> None:
    whole = demo.from_episodes([np.arange(10.0)[:, None]] * 2, [np.zeros((9, 1))] * 2, [np.zeros(9)] * 2, [True, True])
    for seed in range(10):
        some = demo.subsample(whole, trajectories=2, every=2, seed=seed)
        with pytest.raises(DemonstrationError, match="subsampled"):
            demo.save(tmp_path / "a.npz", DemonstrationFile(some, "hopper", 0.0, ""))
    assert not list(tmp_path.iterdir())


REFUSED_CALLS = {
    "too many trajectories": (
        lambda: demo.subsample(made_demonstrations(), trajectories=4, every=1, seed=0),
        r"trajectories \(4\) is more than the 3 episodes",
    ),
    "every 0": (lambda: demo.subsample(made_demonstrations(), trajectories=1, every=0, seed=0), r"every \(0\)"),
    "no trajectories": (lambda: demo.subsample(made_demonstrations(), trajectories=0, every=1, seed=0), r"\(0\)"),
    "no episodes": (lambda: demo.from_episodes([], [], [], []), "no episodes"),
    "lists of other lengths": (
        lambda: demo.from_episodes([np.zeros((2, 1))], [np.zeros((1, 1))], [], [True]),
        r"\(1, 1, 0, 1\) episodes",
    ),
    "as many observations as actions": (
        lambda: demo.from_episodes([np.zeros((2, 1))], [np.zeros((2, 1))], [np.zeros(2)], [True]),
        r"episode 0: observations \(2, 1\), actions \(2, 1\), rewards \(2,\)",
    ),
    "rewards of two dimensions": (
        lambda: demo.from_episodes([np.zeros((2, 1))], [np.zeros((1, 1))], [np.zeros((1, 1))], [True]),
        r"rewards \(1, 1\)",
    ),
    "sizes that differ": (
        lambda: demo.from_episodes(
            [np.zeros((2, 1)), np.zeros((2, 3))], [np.zeros((1, 1))] * 2, [[0.0]] * 2, [True] * 2
        ),
        r"observations differ in size between episodes: \[1, 3\]",
    ),
    "empty episode": (
        lambda: demo.from_episodes([np.zeros((1, 2))], [np.zeros((0, 1))], [np.zeros(0)], [True]),
        r"episode 0 is empty",
    ),
    "beyond float32": (
        lambda: demo.from_episodes([np.zeros((2, 2))], [np.zeros((1, 1))], [[1e39]], [True]),
        "rewards of episode 0 hold NaN or infinity",
    ),
}


@pytest.mark.parametrize("case", REFUSED_CALLS)
def test_refused_calls(case: str) -> None:
    call, message = REFUSED_CALLS[case]
    with pytest.raises(DemonstrationError, match=message) as refused:
        call()
    assert "\n" not in str(refused.value)
