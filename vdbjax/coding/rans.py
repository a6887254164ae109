"""Asymmetric numeral systems over thousands of lanes at once: a stack of bits that codecs push onto and pop from.

A message holds one 64-bit head a lane, always in [2^31, 2^63), and one common stack of 32-bit words. Pushing a symbol
of probability frequency / 2^precision takes a head x to about x 2^precision / frequency; a head that would leave its
interval first gives its low 32 bits to the stack, and takes them back when popping leaves it below 2^31. Every step is
a bijection, so that popping from any message and pushing again what came out gives the message back: what bits-back
coding lives on. One NumPy operation serves all lanes. Duda, "Asymmetric numeral systems" (2013); Giesen, "Interleaved
entropy coders" (2014).
"""

from collections.abc import Callable, Iterator
from typing import Any, NamedTuple

import numpy as np
from jaxtyping import Int, UInt64

LOWEST_HEAD = 2**31
MAX_LANES = 2**20

Lanes = slice | Int[np.ndarray, " symbols"]
"""Which lanes a step codes on: a slice, or distinct indices."""
Counts = int | np.integer | Int[np.ndarray, "..."] | UInt64[np.ndarray, "..."]
"""One value for every symbol, or one for each."""

_LOWEST = np.uint64(LOWEST_HEAD)
_WORD_BITS = np.uint64(32)
_BITS_AT_ONCE = 26
_HIGHEST_EXPONENT = 63  # heads stay below 2^63


class EmptyMessageError(ValueError):
    """More bits were popped than the message holds."""


class Codec(NamedTuple):
    """How one array of symbols is coded. `pop` undoes `push`, and `push` undoes `pop`."""

    push: Callable[["Message", Any], None]  # raises ValueError for symbols that it cannot code
    pop: Callable[["Message"], Any]  # raises EmptyMessageError; the message is then of no more use


class Message:
    """A stack of bits. Codecs change it in place.

    A message may stand on another's words, which it shares until it comes down to them: see `fork`.
    """

    def __init__(self, heads: UInt64[np.ndarray, " lanes"], words: np.ndarray) -> None:
        """Copies the heads, each in [2^31, 2^63), and the words (uint32), the last on top."""
        if not 1 <= len(heads) <= MAX_LANES:
            raise ValueError(f"a message needs between 1 and {MAX_LANES} lanes, not {len(heads)}")
        if heads.min() < _LOWEST or heads.max() >> np.uint64(_HIGHEST_EXPONENT):
            raise ValueError("a head of the message lies outside [2^31, 2^63)")
        _keep_freed_memory()
        self.heads = heads.copy()
        self._below = np.empty(0, np.uint32)  # another message's words, which this one's own lie on
        self._buffer = words.astype(np.uint32)
        self._own = len(words)
        self.untouched = len(words)
        """How many words at the bottom have never been popped."""

    @property
    def lanes(self) -> int:
        return len(self.heads)

    @property
    def size(self) -> int:
        """Words of the stack."""
        return len(self._below) + self._own

    @property
    def words(self) -> np.ndarray:
        """The words of the stack, uint32, the last on top."""
        return self.top(self.size)

    def bits(self) -> float:
        """What the message holds, in bits: of the stack, and of the heads beyond their least value."""
        return 32.0 * self.size + float((np.log2(self.heads) - np.log2(LOWEST_HEAD)).sum())

    def top(self, count: int) -> np.ndarray:
        """The `count` words on top, the last of all last; to be changed in place."""
        self._own_at_least(count)
        return self._buffer[self._own - count : self._own]

    def append(self, words: np.ndarray) -> None:
        """Puts words (uint32) on top."""
        size = self._own + len(words)
        if size > len(self._buffer):
            grown = np.empty(max(2 * size, 1024), np.uint32)
            grown[: self._own] = self._buffer[: self._own]
            self._buffer = grown
        self._buffer[self._own : size] = words
        self._own = size

    def take(self, count: int) -> np.ndarray:
        """Takes `count` words from the top, in the order in which they were put there."""
        if count > self.size:
            raise EmptyMessageError(f"the message is empty: {count} words are needed and {self.size} are left")
        self._own_at_least(count)
        self._own -= count
        self.untouched = min(self.untouched, self.size)
        return self._buffer[self._own : self._own + count]

    def fork(self) -> "Message":
        """A message that holds the same and goes its own way, at no cost for the words that both keep.

        This one must not change as long as the other is in use.
        """
        forked = Message(self.heads, self._buffer[: self._own if len(self._below) else 0])
        forked._below = self._below if len(self._below) else self.words
        forked.untouched = forked.size
        return forked

    def is_what(self, start: "Message") -> bool:
        """Whether it holds what `start` does, which it was forked from."""
        shared = len(self._below)
        return (
            self.size == start.size
            and np.array_equal(self.heads, start.heads)
            and np.array_equal(self._buffer[: self._own], start.words[shared:])
        )

    def become(self, forked: "Message") -> None:
        """Takes on what one that was forked from it holds, which is of no more use then."""
        self.heads, self._own = forked.heads, len(forked._below)
        self.append(forked._buffer[: forked._own])
        self.untouched = min(self.untouched, forked.untouched)

    def _own_at_least(self, count: int) -> None:
        """Makes so many words, of the message's, its own."""
        if count <= self._own:
            return
        fewer = max(len(self._below) - max(count - self._own, 1024), 0)
        self._buffer = np.concatenate([self._below[fewer:], self._buffer[: self._own]])
        self._below, self._own = self._below[:fewer], len(self._buffer)


