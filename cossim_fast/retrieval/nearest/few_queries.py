"""Searches of one or two queries in an index that is searched again and again: by a projection.

A search of one query takes as long as reading the codes of all rows. Projected rows
(`screening.projection`) have a third or half as many numbers, and bound every cosine from above.
First the rows with the largest upper bounds are scored. The k-th of these scores is a proven
threshold. Then every other row whose upper bound reaches the threshold is scored.

A projection is computed after `tuning.FEW_SEARCHES` such searches. The k-th best scores of these
searches show how many rows a projection of each width would let through.
"""

from __future__ import annotations

import numpy as np
import torch
from numpy.typing import NDArray
from torch import Tensor

from cossim_fast._score.exact import WideRows
from cossim_fast._score.near import near_scores
from cossim_fast.retrieval import tuning
from cossim_fast.retrieval.nearest.pool import Pool
from cossim_fast.retrieval.nearest.scan import Trace
from cossim_fast.retrieval.screening import costs
from cossim_fast.retrieval.screening.codes import BLOCK, Segment
from cossim_fast.retrieval.screening.screens import CodedTerms
from cossim_fast.retrieval.screening.segment_projection import Projection
from cossim_fast.retrieval.screening.tile import Tile, tile_rows, tiles


def suits(queries: int, k: int, segment: Segment) -> bool:
    """Whether a search of so many queries may use a projection, or count towards making one."""
    projection = segment.projection
    if projection is None or projection.given_up or not 0 < queries <= tuning.FEW_QUERIES:
        return False
    d = segment.rows.shape[1]
    if d <= tuning.FEW_STEP or segment.rows.numel() < tuning.FEW_NUMBERS:
        return False
    # Otherwise too large a share of the rows would be scored for the first threshold.
    return 2 * _first(k) <= len(segment.radius)


def projection_of(segment: Segment, centre: Tensor) -> Projection | None:
    """The projection of a segment, computed if it is due; None if there is none."""
    assert segment.projection is not None
    return segment.projection.made(segment, centre)


def note(segment: Segment, queries: WideRows, threshold: Tensor) -> None:
    """Record a search: its queries, and the k-th best score (q,) of each."""
    assert segment.projection is not None
    known = threshold.isfinite()
    if segment.projection.coded is None and known.any():
        segment.projection.note(queries.unit()[known], threshold[known])


def _first(k: int) -> int:
    """How many rows to score for a first threshold."""
    return tuning.FEW_FIRST * k + tuning.FEW_FIRST_MORE


def through(
    projection: Projection,
    segment: Segment,
    queries: WideRows,
    pool: Pool,
    error: float,
    trace: Trace,
    forbidden: tuple[Tensor, Tensor] | None = None,
) -> bool:
    """Put every row of a segment that may be among the best into the pool, with its score.

    Args:
        projection: of the segment.
        segment: the next rows.
        queries: one or two.
        pool: for these queries.
        error: of a near score.
        trace: takes notes.
        forbidden: pairs (query numbers, positions) that may not be returned, sorted by position.

    Returns:
        False, with nothing added to the pool, if scoring all candidates is predicted to take longer
        than a scan of all codes.
    """
    assert segment.projection is not None
    pool.close(~queries.norms.isfinite())
    n, d = segment.rows.shape
    most = int(n * d * tuning.FEW_CODE_NS / costs.pair(d))
    found: list[tuple[int, NDArray[np.int64], NDArray[np.float64]]] = []
    tile, threshold = _tile(projection, segment, queries, forbidden), pool.threshold.numpy()
    scale, shift = tile.scale.numpy(), (tile.margin + tile.offset).numpy()
    by_block = tile.values.T.contiguous().numpy().reshape(pool.queries, -1, BLOCK)
    for query, values in enumerate(by_block):
        if not np.isfinite(threshold[query]):
            continue  # a query of NaN
        first = _largest(values, scale[:, query], shift[:, query], _first(pool.k))
        scores = _near(queries, segment, query, first)
        if len(scores) >= pool.k:
            kth = np.partition(scores, len(scores) - pool.k)[len(scores) - pool.k] - error
            proven = np.full(pool.queries, -np.inf)
            proven[query] = kth
            pool.raise_to(torch.from_numpy(proven), pool.k)
        values.reshape(-1)[first] = -np.inf
        least = tile.needed(pool.threshold).numpy()[:, query]
        rest = np.flatnonzero(values >= least[:, None])
        if len(rest) > most:
            segment.projection.judge(helped=False)
            return False
        found.append((query, first, scores))
        found.append((query, rest, _near(queries, segment, query, rest)))
    for query, row, scores in found:
        pool.add_scored(np.full(len(row), query), row + segment.first, scores, error)
    segment.projection.judge(helped=True)
    trace.note_projection(projection.width, n, sum(len(row) for _, row, _ in found))
    return True


def _tile(
    projection: Projection,
    segment: Segment,
    queries: WideRows,
    forbidden: tuple[Tensor, Tensor] | None,
) -> Tile:
    """The projected scores of all rows of a segment; -inf where a row may not be returned."""
    n, count, screen = len(segment), len(queries.norms), projection.screen
    terms = screen.queries(queries, projection.centre)
    # Only products that copy the codes need tiles.
    size = tile_rows(count, 1, projection.width) if isinstance(terms, CodedTerms) else n
    split, centre = projection.split, projection.centre
    values = torch.cat([screen.product(split, rows, centre, terms) for rows in tiles(n, size)])
    segment.mask_banned(slice(0, n), values, -torch.inf)
    if forbidden is not None:
        query, position = forbidden
        span = torch.tensor([segment.first, segment.first + n], dtype=torch.int64, device="cpu")
        begin, end = torch.searchsorted(position, span).tolist()
        values[position[begin:end] - segment.first, query[begin:end]] = -torch.inf
    blocks = screen.blocks(split, slice(0, len(values) // BLOCK))
    return Tile(segment.first, values, terms, blocks)


def _largest(
    values: NDArray[np.float32],
    scale: NDArray[np.float64],
    shift: NDArray[np.float64],
    count: int,
) -> NDArray[np.int64]:
    """The rows (p,), ascending, with the largest upper bounds; rows of -inf are left out.

    Args:
        values: (blocks, 64).
        scale: (blocks,); an upper bound is value * scale + shift.
        shift: (blocks,).
        count: how many rows at most; not more than there are blocks.
    """
    bound = values.max(1) * scale + shift
    cut = np.partition(bound, len(bound) - count)[len(bound) - count]
    least = (cut - shift) / scale
    least -= 2.0**-22 * abs(least)  # so that rounding keeps the row that the cut comes from
    lowest = np.finfo(np.float32).min  # so that -inf never passes
    row = np.flatnonzero(values >= least.clip(lowest).astype(np.float32)[:, None])
    if len(row) > count:
        block = row // BLOCK
        bound = values.reshape(-1)[row] * scale[block] + shift[block]
        row = np.sort(row[np.argpartition(bound, len(row) - count)[len(row) - count :]])
    return row


def _near(
    queries: WideRows, segment: Segment, query: int, row: NDArray[np.int64]
) -> NDArray[np.float64]:
    """Near scores (p,) of a query and rows (p,)."""
    if not len(row):
        return np.empty(0)
    numbers = torch.full((len(row),), query, dtype=torch.int64, device="cpu")
    found = near_scores(queries, segment.rows, numbers, torch.from_numpy(row), segment.norms)
    return found.numpy()
