"""Matrix products in bfloat16 or float16, on processors where these are faster than float32.

torch rounds the float32 sums to the dtype of the factors. The factors are chosen accordingly:

- rows that are bfloat16 (or float16) already are multiplied as they are, at most scaled by powers
  of two, and the product is divided by their norms: two roundings of the result, none of a factor;
- for ``precision="medium"`` unit rows are rounded to bfloat16;
- for ``"high"`` unit rows are hi + lo in bfloat16, and C = C0 + R, where C0 is hi hi' rounded, and
  R = hi hi' + hi lo' + lo hi' - C0 is so small that rounding it costs 2^-17.
"""

from __future__ import annotations

import threading
from collections.abc import Iterator
from functools import cache

import torch
from torch import Tensor

from cossim_fast import _composite
from cossim_fast._cpu.blocks import (
    BLOCK,
    Scratch,
    all_in_bounds,
    norms_along_last,
    out_of_range_rows,
    row_blocks,
)
from cossim_fast._cpu.products import LARGE, Operand, Product, TileProduct, full_product
from cossim_fast._cpu.units import normalized
from cossim_fast._dtypes import accumulation_dtype
from cossim_fast._threads import unforked


class NarrowProduct(TileProduct):
    """Rows of float16 or bfloat16 are multiplied as they are; the product is divided by norms."""

    def __init__(self, dtype: torch.dtype) -> None:
        self._dtype = dtype
        self._kept = threading.local()

    def empty(self, rows: int, width: int) -> Operand:
        """Rows (rows, width), and their inverse norms (rows,) in float32."""
        narrow = torch.empty((rows, width), dtype=self._dtype, device="cpu")
        return [narrow, torch.empty(rows, dtype=torch.float32, device="cpu")]

    def prepare(self, x: Tensor, eps: float, operand: Operand) -> None:
        """Copy rows, scaled by powers of two where their products could leave the range."""
        wide, squares = Scratch(torch.float32), Scratch(torch.float32)
        step = BLOCK // max(x.shape[1], 1)
        for rows, narrow, inverse in row_blocks(step, x.shape[:1], x, *operand):
            source, norms = wide.widen(rows), torch.empty_like(inverse)
            norms_along_last(source, squares, norms)
            if self._dtype == torch.float16:
                # Scaled to norms in [0.5, 1), since sums beyond 65504 would overflow. Norms of
                # float16 rows are in the range of float32, or 0.
                power = torch.ldexp(torch.ones_like(norms), -torch.frexp(norms).exponent)
                narrow.copy_(source * power[:, None])
                torch.div(power.reciprocal_(), norms.clamp_min_(eps), out=inverse)
                continue
            narrow.copy_(rows)
            torch.reciprocal(norms.clamp_min(eps), out=inverse)
            if not all_in_bounds(norms):
                for (index,) in out_of_range_rows(norms[None], x.shape[1]):
                    narrow[index], inverse[index] = _any_range(source[index], eps)

    def write(self, a: Operand, b: Operand, out: Tensor) -> None:
        """Multiply, and scale in float32, in memory that a thread keeps from tile to tile.

        4096 x 4096 x 768 in bfloat16 on two cores of Zen 5 took 35 ms, and 42 with new memory for
        each tile; torch.mm of all normalized rows takes 32, and the products of tiles without
        scaling 31.
        """
        if not hasattr(self._kept, "tiles"):
            self._kept.tiles = Place(self._dtype), Place(torch.float32)
        narrow, wide = self._kept.tiles
        shape = len(a[0]), len(b[0])
        tile = wide(shape).copy_(unforked(torch.mm, a[0], b[0].T, out=narrow(shape)))
        tile.mul_(a[1][:, None]).mul_(b[1]).clamp_(-1.0, 1.0)
        out.copy_(_of(tile, out))


class Place:
    """Memory (r, c) that is reused for one tile after another."""

    def __init__(self, dtype: torch.dtype) -> None:
        self._memory = torch.empty(0, dtype=dtype, device="cpu")

    def __call__(self, shape: tuple[int, int]) -> Tensor:
        """Memory of a shape."""
        size = shape[0] * shape[1]
        if self._memory.numel() < size:
            self._memory = self._memory.new_empty(size)
        return self._memory[:size].view(shape)


def _of(tile: Tensor, out: Tensor) -> Tensor:
    """The part of a padded tile that belongs to out."""
    return tile[: out.shape[0], : out.shape[1]]


