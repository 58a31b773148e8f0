"""One or two queries against the heads of rows, in an index that is searched again and again.

Reading the codes of all rows is what a search of one query takes. The heads of rows (`heads`), a
third or half as many numbers, bound every cosine from above. The rows whose bounds are largest are
scored; the k-th of these scores is proven to be reached; and of the other rows those whose bounds
reach it are scored too. Nothing is guessed.

Heads are coded after 16 searches of one or two queries. These have said by then which
cosines the k-th best rows have, from which it is known what heads of each width would let through.
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
    """Whether a search of so many queries may use heads, or say whether they pay."""
    heads = segment.projection
    if heads is None or heads.given_up or not 0 < queries <= tuning.FEW_QUERIES:
        return False
    d = segment.rows.shape[1]
    if d <= tuning.FEW_STEP or segment.rows.numel() < tuning.FEW_NUMBERS:
        return False
    # Else it is no small share of the rows that has to be scored for the first threshold.
    return 2 * _first(k) <= len(segment.radius)


def projection_of(segment: Segment, centre: Tensor) -> Projection | None:
    """The heads of a segment, if they are coded or it is time that they are."""
    assert segment.projection is not None
    return segment.projection.made(segment, centre)


def note(segment: Segment, queries: WideRows, threshold: Tensor) -> None:
    """Note that queries were searched, and the k-th best score (q,) of each."""
    assert segment.projection is not None
    known = threshold.isfinite()
    if segment.projection.head is None and known.any():
        segment.projection.note(queries.unit()[known], threshold[known])


def _first(k: int) -> int:
    """Rows to score for a first threshold."""
    return tuning.FEW_FIRST * k + tuning.FEW_FIRST_MORE


def through(
    head: Projection,
    segment: Segment,
    queries: WideRows,
    pool: Pool,
    error: float,
    trace: Trace,
    forbidden: tuple[Tensor, Tensor] | None = None,
) -> bool:
    """Put every row of a segment that may be among the best into the pool, with its score.

    Args:
        head: of the segment.
        segment: the next rows.
        queries: one or two.
        pool: for these queries.
        error: of a near score.
        trace: takes notes.
        forbidden: pairs (query numbers, positions) that may not be returned, sorted by position.

    Returns:
        False where to score all of them promises to take longer than to compare whole codes. None
        is in the pool then.
    """
    assert segment.projection is not None
    pool.close(~queries.norms.isfinite())
    n, d = segment.rows.shape
    most = int(n * d * tuning.FEW_CODE_NS / costs.pair(d))
    found: list[tuple[int, NDArray[np.int64], NDArray[np.float64]]] = []
    tile, threshold = _tile(head, segment, queries, forbidden), pool.threshold.numpy()
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
    trace.note_projection(head.width, n, sum(len(row) for _, row, _ in found))
    return True


def _tile(
    head: Projection, segment: Segment, queries: WideRows, forbidden: tuple[Tensor, Tensor] | None
) -> Tile:
    """What heads say of all rows of a segment; -inf where a row may not be returned."""
    n, count, screen = len(segment), len(queries.norms), head.screen
    terms = screen.queries(queries, head.centre)
    # Codes that are multiplied as they lie need no tiles.
    size = tile_rows(count, 1, head.width) if isinstance(terms, CodedTerms) else n
    values = torch.cat(
        [screen.product(head.split, rows, head.centre, terms) for rows in tiles(n, size)]
    )
    segment.mask_banned(slice(0, n), values, -torch.inf)
    if forbidden is not None:
        query, position = forbidden
        span = torch.tensor([segment.first, segment.first + n], dtype=torch.int64, device="cpu")
        begin, end = torch.searchsorted(position, span).tolist()
        values[position[begin:end] - segment.first, query[begin:end]] = -torch.inf
    blocks = screen.blocks(head.split, slice(0, len(values) // BLOCK))
    return Tile(segment.first, values, terms, blocks)


def _largest(
    values: NDArray[np.float32],
    scale: NDArray[np.float64],
    shift: NDArray[np.float64],
    count: int,
) -> NDArray[np.int64]:
    """The rows (p,), ascending, of the largest bounds, about so many; none of -inf.

    Args:
        values: (blocks, 64).
        scale: (blocks,); times a value, plus the shift, it is a bound.
        shift: (blocks,).
        count: up to the number of blocks.
    """
    bound = values.max(1) * scale + shift
    cut = np.partition(bound, len(bound) - count)[len(bound) - count]
    least = (cut - shift) / scale
    least -= 2.0**-22 * abs(least)  # not to lose by rounding the row that it comes from
    lowest = np.finfo(np.float32).min  # -inf reaches nothing
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
