"""Rounds of a join: as many queries at a time as there is room for what they find."""

from __future__ import annotations

from collections.abc import Callable, Iterable, Iterator

import numpy as np
import torch
from torch import Tensor

from cossim_fast.retrieval import tuning
from cossim_fast.retrieval.codes import Segment
from cossim_fast.retrieval.sweep import Batch, Found, Sweep


class TooManyError(Exception):
    """More pairs than were asked for; the scores of this round say how many there may be."""

    def __init__(self, scores: Tensor) -> None:
        super().__init__()
        self.scores = scores


class Rounds:
    """Every pair of queries and rows that reaches a threshold, query by query.

    Args:
        order: (n,) int64 numbers of the queries, in the order in which they are wanted.
        queries: gives the rows (q, d) of some numbers (q,), as stored.
        segments: gives the segments that hold the rows from a position on, in order.
        sweep: what looks at them.
        done: how many queries of the order to leave out.
        most: raise TooManyError as soon as more pairs than that are found.
        skip: says of some numbers (q,) which need not be looked at, (q,) bool; asked as late as can
            be.

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
        self._longest = max(
            min(tuning.LONGEST_ROUND, tuning.ROUND_NUMBERS // sweep.centre.numel()), 1
        )

    def __iter__(self) -> Iterator[Found]:
        """Yield what the queries of a round found, once each round is done."""
        size = min(tuning.FIRST_ROUND, self._longest)
        while self.done < self._order.numel():
            places = torch.arange(self.done, min(self.done + size, self._order.numel()))
            stop = self.done + places.numel()
            if self._skip is not None:
                places = places[~self._skip(self._order[places])]
            batches = self._round(self._order[places])
            finished = sum(len(batch) for batch, _ in batches)
            if finished < places.numel():
                stop = int(places[finished])
            found = Found.join([in_order(*batch) for batch in batches], self._sweep.dtype)
            # As many as there promises to be room for, but not many more at once.
            count, size = found.scores.numel(), stop - self.done
            size = max(
                min(2 * size, size * tuning.ROUND_PAIRS * 7 // (8 * max(count, 1)), self._longest),
                1,
            )
            self._found += count
            self.done = stop
            yield found

    def _round(self, numbers: Tensor) -> list[tuple[Batch, list[Found]]]:
        """What the first queries found: as many as there is room for, at least one."""
        sweep = self._sweep
        made = [
            (Batch(some, self._queries(some), sweep.screens, sweep.centre), list[Found]())
            for some in numbers.split(tuning.ROUND_BATCH)
            if some.numel()
        ]
        start = int(numbers.min()) + 1 if sweep.later and numbers.numel() else 0
        for segment in self._segments(start) if made else ():
            at = 0
            while at < len(made):
                batch, parts = made[at]
                asked, room = len(batch), tuning.ROUND_PAIRS - _held(made[:at])
                if at and room < tuning.ROUND_PAIRS // 8:
                    del made[at:]
                    break
                part = sweep.through(batch, segment, room, _held(made[at : at + 1]))
                if len(batch) < asked:
                    # The last ones come again in the next round.
                    parts[:] = [before.of_first(len(batch)) for before in parts]
                    del made[at + 1 :]
                parts.append(part)
                while len(made) > at + 1 and _held(made) > tuning.ROUND_PAIRS:
                    del made[-1]
                self._count(made)
                at += 1
        return made

    def _count(self, made: list[tuple[Batch, list[Found]]]) -> None:
        if self._most is not None and self._found + _held(made) > self._most:
            scores = [part.scores for _, parts in made for part in parts]
            raise TooManyError(torch.cat(scores))


def _held(made: list[tuple[Batch, list[Found]]]) -> int:
    return sum(part.scores.numel() for _, parts in made for part in parts)


def in_order(batch: Batch, parts: list[Found]) -> Found:
    """What a batch found, query by query, positions in the order in which they came."""
    found = Found.join(parts, torch.float32 if not parts else parts[0].scores.dtype)
    if not found.in_order():
        # numpy sorts 16-bit numbers by their digits.
        keys = found.query.numpy().astype(np.uint16)
        order = torch.from_numpy(np.argsort(keys, kind="stable"))
        found = Found(*(column[order] for column in found))
    stops = torch.searchsorted(found.query, torch.arange(len(batch) + 1))
    return found._replace(query=torch.repeat_interleave(batch.numbers, stops.diff()))
