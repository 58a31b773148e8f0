"""Products of two tiles of rows on CPU: how rows are prepared and multiplied.

A product prepares rows once, as tensors whose first dimension is that of the rows, so that strips
and tiles are slices of them. Then it writes the clamped cosines of two such tiles. oneDNN takes
padded tiles, so that few shapes occur (`_shapes`).
"""

from __future__ import annotations

from typing import Protocol

import torch
from torch import Tensor

from cossim_fast import _products
from cossim_fast._cpu.units import normalize
from cossim_fast._shapes import even
from cossim_fast._threads import MOST_THREADS

# Prepared rows: tensors (rows, ...).
Operand = list[Tensor]

# [entries] Of a row that oneDNN sums in one chain. On Zen 5 the largest error of 384 in one was
# 9.4e-7, of 192 it was 4.5e-7, as much as MKL's, at 0.96 of the rate.
CHAIN = 192
# [multiplications] Of a matrix, from which oneDNN is used: it makes machine code for each new shape
# in 0.5 ms, and MKL takes 2.5 ms for so many (one core of Zen 5).
LARGE = 1 << 27
# [rows] Padded numbers of rows are multiples of this.
LEAST = 16
# [steps per side] A last tile beside others is padded to a step of their side, of at least 64 rows.
FEW_STEPS = 16


class Product(Protocol):
    """A way to multiply rows with rows."""

    def empty(self, rows: int, width: int) -> Operand:
        """Memory for so many prepared rows."""

    def prepare(self, x: Tensor, eps: float, operand: Operand) -> None:
        """Write the prepared rows of x (rows, d)."""

    def is_in_place(self, result: torch.dtype) -> bool:
        """Whether `write` needs no memory of its own to fill a result of this dtype."""

    def padded(self, rows: int, side: int) -> int:
        """The padded number of rows, which are cut into tiles of a side."""

    def write(self, a: Operand, b: Operand, out: Tensor) -> None:
        """Fill out (r, c) with the clamped cosines of the rows of a with those of b.

        They may have more rows than that, up to what r and c are `padded` to.
        """


class PlainProduct:
    """Unit rows in float32 or float64, multiplied by torch.mm where it does not round them."""

    def __init__(self, dtype: torch.dtype) -> None:
        self._dtype = dtype

    def empty(self, rows: int, width: int) -> Operand:
        """One tensor (rows, width)."""
        return [torch.empty((rows, width), dtype=self._dtype, device="cpu")]

    def prepare(self, x: Tensor, eps: float, operand: Operand) -> None:
        """Write unit rows."""
        normalize(x, eps, operand[0])

    def is_in_place(self, result: torch.dtype) -> bool:
        """True if the result has the product's dtype."""
        return result == self._dtype

    def padded(self, rows: int, side: int) -> int:
        """Not padded."""
        return rows

    def write(self, a: Operand, b: Operand, out: Tensor) -> None:
        """Multiply in place where out has the product's dtype."""
        if self.is_in_place(out.dtype):
            _products.mm(a[0], b[0].T, out=out).clamp_(-1.0, 1.0)
        else:
            out.copy_(_products.mm(a[0], b[0].T).clamp_(-1.0, 1.0))


class TileProduct:
    """A product by oneDNN, which is computed in new memory and then copied."""

    def is_in_place(self, result: torch.dtype) -> bool:
        """False."""
        return False

    def padded(self, rows: int, side: int) -> int:
        """Padded by an eighth at most; the rows after full tiles, to one of `FEW_STEPS` of a side.

        So the side of a tile, at most 512, has one of 24 sizes; beside others, one of 8.
        """
        if rows <= side:
            return even(rows, LEAST)
        step = max(side // FEW_STEPS, 64)
        return -(-rows // step) * step


class OneDnnProduct(TileProduct):
    """Unit rows in float32, in pieces of at most `CHAIN` entries, multiplied by oneDNN.

    On a core of Zen 5 tiles of 512 x 512 x 768 run at 215 G operations a second, by torch.mm at
    108: MKL has no 512-bit code for that processor.
    """

    def empty(self, rows: int, width: int) -> Operand:
        """A tensor (rows, at most CHAIN) for each piece: oneDNN is slow on strided ones."""
        pieces = max(-(-width // CHAIN), 1)
        step = max(-(-width // (16 * pieces)) * 16, 1)
        widths = [min(step, width - start) for start in range(0, width, step)]
        return [torch.empty((rows, each), dtype=torch.float32, device="cpu") for each in widths]

    def prepare(self, x: Tensor, eps: float, operand: Operand) -> None:
        """Write unit rows, piece by piece."""
        if len(operand) == 1:
            normalize(x, eps, operand[0])
            return
        unit = torch.empty(x.shape, dtype=torch.float32, device="cpu")
        normalize(x, eps, unit)
        for piece, part in zip(operand, unit.split(operand[0].shape[1], 1), strict=True):
            piece.copy_(part)

    def write(self, a: Operand, b: Operand, out: Tensor) -> None:
        """Sum the products of the pieces."""
        total = _products.linear(a[0], b[0])
        for left, right in zip(a[1:], b[1:], strict=True):
            total = _products.linear(left, right, total)
        tile = total[: out.shape[0], : out.shape[1]]
        if out.dtype == tile.dtype:
            torch.clamp(tile, -1.0, 1.0, out=out)
        else:
            out.copy_(tile.clamp_(-1.0, 1.0))


def full_product(dtype: torch.dtype, multiplications: int) -> PlainProduct | OneDnnProduct:
    """The fastest product of unit rows in float32 or float64 for a matrix of this size."""
    if dtype == torch.float32 and by_onednn(multiplications):
        return OneDnnProduct()
    return PlainProduct(dtype)


def by_onednn(multiplications: int) -> bool:
    """Whether oneDNN does so many float32 multiplications: in tiles, so on few threads."""
    few = torch.get_num_threads() <= MOST_THREADS
    return few and multiplications >= LARGE and _products.linear_is_faster()