def _keep_freed_memory() -> None:
    """Makes glibc keep up to 64 MiB of what arrays give back; elsewhere it does nothing.

    It returns to the system what is more than twice the largest block freed so far, 32 MiB at most, and takes it anew
    for the next arrays, page by page. With 2^16 lanes that can take as long as all the arithmetic.
    """
    np.empty(2**25 - 2**13, np.uint8)


def empty(lanes: int) -> Message:
    """A message that holds nothing."""
    return Message(np.full(lanes, LOWEST_HEAD, np.uint64), np.empty(0, np.uint32))


def random(lanes: int, words: int, *, seed: int) -> Message:
    """A message of random bits, to draw noise from: `words` words on the stack, and heads as coding leaves them."""
    generator = np.random.default_rng(seed)
    heads = np.exp2(generator.uniform(31.0, 63.0, lanes)).astype(np.uint64)
    heads |= generator.integers(2**10, size=lanes, dtype=np.uint64)  # the bits below a float64's precision
    return Message(heads, generator.integers(2**32, size=words, dtype=np.uint32))


def blocks(count: int, lanes: int) -> list[slice]:
    """`count` symbols cut into blocks of one symbol a lane. They are pushed from the last to the first."""
    return [slice(start, min(start + lanes, count)) for start in range(0, count, lanes)]


def push(
    message: Message,
    start: UInt64[np.ndarray, " symbols"],
    frequency: UInt64[np.ndarray, " symbols"],
    *,
    precision: int,
    lanes: Lanes,
) -> None:
    """Pushes symbols that own [start, start + frequency) of [0, 2^precision), one a lane; precision is at most 31.

    A frequency must be above 0. The loss over -log2(frequency / 2^precision) is of the order 4^(precision - 31) / 500
    bits a symbol.
    """
    heads = message.heads[lanes]
    _emit(message, heads, frequency << np.uint64(_HIGHEST_EXPONENT - precision))
    others = heads // frequency  # np.divmod takes seven times as long
    others *= np.uint64(2**precision) - frequency
    heads += others
    heads += start
    message.heads[lanes] = heads


def peek(message: Message, *, precision: int, lanes: Lanes) -> UInt64[np.ndarray, " symbols"]:
    """Where in [0, 2^precision) the next symbol lies: in [start, start + frequency) of the one to be popped."""
    return message.heads[lanes] & np.uint64(2**precision - 1)


