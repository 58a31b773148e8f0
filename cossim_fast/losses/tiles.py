"""Scaled cosines of rows with rows in tiles, and the gradients that follow: what losses share.

S = s û v̂ᵀ + b is never whole in memory. Tiles of it are in bits, log2(e) S, since torch.exp2 takes
0.13 ns an element and torch.exp 0.61 (one core of Zen 5, AVX512). Both products of a gradient G
follow a block of its tiles, T = G v̂ and Rᵀ = ûᵀ G, and every product has the form a bᵀ that oneDNN
is fast at, for a contiguous a: 250 G operations a second, where torch.mm makes 112. Threads share
tiles in the first step and rows of T and R in the second, so that no two of them write to one place
and sums have one order, whatever the number of threads.
"""

from __future__ import annotations

import math
from collections.abc import Callable, Sequence
from functools import partial
from typing import NamedTuple

import torch
from torch import Tensor

from cossim_fast import _products, _threads
from cossim_fast._cpu.blocks import BLOCK
from cossim_fast._cpu.gradients import project
from cossim_fast._cpu.matrix import SIDE, independent_threads
from cossim_fast._cpu.products import OneDnnProduct, Operand, PlainProduct, by_onednn
from cossim_fast._cpu.units import normalize
from cossim_fast._dtypes import accumulation_dtype
from cossim_fast._threads import Result

# Bits of a natural unit.
BITS = math.log2(math.e)
# [bytes] Of all tiles that are in memory at a time.
MEMORY = 48 << 20
# [bytes] Of the tiles of a block, unless it spans whole rows.
BLOCK_MEMORY = 16 << 20

# Turns the tiles of a strip, (columns, tile) each, into those of the gradient by S, in place.
Weigh = Callable[[slice, "list[tuple[slice, Tensor]]"], None]


class Gradients(NamedTuple):
    """Derivatives by rows (None where not wanted) and by the scale."""

    x: Tensor | None
    y: Tensor | None
    scale: float


