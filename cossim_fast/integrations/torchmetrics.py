"""In place of ``torchmetrics.functional.pairwise_cosine_similarity``. Needs torch alone.

Written after torchmetrics 1.9.
"""

from __future__ import annotations

import torch
from torch import Tensor

from cossim_fast.functional import pairwise_cosine


def pairwise_cosine_similarity(
    x: Tensor,
    y: Tensor | None = None,
    reduction: str | None = None,
    zero_diagonal: bool | None = None,
) -> Tensor:
    """Return the cosine of every row of x with every row of y.

    Args:
        x: (n, d) tensor of a floating dtype.
        y: (m, d) likewise; None compares x with itself.
        reduction: ``"mean"`` or ``"sum"`` over the rows of y; None or ``"none"`` for neither.
        zero_diagonal: write 0 where row i meets row i; by default if there is no y.

    Returns:
        A tensor (n, m), or (n,) reduced, in the dtype of x. With gradients.

    What differs: a zero row scores 0, where torchmetrics gives NaN, and rows of any magnitude are
    right.

    >>> pairwise_cosine_similarity(torch.tensor([[3.0, 4.0]]), torch.tensor([[1.0, 0.0]]))
    tensor([[0.6000]])
    """
    if reduction not in ("mean", "sum", "none", None):
        raise ValueError(f"expected reduction to be 'mean', 'sum', 'none' or None, got {reduction}")
    for name, given in (("x", x), ("y", x if y is None else y)):
        if given.dim() != 2 or given.shape[1] != x.shape[-1]:
            raise ValueError(
                f"expected {name} of shape (n, d), of one d for x and y, got {tuple(given.shape)}"
            )
    found = pairwise_cosine(x, y, eps=torch.finfo(x.dtype).tiny)
    if y is None if zero_diagonal is None else zero_diagonal:
        same = torch.eye(*found.shape, dtype=torch.bool, device=found.device)
        found = found.masked_fill(same, 0)
    if reduction in (None, "none"):
        return found
    return found.mean(-1) if reduction == "mean" else found.sum(-1)
