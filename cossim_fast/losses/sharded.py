"""Contrastive losses over rows that several processes own.

Rank r owns rows and keys of a batch, and its loss is the sum over its own rows by N/W, where all W
ranks have N rows: the mean over them where all have as many. Its mean over the ranks is the loss
of one process that has all rows, and so are the gradients after DDP's averaging.

The forward pass hands all keys round once (`group.Shares.pieces`) and keeps a number or two for
each row; the backward pass hands them round again and gives their gradients back, scaled by what
each rank's rows are weighed with. Four products of this rank's rows with all keys in one direction
or both, three for SigLIP's; beside its own rows and their gradients a rank holds one piece of keys
and a tile of logits.
"""

from __future__ import annotations

import math
from typing import Any

import torch
from torch import Tensor
from torch.nn.functional import logsigmoid, softplus

from cossim_fast._autograd import graph_is_wanted
from cossim_fast._composite import unit_rows
from cossim_fast._dispatch import without_autocast
from cossim_fast._dtypes import accumulation_dtype
from cossim_fast.losses.group import Group, Shares
from cossim_fast.losses.sharded_tiles import (
    Derivatives,
    Job,
    LogSums,
    Pairs,
    Tile,
    masked,
    own_pairs,
    tiles,
)
from cossim_fast.losses.siglip import SigmoidLoss
from cossim_fast.losses.softmax import SoftmaxLoss

# More items than a rank has.
_MOST = 1 << 40


def softmax_loss(
    loss: SoftmaxLoss, x: Tensor, y: Tensor, scale: float | Tensor, group: Any
) -> Tensor:
    """The loss of this rank's rows x (n, d) among the keys of all ranks, y (m, d) its own.

    What `loss` says is of this rank's own rows and keys: positives are numbers of own keys.
    """
    u, v = _unit(x, y, loss.eps)
    scale = _number(scale, u)
    positives = torch.arange(len(u), device=u.device) if loss.positives is None else loss.positives
    known = int((positives >= 0).sum())
    alike: dict[str, float] = {
        "choice of symmetric": loss.symmetric,
        "choice of ids": loss.query_ids is not None,
        "margin": -1.0 if loss.margin is None else loss.margin,
    }
    shares, total = _shared(group, u, v, (scale,), known, alike)
    job = Job(
        shares,
        torch.where(positives < 0, -1, positives + shares.first),
        None if loss.query_ids is None else loss.query_ids.long(),
        None if loss.key_ids is None else shares.of_all(loss.key_ids.long()),
        loss.margin,
        loss.symmetric,
    )
    with without_autocast(u):
        losses, of_keys = _Contrast.apply(u, v, scale, job)  # type: ignore[no-untyped-call]
    if loss.symmetric:
        losses = (losses + of_keys) / 2
    return _reduced(losses, loss.reduction, total, shares.ranks.size).to(u.dtype)


def sigmoid_loss(
    loss: SigmoidLoss,
    x: Tensor,
    y: Tensor,
    scale: float | Tensor,
    bias: float | Tensor,
    group: Any,
) -> Tensor:
    """The loss of this rank's rows x (n, d) with the keys of all ranks, y (n, d) its own."""
    u, v = _unit(x, y, loss.eps)
    scale, bias = _number(scale, u), _number(bias, u)
    alike: dict[str, float] = {"choice of ids": loss.image_ids is not None}
    shares, total = _shared(group, u, v, (scale, bias), len(u), alike)
    positives = torch.arange(len(u), device=u.device) + shares.first
    ids = None if loss.image_ids is None else loss.image_ids.long()
    key_ids = None if loss.text_ids is None else shares.of_all(loss.text_ids.long())
    job = Job(shares, positives, ids, key_ids)
    with without_autocast(u):
        losses = _Sigmoid.apply(u, v, scale, bias, job)  # type: ignore[no-untyped-call]
    return _reduced(losses, loss.reduction, total, shares.ranks.size).to(u.dtype)


def views_loss(
    x: Tensor,
    y: Tensor,
    ids: Tensor | None,
    scale: float | Tensor,
    reduction: str,
    eps: float | None,
    group: Any,
) -> Tensor:
    """`nt_xent` of this rank's two views (n, d) of its items, (2 n,) of them, among all ranks'."""
    n = len(x)
    if ids is None:
        ids = torch.arange(n, device=x.device) + Group(group, x.device).rank * _MOST
    # No row is its own negative, for it has its own id.
    both = ids.long().repeat(2)
    partner = torch.arange(2 * n, device=x.device).roll(n)
    loss = SoftmaxLoss(partner, both, both, reduction=reduction, eps=eps)
    z = torch.cat([x, y])
    return softmax_loss(loss, z, z, scale, group)


