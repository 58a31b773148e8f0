"""The engine of an index on CPU: rows in memory or in a file, and every screen."""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass
from typing import Any

import torch
from torch import Tensor

from cossim_fast import _checks
from cossim_fast._score.exact import widen
from cossim_fast.retrieval import tuning
from cossim_fast.retrieval.exclusion import of_queries
from cossim_fast.retrieval.explanation import reason_for
from cossim_fast.retrieval.joins.pairs import range_search
from cossim_fast.retrieval.joins.sweep import Found
from cossim_fast.retrieval.nearest.batches import Batches, Forbidden, Scorer, independent_threads
from cossim_fast.retrieval.nearest.scan import Trace
from cossim_fast.retrieval.progress import Progress
from cossim_fast.retrieval.results import Best, merged, oracle_of
from cossim_fast.retrieval.screening.codes import Segment, encode
from cossim_fast.retrieval.storage.host_parts import HostPart, host_part
from cossim_fast.retrieval.storage.parts import Piece
from cossim_fast.retrieval.storage.snapshot import Snapshot
from cossim_fast.retrieval.storage.vectors import Vectors, vectors_of


@dataclass(frozen=True)
class HostEngine:
    """Searches on CPU; see `Engine`.

    Args:
        screen: as in `topk`.
    """

    screen: str
    device = torch.device("cpu")
    recodes = False

    def given(self, name: str, value: Any) -> Tensor:
        """Check rows (n, d) from the caller."""
        return _checks.embedding_rows(name, value)

    def vectors(self, given: Any, dtype: torch.dtype) -> Vectors:
        """Rows from the caller; those in memory are copied as they are coded."""
        return vectors_of(given, dtype)

    def part(self, piece: Piece, centre: Tensor) -> HostPart:
        """Code rows about a centre (d,)."""
        return host_part(piece, centre, codes=self._codes())

    def segment(self, rows: Tensor, centre: Tensor) -> Segment:
        """Code rows (n, d) that are gathered for one search."""
        return encode(rows, centre, codes=self._codes())

    def _codes(self) -> bool:
        return self.screen in ("auto", "int8")

    def topk(
        self,
        state: Snapshot,
        queries: Tensor,
        k: int,
        segments: Sequence[Segment],
        forbidden: Forbidden | None,
        *,
        certify: bool,
        double: bool,
        bar: Progress,
        traces: list[Trace],
    ) -> Best:
        """Find the k best rows for each query."""
        found: list[Best] = []
        # Queries take 8 d bytes in float64: not all at once.
        step = tuning.MOST_QUERIES * independent_threads(len(queries), k)
        for start in range(0, max(len(queries), 1), step):
            some = slice(start, start + step)
            batches = Batches(
                queries[some],
                k,
                self.screen,
                centre=state.centre,
                forbidden=of_queries(forbidden, some),
                certify=certify,
                exact=double,
            )
            batches.through(segments, last=True)
            found.append(batches.best())
            traces += batches.traces()
            bar.update(len(queries[some]))
            for part in state.parts:
                part.rows.release_pages()
        return merged(found, skipped=0)

    def reaching(
        self,
        state: Snapshot,
        queries: Tensor,
        segments: Sequence[Segment],
        threshold: float,
        *,
        double: bool,
    ) -> Found:
        """Find all rows that reach a threshold."""
        blocks = range_search(
            queries, segments, state.centre, threshold, screen=self.screen, double=double
        )
        return Found.concatenate(list(blocks), torch.float64 if double else torch.float32)

    def scores(
        self, queries: Tensor, segments: Sequence[Segment], query: Tensor, position: Tensor
    ) -> Tensor:
        """Score pairs (p,) of numbers of queries and positions, in float64."""
        asking, number = query.unique(return_inverse=True)
        return Scorer(widen(queries[asking]), segments).exact(number, position)

    def matrix(self, queries: Tensor, segment: Segment, query: Tensor, row: Tensor) -> Tensor:
        """Score all pairs of some queries and rows of a segment, as the rows are now."""
        return oracle_of(queries, segment.rows)(query, row)

    def reason(self, trace: Trace) -> str:
        """Why these screens were used."""
        return reason_for(self.screen, tuple(trace.screens), ranked=trace.ranked, head=trace.head)
