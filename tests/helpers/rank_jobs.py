"""What the ranks of `ranks.Ranks` run: they import it by its name, as they cannot import tests."""

from __future__ import annotations

from collections.abc import Sequence
from typing import Any, NamedTuple
from unittest import mock

import numpy as np
import torch
from torch import Tensor, nn

from cossim_fast import losses
from cossim_fast.losses import sharded_tiles
from cossim_fast.losses.group import Group

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
    """Of `info_nce` this rank's value, and the gradients of its rows, its keys and the scale."""
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
    mine = rows[made.own(rank)].to(dtype), keys[made.own(rank, rows=False)].to(dtype)
    _set_sizes(pieces)
    value = losses.info_nce(*mine, temperature=1 / scale, group=group, **options)
    return _differentiated(value, [rows, keys, scale])


def pairs(group: Any, name: str, made: Batch, pieces: int, with_ids: bool) -> Arrays:
    """The same of `clip` or `siglip`, and the gradient of the bias."""
    own = made.own(torch.distributed.get_rank(group))
    leaves = rows, keys, scale, bias = made.leaves()
    ids = made.ids[own] if with_ids else None
    _set_sizes(pieces)
    loss = getattr(losses, name)
    value = loss(rows[own], keys[own], scale, bias, image_ids=ids, text_ids=ids, group=group)
    return _differentiated(value, leaves)


def views(group: Any, made: Batch, pieces: int, with_ids: bool) -> Arrays:
    """The same of `nt_xent`, by both views and the scale."""
    own = made.own(torch.distributed.get_rank(group))
    rows, keys, scale, _ = made.leaves()
    ids = made.ids[own] if with_ids else None
    _set_sizes(pieces)
    value = losses.nt_xent(rows[own], keys[own], temperature=1 / scale, ids=ids, group=group)
    return _differentiated(value, [rows, keys, scale])


def classes(group: Any, made: Batch, pieces: int, reduction: str, others: bool) -> Arrays:
    """The same of `sup_con`, by rows, what they are compared with, and the scale."""
    rank = torch.distributed.get_rank(group)
    rows, keys, scale, _ = made.leaves()
    own, own_keys = made.own(rank), made.own(rank, rows=False)
    labels = made.ids[: len(rows)] // 2
    _set_sizes(pieces)
    value = losses.sup_con(
        rows[own],
        labels[own],
        temperature=1 / scale,
        ref=keys[own_keys] if others else None,
        ref_labels=(made.ids // 2)[own_keys] if others else None,
        reduction=reduction,
        group=group,
    )
    return _differentiated(value, [rows, keys, scale] if others else [rows, scale])


def _set_sizes(pieces: int) -> None:
    """Let pieces have so many keys, and tiles four rows of them."""
    sharded_tiles.PIECE, sharded_tiles.TILE = pieces, 4 * pieces


def _differentiated(value: Tensor, leaves: list[Tensor]) -> Arrays:
    # Unlike weights, where there are several losses, and unlike ones from rank to rank.
    weights = torch.linspace(1, 2, max(value.numel(), 1), dtype=value.dtype).view(value.shape)
    leaves = [leaf for leaf in leaves if leaf.requires_grad]
    gradients = torch.autograd.grad((value * weights).sum(), leaves)
    return [np.asarray(t.detach()) for t in (value, *gradients)]


def rows_passed(group: Any, made: Batch, pieces: int, options: Any) -> dict[str, list[int]]:
    """How many rows are passed on at a time, there and back."""
    passed: dict[str, list[int]] = {}

    def watched(name: str) -> Any:
        real = getattr(torch.distributed, name)

        def call(tensor: Tensor, *arguments: Any, **options: Any) -> Any:
            if tensor.dim() == 2:
                passed.setdefault(name, []).append(len(tensor))
            return real(tensor, *arguments, **options)

        return mock.patch.object(torch.distributed, name, call)

    with watched("broadcast"), watched("reduce"), watched("all_reduce"):
        contrast(group, made, torch.float32, pieces, options)
    return passed


def group_of(_: Any, given: Any) -> None:
    """Ask for a group by something else."""
    Group(given, torch.device("cpu"))


def under_autocast(group: Any, made: Batch) -> list[Arrays]:
    """`clip` in float32, without autocast and with it in both passes."""
    own = made.own(torch.distributed.get_rank(group))
    found = []
    for enabled in (False, True):
        rows, keys, scale, _ = (t.float().detach().requires_grad_() for t in made.leaves())
        with torch.autocast("cpu", torch.bfloat16, enabled=enabled):
            value = losses.clip(rows[own], keys[own], scale, group=group)
            found.append(_differentiated(value, [rows, keys, scale]))
    return found


def many_derivatives(group: Any, made: Batch, twice: bool) -> None:
    """Ask for a second derivative, or for several first ones at once."""
    own = made.own(torch.distributed.get_rank(group))
    rows, keys, scale, _ = made.leaves()
    value = losses.clip(rows[own], keys[own], scale, group=group)
    if twice:
        (gradient,) = torch.autograd.grad(value, rows, create_graph=True)
        torch.autograd.grad(gradient.sum(), rows)
    else:
        weights = torch.ones(2, dtype=value.dtype)
        torch.autograd.grad(value, rows, weights, is_grads_batched=True)


class TwoTowers(nn.Module):
    """Encoders of both sides, and a scale that is learnt."""

    def __init__(self) -> None:
        super().__init__()
        self.left, self.right = (nn.Linear(7, 5, dtype=torch.float64) for _ in range(2))
        self.scale = nn.Parameter(torch.tensor(2.0, dtype=torch.float64))
        numbers = torch.Generator().manual_seed(0)
        with torch.no_grad():
            for parameter in (*self.left.parameters(), *self.right.parameters()):
                parameter.normal_(generator=numbers)

    def forward(self, rows: Tensor, keys: Tensor) -> tuple[Tensor, Tensor, Tensor]:
        """Encode both sides."""
        return self.left(rows), self.right(keys), self.scale.exp()


def by_ddp(group: Any, made: Batch) -> Arrays:
    """The gradients of parameters that DistributedDataParallel has averaged."""
    own = made.own(torch.distributed.get_rank(group))
    model = nn.parallel.DistributedDataParallel(TwoTowers(), process_group=group)
    value = losses.clip(*model(made.rows[own], made.keys[own]), group=group)
    value.backward()
    return [np.asarray(parameter.grad) for parameter in model.parameters()]
