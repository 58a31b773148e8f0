"""Float products of a search, in few shapes: by oneDNN, or by torch.mm where that is faster."""

from __future__ import annotations

from collections.abc import Callable, Iterator

import torch
from torch import Tensor

from cossim_fast import _products
from cossim_fast._shapes import cut
from cossim_fast.retrieval.screening.int8 import width

# [rows] With fewer on either side, torch.mm multiplies.
FEWEST = 16
# [rows] Of the smallest product, a power of two.
_LEAST = 64
# [rows] Of the largest product, a power of two.
_MOST = 1 << 14

# Which rows, and their products (r, m).
Part = tuple[slice, Tensor]


def parts(rows: Tensor, others: Tensor) -> Iterator[Part]:
    """Yield parts of the product (n, m) of rows (n, d) and others (m, d), transposed, in float32.

    Each is a sum of d products, in any order, so its error is at most d 2^-24 / (1 - d 2^-24) times
    the product of the norms.
    """
    n, m = len(rows), len(others)
    if min(n, m) < FEWEST or not _products.linear_is_faster():
        yield slice(0, n), _products.mm(rows, others.mT)
    else:
        yield from in_few_shapes(rows.contiguous(), others, _products.linear)


def in_few_shapes(
    rows: Tensor, others: Tensor, multiply: Callable[[Tensor, Tensor], Tensor]
) -> Iterator[Part]:
    """Yield parts of the product (n, m) of rows (n, d) and others (m, d).

    The rows of a part are padded to a power of two from 64 on, and the others to their `width`.
    With chunks of 2048 rows that gives six shapes for one m, 4 MB of machine code, and 114 shapes
    for all m up to 1024.

    Args:
        rows: (n, d).
        others: (m, d).
        multiply: (r, d) and (w, d) to (r, w), which the next call may overwrite.
    """
    n, m = len(rows), len(others)
    wide = _padded(others, width(m))
    for some in cut(n, _LEAST, _MOST):
        kept = slice(some.start, min(some.stop, n))
        left = _padded(rows[kept], some.stop - some.start)
        yield kept, multiply(left, wide)[: kept.stop - kept.start, :m]


def product(rows: Tensor, others: Tensor) -> Tensor:
    """Rows (n, d) times others (m, d), transposed, in float32: (n, m), see `parts`."""
    found = rows.new_empty((len(rows), len(others)))
    for some, values in parts(rows, others):
        if values.shape == found.shape:
            return values
        found[some] = values
    return found


def _padded(rows: Tensor, count: int) -> Tensor:
    """Contiguous rows, padded with zeros to so many; not copied if they are that already."""
    if count == len(rows):
        return rows.contiguous()  # `pad` would copy them
    return torch.nn.functional.pad(rows, (0, 0, 0, count - len(rows)))