def classes_loss(
    x: Tensor,
    labels: Tensor,
    ref: Tensor | None,
    ref_labels: Tensor | None,
    scale: float | Tensor,
    reduction: str,
    eps: float | None,
    group: Any,
) -> Tensor:
    """`sup_con` of this rank's rows x (n, d) among all ranks' rows, or all ranks' others."""
    itself = ref is None or ref_labels is None
    u, v = _unit(x, x if ref is None else ref, eps)
    scale = _number(scale, u)
    alike: dict[str, float] = {"choice of ref": not itself}
    shares, _ = _shared(group, u, v, (scale,), 0, alike)
    row = torch.arange(len(u), device=u.device)
    job = Job(
        shares,
        row + shares.first if itself else torch.full_like(row, -1),
        labels.long(),
        shares.of_all((labels if ref_labels is None else ref_labels).long()),
    )
    with without_autocast(u):
        losses, counts = _Classes.apply(u, v, scale, job)  # type: ignore[no-untyped-call]
    total = int(shares.ranks.sum((counts > 0).sum()))
    return _reduced(losses, reduction, total, shares.ranks.size).to(u.dtype)


def _unit(x: Tensor, y: Tensor, eps: float | None) -> tuple[Tensor, Tensor]:
    wide = accumulation_dtype(torch.promote_types(x.dtype, y.dtype))
    u, v = (t.to(wide) if eps is None else unit_rows(t.to(wide), -1, eps) for t in (x, y))
    return u.contiguous(), v.contiguous()


def _number(value: float | Tensor, like: Tensor) -> Tensor:
    if isinstance(value, Tensor):
        return value.to(like.device, torch.float64).reshape(())
    return torch.tensor(value, dtype=torch.float64, device=like.device)


def _shared(
    group: Any,
    u: Tensor,
    v: Tensor,
    numbers: tuple[Tensor, ...],
    known: int,
    alike: dict[str, float],
) -> tuple[Shares, int]:
    """Who owns which keys, and how many rows have a positive; or an error on every rank."""
    ranks = Group(group, u.device)
    alike = {"width of rows": u.shape[1], "dtype, in bits,": torch.finfo(u.dtype).bits, **alike}
    # A rank that takes no part in the backward pass would leave the others waiting.
    for name, t in zip(("rows", "keys", "scale", "bias"), (u, v, *numbers), strict=False):
        alike[f"choice of a gradient by the {name}"] = torch.is_grad_enabled() and t.requires_grad
    counts = ranks.of_all_alike((len(v), known), alike)
    return Shares(ranks, [count for count, _ in counts]), sum(known for _, known in counts)


def _reduced(losses: Tensor, reduction: str, total: int, ranks: int) -> Tensor:
    if reduction == "none":
        return losses
    summed = losses.sum() * ranks
    return summed / max(total, 1) if reduction == "mean" else summed


