"""Checkpoints: what comes back is what went in, bit for bit, and nothing damaged is ever believed."""

import errno
import pickle
import resource
import shutil
from pathlib import Path
from typing import NamedTuple

import jax
import jax.numpy as jnp
import numpy as np
import pytest

from vdbjax.training.checkpoint import (
    DIGESTS,
    KEEP,
    load_checkpoint,
    pin_checkpoint,
    pinned_iterations,
    save_checkpoint,
    saved_iterations,
)
from vdbjax.training.run_dir import RunDir, create_run


class Odd(NamedTuple):
    key: jax.Array
    keys: jax.Array
    bits: jax.Array
    nested: dict


def _state(number: int) -> Odd:
    """One of everything that a state holds; the bits are float64 physics, NaN and -0 included."""
    physics = np.array([[np.pi * number, -0.0, np.nan], [np.inf, 5e-324, -1.0 / 3.0]])
    return Odd(
        jax.random.key(number),
        jax.random.split(jax.random.key(number), 3),
        jnp.asarray(physics.view(np.uint32)),
        {
            "float": jnp.float32(0.1 * number),
            "special": jnp.array([jnp.nan, -0.0, jnp.inf]),
            "flag": jnp.array([True, False]),
            "step": jnp.int32(number),
            "none": None,
            "empty": (),
            "weights": jnp.arange(6.0).reshape(2, 3) * number,
        },
    )


def _bits(state: Odd) -> list[tuple]:
    leaves = jax.tree.map(
        lambda leaf: jax.random.key_data(leaf) if jnp.issubdtype(leaf.dtype, jax.dtypes.prng_key) else leaf, state
    )
    return [(leaf.shape, leaf.dtype, np.asarray(leaf).tobytes()) for leaf in jax.tree.leaves(leaves)]


@pytest.fixture
def run(tmp_path) -> RunDir:
    """A run with checkpoints of iterations 1 to 5."""
    made = create_run(tmp_path / "run", {})
    for iteration in range(1, 6):
        save_checkpoint(made, _state(iteration), iteration)
    return made


def test_what_comes_back_is_what_went_in(run) -> None:
    state, iteration = load_checkpoint(run, _state(0))
    assert iteration == 5
    assert jax.tree.structure(state) == jax.tree.structure(_state(5))
    assert _bits(state) == _bits(_state(5))
    np.testing.assert_array_equal(jax.random.normal(state.key, (3,)), jax.random.normal(jax.random.key(5), (3,)))


def test_at_most_the_newest_few_are_kept_and_nothing_else_lies_there(run) -> None:
    assert saved_iterations(run) == [5, 4, 3]
    assert len(list(run.checkpoints.iterdir())) == KEEP


def test_a_pinned_one_stays_and_the_newest_is_still_what_is_loaded(run) -> None:
    pin_checkpoint(run, 4)
    for iteration in range(6, 10):
        save_checkpoint(run, _state(iteration), iteration)
    assert saved_iterations(run) == [9, 8, 7, 4]
    assert load_checkpoint(run, _state(0))[1] == 9
    assert pinned_iterations(run) == [4]
    assert _bits(load_checkpoint(run, _state(0), iteration=4)[0]) == _bits(_state(4))
    _flip_a_bit(run.checkpoints / "4")
    assert pinned_iterations(run) == []


def test_one_that_has_gone_is_not_pinned(run) -> None:
    assert not pin_checkpoint(run, 2)  # no more among the newest
    assert pin_checkpoint(run, 4)
    assert [path.name for path in run.checkpoints.glob("pinned-*")] == ["pinned-4"]


def _some_file(folder: Path) -> Path:
    """The largest file: the numbers."""
    return max((path for path in folder.rglob("*") if path.is_file()), key=lambda path: path.stat().st_size)


def _truncate(folder: Path) -> None:
    file = _some_file(folder)
    file.write_bytes(file.read_bytes()[:-1])


