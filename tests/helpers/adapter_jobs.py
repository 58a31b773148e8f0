"""What the ranks of `ranks.Ranks` run for the adapters' tests."""

from __future__ import annotations

from typing import Any

import numpy as np
import torch
import torch.distributed as dist
from torch import Tensor, nn

import loss_batches

Arrays = list[Any]


def open_clip_losses(_: Any, name: str, options: dict[str, Any]) -> tuple[Arrays, Arrays]:
    """Ours and theirs of this rank's part of a batch, and their gradients."""
    import bare_packages

    bare_packages.bare_open_clip()
    from open_clip import loss as theirs

    from cossim_fast.integrations import open_clip as mine

    ranks = {"rank": dist.get_rank(), "world_size": dist.get_world_size()}
    x, y = (share(t) for t in loss_batches.pairs("random"))
    return tuple(  # type: ignore[return-value]
        differentiated(getattr(one, name)(**options, **ranks), x, y) for one in (mine, theirs)
    )


def open_clip_of_seven(_: Any, name: str) -> None:
    """A loss of more ranks than there are."""
    from cossim_fast.integrations import open_clip

    loss = getattr(open_clip, name)(rank=0, world_size=7)
    loss(*loss_batches.pairs("random"), 1.0, None)


def lightly_losses(_: Any, gather_distributed: bool) -> tuple[Arrays, Arrays]:
    """Ours and theirs of this rank's part of a batch, and the gradients of its rows."""
    import bare_packages

    bare_packages.bare_lightly()
    from lightly.loss.ntx_ent_loss import NTXentLoss as Theirs

    from cossim_fast.integrations.lightly import NTXentLoss as Mine

    rows = [2 * share(t) for t in loss_batches.pairs("random")]
    found = []
    for one in (Mine, Theirs):
        leaves = [t.clone().requires_grad_() for t in rows]
        value = one(0.2, gather_distributed=gather_distributed)(*leaves)
        found.append([np.asarray(t.detach()) for t in (value, *torch.autograd.grad(value, leaves))])
    return found[0], found[1]


def differentiated(loss: nn.Module, x: Tensor, y: Tensor) -> Arrays:
    """A loss of features, a scale and a bias, and its gradients."""
    numbers = (torch.tensor(9.0, dtype=x.dtype), torch.tensor(-3.0, dtype=x.dtype))
    leaves = [t.clone().requires_grad_() for t in (x, y, *numbers)]
    value = loss(*leaves)
    return [np.asarray(t.detach()) for t in (value, *torch.autograd.grad(value, leaves))]


def share(x: Tensor) -> Tensor:
    """This rank's part of rows."""
    return x.chunk(dist.get_world_size())[dist.get_rank()]


def ranking_losses(_: Any, name: str, count: int, options: dict[str, Any]) -> tuple[Arrays, Arrays]:
    """Ours and theirs of this rank's part of `count` columns, and their gradients."""
    from sentence_transformers.sentence_transformer import losses as theirs

    from cossim_fast.integrations import sentence_transformers_losses as mine

    columns = [*loss_batches.pairs("random"), loss_batches.pairs("random", seed=1)[0]]
    found = []
    for one in (mine, theirs):
        leaves = [share(t).clone().requires_grad_() for t in columns[:count]]
        loss = getattr(one, name)(SmallModel(), **options)
        if hasattr(loss, "calculate_loss"):
            value = loss.calculate_loss([[t] for t in leaves], with_backward=True)
        else:
            value = loss.compute_loss_from_embeddings(leaves, None)
            value.backward()
        found.append([np.asarray(t) for t in (value.detach(), *(leaf.grad for leaf in leaves))])
    return found[0], found[1]


class SmallModel(nn.Sequential):
    """Means of words' embeddings, by the interface that losses of sentence-transformers need."""

    def __init__(self, dropout: float = 0.0) -> None:
        super().__init__(nn.Dropout(dropout))
        numbers = torch.Generator().manual_seed(0)
        self.words = nn.Embedding(40, 16, dtype=torch.float64)
        with torch.no_grad():
            self.words.weight.normal_(generator=numbers)

    def get_embedding_dimension(self) -> int:
        """The width of embeddings."""
        return self.words.embedding_dim

    def forward(self, features: dict[str, Any]) -> dict[str, Any]:
        """Add the embedding of each text to its features."""
        words = self[0](self.words(features["input_ids"]))
        return {**features, "sentence_embedding": words.mean(1)}
