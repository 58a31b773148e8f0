"""Candidates of a batch of queries, and the thresholds that they prove."""

from __future__ import annotations

from collections.abc import Mapping
from typing import Protocol

import numpy as np
import torch
from torch import Tensor


class Score(Protocol):
    """Scores candidates: query numbers and row positions (p,) to float64 (p,)."""

    error: float  # of a near score

    def near(self, query: Tensor, row: Tensor) -> Tensor:
        """Scores that are off by `error` at most."""

    def exact(self, query: Tensor, row: Tensor) -> Tensor:
        """The scores."""


# The threshold of a query of which nothing is known: every row reaches it, a row that is masked by
# -inf does not.
NO_THRESHOLD = -2.0
# Numbers of the table that rows are sorted in, beyond four times the rows: one query may have very
# many.
WIDEST_TABLE = 1 << 20


class Pool:
    """Rows that may be among the k best of their query, each with bounds on its score.

    A row whose upper bound misses `threshold` (q,) is dropped. Thresholds are of two kinds:

    - proven: at least k rows of the pool have a lower bound there;
    - guessed: so many of the rows seen so far lie there that k of all the rows will, save by bad
      luck. A guess is proven or refuted once scores are known (`refuted`).

    Args:
        queries: how many.
        k: how many rows each is to get.
        guess: whether thresholds may be guessed.
        certify: keep the largest upper bound of what is dropped, too.
    """

    def __init__(self, queries: int, k: int, *, guess: bool = True, certify: bool = False) -> None:
        self.queries, self.k = queries, k
        self._guess = guess
        self.threshold = torch.full((queries,), NO_THRESHOLD, dtype=torch.float64)
        self._guessed = torch.full_like(self.threshold, NO_THRESHOLD)
        self.excluded = torch.full_like(self.threshold, -torch.inf) if certify else None
        self.rescored = torch.zeros(queries, dtype=torch.int64)
        self._query = torch.empty(0, dtype=torch.int64)
        self._row = torch.empty(0, dtype=torch.int64)
        self._upper = torch.empty(0, dtype=torch.float64)
        self._lower = torch.empty(0, dtype=torch.float64)
        self._known = torch.empty(0, dtype=torch.bool)  # whether both bounds are the score
        self._new: list[tuple[Tensor, Tensor, Tensor, Tensor]] = []
        self.pending = 0  # rows added since thresholds were last raised

    def __len__(self) -> int:
        return self._query.numel() + self.pending

    def add(self, query: Tensor, row: Tensor, upper: Tensor, lower: Tensor) -> None:
        """Add rows by query number, position and bounds (float64), each of shape (p,)."""
        self._new.append((query, row, upper, lower))
        self.pending += query.numel()

    def close(self, queries: Tensor) -> None:
        """Let no row reach the queries of a mask (q,)."""
        self.threshold.masked_fill_(queries, torch.inf)

    def lift(self, threshold: Tensor, rank: int) -> None:
        """Raise thresholds to others (q,): proven if ``rank`` is k, else guessed."""
        torch.maximum(self.threshold, threshold, out=self.threshold)
        if rank < self.k:
            torch.maximum(self._guessed, threshold, out=self._guessed)

    def rank(self, seen: int, total: int) -> int:
        """Which of the best of ``seen`` rows the k-th best of ``total`` will reach; k if proven.

        Of the k best, a share of seen / total falls among the rows seen, give or take the spread
        of a Poisson variable. Four of those spreads and four rows on top leave about one guess in
        a million wrong.
        """
        if not self._guess or seen >= total:
            return self.k
        expected = self.k * seen / total
        return min(int(expected + 4 * expected**0.5 + 4), self.k)

    def exclude(self, upper: Tensor) -> None:
        """Note upper bounds (q,) of rows that were never added."""
        if self.excluded is not None:
            torch.maximum(self.excluded, upper, out=self.excluded)

    def forget(self, first: int) -> None:
        """Take out every row from position ``first`` on; thresholds stay."""
        self._gather()
        self._keep(self._row < first)

    def raise_thresholds(self, seen: int, total: int) -> None:
        """Raise thresholds by what is in the pool, and drop what misses them."""
        self._gather()
        rank = self.rank(seen, total)
        value = self._lower if rank == self.k else (self._upper + self._lower) / 2
        self.lift(kth_largest(self._query, value, rank, self.queries), rank)
        self._drop(self._upper < self.threshold[self._query])

    def settle(self, score: Score, *, exact: bool) -> None:
        """Score every row that could be among the k best, and keep the k best of each query.

        Args:
            score: knows every row that was added since the pool was last settled exactly.
            exact: keep scores as they are. Otherwise they may be near scores, of which it is sure
                that they are ranked and rounded to float32 as the scores are.
        """
        self._gather()
        # The likeliest first: they prove most of the others too low.
        kth = kth_largest(self._query, self._upper, self.k, self.queries)
        self._score(score, self._upper >= kth[self._query])
        self.lift(kth_largest(self._query, self._lower, self.k, self.queries), self.k)
        self._drop(self._upper < self.threshold[self._query])
        self._score(score, None)
        self._cut(score, exact=exact)

    def refuted(self) -> Tensor:
        """The numbers of the queries whose k-th score misses a threshold that was guessed."""
        held = torch.bincount(self._query, minlength=self.queries)
        wrong = (held < self.k) & (self._guessed > NO_THRESHOLD)
        kth = self._lower[(held.cumsum(0) - 1).clamp_min(0)] if len(self) else self._guessed
        wrong |= (held == self.k) & (kth < self._guessed)
        return places(wrong & self.threshold.isfinite())

    def best(self) -> tuple[Tensor, Tensor]:
        """The k best of a settled pool: scores (q, k) float64 and positions (q, k).

        Best first, ties by position; NaN and -1 where there are no more.
        """
        scores = torch.full((self.queries, self.k), torch.nan, dtype=torch.float64)
        rows = torch.full((self.queries, self.k), -1)
        place = self._query, self._rank()
        scores[place], rows[place] = self._middle(), self._row
        return scores, rows

    def _rank(self) -> Tensor:
        """The place of each row among those of its query, which lie together."""
        held = torch.bincount(self._query, minlength=self.queries)
        return torch.arange(self._query.numel()) - (held.cumsum(0) - held)[self._query]

    def _middle(self) -> Tensor:
        """What is known best of each score: the score itself where it was made exact."""
        return (self._upper + self._lower) / 2

    def _score(self, score: Score, likely: Tensor | None) -> None:
        """Score rows of the pool whose score is not known."""
        chosen = ~self._known
        if likely is not None:
            chosen &= likely
        place = places(chosen)
        query = self._query[place]
        near = score.near(query, self._row[place])
        self._upper[place], self._lower[place] = near + score.error, near - score.error
        self._known[place] = True
        self.rescored += torch.bincount(query, minlength=self.queries)

    def _make_exact(self, score: Score, chosen: Tensor) -> None:
        """Replace near scores (by mask) by the scores."""
        place = places(chosen & (self._upper > self._lower))
        if place.numel():
            exact = score.exact(self._query[place], self._row[place])
            self._upper[place] = self._lower[place] = exact

    def _cut(self, score: Score, *, exact: bool) -> None:
        """Keep the k best of each query, in order; at least near scores of all are known."""
        self._sort()
        self._drop(self._too_low())
        # Near scores that may stand in the wrong order, or round to another float32.
        same = self._query[1:] == self._query[:-1]
        near = same & (self._lower[:-1] <= self._upper[1:])
        close = torch.nn.functional.pad(near, (1, 1))
        wanted = close[1:] | close[:-1]
        if exact:
            wanted |= self._rank() < self.k
        else:
            wanted |= self._lower.float() != self._upper.float()
        self._make_exact(score, wanted)
        if bool(near.any()):
            self._sort()
        rank = self._rank()
        last = rank == self.k - 1
        self.threshold[self._query[last]] = torch.maximum(
            self.threshold[self._query[last]], self._lower[last]
        )
        self._drop(rank >= self.k)

    def _too_low(self) -> Tensor:
        """Which rows of a sorted pool are surely below the k-th of their query."""
        rank = self._rank()
        kth = torch.full((self.queries,), -torch.inf, dtype=torch.float64)
        last = rank == self.k - 1
        kth[self._query[last]] = self._lower[last]
        return self._upper < kth[self._query]

    def _sort(self) -> None:
        """Bring rows into the order of queries, scores downwards, and positions for equal ones."""
        self._take(ranking(self._query, self._middle(), self._row, self.queries))

    def take(self, held: Mapping[str, Tensor], queries: Tensor) -> None:
        """Take over some queries of the state of another pool."""
        number = torch.full((len(held["threshold"]),), -1)
        number[queries] = torch.arange(len(queries))
        query = number[held["query"]]
        kept = query >= 0
        self._join(query[kept], held["row"][kept], held["score"][kept], held["score"][kept])
        if self.excluded is not None:
            self.exclude(held["excluded"][queries])

    def replace(self, queries: Tensor, other: Pool) -> None:
        """Put what another settled pool found for some queries in the place of what is here."""
        replaced = torch.zeros(self.queries, dtype=torch.bool)
        replaced[queries] = True
        self._keep(~replaced[self._query])
        self._join(queries[other._query], other._row, other._upper, other._lower)
        self.threshold[queries] = other.threshold
        self.rescored[queries] += other.rescored
        if self.excluded is not None and other.excluded is not None:
            self.excluded[queries] = other.excluded
        self._sort()

    def _join(self, query: Tensor, row: Tensor, upper: Tensor, lower: Tensor) -> None:
        """Add rows whose score is known."""
        self._query, self._row = torch.cat([self._query, query]), torch.cat([self._row, row])
        self._upper = torch.cat([self._upper, upper])
        self._lower = torch.cat([self._lower, lower])
        self._known = torch.cat([self._known, torch.ones_like(query, dtype=torch.bool)])

    def state(self) -> dict[str, Tensor]:
        """What a pool holds that was settled, by name; it does not change with the pool."""
        held = {"query": self._query, "row": self._row, "score": self._middle()}
        held |= {"threshold": self.threshold.clone(), "rescored": self.rescored.clone()}
        return held if self.excluded is None else {**held, "excluded": self.excluded.clone()}

    def restore(self, held: Mapping[str, Tensor], queries: Tensor) -> None:
        """Take back some queries of what `state` gave, thresholds and counts too."""
        self.take(held, queries)
        self.threshold, self.rescored = held["threshold"][queries], held["rescored"][queries]

    def _gather(self) -> None:
        new, self._new, self.pending = self._new, [], 0
        self._query = torch.cat([self._query, *(part[0] for part in new)])
        self._row = torch.cat([self._row, *(part[1] for part in new)])
        self._upper = torch.cat([self._upper, *(part[2] for part in new)])
        self._lower = torch.cat([self._lower, *(part[3] for part in new)])
        unknown = torch.zeros(len(self._query) - len(self._known), dtype=torch.bool)
        self._known = torch.cat([self._known, unknown])

    def _drop(self, dropped: Tensor) -> None:
        if self.excluded is not None:
            self.excluded.scatter_reduce_(0, self._query[dropped], self._upper[dropped], "amax")
        self._keep(~dropped)

    def _keep(self, kept: Tensor) -> None:
        self._take(places(kept))

    def _take(self, place: Tensor) -> None:
        self._query, self._row = self._query[place], self._row[place]
        self._upper, self._lower = self._upper[place], self._lower[place]
        self._known = self._known[place]


