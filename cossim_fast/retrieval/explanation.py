"""What a search of an index did, in words for users."""

from __future__ import annotations

import time
from collections.abc import Callable
from dataclasses import dataclass
from typing import TYPE_CHECKING, Any

import numpy as np

from cossim_fast.retrieval.nearest.scan import Trace
from cossim_fast.retrieval.screening import screens

if TYPE_CHECKING:
    from cossim_fast.retrieval.searching import Search


@dataclass(frozen=True)
class SearchExplanation:
    """What a search did, and how long it took.

    Attributes:
        queries: how many.
        k: how many rows each was to get.
        rows: how many rows were screened, including removed ones.
        segments: how many separately coded segments the rows are in.
        screens: those that were tried, in order; the last one finished the search.
        reason: why these.
        tile: rows that are multiplied at a time.
        group: rows under one maximum; they are compared one by one where the maximum passes.
        emitted: candidates for each query, on average: rows that passed its threshold at the time.
        rescored: (q,) rows that were scored in float64.
        repeated: queries that were searched again, since a guessed threshold was too high.
        seconds: of the search.
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
                f"tiles     {self.tile} rows, groups of {self.group}",
                f"emitted   {self.emitted:.1f} candidates a query passed the threshold so far",
                f"rescored  {mean:.1f} rows a query in float64, at most {most}",
                f"repeated  {self.repeated} queries, since the guessed threshold was too high",
            ]
        )


def explained(search: Search, k: int, reason: Callable[[Trace], str]) -> SearchExplanation:
    """Search for the k best rows, and say what was done.

    Args:
        search: of an index.
        k: how many rows.
        reason: says why these screens were used.
    """
    traces: list[Trace] = []
    begin = time.perf_counter()
    best, _ = search.topk(k, traces=traces)
    seconds, trace = time.perf_counter() - begin, merged_traces(traces)
    queries = len(search.queries)
    return SearchExplanation(
        queries=queries,
        k=k,
        rows=search.state.rows(),
        segments=len(search.state.parts),
        screens=tuple(trace.screens),
        reason=reason(trace),
        tile=trace.tile,
        group=trace.group,
        emitted=trace.emitted / max(queries, 1),
        rescored=best.rescored.numpy(),
        repeated=trace.repeated,
        seconds=seconds,
    )


def reason_for(wanted: str, tried: tuple[str, ...], *, ranked: bool = False, head: int = 0) -> str:
    """Why these screens were used."""
    if head:
        return f"one or two queries, compared with rows projected to {head} principal directions"
    if ranked:
        return "k is so large that all are ranked by one float32 product"
    if not tried:
        return "nothing to search"
    words = screens.offer(tried[-1]).words  # type: ignore[arg-type]
    if wanted != "auto":
        return f"as requested; {words}"
    if len(tried) > 1:
        return f"{tried[0]} let too many rows through; {words}"
    return f"the narrowest that is fast on this processor; {words}"


def merged_traces(traces: list[Trace]) -> Trace:
    """The traces of several batches as one."""
    total = Trace()
    for trace in traces:
        total.screens += [name for name in trace.screens if name not in total.screens]
        total.tile, total.group = max(total.tile, trace.tile), max(total.group, trace.group)
        total.tiles += trace.tiles
        total.emitted += trace.emitted
        total.repeated += trace.repeated
        total.ranked = total.ranked or trace.ranked
        total.head = max(total.head, trace.head)
    return total