class UnitRows:
    """Rows divided by their norms, in the pieces of their width that a product takes.

    Args:
        x: (n, d), detached.
        eps: the smallest norm to divide by; None leaves rows as they are.
        dtype: float32 or float64, of what is computed.
        product: whose operand is made.
        threads: how many share the work.
    """

    def __init__(
        self, x: Tensor, eps: float | None, dtype: torch.dtype,
        product: PlainProduct | OneDnnProduct, threads: int,
    ) -> None:  # fmt: skip
        n, d = x.shape
        self.x, self.eps, self.dtype, self.product = x, eps, dtype, product
        self.norm = torch.ones((n, 1), dtype=dtype, device="cpu")
        self.pieces: Operand = product.empty(product.padded(n, SIDE), d)
        for piece in self.pieces:
            piece[n:] = 0
        parts = [partial(self._prepare, rows) for rows in spans(n, max(BLOCK // max(d, 1), 1))]
        _threads.run_independent(threads, parts)

    def _prepare(self, rows: slice) -> None:
        x = self.x[rows]
        unit = torch.empty(x.shape, dtype=self.dtype, device="cpu")
        if self.eps is None:
            unit.copy_(x)
        else:
            self.norm[rows] = normalize(x, self.eps, unit)
        widths = [piece.shape[1] for piece in self.pieces]
        for piece, part in zip(self.pieces, unit.split(widths, 1), strict=True):
            piece[rows] = part

    def padded(self, rows: slice) -> slice:
        """The rows with those of zeros behind the last, where it is among them."""
        return slice(rows.start, len(self.pieces[0])) if rows.stop == len(self.x) else rows

    def strip(self, rows: slice) -> Operand:
        """The pieces of some rows, padded."""
        some = self.padded(rows)
        return [piece[some] for piece in self.pieces]

    def whole(self, rows: slice) -> Tensor:
        """Unit rows (r, d) in new memory, unless they are in one piece."""
        if len(self.pieces) == 1:
            return self.pieces[0][rows]
        return torch.cat([piece[rows] for piece in self.pieces], 1)

    def at(self, rows: Tensor) -> Tensor:
        """Unit rows of these numbers (r, d)."""
        return torch.cat([piece[rows] for piece in self.pieces], 1)


def spans(length: int, step: int) -> list[slice]:
    """Cut a length into slices of a step, the last one shorter."""
    return [slice(start, min(start + step, length)) for start in range(0, length, step)]


class Logits:
    """S = scale û v̂ᵀ + bias of rows x (n, d) and y (m, d) on CPU, tile by tile.

    Args:
        x: (n, d) of float16, bfloat16, float32 or float64; tiles are float64 if x or y is.
        y: (m, d).
        scale: factor of the cosines.
        bias: added to them.
        eps: the smallest norm to divide by; None leaves rows as they are.
        whole_rows: whether the blocks of `gradients` span all columns, so that what weighs them
            sees whole rows.
    """

    def __init__(
        self, x: Tensor, y: Tensor, scale: float, bias: float = 0.0, eps: float | None = 1e-8,
        *, whole_rows: bool = False,
    ) -> None:  # fmt: skip
        (n, d), m = x.shape, len(y)
        self.dtype = accumulation_dtype(torch.promote_types(x.dtype, y.dtype))
        self.scale, self.bias = scale, bias
        self._threads = independent_threads(n * m * d)
        self._fast = self.dtype == torch.float32 and by_onednn(n * m * d)
        product = OneDnnProduct() if self._fast else PlainProduct(self.dtype)
        make = partial(UnitRows, eps=eps, dtype=self.dtype, product=product, threads=self._threads)
        self.x, self.y = make(x.detach()), make(y.detach())
        self.columns = spans(m, SIDE)
        size = torch.finfo(self.dtype).bits // 8 * max(m, 1)
        side = SIDE
        while whole_rows and side > 1 and side * size > MEMORY:
            side //= 2
        self.rows = spans(n, side)
        if whole_rows:
            self._across, down = max(len(self.columns), 1), MEMORY // (side * size)
        else:
            tiles = BLOCK_MEMORY // (SIDE * SIDE * 4)
            self._across = min(max(len(self.columns), 1), tiles)
            down = tiles // self._across
        self._down = max(down, 1)

    def run(self, parts: Sequence[Callable[[], Result]]) -> list[Result]:
        """Run parts, one for each strip, say, on the threads that this much work is worth."""
        return _threads.run_independent(self._threads, parts)

    def strip(self, rows: slice) -> Operand:
        """What `tile` takes for some of `rows`, in new memory; for all tiles of the strip."""
        return [piece * (self.scale * BITS) for piece in self.x.strip(rows)]

    def tile(self, strip: Operand, rows: slice, columns: slice) -> Tensor:
        """log2(e) S of the rows of a strip and some of `columns`, (r, c), in memory of its own."""
        return _within(self._padded_tile(strip, columns), rows, columns)

    def _padded_tile(self, strip: Operand, columns: slice) -> Tensor:
        total: Tensor | None = None
        for a, b in zip(strip, self.y.strip(columns), strict=True):
            total = self._multiply(a, b, total)
        assert total is not None  # an operand has at least one piece
        return total.add_(self.bias * BITS) if self.bias else total

    def _multiply(self, a: Tensor, b: Tensor, start: Tensor | None) -> Tensor:
        """A @ b.T (+ start), in memory of its own."""
        if self._fast:
            return _products.linear(a, b, start)
        product = _products.mm(a, b.T)
        return product if start is None else product.add_(start)

    def gradients(self, weigh: Weigh, by_x: bool, by_y: bool, factor: float = 1.0) -> Gradients:
        """Derivatives of a loss by x, y and the scale.

        Args:
            weigh: called once for the tiles of each strip of each block, on any thread.
            by_x: whether the derivative by x is wanted.
            by_y: whether that by y is.
            factor: of the loss: what it is multiplied by after what `weigh` gives.

        Returns:
            Derivatives in `dtype`.
        """
        # The derivative by the scale is the sum of <û, T>.
        t = _Sums(self.x, self.rows, transposed=False) if by_x or not by_y else None
        r = _Sums(self.y, self.columns, transposed=True) if by_y else None
        for down in _groups(self.rows, self._down):
            for across in _groups(self.columns, self._across):
                self._add_block(weigh, down, across, t, r)
        found = [
            (None, 0.0) if sums is None else sums.finish(self.scale, factor, self._threads)
            for sums in (t, r)
        ]
        (dx, along), (dy, other) = found
        return Gradients(dx if by_x else None, dy, along if t is not None else other)

    def _add_block(
        self, weigh: Weigh, down: list[slice], across: list[slice],
        t: _Sums | None, r: _Sums | None,
    ) -> None:  # fmt: skip
        tiles = _threads.run_independent(
            self._threads, [partial(self._weighed, weigh, rows, across) for rows in down]
        )
        parts: list[Callable[[], None]] = []
        if t is not None:
            others = [self.y.strip(columns) for columns in across]
            parts += [
                partial(self._add, t, rows, strip, others)
                for rows, strip in zip(down, tiles, strict=True)
            ]
        if r is not None:
            ours = [[piece.T.contiguous() for piece in self.x.strip(rows)] for rows in down]
            parts += [
                partial(self._add_transposed, r, columns, ours, [strip[j] for strip in tiles])
                for j, columns in enumerate(across)
            ]
        _threads.run_independent(self._threads, parts)

    def _weighed(self, weigh: Weigh, rows: slice, across: list[slice]) -> list[Tensor]:
        """The tiles of a strip of a block, weighed, in their padded memory."""
        strip = self.strip(rows)
        tiles = [self._padded_tile(strip, columns) for columns in across]
        seen = [_within(tile, rows, some) for tile, some in zip(tiles, across, strict=True)]
        weigh(rows, list(zip(across, seen, strict=True)))
        return tiles

    def _add(self, t: _Sums, rows: slice, tiles: list[Tensor], others: list[Operand]) -> None:
        """T of a strip += its tiles times the rows of y that belong to them."""
        for p, place in enumerate(t.places(rows)):
            total: Tensor = place
            for tile, other in zip(tiles, others, strict=True):
                total = self._multiply(tile, other[p].T, total)
            place.copy_(total)

    def _add_transposed(
        self, r: _Sums, columns: slice, ours: list[Operand], tiles: list[Tensor]
    ) -> None:
        """Rᵀ of some columns += the transposed rows of x times their tiles."""
        for p, place in enumerate(r.places(columns)):
            total: Tensor = place
            for tile, own in zip(tiles, ours, strict=True):
                total = self._multiply(own[p], tile.T, total)
            place.copy_(total)


def _within(tile: Tensor, rows: slice, columns: slice) -> Tensor:
    """The part of a padded tile that belongs to rows and columns."""
    return tile[: rows.stop - rows.start, : columns.stop - columns.start]


def _groups(parts: list[slice], size: int) -> list[list[slice]]:
    return [parts[i : i + size] for i in range(0, len(parts), size)]


class _Sums:
    """T (n, d), or R, while it is summed: strip by strip, each in the pieces of its width."""

    def __init__(self, units: UnitRows, strips: list[slice], transposed: bool) -> None:
        self._units, self._strips, self._transposed = units, strips, transposed
        n, d = len(units.pieces[0]), sum(piece.shape[1] for piece in units.pieces)
        self._memory = torch.zeros((n, d), dtype=units.dtype, device="cpu")

    def places(self, rows: slice) -> list[Tensor]:
        """The pieces (r, w) of the sums of a strip, or (w, r), each contiguous."""
        some = self._memory[self._units.padded(rows)]
        r = len(some)
        widths = [piece.shape[1] for piece in self._units.pieces]
        flat = some.view(-1).split([r * width for width in widths])
        shapes = [(width, r) if self._transposed else (r, width) for width in widths]
        return [piece.view(shape) for piece, shape in zip(flat, shapes, strict=True)]

    def finish(self, scale: float, factor: float, threads: int) -> tuple[Tensor, float]:
        """Turn sums into derivatives by the rows; return them and that by the scale."""
        parts = [partial(self._finish, rows, scale, factor) for rows in self._strips]
        along = math.fsum(_threads.run_independent(threads, parts)) * factor
        return self._memory[: len(self._units.x)], along

    def _finish(self, rows: slice, scale: float, factor: float) -> float:
        count = rows.stop - rows.start
        places = [p.T if self._transposed else p for p in self.places(rows)]
        t = torch.cat(places, 1)[:count]
        unit = self._units.whole(rows)
        along = float(torch.linalg.vecdot(unit, t).sum(dtype=torch.float64))
        if self._units.eps is not None:
            project(t, unit, self._units.norm[rows], self._units.eps)
        torch.mul(t, scale * factor, out=self._memory[rows])
        return along


def log_sums(tile: Tensor, dim: int) -> Tensor:
    """log2 of the sums of 2^tile along a dimension, in float64; -inf for sums of nothing."""
    # From the largest, so that nothing overflows; of -inf alone, from a finite number.
    largest = tile.amax(dim, keepdim=True).clamp_min_(torch.finfo(tile.dtype).min)
    sums = (tile - largest).exp2_().sum(dim)
    return sums.double().log2_().add_(largest.squeeze(dim))


def add_logs(a: Tensor, b: Tensor) -> Tensor:
    """log2(2^a + 2^b)."""
    return torch.logaddexp2(a, b)
