"""The engine of an index on a GPU: rows and codes in its memory, the int8 screen.

Nothing here depends on which device it is, so tests run it on CPU tensors.
"""

from __future__ import annotations

from collections.abc import Callable, Iterator, Sequence
from dataclasses import dataclass
from typing import Any

import torch
from torch import Tensor

from cossim_fast import _checks, _ops
from cossim_fast.retrieval.exclusion import of_queries
from cossim_fast.retrieval.joins.sweep import Found
from cossim_fast.retrieval.nearest.batches import Forbidden
from cossim_fast.retrieval.nearest.gpu import coded_queries, floors_of, merge_ranked
from cossim_fast.retrieval.nearest.scan import Trace
from cossim_fast.retrieval.nearest.screened_topk import BLOCK, screened_range, screened_topk
from cossim_fast.retrieval.progress import Progress
from cossim_fast.retrieval.results import Best, merged
from cossim_fast.retrieval.storage.device_parts import (
    DevicePart,
    DeviceSegment,
    DeviceVectors,
    code,
    device_part,
    device_vectors,
)
from cossim_fast.retrieval.storage.parts import Piece
from cossim_fast.retrieval.storage.snapshot import Snapshot

# [numbers] Of the queries that are coded together: 64 MB in float64, a few times.
QUERY_NUMBERS = 1 << 23


