"""The pairs of two runs of rows that reach a threshold: a block of a join.

A join of n rows with themselves in panels of p rows is a triangle of n / p (n / p + 1) / 2 blocks.
A block keeps one panel, coded, and streams the other past it. All blocks together read each row
n / p + 1 times, and their memory depends on p alone.

What that costs: 120 000 rows of 384 numbers in float32 in 2 panels took 1.12 times the processor
seconds of `pairs_above` (one thread of Zen 5), 60 000 rows in 3 panels 1.47 times, where a block
takes half a second: reading and coding its rows, and the choice of a projection, are repeated.
"""

from __future__ import annotations

import numpy as np
from numpy.typing import NDArray

from cossim_fast.distributed.rows import Rows, held_bytes, numbers, panel, pieces, streamed
from cossim_fast.retrieval import Pairs, blocks

# [numbers] Of a panel: its codes stay in memory, and products take some hundred times as long as
# to read and to code it.
PANEL = 1 << 27
# [bytes] A pair, of float32 scores.
PAIR_BYTES = 20
# [bytes] For each thread: tiles of scores, and codes of queries.
_THREAD = 64 << 20
# [numbers] Of the queries of a round: in float64, as unit rows, and as codes.
_ROUND = 1 << 23
# [pairs] Of a round, with 100 bytes each while they are sorted.
_ROUND_PAIRS = 1 << 21


def panel_rows(width: int) -> int:
    """How many rows of so many numbers make a panel."""
    return max(PANEL // max(width, 1) // 64, 1) * 64


def join_block(
    x: Rows,
    x_range: tuple[int, int],
    y: Rows,
    y_range: tuple[int, int],
    threshold: float,
    same: bool,
    max_pairs: int | None = None,
    *,
    without: NDArray[np.int64] | None = None,
    screen: str = "auto",
) -> Pairs:
    """Every pair of a row of x and a row of y, each of a range, that reaches a threshold.

    Args:
        x: all rows of one side.
        x_range: first number, and the number after the last, of the rows that are streamed.
        y: all rows of the other side.
        y_range: likewise of the panel that is kept.
        threshold: -1 to 1.
        same: whether x and y are the same rows. Then the ranges are equal, and i < j; or all
            numbers of x_range are smaller.
        max_pairs: raise an error as soon as more pairs are found.
        without: (r,) numbers of rows to leave out, ascending: copies of others, where x and y are
            the same.
        screen: as for `pairs_above`.

    Returns:
        Pairs(i, j, scores): int64, int64, and float32 (float64 if x or y is), with the numbers of
        all rows, sorted by i, then j.

    Raises:
        TooManyPairsError: past ``max_pairs``.

    Memory: `memory_of`, whatever the number of rows of x.
    """
    itself = same and x_range == y_range
    if same and not itself and x_range[1] > y_range[0]:
        raise ValueError(
            f"expected x_range before y_range, or both equal, got {x_range}, {y_range}"
        )
    i_of, j_of = (numbers(*each, without) for each in (x_range, y_range))
    found = blocks.join(
        panel(y, *y_range, without),
        None if itself else pieces(x, *x_range, without),
        threshold,
        rows=len(i_of),
        double="float64" in (x.dtype, y.dtype),
        most=max_pairs,
        screen=screen,
    )
    return Pairs(i_of[found.i], j_of[found.j], found.scores)


def memory_of(
    panel_rows: int, pairs: int, width: int, x_bytes: int, y_bytes: int, threads: int = 1
) -> int:
    """Bytes that `join_block` takes at most, beyond what the process had before.

    For the panel: rows as they are stored, and 5 bytes for each 3 numbers, for codes and their
    projections. For the rows that stream past it `streamed`, however many there are. For those of
    them that are searched together 17 bytes for each of 2^23 numbers, and 100 for each of 2^21
    pairs; 64 MB a thread. For each pair 20 bytes, twice (24 with scores in float64).

    Args:
        panel_rows: of the panel.
        pairs: most that are found.
        width: numbers of a row.
        x_bytes: of a row of x as it is stored, see `row_bytes`.
        y_bytes: of a row of y.
        threads: of the worker.
    """
    kept = panel_rows * (held_bytes(y_bytes, width) + 5 * width // 3 + 8)
    pair = PAIR_BYTES + (4 if 8 * width in (x_bytes, y_bytes) else 0)
    found = 100 * min(pairs, _ROUND_PAIRS) + 2 * pair * pairs
    return kept + streamed(x_bytes // width) + 17 * _ROUND + threads * _THREAD + found
