"""Rows that the caller excludes from a search, by ids."""

from __future__ import annotations

from collections.abc import Callable, Sequence
from typing import Any

import torch
from torch import Tensor

from cossim_fast.retrieval.joins.sweep import Found
from cossim_fast.retrieval.nearest.batches import Forbidden
from cossim_fast.retrieval.results import Oracle
from cossim_fast.retrieval.storage.ids import Ids, named_rows
from cossim_fast.retrieval.storage.parts import Part, eligible, without


class Banned:
    """The rows that one search may not return, for all queries or for each.

    Args:
        ids: of the index.
        parts: what is searched.
        exclude: as `CosineIndex.search` takes it.
        queries: how many.
    """

    def __init__(self, ids: Ids, parts: Sequence[Part], exclude: Any, queries: int) -> None:
        self._rows = sum(len(part) for part in parts)
        self._query: Tensor | None = None
        self._position = torch.empty(0, dtype=torch.int64, device="cpu")
        if exclude is None:
            return
        query, names = named_rows("exclude", exclude, queries)
        position = ids.positions(parts, names)
        there = position >= 0
        if query is not None:
            order = position[there].argsort(stable=True)
            self._query = query[there][order]
            self._position = position[there][order]
        else:
            self._position = position[there]

    def segments(self, segments: list[Any]) -> list[Any]:
        """Segments, with rows banned that may be returned to no query."""
        if self._query is not None or not len(self._position):
            return segments
        return [
            without(s, row[(row >= 0) & (row < len(s))])
            for s, row in ((s, self._position - s.first) for s in segments)
        ]

    def pairs(self) -> Forbidden | None:
        """What may not be returned to some of the queries."""
        return None if self._query is None else (self._query, self._position)

    def pairs_among(self, queries: Tensor, rows: Tensor | None = None) -> Forbidden | None:
        """The same of some queries, as numbers within these.

        Args:
            queries: ascending numbers.
            rows: ascending positions, which are then numbered too; None for all as they are.
        """
        if self._query is None:
            return None
        query, here = _numbered(queries, self._query)
        position = self._position
        if rows is not None:
            position, among = _numbered(rows, position)
            here &= among
        return query[here], position[here]

    def left(self, found: Found) -> Found:
        """Pairs without the banned ones."""
        if self._query is None:
            return found
        hit = torch.isin(found.query * self._rows + found.position, self._keys())
        return Found(*(column[~hit] for column in found))

    def _keys(self) -> Tensor:
        """One number for each banned pair."""
        assert self._query is not None
        return self._query * self._rows + self._position

    def oracle(
        self,
        asked: Tensor,
        segments: Sequence[Any],
        matrix: Callable[[Tensor, Any, Tensor, Tensor], Tensor],
    ) -> Oracle:
        """The scores of all pairs of some queries and some rows; NaN where the pair is banned.

        Args:
            asked: all queries (q, d).
            segments: that the rows are in.
            matrix: scores queries and rows of a segment, by their numbers.
        """
        keys = None if self._query is None else self._keys()

        def scores(query: Tensor, position: Tensor) -> Tensor:
            found = torch.full(
                (len(query), len(position)), torch.nan, dtype=torch.float64, device="cpu"
            )
            for segment in segments:
                row = position - segment.first
                here = (row >= 0) & (row < len(segment))
                here[here.clone()] = eligible(segment, row[here])
                segment.touch(row[here])
                found[:, here] = matrix(asked, segment, query, row[here])
            if keys is not None:
                hit = torch.isin(query[:, None] * self._rows + position, keys)
                found.masked_fill_(hit, torch.nan)
            return found

        return scores


def of_queries(forbidden: Forbidden | None, some: slice) -> Forbidden | None:
    """What may not be returned to consecutive queries, numbered from the first of them on."""
    if forbidden is None:
        return None
    query, position = forbidden
    here = (query >= some.start) & (query < some.stop)
    return query[here] - some.start, position[here]


def _numbered(among: Tensor, values: Tensor) -> tuple[Tensor, Tensor]:
    """Where values are in an ascending list, and whether they are in it."""
    if not len(among):
        return torch.zeros_like(values), torch.zeros_like(values, dtype=torch.bool)
    at = torch.searchsorted(among, values).clamp_max(len(among) - 1)
    return at, among[at] == values
