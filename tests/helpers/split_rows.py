"""Rows in memory that are read in pieces, as a set of shards is read."""

import itertools
from collections.abc import Iterator, Sequence
from dataclasses import dataclass

import torch
from torch import Tensor


@dataclass(frozen=True)
class SplitRows:
    """Rows (n, d), cut before the rows of some numbers; a number twice makes an empty shard."""

    held: Tensor
    cuts: tuple[int, ...] = ()

    @property
    def rows(self) -> int:
        return len(self.held)

    @property
    def width(self) -> int:
        return self.held.shape[1]

    @property
    def dtype(self) -> str:
        return str(self.held.dtype).removeprefix("torch.")

    def between(self, start: int, stop: int) -> Iterator[tuple[int, Tensor]]:
        for begin, end in ranges(self.rows, self.cuts):
            low, high = max(begin, start), min(end, stop)
            if low < high:
                yield low, self.held[low:high].clone()


def ranges(n: int, cuts: Sequence[int]) -> list[tuple[int, int]]:
    """The ranges of n rows between some cuts."""
    ends = [0, *sorted(min(cut, n) for cut in cuts), n]
    return list(itertools.pairwise(ends))


def same_bits(a: Tensor, b: Tensor) -> bool:
    """Whether two tensors hold the same numbers, NaN included, in one dtype."""
    kind = {4: torch.int32, 8: torch.int64}[a.element_size()]
    return a.dtype == b.dtype and a.shape == b.shape and torch.equal(a.view(kind), b.view(kind))
