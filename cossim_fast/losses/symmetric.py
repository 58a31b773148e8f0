"""Rows beside themselves: half of the matrix of logits, in tiles that threads share.

Blocks of rows meet in rounds in which each block occurs once, so that no two threads write to one
place, and sums have one order, whatever the number of threads. A tile serves both of its blocks.
"""

from __future__ import annotations

import functools
from collections.abc import Callable, Sequence
from functools import partial
from typing import cast

import torch
from torch import Tensor

from cossim_fast import _products, _threads
from cossim_fast._cpu.matrix import SIDE, independent_threads
from cossim_fast._cpu.products import OneDnnProduct, PlainProduct, by_onednn
from cossim_fast._dtypes import accumulation_dtype
from cossim_fast.losses.tiles import BITS, GradientSums, UnitRows, spans

# [bytes] Of tiles that the first pass keeps for the second, less what each thread but one takes.
KEPT = 42 << 20
PER_THREAD = 6 << 20

# Does something with the blocks i <= j.
Work = Callable[[int, int], None]
# Turns the tile of two blocks into that of what it contributes to the gradient, in place.
Weigh = Callable[[int, int, Tensor], None]


def rounds(count: int) -> list[list[tuple[int, int]]]:
    """All pairs (i, j), i <= j < count, in rounds in which each number occurs once at most.

    >>> rounds(3)
    [[(0, 0), (1, 1), (2, 2)], [(1, 2)], [(0, 2)], [(0, 1)]]
    """
    found = [[(i, i) for i in range(count)]]
    # The circle method of tournaments; of an odd number, one rests in each round.
    last = count + count % 2 - 1
    for turn in range(last):
        pairs = [(turn, last)] + [
            ((turn + k) % last, (turn - k) % last) for k in range(1, (last + 1) // 2)
        ]
        met = [(min(pair), max(pair)) for pair in pairs if max(pair) < count]
        found += [met] if met else []
    return found


class Stacked:
    """Matrices (.., d), one below the other as (n, d), of which slices of rows are read."""

    def __init__(self, parts: Sequence[Tensor]) -> None:
        self._parts = parts
        self.shape = (sum(len(part) for part in parts), parts[0].shape[1])

    def __len__(self) -> int:
        return self.shape[0]

    def __getitem__(self, rows: slice) -> Tensor:
        found, first = [], 0
        for part in self._parts:
            some = part[max(rows.start - first, 0) : max(rows.stop - first, 0)]
            found += [some] if len(some) else []
            first += len(part)
        return found[0] if len(found) == 1 else torch.cat(found)


class Triangle:
    """log2(e) scale û ûᵀ of rows (n, d) on CPU, tile by tile, each pair of blocks once.

    Args:
        parts: of the rows, (.., d) each, of float16, bfloat16, float32 or float64.
        scale: factor of the cosines.
        eps: the smallest norm to divide by; None leaves rows as they are.
    """

    def __init__(self, parts: Sequence[Tensor], scale: float, eps: float | None) -> None:
        # It has what UnitRows asks of rows.
        rows = cast(Tensor, Stacked([part.detach() for part in parts]))
        n, d = rows.shape
        work = n * n * d // 2
        self.dtype = accumulation_dtype(
            functools.reduce(torch.promote_types, (part.dtype for part in parts))
        )
        self.scale = scale
        self.threads = independent_threads(work)
        self._fast = self.dtype == torch.float32 and by_onednn(work)
        product = OneDnnProduct() if self._fast else PlainProduct(self.dtype)
        self.units = UnitRows(rows, eps, self.dtype, product, self.threads)
        self.spans = spans(n, SIDE)
        self._kept: dict[tuple[int, int], Tensor] = {}
        self._room = KEPT - PER_THREAD * (self.threads - 1)

    def each(self, work: Work) -> None:
        """Call work(i, j) for all pairs of blocks, i <= j, each at a time for other blocks."""
        for pairs in rounds(len(self.spans)):
            _threads.run_independent(self.threads, [partial(work, *pair) for pair in pairs])

    def tile(self, i: int, j: int, *, again: bool = False) -> Tensor:
        """The logits (r, c) of block i with block j, in memory of their own, or of a padded tile.

        Args:
            i: a block.
            j: a block.
            again: whether they will be asked for once more, and are not written to until then.
        """
        kept = self._kept.pop((i, j), None)
        if kept is not None:
            return kept
        rows, columns = self.spans[i], self.spans[j]
        total = self._multiply(self.units.strip(rows), self.units.strip(columns), None)
        total.mul_(self.scale * BITS)
        tile = total[: rows.stop - rows.start, : columns.stop - columns.start]
        size = total.numel() * total.element_size()
        if again and size <= self._room:
            self._room -= size
            self._kept[i, j] = tile
        return tile

    def _multiply(self, a: Tensor, b: Tensor, start: Tensor | None) -> Tensor:
        """A @ b.T (+ start), in memory of its own."""
        if self._fast:
            return _products.linear(a, b, start)
        product = _products.mm(a, b.T)
        return product if start is None else product.add_(start)

    def gradient(
        self, weigh: Weigh, more: Callable[[slice], Tensor], factor: float
    ) -> tuple[Tensor, float]:
        """The derivative of a loss by the rows (n, d), in `dtype`, and that by the scale.

        Args:
            weigh: turns tiles of logits into those of W = G + Gᵀ, G the gradient by the logits.
            more: gives what to add to W û, for some rows.
            factor: of the result.
        """
        sums = GradientSums(self.units, self.scale, factor)

        def work(i: int, j: int) -> None:
            tile = self.tile(i, j)
            weigh(i, j, tile)
            tile = tile if tile._base is None else tile._base
            self._add(sums, i, tile, j)
            if i != j:
                self._add(sums, j, tile.T.contiguous(), i)

        def add(rows: slice) -> None:
            total = sums.begun(rows)
            if total is not None:
                total[: rows.stop - rows.start].add_(more(rows))
                sums.put(rows, total, done=True)

        self.each(work)
        _threads.run_independent(self.threads, [partial(add, rows) for rows in self.spans])
        found, along = sums.result()
        return found, along / 2

    def _add(self, sums: GradientSums, block: int, weights: Tensor, other: int) -> None:
        """Sums of a block += weights times the rows of another."""
        rows, others = self.spans[block], self.units.strip(self.spans[other])
        sums.put(rows, self._multiply(weights, others.T, sums.begun(rows)), done=False)
