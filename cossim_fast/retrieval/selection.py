"""Rows that a search may return, and searches of these alone: ``where`` of `CosineIndex.search`.

Queries that may find the same rows are searched together, in one of three ways:

- few pairs are scored one by one, and nothing else is looked at;
- rows that are a small share of all are gathered, coded and searched by themselves;
- else all rows are searched, and the others masked.
"""

from __future__ import annotations

from collections.abc import Callable, Sequence
from dataclasses import replace
from typing import Any

import numpy as np
import torch
from torch import Tensor

from cossim_fast import _checks
from cossim_fast.retrieval.engine import Engine
from cossim_fast.retrieval.exclusion import Banned
from cossim_fast.retrieval.joins.sweep import Found
from cossim_fast.retrieval.nearest.allowed import (
    Selection,
    by_mask,
    by_rows,
    by_size,
    mask_of,
    nothing_found,
    oracle_among,
    pairs_of,
    put,
    rank,
)
from cossim_fast.retrieval.nearest.batches import Forbidden
from cossim_fast.retrieval.results import Best, Oracle
from cossim_fast.retrieval.storage.ids import named_rows
from cossim_fast.retrieval.storage.parts import eligible
from cossim_fast.retrieval.storage.snapshot import Snapshot

# Searches segments for the k best rows of some queries (g, d).
Ranked = Callable[[Tensor, int, Sequence[Any], Forbidden | None], Best]
# Searches segments for all rows that reach a threshold.
Reaching = Callable[[Tensor, Sequence[Any]], Found]


class Selections:
    """What ``where`` says of the queries of one search.

    Args:
        where: as `CosineIndex.search` takes it, not None.
        state: what is searched.
        queries: how many.
        engine: searches what is left.
    """

    def __init__(self, where: Any, state: Snapshot, queries: int, engine: Engine) -> None:
        self._total, self._queries, self._centre = state.rows(), queries, state.centre
        self._engine = engine
        self.each = _grouped(where, state, queries)

    def topk(
        self, asked: Tensor, k: int, segments: Sequence[Any], banned: Banned, search: Ranked
    ) -> Best:
        """The k best rows (q, k) of every query among those that it may find."""
        best = nothing_found(self._queries, k, self._total)
        few, others = by_size(self.each)
        for some in few:
            rank(*self._scored(some, asked, segments, banned), best)
        for one in others:
            if one.is_small_share(self._total):
                rows, segment = self._gathered(one.rows, segments)
                forbidden = banned.pairs_among(one.queries, rows)
                most = min(k, len(rows))
                if most:
                    put(one, search(asked[one.queries], most, [segment], forbidden), best, rows)
            else:
                forbidden = banned.pairs_among(one.queries)
                masked = _masked(one.rows, segments)
                put(one, search(asked[one.queries], k, masked, forbidden), best)
        return best

    def reaching(
        self,
        asked: Tensor,
        threshold: float,
        segments: Sequence[Any],
        banned: Banned,
        search: Reaching,
    ) -> Found:
        """The pairs of every query and the rows that it may find that reach a threshold."""
        few, others = by_size(self.each)
        blocks = []
        for some in few:
            found = self._scored(some, asked, segments, banned)
            blocks.append(Found(*(column[found.scores >= threshold] for column in found)))
        for one in others:
            if one.is_small_share(self._total):
                rows, segment = self._gathered(one.rows, segments)
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
        return oracle_among(self.each, given)

    def scored_queries(self) -> int:
        """How many queries have so few rows that each is scored."""
        return sum(len(one.queries) for some in by_size(self.each)[0] for one in some)

    def _scored(
        self, some: Sequence[Selection], asked: Tensor, segments: Sequence[Any], banned: Banned
    ) -> Found:
        """Score all pairs of some selections that may be returned; in float64, sorted by query."""
        number, position = pairs_of(some)
        kept = _eligible(position, segments)
        order = number[kept].argsort(stable=True)
        number, position = number[kept][order], position[kept][order]
        scores = self._engine.scores(asked, segments, number, position)
        found = banned.left(Found(number, position, scores))
        return Found(*(column[~found.scores.isnan()] for column in found))

    def _gathered(self, position: Tensor, segments: Sequence[Any]) -> tuple[Tensor, Any]:
        """Rows that may be returned as a segment of their own, and their positions."""
        position = position[_eligible(position, segments)]
        pieces = []
        for segment in segments:
            row, here = _local(position, segment)
            segment.touch(row[here])
            pieces.append(segment.rows[row[here].to(segment.rows.device)])
        return position, self._engine.segment(torch.cat(pieces), self._centre)


def _grouped(where: Any, state: Snapshot, queries: int) -> list[Selection]:
    """Read ``where``, and put queries that may find the same rows together."""
    mask = mask_of(where)
    if mask is not None:
        live = torch.cat(
            [torch.empty(0, dtype=torch.int64, device="cpu")]
            + [part.live.nonzero()[:, 0] + part.segment.first for part in state.parts]
        )
        _checks.row_mask(mask, queries, len(live), "in the order of index.ids")
        return by_mask(mask, queries, live)
    query, names = named_rows("where", where, queries)
    return by_rows(query, state.ids.positions(state.parts, names), queries)


def _local(position: Tensor, segment: Any) -> tuple[Tensor, Tensor]:
    """Numbers within a segment, and whether they are in it."""
    row = position - segment.first
    return row, (row >= 0) & (row < len(segment))


def _eligible(position: Tensor, segments: Sequence[Any]) -> Tensor:
    """Whether rows may be returned at all (p,)."""
    found = torch.zeros(len(position), dtype=torch.bool, device="cpu")
    for segment in segments:
        row, here = _local(position, segment)
        found[here] = eligible(segment, row[here])
    return found


def _masked(position: Tensor, segments: Sequence[Any]) -> list[Any]:
    """Segments of which no other rows may be returned."""
    masked = []
    for segment in segments:
        row, here = _local(position, segment)
        chosen = row[here].to(segment.eligible.device)
        kept = torch.zeros_like(segment.eligible).index_fill_(0, chosen, True)
        masked.append(replace(segment, eligible=segment.eligible & kept))
    return masked