def _flip_a_bit(folder: Path) -> None:
    file = _some_file(folder)
    content = bytearray(file.read_bytes())
    content[len(content) // 2] ^= 1
    file.write_bytes(content)


def _only_a_beginning(folder: Path) -> None:
    for path in sorted(path for path in folder.rglob("*") if path.is_file())[1:]:
        path.unlink()


DAMAGES = {
    "truncated file": _truncate,
    "flipped bit": _flip_a_bit,
    "missing file": lambda folder: _some_file(folder).unlink(),
    "missing digests": lambda folder: (folder / DIGESTS).unlink(),
    "digests of something else": lambda folder: (folder / DIGESTS).write_text("[1]"),
    "digests that are no text": lambda folder: (folder / DIGESTS).write_bytes(b"\xff\x00"),
    "half-written": _only_a_beginning,
    "empty": lambda folder: (shutil.rmtree(folder), folder.mkdir()),
    "a file more": lambda folder: (folder / "state" / "more").write_text("?"),
}


@pytest.mark.parametrize("damage", DAMAGES.values(), ids=DAMAGES.keys())
def test_a_damaged_one_is_passed_over_and_that_is_said(run, damage, capsys) -> None:
    damage(run.checkpoints / "5")
    state, iteration = load_checkpoint(run, _state(0))
    assert "checkpoints/5 is damaged; falling back to the one before\n" in capsys.readouterr().err
    assert iteration == 4
    assert _bits(state) == _bits(_state(4))


def test_several_damaged_ones_are_passed_over(run, capsys) -> None:
    _flip_a_bit(run.checkpoints / "5")
    _truncate(run.checkpoints / "4")
    assert load_checkpoint(run, _state(0))[1] == 3
    assert capsys.readouterr().err.count("is damaged") == 2


def test_none_whole_is_an_error(run) -> None:
    for folder in run.checkpoints.iterdir():
        _flip_a_bit(folder)
    with pytest.raises(ValueError, match="run cannot be loaded: all of its 3 checkpoints are damaged; train anew"):
        load_checkpoint(run, _state(0))


def test_none_at_all_is_an_error(tmp_path) -> None:
    with pytest.raises(ValueError, match="it has no checkpoint yet"):
        load_checkpoint(create_run(tmp_path / "run", {}), _state(0))


def test_a_damaged_one_is_replaced(run) -> None:
    _flip_a_bit(run.checkpoints / "5")
    save_checkpoint(run, _state(50), 5)
    state, iteration = load_checkpoint(run, _state(0))
    assert iteration == 5
    assert _bits(state) == _bits(_state(50))


def test_what_a_killed_process_left_behind_is_ignored_and_then_removed(run) -> None:
    shutil.copytree(run.checkpoints / "5", run.checkpoints / "6.part")
    (run.checkpoints / "7.part.orbax-checkpoint-tmp" / "state").mkdir(parents=True)
    assert load_checkpoint(run, _state(0))[1] == 5
    save_checkpoint(run, _state(6), 6)
    assert sorted(path.name for path in run.checkpoints.iterdir()) == ["4", "5", "6"]


def _full_in_orbax(monkeypatch) -> None:
    from orbax.checkpoint import v1 as orbax

    def save(path: Path, *arguments: object, **options: object) -> None:
        (Path(path) / "state").mkdir(parents=True)  # begun, and then
        raise OSError(errno.ENOSPC, "No space left on device")

    monkeypatch.setattr(orbax, "save", save)


def _full_at_the_digests(monkeypatch) -> None:
    def write(path: Path, content: object) -> None:
        raise OSError(errno.ENOSPC, "No space left on device")

    monkeypatch.setattr("vdbjax.training.checkpoint.write_json", write)


FULL_DISKS = {"in the numbers": _full_in_orbax, "at the digests": _full_at_the_digests}


@pytest.mark.parametrize("fill", FULL_DISKS.values(), ids=FULL_DISKS.keys())
def test_a_full_disk_leaves_the_others_whole(run, monkeypatch, fill) -> None:
    with monkeypatch.context() as patch:
        fill(patch)
        with pytest.raises(OSError, match=r"checkpoint .*/6 cannot be written \(.*No space left") as caught:
            save_checkpoint(run, _state(6), 6)
    assert "\n" not in str(caught.value)
    assert sorted(path.name for path in run.checkpoints.iterdir()) == ["3", "4", "5"]
    assert load_checkpoint(run, _state(0))[1] == 5


def test_a_disk_that_really_refuses_to_write(run, capfd) -> None:
    """The kernel's limit on the size of a file stands for the end of the disk: TensorStore meets it in C++."""
    noise = jax.random.normal(jax.random.key(0), (2**18,))  # 1 MB that does not compress
    soft, hard = resource.getrlimit(resource.RLIMIT_FSIZE)
    resource.setrlimit(resource.RLIMIT_FSIZE, (2**17, hard))
    try:
        with pytest.raises(OSError, match="cannot be written") as caught:
            save_checkpoint(run, _state(6)._replace(keys=noise), 6)
    finally:
        resource.setrlimit(resource.RLIMIT_FSIZE, (soft, hard))
    assert "\n" not in str(caught.value)
    assert "Traceback" not in "".join(capfd.readouterr())
    assert sorted(path.name for path in run.checkpoints.iterdir()) == ["3", "4", "5"]
    assert load_checkpoint(run, _state(0))[1] == 5


def test_nothing_is_unpickled(run, monkeypatch) -> None:
    def refuse(*arguments: object, **options: object) -> None:
        raise AssertionError("unpickled")

    for name in ("load", "loads", "Unpickler"):
        monkeypatch.setattr(pickle, name, refuse)
    assert load_checkpoint(run, _state(0))[1] == 5
    files = [path.read_bytes() for path in run.checkpoints.rglob("*") if path.is_file()]
    assert not any(content.startswith(pickle.PROTO) for content in files)