def drop(
    message: Message,
    within: UInt64[np.ndarray, " symbols"],
    frequency: UInt64[np.ndarray, " symbols"],
    *,
    precision: int,
    lanes: Lanes,
) -> None:
    """Takes off the symbols that `peek` showed, `within` above their starts: undoes `push`."""
    heads = message.heads[lanes] >> np.uint64(precision)
    heads *= frequency
    heads += within
    _refill(message, heads, _LOWEST)
    message.heads[lanes] = heads


def push_bits(message: Message, value: UInt64[np.ndarray, " symbols"], bits: Counts, *, lanes: Lanes) -> None:
    """Pushes values of [0, 2^bits), all equally likely; bits, of each value or of all, is at most 31.

    The loss is that of `push` at this precision.
    """
    bits = np.asarray(bits, np.uint64)
    heads = message.heads[lanes]
    _emit(message, heads, np.uint64(1) << (np.uint64(_HIGHEST_EXPONENT) - bits))
    heads <<= bits
    heads |= value
    message.heads[lanes] = heads


def pop_bits(message: Message, bits: Counts, *, lanes: Lanes) -> UInt64[np.ndarray, " symbols"]:
    """Undoes `push_bits`."""
    bits = np.asarray(bits, np.uint64)
    heads = message.heads[lanes]
    value = heads & ((np.uint64(1) << bits) - np.uint64(1))
    heads >>= bits
    _refill(message, heads, _LOWEST)
    message.heads[lanes] = heads
    return value


def push_wide_bits(message: Message, value: UInt64[np.ndarray, " symbols"], bits: Counts, *, lanes: Lanes) -> None:
    """`push_bits` for up to 62 bits, so few at a time that nothing is lost."""
    parts = _parts(bits)
    for shift, chosen, part in reversed(parts):
        some = (value[chosen] >> np.uint64(shift)) & np.uint64(2**_BITS_AT_ONCE - 1) if len(parts) > 1 else value
        push_bits(message, some, part, lanes=_of(lanes, chosen))


def pop_wide_bits(message: Message, bits: Counts, *, lanes: Lanes) -> UInt64[np.ndarray, " symbols"]:
    """Undoes `push_wide_bits`."""
    value: Any = np.zeros((), np.uint64)
    for shift, chosen, part in _parts(bits):
        some = pop_bits(message, part, lanes=_of(lanes, chosen))
        if shift:
            value[chosen] |= some << np.uint64(shift)
        else:
            value = some
    return np.broadcast_to(value, message.heads[lanes].shape)


def push_uniform(message: Message, value: UInt64[np.ndarray, " symbols"], total: Counts, *, lanes: Lanes) -> None:
    """Pushes values of [0, total), all equally likely; any total from 1 to 2^31, without loss.

    A total n that does not divide 2^31 would break the bijection on [2^31, 2^63). So heads go through an interval that
    begins at the next multiple of n, ceil(2^31 / n) n, in which it is exact.
    """
    total = np.asarray(total, np.uint64)
    multiple = (_LOWEST + total - np.uint64(1)) // total
    heads = message.heads[lanes]
    _emit(message, heads, multiple << _WORD_BITS)
    heads *= total
    heads += value
    _emit(message, heads, np.uint64(2**_HIGHEST_EXPONENT))
    message.heads[lanes] = heads


def pop_uniform(message: Message, total: Counts, *, lanes: Lanes) -> UInt64[np.ndarray, " symbols"]:
    """Undoes `push_uniform`."""
    total = np.asarray(total, np.uint64)
    multiple = (_LOWEST + total - np.uint64(1)) // total
    heads = message.heads[lanes]
    _refill(message, heads, multiple * total)
    quotient = heads // total
    value = heads - quotient * total
    _refill(message, quotient, _LOWEST)
    message.heads[lanes] = quotient
    return value


