"""What a search of an index did, in words."""

from __future__ import annotations

from dataclasses import dataclass
from typing import Any

import numpy as np

from cossim_fast.retrieval.nearest.scan import Trace
from cossim_fast.retrieval.screening import screens


@dataclass(frozen=True)
class SearchExplanation:
    """What a search did, and how long it took.

    Attributes:
        queries: how many.
        k: how many rows each was to get.
        rows: how many rows went through the screens; those that were removed take part.
        segments: how many pieces they lie in.
        screens: those that were tried, in order; the last was kept.
        reason: why.
        tile: rows that are multiplied at a time.
        group: rows under one maximum: those of a group are looked at where it passes.
        emitted: rows that passed the threshold when they were seen, for a query, on average.
        rescored: (q,) rows that were scored in float64.
        repeated: queries that were searched twice, since a guessed threshold was too high.
        seconds: for all of it.
    """

    queries: int
    k: int
    rows: int
    segments: int
    screens: tuple[str, ...]
    reason: str
    tile: int
    group: int
    emitted: float
    rescored: np.ndarray[Any, Any]
    repeated: int
    seconds: float

    def __str__(self) -> str:
        mean = float(self.rescored.mean()) if len(self.rescored) else 0.0
        most = int(self.rescored.max()) if len(self.rescored) else 0
        return "\n".join(
            [
                f"{self.queries} queries, k = {self.k}, {self.rows} rows in {self.segments} "
                f"segments: {self.seconds:.3g} s",
                f"screen    {' then '.join(self.screens)} ({self.reason})",
                f"tiles     {self.tile} rows, maxima of {self.group}",
                f"emitted   {self.emitted:.1f} rows a query passed the threshold of the moment",
                f"rescored  {mean:.1f} rows a query in float64, {most} at most",
                f"repeated  {self.repeated} queries, whose guessed threshold was too high",
            ]
        )


def reason_for(wanted: str, tried: tuple[str, ...], *, ranked: bool = False, head: int = 0) -> str:
    """Why these screens were used."""
    if head:
        return f"few queries, compared with the first principal directions of rows: {head} numbers"
    if ranked:
        return "so many rows are wanted that all are ranked by one product"
    if not tried:
        return "nothing to search"
    words = screens.offer(tried[-1]).words  # type: ignore[arg-type]
    if wanted != "auto":
        return f"asked for; {words}"
    if len(tried) > 1:
        return f"{tried[0]} let too many rows through; {words}"
    return f"the narrowest that runs fast here; {words}"


def merged_traces(traces: list[Trace]) -> Trace:
    """What several searches did."""
    whole = Trace()
    for trace in traces:
        whole.screens += [name for name in trace.screens if name not in whole.screens]
        whole.tile, whole.group = max(whole.tile, trace.tile), max(whole.group, trace.group)
        whole.tiles += trace.tiles
        whole.emitted += trace.emitted
        whole.repeated += trace.repeated
        whole.ranked = whole.ranked or trace.ranked
        whole.head = max(whole.head, trace.head)
    return whole
