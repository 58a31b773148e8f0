"""Batches of embeddings on which losses are compared with those of other libraries."""

from __future__ import annotations

import torch
from torch import Tensor
from torch.nn.functional import normalize

# What is hard about them, and the norm of rows: 1, or as it comes.
KINDS = ("random", "alike", "equal", "saturated", "opposite", "one pair")


def pairs(kind: str, n: int = 12, d: int = 16, seed: int = 0) -> tuple[Tensor, Tensor]:
    """Rows (n, d) and rows that belong to them, of norm 1, in float64."""
    numbers = torch.Generator().manual_seed(seed)

    def some(*shape: int) -> Tensor:
        return torch.randn(*shape, generator=numbers, dtype=torch.float64)

    x = some(1 if kind == "one pair" else n, d)
    y = x + 0.5 * some(*x.shape)
    if kind == "alike":
        x, y = (t[:1] + 1e-3 * t for t in (x, y))
    elif kind == "equal":
        # Duplicates within a side, and across.
        x[1::2] = x[::2]
        y[::3] = y[0]
        y[1] = x[1]
    elif kind == "saturated":
        y = x + 1e-4 * some(n, d)
    elif kind == "opposite":
        y = -x
    return normalize(x, dim=1), normalize(y, dim=1)
