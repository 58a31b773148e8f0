"""The supervised contrastive loss: all rows of a row's class are its positives (SupCon)."""

from __future__ import annotations

from dataclasses import dataclass
from functools import partial
from typing import Any

import torch
from torch import Tensor
from torch.nn.functional import softplus

from cossim_fast import _checks
from cossim_fast._products import full_precision_product
from cossim_fast.losses.alike import alike, codes, leave_out
from cossim_fast.losses.autograd import Found, Number, compute
from cossim_fast.losses.contrast import ContrastLoss
from cossim_fast.losses.info_nce import in_dtype
from cossim_fast.losses.module import LossModule
from cossim_fast.losses.reduction import reduced
from cossim_fast.losses.strips import LINEAR, class_losses, in_strips, wide_rows
from cossim_fast.losses.tiles import BITS, Logits, add_logs, log_sums


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
    precision: str = "highest",
    group: Any = None,
) -> Tensor:
    r"""Return the loss of finding the rows of each row's class among all other rows.

    .. math::
        L_i = -\frac{1}{|P_i|} \sum_{p \in P_i}
              \log \frac{\exp(c_{ip} / \tau)}{\sum_{a \ne i} \exp(c_{ia} / \tau)}

    with c the cosines and P the other rows of equal label. Nothing of their matrix is kept. On CPU
    half of it is computed, two products in all with the derivatives; with `ref` three.

    Args:
        z: (n, d); float16, bfloat16, float32 or float64, any strides.
        labels: integers (n,).
        temperature: > 0; a float, or a tensor of one element, which may be learned.
        ref: (m, d) on the same device: rows that z is compared with, all of them, in place of
            itself.
        ref_labels: integers (m,), with `ref`.
        reduction: "mean" over the rows that have a positive, "sum" or "none".
        normalize: False takes the inner products of rows as they are in place of cosines.
        eps: the smallest norm to divide by, finite, at least 0.
        precision: the words of :func:`cossim_fast.pairwise_cosine`; here all of them give the
            products of "highest".
        group: a process group of torch.distributed. Rows, and those of `ref`, are then this
            process's own, as many as it likes, and are compared with those of all processes, where
            labels are alike. Its value is such that the mean over processes, which DDP takes of
            gradients, is the loss of one process that has all rows. First derivatives only.

    Returns:
        A number, or (n,) for "none", in float32, for float64 rows in float64. A row without a
        positive has loss 0 and does not count; where no row does, the mean is 0. Positives are part
        of the sum, so that a row of k of them has a loss of log k or more; the loss of a row with
        one keeps its digits however small it is.

    A zero row has cosine 0 with all. A row that holds NaN or an infinity makes the losses of all
    rows NaN that it is compared with. Derivatives by rows and temperature of every order exist; the
    first of a mean or a sum are made in the forward pass. Extra memory on CPU: 64 MB beyond the
    unit rows and the derivatives.

    Raises:
        ValueError: shapes that do not match, two devices, numbers out of range, one of `ref` and
            `ref_labels` alone.
        TypeError: no tensors, not dense ones, or dtypes that are not floating (integers, for
            labels).

    Source: Khosla et al., Supervised Contrastive Learning (2020), equation 2 (L_out), with a
    temperature that does not scale the loss; ``SupConLoss`` of pytorch-metric-learning.

    >>> import torch
    >>> sup_con(torch.eye(4), torch.tensor([0, 0, 1, 1]))
    tensor(1.0986)
    """
    rows = (z,) if ref is None else (z, ref)
    dtype = _checks.loss_rows("sup_con", ("z", "ref")[: len(rows)], *rows)
    _checks.loss_options("sup_con", reduction, eps, precision)
    _checks.loss_number("sup_con", "temperature", temperature, z.device, positive=True)
    _checks.loss_ids("sup_con", "labels", labels, len(z), z.device)
    _checks.rows_with_labels("sup_con", ("ref", "ref_labels"), ref, ref_labels)
    scale = 1.0 / in_dtype(temperature, dtype)
    used = eps if normalize else None
    if ref is not None and ref_labels is not None:
        _checks.loss_ids("sup_con", "ref_labels", ref_labels, len(ref), z.device)
    if group is not None:
        # It imports torch.distributed, and what imports this module.
        from cossim_fast.losses.sharded import classes_loss  # noqa: PLC0415

        return classes_loss(z, labels, ref, ref_labels, scale, reduction, used, group)
    if ref is None or ref_labels is None:
        loss = ContrastLoss(labels, reduction=reduction, eps=used)
        return compute(loss, z, z.detach(), scale)
    return compute(LabelsLoss(labels, ref_labels, reduction, used), z, ref, scale)


