"""Rows that a search may return, and searches of these alone: ``where`` of `CosineIndex.search`.

Queries that may find the same rows are searched together, in one of three ways:

- few pairs are scored one by one, and nothing else is looked at;
- rows that are a small share of all are gathered, coded and searched by themselves;
- else all rows are searched, and the others masked.
"""

from __future__ import annotations

from collections.abc import Callable, Iterator, Sequence
from dataclasses import dataclass, replace
from typing import Any

import numpy as np
import torch
from torch import Tensor

from cossim_fast import _checks
from cossim_fast._score.exact import widen
from cossim_fast.retrieval import tuning
from cossim_fast.retrieval.exclusion import Banned, named_rows
from cossim_fast.retrieval.joins.sweep import Found
from cossim_fast.retrieval.nearest.batches import Forbidden, Scorer
from cossim_fast.retrieval.results import Best, Oracle
from cossim_fast.retrieval.screening.codes import Segment, encode
from cossim_fast.retrieval.storage.snapshot import Snapshot

# Searches segments for the k best rows of some queries (g, d).
Ranked = Callable[[Tensor, int, Sequence[Segment], Forbidden | None], Best]
# Searches segments for all rows that reach a threshold.
Reaching = Callable[[Tensor, Sequence[Segment]], Found]


@dataclass(frozen=True)
class Selection:
    """Queries that may find the same rows."""

    queries: Tensor  # (g,) ascending numbers
    rows: Tensor  # (m,) ascending positions

    @property
    def pairs(self) -> int:
        """How many queries and rows may meet."""
        return len(self.queries) * len(self.rows)

    def is_small_share(self, total: int) -> bool:
        """Whether it takes less time to code the rows and search them than to search all."""
        g, m = len(self.queries), len(self.rows)
        return 2 * m < total and m * (tuning.CODED_AS_QUERIES + g) < total * g


class Selections:
    """What ``where`` says of the queries of one search.

    Args:
        where: as `CosineIndex.search` takes it, not None.
        state: what is searched.
        queries: how many.
    """

    def __init__(self, where: Any, state: Snapshot, queries: int) -> None:
        self._total, self._queries, self._centre = state.rows(), queries, state.centre
        self.each = list(_grouped(where, state, queries))

    def topk(
        self, asked: Tensor, k: int, segments: Sequence[Segment], banned: Banned, search: Ranked
    ) -> Best:
        """The k best rows (q, k) of every query among those that it may find."""
        best = Best(
            torch.full((self._queries, k), torch.nan, dtype=torch.float64, device="cpu"),
            torch.full((self._queries, k), -1, device="cpu"),
            torch.full((self._queries,), -torch.inf, dtype=torch.float64, device="cpu"),
            torch.zeros(self._queries, dtype=torch.int64, device="cpu"),
            self._total,
            0,
        )
        few, others = self._by_size()
        for some in few:
            _rank(_scored(some, asked, segments, banned), best)
        for one in others:
            if one.is_small_share(self._total):
                rows, segment = _gathered(one.rows, segments, self._centre)
                forbidden = banned.pairs_among(one.queries, rows)
                most = min(k, len(rows))
                if most:
                    _put(one, search(asked[one.queries], most, [segment], forbidden), best, rows)
            else:
                forbidden = banned.pairs_among(one.queries)
                masked = _masked(one.rows, segments)
                _put(one, search(asked[one.queries], k, masked, forbidden), best)
        return best

    def reaching(
        self,
        asked: Tensor,
        threshold: float,
        segments: Sequence[Segment],
        banned: Banned,
        search: Reaching,
    ) -> Found:
        """The pairs of every query and the rows that it may find that reach a threshold."""
        few, others = self._by_size()
        blocks = []
        for some in few:
            found = _scored(some, asked, segments, banned)
            blocks.append(Found(*(column[found.scores >= threshold] for column in found)))
        for one in others:
            if one.is_small_share(self._total):
                rows, segment = _gathered(one.rows, segments, self._centre)
                found = search(asked[one.queries], [segment])
                found = found._replace(position=rows[found.position])
            else:
                found = search(asked[one.queries], _masked(one.rows, segments))
            blocks.append(banned.left(found._replace(query=one.queries[found.query])))
        found = Found.concatenate(blocks, torch.float64)
        order = torch.from_numpy(np.lexsort((found.position.numpy(), found.query.numpy())))
        return Found(*(column[order] for column in found))

    def oracle(self, given: Oracle) -> Oracle:
        """Scores as given; NaN of what a query may not find."""
        rows = {int(query): one.rows for one in self.each for query in one.queries}

        def scores(query: Tensor, position: Tensor) -> Tensor:
            found = given(query, position)
            for row, number in zip(found, query.tolist(), strict=True):
                row.masked_fill_(~torch.isin(position, rows[number]), torch.nan)
            return found

        return scores

    def scored_queries(self) -> int:
        """How many queries have so few rows that each is scored."""
        return sum(len(one.queries) for some in self._by_size()[0] for one in some)

    def _by_size(self) -> tuple[list[list[Selection]], list[Selection]]:
        """Selections of few pairs, taken together up to a number of pairs, and all others."""
        few: list[list[Selection]] = []
        pairs = 0
        for one in self.each:
            if one.pairs > tuning.SCORED_PAIRS:
                continue
            pairs += one.pairs
            if not few or pairs > tuning.SCORED_PAIRS_AT_ONCE:
                few.append([])
                pairs = one.pairs
            few[-1].append(one)
        return few, [one for one in self.each if one.pairs > tuning.SCORED_PAIRS]


