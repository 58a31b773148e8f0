"""Cosines of paired rows on CPU, in blocks that stay in cache.

No operation fuses a dot product and two norms, so a block of rows is read three times, of which
only the first reads memory. Along unit strides numpy's vecdot, a BLAS dot product for each row,
reads and writes no more than that. torch would write all products and read them again: 187 µs
against 106 for 1024 cached pairs of 384 float32. There are as few other operations as possible:
each of torch's costs 3 to 8 µs, and (1000, 384) took 262 µs with 20 of them, 180 with five.
"""

from __future__ import annotations

from collections.abc import Iterable, Iterator
from functools import partial
from typing import Any, NamedTuple, TypeAlias

import numpy as np
import torch
from torch import Tensor

from cossim_fast import _composite
from cossim_fast._cpu.blocks import (
    NORM_BOUNDS,
    each_block,
    out_of_range_rows,
    row_blocks,
    scratch_places,
)
from cossim_fast._dtypes import accumulation_dtype
from cossim_fast._quiet import quiet
from cossim_fast._threads import run_shared, single_threaded, usable_threads
from cossim_fast._vecdot import vecdot

# [elements] Of one operand in a block for numpy. (200000, 384) float32 rows on one thread took 1.3
# times the bare read of the inputs with 2^17 to 2^18 of them, 1.36 with 3 * 2^17 and 1.5 with 2^15,
# where Python shows.
CACHED = 1 << 18
# [bytes] Of a row, below which einsum is faster than a BLAS dot product: 45 µs against 50 for 2000
# cached pairs of 64 float32, 29 against 50 for pairs of 16, 56 against 53 for pairs of 96.
NARROW = 384
# [elements] Of one row that are summed at a time: beyond 10000, BLAS starts threads of its own.
WIDE = 1 << 13
# [elements] Of one operand, from which threads of the pool share the rows: with fewer, waking them
# costs as much as it saves (3.8 million: 5.7 ms on two, 4.5 on one; 15 million: 11.6 and 16.8).
SHARED = 1 << 23
# [rows] Whose sums are kept until they become cosines: 24 bytes each in float32.
STATISTICS = 1 << 19

NUMPY = {torch.float32: np.float32, torch.float64: np.float64}
Array: TypeAlias = "np.ndarray[Any, Any]"


class RowCosines(NamedTuple):
    """Cosines of paired rows before the clamp, and norms before the maximum with eps."""

    cosine: Tensor
    norm_x: Tensor
    norm_y: Tensor


def cosine_rows(x: Tensor, y: Tensor, eps: float, dtype: torch.dtype) -> Tensor:
    """Cosine along the last dimension of two tensors of one shape, as `dtype`."""
    shape = x.shape[:-1]
    if shape.numel() <= STATISTICS:
        cosine, _ = _statistics(x, y, eps, dtype)
        return _clamped(cosine, cosine, dtype)
    result = torch.empty(shape, dtype=dtype, device=x.device)
    for x_part, y_part, part in row_blocks(STATISTICS, shape, x, y, result):
        cosine, _ = _statistics(x_part, y_part, eps, dtype)
        single_threaded(part.copy_, torch.from_numpy(cosine.clip(-1.0, 1.0, out=cosine)))
    return result


def clamped(cosine: Tensor, dtype: torch.dtype) -> Tensor:
    """Return cosines clamped to [-1, 1] as `dtype`, in memory of their own."""
    found = cosine.numpy()
    return _clamped(found, np.empty_like(found), dtype)


def _clamped(cosine: Array, out: Array, dtype: torch.dtype) -> Tensor:
    # These two take less time to start than np.clip.
    found = torch.from_numpy(np.minimum(np.maximum(cosine, -1.0, out=out), 1.0, out=out))
    if found.dtype is dtype:
        return found
    return single_threaded(found.to, dtype)


def row_cosines(x: Tensor, y: Tensor, eps: float, dtype: torch.dtype) -> RowCosines:
    """Cosines and norms along the last dimension, in the accumulation dtype of `dtype`."""
    cosine, norms = _statistics(x, y, eps, dtype)
    return RowCosines(torch.from_numpy(cosine), *torch.from_numpy(norms).unbind())


@quiet
def small_rows(x: Tensor, y: Tensor, dim: int, eps: float) -> Tensor:
    """Cosine along `dim` of two float32 tensors of one shape, formed in float64.

    There no square of a float32 number leaves the range, and what exceeds 1 by rounding is
    rounded to 1 at the end. For inputs so small that starting the operations is what they cost:
    one row of 8 takes 12 µs, against 26 by torch's operations with a check of the range.
    """
    a, b = x.numpy(force=True).astype(np.float64), y.numpy(force=True).astype(np.float64)
    eps = float(eps)
    norm_a, norm_b = np.sqrt(vecdot(a, a, axis=dim)), np.sqrt(vecdot(b, b, axis=dim))
    cosine = vecdot(a, b, axis=dim) / np.maximum(norm_a, eps) / np.maximum(norm_b, eps)
    # Memory of torch's own would take 4 µs more; nothing but resize_ can tell.
    return torch.from_numpy(np.asarray(cosine, np.float32, order="C"))


