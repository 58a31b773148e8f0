"""The loss of two views of each item of a batch (NT-Xent, SimCLR)."""

from __future__ import annotations

from typing import Any

import torch
from torch import Tensor

from cossim_fast import _checks
from cossim_fast.losses.autograd import compute
from cossim_fast.losses.contrast import ContrastLoss
from cossim_fast.losses.info_nce import in_dtype
from cossim_fast.losses.module import LossModule


def nt_xent(
    z0: Tensor,
    z1: Tensor,
    *,
    temperature: float | Tensor = 0.5,
    ids: Tensor | None = None,
    reduction: str = "mean",
    normalize: bool = True,
    eps: float = 1e-8,
    precision: str = "highest",
    group: Any = None,
) -> Tensor:
    r"""Return the loss of finding each row's other view among the rows of both views.

    .. math::
        L_i = \log\Bigl(1 + \sum_j \exp\frac{c_{ij} - c_{ip}}{\tau}\Bigr)

    over the 2 n rows of both views, with c the cosines, p the other view of row i and j all rows
    but these two: the cross-entropy of the cosines over the temperature. Half of their matrix is
    computed, in tiles, and never kept: two products in all with the derivatives, on CPU.

    Args:
        z0: (n, d); float16, bfloat16, float32 or float64, any strides.
        z1: (n, d) on the same device; row i is the other view of row i of z0.
        temperature: > 0; a float, or a tensor of one element, which may be learned.
        ids: integers (n,); items of equal ids are never each other's negatives.
        reduction: "mean" over the rows of both views, "sum" or "none".
        normalize: False takes the inner products of rows as they are in place of cosines.
        eps: the smallest norm to divide by, finite, at least 0.
        precision: the words of :func:`cossim_fast.pairwise_cosine`; here all of them give the
            products of "highest".
        group: a process group of torch.distributed. Rows are then this process's own, as many as
            it likes, and the rows of all processes are compared; ids are alike in all of them. Its
            value is such that the mean over processes, which DDP takes of gradients, is the loss of
            one process that has all rows. First derivatives only.

    Returns:
        A number, or (2 n,) for "none", the rows of z0 first; in float32, for float64 rows in
        float64. A row without negatives has loss 0; without rows, so is the mean. A loss that is
        tiny because the positive is far nearer than all else keeps its digits, whatever the
        temperature.

    A zero row has cosine 0 with all. A row that holds NaN or an infinity makes the losses of all
    rows NaN that it is compared with. Derivatives by rows and temperature of every order exist; the
    first of a mean or a sum are made in the forward pass. Extra memory on CPU: 64 MB beyond the
    unit rows and the derivatives.

    Raises:
        ValueError: shapes that do not match, two devices, numbers out of range.
        TypeError: no tensors, not dense ones, or dtypes that are not floating (integers, for ids).

    Source: Chen et al., A Simple Framework for Contrastive Learning of Visual Representations
    (2020), equation 1; the ``NTXentLoss`` of lightly equals it.

    >>> import torch
    >>> nt_xent(torch.eye(3), torch.eye(3))
    tensor(0.4327)
    """
    dtype = _checks.loss_rows("nt_xent", ("z0", "z1"), z0, z1)
    _checks.loss_options("nt_xent", reduction, eps, precision)
    _checks.loss_number("nt_xent", "temperature", temperature, z0.device, positive=True)
    n = len(z0)
    _checks.same_count("nt_xent", ("z0", "z1"), z0, z1)
    if ids is not None:
        _checks.loss_ids("nt_xent", "ids", ids, n, z0.device)
    scale, used = 1.0 / in_dtype(temperature, dtype), eps if normalize else None
    if group is not None:
        # It imports torch.distributed, and what imports this module.
        from cossim_fast.losses.sharded import views_loss  # noqa: PLC0415

        return views_loss(z0, z1, ids, scale, reduction, used, group)
    row = torch.arange(n, dtype=torch.int64, device=z0.device)
    loss = ContrastLoss(
        code=(row if ids is None else ids).repeat(2),
        partner=torch.cat([row + n, row]),
        reduction=reduction,
        eps=used,
    )
    return compute(loss, z0, z1, scale)


class NTXentLoss(LossModule):
    """`nt_xent` as a module; arguments as there.

    >>> import torch
    >>> NTXentLoss()(torch.eye(3), torch.eye(3))
    tensor(0.4327)
    """

    def __init__(
        self,
        temperature: float | Tensor = 0.5,
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

    def forward(self, z0: Tensor, z1: Tensor, *, ids: Tensor | None = None) -> Tensor:
        """Return the loss of both views (n, d) of n items."""
        return nt_xent(
            z0,
            z1,
            ids=ids,
            **self.options(),
        )
