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


def expected(case: Case, *inputs: Tensor) -> tuple[Tensor, ...]:
    """The loss, and its gradients by the inputs."""
    leaves = [t.double().requires_grad_() for t in inputs]
    value = _loss(case, *leaves)
    return value.detach(), *torch.autograd.grad(value, leaves)


def _loss(case: Case, *inputs: Tensor) -> Tensor:
    if case.task == "SupCon loss":
        # In float64 nothing of it is lost: the oracle of sup_con goes positive by positive.
        return loss_peers.plain_sup_con(inputs[0], loss_peers.labels_of(len(inputs[0])))
    if case.task == "batch-hard loss":
        labels = loss_peers.labels_of(len(inputs[0]))
        return _reference.batch_hard_triplet(inputs[0], labels, margin=loss_peers.MARGIN)
    x, y = inputs
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


def error(case: Case, answer: tuple[Tensor, ...], exact: tuple[Tensor, ...]) -> float:
    """The largest difference of a part in the size of its largest entry.

    A triplet has another gradient where two rows are as near but for rounding: of these losses, the
    sum of squares of what differs, in that of what is exact.
    """
    differences = []
    for got, wanted in zip(answer, exact, strict=True):
        difference = got.double() - wanted
        if case.task == "batch-hard loss":
            differences.append(difference.square().sum() / wanted.square().sum())
        else:
            differences.append(difference.abs().max() / wanted.abs().max())
    return torch.stack(differences).max().item()
