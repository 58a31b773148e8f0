"""Losses by differentiable torch operations, in strips of rows: for other devices, and for graphs.

A strip's logits are computed once more for its derivatives, of any order, instead of being kept.
"""

from __future__ import annotations

from collections.abc import Callable
from typing import Any

import torch
from torch import Tensor
from torch.autograd import forward_ad
from torch.nn.functional import softplus
from torch.utils.checkpoint import checkpoint

from cossim_fast._composite import unit_rows
from cossim_fast._dtypes import accumulation_dtype
from cossim_fast.losses.tiles import spans

# [numbers] Of the logits of a strip.
STRIP = 1 << 24
# [natural units] Above it softplus(x) is x, in float64.
LINEAR = 40.0


def in_strips(body: Callable[..., Tensor], n: int, m: int, *inputs: Any) -> Tensor:
    """What body(rows, *inputs) gives for strips of n rows, one below the other.

    Args:
        body: takes a slice of rows and the inputs; pure.
        n: how many rows.
        m: how many numbers it makes for each row.
        inputs: tensors by which there may be derivatives, and others.
    """
    strips = strips_of(n, m)
    if len(strips) <= 1 or not _computes_again():
        return body(slice(0, n), *inputs)
    return torch.cat(
        [
            checkpoint(body, rows, *inputs, use_reentrant=False, preserve_rng_state=False)
            for rows in strips
        ]
    )


def strips_of(n: int, m: int) -> list[slice]:
    """Cut n rows, of m numbers each, into strips."""
    return spans(n, max(STRIP // max(m, 1), 1))


def _computes_again() -> bool:
    """Whether torch's state lets derivatives compute something once more."""
    return not (
        torch.compiler.is_compiling()
        or torch._C._get_tracing_state() is not None
        or torch._C._are_functorch_transforms_active()
        or torch._C._len_torch_dispatch_stack() > 0
        or forward_ad._current_level >= 0
    )


def wide_rows(x: Tensor, eps: float | None) -> Tensor:
    """Unit rows in float32 or float64, or rows as they are for eps = None; differentiable."""
    x = x.to(accumulation_dtype(x.dtype))
    return x if eps is None else unit_rows(x, -1, eps)


def log_sum(logits: Tensor, left_out: Tensor) -> Tensor:
    """Log of the sum of exp of what is not left out of each row (r, m), (r,)."""
    # Not of -inf, whose softmax would be NaN in a row of nothing else.
    return logits.masked_fill(left_out, torch.finfo(logits.dtype).min / 4).logsumexp(1)


def class_losses(logits: Tensor, left_out: Tensor, among: Tensor) -> Tensor:
    """Losses of rows with several positives, and how many they have, (r, 2).

    Args:
        logits: (r, m).
        left_out: (r, m) bool: what is no negative.
        among: (r, m) bool: the positives.
    """
    count = among.sum(1)
    mean = torch.where(among, logits, 0.0).sum(1) / count.clamp_min(1)
    # Of one positive the logarithm of the sum is the mean, to the last digit.
    positives = torch.where(count == 1, mean, log_sum(logits, ~among))
    more = softplus(log_sum(logits, left_out) - positives, threshold=LINEAR)
    losses = torch.where(count > 0, more + (positives - mean), 0.0)
    return torch.stack([losses, count.to(losses.dtype)], 1)
