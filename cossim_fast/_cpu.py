"""The vectorised path on CPU: blocks that stay in cache, scratch made once.

Nothing fuses a dot product and two norms, so a block of rows is read three times, of which only
the first comes from memory. Along unit strides numpy's vecdot, a BLAS dot product a row, reads
and writes no more than that; torch would write all products and read them again: 106 µs against
187 for 1024 cached pairs of 384 float32.
"""

from __future__ import annotations

import math
from collections.abc import Iterator
from concurrent.futures import ThreadPoolExecutor
from typing import Any, NamedTuple

import numpy as np
import torch
from torch import Tensor
from torch.linalg import vector_norm

from cossim_fast import _composite
from cossim_fast._dtypes import accumulation_dtype

# Elements of one operand in a block. (400000, 384) float32 rows on one thread took 1.45 times the
# bare read of the inputs with 2^17 to 2^18 of them, 1.55 with 3 * 2^17 and 1.9 with 2^14, where
# Python shows. What is widened or strided goes through torch, whose ops start more slowly.
BLOCK = 3 << 17
# Elements of one row that are summed at a time: BLAS would start its own threads beyond 10000.
WIDE = 1 << 13
# Elements of one operand from which threads of our own share the rows: with fewer, starting them
# and passing the interpreter's lock around cost more (4 million: 3 ms on two, 2 ms on one).
SHARED = 1 << 24
# Of those threads, each of which keeps 3 MiB of scratch where rows are widened.
MOST_THREADS = 16
# From this many elements on, torch's elementwise ops start threads.
GRAIN = 1 << 15
# Rows whose sums are kept until they become cosines: 12 bytes each in float32.
STATISTICS = 1 << 19

# Norms within these bounds have squares, and products of two, well inside the dtype's range.
NORM_BOUNDS = {
    torch.float32: (2.0**-50, 2.0**50),
    torch.float64: (2.0**-400, 2.0**400),
}


# numpy's type stubs leave out its axis.
vecdot: Any = np.vecdot


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


@np.errstate(all="ignore")
def small_rows(x: Tensor, y: Tensor, dim: int, eps: float) -> Tensor:
    """Cosine along `dim` of two float32 tensors of one shape, formed in float64.

    There no square of a float32 number leaves the range, and what exceeds 1 by rounding is
    rounded to 1 at the end. For inputs so small that starting the operations is what they cost:
    one row of 8 takes 14 µs, against 26 by torch's operations with a check of the range.
    """
    a, b = x.numpy(force=True).astype(np.float64), y.numpy(force=True).astype(np.float64)
    norm_a, norm_b = np.sqrt(vecdot(a, a, axis=dim)), np.sqrt(vecdot(b, b, axis=dim))
    eps = float(eps)
    cosine = vecdot(a, b, axis=dim) / np.maximum(norm_a, eps) / np.maximum(norm_b, eps)
    # Memory of torch's own would take 4 µs more; nothing but resize_ can tell.
    return torch.from_numpy(np.asarray(cosine, np.float32, order="C"))


@np.errstate(all="ignore")
def row_cosines(x: Tensor, y: Tensor, eps: float, dtype: torch.dtype) -> RowCosines:
    """Cosines and norms along the last dimension, in the accumulation dtype of `dtype`."""
    sums = _dots(x.detach(), y.detach(), accumulation_dtype(dtype))
    # By numpy, which starts an operation in less time than torch does.
    cosine, norms = sums.numpy()[0, ...], sums.numpy()[1:]
    np.sqrt(norms, out=norms)
    bounded = np.maximum(norms, float(eps))
    cosine /= bounded[0] * bounded[1]
    found = RowCosines(*sums.unbind())
    low, high = NORM_BOUNDS[sums.dtype]
    if norms.size > 0 and not (norms.min() >= low and norms.max() <= high):
        for index in odd_rows(sums[1:], x.shape[-1]):
            found.cosine[index] = _composite.cosine_rows(x[index], y[index], -1, eps, sums.dtype)
    return found


def _dots(x: Tensor, y: Tensor, dtype: torch.dtype) -> Tensor:
    """Stack <x, y>, <x, x> and <y, y> along the last dimension: (3, ...) from (..., d)."""
    if x.shape[-1] > WIDE:
        parts = zip(x.split(WIDE, -1), y.split(WIDE, -1), strict=True)
        return torch.stack([_dots(a, b, dtype) for a, b in parts], -1).sum(-1)
    shape = x.shape[:-1]
    sums = torch.empty((3, *shape), dtype=dtype, device=x.device)
    tensors = (x, y, *sums.unbind())
    threads = min(torch.get_num_threads(), MOST_THREADS)
    if threads == 1 or x.numel() < SHARED or not x.stride(-1) == y.stride(-1) == 1:
        _fill_dots(*tensors)
        return sums
    shares = row_blocks(-(-shape.numel() // threads), shape, *tensors)
    with ThreadPoolExecutor(threads) as pool:
        for _ in pool.map(lambda share: _fill_dots(*share, shared=True), shares):
            pass
    return sums


@np.errstate(all="ignore")
def _fill_dots(
    x: Tensor, y: Tensor, dot: Tensor, square_x: Tensor, square_y: Tensor, *, shared: bool = False
) -> None:
    """Write <x, y>, <x, x> and <y, y> along the last dimension, block after block."""
    wide_x, wide_y, product = scratch_places(3, min(x.numel(), BLOCK), dot.dtype)
    rows = BLOCK // max(x.shape[-1], 1)
    for x_block, y_block, *sums in row_blocks(rows, dot.shape, x, y, dot, square_x, square_y):
        a, b = wide_x.widen(x_block, shared), wide_y.widen(y_block, shared)
        if a.stride(-1) == b.stride(-1) == 1:
            p, q = a.numpy(force=True), b.numpy(force=True)
            for factors, out in zip(((p, q), (p, p), (q, q)), sums, strict=True):
                vecdot(*factors, out=out.numpy())
        else:
            for first, second, out in zip((a, a, b), (b, a, b), sums, strict=True):
                torch.sum(torch.mul(first, second, out=product.like(first, second)), -1, out=out)


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

    def widen(self, block: Tensor, shared: bool = False) -> Tensor:
        """Return the block in this dtype: itself where it has it.

        Where the processors are shared out already, the copy starts no threads of torch's.
        """
        if block.dtype == self.dtype:
            return block
        wide = self.like(block)
        if not shared:
            return wide.copy_(block)
        rows = (GRAIN - 1) // block.shape[-1]
        wides, blocks = zip(*row_blocks(rows, block.shape[:-1], wide, block), strict=True)
        torch._foreach_copy_(wides, blocks)
        return wide


def scratch_places(count: int, elements: int, dtype: torch.dtype) -> list[Scratch]:
    """Return scratches that are places in one allocation.

    The C library gives the top of its heap back to the system where several pieces are freed
    there, and finding their pages anew took (1000, 384) bfloat16 rows five times the work; one
    piece of the same size it keeps.
    """
    memory = torch.empty(count * max(elements, 1), dtype=dtype, device="cpu")
    return [Scratch(dtype, part) for part in memory.split(max(elements, 1))]


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