class SupConLoss(LossModule):
    """`sup_con` as a module; arguments as there.

    >>> import torch
    >>> SupConLoss()(torch.eye(4), torch.tensor([0, 0, 1, 1]))
    tensor(1.0986)
    """

    def __init__(
        self,
        temperature: float | Tensor = 0.1,
        *,
        reduction: str = "mean",
        normalize: bool = True,
        eps: float = 1e-8,
        precision: str = "highest",
        group: Any = None,
    ) -> None:
        super().__init__(
            temperature=temperature,
            reduction=reduction,
            normalize=normalize,
            eps=eps,
            precision=precision,
            group=group,
        )

    def forward(
        self,
        z: Tensor,
        labels: Tensor,
        *,
        ref: Tensor | None = None,
        ref_labels: Tensor | None = None,
    ) -> Tensor:
        """Return the loss of rows (n, d) of classes (n,)."""
        return sup_con(
            z,
            labels,
            ref=ref,
            ref_labels=ref_labels,
            **self.options(),
        )


@dataclass(frozen=True)
class LabelsLoss:
    """The loss of rows x (n, d) among others y (m, d), as `losses.autograd.Loss` wants it."""

    labels: Tensor
    ref_labels: Tensor
    reduction: str = "mean"
    eps: float | None = 1e-8

    @property
    def is_scalar(self) -> bool:
        """Whether the loss is reduced to one number."""
        return self.reduction != "none"

    def value(self, x: Tensor, y: Tensor, scale: float, bias: float) -> Tensor:
        """The loss, in tiles."""
        run = _Run(self, x, y, scale)
        run.look()
        return self._reduced(run.losses(), run.count).to(run.logits.dtype)

    def gradients(
        self, x: Tensor, y: Tensor, scale: float, bias: float, incoming: Tensor | None,
        by_x: bool, by_y: bool,
    ) -> tuple[Tensor, Found]:  # fmt: skip
        """The loss and its derivatives, in tiles."""
        run = _Run(self, x, y, scale)
        run.incoming = incoming
        factor = 1 / max(int((run.count > 0).sum()), 1) if self.reduction == "mean" else 1.0
        dx, dy, ds = run.logits.gradients(run.weigh, by_x, by_y, factor)
        return self._reduced(run.losses(), run.count).to(run.logits.dtype), (dx, dy, ds, 0.0)

    def _reduced(self, losses: Tensor, count: Tensor) -> Tensor:
        return reduced(losses, (count > 0).sum(), self.reduction)

    def composite(self, x: Tensor, y: Tensor, scale: Number, bias: Number) -> Tensor:
        """The loss by differentiable torch operations."""
        wide = torch.promote_types(x.dtype, y.dtype)
        x, y = wide_rows(x.to(wide), self.eps), wide_rows(y.to(wide), self.eps)
        n, m = len(x), len(y)
        if m == 0:
            return self._reduced(x.sum(1) * 0.0, torch.zeros_like(self.labels))
        losses, count = in_strips(self._strip, n, m, x, y, scale).unbind(1)
        return self._reduced(losses, count)

    def _strip(self, rows: slice, x: Tensor, y: Tensor, scale: Number) -> Tensor:
        logits = scale * full_precision_product(x[rows], y.mT)
        among = self.labels[rows, None] == self.ref_labels
        return class_losses(logits, among, among)


