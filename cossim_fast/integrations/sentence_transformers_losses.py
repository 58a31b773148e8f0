"""In place of two losses of ``sentence_transformers.losses``: subclasses of them.

Written after sentence-transformers 6.2.0, ``sentence_transformer/losses``.

What differs: the matrix of scores is never in memory, neither one process's nor all processes', and
`CachedMultipleNegativesRankingLoss` computes its loss at once in place of a mini-batch after the
other; losses are computed in float32 at least, and are float32 for embeddings of float16 and
bfloat16; rows of any magnitude are right; with `gather_across_devices`, processes may have unequal
numbers of rows. That is so for scores by `cos_sim` and `dot_score`, from queries to documents and,
with `partition_mode="per_direction"`, back; with other directions, joint ones, a hardness or
another function of similarity, the library computes.
"""

from __future__ import annotations

from typing import Any

import torch
import torch.distributed as dist
from sentence_transformers import util
from sentence_transformers.sentence_transformer import losses as theirs
from torch import Tensor

from cossim_fast import losses
from cossim_fast.integrations.sentence_transformers import cos_sim

# The smallest norm that F.normalize divides by.
_EPS = 1e-12
_THERE, _BACK = "query_to_doc", "doc_to_query"


class MultipleNegativesRankingLoss(theirs.MultipleNegativesRankingLoss):
    """The loss of finding each query's document among those of the batch; arguments are theirs."""

    def compute_loss_from_embeddings(self, embeddings: list[Tensor], labels: Tensor) -> Tensor:
        """Return the loss of queries (n, d), their documents (n, d) and negatives (n, d) of each.

        Args:
            embeddings: those, in this order.
            labels: not used: document i is query i's.
        """
        if len(embeddings) < 2 or not _is_ours(self):
            found: Tensor = super().compute_loss_from_embeddings(embeddings, labels)
            return found
        return _loss(self, embeddings)


class CachedMultipleNegativesRankingLoss(theirs.CachedMultipleNegativesRankingLoss):
    """The same loss with cached gradients, for batches whose activations do not fit."""

    def calculate_loss(
        self, reps: list[list[Tensor]], labels: Tensor | None = None, *, with_backward: bool = False
    ) -> Tensor:
        """Return the loss of embeddings in mini-batches (b, d), by column.

        Args:
            reps: queries, their documents, and negatives of each.
            labels: not used.
            with_backward: whether to propagate the loss back to the embeddings.
        """
        if not _is_ours(self):
            found: Tensor = super().calculate_loss(reps, labels, with_backward=with_backward)
            return found
        loss = _loss(self, [torch.cat(column) for column in reps])
        if with_backward:
            loss.backward()
        return loss.detach() if with_backward else loss


def _is_ours(loss: Any) -> bool:
    """Whether a loss is one of those that are not handed on."""
    directions = set(loss.directions)
    both_ways = directions == {_THERE, _BACK} and loss.partition_mode == "per_direction"
    return (
        (both_ways or directions == {_THERE})
        and not (loss.hardness_mode is not None and loss.hardness_strength > 0)
        and loss.similarity_fct in (util.cos_sim, util.dot_score, cos_sim)
    )


def _loss(loss: Any, embeddings: list[Tensor]) -> Tensor:
    """The loss of queries, their documents, and any number of negatives of each."""
    queries, *documents = embeddings
    group = dist.group.WORLD if loss.gather_across_devices and dist.is_initialized() else None
    return losses.info_nce(
        queries,
        torch.cat(documents),
        temperature=1 / loss.scale,
        symmetric=_BACK in loss.directions,
        normalize=loss.similarity_fct is not util.dot_score,
        eps=_EPS,
        group=group,
    )
