"""From the losses of rows to what is returned."""

from __future__ import annotations

from torch import Tensor


def reduced(losses: Tensor, count: Tensor | int, reduction: str) -> Tensor:
    """The losses as they are, their sum, or their sum over how many count, 0 where none does."""
    if reduction == "none":
        return losses
    total = losses.sum()
    if reduction == "sum":
        return total
    return total / (count.clamp_min(1) if isinstance(count, Tensor) else max(count, 1))
