"""The sums of a softmax loss's pass, which it notes for those who watch it."""

from __future__ import annotations

from typing import NamedTuple

from torch import Tensor


class Sums(NamedTuple):
    """Logarithms in bits, float64.

    Attributes:
        positive: (n,), the logit of each row's positive, +inf for none.
        by_row: (n,), of the sum over the negatives of each row, -inf for none.
        by_column: (m,), of each column likewise, where the loss is symmetric.
    """

    positive: Tensor
    by_row: Tensor
    by_column: Tensor | None = None
