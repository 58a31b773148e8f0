"""The cosine matrix on CPU, in tiles that are each computed by one thread.

Rows are prepared before the product (see `_cpu.products`), a panel at a time. Then the matrix is
cut into strips of tiles, which threads take one after another; none waits for another before the
last tile. torch's own threads synchronize at the end of every operation, and spin there while one
of them is not scheduled: beside one busy process on one of two cores, on an Intel machine, a
symmetric matrix of 4096 rows took 1.7 to 2.8 s in this way, instead of 0.13.
"""

from __future__ import annotations

from collections.abc import Callable
from functools import partial

import torch
from torch import Tensor

from cossim_fast import _products, _threads
from cossim_fast._cpu.blocks import BLOCK, Scratch, row_blocks
from cossim_fast._cpu.narrow import choose_product
from cossim_fast._cpu.products import Operand, Product
from cossim_fast._cpu.units import normalize, panel_rows
from cossim_fast._dtypes import accumulation_dtype
from cossim_fast._shapes import even

# [rows] Side of a tile. One core of Zen 5 multiplied tiles of 512 x 512 x 768 at 111 G operations a
# second (torch.mm) and 238 (oneDNN), of 1024 x 4096 at 108 and 227.
SIDE = 512
# [rows] Side of a tile where torch has more threads than the pool.
WIDE_SIDE = 2048
# [parts per thread] Into which the tiles of a panel are divided: enough that all threads finish at
# about the same time, and few enough that the rows of a strip are prepared few times.
PARTS = 4
# [multiplications] From so many on, threads of the pool take tiles; below, torch's threads share
# each operation. On two cores of Zen 5, in ms, by the pool and by torch's threads: (1024, 384) 4.7
# and 2.4, (1500, 384) 6.3 and 5.1, (2048, 384) 9.7 and 14; beside one busy process 8.1 and 6.3, 10
# and 10.3.
SHARED_WORK = 1 << 30
# [elements] Of many small matrices and their rows, from which threads of the pool share them. On
# two cores of Zen 5, in ms, by the pool and by torch's threads: 2000 of (16, 64) 2.8 and 1.8, 8000
# of them 8.2 and 7.6; beside one busy process 3.3 and 5.9, 11.1 and 15.5.
SMALL_SHARED = 1 << 24
# [rows] Side of the smallest squares on the diagonal of a symmetric matrix, computed in full.
LEAF = 256
# [rows] Side of the squares that are transposed. 4096 x 4096 float32 took 16 ms on one thread of
# Zen 3, 33 without a padded copy, 35 with squares of 64 and 19 with 512.
MIRROR = 256
# [numbers] Padding of the rows of such a square: with a stride of a power of two, all rows would
# map to the same cache lines.
PADDING = 16

# [columns] Up to so many, the product is limited by reading the rows: keep their blocks in cache.
FEW = 128

Part = Callable[[], None]


def cosine_matrix(
    x: Tensor, y: Tensor | None, eps: float, out: Tensor, precision: str = "highest"
) -> Tensor:
    """Fill `out` (b, n, m) with the cosines of (b, n, d) and (b, m, d); y=None stands for x."""
    if out.numel() > 0:
        _fill(x.detach(), None if y is None else y.detach(), eps, out, precision)
    return out