@quiet
def _statistics(x: Tensor, y: Tensor, eps: float, dtype: torch.dtype) -> tuple[Array, Array]:
    """Cosines before the clamp, and both norms stacked; numpy starts sooner than torch."""
    wide = accumulation_dtype(dtype)
    sums = _dots(x, y, wide)
    norms = np.sqrt(sums[1:], out=sums[1:])
    smallest = norms.min(initial=np.inf)
    eps = float(eps)
    bounded = norms if smallest >= eps else np.maximum(norms, eps)
    # In memory of its own: the result does not keep the norms.
    cosine = np.asarray(sums[0] / (bounded[0] * bounded[1]))
    low, high = NORM_BOUNDS[wide]
    if not (smallest >= low and norms.max(initial=0.0) <= high):
        for index in out_of_range_rows(torch.from_numpy(norms), x.shape[-1]):
            exact = _composite.cosine_rows(x[index], y[index], -1, eps, wide)
            torch.from_numpy(cosine)[index] = exact.detach()
    return cosine, norms


def _dots(x: Tensor, y: Tensor, dtype: torch.dtype) -> Array:
    """Stack <x, y>, <x, x> and <y, y> along the last dimension: (3, ...) from (..., d)."""
    shape, width = x.shape[:-1], x.shape[-1]
    if width > WIDE:
        pairs = zip(x.split(WIDE, -1), y.split(WIDE, -1), strict=True)
        total: Array = np.stack([_dots(a, b, dtype) for a, b in pairs], -1).sum(-1)
        return total
    sums = np.empty((3, *shape), NUMPY[dtype])
    along = x.stride(-1) == y.stride(-1) == 1
    dense = x.dim() == 2 or (x.is_contiguous() and y.is_contiguous())
    flat = (shape.numel(), width)
    if along and dense and x.dtype is y.dtype is dtype:
        p, q = x.numpy(force=True).reshape(flat), y.numpy(force=True).reshape(flat)
        _share_dots(p, q, sums.reshape(3, -1))
        return sums
    a, b, parts = x.detach(), y.detach(), torch.from_numpy(sums)
    if along and dense:
        a, b, parts = a.reshape(flat), b.reshape(flat), parts.view(3, -1)
    each_block(partial(_fill_any_dots, dtype), a.shape[:-1], a, b, *parts)
    return sums


def _share_dots(x: Array, y: Array, sums: Array) -> None:
    """Write <x, y>, <x, x> and <y, y> of rows (n, d) to sums (3, n), by threads where it pays."""
    threads = usable_threads() if x.size >= SHARED else 1
    # Blocks of one size, and as many for each thread.
    blocks = threads * -(-x.size // (threads * CACHED))
    step = -(-len(x) // max(blocks, 1)) or 1
    starts = iter(range(0, len(x), step))
    run_shared(threads, partial(_fill_dots, x, y, sums, starts, step))


@quiet
def _fill_dots(x: Array, y: Array, sums: Array, starts: Iterator[int], step: int) -> None:
    """Write <x, y>, <x, x> and <y, y> of the blocks of `step` rows that begin at `starts`."""
    for start in starts:
        rows = slice(start, start + step)
        _dot_pairs(x[rows], y[rows], sums[:, rows])


def _dot_pairs(x: Array, y: Array, sums: Iterable[Array]) -> None:
    """Write <x, y>, <x, x> and <y, y> of rows to the three of `sums`."""
    # x and y first: read at once, they come faster from memory than one after the other.
    for (first, second), out in zip(((x, y), (x, x), (y, y)), sums, strict=True):
        if x.shape[-1] * x.itemsize < NARROW:
            np.einsum("...i,...i->...", first, second, out=out)
        else:
            vecdot(first, second, out=out)


@quiet
def _fill_any_dots(dtype: torch.dtype, size: int, blocks: Iterable[tuple[Tensor, ...]]) -> None:
    """Write <x, y>, <x, x> and <y, y> of blocks (x, y, *sums) of any dtype and stride.

    Args:
        dtype: of the sums.
        size: elements of one operand of a block.
        blocks: x and y (..., d), and three tensors (...).
    """
    wide_x, wide_y, product = scratch_places(dtype, *[size] * 3)
    for x_block, y_block, *sums in blocks:
        a, b = wide_x.widen(x_block), wide_y.widen(y_block)
        if a.stride(-1) == b.stride(-1) == 1:
            _dot_pairs(a.numpy(), b.numpy(), [out.numpy() for out in sums])
        else:
            place = product.like(a, b)
            for first, second, out in zip((a, a, b), (b, a, b), sums, strict=True):
                torch.sum(torch.mul(first, second, out=place), -1, out=out)
