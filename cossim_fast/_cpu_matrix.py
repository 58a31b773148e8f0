"""The cosine matrix on CPU: normalized panels, one product each, clamped where it lies.

Rows are normalized before the product, not the product after: that costs (n + m) d instead of
n m, keeps every product in range, and leaves the clamp as the only pass over the result.
"""

from __future__ import annotations

import torch
from torch import Tensor

from cossim_fast import _composite, _products
from cossim_fast._cpu import (
    BLOCK,
    Scratch,
    all_in_bounds,
    norms_along_last,
    odd_rows,
    row_blocks,
    scratch_places,
)
from cossim_fast._dtypes import accumulation_dtype

# Elements of a normalized panel: 16 MiB of float32. Tiles of 4096 x 4096 x 1024 run at the speed
# of the whole product, those of 256 x 4096 x 1024 at 0.86 of it.
PANEL = 1 << 22
# Elements of the tile in which a result narrower than its product is formed.
TILE = 1 << 21
# Below this many columns the product is bound by reading the rows: keep their blocks in cache.
FEW_COLUMNS = 128
# Side of the smallest squares on the diagonal of a symmetric matrix, computed whole: with 256 the
# halving took 0.50 to 0.54 of the time of the whole product, strips of 256 rows 0.55.
LEAF = 256
# Side of the squares that are transposed, and what their rows are apart beyond that: a stride of
# a power of two has all rows meet in the same lines of the cache. 4096 x 4096 float32 took 16 ms
# on one thread, 33 without a copy so laid out, 35 with squares of 64 and 19 with 512.
MIRROR = 256
APART = 16


def cosine_matrix(
    x: Tensor, y: Tensor | None, eps: float, out: Tensor, precision: str = "highest"
) -> Tensor:
    """Fill `out` (b, n, m) with the cosines of (b, n, d) and (b, m, d); y=None stands for x."""
    _fill(x, y, eps, out)
    return out


