"""The rANS coder against whole numbers of any size, exact words, and entropies."""

import numpy as np
import pytest
from coded import state

from vdbjax.coding import rans
from vdbjax.coding.rans import EmptyMessageError

EVERY = slice(None)
PINNED = (
    [2147483659005, 116726210691],
    [0, 65538, 4072736744, 196612, 728503228, 327686, 458760, 3631554440, 589834, 1960371790],
)


def uint64(values) -> np.ndarray:
    return np.asarray(values, np.uint64)


def push_by_hand(heads: list[int], words: list[int], symbols: list[tuple[int, int]], precision: int) -> None:
    """One symbol (start, frequency) a lane, lane by lane, in Python's whole numbers."""
    for lane, (_, frequency) in enumerate(symbols):
        if heads[lane] * 2**precision >= frequency * 2**63:
            words.append(heads[lane] % 2**32)
            heads[lane] //= 2**32
    for lane, (start, frequency) in enumerate(symbols):
        heads[lane] = heads[lane] // frequency * 2**precision + heads[lane] % frequency + start


def random_symbols(generator, lanes, precision):
    start = generator.integers(2**precision, size=lanes)
    frequency = 1 + generator.integers(2**precision, size=lanes) % (2**precision - start)
    return start, frequency


@pytest.mark.parametrize("precision", [1, 12, 24, 27, 31])
def test_a_push_is_the_equation_in_whole_numbers(precision):
    generator = np.random.default_rng(precision)
    message = rans.empty(lanes=50)
    heads, words = state(message)
    for _ in range(40):
        start, frequency = random_symbols(generator, 50, precision)
        rans.push(message, uint64(start), uint64(frequency), precision=precision, lanes=EVERY)
        push_by_hand(heads, words, list(zip(start.tolist(), frequency.tolist())), precision)
        assert state(message) == (heads, words)
    assert words


def test_the_words_are_these():
    """What is in files must never change."""
    message = rans.empty(lanes=2)
    for symbol in range(12):
        rans.push(message, uint64([symbol, 1000 * symbol]), uint64([1, 77]), precision=16, lanes=EVERY)
    rans.push_uniform(message, uint64([5, 6]), 1000, lanes=EVERY)
    rans.push_bits(message, uint64([3]), 7, lanes=slice(1, 2))
    assert state(message) == PINNED


def test_popping_undoes_pushing_and_pushing_undoes_popping():
    generator = np.random.default_rng(0)
    message = rans.random(lanes=300, words=3_000, seed=1)
    before = state(message)
    symbols = [random_symbols(generator, 300, 27) for _ in range(20)]
    for start, frequency in symbols:
        rans.push(message, uint64(start), uint64(frequency), precision=27, lanes=EVERY)
    for start, frequency in reversed(symbols):
        position = rans.peek(message, precision=27, lanes=EVERY)
        assert (position >= uint64(start)).all()
        assert (position < uint64(start + frequency)).all()
        rans.drop(message, position - uint64(start), uint64(frequency), precision=27, lanes=EVERY)
    assert state(message) == before

    taken = []
    for _ in range(50):
        # A distribution with two symbols: below and from 12345 on.
        position = rans.peek(message, precision=27, lanes=EVERY)
        low = position < 12345
        start, frequency = uint64(np.where(low, 0, 12345)), uint64(np.where(low, 12345, 2**27 - 12345))
        taken.append((start, frequency))
        rans.drop(message, position - start, frequency, precision=27, lanes=EVERY)
    for start, frequency in reversed(taken):
        rans.push(message, start, frequency, precision=27, lanes=EVERY)
    assert state(message) == before