class _Contrast(torch.autograd.Function):
    """L = log(1 + sum over negatives exp(S - S of the positive)), of own rows.

    Takes unit rows (own rows, d) and (own keys, d), a scale (), S = scale cosine, and returns
    float64 (own rows,), and the same of their positives among all rows, which is empty unless
    asked for; 0 for a row without a positive.
    """

    @staticmethod
    def forward(ctx: Any, u: Tensor, v: Tensor, scale: Tensor, job: Job) -> tuple[Tensor, Tensor]:
        s, by_key, key_log_sums = float(scale), None, None
        pairs = own_pairs(u, v, job)
        sums, key_sums = LogSums(u, len(u)), LogSums(u, job.keys.total if job.symmetric else 0)
        if job.symmetric:
            by_key = job.keys.of_all(pairs.to_keys(pairs.cosines, len(v), math.inf))
        for tile in tiles(u, v, job):
            logits = tile.cosines * s
            sums.add(tile.rows, masked(logits, _of_rows(tile, pairs, job)), 1)
            if by_key is not None:
                key_sums.add(tile.columns, masked(logits, _of_keys(tile, by_key, job)), 0)
        log_sums = sums.log()
        losses = _over_negatives(log_sums, pairs, s)
        of_keys = losses.new_empty(0)
        if job.symmetric:
            key_sums.over_ranks(job.keys)
            key_log_sums = key_sums.log()
            of_keys = _over_negatives(pairs.to_rows(job.keys.mine(key_log_sums)), pairs, s)
        ctx.save_for_backward(u, v, scale, by_key, log_sums, key_log_sums)
        ctx.job = job
        return losses, of_keys

    @staticmethod
    def backward(ctx: Any, by_rows: Tensor, by_keys: Tensor) -> tuple[Tensor | None, ...]:
        _refuse_graph(by_rows)
        u, v, scale, by_key, log_sums, key_log_sums = ctx.saved_tensors
        job: Job = ctx.job
        s = float(scale)
        pairs, derivatives = own_pairs(u, v, job), Derivatives(u, v, job, ctx.needs_input_grad[1])
        weights = _weights(by_rows, log_sums, pairs, s)
        pulls, key_weights = weights, None
        if job.symmetric:
            own = _weights(by_keys, pairs.to_rows(job.keys.mine(key_log_sums)), pairs, s)
            pulls = weights + own
            key_weights = job.keys.of_all(pairs.to_keys(own, len(v), 0.0))
        for tile in tiles(u, v, job):
            logits = tile.cosines * s
            kept = masked(logits, _of_rows(tile, pairs, job))
            pushes = _terms(kept, log_sums[tile.rows, None], weights[tile.rows, None])
            if key_weights is not None:
                kept = masked(logits, _of_keys(tile, by_key, job))
                pushes += _terms(kept, key_log_sums[tile.columns], key_weights[tile.columns])
            derivatives.push(tile, pushes)
        derivatives.pull(pairs, pulls)
        return *derivatives.through(s, scale), None


class _Sigmoid(torch.autograd.Function):
    """L = sum over keys softplus(-z S), z = 1 for the positive and -1 for negatives, of own rows.

    Takes unit rows (own rows, d) and (own keys, d), a scale () and a bias (), S = scale cosine +
    bias, and returns float64 (own rows,).
    """

    @staticmethod
    def forward(ctx: Any, u: Tensor, v: Tensor, scale: Tensor, bias: Tensor, job: Job) -> Tensor:
        s, b = float(scale), float(bias)
        pairs = own_pairs(u, v, job)
        losses = torch.where(pairs.known, softplus(-(s * pairs.cosines + b)), 0.0)
        for tile in tiles(u, v, job):
            logits = masked((tile.cosines * s).add_(b), tile.negative)
            losses[tile.rows] += softplus(logits).sum(1, dtype=torch.float64)
        ctx.save_for_backward(u, v, scale, bias)
        ctx.job = job
        return losses

    @staticmethod
    def backward(ctx: Any, by_rows: Tensor) -> tuple[Tensor | None, ...]:
        _refuse_graph(by_rows)
        u, v, scale, bias = ctx.saved_tensors
        job: Job = ctx.job
        s, b = float(scale), float(bias)
        pairs, derivatives = own_pairs(u, v, job), Derivatives(u, v, job, ctx.needs_input_grad[1])
        by_bias = torch.zeros((), dtype=torch.float64, device=u.device)
        for tile in tiles(u, v, job):
            logits = masked((tile.cosines * s).add_(b), tile.negative)
            pushes = torch.sigmoid(logits) * by_rows[tile.rows, None].to(logits.dtype)
            by_bias += pushes.sum(dtype=torch.float64)
            derivatives.push(tile, pushes)
        pulls = torch.where(pairs.known, by_rows * torch.sigmoid(-(s * pairs.cosines + b)), 0.0)
        derivatives.pull(pairs, pulls)
        by_bias -= pulls.sum()
        return *derivatives.through(s, scale), by_bias.to(bias.dtype), None


