"""The nearest rows of a group of queries in a run of rows, and how such results are merged.

A block of work reads a group of queries, and streams consecutive rows past them. Each row is read
and coded once for the whole group. What the queries have found so far is their threshold for the
rows that follow. A block that begins after others have finished takes their k-th best scores as
floors, and finds only what is better.

What that costs: processor seconds of blocks relative to `cossim_fast.topk` of the same rows, on one
thread of Zen 5, 384 numbers in float32, files of 25 000 rows, k = 10. Blocks repeat what is done
once for each query, so the fewer rows a block has, the more they cost.

| rows | queries | one block | two | four | eight | eight without floors |
| --- | --- | --- | --- | --- | --- | --- |
| 200 000 | 12 288 | 1.09 | 1.10 | 1.15 | | |
| 200 000 | 4096 | 1.26 | 1.26 | 1.37 | 1.35 | 2.04 |
| 120 000 | 16 384 | 1.00 | | | 1.27 | 2.00 |
"""

from __future__ import annotations

from collections.abc import Sequence
from typing import Any

import numpy as np
from numpy.typing import NDArray

from cossim_fast.distributed.rows import Rows, held_bytes, panel, pieces, streamed
from cossim_fast.retrieval import blocks
from cossim_fast.retrieval.blocks import Nearest

# [bytes] For each thread: tiles of scores, and a copy of codes.
_THREAD = 64 << 20
# [bytes] For each query: what the allocator of C cannot give back between batches. Up to 8 kB were
# met, in 32 batches of 768 numbers (glibc 2.36).
_SCATTERED = 10 << 10
# [bytes] A candidate; there are about two for each result.
_CANDIDATE = 33
# [queries, results] Most of a batch, as they are searched together.
_BATCH = 1 << 10
_BATCH_RESULTS = 1 << 20


def search_block(
    queries: Rows,
    query_range: tuple[int, int],
    corpus: Rows,
    row_range: tuple[int, int],
    k: int,
    floors: NDArray[np.float64] | None = None,
    *,
    seen: int = 0,
    screen: str = "auto",
) -> Nearest:
    """The k best rows of a range for each query of a range, with their scores in float64.

    Args:
        queries: all of them.
        query_range: first number, and the number after the last.
        corpus: all rows.
        row_range: as for queries; numbers in the result are those of the corpus.
        k: how many.
        floors: (q,) of these queries, from `floors_of`.
        seen: among how many rows the floors were found. No result depends on it.
        screen: as for `topk`.

    Returns:
        Nearest(scores, rows): (q, k) float64 and int64. Rows below the floors may be left out, so
        that there may be fewer than k: NaN and -1.

    Memory: `memory_of`, whatever the number of rows.
    """
    asked = panel(queries, *query_range)
    return blocks.search(
        asked,
        pieces(corpus, *row_range),
        *row_range,
        k,
        floors=floors,
        seen=seen,
        screen=screen,
    )


def merge(parts: Sequence[Nearest]) -> Nearest:
    """The k best of several parts, whose rows are different: by score, then by row number.

    Scores must be float64, as they come from `search_block`.
    """
    first, *others = parts
    if not others:
        return first
    k = first.scores.shape[1]
    scores, rows = (np.concatenate(columns, axis=1) for columns in zip(*parts, strict=True))
    order = np.lexsort((rows, -scores))[:, :k]  # NaN comes last
    return Nearest(np.take_along_axis(scores, order, 1), np.take_along_axis(rows, order, 1))


def floors_of(found: Nearest) -> NDArray[np.float64]:
    """The floors (q,) that a result proves: its k-th best scores; -inf where there are fewer.

    They are 2^-47 lower, since on a worker with another processor a score may differ by 2^-48.
    """
    kth = found.scores[:, -1]
    return np.where(np.isnan(kth), -np.inf, kth - 2.0**-47)


def rounded(found: Nearest, *, double: bool) -> tuple[NDArray[Any], NDArray[np.int64]]:
    """Scores and rows as `topk` returns them: float32, unless queries or corpus are float64."""
    return found if double else (found.scores.astype(np.float32), found.rows)


def memory_of(
    queries: int, k: int, query_bytes: int, width: int, row_bytes: int, threads: int = 1
) -> int:
    """Bytes that `search_block` takes at most, beyond what the process had before.

    For each query: the row as it is stored, in float64 (8 a number) and its code (1 a number), 33
    for each of its k results, twice while parts are put together, and 10 kB. For each of 1024
    queries that a thread searches together: 33 for each of 2 k candidates, twice while they are
    sorted; and 64 MB a thread. For the rows `streamed`, however many there are.

    Args:
        queries: of the group.
        k: how many rows each is to get.
        query_bytes: of a query as it is stored, see `row_bytes`.
        width: numbers of a row.
        row_bytes: of a row of the corpus as it is stored.
        threads: of the worker.
    """
    group = queries * (held_bytes(query_bytes, width) + 9 * width + 2 * _CANDIDATE * k + _SCATTERED)
    batch = min(queries, _BATCH, max(_BATCH_RESULTS // k, 1))
    thread = _THREAD + batch * 4 * _CANDIDATE * k
    return group + streamed(row_bytes // width) + threads * thread
