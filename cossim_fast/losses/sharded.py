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
from collections.abc import Iterator
from typing import Any, NamedTuple

import torch
from torch import Tensor
from torch.autograd.function import once_differentiable
from torch.nn.functional import logsigmoid, softplus

from cossim_fast._composite import unit_rows
from cossim_fast._dtypes import accumulation_dtype
from cossim_fast._products import full_precision_product, mm
from cossim_fast.losses.group import Group, Piece, Shares
from cossim_fast.losses.siglip import SigmoidLoss
from cossim_fast.losses.softmax import SoftmaxLoss

# Keys of a piece, and numbers in a tile of logits: 4 MiB of float32.
PIECE, TILE = 1024, 1 << 20


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
        loss.query_ids,
        None if loss.key_ids is None else shares.of_all(loss.key_ids),
        loss.margin,
        loss.symmetric,
    )
    with torch.autocast(u.device.type, enabled=False):
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
    key_ids = None if loss.text_ids is None else shares.of_all(loss.text_ids)
    job = Job(shares, positives, loss.image_ids, key_ids, None, symmetric=False)
    with torch.autocast(u.device.type, enabled=False):
        losses = _Sigmoid.apply(u, v, scale, bias, job)  # type: ignore[no-untyped-call]
    return _reduced(losses, loss.reduction, total, shares.ranks.size).to(u.dtype)


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


class Job(NamedTuple):
    """What a loss compares, beside the rows: numbers of this rank's own rows and of all keys."""

    keys: Shares
    # (own rows,) int64: the row's positive among all keys; negative for none.
    positives: Tensor
    # (own rows,) and (all keys,): rows of equal ids are never each other's negatives.
    row_ids: Tensor | None
    key_ids: Tensor | None
    # Negatives whose cosine exceeds the positive's by more are left out.
    margin: float | None
    # Whether the positives have a loss too, among the rows.
    symmetric: bool


class Tile(NamedTuple):
    """Some own rows beside a piece of the keys."""

    rows: slice
    piece: Piece
    # (rows, keys of the piece): cosines; whether the key is one of the row's negatives.
    cosines: Tensor
    negative: Tensor
    # The rows and the keys themselves.
    left: Tensor
    right: Tensor
    # Whether it is the piece's last.
    last: bool

    @property
    def columns(self) -> slice:
        """Where the piece stands among all keys."""
        return slice(self.piece.first, self.piece.first + len(self.right))


def _mm(a: Tensor, b: Tensor) -> Tensor:
    return mm(a, b) if a.is_cpu else full_precision_product(a, b)


