"""Exact greedy deduplication from the pairs of a join, replayed in the order of the rows.

`deduplicate` visits rows in an order, keeps each that is similar to no row kept before, and gives
each dropped row the most similar row that was kept before it. All of that follows from the pairs
that reach the threshold, taken by the row of the two that is visited first: when its turn comes,
all pairs that could drop it were taken.

Rows are numbered here by their place in that order, pairs as (a, b) with a before b.

The join finds the pairs of dropped rows too, which `deduplicate` on one machine never looks for: a
cluster of c rows that are all similar has c (c - 1) / 2. Copies are an exception.

Copies of a row are not joined, see `copies`. Let f be the first of them. Where f is kept, it is the
only kept row that its copies are similar to, since another would be a pair with f. Where f was
dropped, its copies are too, and most similar to the best of the rows that f is similar to and that
were kept before the copy: those before f, as for f, and those between f and the copy, which are
found when the pairs of f are read again.
"""

from __future__ import annotations

from collections.abc import Callable, Iterator, Sequence
from dataclasses import dataclass
from typing import Any, NamedTuple

import numpy as np
from numpy.typing import NDArray

from cossim_fast.distributed.copies import Copies, places_in
from cossim_fast.retrieval import Deduplicated, Pairs

# [pairs] Sorted at a time, with 80 bytes each.
MOST_PAIRS = 1 << 24
# [parts] Into which rows are cut, to find how many fit.
_PARTS = 1 << 12
# [pairs] That Python goes through at a time, with 90 bytes each.
_LISTED = 1 << 18
# What is known of a row.
_KEPT, _DROPPED, _DROPPED_WITH_COPIES = 0, 1, 2


@dataclass(frozen=True)
class PairBlock:
    """The pairs of a block of a join, which are read when they are needed."""

    read: Callable[[], Pairs]  # i, j, scores, by number of the row, i < j
    pairs: int


class _Placed(NamedTuple):
    """Pairs by places in the order, sorted by a."""

    a: NDArray[np.int64]
    b: NDArray[np.int64]
    scores: NDArray[Any]

    def some(self, which: NDArray[Any]) -> _Placed:
        """Those of a mask, or at some places."""
        return _Placed(self.a[which], self.b[which], self.scores[which])


def deduplicate(
    blocks: Sequence[PairBlock],
    n: int,
    *,
    order: NDArray[np.int64] | None = None,
    copies: Copies | None = None,
    double: bool = False,
    most_pairs: int = MOST_PAIRS,
) -> Deduplicated:
    """What `cossim_fast.deduplicate` returns, from the pairs of all blocks of a join.

    Args:
        blocks: in any order; the pairs of `join_block`, without those of copies.
        n: how many rows there are.
        order: (n,) in which rows are visited, from `visiting_order`; None for that of the numbers.
        copies: from `find_copies` in the same order.
        double: whether scores are float64.
        most_pairs: how many are sorted at a time, unless one part of 4096 of the rows has more.

    Returns:
        Deduplicated(kept, dropped, representatives, scores), arrays.

    Memory: `memory_of`. If there are more pairs, blocks are read again for each ``most_pairs``. A
    pair takes 0.2 to 0.4 µs (Zen 5, 8 million pairs of 5 million rows).
    """
    pairs = _Ordered(blocks, n, None if order is None else places_in(order), most_pairs)
    state = _State(n, double)
    for some in pairs:
        state.take(some)
    if copies is not None and len(copies.rows):
        rows, firsts = (c if pairs.place is None else pairs.place[c] for c in copies)
        state.take_copies(rows, firsts)
        if (state.status[firsts] == _DROPPED_WITH_COPIES).any():
            later = _Later(state, rows, firsts)
            for some in pairs:
                later.take(some)
    return state.result(order)


def memory_of(n: int, pairs: int, *, in_order: bool, double: bool = False) -> int:
    """Bytes that `deduplicate` takes at most beside its result and the copies.

    Args:
        n: how many rows: 13 bytes each (17 for float64 scores), 20 more in another order.
        pairs: the most that are sorted at a time, or of a block: 80 bytes each.
        in_order: whether rows are visited in the order of their numbers.
        double: whether scores are float64.
    """
    row = (17 if double else 13) + (0 if in_order else 20)
    return n * row + 80 * pairs + 90 * _LISTED


