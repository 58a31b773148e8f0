"""The projection of a segment of an index, coded once searches have said what it spares."""

from __future__ import annotations

import threading
from collections.abc import Callable
from dataclasses import dataclass
from typing import Any

import torch
from torch import Tensor

from cossim_fast.retrieval import tuning
from cossim_fast.retrieval.screening import costs, screens
from cossim_fast.retrieval.screening.codes import Segment
from cossim_fast.retrieval.screening.projection import (
    PARTS,
    ProjectedSegment,
    ProjectionScreen,
    finite,
    spread,
)


@dataclass(frozen=True)
class Projection:
    """The heads of a segment.

    Their codes are those of all its rows, whatever may be returned of them: removing rows does not
    change them.
    """

    screen: ProjectionScreen
    centre: Tensor  # (d,) that they leave out
    split: ProjectedSegment
    width: int  # numbers of a head


class SegmentProjection:
    """What belongs to one segment of an index: its heads once they are worth it.

    A copy and a pickled one begin anew. Searches in several threads may use it at once: one of them
    codes, and the others go on without meanwhile.
    """

    def __init__(self) -> None:
        self.head: Projection | None = None
        self.given_up = False
        # Units of queries (q, d) in float64 and the k-th best scores (q,) of searches so far.
        self._searches: list[tuple[Tensor, Tensor]] = []
        self._lock = threading.Lock()
        self._lost = 0

    def __reduce__(self) -> tuple[Callable[..., SegmentProjection], tuple[Any, ...]]:
        return SegmentProjection, ()

    def made(self, segment: Segment, centre: Tensor) -> Projection | None:
        """The heads, coded now if it is time."""
        if self.head is None and len(self._searches) >= tuning.FEW_SEARCHES:
            # Where another thread, or a thread of a process that forked this one, is at it.
            if not self._lock.acquire(blocking=False):
                return None
            try:
                if self.head is None and not self.given_up:
                    self.head = _code(segment, centre, self._searches)
                    self.given_up = self.head is None
                    self._searches = []
            finally:
                self._lock.release()
        return self.head

    def note(self, unit: Tensor, threshold: Tensor) -> None:
        """Note a search, by unit queries (q, d) and the k-th best scores (q,)."""
        if not self.given_up:
            self._searches.append((unit, threshold))

    def judge(self, *, helped: bool) -> None:
        """Note whether heads helped; give them up where they seldom do."""
        self._lost = max(self._lost - 1, 0) if helped else self._lost + 1
        if self._lost > tuning.FEW_LOST:
            self.given_up, self.head = True, None


def _code(
    segment: Segment, centre: Tensor, searches: list[tuple[Tensor, Tensor]]
) -> Projection | None:
    """Code the heads that promise the fastest search, if that is worth it."""
    n, d = segment.rows.shape
    if screens.choose(d)[0].name != "int8":
        return None
    unit, threshold = (torch.cat(column) for column in zip(*searches, strict=True))
    y = finite(segment.rows[:: max(n // tuning.FEW_SAMPLE, 1)]) - centre.double()
    if not len(y):
        return None
    along = torch.linalg.eigh(y.mT @ y).eigenvectors.flip(1)  # largest first
    y_along, q_along = (y @ along).float(), (unit @ along).float()
    needed = (threshold - unit @ centre.double()).float()[:, None]
    full, best = d * tuning.FEW_CODE_NS, 0
    least = tuning.FEW_WORTH * full
    for width in range(tuning.FEW_STEP, d, tuning.FEW_STEP):
        k = width - PARTS
        y_rest, q_rest = (torch.linalg.vector_norm(v[:, k:], dim=1) for v in (y_along, q_along))
        upper = q_along[:, :k] @ y_along[:, :k].mT + torch.outer(q_rest, y_rest)
        # What codes and bfloat16 miss: half a step of 1 / 127 of numbers of which the largest is
        # about four times the usual, uniform; and a rounding of 2^-9.
        error = (4 / 12**0.5 / 127 + 2.0**-9) * torch.linalg.vector_norm(y_along, dim=1).amax()
        passed = float((upper + error >= needed).float().mean())
        cost = width * tuning.FEW_CODE_NS + passed * costs.pair(d)
        if cost < least:
            best, least = k, cost
    if not best:
        return None
    width = best + PARTS
    (screen,) = screens.choose(width, "int8", queries=tuning.FEW_QUERIES)
    assert isinstance(screen, (screens.Int8Screen, screens.FewQueriesScreen))
    head = ProjectionScreen(spread(along[:, :best]).float(), screen)
    return Projection(head, centre, head.split(segment, centre), width)