class _Classes(torch.autograd.Function):
    """L = log(sum over all keys exp S) - mean over positives S, of own rows; 0 without a positive.

    Takes unit rows (own rows, d) and (own keys, d), a scale (), S = scale cosine, and a job whose
    ids are labels: keys of a row's label are its positives, but for the row itself. Returns float64
    (own rows,), and how many positives they have.
    """

    @staticmethod
    def forward(ctx: Any, u: Tensor, v: Tensor, scale: Tensor, job: Job) -> tuple[Tensor, Tensor]:
        s = float(scale)
        negatives, positives = LogSums(u, len(u)), LogSums(u, len(u))
        means = torch.zeros(len(u), dtype=torch.float64, device=u.device)
        counts = torch.zeros(len(u), dtype=torch.int64, device=u.device)
        for tile in tiles(u, v, job):
            logits = tile.cosines * s
            positive = _of_label(tile, job)
            negatives.add(tile.rows, masked(logits, tile.negative), 1)
            positives.add(tile.rows, masked(logits, positive), 1)
            means[tile.rows] += torch.where(positive, logits, 0.0).sum(1, dtype=torch.float64)
            counts[tile.rows] += positive.sum(1)
        means /= counts.clamp_min(1)
        known = counts > 0
        log_sums, log_positives = negatives.log(), positives.log()
        # Of one positive the last two cancel, and what is left keeps its digits.
        losses = -logsigmoid(log_positives - log_sums) + (log_positives - means)
        losses = torch.where(known, losses, 0.0)
        ctx.save_for_backward(u, v, scale, log_sums, log_positives, counts)
        ctx.job = job
        ctx.mark_non_differentiable(counts)
        return losses, counts

    @staticmethod
    def backward(ctx: Any, by_rows: Tensor, _: Tensor) -> tuple[Tensor | None, ...]:
        _refuse_graph(by_rows)
        u, v, scale, log_sums, log_positives, counts = ctx.saved_tensors
        job: Job = ctx.job
        s, derivatives = float(scale), Derivatives(u, v, job, ctx.needs_input_grad[1])
        by_rows = torch.where(counts > 0, by_rows, 0.0)
        totals = torch.logaddexp(log_sums, log_positives)
        # By S of a row's only positive, what the negatives weigh: 1 less their share cancels.
        alone = counts == 1
        pulls = torch.where(
            alone, torch.exp(log_sums - totals), counts.clamp_min(1).double().reciprocal()
        )
        pulls = torch.where(counts > 0, by_rows * pulls, 0.0)
        for tile in tiles(u, v, job):
            positive = _of_label(tile, job)
            kept = tile.negative | (positive & ~alone[tile.rows, None])
            logits = masked(tile.cosines * s, kept)
            pushes = _terms(logits, totals[tile.rows, None], by_rows[tile.rows, None])
            pushes -= torch.where(positive, pulls[tile.rows, None].to(pushes.dtype), 0.0)
            derivatives.push(tile, pushes)
        return *derivatives.through(s, scale), None


def _refuse_graph(by_losses: Tensor) -> None:
    """Refuse a graph of the gradient, which would lack what other ranks' rows contribute."""
    if graph_is_wanted(by_losses):
        raise RuntimeError(
            "expected create_graph=False and no is_grads_batched, since a loss with a group has "
            "first derivatives only; gather the rows, and call it with group=None"
        )


def _of_label(tile: Tile, job: Job) -> Tensor:
    """Which keys are positives of the rows: those of equal labels, but for themselves."""
    columns = torch.arange(tile.columns.start, tile.columns.stop, device=tile.cosines.device)
    return ~tile.negative & (columns != job.positives[tile.rows, None])


def _of_rows(tile: Tile, pairs: Pairs, job: Job) -> Tensor:
    """Which keys are negatives of the rows: those that the margin does not leave out."""
    if job.margin is None:
        return tile.negative
    return tile.negative & ~(tile.cosines > pairs.cosines[tile.rows, None] + job.margin)


def _of_keys(tile: Tile, by_key: Tensor, job: Job) -> Tensor:
    """Which rows are negatives of the keys, whose positives have the cosines `by_key`."""
    if job.margin is None:
        return tile.negative
    return tile.negative & ~(tile.cosines > by_key[tile.columns] + job.margin)


def _over_negatives(log_sums: Tensor, pairs: Pairs, s: float) -> Tensor:
    """log(1 + the sum over negatives / exp(S of the positive)); 0 without a positive."""
    return torch.where(pairs.known, -logsigmoid(s * pairs.cosines - log_sums), 0.0)


def _weights(by_losses: Tensor, log_sums: Tensor, pairs: Pairs, s: float) -> Tensor:
    """The derivatives by the logarithms of the sums over negatives."""
    found = by_losses * torch.sigmoid(log_sums - s * pairs.cosines)
    return torch.where(pairs.known, found, 0.0)


def _terms(logits: Tensor, log_sums: Tensor, weights: Tensor) -> Tensor:
    """What of derivatives by logarithms of sums falls to their terms; 0 of a sum of nothing."""
    log_sums = log_sums.masked_fill(log_sums == -math.inf, 0.0).to(logits.dtype)
    return (logits - log_sums).exp_().mul_(weights.to(logits.dtype))