@pytest.mark.parametrize("total", [1, 2, 3, 255, 2**16, 1_000_003, 2**31 - 1, 2**31])
@pytest.mark.parametrize("mixed", [False, True])
def test_uniform_totals_are_exact_both_ways_and_cost_their_logarithm(total, mixed):
    generator = np.random.default_rng(total)
    totals = generator.integers(1, total + 1, 1000) if mixed else total
    message = rans.random(lanes=1000, words=20_000, seed=2)
    before, bits = state(message), message.bits()
    drawn = [rans.pop_uniform(message, totals, lanes=EVERY) for _ in range(10)]
    assert all((values < totals).all() for values in drawn)
    cost = 10 * np.log2(np.broadcast_to(totals, 1000)).sum()
    assert bits - message.bits() == pytest.approx(cost, abs=20.0 if total > 2**28 else 0.5)
    for values in reversed(drawn):
        rans.push_uniform(message, values, totals, lanes=EVERY)
    assert state(message) == before


def test_bits_are_bits():
    message = rans.random(lanes=64, words=1_000, seed=3)
    before, bits = state(message), np.arange(64) % 32
    value = rans.pop_bits(message, bits, lanes=EVERY)
    assert (value < 2 ** bits.astype(np.uint64)).all()
    rans.push_bits(message, value, bits, lanes=EVERY)
    assert state(message) == before


def test_the_code_is_as_long_as_the_entropy():
    """Frequencies of a skewed distribution, with 24 bits: under 1e-5 bits a symbol over -log2."""
    generator = np.random.default_rng(4)
    edges = np.sort(generator.choice(np.arange(1, 2**24), 99, replace=False))
    edges = np.concatenate([[0], edges, [2**24]])
    frequencies = np.diff(edges)
    symbols = generator.choice(100, p=frequencies / 2**24, size=(400, 500))
    message = rans.random(lanes=500, words=0, seed=5)
    bits = message.bits()
    for row in symbols:
        rans.push(message, uint64(edges[row]), uint64(frequencies[row]), precision=24, lanes=EVERY)
    ideal = -np.log2(frequencies[symbols] / 2**24).sum()
    assert (message.bits() - bits - ideal) / symbols.size == pytest.approx(0.0, abs=1e-5)


def test_popping_from_an_empty_message_raises():
    message = rans.empty(lanes=4)
    with pytest.raises(EmptyMessageError, match="4 words are needed and 0 are left"):
        rans.pop_bits(message, 8, lanes=EVERY)
    with pytest.raises(EmptyMessageError):
        rans.pop_uniform(rans.empty(lanes=4), 10, lanes=EVERY)
    with pytest.raises(EmptyMessageError):
        rans.drop(rans.empty(lanes=4), uint64([0] * 4), uint64([1] * 4), precision=8, lanes=EVERY)
    assert issubclass(EmptyMessageError, ValueError)


@pytest.mark.parametrize("wide", [1, 2, 7, 64, 1000])
@pytest.mark.parametrize("few", [1, 3, 64])
def test_lanes_fold_away_and_come_back(wide, few):
    message = rans.random(lanes=max(wide, few), words=500, seed=6)
    before = state(message)
    bits = message.bits()
    rans.narrow(message, few)
    assert message.lanes == few
    moved = max(wide, few) - few
    assert (message.bits() - bits) / max(moved, 1) < 31 + 5.01  # the least value of a head, and 5 bits
    rans.widen(message, max(wide, few))
    assert state(message) == before


def test_words_that_were_never_popped_are_known():
    message = rans.random(lanes=10, words=100, seed=7)
    drawn = [rans.pop_bits(message, 20, lanes=EVERY) for _ in range(3)]
    untouched = len(message.words)
    for value in reversed(drawn):
        rans.push_bits(message, value, 20, lanes=EVERY)
    assert message.untouched == untouched
    assert 75 < untouched < 90


def test_bytes_hold_the_message():
    message = rans.random(lanes=5, words=7, seed=8)
    data = rans.to_bytes(message)
    assert len(data) == 5 * 8 + 7 * 4
    assert state(rans.from_bytes(data, lanes=5)) == state(message)


