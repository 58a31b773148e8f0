"""The shortest honest float64 form of each function: what the tests compare with."""

from __future__ import annotations

import torch
from torch import Tensor
from torch.nn.functional import logsigmoid


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


def info_nce(
    queries: Tensor,
    keys: Tensor,
    *,
    temperature: float | Tensor = 0.07,
    positives: Tensor | None = None,
    query_ids: Tensor | None = None,
    key_ids: Tensor | None = None,
    margin: float | None = None,
    symmetric: bool = False,
    reduction: str = "mean",
    normalize: bool = True,
    eps: float = 1e-8,
) -> Tensor:
    """Each query's loss, log(1 + sum over negatives exp(s - s_p)), in float64, one by one."""
    cosines = _rows(queries, normalize, eps) @ _rows(keys, normalize, eps).T
    n, m = cosines.shape
    row = torch.arange(n, device=cosines.device)
    chosen = row if positives is None else positives
    by_row = torch.zeros((n, m), dtype=torch.bool, device=cosines.device)
    by_row[row[chosen >= 0], chosen[chosen >= 0]] = True
    if query_ids is not None and key_ids is not None:
        by_row = by_row | _equal(query_ids, key_ids)
    losses = [cosines.sum() * 0.0] * n
    for i, p in enumerate(chosen.tolist()):
        if p >= 0:
            sides = [(cosines[i], by_row[i])]
            sides += [(cosines[:, p], by_row[:, p])] if symmetric else []
            losses[i] = _mean_loss(sides, cosines[i, p], temperature, margin)
    together = torch.stack(losses) if n else cosines.sum(1)
    return _reduced(together, chosen >= 0, reduction)


def _mean_loss(
    sides: list[tuple[Tensor, Tensor]], own: Tensor, temperature: float | Tensor,
    margin: float | None,
) -> Tensor:  # fmt: skip
    """The mean over the sides, cosines and which of them are no negatives, of log(1 + sum)."""
    total = own.new_zeros(())
    for cosines, excluded in sides:
        rest = excluded if margin is None else excluded | (cosines > own + margin)
        positive = (own / temperature)[None]
        total = total + _softplus_of_sum((cosines / temperature)[None], rest[None], positive)[0]
    return total / len(sides)


def clip(
    image: Tensor,
    text: Tensor,
    logit_scale: float | Tensor,
    logit_bias: float | Tensor | None = None,
    *,
    image_ids: Tensor | None = None,
    text_ids: Tensor | None = None,
    reduction: str = "mean",
    normalize: bool = True,
    eps: float = 1e-8,
) -> Tensor:
    """The mean of the cross-entropies of images among texts and of texts among images."""
    logits = logit_scale * (_rows(image, normalize, eps) @ _rows(text, normalize, eps).T)
    if logit_bias is not None:
        logits = logits + logit_bias
    own = logits.diagonal()
    excluded = torch.eye(len(logits), dtype=torch.bool, device=logits.device)
    if image_ids is not None and text_ids is not None:
        excluded = excluded | _equal(image_ids, text_ids)
    by_image = _softplus_of_sum(logits, excluded, own)
    by_text = _softplus_of_sum(logits.T, excluded.T, own)
    return _reduced((by_image + by_text) / 2, torch.ones_like(own), reduction)


def siglip(
    image: Tensor,
    text: Tensor,
    logit_scale: float | Tensor,
    logit_bias: float | Tensor | None = None,
    *,
    image_ids: Tensor | None = None,
    text_ids: Tensor | None = None,
    reduction: str = "mean",
    normalize: bool = True,
    eps: float = 1e-8,
) -> Tensor:
    """The sigmoid loss of image i with text i and, as negatives, with every other, in float64."""
    logits = logit_scale * (_rows(image, normalize, eps) @ _rows(text, normalize, eps).T)
    logits = logits if logit_bias is None else logits + logit_bias
    positive = torch.eye(*logits.shape, dtype=torch.bool, device=logits.device)
    pairs = -logsigmoid(torch.where(positive, logits, -logits))
    if image_ids is not None and text_ids is not None:
        pairs = pairs.masked_fill(_equal(image_ids, text_ids) & ~positive, 0.0)
    return _reduced(pairs.sum(1), torch.ones_like(pairs[:, :0].sum(1)), reduction)


