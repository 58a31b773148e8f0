"""The triplet loss of each row with its farthest positive and its nearest negative."""

from __future__ import annotations

from dataclasses import dataclass

import torch
from torch import Tensor

from cossim_fast import _checks
from cossim_fast._dispatch import Executor, choose_executor, without_autocast
from cossim_fast._dtypes import accumulation_dtype
from cossim_fast._products import full_precision_product
from cossim_fast._threads import one_thread_after_fork
from cossim_fast.functional import cosine_similarity
from cossim_fast.losses.alike import alike, codes, leave_out
from cossim_fast.losses.module import LossModule
from cossim_fast.losses.reduction import reduced
from cossim_fast.losses.strips import strips_of, wide_rows
from cossim_fast.losses.symmetric import Triangle
from cossim_fast.losses.tiles import BITS


def batch_hard_triplet(
    z: Tensor,
    labels: Tensor,
    *,
    margin: float,
    reduction: str = "mean",
    normalize: bool = True,
    eps: float = 1e-8,
    precision: str = "highest",
) -> Tensor:
    r"""Return the triplet loss of rows with their farthest positives and nearest negatives.

    .. math::
        L_i = \max\bigl(0,\ \text{margin} + \max_{j: y_j \ne y_i} c_{ij}
              - \min_{p \ne i: y_p = y_i} c_{ip}\bigr)

    with c the cosines and y the labels: in cosine distances 1 - c, the farthest row of the same
    label has to be nearer than the nearest row of another by the margin. Which rows these are is
    seen in half of the matrix of cosines, in tiles; derivatives are of three rows each.

    Args:
        z: (n, d); float16, bfloat16, float32 or float64, any strides.
        labels: integers (n,).
        margin: by how much, finite, at least 0.
        reduction: "mean" over the rows that have a positive and a negative, "sum" or "none".
        normalize: False takes the inner products of rows as they are in place of cosines.
        eps: the smallest norm to divide by, finite, at least 0.
        precision: the words of :func:`cossim_fast.pairwise_cosine`; here all of them give the
            products of "highest".

    Returns:
        A number, or (n,) for "none", in float32, for float64 rows in float64. A row without a
        positive or without a negative has loss 0 and does not count; where no row does, the mean
        is 0. Of equal cosines the first row is chosen; of cosines that differ by less than the
        rounding of a product, either.

    A zero row has cosine 0 with all. A row that holds NaN or an infinity makes all losses that
    count NaN. Derivatives of every order exist, of the chosen rows. Extra memory on CPU: 64 MB
    beyond unit rows and the two chosen rows of each row.

    Raises:
        ValueError: shapes that do not match, numbers out of range.
        TypeError: no tensors, not dense ones, or dtypes that are not floating (integers, for
            labels).

    Source: Hermans et al., In Defense of the Triplet Loss for Person Re-Identification (2017),
    equation 5, on cosine distances.

    >>> import torch
    >>> batch_hard_triplet(torch.eye(4), torch.tensor([0, 0, 1, 1]), margin=0.2)
    tensor(0.2000)
    """
    _checks.loss_rows("batch_hard_triplet", ("z",), z)
    _checks.loss_options("batch_hard_triplet", reduction, eps, precision)
    _checks.loss_ids("batch_hard_triplet", "labels", labels, len(z), z.device)
    _checks.triplet_margin("batch_hard_triplet", margin)
    one_thread_after_fork()
    used = eps if normalize else None
    with without_autocast(z):
        chosen = _chosen(z, labels, used)
        wide = z.to(accumulation_dtype(z.dtype))
        farthest, nearest = (
            _cosines(wide, wide.index_select(0, rows), used)
            for rows in (chosen.positive, chosen.negative)
        )
        losses = (margin + nearest - farthest).clamp(min=0)
        losses = torch.where(chosen.counted, losses, 0.0)
        return reduced(losses, chosen.counted.sum(), reduction)