@pytest.mark.parametrize(
    ("data", "lanes"),
    [(b"", 1), (b"\0" * 8, 1), (b"\xff" * 8, 1), (b"\1" * 7, 1), (b"\1" * 8, 0), (b"\1" * 8, 2**60), (b"\1" * 9, 1)],
)
def test_bytes_that_are_no_message_are_refused(data, lanes):
    with pytest.raises(ValueError):
        rans.from_bytes(data, lanes)


def test_blocks_cover_every_symbol_once():
    assert rans.blocks(10, 4) == [slice(0, 4), slice(4, 8), slice(8, 10)]
    assert rans.blocks(0, 4) == []
    assert np.concatenate([np.arange(24)[block] for block in rans.blocks(24, 5)]).tolist() == list(range(24))


@pytest.mark.parametrize("lanes", [slice(0, 200), np.arange(299, 99, -1)], ids=["a slice", "indices"])
def test_many_bits_are_as_if_every_lane_pushed_in_parts(lanes):
    draw = np.random.default_rng(0)
    bits = draw.integers(0, 62, size=200)
    value = draw.integers(0, 2**62, size=200).astype(np.uint64) & (
        (np.uint64(1) << bits.astype(np.uint64)) - np.uint64(1)
    )
    message, by_parts = (rans.random(lanes=300, words=1_000, seed=0) for _ in range(2))
    rans.push_wide_bits(message, value, bits, lanes=lanes)
    for shift in (52, 26, 0):
        part = (value >> np.uint64(shift)) & np.uint64(2**26 - 1)
        rans.push_bits(by_parts, part, np.clip(bits - shift, 0, 26), lanes=lanes)
    assert rans.to_bytes(message) == rans.to_bytes(by_parts)
    np.testing.assert_array_equal(rans.pop_wide_bits(message, bits, lanes=lanes), value)
    assert rans.to_bytes(message) == rans.to_bytes(rans.random(lanes=300, words=1_000, seed=0))


@pytest.mark.parametrize("pops", [1, 100, 700])
def test_a_fork_goes_its_own_way_and_the_message_can_take_it(pops):
    """Against a copy that shares nothing. A pop takes 6.5 words, so the deepest goes past what is shared at once."""
    message = rans.random(lanes=8, words=5_000, seed=1)
    kept, alone, forked = state(message), rans.Message(message.heads, message.words), message.fork()
    popped = [rans.pop_bits(forked, 26, lanes=EVERY) for _ in range(pops)]
    for value in popped:
        np.testing.assert_array_equal(rans.pop_bits(alone, 26, lanes=EVERY), value)
    assert forked.untouched == alone.untouched
    back = forked.fork()
    for value in reversed(popped):
        rans.push_bits(back, value, 26, lanes=EVERY)
    assert back.is_what(message)
    assert not forked.is_what(message)
    for one in (forked, alone):
        rans.push_bits(one, uint64(range(8)), 20, lanes=EVERY)
    assert (forked.size, forked.bits()) == (alone.size, alone.bits())
    assert state(message) == kept
    message.become(forked)
    assert state(message) == state(alone)


@pytest.mark.parametrize("forked", [False, True])
def test_the_words_on_top_can_be_changed_in_place(forked):
    message = rans.random(lanes=8, words=5_000, seed=1)
    one = message.fork() if forked else message
    whole = message.words.copy()
    words = one.top(2_000)
    np.testing.assert_array_equal(words, whole[3_000:])
    words ^= np.uint32(1)
    np.testing.assert_array_equal(one.words, np.concatenate([whole[:3_000], whole[3_000:] ^ np.uint32(1)]))
    assert one.untouched == 5_000
    assert np.array_equal(message.words, whole) == forked


def test_a_fork_is_empty_where_the_message_is():
    message = rans.random(lanes=8, words=20, seed=1)
    kept, forked = state(message), message.fork()
    with pytest.raises(EmptyMessageError, match=r"21 words are needed and 20 are left"):
        forked.take(21)
    assert len(forked.take(20)) == 20
    assert state(message) == kept
