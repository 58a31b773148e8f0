"""Searches that want a large share of all rows: one float32 product, ranked as a whole.

A screen in 8 bits lets half as many rows again through where a tenth of all is wanted, and each is
kept, moved and sorted. Where the product in float32 is cheap beside that, it is formed of all rows
at once: V, about the cosine less a constant of the query, within E (`screens`). With v the k-th
largest V of a query, k rows have a cosine of v + a - E or more, so a row whose V misses v - 2 E is
none of the k best. What is left, hardly more than k rows, is scored.
"""

from __future__ import annotations

from collections.abc import Callable
from dataclasses import dataclass

import numpy as np
import torch
from numpy.typing import NDArray
from torch import Tensor

from cossim_fast._numpy import stable_order
from cossim_fast._score.exact import WideRows
from cossim_fast.retrieval import tuning
from cossim_fast.retrieval.nearest.pool import Pool, Score
from cossim_fast.retrieval.screening import costs, float_product
from cossim_fast.retrieval.screening.codes import Segment, extreme, large, unit_rows
from cossim_fast.retrieval.screening.screens import SLACK, FloatScreen

_UNIT = 2.0**-24


def pays(k: int, segment: Segment, queries: int) -> bool:
    """Whether so large a share of the rows is wanted, of queries enough, and there is room."""
    n, d = segment.rows.shape
    if queries < tuning.RANKED_QUERIES or n * d > tuning.RANKED_NUMBERS:
        return False
    more = costs.score(d, "float32") + tuning.RANKED_NS - costs.score(d, "int8")
    return n * more <= k * tuning.RANKED_SPARES * costs.pair(d)


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
    terms = FloatScreen("float32").queries(queries, centre)
    make = _centred if _leans(segment) else _plain
    rows = make(segment, centre)
    margin = terms.residual * rows.radius + terms.norm * rows.residual + SLACK
    n, seen = len(segment), 0
    count = max(tuning.RANKED_SCORES // n, 1)
    for first in range(0, pool.queries, count):
        some = slice(first, min(first + count, pool.queries))
        values = _values(terms.operand[some], rows, n)
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


@dataclass(frozen=True)
class _Rows:
    """Rows to multiply by, and what a value may be off by.

    Attributes:
        some: gives some of them (n, d) in float32.
        factor: (n,) float32, for the products; None for 1.
        radius: the largest norm of what a row stands for.
        residual: how far a value is off at most, for a unit of the query's norm.
    """

    some: Callable[[slice], Tensor]
    factor: Tensor | None
    radius: float
    residual: float


def _leans(segment: Segment) -> bool:
    """Whether rows are to be centred: a cone, whose bound is so much narrower then.

    So are those that have to be widened or scaled in any case.
    """
    lean = len(segment.radius) and float(segment.radius.max()) < tuning.RANKED_RADIUS
    return bool(lean) or segment.rows.dtype != torch.float32 or extreme(segment.norms)


def _centred(segment: Segment, centre: Tensor) -> _Rows:
    """Centred unit rows, as the float32 screen multiplies them."""
    blocks = FloatScreen("float32").blocks(segment, slice(None))
    radius, residual = (float(each.max()) for each in (blocks.radius, blocks.residual))

    def unit(some: slice) -> Tensor:
        segment.touch(some)
        return unit_rows(segment.rows[some], segment.norms[some], centre)

    return _Rows(unit, None, radius, residual)


def _plain(segment: Segment, centre: Tensor) -> _Rows:
    """Rows as they are stored, their products divided by the norms.

    A product with a query q^ is off by g |q^| |x|, g = d u / (1 - d u) with u = 2^-24; 1 / |x| is
    rounded once, and its product once more. What underflows is less than SLACK, as norms are usual.
    """
    d = segment.rows.shape[1]
    factor = segment.norms.reciprocal()
    factor.masked_fill_(~factor.isfinite(), 0.0)
    residual = (d / (1 - d * _UNIT) + 3) * _UNIT

    def plain(some: slice) -> Tensor:
        segment.touch(some)
        return segment.rows[some]

    return _Rows(plain, factor.float(), 1.0, residual)


def _values(queries: Tensor, rows: _Rows, n: int) -> Tensor:
    """V (q, n), by stretches of rows whose values stay in cache."""
    found = large((len(queries), n), torch.float32)
    for start in range(0, n, tuning.RANKED_ROWS):
        some = slice(start, min(start + tuning.RANKED_ROWS, n))
        for asked, values in float_product.parts(queries, rows.some(some)):
            if rows.factor is None:
                found[asked, some] = values
            else:
                torch.mul(values, rows.factor[some], out=found[asked, some])
    return found


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