def _any_range(x: Tensor, eps: float) -> tuple[Tensor, Tensor]:
    """Rows (r, d) scaled so that their products stay in range, and their inverse norms (r,)."""
    scale = _composite.range_scale(x, -1)
    scaled = x * scale
    norms = torch.linalg.vector_norm(scaled, dim=-1, keepdim=True)
    return scaled.bfloat16(), torch.maximum(norms, eps * scale).reciprocal_().squeeze(-1)


class RoundedProduct(TileProduct):
    """One product of unit rows rounded to bfloat16, or two where that is not exact enough.

    "medium" allows an error of 2 * 2^-8 + 2^-16. Rounding both factors by 2^-8 may take all of it,
    but takes half for most rows. The rounding errors of the rows are measured; if they leave less
    than the 2^-9 that rounding the product may add, a second product corrects that.
    """

    # Largest sum of the rounding errors of two unit rows: 2 * 2^-8, less 2^-9 for the product.
    ROOM = 1.5 * 2.0**-8

    def empty(self, rows: int, width: int) -> Operand:
        """Rows (rows, width), and the norms (rows,) of their rounding errors."""
        lost = torch.empty(rows, dtype=torch.float32, device="cpu")
        return [torch.empty((rows, width), dtype=torch.bfloat16, device="cpu"), lost]

    def prepare(self, x: Tensor, eps: float, operand: Operand) -> None:
        """Round unit rows."""
        for rows, rounded, lost in _blocks(x, operand):
            unit = normalized(rows, eps, torch.float32)
            rounded.copy_(unit)
            torch.linalg.vector_norm(unit.sub_(rounded), dim=1, out=lost)

    def write(self, a: Operand, b: Operand, out: Tensor) -> None:
        """Multiply once, and again if the rounding errors are too large."""
        tile = unforked(torch.mm, a[0], b[0].T)
        if (a[1].max() + b[1].max()).item() <= self.ROOM:
            out.copy_(_of(tile, out).clamp_(-1.0, 1.0))
            return
        rest = tile.neg().addmm_(a[0], b[0].T)
        out.copy_(_of(tile.float().add_(rest), out).clamp_(-1.0, 1.0))


class SplitProduct(TileProduct):
    """Four products of unit rows that are split into two bfloat16 parts."""

    def empty(self, rows: int, width: int) -> Operand:
        """The rounded rows and the rounded rest, (rows, width) each."""
        return [torch.empty((rows, width), dtype=torch.bfloat16, device="cpu") for _ in range(2)]

    def prepare(self, x: Tensor, eps: float, operand: Operand) -> None:
        """Round unit rows, and round the rest."""
        for rows, high, low in _blocks(x, operand):
            unit = normalized(rows, eps, torch.float32)
            high.copy_(unit)
            low.copy_(unit.sub_(high))

    def write(self, a: Operand, b: Operand, out: Tensor) -> None:
        """Multiply, and add the rounding error of the result and the products with low parts."""
        first = unforked(torch.mm, a[0], b[0].T)
        rest = first.neg()
        for left, right in ((a[0], b[0]), (a[0], b[1]), (a[1], b[0])):
            rest.addmm_(left, right.T)
        out.copy_(_of(first.float().add_(rest), out).clamp_(-1.0, 1.0))


def _blocks(x: Tensor, operand: Operand) -> Iterator[tuple[Tensor, ...]]:
    return row_blocks(BLOCK // max(x.shape[1], 1), x.shape[:1], x, *operand)


def choose_product(
    dtypes: tuple[torch.dtype, torch.dtype], result: torch.dtype, precision: str, size: int
) -> Product:
    """The product for rows of these dtypes and `size` multiplications."""
    dtype = accumulation_dtype(result)
    if dtype == torch.float32 and size >= LARGE:
        if dtypes == (result, result) and result in fast_dtypes():
            return NarrowProduct(result)
        if precision == "medium" and torch.bfloat16 in fast_dtypes():
            return RoundedProduct()
        if precision == "high" and has_tiles():
            return SplitProduct()
    return full_product(dtype, size)


@cache
def fast_dtypes() -> frozenset[torch.dtype]:
    """The dtypes whose products run faster here than those of float32, with float32 sums.

    One core of Zen 5, in G operations a second: bfloat16 400, float32 215, float16 26. An Intel
    core with AMX: bfloat16 850 to 1000, float32 145, and float16 no faster than that without
    AMX-FP16.
    """
    found = set()
    if has_tiles() or torch.cpu._is_avx512_bf16_supported():
        found.add(torch.bfloat16)
    if getattr(torch.cpu, "_is_amx_fp16_supported", bool)():
        found.add(torch.float16)
    return frozenset(found)


@cache
def has_tiles() -> bool:
    """Whether there is AMX, where four bfloat16 products take less time than one of float32."""
    return torch.cpu._is_amx_tile_supported()
