"""What the ranks of `ranks.Ranks` run: they import it by its name, as they cannot import tests."""

from __future__ import annotations

from collections.abc import Sequence
from typing import Any, NamedTuple
from unittest import mock

import numpy as np
import torch
from torch import Tensor

from cossim_fast.losses import sharded
from cossim_fast.losses.group import Group
from cossim_fast.losses.siglip import SigmoidLoss
from cossim_fast.losses.softmax import SoftmaxLoss

Arrays = list[Any]


class Batch(NamedTuple):
    """The rows of a batch that all ranks share, in float64, and how they are spread."""

    rows: Tensor
    keys: Tensor
    scale: Tensor
    bias: Tensor
    row_counts: tuple[int, ...]
    key_counts: tuple[int, ...]
    ids: Tensor

    def own(self, rank: int, rows: bool = True) -> slice:
        """Which rows, or keys, a rank owns."""
        counts = self.row_counts if rows else self.key_counts
        return slice(sum(counts[:rank]), sum(counts[: rank + 1]))

    def leaves(self) -> list[Tensor]:
        """Rows, keys, scale and bias, with gradients."""
        return [t.clone().requires_grad_() for t in (self.rows, self.keys, self.scale, self.bias)]


def batch(
    seed: int, counts: Sequence[int], more: int = 0, scale: float = 9.0, width: int = 7
) -> Batch:
    """Rows that lie close to their keys; each rank has `more` keys beyond them."""
    numbers = torch.Generator().manual_seed(seed)
    row_counts, key_counts = tuple(counts), tuple(count + more for count in counts)
    rows = torch.randn(sum(row_counts), width, generator=numbers, dtype=torch.float64)
    keys = torch.randn(sum(key_counts), width, generator=numbers, dtype=torch.float64)
    made = Batch(
        rows,
        keys,
        torch.tensor(scale, dtype=torch.float64),
        torch.tensor(-2.5, dtype=torch.float64),
        row_counts,
        key_counts,
        torch.randint(0, max(sum(key_counts) // 2, 1), (sum(key_counts),), generator=numbers),
    )
    for rank, count in enumerate(counts):
        own = keys[made.own(rank, rows=False)]
        own[:count] = 0.6 * own[:count] + rows[made.own(rank)]
    return made


def contrast(group: Any, made: Batch, dtype: torch.dtype, pieces: int, options: Any) -> Arrays:
    """Of the softmax loss this rank's value, and the gradients of its rows, keys and scale."""
    rank = torch.distributed.get_rank(group)
    rows, keys, scale, _ = made.leaves()
    options = dict(options)
    keys.requires_grad_(options.pop("learnt_keys", True))
    if rank == 0:
        options |= options.pop("on_the_first", {})
    options.pop("on_the_first", None)
    if options.pop("with_ids", False):
        options["query_ids"] = made.ids[: sum(made.row_counts)][made.own(rank)]
        options["key_ids"] = made.ids[made.own(rank, rows=False)]
    sharded.PIECE, sharded.TILE = pieces, 4 * pieces
    mine = rows[made.own(rank)].to(dtype), keys[made.own(rank, rows=False)].to(dtype)
    value = sharded.softmax_loss(SoftmaxLoss(**options), *mine, scale, group)
    return _differentiated(value, [rows, keys, scale])


def sigmoid(group: Any, made: Batch, dtype: torch.dtype, pieces: int, with_ids: bool) -> Arrays:
    """The same of SigLIP's loss, and the gradient of the bias."""
    rank = torch.distributed.get_rank(group)
    rows, keys, scale, bias = made.leaves()
    ids = made.ids[made.own(rank)] if with_ids else None
    loss = SigmoidLoss(image_ids=ids, text_ids=ids)
    sharded.PIECE, sharded.TILE = pieces, 4 * pieces
    mine = rows[made.own(rank)].to(dtype), keys[made.own(rank, rows=False)].to(dtype)
    value = sharded.sigmoid_loss(loss, *mine, scale, bias, group)
    return _differentiated(value, [rows, keys, scale, bias])


def _differentiated(value: Tensor, leaves: list[Tensor]) -> Arrays:
    # Unlike weights, where there are several losses, and unlike ones from rank to rank.
    weights = torch.linspace(1, 2, max(value.numel(), 1), dtype=value.dtype).view(value.shape)
    leaves = [leaf for leaf in leaves if leaf.requires_grad]
    gradients = torch.autograd.grad((value * weights).sum(), leaves)
    return [np.asarray(t.detach()) for t in (value, *gradients)]


def most_rows_passed(group: Any, made: Batch, pieces: int) -> int:
    """The most rows that are passed on at a time, in both directions of a symmetric loss."""
    passed = []

    def watched(name: str) -> Any:
        real = getattr(torch.distributed, name)

        def call(tensor: Tensor, *arguments: Any, **options: Any) -> Any:
            if tensor.dim() == 2:
                passed.append(len(tensor))
            return real(tensor, *arguments, **options)

        return mock.patch.object(torch.distributed, name, call)

    with watched("broadcast"), watched("reduce"), watched("all_reduce"):
        contrast(group, made, torch.float32, pieces, {"symmetric": True})
    return max(passed)


def group_of(_: Any, given: Any) -> None:
    """Ask for a group by something else."""
    Group(given, torch.device("cpu"))
