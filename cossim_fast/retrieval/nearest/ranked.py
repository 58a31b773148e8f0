"""Searches that want a large share of all rows: one float32 product of all, from which to select.

Where a tenth of all rows is wanted, an 8-bit screen lets half as many rows again through, and each
of them is kept, moved and sorted. Where the float32 product is cheap beside that, it is formed of
all rows at once: V with |c - a - V| <= E for each cosine c (`screening.screens`). Let v be the k-th
largest V of a query. Then k rows have a cosine of at least v + a - E, so a row with V < v - 2 E is
not among the k best. The remaining rows, hardly more than k, are scored.
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
    """Whether k is so large a share of the rows, and queries and rows so many, that it pays."""
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
    """Put every row that may be among the k best of its query into an empty pool, with its score.

    Args:
        queries: as they enter a score.
        pool: for these queries.
        segment: all rows.
        centre: (d,) of the corpus.
        score: of these queries and rows.
        forbidden: pairs (query numbers, positions) that may not be returned.

    Returns:
        How many candidates there were, over all queries.
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
    """Rows to multiply by, and the error of the product.

    Attributes:
        some: returns some of them (n, d) in float32.
        factor: (n,) float32, multiplies the products; None for 1.
        radius: the largest norm of a row times its factor.
        residual: error bound of a product, for a query of norm 1.
    """

    some: Callable[[slice], Tensor]
    factor: Tensor | None
    radius: float
    residual: float


def _leans(segment: Segment) -> bool:
    """Whether to centre rows first: where they share a direction, since the bound is narrower then.

    Rows that must be widened or scaled anyway are centred too.
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
    """Rows as they are stored; their products are divided by the norms.

    A product with a query q̂ is off by g |q̂| |x|, with g = d u / (1 - d u) and u = 2^-24; 1 / |x| is
    rounded once, and the product with it once more. SLACK covers underflow, since no norm is
    extreme.
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
    """V (q, n), computed for so many rows at a time that their values stay in cache."""
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
    """The pairs whose V (q, n) may be among the k largest of the query.

    Returns:
        Query and row (p,), query by query; and the order (p,) of these pairs by row, in which
        scoring reads each row once.
    """
    n = values.shape[1]
    least = np.partition(values, n - k, axis=1)[:, n - k].astype(np.float64) - 2 * margin
    # Rounded down; banned rows, at -inf, never pass.
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
    """Score pairs, and add them to the pool."""
    query, row, by_row = found
    query, row = query + some.start, row + first
    near = np.empty(len(query))
    near[by_row] = score.near(*(torch.from_numpy(c.take(by_row)) for c in (query, row))).numpy()
    pool.add_scored(query, row, near, score.error)