def _grouped(where: Any, state: Snapshot, queries: int) -> Iterator[Selection]:
    """Read ``where``, and put queries that may find the same rows together."""
    everybody = torch.arange(queries, device="cpu")
    mask = _mask_of(where)
    if mask is not None:
        live = torch.cat(
            [torch.empty(0, dtype=torch.int64, device="cpu")]
            + [part.live.nonzero()[:, 0] + part.segment.first for part in state.parts]
        )
        _checks.row_mask(mask, queries, len(live))
        if mask.ndim == 1:
            yield Selection(everybody, live[torch.from_numpy(mask)])
            return
        lists = [live[torch.from_numpy(row)] for row in mask]
    else:
        query, names = named_rows("where", where, queries)
        positions = state.ids.positions(state.parts, names)
        if query is None:
            yield Selection(everybody, torch.unique(positions[positions >= 0]))
            return
        counts = torch.bincount(query, minlength=queries).tolist()
        lists = [torch.unique(some[some >= 0]) for some in positions.split(counts)]
    same: dict[bytes, list[int]] = {}
    for number, rows in enumerate(lists):
        same.setdefault(rows.numpy().tobytes(), []).append(number)
    for numbers in same.values():
        yield Selection(torch.tensor(numbers, dtype=torch.int64, device="cpu"), lists[numbers[0]])


def _mask_of(where: Any) -> np.ndarray[Any, Any] | None:
    """What says yes or no of each row, as an array; None for ids."""
    if isinstance(where, (list, tuple)) and where:
        if all(isinstance(item, (bool, np.bool_)) for item in where):
            return np.array(where)
        masks: list[np.ndarray[Any, Any]] = []
        for item in where:
            mask = _mask_of(item)
            if mask is None or (masks and mask.shape != masks[0].shape):
                return None
            masks.append(mask)
        return np.stack(masks)
    if isinstance(where, Tensor) and where.dtype == torch.bool:
        where = _checks.as_tensor("where", where).cpu().numpy()
    return np.asarray(where) if getattr(where, "dtype", None) == np.bool_ else None


def _scored(
    selections: Sequence[Selection], asked: Tensor, segments: Sequence[Segment], banned: Banned
) -> Found:
    """Score all pairs of some selections that may be returned; in float64, sorted by query."""
    asking = torch.cat([one.queries for one in selections])
    number = torch.cat([one.queries.repeat_interleave(len(one.rows)) for one in selections])
    position = torch.cat([one.rows.repeat(len(one.queries)) for one in selections])
    kept = _eligible(position, segments)
    order = number[kept].argsort(stable=True)
    number, position = number[kept][order], position[kept][order]
    asking = asking.sort().values
    scorer = Scorer(widen(asked[asking]), segments)
    scores = scorer.exact(torch.searchsorted(asking, number), position)
    found = banned.left(Found(number, position, scores))
    return Found(*(column[~found.scores.isnan()] for column in found))


def _rank(found: Found, best: Best) -> None:
    """Put the k best of the pairs of some queries into a result; all others are dropped."""
    k, queries = best.positions.shape[1], len(best.rescored)
    query, position, score = (column.numpy() for column in found)
    order = np.lexsort((position, -score, query))
    query, position, score = query[order], position[order], score[order]
    count = np.bincount(query, minlength=queries)
    rank = np.arange(len(query)) - (np.cumsum(count) - count)[query]
    first, next_best = rank < k, rank == k
    best.positions.numpy()[query[first], rank[first]] = position[first]
    best.scores.numpy()[query[first], rank[first]] = score[first]
    best.rescored += torch.from_numpy(count)
    assert best.dropped_bound is not None
    best.dropped_bound.numpy()[query[next_best]] = score[next_best]


def _put(one: Selection, found: Best, best: Best, rows: Tensor | None = None) -> None:
    """Put what the queries of a selection found, at positions or numbers of rows, into a result."""
    position = found.positions
    if rows is not None:
        position = torch.where(position < 0, position, rows[position.clamp_min(0)])
    k = position.shape[1]
    best.positions[one.queries, :k] = position
    best.scores[one.queries, :k] = found.scores
    best.rescored[one.queries] = found.rescored
    if found.dropped_bound is not None and best.dropped_bound is not None:
        best.dropped_bound[one.queries] = found.dropped_bound


def _local(position: Tensor, segment: Segment) -> tuple[Tensor, Tensor]:
    """Numbers within a segment, and whether they are in it."""
    row = position - segment.first
    return row, (row >= 0) & (row < len(segment))


def _eligible(position: Tensor, segments: Sequence[Segment]) -> Tensor:
    """Whether rows may be returned at all (p,)."""
    found = torch.zeros(len(position), dtype=torch.bool, device="cpu")
    for segment in segments:
        row, here = _local(position, segment)
        found[here] = segment.eligible[row[here]]
    return found


def _masked(position: Tensor, segments: Sequence[Segment]) -> list[Segment]:
    """Segments of which no other rows may be returned."""
    masked = []
    for segment in segments:
        row, here = _local(position, segment)
        kept = torch.zeros_like(segment.eligible).index_fill_(0, row[here], True)
        masked.append(replace(segment, eligible=segment.eligible & kept))
    return masked


def _gathered(
    position: Tensor, segments: Sequence[Segment], centre: Tensor
) -> tuple[Tensor, Segment]:
    """Rows that may be returned as a segment of their own, and their positions."""
    position = position[_eligible(position, segments)]
    pieces = []
    for segment in segments:
        row, here = _local(position, segment)
        segment.touch(row[here])
        pieces.append(segment.rows[row[here]])
    coded = any(segment.codes is not None for segment in segments)
    return position, encode(torch.cat(pieces), centre, codes=coded)
