"""One search of an index: a snapshot, queries, and the rows that each of them may find."""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import replace
from functools import partial
from typing import Any

import numpy as np
import torch
from torch import Tensor

from cossim_fast.retrieval.engine import Engine
from cossim_fast.retrieval.exclusion import Banned
from cossim_fast.retrieval.joins.sweep import Found
from cossim_fast.retrieval.nearest.scan import Trace
from cossim_fast.retrieval.progress import Progress
from cossim_fast.retrieval.results import Best, Oracle
from cossim_fast.retrieval.selection import Selections
from cossim_fast.retrieval.storage.parts import ids_at
from cossim_fast.retrieval.storage.snapshot import Snapshot


class Search:
    """A search of the rows that were in an index at one moment.

    Args:
        engine: of the index.
        state: its contents.
        queries: (q, d), checked.
        exclude: as `CosineIndex.search` takes it.
        where: as `CosineIndex.search` takes it.
        double: whether scores are wanted in float64.
    """

    def __init__(
        self, engine: Engine, state: Snapshot, queries: Tensor, exclude: Any, where: Any,
        *, double: bool,
    ) -> None:  # fmt: skip
        self.state, self.queries, self.double = state, queries, double
        self._engine = engine
        self._banned = Banned(state.ids, state.parts, exclude, len(queries))
        self._chosen = None if where is None else Selections(where, state, len(queries), engine)

    def _segments(self) -> list[Any]:
        """What is searched, without the rows that no query may find."""
        return self._banned.segments([part.segment for part in self.state.parts])

    def topk(
        self, k: int, *, certify: bool = False, progress: bool = False, traces: list[Trace]
    ) -> tuple[Best, Oracle]:
        """The k best rows of each query, and the scores of all pairs."""
        segments = self._segments()
        oracle = self._banned.oracle(self.queries, segments, self._engine.matrix)
        with Progress(progress, "search", len(self.queries), unit="queries") as bar:
            search = partial(
                self._engine.topk,
                self.state,
                certify=certify,
                double=self.double,
                bar=bar,
                traces=traces,
            )
            if self._chosen is None:
                best = search(self.queries, k, segments, self._banned.pairs())
            else:
                best = self._chosen.topk(self.queries, k, segments, self._banned, search)
                bar.update(self._chosen.scored_queries())
                oracle = self._chosen.oracle(oracle)
        kept = best.dropped_bound if certify else None
        return replace(best, skipped=self.state.skipped(), dropped_bound=kept), oracle

    def reaching(self, threshold: float) -> Found:
        """All pairs that reach a threshold, by query, then by position."""

        def search(queries: Tensor, segments: Sequence[Any]) -> Found:
            found: Found = self._engine.reaching(
                self.state, queries, segments, threshold, double=self.double
            )
            return found

        segments = self._segments()
        if self._chosen is None:
            return self._banned.left(search(self.queries, segments))
        return self._chosen.reaching(self.queries, threshold, segments, self._banned, search)

    def lims(self, found: Found) -> Tensor:
        """Where the pairs of each query begin and end (q + 1,)."""
        return torch.searchsorted(found.query, torch.arange(len(self.queries) + 1, device="cpu"))

    def ids(self, positions: Tensor) -> Tensor | np.ndarray[Any, Any]:
        """The ids of rows: numbers as a tensor, strings as an array."""
        ids = ids_at(self.state.parts, positions, self.state.ids.missing())
        return ids if ids.dtype == object else torch.from_numpy(ids)

    def given_back(self, queries: Any, found: Tensor | np.ndarray[Any, Any]) -> Any:
        """A tensor where the queries are, if these are a tensor, else an array."""
        if isinstance(found, np.ndarray) or not isinstance(queries, Tensor):
            return np.asarray(found)
        return found.to(self.queries.device)
