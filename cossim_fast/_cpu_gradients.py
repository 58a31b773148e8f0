"""First derivatives on CPU, by blocks.

With n = max(|x|, eps) and c the cosine before the clamp,

    dc/dx = y / (n_x n_y) - c x / (n_x |x|),    the second term 0 where x = 0,

which is torch's own gradient, also below eps.
"""

from __future__ import annotations

import math

import torch
from torch import Tensor

from cossim_fast import _composite, _products
from cossim_fast._cpu import BLOCK, RowCosines, Scratch, all_in_bounds, odd_rows, row_blocks
from cossim_fast._cpu_matrix import TILE, normalize, panel_rows, unit_rows
from cossim_fast._dtypes import accumulation_dtype


def rows_gradients(
    x: Tensor, y: Tensor, rows: RowCosines, grad: Tensor, eps: float, needed: tuple[bool, ...]
) -> list[Tensor | None]:
    """The derivatives of <grad, cosines> by x and by y, where needed."""
    cosine, norm_x, norm_y = rows
    bounded_x, bounded_y = norm_x.clamp_min(eps), norm_y.clamp_min(eps)
    cross = grad / (bounded_x * bounded_y)
    own = grad * cosine
    gradients = [
        _combine(y, cross, x, own / (bounded_x * norm_x)) if needed[0] else None,
        _combine(x, cross, y, own / (bounded_y * norm_y)) if needed[1] else None,
    ]
    norms = torch.stack((norm_x, norm_y))
    if not all_in_bounds(norms):
        for index in odd_rows(norms, x.shape[-1]):
            a, b, g = (t[index].to(cosine.dtype) for t in (x, y, grad))
            for whole, this, other in zip(gradients, (a, b), (b, a), strict=True):
                if whole is not None:
                    whole[index] = _odd_gradient(this, other, g, eps).to(whole.dtype)
    return gradients


def _odd_gradient(this: Tensor, other: Tensor, grad: Tensor, eps: float) -> Tensor:
    """The derivative by `this` for rows of any magnitude, without autograd: an op has none."""
    t = _composite.unit_rows(other, -1, eps) * grad[..., None]
    _project(t, _composite.unit_rows(this, -1, eps), _composite.row_norms(this, -1), eps)
    return t


def _combine(other: Tensor, cross: Tensor, this: Tensor, own: Tensor) -> Tensor:
    """Return cross * other - own * this by blocks, as a tensor like `this`."""
    # An expanded tensor has a derivative at each place that its elements are seen.
    result = torch.empty_like(this) if 0 not in this.stride() else this.new_empty(this.shape)
    wide_other, wide_this, wide_result = (Scratch(cross.dtype) for _ in range(3))
    for other_block, c, this_block, o, block in row_blocks(
        BLOCK // max(this.shape[-1], 1), this.shape[:-1], other, cross, this, own, result
    ):
        target = block if block.dtype == cross.dtype else wide_result.like(block)
        torch.mul(wide_other.widen(other_block), c[..., None], out=target)
        target.addcmul_(wide_this.widen(this_block), o[..., None], value=-1)
        if target is not block:
            block.copy_(target)
    return result


def matrix_gradient(grad: Tensor, x: Tensor, y: Tensor, eps: float) -> Tensor:
    """The derivative by x of <grad, cosine matrix>.

    That is (T - x <x, T> / (n |x|)) / n with T = grad @ unit_y and n = max(|x|, eps).
    """
    result = torch.empty(x.shape, dtype=x.dtype, device=x.device)
    dtype = accumulation_dtype(torch.promote_types(x.dtype, y.dtype))
    rows = panel_rows(x.shape[-1])
    if grad.dtype != dtype or 0 in grad.stride():  # mm copies what is expanded
        rows = min(rows, math.isqrt(TILE))
    wide, unit_x, unit_y, total, more = (Scratch(dtype) for _ in range(5))
    for g, x_item, y_item, result_item in zip(grad, x, y, result, strict=True):
        for strip, x_panel, panel in zip(
            g.split(rows), x_item.split(rows), result_item.split(rows), strict=True
        ):
            t = total.like(panel)
            parts = zip(strip.split(rows, 1), y_item.split(rows), strict=True)
            for number, (part, y_panel) in enumerate(parts):
                unit = unit_rows(y_panel, eps, unit_y.like(y_panel))
                place = t if number == 0 else more.like(panel)
                product = _products.mm(wide.widen(part), unit, out=place)
                if number:
                    t.add_(product)
            unit = unit_x.like(x_panel)
            _project(t, unit, normalize(x_panel, eps, unit), eps)
            panel.copy_(t)
    return result


def _project(t: Tensor, unit: Tensor, norm: Tensor, eps: float) -> None:
    """Turn T into the derivative in place, given x / n and |x|; unit is used up."""
    bounded = norm.clamp_min(eps)
    # x / |x| = (x / n) (n / |x|), where n / |x| is 1 but below eps.
    ratio = torch.where(norm < eps, eps / norm, 1.0).masked_fill_(norm == 0, 0.0)
    along = torch.linalg.vecdot(unit, t).unsqueeze(-1)
    t.addcmul_(unit, along * ratio, value=-1).div_(bounded)