class _Ordered:
    """All pairs in the order of a, as many at a time as may be sorted; read again each time."""

    def __init__(
        self,
        blocks: Sequence[PairBlock],
        n: int,
        place: NDArray[np.int64] | None,
        most: int,
    ) -> None:
        self._blocks = [block for block in blocks if block.pairs]
        self.place = place
        self._width = max(-(-n // _PARTS), 1)
        self._first = np.zeros(len(self._blocks), np.int64)
        self._last = np.full(len(self._blocks), n, np.int64)
        self._spans = [(0, n)]
        if sum(block.pairs for block in self._blocks) > most:
            self._spans = list(self._cut(n, most))

    def _cut(self, n: int, most: int) -> Iterator[tuple[int, int]]:
        """Ranges of a with up to ``most`` pairs; and which of them each block has pairs in."""
        counts = np.zeros(_PARTS, np.int64)
        for number, block in enumerate(self._blocks):
            a = self._placed(block).a
            self._first[number], self._last[number] = a[0], a[-1]
            counts += np.bincount(a // self._width, minlength=_PARTS)
        begin = held = 0
        for part, count in enumerate(counts.tolist()):
            if held and held + count > most:
                yield begin, part * self._width
                begin, held = part * self._width, 0
            held += count
        yield begin, n

    def __iter__(self) -> Iterator[_Placed]:
        for begin, end in self._spans:
            here = (self._first < end) & (self._last >= begin)
            parts = [self._placed(self._blocks[at]) for at in np.flatnonzero(here)]
            if len(self._spans) > 1:
                parts = [part.some((part.a >= begin) & (part.a < end)) for part in parts]
            if parts:
                yield _sorted(*(np.concatenate(columns) for columns in zip(*parts, strict=True)))

    def _placed(self, block: PairBlock) -> _Placed:
        i, j, scores = block.read()
        if self.place is None:
            return _sorted(i, j, scores)
        first, second = self.place[i], self.place[j]
        return _sorted(np.minimum(first, second), np.maximum(first, second), scores)


def _sorted(a: NDArray[np.int64], b: NDArray[np.int64], scores: NDArray[Any]) -> _Placed:
    if (a[1:] >= a[:-1]).all():
        return _Placed(a, b, scores)
    order = np.argsort(a, kind="stable")
    return _Placed(a[order], b[order], scores[order])


class _State:
    """What is known of each row (by place): 13 bytes.

    Attributes:
        status: (n,) whether it is kept, as far as pairs were taken.
        best: (n,) its largest score with a row kept before it.
        by: (n,) that row, the first of equal ones.
    """

    def __init__(self, n: int, double: bool) -> None:
        self._flags = bytearray(n)
        self.status = np.frombuffer(self._flags, np.uint8)
        self.best = np.full(n, -np.inf, np.float64 if double else np.float32)
        self.by = np.full(n, -1, np.int64)

    def take(self, pairs: _Placed) -> None:
        """Take the next pairs, among which are all that those rows have with later ones."""
        pairs = pairs.some(self.status[pairs.a] == _KEPT)
        self._drop(pairs)
        kept = pairs.some(self.status[pairs.a] == _KEPT)
        # Of each b the best pair, with the first a.
        order = np.lexsort((kept.a, -kept.scores, kept.b))
        b = kept.b[order]
        order = order[np.diff(b, prepend=-1) > 0]
        b, scores = kept.b[order], kept.scores[order]
        nearer = scores > self.best[b]
        self.best[b[nearer]], self.by[b[nearer]] = scores[nearer], kept.a[order][nearer]

    def _drop(self, pairs: _Placed) -> None:
        """Drop every b of a pair whose a is kept when its turn comes.

        One pair after the other, since each may decide the next.
        """
        flags = self._flags
        for start in range(0, len(pairs.a), _LISTED):
            some = slice(start, start + _LISTED)
            for a, b in zip(pairs.a[some].tolist(), pairs.b[some].tolist(), strict=True):
                if not flags[a]:
                    flags[b] = _DROPPED

    def take_copies(self, rows: NDArray[np.int64], firsts: NDArray[np.int64]) -> None:
        """Drop copies (c,) of rows (c,)."""
        kept = self.status[firsts] == _KEPT
        self.best[rows] = np.where(kept, 1, self.best[firsts])
        self.by[rows] = np.where(kept, firsts, self.by[firsts])
        self.status[rows] = _DROPPED
        self.status[firsts[~kept]] = _DROPPED_WITH_COPIES

    def result(self, order: NDArray[np.int64] | None) -> Deduplicated:
        """All rows by number."""
        kept, dropped = (np.flatnonzero(here) for here in (self.status == 0, self.status > 0))
        by, scores = self.by[dropped], self.best[dropped]
        if order is None:
            return Deduplicated(kept, dropped, by, scores)
        rows = order[dropped]
        by_row = np.argsort(rows)
        kept = order[kept]
        kept.sort()
        return Deduplicated(kept, rows[by_row], order[by][by_row], scores[by_row])


class _Later:
    """Rows that were kept between the first of some copies, which was dropped, and another."""

    def __init__(self, state: _State, rows: NDArray[np.int64], firsts: NDArray[np.int64]) -> None:
        self._state = state
        order = np.lexsort((rows, firsts))
        self._rows, self._firsts = rows[order], firsts[order]

    def take(self, pairs: _Placed) -> None:
        """Take pairs, among which are all that those rows have with later ones."""
        status = self._state.status
        wanted = (status[pairs.a] == _DROPPED_WITH_COPIES) & (status[pairs.b] == _KEPT)
        if not wanted.any():
            return
        pairs = pairs.some(wanted)
        order = np.lexsort((pairs.b, pairs.a))
        pairs = pairs.some(order)
        firsts, begins = np.unique(pairs.a, return_index=True)
        ends = [*begins[1:].tolist(), len(pairs.a)]
        for first, begin, end in zip(firsts.tolist(), begins.tolist(), ends, strict=True):
            self._best(first, pairs.b[begin:end], pairs.scores[begin:end])

    def _best(self, first: int, kept: NDArray[np.int64], scores: NDArray[Any]) -> None:
        """Give each copy of a row the best of the rows (p,) that were kept before it."""
        low, high = np.searchsorted(self._firsts, [first, first + 1])
        rows = self._rows[low:high]
        best = np.maximum.accumulate(scores)
        rises = np.append(True, best[1:] > best[:-1])
        best_by = kept[np.maximum.accumulate(np.where(rises, np.arange(len(kept)), 0))]
        last = np.searchsorted(kept, rows) - 1  # the last that was kept before each copy
        rows, last = rows[last >= 0], last[last >= 0]
        nearer = best[last] > self._state.best[rows]
        rows, last = rows[nearer], last[nearer]
        self._state.best[rows], self._state.by[rows] = best[last], best_by[last]
