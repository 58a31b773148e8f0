"""First derivatives of the cosines of paired rows on CPU, in blocks.

With n = max(|x|, eps) and c the cosine before the clamp,

    dc/dx = y / (n_x n_y) - c x / (n_x |x|),    the second term 0 where x = 0,

which is torch's own gradient, also below eps.
"""

from __future__ import annotations

from collections.abc import Iterable
from functools import partial

import numpy as np
import torch
from torch import Tensor

from cossim_fast import _composite
from cossim_fast._cpu.blocks import NORM_BOUNDS, each_block, out_of_range_rows, scratch_places
from cossim_fast._cpu.rows import Array, RowCosines
from cossim_fast._quiet import quiet
from cossim_fast._threads import single_threaded


def rows_gradients(
    x: Tensor, y: Tensor, rows: RowCosines, grad: Tensor, eps: float, needed: tuple[bool, ...]
) -> list[Tensor | None]:
    """The derivatives of <grad, cosines> by x and by y, where needed."""
    x, y = x.detach(), y.detach()
    incoming = single_threaded(grad.detach().to, rows.cosine.dtype)
    cosine, norm_x, norm_y = (t.numpy(force=True) for t in rows)
    cross, *own = _factors(incoming.numpy(), cosine, norm_x, norm_y, float(eps))
    results = [_like(t) if wanted else None for t, wanted in zip((x, y), needed, strict=True)]
    sides = [side for side in (0, 1) if needed[side]]
    written = [t for side in sides for t in (own[side], results[side]) if t is not None]
    work = partial(_fill_gradients, rows.cosine.dtype, sides)
    each_block(work, x.shape[:-1], x, y, cross, *written)
    low, high = NORM_BOUNDS[cross.dtype]
    both = norm_x, norm_y
    if not all(t.min(initial=high) >= low and t.max(initial=low) <= high for t in both):
        for index in out_of_range_rows(torch.stack(rows[1:]), x.shape[-1]):
            a, b, g = (t[index].to(cross.dtype) for t in (x, y, incoming))
            for result, this, other in zip(results, (a, b), (b, a), strict=True):
                if result is not None:
                    result[index] = _out_of_range_gradient(this, other, g, eps).to(result.dtype)
    return results


@quiet
def _factors(grad: Array, cosine: Array, norm_x: Array, norm_y: Array, eps: float) -> list[Tensor]:
    """The factors of the other row, of x and of y in the derivatives.

    By numpy, on this thread, since torch would share even these few numbers among threads.
    """
    # Before numpy 2, a float and a 0-d array give float64.
    least = cosine.dtype.type(eps)
    bounded_x, bounded_y = np.maximum(norm_x, least), np.maximum(norm_y, least)
    own = grad * cosine
    found = grad / (bounded_x * bounded_y), own / (bounded_x * norm_x), own / (bounded_y * norm_y)
    return [torch.from_numpy(np.asarray(factor)) for factor in found]


def _like(this: Tensor) -> Tensor:
    """New memory for the derivative by a tensor, laid out as it is."""
    # An expanded tensor has a derivative at each of its places.
    return torch.empty_like(this) if 0 not in this.stride() else this.new_empty(this.shape)


def _fill_gradients(
    dtype: torch.dtype, sides: list[int], size: int, blocks: Iterable[tuple[Tensor, ...]]
) -> None:
    """Write cross * other - own * this of blocks (x, y, cross, *(own, result) of each side).

    Args:
        dtype: that of the computation.
        sides: whose derivative is written: 0 for x, 1 for y.
        size: elements of x in a block.
        blocks: x and y (..., d), factors (...) and results (..., d).
    """
    wide_x, wide_y, wide_result = scratch_places(dtype, *[size] * 3)
    for x, y, cross, *written in blocks:
        both = wide_x.widen(x), wide_y.widen(y)
        for side, own, block in zip(sides, written[::2], written[1::2], strict=True):
            this, other = both[side], both[1 - side]
            target = block if block.dtype == dtype else wide_result.like(block)
            torch.mul(other, cross[..., None], out=target)
            target.addcmul_(this, own[..., None], value=-1)
            if target is not block:
                block.copy_(target)


def _out_of_range_gradient(this: Tensor, other: Tensor, grad: Tensor, eps: float) -> Tensor:
    """The derivative by `this` for rows of any magnitude, without autograd: an op has none."""
    t = _composite.unit_rows(other, -1, eps) * grad[..., None]
    project(t, _composite.unit_rows(this, -1, eps), _composite.row_norms(this, -1), eps)
    return t


def project(t: Tensor, unit: Tensor, norm: Tensor, eps: float) -> Tensor:
    """Turn T into the derivative in place, given x / n and |x|; return <x / n, T> (..., 1)."""
    bounded = norm.clamp_min(eps)
    # x / |x| = (x / n) (n / |x|), where n / |x| is 1 but below eps.
    ratio = torch.where(norm < eps, eps / norm, 1.0).masked_fill_(norm == 0, 0.0)
    along: Tensor = torch.linalg.vecdot(unit, t).unsqueeze(-1)
    t.addcmul_(unit, along * ratio, value=-1).div_(bounded)
    return along
