"""Candidates of a batch of queries, and the thresholds that they prove."""

from __future__ import annotations

from collections.abc import Mapping
from typing import Protocol

import numpy as np
import torch
from numpy.typing import NDArray
from torch import Tensor

from cossim_fast._numpy import stable_order
from cossim_fast.retrieval.nearest.candidates import Candidates, kth_largest, ranking


class Score(Protocol):
    """Scores candidates: query numbers and row positions (p,) to float64 (p,)."""

    error: float  # of a near score
    likely: float  # the share of a screen's error bound that the error seldom exceeds

    def near(self, query: Tensor, row: Tensor) -> Tensor:
        """Scores within `error` of the exact ones."""

    def exact(self, query: Tensor, row: Tensor) -> Tensor:
        """The exact scores."""


# The initial threshold of a query: every row reaches it, except those masked by -inf.
NO_THRESHOLD = -2.0


class Pool:
    """Rows that may be among the k best of their query, each with bounds on its score.

    A row whose upper bound misses `threshold` (q,) is dropped. Thresholds are of two kinds:

    - proven: at least k rows of the pool have a lower bound that reaches it;
    - guessed: so many of the rows seen so far reach it that k of all rows very probably will. Final
      scores prove or refute a guess (`refuted`).

    Args:
        queries: how many.
        k: how many rows each is to get.
        guess: whether thresholds may be guessed.
        certify: also keep the largest upper bound of all dropped rows.
    """

    def __init__(self, queries: int, k: int, *, guess: bool = True, certify: bool = False) -> None:
        self.queries, self.k = queries, k
        self._guess = guess
        self.threshold = torch.full((queries,), NO_THRESHOLD, dtype=torch.float64, device="cpu")
        self._guessed = torch.full_like(self.threshold, NO_THRESHOLD)
        self.dropped_bound = torch.full_like(self.threshold, -torch.inf) if certify else None
        self.rescored = torch.zeros(queries, dtype=torch.int64, device="cpu")
        self._held = Candidates.none()  # once finalized, query by query
        self._new: list[Candidates] = []
        self.pending = 0  # rows added since thresholds were last raised

    def __len__(self) -> int:
        return len(self._held.query) + self.pending

    def add(
        self,
        query: NDArray[np.int64],
        row: NDArray[np.int64],
        upper: NDArray[np.float64],
        lower: NDArray[np.float64],
    ) -> None:
        """Add rows by query number, position and bounds, each of shape (p,)."""
        self._new.append(Candidates(query, row, upper, lower, np.zeros(len(query), bool)))
        self.pending += len(query)

    def add_scored(
        self, query: NDArray[np.int64], row: NDArray[np.int64], score: NDArray[np.float64],
        error: float,
    ) -> None:  # fmt: skip
        """Add rows with scores (p,) that are within the error of the exact ones."""
        known = np.ones(len(query), bool)
        self._new.append(Candidates(query, row, score + error, score - error, known))
        self.pending += len(query)
        self.rescored += torch.from_numpy(np.bincount(query, minlength=self.queries))

    def close(self, queries: Tensor) -> None:
        """Let no more rows pass for the queries of a mask (q,)."""
        self.threshold.masked_fill_(queries, torch.inf)

    def raise_to(self, threshold: Tensor, rank: int) -> None:
        """Raise thresholds to these (q,), which are guessed if ``rank`` < k, and else proven."""
        torch.maximum(self.threshold, threshold, out=self.threshold)
        if rank < self.k:
            torch.maximum(self._guessed, threshold, out=self._guessed)

    def rank(self, seen: int, total: int) -> int:
        """The rank among ``seen`` rows whose score the k-th best of ``total`` rows should reach.

        k itself if the threshold must be proven. Otherwise k seen / total of the k best rows are
        expected among those seen, as a Poisson variable. Four standard deviations and four rows
        more leave about one guess in a million wrong.
        """
        if not self._guess or seen >= total:
            return self.k
        expected = self.k * seen / total
        return min(int(expected + 4 * expected**0.5 + 4), self.k)

    def note_dropped(self, upper: Tensor) -> None:
        """Record upper bounds (q,) of rows that were never added."""
        if self.dropped_bound is not None:
            torch.maximum(self.dropped_bound, upper, out=self.dropped_bound)

    def discard_from(self, first: int) -> None:
        """Remove every row from position ``first`` on; thresholds stay."""
        self._gather()
        self._held = self._held.kept(self._held.row < first)

    def raise_thresholds(self, seen: int, total: int) -> None:
        """Raise thresholds to what rows of the pool reach, and drop the rows that miss them."""
        self._gather()
        self._raise_to_kth(self.rank(seen, total))
        self._drop_below()

    def finalize(self, score: Score, *, exact: bool) -> None:
        """Score every row that could be among the k best, and keep the k best of each query.

        Args:
            score: can score every row that was added since the pool was last finalized exactly.
            exact: keep exact scores. Otherwise scores may be near ones, which are certain to be
                ordered, and rounded to float32, as the exact ones are.
        """
        self._gather()
        if not self._held.known.all():
            self._find_known(score)
        self._cut(score, exact=exact)

    def _find_known(self, score: Score) -> None:
        """Score every row that could be among the k best, and drop the others."""
        self._drop_below()
        held = self._held
        likely = kth_largest(held.query, held.below(score.likely), self.k, self.threshold.numpy())
        least = likely.take(held.query)
        self._score(score, held.upper >= least)
        reached = held.query.compress(held.known & (held.lower >= least))
        proven = np.bincount(reached, minlength=self.queries) >= self.k
        self.raise_to(torch.from_numpy(np.where(proven, likely, -np.inf)), self.k)
        self._drop_below()
        if not self._held.known.all():
            # For some query the errors exceeded the likely share of the bound.
            self._raise_to_kth(self.k)
            self._drop_below()
            self._score(score, ~self._held.known)

    def _raise_to_kth(self, rank: int) -> None:
        """Raise thresholds to the rank-th best row that is held for each query."""
        held = self._held
        value = held.lower if rank == self.k else held.middle()
        kth = kth_largest(held.query, value, rank, self.threshold.numpy())
        self.raise_to(torch.from_numpy(kth), rank)

    def _drop_below(self) -> None:
        """Drop the rows that miss the thresholds."""
        self._drop(self._held.upper < self.threshold.numpy().take(self._held.query))

    def refuted(self) -> Tensor:
        """The numbers of the queries whose k-th score misses a threshold that was guessed."""
        count = self._counts()
        guessed, lower = self._guessed.numpy(), self._held.lower
        wrong = (count < self.k) & (guessed > NO_THRESHOLD)
        kth = lower[(count.cumsum() - 1).clip(0)] if len(lower) else guessed
        wrong |= (count == self.k) & (kth < guessed)
        return torch.from_numpy(np.flatnonzero(wrong & np.isfinite(self.threshold.numpy())))

    def best(self, scores: NDArray[np.float64], rows: NDArray[np.int64]) -> None:
        """Write the k best of a finalized pool to scores and positions (q, k).

        Best first, ties by position. Entries beyond the last row of a query are not written.
        """
        there = np.arange(self.k) < self._counts()[:, None]
        if there.all():
            np.copyto(scores, self._held.middle().reshape(scores.shape))
            np.copyto(rows, self._held.row.reshape(rows.shape))
        else:
            scores[there], rows[there] = self._held.middle(), self._held.row

    def _counts(self) -> NDArray[np.int64]:
        return np.bincount(self._held.query, minlength=self.queries)

    def _rank(self) -> NDArray[np.int64]:
        """The rank of each row within its query; rows are sorted by query."""
        count, query = self._counts(), self._held.query
        return np.arange(len(query)) - (count.cumsum() - count)[query]

    def _score(self, score: Score, chosen: NDArray[np.bool_]) -> None:
        """Score the rows of a mask whose scores are not known yet."""
        held = self._held
        place = np.flatnonzero(chosen & ~held.known)
        query = held.query.take(place)
        near = score.near(torch.from_numpy(query), torch.from_numpy(held.row.take(place))).numpy()
        held.upper[place], held.lower[place] = near + score.error, near - score.error
        held.known[place] = True
        self.rescored += torch.from_numpy(np.bincount(query, minlength=self.queries))

    def _make_exact(self, score: Score, chosen: NDArray[np.bool_]) -> None:
        """Replace the near scores of a mask by exact ones."""
        held = self._held
        place = np.flatnonzero(chosen & (held.upper > held.lower))
        if len(place):
            pairs = (torch.from_numpy(column.take(place)) for column in (held.query, held.row))
            held.upper[place] = held.lower[place] = score.exact(*pairs).numpy()

    def _cut(self, score: Score, *, exact: bool) -> None:
        """Keep the k best of each query, in order; near or exact scores of all rows are known."""
        self._sort(best=True)
        held = self._held
        # Near scores that may be in the wrong order, or round to another float32.
        same = held.query[1:] == held.query[:-1]
        near = same & (held.lower[:-1] <= held.upper[1:])
        close = np.zeros(len(held.query) + 1, bool)
        close[1:-1] = near
        wanted = close[1:] | close[:-1]
        if exact:
            wanted |= self._rank() < self.k
        else:
            wanted |= held.lower.astype(np.float32) != held.upper.astype(np.float32)
        self._make_exact(score, wanted)
        if near.any() and not self._is_sorted():
            self._sort()
        rank, threshold = self._rank(), self.threshold.numpy()
        last = np.flatnonzero(rank == self.k - 1)
        query = self._held.query[last]
        threshold[query] = np.maximum(threshold[query], self._held.lower[last])
        self._drop(rank >= self.k)

    def _is_sorted(self) -> bool:
        """Whether rows are in the order of `_sort`."""
        held, value = self._held, self._held.middle()
        falls = (value[1:] < value[:-1]) | (held.query[1:] > held.query[:-1])
        ties = (value[1:] == value[:-1]) & (held.row[1:] > held.row[:-1])
        return bool((falls | ties).all())

    def _sort(self, *, best: bool = False) -> None:
        """Sort rows by query, then by descending score, then by position.

        Args:
            best: drop rows that are certainly below the k-th of their query. All scores are known.
        """
        held, order = self._held, None
        query, value, row = held.query, held.middle(), held.row
        if (query[1:] < query[:-1]).any():
            order = stable_order(query)
            query, value, row = query.take(order), value.take(order), row.take(order)
        ranked = ranking(query, value, row, self.queries)
        # `ranked` leaves queries in place, so that each column is taken only once.
        if best and len(ranked):
            ranked = ranked[self._may_be_best(query, value.take(ranked))]
        self._held = held.taken(ranked if order is None else order.take(ranked))

    def _may_be_best(
        self, query: NDArray[np.int64], value: NDArray[np.float64]
    ) -> NDArray[np.int64]:
        """The places of sorted rows (p,) that are not certainly below the k-th of their query."""
        held = self._held
        error = float((held.upper - held.lower).max())
        count = np.bincount(query, minlength=self.queries)
        first = count.cumsum() - count
        enough = np.flatnonzero(count >= self.k)
        # Exact scores of the k best middles are at most half an error below the last of these.
        least = np.full(self.queries, -np.inf)
        least[enough] = value.take(first.take(enough) + self.k - 1) - 1.0625 * error
        low = value < least.take(query)
        if self.dropped_bound is not None and low.any():
            upper = value[low] + error / 2
            self.dropped_bound.scatter_reduce_(
                0, torch.from_numpy(query[low]), torch.from_numpy(upper), "amax"
            )
        return np.flatnonzero(~low)

    def take(self, state: Mapping[str, Tensor], queries: Tensor) -> None:
        """Add the rows of some queries from the state of another pool."""
        number = np.full(len(state["threshold"]), -1, np.int64)
        number[queries.numpy()] = np.arange(len(queries), dtype=np.int64)
        query = number[state["query"].numpy()]
        there = query >= 0
        row, score = (state[name].numpy()[there] for name in ("row", "score"))
        self._add_known(Candidates(query[there], row, score, score, np.ones(len(row), bool)))
        if self.dropped_bound is not None:
            self.note_dropped(state["dropped_bound"][queries])

    def replace(self, queries: Tensor, other: Pool) -> None:
        """Replace the rows of some queries by those of another finalized pool."""
        replaced = np.zeros(self.queries, bool)
        replaced[queries.numpy()] = True
        self._held = self._held.kept(~replaced[self._held.query])
        self._add_known(other._held._replace(query=queries.numpy()[other._held.query]))
        self.threshold[queries] = other.threshold
        self.rescored[queries] += other.rescored
        if self.dropped_bound is not None and other.dropped_bound is not None:
            self.dropped_bound[queries] = other.dropped_bound
        self._sort()

    def _add_known(self, found: Candidates) -> None:
        """Add rows of other queries, whose scores are known."""
        held = Candidates.concatenate([self._held, found])
        self._held = held.taken(stable_order(held.query))

    def state(self) -> dict[str, Tensor]:
        """The contents of a finalized pool, by name, as copies."""
        query, row, *_ = (torch.from_numpy(column.copy()) for column in self._held)
        held = {"query": query, "row": row, "score": torch.from_numpy(self._held.middle())}
        held |= {"threshold": self.threshold.clone(), "rescored": self.rescored.clone()}
        return (
            held
            if self.dropped_bound is None
            else {**held, "dropped_bound": self.dropped_bound.clone()}
        )

    def restore(self, state: Mapping[str, Tensor], queries: Tensor) -> None:
        """Restore some queries from what `state` returned, with thresholds and counts."""
        self.take(state, queries)
        self.threshold, self.rescored = state["threshold"][queries], state["rescored"][queries]

    def _gather(self) -> None:
        new, self._new, self.pending = self._new, [], 0
        if new:
            self._held = Candidates.concatenate([self._held, *new])

    def _drop(self, dropped: NDArray[np.bool_]) -> None:
        if not dropped.any():
            return
        if self.dropped_bound is not None:
            query, upper = (column[dropped] for column in (self._held.query, self._held.upper))
            self.dropped_bound.scatter_reduce_(
                0, torch.from_numpy(query), torch.from_numpy(upper), "amax"
            )
        self._held = self._held.kept(~dropped)
