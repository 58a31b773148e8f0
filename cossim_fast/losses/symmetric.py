"""Rows beside themselves: half of the matrix of logits, in tiles that threads share.

Blocks of rows meet in rounds in which each block occurs once, so that no two threads write to one
place, and sums have one order, whatever the number of threads. A tile serves both of its blocks.
"""

from __future__ import annotations

from collections.abc import Callable
from functools import partial

import torch
from torch import Tensor

from cossim_fast import _products, _threads
from cossim_fast._cpu.matrix import SIDE, independent_threads
from cossim_fast._cpu.products import OneDnnProduct, PlainProduct, by_onednn
from cossim_fast._dtypes import accumulation_dtype
from cossim_fast.losses.tiles import BITS, UnitRows, _Sums, spans

# [bytes] Of tiles that the first pass keeps for the second.
KEPT = 32 << 20

# Does something with the blocks i <= j.
Work = Callable[[int, int], None]
# Turns the tile of two blocks into that of what it contributes to the gradient, in place.
Weigh = Callable[[int, int, Tensor], None]


def rounds(count: int) -> list[list[tuple[int, int]]]:
    """All pairs (i, j), i <= j < count, in rounds in which each number occurs once at most.

    >>> rounds(3)
    [[(0, 0), (1, 1), (2, 2)], [(1, 2)], [(0, 1)], [(0, 2)]]
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


class Triangle:
    """log2(e) scale û ûᵀ of rows (n, d) on CPU, tile by tile, each pair of blocks once.

    Args:
        x: (n, d) of float16, bfloat16, float32 or float64.
        scale: factor of the cosines.
        eps: the smallest norm to divide by; None leaves rows as they are.
    """

    def __init__(self, x: Tensor, scale: float, eps: float | None) -> None:
        n, d = x.shape
        work = n * n * d // 2
        self.dtype = accumulation_dtype(x.dtype)
        self.scale = scale
        self.threads = independent_threads(work)
        self._fast = self.dtype == torch.float32 and by_onednn(work)
        product = OneDnnProduct() if self._fast else PlainProduct(self.dtype)
        self.units = UnitRows(x.detach(), eps, self.dtype, product, self.threads)
        self.spans = spans(n, SIDE)
        self._kept: dict[tuple[int, int], Tensor] = {}
        self._room = KEPT

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
        total: Tensor | None = None
        rows, columns = self.spans[i], self.spans[j]
        for a, b in zip(self.units.strip(rows), self.units.strip(columns), strict=True):
            total = self._multiply(a, b, total)
        assert total is not None
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
        sums = _Sums(self.units, self.spans, transposed=False)

        def work(i: int, j: int) -> None:
            tile = self.tile(i, j)
            weigh(i, j, tile)
            tile = tile if tile._base is None else tile._base
            self._add(sums, i, tile, j)
            if i != j:
                self._add(sums, j, tile.T.contiguous(), i)

        def add(rows: slice) -> None:
            places = [place[: rows.stop - rows.start] for place in sums.places(rows)]
            parts = more(rows).split([place.shape[1] for place in places], 1)
            for place, part in zip(places, parts, strict=True):
                place.add_(part)

        self.each(work)
        _threads.run_independent(self.threads, [partial(add, rows) for rows in self.spans])
        found, along = sums.finish(self.scale, factor, self.threads)
        return found, along / 2

    def _add(self, sums: _Sums, block: int, weights: Tensor, other: int) -> None:
        """Sums of a block += weights times the rows of another."""
        rows = self.units.strip(self.spans[other])
        for place, piece in zip(sums.places(self.spans[block]), rows, strict=True):
            place.copy_(self._multiply(weights, piece.T, place))
