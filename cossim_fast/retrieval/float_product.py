"""The float32 product of a search: torch.mm, or oneDNN's where that is the faster."""

from __future__ import annotations

import torch
from torch import Tensor

from cossim_fast import _products
from cossim_fast.retrieval.int8 import even_rows, width

# Fewer rows on either side are multiplied by torch.mm.
FEWEST = 16


def product(rows: Tensor, others: Tensor) -> Tensor:
    """Rows (n, d) times others (m, d), transposed, in float32: (n, m).

    Sums of d products, each rounded, in any order; so off by at most d 2^-24 / (1 - d 2^-24) of
    the product of the norms.
    """
    n, m = len(rows), len(others)
    if min(n, m) < FEWEST or not _products.linear_is_faster():
        return _products.mm(rows, others.mT)
    # Of few shapes: oneDNN makes code for each, and keeps it.
    return _products.linear(_padded(rows, even_rows(n)), _padded(others, width(m)))[:n, :m]


def _padded(rows: Tensor, count: int) -> Tensor:
    """Rows with zeros up to so many, in one piece; they themselves where they are."""
    if count == len(rows):
        return rows.contiguous()  # `pad` would copy them
    return torch.nn.functional.pad(rows, (0, 0, 0, count - len(rows)))