def places(mask: Tensor) -> Tensor:
    """Where a mask (p,) is True; numpy's search takes a third of the time of torch's."""
    return torch.from_numpy(np.flatnonzero(mask.numpy()))


def kth_largest(group: Tensor, value: Tensor, k: int, groups: int) -> Tensor:
    """The k-th largest value of each group (groups,), -inf where a group has fewer.

    In float32, rounded down: group and value together are one 64-bit key, which numpy sorts four
    times as fast as torch sorts pairs.
    """
    found = torch.full((groups,), -torch.inf, dtype=torch.float64)
    if value.numel() == 0:
        return found
    single = torch.nextafter(value.float(), torch.tensor(-torch.inf))
    bits = single.numpy().view(np.int32).astype(np.int64)
    # Floats in the order of whole numbers: those of negative numbers run backwards.
    bits = np.where(bits < 0, -(bits & 0x7FFFFFFF), bits) + (1 << 31)
    keys = (group.numpy() << 32) | bits
    keys.sort()
    ends = np.searchsorted(keys, (np.arange(groups, dtype=np.int64) + 1) << 32)
    counts = ends.copy()
    counts[1:] -= ends[:-1]
    enough = np.flatnonzero(counts >= k)
    chosen = (keys[ends[enough] - k] & 0xFFFFFFFF) - (1 << 31)
    chosen = np.where(chosen < 0, -chosen | np.int64(0x80000000), chosen)
    values = chosen.astype(np.uint32).view(np.float32).astype(np.float64)
    found[torch.from_numpy(enough)] = torch.from_numpy(values)
    return found


