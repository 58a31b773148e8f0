"""The projection of a segment of an index, computed once searches have shown what it saves."""

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
    """The projected rows of a segment, and the screen that multiplies them.

    Removed rows are projected too, so that removing rows does not change the codes.
    """

    screen: ProjectionScreen
    centre: Tensor  # (d,), subtracted from each row
    split: ProjectedSegment
    width: int  # numbers of a projected row


class SegmentProjection:
    """Decides when a segment of an index gets a projection, and keeps it.

    It is neither copied nor pickled with the index. Several threads may use it at once: one of them
    computes the projection, and the others search without it meanwhile.
    """

    def __init__(self) -> None:
        self.coded: Projection | None = None
        self.given_up = False
        # Unit queries (q, d) in float64 and k-th best scores (q,) of the searches so far.
        self._searches: list[tuple[Tensor, Tensor]] = []
        self._lock = threading.Lock()
        self._lost = 0

    def __reduce__(self) -> tuple[Callable[..., SegmentProjection], tuple[Any, ...]]:
        return SegmentProjection, ()

    def made(self, segment: Segment, centre: Tensor) -> Projection | None:
        """The projection, computed now if it is due."""
        if self.coded is None and len(self._searches) >= tuning.FEW_SEARCHES:
            # Another thread computes it, or did when this process was forked.
            if not self._lock.acquire(blocking=False):
                return None
            try:
                if self.coded is None and not self.given_up:
                    self.coded = _code(segment, centre, self._searches)
                    self.given_up = self.coded is None
                    self._searches = []
            finally:
                self._lock.release()
        return self.coded

    def note(self, unit: Tensor, threshold: Tensor) -> None:
        """Record a search by its unit queries (q, d) and their k-th best scores (q,)."""
        if not self.given_up:
            self._searches.append((unit, threshold))

    def judge(self, *, helped: bool) -> None:
        """Record whether the projection helped; give it up if it seldom does."""
        self._lost = max(self._lost - 1, 0) if helped else self._lost + 1
        if self._lost > tuning.FEW_LOST:
            self.given_up, self.coded = True, None


def _code(
    segment: Segment, centre: Tensor, searches: list[tuple[Tensor, Tensor]]
) -> Projection | None:
    """Code the projection that is predicted to search fastest; None if no width pays."""
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
        # The error of codes and of bfloat16. A code is off by up to half a step of 1 / 127 of the
        # largest number, uniformly; that is about four times a typical number. bfloat16 rounds by
        # 2^-9.
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
    projection = ProjectionScreen(spread(along[:, :best]).float(), screen)
    return Projection(projection, centre, projection.split(segment, centre), width)