def narrow(message: Message, lanes: int) -> None:
    """Folds the message onto fewer lanes, so that a file holds few heads: pushes the other heads as symbols.

    A head x costs log2(x) + 5 bits on the lanes that stay. Whoever leaves it out pays 64.
    """
    for kept, moved in _folds(message.lanes, lanes):
        heads, message.heads = message.heads[kept:], message.heads[:kept].copy()
        mantissa_bits = (np.frexp((heads >> np.uint64(31)).astype(np.float64))[1] - 1).astype(np.uint64)  # above 31
        part = slice(0, moved)
        push_bits(message, heads & np.uint64(2**31 - 1), 31, lanes=part)
        push_bits(message, (heads >> np.uint64(31)) - (np.uint64(1) << mantissa_bits), mantissa_bits, lanes=part)
        push_bits(message, mantissa_bits, 5, lanes=part)


def widen(message: Message, lanes: int) -> None:
    """Undoes `narrow`: draws the heads of more lanes from the message, about 52 bits each, which are not lost."""
    for _, moved in reversed(list(_folds(lanes, message.lanes))):
        part = slice(0, moved)
        mantissa_bits = pop_bits(message, 5, lanes=part)
        high = pop_bits(message, mantissa_bits, lanes=part) + (np.uint64(1) << mantissa_bits)
        heads = (high << np.uint64(31)) | pop_bits(message, 31, lanes=part)
        message.heads = np.concatenate([message.heads, heads])


def to_bytes(message: Message) -> bytes:
    """The heads as 64-bit and the words as 32-bit little-endian integers."""
    return message.heads.astype("<u8").tobytes() + message.words.astype("<u4").tobytes()


def from_bytes(data: bytes, lanes: int) -> Message:
    """Undoes `to_bytes`. Raises ValueError for bytes that are no message of so many lanes."""
    if not 1 <= lanes <= MAX_LANES or len(data) < 8 * lanes or len(data) % 4:
        raise ValueError(f"{len(data)} bytes are no message of {lanes} lanes")
    heads = np.frombuffer(data, "<u8", count=lanes).astype(np.uint64)
    return Message(heads, np.frombuffer(data, "<u4", offset=8 * lanes).astype(np.uint32))


def _parts(bits: Any) -> list[tuple[int, Any, Any]]:
    """Bit counts cut into parts of at most 26: where each begins, what symbols come so far, and their bits in it.

    The first part takes all symbols, those without bits too, for whom it does nothing.
    """
    most = bits if isinstance(bits, int) else int(np.max(bits, initial=0))
    if most <= _BITS_AT_ONCE:
        return [(0, ..., bits)] if most else []
    each = np.asarray(bits)
    parts: list[tuple[int, Any, Any]] = [(0, ..., np.minimum(each, _BITS_AT_ONCE))]
    for shift in range(_BITS_AT_ONCE, most, _BITS_AT_ONCE):
        chosen = np.flatnonzero(each > shift) if each.ndim else ...
        parts.append((shift, chosen, np.minimum(each[chosen] - shift, _BITS_AT_ONCE)))
    return parts


def _of(lanes: Lanes, chosen: Any) -> Any:
    """The lanes of the chosen symbols: indices, or all of them (...)."""
    if chosen is ...:
        return lanes
    return chosen + (lanes.start or 0) if isinstance(lanes, slice) else lanes[chosen]


def _emit(message: Message, heads: np.ndarray, limit: Any) -> None:
    """Brings the heads below `limit`: those that are not give their low words to the stack, in the order of lanes."""
    (full,) = (heads >= limit).nonzero()
    if len(full):
        given = heads[full]
        message.append(given.astype(np.uint32))
        given >>= _WORD_BITS
        heads[full] = given


def _refill(message: Message, heads: np.ndarray, limit: Any) -> None:
    """Undoes `_emit`: heads below `limit` take a word from the stack."""
    (low,) = (heads < limit).nonzero()
    if len(low):
        given = heads[low]
        given <<= _WORD_BITS
        given |= message.take(len(low))
        heads[low] = given


def _folds(wide: int, few: int) -> Iterator[tuple[int, int]]:
    """The steps from `wide` lanes down to `few`: how many stay, and how many are pushed onto these."""
    while wide > few:
        moved = min(wide // 2, wide - few)
        wide -= moved
        yield wide, moved
