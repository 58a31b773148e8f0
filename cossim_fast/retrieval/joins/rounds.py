"""Rounds of a join: as many queries at a time as there is room for their pairs.

The batches of a round share the room equally. Each goes through a segment on one thread, from its
first product to its last score. A batch that finds more than its share is repeated after the
others, when it is known how much room they left.
"""

from __future__ import annotations

import threading
from collections.abc import Callable, Iterable, Iterator
from functools import partial

import numpy as np
import torch
from torch import Tensor

from cossim_fast import _threads
from cossim_fast.retrieval import tuning
from cossim_fast.retrieval.joins.budget import Budget
from cossim_fast.retrieval.joins.sweep import Batch, Found, Sweep
from cossim_fast.retrieval.screening import costs
from cossim_fast.retrieval.screening.codes import Segment


class TooManyError(Exception):
    """There are more pairs than allowed; the scores of this round help to estimate how many."""

    def __init__(self, scores: Tensor) -> None:
        super().__init__()
        self.scores = scores


class Rounds:
    """Every pair of queries and rows that reaches a threshold, query by query.

    Args:
        order: (n,) int64 numbers of the queries, in the order of the results.
        queries: returns the rows (q, d) with some numbers (q,), as stored.
        segments: returns the segments that hold the rows from a position on, in order.
        sweep: finds the pairs of a batch with a segment.
        done: how many queries of the order are finished already.
        most: raise TooManyError as soon as more pairs are found.
        skip: of some numbers (q,), returns which to leave out, (q,) bool; called just before they
            would be searched.

    Attributes:
        done: how many queries of the order are finished.
    """

    def __init__(
        self,
        order: Tensor,
        queries: Callable[[Tensor], Tensor],
        segments: Callable[[int], Iterable[Segment]],
        sweep: Sweep,
        *,
        done: int = 0,
        most: int | None = None,
        skip: Callable[[Tensor], Tensor] | None = None,
    ) -> None:
        self._order, self._queries, self._segments = order, queries, segments
        self._sweep, self._most, self._skip = sweep, most, skip
        self.done, self._found = done, 0
        self._threads = min(_threads.usable_threads(), _threads.MOST_THREADS)
        self._longest = max(
            min(tuning.LONGEST_ROUND, tuning.ROUND_NUMBERS // sweep.centre.numel()), 1
        )

    def __iter__(self) -> Iterator[Found]:
        """Yield the pairs of each round."""
        size = min(tuning.FIRST_ROUND, self._longest)
        while self.done < self._order.numel():
            places = torch.arange(
                self.done, min(self.done + size, self._order.numel()), device="cpu"
            )
            stop = self.done + places.numel()
            if self._skip is not None:
                places = places[~self._skip(self._order[places])]
            parts = self._round(self._order[places])
            finished = sum(len(part.batch) for part in parts)
            if finished < places.numel():
                stop = int(places[finished])
            ordered = [partial(in_order, part.batch, part.found) for part in parts]
            found = Found.concatenate(
                _threads.run_independent(self._threads, ordered), self._sweep.dtype
            )
            # As many queries as are predicted to fit, but not more than twice as many as before.
            count, size = found.scores.numel(), stop - self.done
            size = min(2 * size, Budget(tuning.ROUND_PAIRS).fitting(size, count), self._longest)
            size = max(size, 1)
            self._found += count
            self.done = stop
            yield found

    def _round(self, numbers: Tensor) -> list[_Part]:
        """The pairs of the first queries: of as many as there is room for, at least one."""
        sweep = self._sweep
        if not numbers.numel():
            return []
        made = [_Part(some, self._batch) for some in numbers.split(self._size(numbers.numel()))]
        for segment in self._segments(int(numbers.min()) + 1 if sweep.later else 0):
            ahead = self._ahead(made, segment)
            at = 0
            while at < len(made):
                part, found = made[at], ahead[at]
                asked, room = len(part.batch), tuning.ROUND_PAIRS - _held(made[:at])
                if found is None:
                    if at and room < tuning.ROUND_PAIRS // 8:
                        del made[at:]
                        break
                    found, kept = sweep.through(part.batch, segment, Budget(room), part.held)
                    if kept < asked:
                        # The other queries are in the next round.
                        part.keep(kept)
                        del made[at + 1 :]
                part.found.append(found)
                while len(made) > at + 1 and _held(made) > tuning.ROUND_PAIRS:
                    del made[-1]
                self._count([one for part in made for one in part.found])
                at += 1
        return made

    def _batch(self, numbers: Tensor) -> Batch:
        return Batch(numbers, self._queries(numbers), self._sweep.screens, self._sweep.centre)

    def _size(self, queries: int) -> int:
        """The size of a batch, so that each thread gets as many batches as the others."""
        most, threads = tuning.ROUND_BATCH, self._threads
        if threads == 1:
            return most
        batches = max(-(-queries // (most * threads)), tuning.ROUND_SHARE) * threads
        return min(max(-(-queries // batches), tuning.ROUND_BATCH_LEAST), most)

    def _ahead(self, made: list[_Part], segment: Segment) -> list[Found | None]:
        """The pairs of each part with a segment, in parallel; None where they exceed its share."""
        if self._threads == 1 or len(made) == 1:
            return [None] * len(made)
        costs.find_out()
        room = (tuning.ROUND_PAIRS - _held(made)) // len(made)
        known = [one for part in made for one in part.found]
        lock = threading.Lock()

        def through(part: _Part, sweep: Sweep) -> Found | None:
            found = sweep.if_it_fits(part.batch, segment, Budget(part.held + room), part.held)
            if found is not None:
                with lock:
                    self._sweep.note(sweep)
                    known.append(found)
                    self._count(known)
            return found

        sweeps = [self._sweep.for_thread() for _ in made]
        parts = [partial(through, *each) for each in zip(made, sweeps, strict=True)]
        ahead = _threads.run_independent(self._threads, parts)
        self._sweep.begin_as(sweeps[-1])
        return ahead

    def _count(self, found: list[Found]) -> None:
        if self._most is None:
            return
        scores = [part.scores for part in found]
        if self._found + sum(map(len, scores)) > self._most:
            raise TooManyError(torch.cat(scores))


class _Part:
    """A batch of a round, and its pairs with each segment.

    The batch is prepared by the thread that first uses it.
    """

    def __init__(self, numbers: Tensor, make: Callable[[Tensor], Batch]) -> None:
        self._numbers, self._make = numbers, make
        self._batch: Batch | None = None
        self.found: list[Found] = []

    @property
    def batch(self) -> Batch:
        if self._batch is None:
            self._batch = self._make(self._numbers)
        return self._batch

    def keep(self, queries: int) -> None:
        """Keep only the first queries."""
        self._batch = self.batch.first(queries)
        self.found[:] = [found.of_first(queries) for found in self.found]

    @property
    def held(self) -> int:
        return sum(one.scores.numel() for one in self.found)


def _held(made: list[_Part]) -> int:
    return sum(part.held for part in made)


def in_order(batch: Batch, parts: list[Found]) -> Found:
    """The pairs of a batch, query by query, with positions in the order of the parts."""
    found = Found.concatenate(parts, torch.float32 if not parts else parts[0].scores.dtype)
    if not found.in_order():
        # numpy has a radix sort for 16-bit numbers.
        keys = found.query.numpy().astype(np.uint16)
        order = torch.from_numpy(np.argsort(keys, kind="stable"))
        found = Found(*(column[order] for column in found))
    stops = torch.searchsorted(found.query, torch.arange(len(batch) + 1, device="cpu"))
    return found._replace(query=torch.repeat_interleave(batch.numbers, stops.diff()))
