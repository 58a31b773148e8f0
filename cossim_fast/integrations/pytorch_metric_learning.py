"""In place of `NTXentLoss` and `SupConLoss` of ``pytorch_metric_learning.losses``: subclasses.

Written after pytorch-metric-learning 2.9.

What differs: with cosines of all pairs, the matrix is never in memory, and `NTXentLoss` holds a row
of embeddings for each positive pair, where the library's holds all negative pairs for each; losses
are computed in float32 at least, and are float32 for rows of float16 and bfloat16; they are not
rounded to 0 where a positive is far nearer than all else, nor cut off at the logarithm of the
smallest number where it is far from it. With a miner's pairs, or another distance than
`CosineSimilarity`, the library computes.
"""

from __future__ import annotations

from typing import Any, NamedTuple

import torch
from pytorch_metric_learning.distances import CosineSimilarity
from pytorch_metric_learning.losses import NTXentLoss as _NTXentLoss
from pytorch_metric_learning.losses import SupConLoss as _SupConLoss
from pytorch_metric_learning.reducers import MeanReducer
from torch import Tensor

from cossim_fast import losses

# The smallest norm that F.normalize divides by.
_EPS = 1e-12


class NTXentLoss(_NTXentLoss):
    """The loss of each pair of a class: of finding one row of it beside all other classes' rows.

    Other positives of a row are no part of its sum, as in the library.

    It takes the library's arguments: `temperature`, what cosines are divided by, > 0; `distance`,
    `reducer`, `embedding_regularizer` and others.
    """

    def compute_loss(
        self,
        embeddings: Tensor,
        labels: Tensor | None,
        indices_tuple: Any,
        ref_emb: Tensor,
        ref_labels: Tensor | None,
    ) -> dict[str, Any]:
        """Return the losses of pairs, or their mean, as the library's reducers take them."""
        pairs = _all_pairs(self, labels, indices_tuple, ref_labels)
        if pairs is None:
            found: dict[str, Any] = super().compute_loss(
                embeddings, labels, indices_tuple, ref_emb, ref_labels
            )
            return found
        if pairs.too_few():
            return self.zero_losses()  # type: ignore[no-any-return]
        anchors, positives = pairs.positives()
        # Where each row has one positive, as views of items have, rows are pairs in their order.
        row = torch.arange(len(embeddings), device=anchors.device)
        of_rows = torch.equal(anchors, row)
        mean = type(self.reducer) is MeanReducer and not self.reducer.collect_stats
        value = losses.info_nce(
            embeddings if of_rows else embeddings[anchors],
            ref_emb,
            temperature=self.temperature,
            positives=positives,
            # Of a row's own class none but the positive is in the sum.
            query_ids=pairs.codes if of_rows else pairs.codes[anchors],
            key_ids=pairs.ref_codes,
            reduction="mean" if mean else "none",
            eps=_EPS,
        )
        if mean:
            return _losses(value, None, "already_reduced")
        return _losses(value, (anchors, positives), "pos_pair")


class SupConLoss(_SupConLoss):
    """The loss of finding the rows of each row's class among all other rows.

    It takes the library's arguments: `temperature`, what cosines are divided by, > 0; `distance`,
    `reducer`, `embedding_regularizer` and others.
    """

    def compute_loss(
        self,
        embeddings: Tensor,
        labels: Tensor | None,
        indices_tuple: Any,
        ref_emb: Tensor,
        ref_labels: Tensor | None,
    ) -> dict[str, Any]:
        """Return the losses of rows, as the library's reducers take them."""
        pairs = _all_pairs(self, labels, indices_tuple, ref_labels)
        others_without_the_diagonal = ref_labels is labels and ref_emb is not embeddings
        if pairs is None or others_without_the_diagonal:
            found: dict[str, Any] = super().compute_loss(
                embeddings, labels, indices_tuple, ref_emb, ref_labels
            )
            return found
        if pairs.too_few():
            return self.zero_losses()  # type: ignore[no-any-return]
        of_others = not pairs.of_itself
        value = losses.sup_con(
            embeddings,
            pairs.codes,
            temperature=self.temperature,
            ref=ref_emb if of_others else None,
            ref_labels=pairs.ref_codes if of_others else None,
            reduction="none",
            eps=_EPS,
        )
        return _losses(value, torch.arange(len(value), device=value.device), "element")


class _Pairs(NamedTuple):
    """All pairs of rows and others, by class."""

    # Classes of the rows (n,) and of the others (m,), numbered from 0.
    codes: Tensor
    ref_codes: Tensor
    # Whether no row is paired with the other of its number.
    of_itself: bool

    def _sizes(self) -> Tensor:
        """How many of the others each class has."""
        count = int(self.codes.max()) + 1 if len(self.codes) else 0
        return torch.bincount(self.ref_codes, minlength=count)

    def too_few(self) -> bool:
        """Whether the loss is 0: without positives, without negatives, or with one of each."""
        n = len(self.codes)
        alike = int(self._sizes()[self.codes].sum())
        others = n * len(self.ref_codes) - alike
        positives = alike - (n if self.of_itself else 0)
        return not positives or not others or positives == others == 1

    def positives(self) -> tuple[Tensor, Tensor]:
        """Rows and the others of their class, one pair after the other, in the library's order."""
        sizes, order = self._sizes(), self.ref_codes.argsort(stable=True)
        counts, first = sizes[self.codes], (sizes.cumsum(0) - sizes)[self.codes]
        row = torch.arange(len(self.codes), device=counts.device)
        rows = row.repeat_interleave(counts)
        step = torch.arange(len(rows), device=counts.device) - (counts.cumsum(0) - counts)[rows]
        others = order[first[rows] + step]
        if not self.of_itself:
            return rows, others
        kept = rows != others
        return rows[kept], others[kept]


def _all_pairs(
    loss: Any, labels: Tensor | None, indices_tuple: Any, ref_labels: Tensor | None
) -> _Pairs | None:
    """The pairs whose cosines are wanted; None where others are, or other distances."""
    distance = loss.distance
    usual = type(distance) is CosineSimilarity and (distance.p, distance.power) == (2, 1)
    if indices_tuple is not None or labels is None or ref_labels is None or not usual:
        return None
    if distance.collect_stats:
        return None
    codes = torch.unique(torch.cat([labels, ref_labels]), return_inverse=True)[1]
    return _Pairs(codes[: len(labels)], codes[len(labels) :], ref_labels is labels)


def _losses(losses: Tensor, indices: Any, kind: str) -> dict[str, Any]:
    return {"loss": {"losses": losses, "indices": indices, "reduction_type": kind}}
