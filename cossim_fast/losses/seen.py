"""What a loss leaves behind for those who watch it: `diagnose.CollapseMonitor` needs no product.

A softmax loss notes the sums of its pass in `Sums`, and the graph of its value keeps them, with the
derivative by the scale and weak references to the rows. `pass_of` reads them.
"""

from __future__ import annotations

from typing import Any, NamedTuple

import torch
from torch import Tensor

from cossim_fast.losses.contrast import ContrastLoss
from cossim_fast.losses.siglip import SigmoidLoss
from cossim_fast.losses.softmax import SoftmaxLoss
from cossim_fast.losses.sums import Sums
from cossim_fast.losses.tiles import BITS

# Nodes between a loss and what is made of it: a bias that changes nothing, a weight.
_DEEPEST = 4


class Pass(NamedTuple):
    """One forward pass of a loss that made its gradients.

    With N_i the sum over the negatives of row i of exp(S_ij - S_ip), p its positive.

    Attributes:
        x: rows (n, d).
        y: rows (m, d); x itself where rows are compared with each other.
        positives: int64 (n,): the row of y that belongs to each row of x, -1 for none.
        scale: of the cosines in S.
        negatives: how many rows of y are left for a row of x beside its positive and itself.
        log_ratios: float64 (k,), log N_i of each softmax; None where there is none.
        by_scale: the derivative of the sum of the k terms log1p(N_i) by the scale.
    """

    x: Tensor
    y: Tensor
    positives: Tensor
    scale: float
    negatives: int
    log_ratios: Tensor | None
    by_scale: float


def pass_of(value: Tensor) -> Pass | None:
    """The pass that made a loss; None where it cannot be read.

    Read are `info_nce`, `clip`, `siglip` and `nt_xent` of rows on CPU in one process, reduced to
    one number, with a gradient to come, as long as its rows are there and were not changed.
    """
    node: Any = value.grad_fn
    for _ in range(_DEEPEST):
        if node is None or hasattr(node, "loss"):
            break
        following = getattr(node, "next_functions", ())
        node = following[0][0] if following else None
    loss = getattr(node, "loss", None)
    if not isinstance(loss, SoftmaxLoss | SigmoidLoss | ContrastLoss) or not loss.is_scalar:
        return None
    *refs, versions, scale = node.inputs
    x, y = (ref() for ref in refs)
    if x is None or y is None or (x._version, y._version) != versions:
        return None
    x, y = x.detach(), y.detach()
    row = torch.arange(len(x), dtype=torch.int64, device="cpu")
    if isinstance(loss, SigmoidLoss):
        return Pass(x, y, row, scale, max(len(y) - 1, 0), None, 0.0)
    if not loss.sums:
        return None
    if isinstance(loss, ContrastLoss):
        x = y = torch.cat([x, y])
        positives, others = loss.partner, max(len(x) - 2, 0)
    else:
        positives, others = loss.positives, max(len(y) - 1, 0)
    positives = row if positives is None else positives
    ratios = _log_ratios(loss.sums[-1], positives)
    # Each term counts 1/k of a mean; of a sum over rows, half where columns have a term too.
    count = max(int((positives >= 0).sum()), 1)
    terms = len(ratios) if loss.reduction == "mean" else len(ratios) / count
    return Pass(x, y, positives, scale, others, ratios, node.by_numbers[0] * terms)


def _log_ratios(sums: Sums, positives: Tensor) -> Tensor:
    kept = positives >= 0
    found = [(sums.by_row - sums.positive)[kept]]
    if sums.by_column is not None:
        found.append(sums.by_column[positives[kept]] - sums.positive[kept])
    return torch.cat(found) / BITS