def ranking(group: Tensor, value: Tensor, row: Tensor, groups: int) -> Tensor:
    """The order (p,) of groups, in each of values downwards, and of rows where these are equal.

    numpy sorts 16-bit numbers by their digits, and the rows of a table with vector instructions;
    three keys for each number take ten times as long.
    """
    numbers, values = group.numpy(), value.numpy()
    held = np.bincount(numbers, minlength=groups)
    width = int(held.max(initial=0))
    if width * groups > 4 * len(numbers) + WIDEST_TABLE:
        return torch.from_numpy(np.lexsort((row.numpy(), -values, numbers)))
    order = np.argsort(numbers.astype(np.uint16), kind="stable")
    table = np.full((groups, width), np.inf)
    valid = np.arange(width) < held[:, None]
    table[valid] = -values[order]
    by_value = np.argsort(table, axis=1) + (held.cumsum() - held)[:, None]
    order = order[by_value[valid]]
    ordered = values[order]
    numbers = numbers[order]
    equal = np.pad((ordered[1:] == ordered[:-1]) & (numbers[1:] == numbers[:-1]), 1)
    tied = np.flatnonzero(equal[1:] | equal[:-1])
    if len(tied):
        run = np.cumsum(~equal[tied])  # whether it equals the one before
        order[tied] = order[tied][np.lexsort((row.numpy()[order[tied]], run))]
    return torch.from_numpy(order)
