"""What an index leaves to where its rows are: keeping them there, coding them, searching them.

Ids, numbers of rows and results are on the host whatever the engine is.
"""

from __future__ import annotations

from collections.abc import Sequence
from typing import Any, Protocol

import torch
from torch import Tensor

from cossim_fast.retrieval.nearest.batches import Forbidden
from cossim_fast.retrieval.nearest.scan import Trace
from cossim_fast.retrieval.progress import Progress
from cossim_fast.retrieval.results import Best
from cossim_fast.retrieval.storage.parts import Part, Piece
from cossim_fast.retrieval.storage.snapshot import Snapshot
from cossim_fast.retrieval.storage.vectors import Vectors


class Engine(Protocol):
    """Searches segments of rows, which it made, for queries (q, d) of any floating dtype."""

    @property
    def device(self) -> torch.device:
        """Where the rows are."""

    @property
    def recodes(self) -> bool:
        """Whether rows of a file are coded again as they are loaded."""

    def given(self, name: str, value: Any) -> Tensor:
        """Check rows (n, d) from the caller."""

    def vectors(self, given: Any, dtype: torch.dtype) -> Vectors:
        """Rows from the caller, as they are kept."""

    def part(self, piece: Piece, centre: Tensor) -> Part:
        """Code rows about a centre (d,)."""

    def segment(self, rows: Tensor, centre: Tensor) -> Any:
        """Code rows (n, d) that are gathered for one search."""

    def topk(
        self,
        state: Snapshot,
        queries: Tensor,
        k: int,
        segments: Sequence[Any],
        forbidden: Forbidden | None,
        *,
        certify: bool,
        double: bool,
        bar: Progress,
        traces: list[Trace],
    ) -> Best:
        """Find the k best rows for each query, on the host.

        Args:
            state: what the segments belong to.
            queries: (q, d).
            k: at least 1.
            segments: of which rows that are not eligible are not returned.
            forbidden: what else may not be returned.
            certify: whether the bound on dropped rows is wanted.
            double: whether scores are wanted in float64.
            bar: counts queries.
            traces: where to add what was done.
        """

    def reaching(
        self,
        state: Snapshot,
        queries: Tensor,
        segments: Sequence[Any],
        threshold: float,
        *,
        double: bool,
    ) -> Any:
        """Find all rows that reach a threshold: `joins.sweep.Found`, on the host."""

    def scores(
        self, queries: Tensor, segments: Sequence[Any], query: Tensor, position: Tensor
    ) -> Tensor:
        """Score pairs (p,) of numbers of queries and positions, in float64, on the host."""

    def matrix(self, queries: Tensor, segment: Any, query: Tensor, row: Tensor) -> Tensor:
        """Score all pairs of some queries and rows of a segment anew, in float64, on the host."""

    def reason(self, trace: Trace) -> str:
        """Why these screens were used, for `SearchExplanation`."""