def _fill(x: Tensor, y: Tensor | None, eps: float, out: Tensor, precision: str) -> None:
    count, n, m, d = *out.shape, x.shape[2]
    size = (n + m) * d + n * m
    each, all_items = independent_threads(n * m * d), independent_threads(count * n * m * d)
    if count > 1 and size <= BLOCK:
        threads = _threads.usable_threads()
        shared = count * size >= SMALL_SHARED and threads <= _threads.MOST_THREADS
        _fill_small(x, y, eps, out, BLOCK // max(size, 1), threads if shared else 1)
        return
    dtypes = (x.dtype, x.dtype if y is None else y.dtype)
    # A faster product gains nothing where reading the rows is the limit.
    gain = n * m * d if min(n, m) > FEW else 0
    product = choose_product(dtypes, out.dtype, precision, gain)
    tiles = Tiles(product, eps, each, _side(product, out.dtype, n * m * d))
    others = [None] * count if y is None else list(y)
    items = [partial(tiles.fill, *item) for item in zip(x, others, out, strict=True)]
    _threads.run_independent(1 if each > 1 else all_items, items)


def _side(product: Product, result: torch.dtype, multiplications: int) -> int | None:
    """The side of tiles; None for full panels, which need no memory for tiles."""
    if is_shared(multiplications):
        return SIDE
    if product.is_in_place(result):
        return None
    return SIDE if _threads.usable_threads() <= _threads.MOST_THREADS else WIDE_SIDE


def is_shared(multiplications: int) -> bool:
    """Whether so much work is cut into tiles for the pool.

    Not where torch has more threads than the pool: then its threads share each product.
    """
    return multiplications >= SHARED_WORK and _threads.usable_threads() <= _threads.MOST_THREADS


def independent_threads(multiplications: int) -> int:
    """How many threads of the pool share so many multiplications."""
    return _threads.usable_threads() if is_shared(multiplications) else 1


def _fill_small(
    x: Tensor, y: Tensor | None, eps: float, out: Tensor, items: int, threads: int
) -> None:
    """Many small matrices: as many at a time as stay in cache."""
    # A few parts for each thread, since a part reuses its memory from one matrix to the next.
    step = len(x) if threads == 1 else -(-len(x) // (PARTS * threads))
    spans = [slice(start, start + step) for start in range(0, len(x), step)]
    parts = [
        partial(_fill_items, x[some], None if y is None else y[some], eps, out[some], items)
        for some in spans
    ]
    _threads.run_independent(threads, parts)


def _fill_items(x: Tensor, y: Tensor | None, eps: float, out: Tensor, items: int) -> None:
    unit_x, unit_y, tile = (Scratch(accumulation_dtype(out.dtype)) for _ in range(3))
    others = x if y is None else y
    for x_part, y_part, part in row_blocks(items, x.shape[:1], x, others, out):
        b = a = unit_x.like(x_part)
        normalize(x_part, eps, a)
        if y is not None:
            b = unit_y.like(y_part)
            normalize(y_part, eps, b)
        product = _products.bmm(a, b.mT, out=tile.like(part)).clamp_(-1.0, 1.0)
        part.copy_(product if y is not None else product.triu() + product.triu(1).mT)


class Tiles:
    """Fills one matrix after another, in tiles that threads share.

    Args:
        product: multiplies tiles.
        eps: the smallest norm to divide by.
        threads: how many threads take tiles.
        side: of a tile; None for full panels, whose operations torch's threads share.
    """

    def __init__(self, product: Product, eps: float, threads: int, side: int | None) -> None:
        self._product = product
        self._eps = eps
        self._threads = threads
        self._side = side

    def fill(self, x: Tensor, y: Tensor | None, out: Tensor) -> None:
        """Fill out (n, m) from (n, d) and (m, d); y=None computes a half and mirrors it."""
        m, d = out.shape[1], x.shape[1]
        panel = min(panel_rows(d), m)
        if self._side is not None and panel < m:
            panel = max(panel // self._side, 1) * self._side
        memory = self._product.empty(self._padded(panel), d)
        for first in range(0, m, panel):
            stop = min(first + panel, m)
            b = self._prepare_all((x if y is None else y)[first:stop], memory)
            columns = out[:, first:stop]
            if y is not None:
                parts = self._rectangle(x, b, columns, None)
            else:
                parts = self._triangle(b, columns[first:stop])
                parts += self._rectangle(x[:first], b, columns[:first], out[first:stop])
            _threads.run_independent(self._threads, parts)

    def _padded(self, rows: int) -> int:
        return self._product.padded(rows, self._side or rows)

    def _prepare_all(self, x: Tensor, memory: Operand) -> Operand:
        """Prepare rows in memory for at least so many; return them, padded."""
        operand = _rows(memory, slice(len(x)))
        step = len(x) if self._threads == 1 else max(BLOCK // max(x.shape[1], 1), 1)
        blocks = [slice(start, start + step) for start in range(0, len(x), step)]
        prepare = self._product.prepare
        parts = [partial(prepare, x[some], self._eps, _rows(operand, some)) for some in blocks]
        _threads.run_independent(self._threads, parts)
        return _padded_rows(memory, len(x), self._padded(len(x)))

    def _rectangle(self, x: Tensor, b: Operand, out: Tensor, mirror: Tensor | None) -> list[Part]:
        """Parts that fill out with all rows of x and b, and the mirror (m, n) if there is one."""
        n, m = out.shape
        rows = columns = self._side or max(panel_rows(x.shape[1]), m)
        if m <= FEW:
            rows = max(BLOCK // max(x.shape[1], 1), 1)
        starts, padded = range(0, m, columns), self._padded(n)
        group = self._group(-(-n // rows) * len(starts))
        parts: list[Part] = []
        for top in range(0, n, rows):
            strip = slice(top, min(top + rows, n))
            other = None if mirror is None else mirror[:, strip]
            size = min(rows, padded - top)
            for i in range(0, len(starts), group):
                some = starts[i : i + group]
                parts.append(
                    partial(self._fill_strip, x[strip], size, b, out[strip], some, columns, other)
                )
        return parts

    def _fill_strip(
        self, x: Tensor, size: int, b: Operand, out: Tensor, starts: range, columns: int,
        mirror: Tensor | None,
    ) -> None:  # fmt: skip
        """Fill tiles of a strip, after preparing its rows, padded to a size."""
        n, d = x.shape
        a = _padded_rows(self._product.empty(size, d), n, size)
        self._product.prepare(x, self._eps, _rows(a, slice(n)))
        for start in starts:
            self._fill_tile(a, b, out, start, columns, mirror)

    def _fill_tile(
        self, a: Operand, b: Operand, out: Tensor, start: int, columns: int, mirror: Tensor | None
    ) -> None:
        some = slice(start, start + columns)
        self._product.write(a, _rows(b, some), out[:, some])
        if mirror is not None:
            _transpose(out[:, some], mirror[some])

    def _triangle(self, b: Operand, out: Tensor) -> list[Part]:
        """Parts that fill out with b and b: the upper triangle, each tile mirrored in cache."""
        n = out.shape[0]
        side = n if self._side is None else self._side
        strips = range(0, n, side)
        group = self._group(len(strips) * (len(strips) + 1) // 2)
        parts: list[Part] = []
        for top in strips:
            # The tile on the diagonal first.
            starts = range(top, n, side)
            for i in range(0, len(starts), group):
                parts.append(partial(self._fill_row, b, out, top, starts[i : i + group], side))
        return parts

    def _fill_row(self, b: Operand, out: Tensor, top: int, starts: range, side: int) -> None:
        strip = slice(top, top + side)
        a = _rows(b, strip)
        for start in starts:
            if start == top:
                self._fill_square(a, out[strip, strip])
            else:
                self._fill_tile(a, b, out[strip], start, side, out[:, strip])

    def _fill_square(self, a: Operand, out: Tensor) -> None:
        """Fill out with a and a: recursively each half, then one half with the other.

        Sizes of halves are rounded, so that few shapes occur.
        """
        n = out.shape[0]
        if n <= LEAF:
            self._product.write(a, a, out)
            out.copy_(out.triu() + out.triu(1).T)
            return
        half = even(n // 2, LEAF // 4)
        upper, lower = slice(half), slice(half, None)
        self._fill_square(_rows(a, upper), out[upper, upper])
        self._fill_square(_rows(a, lower), out[lower, lower])
        self._product.write(_rows(a, upper), _rows(a, lower), out[upper, lower])
        _transpose(out[upper, lower], out[lower, upper])

    def _group(self, tiles: int) -> int:
        """How many tiles of a strip make a part."""
        return max(tiles // (PARTS * self._threads), 1)


def _rows(operand: Operand, some: slice) -> Operand:
    return [each[some] for each in operand]


def _padded_rows(memory: Operand, count: int, padded: int) -> Operand:
    """The first ``padded`` rows of memory; those from ``count`` on are set to zero."""
    for each in memory:
        each[count:padded] = 0
    return _rows(memory, slice(padded))


def _transpose(source: Tensor, target: Tensor) -> None:
    """Copy the transposed source to target."""
    memory = source.new_empty(MIRROR, MIRROR + PADDING)
    for rows, columns in zip(source.split(MIRROR), target.split(MIRROR, 1), strict=True):
        for square, place in zip(rows.split(MIRROR, 1), columns.split(MIRROR), strict=True):
            place.copy_(memory[: square.shape[0], : square.shape[1]].copy_(square).T)
