"""Rows that the ranks of a process group own, and what passes between them.

Each rank owns some rows of a batch, as many as it likes; together they are numbered in the order of
the ranks. Keys are handed round in pieces, every rank in the same order, and a piece's gradient
goes back to its owner as a sum over the ranks: a rank holds its own rows and one piece of others'.
Vectors with a number for each row are held whole.

Every method that talks is called by all ranks, in the same order.
"""

from __future__ import annotations

from collections.abc import Iterator, Mapping, Sequence
from typing import Any, NamedTuple

import torch
import torch.distributed as dist
from torch import Tensor


class Piece(NamedTuple):
    """Some rows of one owner: rows[start:stop] of the rank `owner`, from the row `first` of all."""

    owner: int
    start: int
    stop: int
    first: int


class Group:
    """The ranks of a process group, seen from one of them.

    Args:
        group: a process group of torch.distributed; ``dist.group.WORLD`` for all ranks.
        device: where the rows lie.
    """

    def __init__(self, group: Any, device: torch.device) -> None:
        if not (dist.is_available() and dist.is_initialized()):
            raise ValueError(
                "expected group=None, since torch.distributed has no processes here; "
                "call torch.distributed.init_process_group first"
            )
        if not isinstance(group, dist.ProcessGroup):
            raise TypeError(
                "expected group to be a process group that this process is in, such as "
                f"torch.distributed.group.WORLD, got {group!r}"
            )
        self.group, self.device = group, device
        self.rank, self.size = dist.get_rank(group), dist.get_world_size(group)

    def of_all_alike(self, own: Sequence[int], alike: Mapping[str, float]) -> list[tuple[int, ...]]:
        """A few whole numbers of each rank, in the order of the ranks.

        Args:
            own: this rank's.
            alike: what has to be the same on all ranks, by its name.

        Raises:
            ValueError: a value differs. Every rank raises it, so that none waits for another.
        """
        row = torch.tensor([[*own, *alike.values()]], dtype=torch.float64, device=self.device)
        found = [torch.empty_like(row) for _ in range(self.size)]
        dist.all_gather(found, row, group=self.group)
        table = torch.cat(found).cpu()
        for name, values in zip(alike, table[:, len(own) :].T.tolist(), strict=True):
            if len(set(values)) > 1:
                raise ValueError(
                    f"expected one {name} on all ranks of the group, got {values}, rank by rank"
                )
        return [tuple(map(int, numbers)) for numbers in table[:, : len(own)].tolist()]

    def sum(self, values: Tensor) -> Tensor:
        """The sum over the ranks, written to `values`."""
        dist.all_reduce(values, group=self.group)
        return values

    def largest(self, values: Tensor) -> Tensor:
        """The maximum over the ranks, written to `values`."""
        dist.all_reduce(values, dist.ReduceOp.MAX, group=self.group)
        return values


class Shares:
    """Which rank owns which rows.

    Args:
        ranks: the group.
        counts: how many rows each rank owns.
    """

    def __init__(self, ranks: Group, counts: Sequence[int]) -> None:
        self.ranks, self.counts = ranks, list(counts)
        self.firsts = [sum(self.counts[:rank]) for rank in range(ranks.size)]
        self.own, self.total = self.counts[ranks.rank], sum(self.counts)
        self.first = self.firsts[ranks.rank]

    def of_all(self, vector: Tensor) -> Tensor:
        """A number for each row of each rank, (total,), of this rank's own, (own,)."""
        whole = vector.new_empty(self.total)
        for owner, (first, count) in enumerate(zip(self.firsts, self.counts, strict=True)):
            part = whole[first : first + count]
            if owner == self.ranks.rank:
                part.copy_(vector)
            if count:
                dist.broadcast(part, group=self.ranks.group, group_src=owner)
        return whole

    def mine(self, whole: Tensor) -> Tensor:
        """The numbers of this rank's own rows, (own,), of all, (total,)."""
        return whole[self.first : self.first + self.own]

    def pieces(self, rows: Tensor, most: int) -> Iterator[tuple[Piece, Tensor]]:
        """Hand round all ranks' rows, `most` at a time, in the order of the ranks.

        Args:
            rows: (own, d), this rank's own, contiguous.
            most: how many rows a piece has, if its owner has as many.

        Yields:
            A piece and its rows, until the next is asked for.
        """
        room = rows.new_empty((min(most, max(self.counts, default=0)), rows.shape[1]))
        for owner, (first, count) in enumerate(zip(self.firsts, self.counts, strict=True)):
            for start in range(0, count, most):
                stop = min(start + most, count)
                part = rows[start:stop] if owner == self.ranks.rank else room[: stop - start]
                dist.broadcast(part, group=self.ranks.group, group_src=owner)
                yield Piece(owner, start, stop, first + start), part

    def give_back(self, piece: Piece, gradient: Tensor, into: Tensor) -> None:
        """Sum a piece's gradient over the ranks, and write it to its rows `into` of its owner's.

        Args:
            piece: the piece.
            gradient: this rank's part, (stop - start, d), contiguous; not to be used afterwards.
            into: (own, d), the gradient of this rank's own rows.
        """
        dist.reduce(gradient, group=self.ranks.group, group_dst=piece.owner)
        if piece.owner == self.ranks.rank:
            into[piece.start : piece.stop] = gradient
