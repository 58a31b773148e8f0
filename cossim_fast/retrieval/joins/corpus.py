"""Rows of an array that a join reads many times; they are coded once if the codes fit in memory."""

from __future__ import annotations

from collections.abc import Iterator

import torch
from torch import Tensor

from cossim_fast.retrieval.screening import arithmetic
from cossim_fast.retrieval.screening.codes import Segment, centre_of, encode
from cossim_fast.retrieval.screening.projection import choose_projection
from cossim_fast.retrieval.screening.screens import choose
from cossim_fast.retrieval.storage.corpus import ArrayCorpus, block_rows

# [numbers] Most numbers whose codes are kept: 256 MB, and up to two thirds as much for projections.
KEPT = 1 << 28


class CodedRows:
    """The rows of a join, as segments to screen, and as queries.

    Args:
        source: the rows.
        queries: (q, d), which they are joined with.
        threshold: of the join.
        screen: a screen's name, or ``"auto"``.
        order: (n,) another order of the rows; they are then copied whenever they are read.

    Attributes:
        screens: each wider than the one before.
        centre: (d,) of the rows.
    """

    def __init__(
        self,
        source: ArrayCorpus,
        queries: Tensor,
        threshold: float,
        screen: str,
        order: Tensor | None = None,
    ) -> None:
        self._source, self._order = source, order
        self._kept: dict[int, Segment] = {}
        self.n, self.d = source.n, source.d
        self.centre = centre_of(source.rows)
        self.screens = choose(source.d, screen)
        self._codes = any(one.name == "int8" for one in self.screens)
        self._projection = None
        if screen == "auto" and self._codes:
            limit = arithmetic.found().adjacent_code_limit
            self._projection = choose_projection(
                queries, source.rows, self.centre, threshold, limit
            )
        if self._projection is not None:
            self.screens.insert(0, self._projection)

    def take(self, numbers: Tensor) -> Tensor:
        """Rows (q, d) with these numbers (q,), as stored."""
        return self._source.rows[numbers if self._order is None else self._order[numbers]]

    def segments(self, start: int = 0) -> Iterator[Segment]:
        """Yield the segments that hold rows from ``start`` on."""
        step = block_rows(self.d)
        first = start // step * step
        for rows in self._blocks(first, step):
            segment = self._kept.get(first)
            if segment is None:
                segment = encode(rows, self.centre, first=first, codes=self._codes)
                if self._projection is not None:
                    segment = self._projection.split(segment, self.centre)
                if self._order is None and self._room() >= rows.numel():
                    self._kept[first] = segment
            yield segment
            first += len(segment)

    def _blocks(self, first: int, step: int) -> Iterator[Tensor]:
        if self._order is None:
            yield from self._source.blocks(first)
        else:
            for start in range(first, self.n, step):
                yield self.take(torch.arange(start, min(start + step, self.n), device="cpu"))

    def _room(self) -> int:
        return KEPT - sum(len(segment) for segment in self._kept.values()) * self.d