def _tiles(u: Tensor, v: Tensor, job: Job) -> Iterator[Tile]:
    """Go through all keys, and through this rank's rows for each piece of them."""
    for piece, right in job.keys.pieces(v, PIECE):
        columns = torch.arange(piece.first, piece.first + len(right), device=u.device)
        step = max(TILE // len(right), 1)
        # A rank without rows waits for each piece like the others.
        for start in range(0, max(len(u), 1), step):
            rows = slice(start, min(start + step, len(u)))
            left = u[rows]
            cosines = _mm(left, right.T)
            negative = columns != job.positives[rows, None]
            if job.row_ids is not None and job.key_ids is not None:
                ids = job.key_ids[piece.first : piece.first + len(right)]
                negative &= job.row_ids[rows, None] != ids
            yield Tile(rows, piece, cosines, negative, left, right, rows.stop >= len(u))


class _Sums:
    """The logarithm of a growing sum of exponentials, (n,), in float64."""

    def __init__(self, like: Tensor, count: int) -> None:
        self.largest = torch.full((count,), -math.inf, dtype=torch.float64, device=like.device)
        self.sums = torch.zeros_like(self.largest)

    def add(self, place: slice, logits: Tensor, dim: int) -> None:
        """Add exp(logits) along `dim` to the sums of `place`."""
        if not logits.shape[dim]:
            return
        before = self.largest[place]
        largest = torch.maximum(before, logits.amax(dim).double())
        # Where nothing was added yet, it is exp(-inf) of a finite difference, and not NaN.
        finite = largest.masked_fill(largest == -math.inf, 0.0)
        terms = (logits - finite.to(logits.dtype).unsqueeze(dim)).exp_()
        self.sums[place] = self.sums[place] * torch.exp(before - finite)
        self.sums[place] += terms.sum(dim, dtype=torch.float64)
        self.largest[place] = largest

    def over_ranks(self, keys: Shares) -> None:
        """Add up what the ranks have."""
        before = self.largest.clone()
        keys.ranks.largest(self.largest)
        finite = self.largest.masked_fill(self.largest == -math.inf, 0.0)
        self.sums = keys.ranks.sum(self.sums * torch.exp(before - finite))

    def log(self) -> Tensor:
        """The logarithms; -inf where nothing was added."""
        finite = self.largest.masked_fill(self.largest == -math.inf, 0.0)
        return torch.where(self.sums == 0, -math.inf, finite + self.sums.log())


class _Pairs(NamedTuple):
    """Own rows and their positives, which are own keys."""

    # The numbers of those rows that have one, and of the keys.
    rows: Tensor
    keys: Tensor
    # (own rows,) float64: whether a row has a positive; the cosine, 0 where it has none.
    known: Tensor
    cosines: Tensor

    def to_keys(self, by_row: Tensor, count: int, otherwise: float) -> Tensor:
        """What belongs to rows, (own rows,), of their positives, (own keys,)."""
        found = by_row.new_full((count,), otherwise)
        found[self.keys] = by_row[self.rows]
        return found

    def to_rows(self, by_key: Tensor) -> Tensor:
        """What belongs to keys, (own keys,), of the rows whose positives they are, (own rows,)."""
        found = by_key.new_zeros(self.known.shape)
        found[self.rows] = by_key[self.keys]
        return found


def _pairs(u: Tensor, v: Tensor, job: Job) -> _Pairs:
    known = job.positives >= 0
    rows = known.nonzero().squeeze(1)
    keys = job.positives[rows] - job.keys.first
    cosines = torch.zeros(len(u), dtype=torch.float64, device=u.device)
    cosines[rows] = (u[rows].double() * v[keys].double()).sum(1)
    return _Pairs(rows, keys, known, cosines)


class _Contrast(torch.autograd.Function):
    """L = log(1 + sum over negatives exp(S - S of the positive)), of own rows.

    Takes unit rows (own rows, d) and (own keys, d), a scale (), S = scale cosine, and returns
    float64 (own rows,), and the same of their positives among all rows, which is empty unless
    asked for; 0 for a row without a positive.
    """

    @staticmethod
    def forward(ctx: Any, u: Tensor, v: Tensor, scale: Tensor, job: Job) -> tuple[Tensor, Tensor]:
        s, by_key, key_log_sums = float(scale), None, None
        pairs = _pairs(u, v, job)
        sums, key_sums = _Sums(u, len(u)), _Sums(u, job.keys.total if job.symmetric else 0)
        if job.symmetric:
            by_key = job.keys.of_all(pairs.to_keys(pairs.cosines, len(v), math.inf))
        for tile in _tiles(u, v, job):
            logits = tile.cosines * s
            sums.add(tile.rows, _masked(logits, _of_rows(tile, pairs, job)), 1)
            if by_key is not None:
                key_sums.add(tile.columns, _masked(logits, _of_keys(tile, by_key, job)), 0)
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
    @once_differentiable
    def backward(ctx: Any, by_rows: Tensor, by_keys: Tensor) -> tuple[Tensor, Tensor, Tensor, None]:
        u, v, scale, by_key, log_sums, key_log_sums = ctx.saved_tensors
        job: Job = ctx.job
        s = float(scale)
        pairs, derivatives = _pairs(u, v, job), _Derivatives(u, v, job)
        weights = _weights(by_rows, log_sums, pairs, s)
        pulls, key_weights = weights, None
        if job.symmetric:
            own = _weights(by_keys, pairs.to_rows(job.keys.mine(key_log_sums)), pairs, s)
            pulls = weights + own
            key_weights = job.keys.of_all(pairs.to_keys(own, len(v), 0.0))
        for tile in _tiles(u, v, job):
            logits = tile.cosines * s
            kept = _masked(logits, _of_rows(tile, pairs, job))
            pushes = _terms(kept, log_sums[tile.rows, None], weights[tile.rows, None])
            if key_weights is not None:
                kept = _masked(logits, _of_keys(tile, by_key, job))
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
        pairs = _pairs(u, v, job)
        losses = torch.where(pairs.known, softplus(-(s * pairs.cosines + b)), 0.0)
        for tile in _tiles(u, v, job):
            logits = _masked((tile.cosines * s).add_(b), tile.negative)
            losses[tile.rows] += softplus(logits).sum(1, dtype=torch.float64)
        ctx.save_for_backward(u, v, scale, bias)
        ctx.job = job
        return losses

    @staticmethod
    @once_differentiable
    def backward(ctx: Any, by_rows: Tensor) -> tuple[Tensor, Tensor, Tensor, Tensor, None]:
        u, v, scale, bias = ctx.saved_tensors
        job: Job = ctx.job
        s, b = float(scale), float(bias)
        pairs, derivatives = _pairs(u, v, job), _Derivatives(u, v, job)
        by_bias = torch.zeros((), dtype=torch.float64, device=u.device)
        for tile in _tiles(u, v, job):
            logits = _masked((tile.cosines * s).add_(b), tile.negative)
            pushes = torch.sigmoid(logits) * by_rows[tile.rows, None].to(logits.dtype)
            by_bias += pushes.sum(dtype=torch.float64)
            derivatives.push(tile, pushes)
        pulls = torch.where(pairs.known, by_rows * torch.sigmoid(-(s * pairs.cosines + b)), 0.0)
        derivatives.pull(pairs, pulls)
        by_bias -= pulls.sum()
        return *derivatives.through(s, scale), by_bias.to(bias.dtype), None


class _Derivatives:
    """Derivatives by unit rows, as a tile after the other says which pairs are pushed apart."""

    def __init__(self, u: Tensor, v: Tensor, job: Job) -> None:
        self.u, self.v, self.job = u, v, job
        self.by_u, self.by_v = torch.zeros_like(u), torch.zeros_like(v)
        self.part: Tensor | None = None

    def push(self, tile: Tile, by_logits: Tensor) -> None:
        """Add a tile's derivatives by S; of the keys' after a piece's last tile, over the ranks."""
        self.by_u[tile.rows] += _mm(by_logits, tile.right)
        part = _mm(by_logits.T, tile.left)
        self.part = part if self.part is None else self.part.add_(part)
        if tile.last:
            self.job.keys.give_back(tile.piece, self.part, self.by_v)
            self.part = None

    def pull(self, pairs: _Pairs, pulls: Tensor) -> None:
        """Add those by S of the positives, -pulls (own rows,)."""
        by_positive = -pulls[pairs.rows].to(self.u.dtype)[:, None]
        self.by_u.index_add_(0, pairs.rows, by_positive * self.v[pairs.keys])
        self.by_v.index_add_(0, pairs.keys, by_positive * self.u[pairs.rows])

    def through(self, s: float, scale: Tensor) -> tuple[Tensor, Tensor, Tensor]:
        """The derivatives by u, v and the scale s, since S is s times the cosine."""
        by_scale = (self.u.double() * self.by_u).sum()
        return self.by_u.mul_(s), self.by_v.mul_(s), by_scale.to(scale.dtype)


def _masked(logits: Tensor, kept: Tensor) -> Tensor:
    return logits.masked_fill(~kept, -math.inf)


def _of_rows(tile: Tile, pairs: _Pairs, job: Job) -> Tensor:
    """Which keys are negatives of the rows: those that the margin does not leave out."""
    if job.margin is None:
        return tile.negative
    return tile.negative & ~(tile.cosines > pairs.cosines[tile.rows, None] + job.margin)


def _of_keys(tile: Tile, by_key: Tensor, job: Job) -> Tensor:
    """Which rows are negatives of the keys, whose positives have the cosines `by_key`."""
    if job.margin is None:
        return tile.negative
    return tile.negative & ~(tile.cosines > by_key[tile.columns] + job.margin)


def _over_negatives(log_sums: Tensor, pairs: _Pairs, s: float) -> Tensor:
    """log(1 + the sum over negatives / exp(S of the positive)); 0 without a positive."""
    return torch.where(pairs.known, -logsigmoid(s * pairs.cosines - log_sums), 0.0)


def _weights(by_losses: Tensor, log_sums: Tensor, pairs: _Pairs, s: float) -> Tensor:
    """The derivatives by the logarithms of the sums over negatives."""
    found = by_losses * torch.sigmoid(log_sums - s * pairs.cosines)
    return torch.where(pairs.known, found, 0.0)


def _terms(logits: Tensor, log_sums: Tensor, weights: Tensor) -> Tensor:
    """What of derivatives by logarithms of sums falls to their terms; 0 of a sum of nothing."""
    log_sums = log_sums.masked_fill(log_sums == -math.inf, 0.0).to(logits.dtype)
    return (logits - log_sums).exp_().mul_(weights.to(logits.dtype))
