"""The right answer of a loss: its value and its gradients by both inputs, in float64."""

from __future__ import annotations

import torch
import torch.nn.functional as F
from torch import Tensor

import loss_peers
from cases import Case
from cossim_fast import _reference

# Beyond this difference from float64, of the loss in its own size and of a gradient in that of its
# largest entry, an answer is wrong. Plain float32 is off by 1e-5 in logits, and so in weights.
WRONG = 1e-3


def expected(case: Case, x: Tensor, y: Tensor) -> tuple[Tensor, ...]:
    """The loss, and its gradients (n, d) and (m, d)."""
    leaves = [t.double().requires_grad_() for t in (x, y)]
    value = _loss(case, *leaves)
    return value.detach(), *torch.autograd.grad(value, leaves)


def _loss(case: Case, x: Tensor, y: Tensor) -> Tensor:
    if case.task == "SigLIP loss":
        return _reference.siglip(x, y, loss_peers.SCALE, loss_peers.BIAS)
    if case.task == "NT-Xent loss":
        return _reference.nt_xent(x, y, temperature=loss_peers.NT_XENT_TEMPERATURE)
    # torch's own in float64: the oracle of info_nce goes row by row.
    cached = case.task == "cached loss"
    scale = loss_peers.CACHED_SCALE if cached else 1 / loss_peers.TEMPERATURE
    logits = scale * (F.normalize(x) @ F.normalize(y).T)
    rows = torch.arange(len(logits))
    loss = F.cross_entropy(logits, rows)
    if case.task == "symmetric loss":
        loss = (loss + F.cross_entropy(logits.T, rows)) / 2
    return loss


def error(answer: tuple[Tensor, ...], exact: tuple[Tensor, ...]) -> float:
    """The largest difference of a part in the size of its largest entry."""
    differences = [
        (got.double() - wanted).abs().max() / wanted.abs().max()
        for got, wanted in zip(answer, exact, strict=True)
    ]
    return torch.stack(differences).max().item()
