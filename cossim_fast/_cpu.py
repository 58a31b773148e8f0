"""The vectorised torch path on CPU: blocks that stay in cache, scratch made once.

Torch has no fused dot product and norms, so a block of rows is read three times: for the
products, for the norms of x, for the norms of y. Only the first read comes from memory.
"""

from __future__ import annotations

import math
from collections.abc import Iterator
from typing import NamedTuple

import torch
from torch import Tensor
from torch.linalg import vector_norm

from cossim_fast import _composite
from cossim_fast._dtypes import accumulation_dtype

# Elements of one operand in a block. With 1.5 MiB of float32, (400000, 384) rows took 2.2 times
# the bare read of the inputs; 3.3 times with 128 KiB, where starting the ops shows; 2.0 to 2.4
# with 3 MiB.
BLOCK = 3 << 17
# Rows whose sums are kept until they become cosines: 12 bytes each in float32.
STATISTICS = 1 << 19

# Norms within these bounds have squares, and products of two, well inside the dtype's range.
NORM_BOUNDS = {
    torch.float32: (2.0**-50, 2.0**50),
    torch.float64: (2.0**-400, 2.0**400),
}


class RowCosines(NamedTuple):
    """Cosines of paired rows before the clamp, and norms before the maximum with eps."""

    cosine: Tensor
    norm_x: Tensor
    norm_y: Tensor


def cosine_rows(x: Tensor, y: Tensor, eps: float, dtype: torch.dtype) -> Tensor:
    """Cosine along the last dimension of two tensors of one shape, as `dtype`."""
    shape = x.shape[:-1]
    if shape.numel() <= STATISTICS:
        return row_cosines(x, y, eps, dtype).cosine.clamp_(-1.0, 1.0).to(dtype)
    result = torch.empty(shape, dtype=dtype, device=x.device)
    for x_part, y_part, part in row_blocks(STATISTICS, shape, x, y, result):
        part.copy_(row_cosines(x_part, y_part, eps, dtype).cosine.clamp_(-1.0, 1.0))
    return result


def row_cosines(x: Tensor, y: Tensor, eps: float, dtype: torch.dtype) -> RowCosines:
    """Cosines and norms along the last dimension, in the accumulation dtype of `dtype`."""
    sums = _dot_and_norms(x, y, accumulation_dtype(dtype))
    cosine, norm_x, norm_y = sums.unbind()
    norms = sums[1:]
    cosine.div_(norm_x.clamp_min(eps).mul_(norm_y.clamp_min(eps)))
    if not all_in_bounds(norms):
        for index in odd_rows(norms, x.shape[-1]):
            cosine[index] = _composite.cosine_rows(x[index], y[index], -1, eps, sums.dtype)
    return RowCosines(cosine, norm_x, norm_y)


def _dot_and_norms(x: Tensor, y: Tensor, dtype: torch.dtype) -> Tensor:
    """Stack <x, y>, |x| and |y| along the last dimension: (3, ...) from (..., d)."""
    width = x.shape[-1]
    if width > BLOCK:
        parts = zip(x.split(BLOCK, -1), y.split(BLOCK, -1), strict=True)
        sums = torch.stack([_dot_and_norms(a, b, dtype) for a, b in parts], -1)
        return torch.stack((sums[0].sum(-1), *vector_norm(sums[1:], dim=-1).unbind()))
    shape = x.shape[:-1]
    sums = torch.empty((3, *shape), dtype=dtype, device=x.device)
    places = 1 if x.dtype == y.dtype == dtype else 3
    product, wide_x, wide_y = scratch_places(places, min(x.numel(), BLOCK), dtype, of=3)
    rows = BLOCK // max(width, 1)
    for x_block, y_block, dot, norm_x, norm_y in row_blocks(rows, shape, x, y, *sums.unbind()):
        a, b = wide_x.widen(x_block), wide_y.widen(y_block)
        torch.sum(torch.mul(a, b, out=product.like(a, b)), -1, out=dot)
        norms_along_last(a, product, norm_x)
        norms_along_last(b, product, norm_y)
    return sums


def norms_along_last(x: Tensor, squares: Scratch, out: Tensor) -> Tensor:
    """Write |x| along the last dimension to `out`; infinite or 0 where squares leave the range."""
    if x.stride(-1) == 1:
        return vector_norm(x, dim=-1, out=out)  # type: ignore[no-any-return]
    # Along a strided dimension torch's norm is not vectorised: ten times slower than this.
    return torch.sum(torch.mul(x, x, out=squares.like(x)), -1, out=out).sqrt_()


def row_blocks(rows: int, shape: torch.Size, *tensors: Tensor) -> Iterator[tuple[Tensor, ...]]:
    """Cut tensors of the same leading `shape` alike into blocks of at most max(rows, 1) rows."""
    if shape.numel() <= rows or not shape:
        yield tensors
        return
    inner = math.prod(shape[1:])
    if inner <= rows:
        yield from zip(*(t.split(rows // inner) for t in tensors), strict=True)
        return
    for parts in zip(*(t.unbind() for t in tensors), strict=True):
        yield from row_blocks(rows, shape[1:], *parts)


class Scratch:
    """Memory that one block after another is written to."""

    def __init__(self, dtype: torch.dtype, memory: Tensor | None = None) -> None:
        self.dtype = dtype
        self.memory = memory
        self.tensor: Tensor | None = None

    def like(self, block: Tensor, other: Tensor | None = None) -> Tensor:
        """Return memory of the block's shape, laid out as it (or its expanded twin) is."""
        if self.tensor is None or self.tensor.shape != block.shape:
            template = other if other is not None and 0 in block.stride() else block
            if self.memory is None or self.memory.numel() < template.numel():
                self.tensor = torch.empty_like(template, dtype=self.dtype)
            else:
                dense = torch.empty_like(template, dtype=self.dtype, device="meta")
                self.tensor = self.memory.as_strided(dense.shape, dense.stride())
        return self.tensor

    def widen(self, block: Tensor) -> Tensor:
        """Return the block in this dtype: itself where it has it."""
        return block if block.dtype == self.dtype else self.like(block).copy_(block)


def scratch_places(count: int, elements: int, dtype: torch.dtype, of: int) -> list[Scratch]:
    """Return `of` scratches, the first `count` of them places in one allocation.

    The C library gives the top of its heap back to the system where several pieces are freed
    there, and finding their pages anew took (1000, 384) bfloat16 rows five times the work; one
    piece of the same size it keeps.
    """
    memory = torch.empty(count * max(elements, 1), dtype=dtype, device="cpu")
    parts = [*memory.split(max(elements, 1)), *[None] * (of - count)]
    return [Scratch(dtype, part) for part in parts]


def all_in_bounds(norms: Tensor) -> bool:
    """Whether every norm has a safe square: one comparison a row. False for NaN."""
    if norms.numel() == 0:
        return True
    low, high = NORM_BOUNDS[norms.dtype]
    smallest, largest = norms.aminmax()
    return smallest.item() >= low and largest.item() <= high


def odd_rows(norms: Tensor, width: int) -> Iterator[tuple[Tensor, ...]]:
    """Index the rows of which a norm (the first dimension lists them) is out of bounds."""
    low, high = NORM_BOUNDS[norms.dtype]
    odd = ~((norms >= low) & (norms <= high)).all(0)
    for index in odd.nonzero().split(max(BLOCK // max(width, 1), 1)):
        yield index.unbind(1)