@dataclass(frozen=True)
class DeviceEngine:
    """Searches on a device; see `Engine`.

    Args:
        device: with an index, if its kind has several.
    """

    device: torch.device
    recodes = True

    def __reduce__(self) -> tuple[Callable[[str], DeviceEngine], tuple[str]]:
        return _unpickled, (str(self.device),)

    def given(self, name: str, value: Any) -> Tensor:
        """Check rows (n, d) from the caller, which may be on any device."""
        return _checks.embedding_rows(name, value, None)

    def vectors(self, given: Any, dtype: torch.dtype) -> DeviceVectors:
        """Copy rows from the caller to the device."""
        return device_vectors(given, dtype, self.device)

    def part(self, piece: Piece, centre: Tensor) -> DevicePart:
        """Code rows about a centre (d,)."""
        return device_part(piece, centre)

    def segment(self, rows: Tensor, centre: Tensor) -> DeviceSegment:
        """Code rows (n, d) that are gathered for one search."""
        return code(rows, centre)

    def topk(
        self,
        state: Snapshot,
        queries: Tensor,
        k: int,
        segments: Sequence[DeviceSegment],
        forbidden: Forbidden | None,
        *,
        certify: bool,
        double: bool,
        bar: Progress,
        traces: list[Trace],
    ) -> Best:
        """Find the k best rows for each query."""
        found = []
        for some in self._batches(queries):
            banned = of_queries(forbidden, some)
            # The next row gives the bound on the dropped ones.
            more = k + certify + _most_banned(banned)
            best = self._best(queries[some], more, segments, state.centre)
            if banned is not None:
                _drop(banned, best, state.rows())
            found.append(_first(best, k, certify=certify))
            bar.update(len(found[-1].rescored))
        best = merged(found, skipped=0)
        traces.append(
            Trace(
                screens=["int8"],
                tile=max(map(len, segments), default=0),
                group=BLOCK,
                emitted=int(best.rescored.sum()),
            )
        )
        return best

    def _batches(self, queries: Tensor) -> Iterator[slice]:
        step = max(QUERY_NUMBERS // queries.shape[1], 1)
        for start in range(0, max(len(queries), 1), step):
            yield slice(start, min(start + step, len(queries)))

    def _best(
        self, queries: Tensor, k: int, segments: Sequence[DeviceSegment], centre: Tensor
    ) -> Best:
        """The k best rows of each query of a batch, or fewer, on the host."""
        asked = queries.to(self.device)
        scores = torch.empty((len(asked), 0), dtype=torch.float64, device=self.device)
        positions = torch.empty((len(asked), 0), dtype=torch.int64, device=self.device)
        rescored = torch.zeros(len(asked), dtype=torch.int64, device=self.device)
        for segment, codes in _with_codes(asked, centre, segments):
            found = screened_topk(
                asked, segment.rows, min(k, len(segment)), *codes, floors=floors_of(scores, k)
            )
            scores, positions = merge_ranked(
                scores, positions, found.scores, found.rows + segment.first, k
            )
            rescored += found.rescored
        rows = sum(map(len, segments))
        return Best(scores.cpu(), positions.cpu(), None, rescored.cpu(), rows=rows, skipped=0)

    def reaching(
        self,
        state: Snapshot,
        queries: Tensor,
        segments: Sequence[DeviceSegment],
        threshold: float,
        *,
        double: bool,
    ) -> Found:
        """Find all rows that reach a threshold."""
        blocks = []
        for some in self._batches(queries):
            asked = queries[some].to(self.device)
            limits = torch.full((len(asked),), threshold, dtype=torch.float64, device=self.device)
            parts = []
            for segment, codes in _with_codes(asked, state.centre, segments):
                query, row, score = screened_range(asked, segment.rows, limits, *codes)
                query, row = query + some.start, row + segment.first
                parts.append(Found(query.cpu(), row.cpu(), score.cpu()))
            found = Found.concatenate(parts, torch.float64)
            order = found.query.argsort(stable=True)
            blocks.append(Found(*(column[order] for column in found)))
        return Found.concatenate(blocks, torch.float64)

    def scores(
        self, queries: Tensor, segments: Sequence[DeviceSegment], query: Tensor, position: Tensor
    ) -> Tensor:
        """Score pairs (p,) of numbers of queries and positions, in float64."""
        asking, number = query.unique(return_inverse=True)
        asked = queries[asking.to(queries.device)].to(self.device)
        found = torch.full(query.shape, torch.nan, dtype=torch.float64, device="cpu")
        for segment in segments:
            row = position - segment.first
            here = (row >= 0) & (row < len(segment))
            pairs = (index[here].to(self.device) for index in (number, row))
            found[here] = _ops.rescore(asked, segment.rows, *pairs).cpu()
        return found

    def matrix(self, queries: Tensor, segment: DeviceSegment, query: Tensor, row: Tensor) -> Tensor:
        """Score all pairs of some queries and rows of a segment, as the rows are now."""
        pairs = torch.cartesian_prod(query, row + segment.first).view(-1, 2)
        scores = self.scores(queries, [segment], *pairs.mT)
        return scores.view(len(query), len(row))

    def reason(self, trace: Trace) -> str:
        """Why these screens were used."""
        return "the one on a GPU: blocks of 64 rows by their largest int8 product, then row by row"


def _unpickled(device: str) -> DeviceEngine:
    """The same engine here; of an index it comes before the rows, which are moved to the device."""
    there = _checks.index_device(device, "save the index where it is, and load the file")
    if there.type != "cpu":
        missing = _ops.kernels_miss(torch.empty(0, dtype=torch.float32, device=there))
        _checks.index_on_device("int8", None, 1, missing)
    return DeviceEngine(there)


def _with_codes(
    asked: Tensor, centre: Tensor, segments: Sequence[DeviceSegment]
) -> Iterator[tuple[DeviceSegment, tuple[Tensor, Tensor, Tensor, Tensor, Tensor | None]]]:
    """Yield segments with codes and terms of queries and rows, and which rows are eligible."""
    if len(asked) and segments:
        width = segments[0].codes.shape[1]
        queries = coded_queries(asked, centre, width)
        for segment in segments:
            codes = segment.codes[: len(segment)]
            yield segment, (*queries, codes, segment.terms, segment.mask)


def _most_banned(banned: Forbidden | None) -> int:
    """The largest number of rows that may not be returned to a query."""
    if banned is None or not len(banned[0]):
        return 0
    return int(torch.bincount(banned[0]).max())


def _drop(banned: Forbidden, best: Best, rows: int) -> None:
    """Move rows that may not be returned behind the others, without a score."""
    query, position = banned
    number = torch.arange(len(best.positions), device="cpu")[:, None]
    hit = torch.isin(number * rows + best.positions, query * rows + position)
    hit &= best.positions >= 0
    best.positions = best.positions.masked_fill(hit, -1)
    best.scores = best.scores.masked_fill(hit, torch.nan)
    order = hit.to(torch.uint8).sort(dim=1, stable=True).indices
    best.positions, best.scores = best.positions.gather(1, order), best.scores.gather(1, order)


def _first(best: Best, k: int, *, certify: bool) -> Best:
    """The k best rows, as many for each query, and the bound on all others if it is wanted."""
    missing = max(k + certify - best.scores.shape[1], 0)
    scores = torch.nn.functional.pad(best.scores, (0, missing), value=torch.nan)
    best.positions = torch.nn.functional.pad(best.positions, (0, missing), value=-1)[:, :k]
    best.positions = best.positions.contiguous()
    best.scores = scores[:, :k].contiguous()
    best.dropped_bound = scores[:, k].nan_to_num(-torch.inf) if certify else None
    return best