class BatchHardTripletLoss(LossModule):
    """`batch_hard_triplet` as a module; arguments as there.

    >>> import torch
    >>> BatchHardTripletLoss(margin=0.2)(torch.eye(4), torch.tensor([0, 0, 1, 1]))
    tensor(0.2000)
    """

    def __init__(
        self,
        margin: float,
        *,
        reduction: str = "mean",
        normalize: bool = True,
        eps: float = 1e-8,
        precision: str = "highest",
    ) -> None:
        super().__init__(
            margin=margin,
            reduction=reduction,
            normalize=normalize,
            eps=eps,
            precision=precision,
        )

    def forward(self, z: Tensor, labels: Tensor) -> Tensor:
        """Return the loss of rows (n, d) of classes (n,)."""
        return batch_hard_triplet(
            z,
            labels,
            **self.options(),
        )


@dataclass(frozen=True)
class _Chosen:
    """The rows of each row's triplet, (n,).

    Args:
        positive: int64; any row where there is none.
        negative: int64; likewise.
        counted: bool: whether there are both.
    """

    positive: Tensor
    negative: Tensor
    counted: Tensor


def _cosines(x: Tensor, y: Tensor, eps: float | None) -> Tensor:
    return (x * y).sum(1) if eps is None else cosine_similarity(x, y, 1, eps)


def _chosen(z: Tensor, labels: Tensor, eps: float | None) -> _Chosen:
    z = z.detach()
    if choose_executor(z, z)[0] is Executor.BLOCKED:
        return _chosen_in_tiles(z, labels, eps)
    unit, n = wide_rows(z, eps), len(z)
    found = [_chosen_of(unit, labels, rows) for rows in strips_of(n, n)]
    if not found:
        return _Chosen(labels.long(), labels.long(), torch.zeros_like(labels, dtype=torch.bool))
    return _Chosen(*(torch.cat(parts) for parts in zip(*found, strict=True)))


def _chosen_of(unit: Tensor, labels: Tensor, rows: slice) -> tuple[Tensor, Tensor, Tensor]:
    """The triplets of some rows, by torch operations on any device."""
    cosines = full_precision_product(unit[rows], unit.mT)
    same = labels[rows, None] == labels
    row = torch.arange(len(labels), device=labels.device)
    positive = same & (row[rows, None] != row)
    counted = positive.any(1) & ~same.all(1)
    farthest = cosines.masked_fill(~positive, torch.inf).argmin(1)
    return farthest, cosines.masked_fill(same, -torch.inf).argmax(1), counted


def _chosen_in_tiles(z: Tensor, labels: Tensor, eps: float | None) -> _Chosen:
    # A logit in bits is then the cosine.
    tiles = Triangle([z], 1 / BITS, eps)
    (code,) = codes(labels)
    nearest, farthest = _Best(len(z), tiles.dtype), _Best(len(z), tiles.dtype)

    def work(i: int, j: int) -> None:
        rows, columns = tiles.spans[i], tiles.spans[j]
        tile = tiles.tile(i, j)
        same = alike(tile, code[rows], code[columns])
        others = tile.neg()
        leave_out(tile, same)
        same.neg_().add_(1.0)
        if i == j:
            same.diagonal().fill_(1.0)
        leave_out(others, same)
        for best, values in ((nearest, tile), (farthest, others)):
            best.see(rows, columns.start, values)
            if i != j:
                best.see(columns, rows.start, values.T)

    tiles.each(work)
    number = code.long()
    size = torch.bincount(number, minlength=1)[number]
    return _Chosen(farthest.row, nearest.row, (size > 1) & (size < len(z)))


class _Best:
    """The largest value that each row (n,) has met, and where; of equal ones the first."""

    def __init__(self, n: int, dtype: torch.dtype) -> None:
        self._value = torch.full((n,), -torch.inf, dtype=dtype, device="cpu")
        self.row = torch.zeros((n,), dtype=torch.int64, device="cpu")

    def see(self, rows: slice, first: int, values: Tensor) -> None:
        """Look at the values (r, c) of some rows with others, from the row `first` on."""
        best, found = self._value[rows], values.amax(1)
        # NaN is above everything. Most rows have met their largest value early.
        better = ~(found <= best) & ~best.isnan()
        better |= (found == best) & (first < self.row[rows])
        at = better.nonzero().squeeze(1)
        if len(at):
            best[at], place = values[at].max(1)
            self.row[rows.start + at] = place + first
