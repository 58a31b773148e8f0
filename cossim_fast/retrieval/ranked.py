"""Searches that want a large share of all rows: one float32 product, ranked as a whole.

A screen in 8 bits lets half as many rows again through where a tenth of all is wanted, and each is
kept, moved and sorted. Where the product in float32 is cheap beside that, it is formed of all rows
at once: V, about the cosine less a constant of the query, within E (`screens`). With v the k-th
largest V of a query, k rows have a cosine of v + a - E or more, so a row whose V misses v - 2 E is
none of the k best. What is left, hardly more than k rows, is scored.
"""

from __future__ import annotations

import numpy as np
import torch
from numpy.typing import NDArray
from torch import Tensor

from cossim_fast._cpu_screen import WideRows, stable_order
from cossim_fast.retrieval import products, rates, tuning
from cossim_fast.retrieval.codes import Segment, large, unit_rows
from cossim_fast.retrieval.int8 import even_rows
from cossim_fast.retrieval.pool import Pool, Score
from cossim_fast.retrieval.screens import SLACK, FloatScreen


def pays(k: int, segment: Segment, queries: int) -> bool:
    """Whether so large a share of the rows is wanted, of queries enough, and there is room."""
    n, d = segment.rows.shape
    if queries < tuning.RANKED_QUERIES or n * d > tuning.RANKED_NUMBERS:
        return False
    more = rates.score(d, "float32") + tuning.RANKED_NS - rates.score(d, "int8")
    return n * more <= k * tuning.RANKED_SPARES * rates.pair(d)


def rank_all(
    queries: WideRows,
    pool: Pool,
    segment: Segment,
    centre: Tensor,
    score: Score,
    forbidden: tuple[Tensor, Tensor] | None,
) -> int:
    """Put the k best rows of every query, and those too near to them, into an empty pool.

    Args:
        queries: as they enter a score.
        pool: for these queries; its rows are known then.
        segment: all rows.
        centre: (d,) of the corpus.
        score: of these queries and rows.
        forbidden: pairs (query numbers, positions) that may not be returned.

    Returns:
        How many rows reached the float32 threshold of their query.
    """
    screen, n = FloatScreen("float32"), len(segment)
    terms = screen.queries(queries, centre)
    blocks = screen.blocks(segment, slice(None))
    margin = terms.residual * blocks.radius.max() + terms.norm * blocks.residual.max() + SLACK
    y = large((even_rows(n), centre.numel()), torch.float32)
    y[n:] = 0.0
    step = max(tuning.FLOAT_NUMBERS // max(centre.numel(), 1), 1)
    for start in range(0, n, step):
        some = slice(start, min(start + step, n))
        y[some] = unit_rows(segment.rows[some], segment.norms[some], centre)
    count, seen = max(tuning.RANKED_SCORES // n, 1), 0
    for first in range(0, pool.queries, count):
        some = slice(first, min(first + count, pool.queries))
        values = products.product(terms.operand[some], y)[:, :n]
        if not bool(segment.eligible.all()):
            values[:, ~segment.eligible] = -torch.inf
        values[~queries.norms[some].isfinite()] = -torch.inf
        if forbidden is not None:
            query, position = forbidden
            here = (query >= some.start) & (query < some.stop)
            values[query[here] - some.start, position[here] - segment.first] = -torch.inf
        found = _passing(values.numpy(), margin[some].numpy(), pool.k)
        seen += len(found[0])
        _score(found, pool, some, segment.first, score)
    return seen


def _passing(
    values: NDArray[np.float32], margin: NDArray[np.float64], k: int
) -> tuple[NDArray[np.int64], NDArray[np.int64], NDArray[np.int64]]:
    """Where V (q, n) may be among the k largest, and by which order of rows to score that.

    Returns:
        Query and row (p,), query by query; the numbers of these pairs, row by row.
    """
    n = values.shape[1]
    least = np.partition(values, n - k, axis=1)[:, n - k].astype(np.float64) - 2 * margin
    # Rounded down; what is hidden is never let through.
    rounded = np.nextafter(least.astype(np.float32), np.float32(-np.inf))
    hit = values >= np.maximum(rounded, np.finfo(np.float32).min)[:, None]
    place = np.flatnonzero(hit)
    query = place // n
    row = place - query * n
    return query, row, stable_order(row)


def _score(
    found: tuple[NDArray[np.int64], NDArray[np.int64], NDArray[np.int64]],
    pool: Pool,
    some: slice,
    first: int,
    score: Score,
) -> None:
    """Score pairs, and put them into the pool."""
    query, row, by_row = found
    query, row = query + some.start, row + first
    near = np.empty(len(query))
    near[by_row] = score.near(*(torch.from_numpy(c.take(by_row)) for c in (query, row))).numpy()
    pool.add_scored(query, row, near, score.error)
