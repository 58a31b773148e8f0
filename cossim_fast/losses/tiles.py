"""Scaled cosines of rows with rows in tiles, and the gradients that follow: what losses share.

S = s û v̂ᵀ + b is never whole in memory. Tiles of it are in bits, log2(e) S, since torch.exp2 takes
0.13 ns an element and torch.exp 0.61 (one core of Zen 5, AVX512). Both products of a gradient G
follow a block of its tiles, T = G v̂ and Rᵀ = ûᵀ G, and every product has the form a bᵀ that oneDNN
is fast at, for a contiguous a: 250 G operations a second, where torch.mm makes 112. Threads share
tiles in the first step and rows of T and R in the second: no two of them write to one place.
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
from cossim_fast._cpu.products import OneDnnProduct, PlainProduct, by_onednn
from cossim_fast._cpu.units import normalize
from cossim_fast._dtypes import accumulation_dtype
from cossim_fast._threads import Result

# Bits of a natural unit.
BITS = math.log2(math.e)
# [columns] Of a tile, which has SIDE rows. Rows of a power of two bytes map to few cache lines:
# with 512 columns the product that transposes a tile ran at 229 G operations a second and the other
# one at 230, with 448 at 240 and 236 (one core of Zen 5, d = 768).
COLUMNS = 448
# How often a loss of rows of one shape is computed, at least: oneDNN makes code for each shape.
OFTEN = 32
# [bytes] Of the tiles of a block of whole rows: with temporary ones, and what the C library keeps
# between them, losses take less than 64 MB beyond unit rows and derivatives (`test_loss_memory`).
# Of 4096 rows, 8 to 48 MB took the same time within 2 %.
MEMORY = 32 << 20
# [bytes] Of the tiles of a block, unless it spans whole rows.
BLOCK_MEMORY = 16 << 20

# Padded tiles, by their first row and first column.
Kept = dict[tuple[int, int], Tensor]
# Turns the tiles of a strip, (columns, tile) each, into those of the gradient by S, in place.
Weigh = Callable[[slice, "list[tuple[slice, Tensor]]"], None]


class Gradients(NamedTuple):
    """Derivatives by rows (None where not wanted) and by the scale."""

    x: Tensor | None
    y: Tensor | None
    scale: float


class UnitRows:
    """Rows divided by their norms.

    Args:
        x: (n, d), detached.
        eps: the smallest norm to divide by; None leaves rows as they are.
        dtype: float32 or float64, of what is computed.
        product: whose padding the rows have.
        threads: how many share the work.
    """

    def __init__(
        self, x: Tensor, eps: float | None, dtype: torch.dtype,
        product: PlainProduct | OneDnnProduct, threads: int,
    ) -> None:  # fmt: skip
        n, d = x.shape
        self.x, self.eps, self.dtype = x, eps, dtype
        # (n, 1), where rows are divided.
        self.norm = torch.empty((n, 1), dtype=dtype, device="cpu")
        padded = product.padded(n, SIDE)
        # (n, d), and rows of zeros.
        self.unit = torch.empty((padded, d), dtype=dtype, device="cpu")
        if padded > n:
            self.unit[n:] = 0
        parts = [partial(self._prepare, rows) for rows in spans(n, max(BLOCK // max(d, 1), 1))]
        _threads.run_independent(threads, parts)

    def _prepare(self, rows: slice) -> None:
        if self.eps is None:
            self.unit[rows] = self.x[rows]
        else:
            self.norm[rows] = normalize(self.x[rows], self.eps, self.unit[rows])

    def padded(self, rows: slice) -> slice:
        """The rows with those of zeros behind the last, where it is among them."""
        return slice(rows.start, len(self.unit)) if rows.stop == len(self.x) else rows

    def strip(self, rows: slice) -> Tensor:
        """Some unit rows, padded."""
        return self.unit[self.padded(rows)]

    def at(self, rows: slice | Tensor) -> Tensor:
        """Unit rows of these numbers (r, d)."""
        return self.unit[rows]

    whole = at


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
        self.threads = independent_threads(n * m * d)
        self._fast = self.dtype == torch.float32 and by_onednn(OFTEN * n * m * d)
        product = OneDnnProduct() if self._fast else PlainProduct(self.dtype)
        make = partial(UnitRows, eps=eps, dtype=self.dtype, product=product, threads=self.threads)
        self.x, self.y = make(x.detach()), make(y.detach())
        self.columns = spans(m, COLUMNS)
        size = torch.finfo(self.dtype).bits // 8 * max(m, 1)
        side = SIDE
        while whole_rows and side > 1 and side * size > MEMORY:
            side //= 2
        self.rows = spans(n, side)
        if whole_rows:
            self._across, down = max(len(self.columns), 1), MEMORY // (side * size)
        else:
            tiles = self.tiles_of(BLOCK_MEMORY)
            self._across = min(max(len(self.columns), 1), tiles)
            down = tiles // self._across
        self._down = max(down, 1)

    def tiles_of(self, memory: int) -> int:
        """How many tiles fit into so many bytes, unless rows are whole."""
        return memory // (SIDE * COLUMNS * torch.finfo(self.dtype).bits // 8)

    def run(self, parts: Sequence[Callable[[], Result]]) -> list[Result]:
        """Run parts, one for each strip, say, on the threads that this much work is worth."""
        return _threads.run_independent(self.threads, parts)

    def strip(self, rows: slice) -> Tensor:
        """What `tile` takes for some of `rows`, in new memory; for all tiles of the strip."""
        return self.x.strip(rows) * (self.scale * BITS)

    def tile(self, strip: Tensor, rows: slice, columns: slice) -> Tensor:
        """log2(e) S of the rows of a strip and some of `columns`, (r, c), in memory of its own."""
        return within(self.padded_tile(strip, columns), rows, columns)

    def padded_tile(self, strip: Tensor, columns: slice) -> Tensor:
        """The same, and finite numbers in padding rows and columns, whose gradient is not used."""
        tile = self._multiply(strip, self.y.strip(columns), None)
        return tile.add_(self.bias * BITS) if self.bias else tile

    def _multiply(self, a: Tensor, b: Tensor, start: Tensor | None) -> Tensor:
        """A @ b.T (+ start), in memory of its own."""
        if self._fast:
            return _products.linear(a, b, start)
        product = _products.mm(a, b.T)
        return product if start is None else product.add_(start)

    def gradients(
        self, weigh: Weigh, by_x: bool, by_y: bool, factor: float = 1.0, kept: Kept | None = None
    ) -> Gradients:
        """Derivatives of a loss by x, y and the scale.

        Args:
            weigh: called once for the tiles of each strip of each block, on any thread.
            by_x: whether the derivative by x is wanted.
            by_y: whether that by y is.
            factor: of the loss: what it is multiplied by after what `weigh` gives.
            kept: tiles from `padded_tile`, by the first row and the first column, to take instead
                of computing them once more; they are removed.

        Returns:
            Derivatives in `dtype`.
        """
        # The derivative by the scale is the sum of <û, T>.
        sums = partial(GradientSums, scale=self.scale, factor=factor)
        t = sums(self.x) if by_x or not by_y else None
        r = sums(self.y, transposed=True) if by_y else None
        kept = {} if kept is None else kept
        downs, acrosses = _groups(self.rows, self._down), _groups(self.columns, self._across)
        for down in downs:
            ours = [] if r is None else [self.x.strip(rows).T.contiguous() for rows in down]
            for across in acrosses:
                ends = across is acrosses[-1], down is downs[-1]
                self._add_block(partial(self._weighed, weigh, kept), down, across, ours, t, r, ends)
        dx, along = (None, 0.0) if t is None else t.result()
        dy, other = (None, 0.0) if r is None else r.result()
        return Gradients(dx if by_x else None, dy, other if t is None else along)

    def _add_block(
        self, weighed: Callable[[slice, list[slice]], list[Tensor]], down: list[slice],
        across: list[slice], ours: list[Tensor], t: GradientSums | None, r: GradientSums | None,
        ends: tuple[bool, bool],
    ) -> None:  # fmt: skip
        """Add what follows from a block's tiles; `ends` says of which sums it is the last part."""
        tiles = self.run([partial(weighed, rows, across) for rows in down])
        parts: list[Callable[[], None]] = []
        if t is not None:
            others = [self.y.strip(columns).T for columns in across]
            for rows, strip in zip(down, tiles, strict=True):
                factors = list(zip(strip, others, strict=True))
                parts.append(partial(self._add, t, rows, factors, ends[0]))
        if r is not None:
            for j, columns in enumerate(across):
                factors = [(own, strip[j].T) for own, strip in zip(ours, tiles, strict=True)]
                parts.append(partial(self._add, r, columns, factors, ends[1]))
        self.run(parts)

    def _weighed(self, weigh: Weigh, kept: Kept, rows: slice, across: list[slice]) -> list[Tensor]:
        """The tiles of a strip of a block, weighed, in their padded memory."""
        strip: Tensor | None = None
        tiles = []
        for columns in across:
            tile = kept.pop((rows.start, columns.start), None)
            if tile is None:
                strip = self.strip(rows) if strip is None else strip
                tile = self.padded_tile(strip, columns)
            tiles.append(tile)
        seen = [within(tile, rows, some) for tile, some in zip(tiles, across, strict=True)]
        weigh(rows, list(zip(across, seen, strict=True)))
        return tiles

    def _add(
        self, sums: GradientSums, rows: slice, factors: list[tuple[Tensor, Tensor]], done: bool
    ) -> None:
        """Add products a @ b.T to the sums of some rows."""
        total = sums.begun(rows)
        for a, b in factors:
            total = self._multiply(a, b, total)
        if total is not None:
            sums.put(rows, total, done)


