"""The shortest honest float64 form of each function: what the tests compare with."""

from __future__ import annotations

import torch
from torch import Tensor


def cosine_similarity(x1: Tensor, x2: Tensor, dim: int = 1, eps: float = 1e-8) -> Tensor:
    """<x1, x2> / (max(|x1|, eps) max(|x2|, eps)) along `dim`, in float64."""
    a, b = torch.broadcast_tensors(x1.double(), x2.double())
    return (_over_norm(a, dim, eps) * _over_norm(b, dim, eps)).sum(dim)


def pairwise_cosine(x: Tensor, y: Tensor | None = None, eps: float = 1e-8) -> Tensor:
    """The (n, m) matrix of cosines between the rows of x and of y, in float64."""
    y = x if y is None else y
    return _over_norm(x.double(), -1, eps) @ _over_norm(y.double(), -1, eps).mT


def _over_norm(x: Tensor, dim: int, eps: float) -> Tensor:
    # Dividing by the largest entry first keeps the squares of 1e200 and 1e-200 in range.
    if x.dim() and x.shape[dim] == 0:
        return x
    largest = x.abs().amax(dim, keepdim=True)
    largest = torch.where((largest > 0) & largest.isfinite(), largest, torch.ones_like(largest))
    norm = largest * (x / largest).square().sum(dim, keepdim=True).sqrt()
    return x / norm.clamp(min=eps)