def nt_xent(
    z0: Tensor,
    z1: Tensor,
    *,
    temperature: float | Tensor = 0.5,
    ids: Tensor | None = None,
    reduction: str = "mean",
    normalize: bool = True,
    eps: float = 1e-8,
) -> Tensor:
    """SimCLR's loss of the 2 n rows of both views: log(1 + sum over negatives exp(s - s_p))."""
    n = len(z0)
    z = torch.cat([_rows(z0, normalize, eps), _rows(z1, normalize, eps)])
    logits = z @ z.T / temperature
    row = torch.arange(2 * n, device=z.device)
    excluded = (row[:, None] - row) % max(n, 1) == 0
    if ids is not None:
        excluded = excluded | _equal(ids, ids).repeat(2, 2)
    positive = logits.diagonal(n), logits.diagonal(-n)
    return _reduced(_softplus_of_sum(logits, excluded, torch.cat(positive)),
                    torch.ones_like(row), reduction)  # fmt: skip


def sup_con(
    z: Tensor,
    labels: Tensor,
    *,
    temperature: float | Tensor = 0.1,
    ref: Tensor | None = None,
    ref_labels: Tensor | None = None,
    reduction: str = "mean",
    normalize: bool = True,
    eps: float = 1e-8,
) -> Tensor:
    """L_out of Khosla et al.: the mean over positives p of log(sum over a of exp(s_a - s_p))."""
    rows = _rows(z, normalize, eps)
    others = rows if ref is None else _rows(ref, normalize, eps)
    logits = rows @ others.T / temperature
    seen = torch.ones_like(logits, dtype=torch.bool)
    if ref is None:
        seen = ~torch.eye(len(z), dtype=torch.bool, device=z.device)
    positive = seen & _equal(labels, labels if ref_labels is None else ref_labels)
    count = positive.sum(1)
    # For each positive apart: nothing is subtracted from a sum that holds it.
    losses = logits[:, :0].sum(1)
    for column in range(logits.shape[1]):
        rest = ~seen | (torch.arange(logits.shape[1], device=z.device) == column)
        one = _softplus_of_sum(logits, rest, logits[:, column])
        losses = losses + torch.where(positive[:, column], one, 0.0) / count.clamp(min=1)
    return _reduced(losses, count > 0, reduction)


def batch_hard_triplet(
    z: Tensor,
    labels: Tensor,
    *,
    margin: float,
    reduction: str = "mean",
    normalize: bool = True,
    eps: float = 1e-8,
) -> Tensor:
    """max(0, margin + the farthest positive's cosine distance - the nearest negative's)."""
    rows = _rows(z, normalize, eps)
    cosines = rows @ rows.T
    same = _equal(labels, labels)
    positive = same & ~torch.eye(len(z), dtype=torch.bool, device=z.device)
    valid = positive.any(1) & ~same.all(1)
    if not valid.any():
        return _reduced(cosines.sum(1) * 0.0, valid, reduction)
    farthest = (1 - cosines).masked_fill(~positive, -torch.inf).max(1).values
    nearest = (1 - cosines).masked_fill(same, torch.inf).min(1).values
    losses = torch.where(valid, (margin + farthest - nearest).clamp(min=0), 0.0)
    return _reduced(losses, valid, reduction)


def _rows(x: Tensor, normalize: bool, eps: float) -> Tensor:
    """Unit rows in float64, whose derivative is that of x / max(|x|, eps) with eps unseen."""
    x = x.double()
    if not normalize or x.numel() == 0:
        return x
    largest = x.detach().abs().amax(1, keepdim=True)
    largest = torch.where((largest > 0) & largest.isfinite(), largest, torch.ones_like(largest))
    norm: Tensor = largest * torch.linalg.vector_norm(x / largest, dim=1, keepdim=True)
    norm = norm + (norm.clamp(min=eps) - norm).detach()
    return x / norm


def _equal(ids: Tensor, others: Tensor) -> Tensor:
    return ids[:, None] == others


def _softplus_of_sum(logits: Tensor, excluded: Tensor, positive: Tensor) -> Tensor:
    """log(1 + sum over the rest of each row of exp(logit - positive)), however small."""
    if logits.numel() == 0:
        return positive
    rest = logits.masked_fill(excluded, -torch.inf)
    none_left = excluded.all(1)
    total = rest.masked_fill(none_left[:, None], 0.0).logsumexp(1)
    # Without negatives 0, but NaN for a row of NaN.
    return torch.where(none_left, 0.0 * positive, -logsigmoid(positive - total))


def _reduced(losses: Tensor, counted: Tensor, reduction: str) -> Tensor:
    """The mean is that of the rows that count; 0 if there are none."""
    if reduction == "none":
        return losses
    total = losses.sum()
    return total if reduction == "sum" else total / counted.sum().clamp(min=1)
