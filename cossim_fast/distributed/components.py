"""Connected components: rows that a chain of pairs links are together.

That is another answer than greedy deduplication, in which a row is dropped only if it is similar to
a row that is kept: in a component, the first and the last row of a chain need not be similar.
"""

from __future__ import annotations

from collections.abc import Iterable

import numpy as np
from numpy.typing import NDArray


def connected_components(
    blocks: Iterable[tuple[NDArray[np.int64], NDArray[np.int64]]], n: int
) -> NDArray[np.int64]:
    """The component (n,) of each row, named by the smallest number of a row in it.

    Args:
        blocks: pairs (i, j), (p,) each, in any order.
        n: how many rows there are. A row in no pair is a component of its own.

    Memory: 17 bytes a row, and 50 a pair of a block.

    Source: each root takes the smallest root that it is linked to (Shiloach and Vishkin, An
    O(log n) parallel connectivity algorithm, 1982), until all pairs are within a component.
    """
    parent = np.arange(n, dtype=np.int64)
    for i, j in blocks:
        _link(parent, i, j)
    while True:
        above = parent[parent]
        if np.array_equal(above, parent):
            return parent
        parent = above


def _link(parent: NDArray[np.int64], i: NDArray[np.int64], j: NDArray[np.int64]) -> None:
    """Put the components of the rows of each pair together."""
    while len(i):
        i, j = _roots(parent, i), _roots(parent, j)
        apart = i != j
        i, j = i[apart], j[apart]
        # Parents have smaller numbers, so there is no cycle.
        np.minimum.at(parent, np.maximum(i, j), np.minimum(i, j))


def _roots(parent: NDArray[np.int64], rows: NDArray[np.int64]) -> NDArray[np.int64]:
    """The roots (p,) of rows; the way there is made shorter for the next time."""
    at = rows
    while True:
        up = parent[at]
        if np.array_equal(up, at):
            break
        above = parent[up]
        parent[at] = above
        at = above
    parent[rows] = at
    return at