def within(tile: Tensor, rows: slice, columns: slice) -> Tensor:
    """The part of a padded tile that belongs to rows and columns."""
    return tile[: rows.stop - rows.start, : columns.stop - columns.start]


def _groups(parts: list[slice], size: int) -> list[list[slice]]:
    return [parts[i : i + size] for i in range(0, len(parts), size)]


class GradientSums:
    """T (n, d), or R, while it is summed strip by strip, and the derivative that it becomes.

    Args:
        units: the rows x that T belongs to.
        scale: of the cosines.
        factor: of the derivatives.
        transposed: whether a strip is summed as (d, r).
    """

    def __init__(
        self, units: UnitRows, scale: float, factor: float, *, transposed: bool = False
    ) -> None:
        self._units, self._transposed = units, transposed
        self._scale, self._factor = scale, factor
        self._memory = torch.empty_like(units.unit)
        # By the first row of a strip: whether it holds sums, and its sum of <û, T> at the end.
        self._begun: set[int] = set()
        self._along: dict[int, float] = {}

    def _place(self, rows: slice) -> Tensor:
        """The sums of a strip, (r, d) or (d, r), contiguous."""
        some = self._memory[self._units.padded(rows)]
        return some.view(some.shape[::-1]) if self._transposed else some

    def begun(self, rows: slice) -> Tensor | None:
        """The sums of a strip, (r, d) or (d, r); None if there are none yet."""
        return self._place(rows) if rows.start in self._begun else None

    def put(self, rows: slice, sums: Tensor, done: bool) -> None:
        """Keep sums of a strip in memory of their own; if it is done, what its derivative needs.

        That is (T - û <û, T>) / |x| in place of T (`_cpu.gradients.project`).
        """
        if not done:
            self._place(rows).copy_(sums)
            self._begun.add(rows.start)
            return
        t = (sums.T.contiguous() if self._transposed else sums)[: rows.stop - rows.start]
        unit = self._units.unit[rows]
        if self._units.eps is None:
            along = torch.linalg.vecdot(unit, t)
        else:
            along = project(t, unit, self._units.norm[rows], self._units.eps)
        self._along[rows.start] = float(along.sum(dtype=torch.float64))
        torch.mul(t, self._scale * self._factor, out=self._memory[rows])

    def result(self) -> tuple[Tensor, float]:
        """The derivatives by the rows, (n, d), and by the scale."""
        found = self._memory[: len(self._units.x)]
        if not self._along:
            return found.zero_(), 0.0
        along = math.fsum(self._along[start] for start in sorted(self._along))
        return found, along * self._factor


def log_sums(tile: Tensor, dim: int) -> Tensor:
    """log2 of the sums of 2^tile along a dimension, in float64; -inf for sums of nothing."""
    # From the largest, so that nothing overflows; of -inf alone, from a finite number.
    largest = tile.amax(dim, keepdim=True).clamp_min_(torch.finfo(tile.dtype).min)
    sums = (tile - largest).exp2_().sum(dim)
    return sums.double().log2_().add_(largest.squeeze(dim))


def powers(tile: Tensor) -> tuple[Tensor, Tensor]:
    """Turn a tile into 2^(tile - shift), a shift for each row; return that and `log_sums`."""
    largest = tile.amax(1, keepdim=True).clamp_min_(torch.finfo(tile.dtype).min)
    sums = tile.sub_(largest).exp2_().sum(1)
    shift = largest.squeeze(1).double()
    return shift, sums.double().log2_().add_(shift)


def add_logs(a: Tensor, b: Tensor) -> Tensor:
    """log2(2^a + 2^b)."""
    return torch.logaddexp2(a, b)
