"""The loss of finding each query's key among all keys (InfoNCE)."""

from __future__ import annotations

from typing import Any

import torch
from torch import Tensor

from cossim_fast import _checks
from cossim_fast.losses.autograd import Number, compute
from cossim_fast.losses.module import LossModule
from cossim_fast.losses.softmax import SoftmaxLoss


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
    precision: str = "highest",
    group: Any = None,
) -> Tensor:
    r"""Return the loss of finding each query's key among all keys.

    .. math::
        L_i = \log\Bigl(1 + \sum_j \exp\frac{c_{ij} - c_{ip}}{\tau}\Bigr)

    with c the cosines, p the positive of query i and j its negatives: the cross-entropy of the
    cosines over the temperature, whose matrix is never made.

    Args:
        queries: (n, d); float16, bfloat16, float32 or float64, any strides.
        keys: (m, d) on the same device.
        temperature: > 0; a float, or a tensor of one element, which may be learned.
        positives: int64 (n,), the row of each query's key, or -1 for a query without one; None
            is the diagonal: key i for query i, m >= n.
        query_ids: integers (n,). A query and a key of equal ids are never each other's negatives.
            Without `key_ids` the first n keys have the ids of the queries whose positives they
            are, which needs the diagonal and n = m.
        key_ids: integers (m,). Without `query_ids`, a query has the id of its positive.
        margin: leave out negatives whose cosine exceeds the positive's by more than this.
        symmetric: the mean of this loss and that of finding each positive's query among all
            queries; no key is then the positive of two queries.
        reduction: "mean" over the queries that have a positive, "sum" or "none".
        normalize: False takes the inner products of rows as they are in place of cosines.
        eps: the smallest norm to divide by, finite, at least 0.
        precision: the words of :func:`cossim_fast.pairwise_cosine`; here all of them give the
            products of "highest".
        group: a process group of torch.distributed. Rows are then this process's own, as many as
            it likes, and the keys of all processes are keys of its queries; numbers and ids are of
            own rows. Its value is such that the mean over processes, which DDP takes of gradients,
            is the loss of one process that has all rows. First derivatives only.

    Returns:
        A number, or (n,) for "none", in float32, for float64 rows in float64.

    A query without a positive has loss 0 and no derivative; one without negatives has loss 0, as
    has its only key; so with one query and one key, and the mean over no queries is 0. A zero row
    has cosine 0 with all. A row that holds NaN or an infinity makes all losses NaN that it is part
    of: those of a query its own, unless `symmetric`; those of a key all. Rows of any magnitude
    above eps are right.

    The positive is never part of the sum over negatives, so that a loss of 1e-30 keeps its digits
    and none overflows, whatever the temperature. Logits are float32 (float64 for float64 rows),
    whatever autocast says; sums over tiles are float64. A logit is off by what a cosine is off by,
    over the temperature, and a loss by as much of itself. Derivatives by rows and temperature of
    every order exist, as do functorch's transforms and ``torch.compile``. The first ones are made
    on CPU as the loss is, by three products of n m d multiplications, four if `symmetric`, unless
    `reduction` is "none". Extra memory there: 64 MB beyond unit rows and derivatives. What takes
    torch's own operations (second derivatives, other devices) goes through strips of 64 MB, whose
    logits are computed once more for derivatives; under transforms and tracing it makes the matrix.

    Raises:
        ValueError: shapes that do not match, two devices, numbers out of range.
        TypeError: no tensors, not dense ones, or dtypes that are not floating (integers, for ids).

    Source: van den Oord et al., Representation Learning with Contrastive Predictive Coding (2018);
    `query_ids` and `margin` as in sentence-transformers' ``GISTEmbedLoss`` without a guide.

    >>> import torch
    >>> info_nce(torch.eye(3), torch.eye(3), temperature=1.0)
    tensor(0.5514)
    """
    dtype = _checks.loss_rows("info_nce", ("queries", "keys"), queries, keys)
    _checks.loss_options("info_nce", reduction, eps, precision)
    _checks.loss_number("info_nce", "temperature", temperature, queries.device, positive=True)
    _checks.loss_margin("info_nce", margin)
    n, m = len(queries), len(keys)
    _checks.positives_of("info_nce", positives, n, m, queries.device, symmetric=symmetric)
    _checks.pair_ids(
        "info_nce", ("query_ids", "key_ids"), query_ids, key_ids, n, m, queries.device,
        diagonal=positives is None,
    )  # fmt: skip
    query_ids, key_ids = _ids_of_both(query_ids, key_ids, positives, n)
    loss = SoftmaxLoss(
        positives=None if positives is None else positives.long(),
        query_ids=query_ids,
        key_ids=key_ids,
        margin=margin,
        symmetric=symmetric,
        reduction=reduction,
        eps=eps if normalize else None,
    )
    return shared_or_not(loss, queries, keys, 1.0 / in_dtype(temperature, dtype), group)


def shared_or_not(loss: SoftmaxLoss, x: Tensor, y: Tensor, scale: Number, group: Any) -> Tensor:
    """The loss of the rows of this process, or of those that the ranks of a group own."""
    if group is None:
        return compute(loss, x, y, scale)
    # It imports torch.distributed, and what imports this module.
    from cossim_fast.losses.sharded import softmax_loss  # noqa: PLC0415

    return softmax_loss(loss, x, y, scale, group)


def in_dtype(number: Number, dtype: torch.dtype) -> Number:
    """A number that is computed with in float32, or float64 beside float64 rows."""
    if not isinstance(number, Tensor):
        return float(number)
    wide = torch.float64 if torch.float64 in (dtype, number.dtype) else torch.float32
    return number.reshape(()).to(wide)


def _ids_of_both(
    ids: Tensor | None, others: Tensor | None, positives: Tensor | None, n: int
) -> tuple[Tensor | None, Tensor | None]:
    """Ids of queries and keys, where those of one side are given."""
    if ids is not None:
        return ids, ids if others is None else others
    if others is None or positives is None:
        return None if others is None else others[:n], others
    if len(others) == 0:
        return positives, others
    # A query without a positive has an id that no key has.
    others = others.long()
    return torch.where(positives >= 0, others[positives.clamp_min(0)], others.amin() - 1), others


class InfoNCE(LossModule):
    """`info_nce` as a module; arguments as there.

    A temperature that is an ``nn.Parameter`` is learned; another tensor is a buffer.

    >>> import torch
    >>> InfoNCE(temperature=1.0)(torch.eye(3), torch.eye(3))
    tensor(0.5514)
    """

    def __init__(
        self,
        temperature: float | Tensor = 0.07,
        *,
        margin: float | None = None,
        symmetric: bool = False,
        reduction: str = "mean",
        normalize: bool = True,
        eps: float = 1e-8,
        precision: str = "highest",
        group: Any = None,
    ) -> None:
        super().__init__(
            temperature=temperature,
            margin=margin,
            symmetric=symmetric,
            reduction=reduction,
            normalize=normalize,
            eps=eps,
            precision=precision,
            group=group,
        )

    def forward(
        self,
        queries: Tensor,
        keys: Tensor,
        *,
        positives: Tensor | None = None,
        query_ids: Tensor | None = None,
        key_ids: Tensor | None = None,
    ) -> Tensor:
        """Return the loss of queries (n, d) and keys (m, d)."""
        return info_nce(
            queries,
            keys,
            positives=positives,
            query_ids=query_ids,
            key_ids=key_ids,
            **self.options(),
        )