def _fill(x: Tensor, y: Tensor | None, eps: float, out: Tensor) -> None:
    if out.numel() == 0:
        return
    n, m, d = x.shape[1], out.shape[2], x.shape[2]
    size = (n + m) * d + n * m
    if x.shape[0] > 1 and size <= BLOCK:
        _fill_small(x, y, eps, out, BLOCK // max(size, 1))
    elif y is None:
        for x_item, out_item in zip(x, out, strict=True):
            _fill_symmetric(x_item, eps, out_item)
    else:
        for x_item, y_item, out_item in zip(x, y, out, strict=True):
            _fill_one(x_item, y_item, eps, out_item)


def _fill_small(x: Tensor, y: Tensor | None, eps: float, out: Tensor, items: int) -> None:
    """Many small matrices: as many at a time as stay in cache."""
    unit_x, unit_y, tile = (Scratch(accumulation_dtype(out.dtype)) for _ in range(3))
    others = x if y is None else y
    for x_part, y_part, part in row_blocks(items, x.shape[:1], x, others, out):
        a = unit_rows(x_part, eps, unit_x.like(x_part))
        b = a if y is None else unit_rows(y_part, eps, unit_y.like(y_part))
        product = _products.bmm(a, b.mT, out=tile.like(part)).clamp_(-1.0, 1.0)
        part.copy_(product if y is not None else product.triu() + product.triu(1).mT)


def _fill_one(x: Tensor, y: Tensor, eps: float, out: Tensor) -> None:
    m, d = y.shape
    columns = panel_rows(d)
    rows = max(BLOCK // max(d, 1), 1) if m <= FEW_COLUMNS else columns
    wide = accumulation_dtype(out.dtype)
    unit_x, unit_y = scratch_places(wide, min(rows, len(x)) * d, min(columns, m) * d)
    tile = Scratch(wide)
    for y_panel, strip in zip(y.split(columns), out.split(columns, 1), strict=True):
        b = unit_rows(y_panel, eps, unit_y.like(y_panel))
        for x_panel, part in zip(x.split(rows), strip.split(rows), strict=True):
            _product(unit_rows(x_panel, eps, unit_x.like(x_panel)), b, part, tile)


def _fill_symmetric(x: Tensor, eps: float, out: Tensor) -> None:
    """Products for the upper triangle alone, each mirrored while it is in cache."""
    n, d = x.shape
    size = panel_rows(d)
    wide = accumulation_dtype(out.dtype)
    unit_x, unit_y = scratch_places(wide, min(size, n) * d, min(size, max(n - size, 0)) * d)
    tile = Scratch(wide)
    for top in range(0, n, size):
        panel = x[top : top + size]
        a = unit_rows(panel, eps, unit_x.like(panel))
        stop = top + a.shape[0]
        _fill_square(a, out[top:stop, top:stop], tile)
        for left in range(stop, n, size):
            other = x[left : left + size]
            columns = slice(left, left + size)
            b = unit_rows(other, eps, unit_y.like(other))
            _product(a, b, out[top:stop, columns], tile)
            _transpose(out[top:stop, columns], out[columns, top:stop])


def _fill_square(unit: Tensor, out: Tensor, tile: Scratch) -> None:
    """Fill out with unit @ unit.T: half its rows with the other half, then each half alike."""
    n = unit.shape[0]
    half = n // 2
    if n <= LEAF:
        _product(unit, unit, out, tile)
        out.copy_(out.triu() + out.triu(1).T)
        return
    _fill_square(unit[:half], out[:half, :half], tile)
    _fill_square(unit[half:], out[half:, half:], tile)
    _product(unit[:half], unit[half:], out[:half, half:], tile)
    _transpose(out[:half, half:], out[half:, :half])


def _product(a: Tensor, b: Tensor, out: Tensor, tile: Scratch) -> None:
    """Fill out with a @ b.T clamped, through a tile where it is narrower than the product."""
    if out.dtype == a.dtype:
        _products.mm(a, b.T, out=out).clamp_(-1.0, 1.0)
        return
    rows = max(TILE // b.shape[0], 1)
    for a_part, part in zip(a.split(rows), out.split(rows), strict=True):
        part.copy_(_products.mm(a_part, b.T, out=tile.like(part)).clamp_(-1.0, 1.0))


def _transpose(source: Tensor, target: Tensor) -> None:
    """Copy the transposed source to target."""
    memory = source.new_empty(MIRROR, MIRROR + APART)
    for rows, columns in zip(source.split(MIRROR), target.split(MIRROR, 1), strict=True):
        for square, place in zip(rows.split(MIRROR, 1), columns.split(MIRROR), strict=True):
            place.copy_(memory[: square.shape[0], : square.shape[1]].copy_(square).T)


def panel_rows(width: int) -> int:
    """How many rows of this width make a panel."""
    return max(PANEL // max(width, 1), 1)


def unit_rows(x: Tensor, eps: float, out: Tensor) -> Tensor:
    """Write x / max(|x|, eps) along the last dimension to `out`, float32 or float64; return it."""
    normalize(x, eps, out)
    return out


def normalize(x: Tensor, eps: float, out: Tensor) -> Tensor:
    """Write x / max(|x|, eps) along the last dimension to `out`; return |x| with a last 1."""
    norms = torch.empty((*x.shape[:-1], 1), dtype=out.dtype, device=x.device)
    width = x.shape[-1]
    wide, squares = Scratch(out.dtype), Scratch(out.dtype)
    for block, norm, unit in row_blocks(BLOCK // max(width, 1), x.shape[:-1], x, norms, out):
        source = wide.widen(block)
        norms_along_last(source, squares, norm.squeeze(-1))
        torch.div(source, norm.clamp_min(eps), out=unit)
    if not all_in_bounds(norms):
        for index in odd_rows(norms.squeeze(-1)[None], width):
            rows = x[index].to(out.dtype)
            out[index] = _composite.unit_rows(rows, -1, eps)
            norms[index] = _composite.row_norms(rows, -1)
    return norms