class _Run:
    """One computation of a loss on CPU, as that of `losses.contrast`. Logarithms are in bits."""

    def __init__(self, loss: LabelsLoss, x: Tensor, y: Tensor, scale: float) -> None:
        self.logits = Logits(x, y, scale, eps=loss.eps, whole_rows=True)
        self._labels, self._ref_labels = codes(loss.labels, loss.ref_labels)
        number = self._labels.long(), self._ref_labels.long()
        self.count = torch.bincount(number[1], minlength=len(x) + len(y))[number[0]]
        nothing = torch.full((len(x),), -torch.inf, dtype=torch.float64, device="cpu")
        self._negatives, self._sums = nothing, nothing.clone()
        self._means = torch.zeros_like(nothing)
        self.incoming: Tensor | None = None

    def look(self) -> None:
        """Sum over the negatives of each row, and over its positives."""
        self.logits.run([partial(self._look_at, rows) for rows in self.logits.rows])

    def _look_at(self, rows: slice) -> Tensor:
        strip = self.logits.strip(rows)
        for columns in self.logits.columns:
            self._add(rows, columns, self.logits.tile(strip, rows, columns))
        return self.count[rows]

    def _among(self, rows: slice, columns: slice, tile: Tensor) -> Tensor:
        """1 for positives, else 0."""
        return alike(tile, self._labels[rows], self._ref_labels[columns])

    def _add(self, rows: slice, columns: slice, tile: Tensor) -> None:
        among = self._among(rows, columns, tile)
        rest = tile.clone()
        leave_out(rest, among)
        self._negatives[rows] = add_logs(self._negatives[rows], log_sums(rest, 1))
        self._means[rows] += torch.mul(tile, among, out=rest).sum(1)
        rest.copy_(tile)
        leave_out(rest, among.neg_().add_(1.0))
        self._sums[rows] = add_logs(self._sums[rows], log_sums(rest, 1))

    def _positives(self, rows: slice) -> tuple[Tensor, Tensor, Tensor]:
        """Of whole rows: the logarithm of P, the mean over positives, and log(1 + N / P)."""
        count = self.count[rows]
        mean = self._means[rows] / count.clamp_min(1)
        sums = torch.where(count == 1, mean, self._sums[rows])
        return sums, mean, softplus((self._negatives[rows] - sums) / BITS, threshold=LINEAR)

    def losses(self) -> Tensor:
        """L (n,), float64, in natural units."""
        sums, mean, more = self._positives(slice(None))
        return torch.where(self.count > 0, more + (sums - mean) / BITS, 0.0)

    def weigh(self, rows: slice, tiles: list[tuple[slice, Tensor]]) -> None:
        """Turn the logits of whole rows into the gradient by them."""
        for columns, tile in tiles:
            self._add(rows, columns, tile)
        count = self.count[rows]
        sums, _, more = self._positives(rows)
        total = sums + more * BITS
        one = (self._negatives[rows] - total).exp2()
        pull = torch.where(count == 1, one, count.double().reciprocal())
        total = torch.where(count > 0, total, torch.inf)
        pull = torch.where(count > 0, pull, 0.0)
        alone = (count == 1)[:, None]
        for columns, tile in tiles:
            among = self._among(rows, columns, tile)
            # A row's only positive has its weight by the negatives, which does not cancel.
            leave_out(tile, among * alone)
            tile.sub_(total[:, None].to(tile.dtype)).exp2_()
            tile.sub_(among.mul_(pull[:, None].to(tile.dtype)))
            if self.incoming is not None:
                tile.mul_(self.incoming[rows, None].to(tile.dtype))
