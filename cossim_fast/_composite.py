"""The cosine as a handful of differentiable torch ops, for every device and transform.

Nothing here looks at values on the host or writes in place, so that autograd of any order,
forward mode, functorch, torch.compile, fake and subclassed tensors all go through. The
blocked CPU path hands over the rare rows whose squares leave the dtype's range.
"""

from __future__ import annotations

from typing import NamedTuple

import torch
from torch import Tensor
from torch.linalg import vector_norm

from cossim_fast._dtypes import accumulation_dtype
from cossim_fast._products import full_precision_product


class Band(NamedTuple):
    """Rows whose largest entry lies in [low, high) are squared as they are, others scaled."""

    low: float
    high: float
    up: float
    down: float


# Powers of two, so that scaling is exact. The squares of scaled rows stay clear of overflow
# and of subnormals (2^-118 to 2^76 in float32), subnormal inputs included.
BANDS = {
    torch.float32: Band(low=2.0**-40, high=2.0**50, up=2.0**90, down=2.0**-90),
    torch.float64: Band(low=2.0**-400, high=2.0**450, up=2.0**700, down=2.0**-700),
}


def cosine_rows(x: Tensor, y: Tensor, dim: int, eps: float, dtype: torch.dtype) -> Tensor:
    """Cosine along `dim` of two tensors of one shape, rounded to `dtype` at the end."""
    wide = accumulation_dtype(dtype)
    product = unit_rows(x.to(wide), dim, eps) * unit_rows(y.to(wide), dim, eps)
    return _clamp_value(product.sum(dim)).to(dtype)


def cosine_widened(x: Tensor, y: Tensor, dim: int, eps: float, dtype: torch.dtype) -> Tensor:
    """Cosine along `dim` of two tensors narrower than float64, by torch's function in float64.

    There no square of a narrower number leaves the range, and what exceeds 1 by rounding is
    rounded to 1 at the end. For inputs so small that the count of ops is what they cost.
    """
    # Both are widened here: torch's function takes norms before it promotes.
    cosine = torch.cosine_similarity(x.double(), y.double(), dim, eps)
    return cosine.float() if dtype is torch.float32 else cosine.to(dtype)


def cosine_traced(x: Tensor, y: Tensor, dim: int, eps: float, dtype: torch.dtype) -> Tensor:
    """Cosine along `dim`, from the end, of two tensors that broadcast, as torch.jit.trace needs it.

    A trace keeps the operations of one call and none of its decisions: nothing here asks for a
    size, since a dimension of size 1 may be longer when the trace runs, or the other way round.
    """
    wide = accumulation_dtype(dtype)
    ndim = max(x.dim(), y.dim(), 1)
    x, y = (t.to(wide)[(None,) * (ndim - t.dim())] for t in (x, y))
    # The norms are those of rows of the broadcast width; nothing else is expanded before them.
    one = tuple(slice(None) if axis == ndim + dim else slice(1) for axis in range(ndim))
    x, y = torch.broadcast_tensors(x, y[one])[0], torch.broadcast_tensors(y, x[one])[0]
    product = unit_rows(x, dim, eps) * unit_rows(y, dim, eps)
    return _clamp_value(product.sum(dim)).to(dtype)


def cosine_matrix(x: Tensor, y: Tensor, eps: float, dtype: torch.dtype) -> Tensor:
    """Cosine matrix of (..., n, d) and (..., m, d), rounded to `dtype` at the end."""
    wide = accumulation_dtype(dtype)
    unit_x, unit_y = unit_rows(x.to(wide), -1, eps), unit_rows(y.to(wide), -1, eps)
    return _clamp_value(full_precision_product(unit_x, unit_y.transpose(-2, -1))).to(dtype)


def rows_gradients(
    x: Tensor, y: Tensor, grad: Tensor, eps: float, needed: tuple[bool, ...]
) -> list[Tensor | None]:
    """The derivatives of <grad, cosines> by x and by y, with a graph where grad mode is on."""
    graph = torch.is_grad_enabled()
    with torch.enable_grad():
        # Views, so that the derivative by x does not run through a y that was made of x.
        pair = [_viewed(t) if need else t for t, need in zip((x, y), needed, strict=True)]
        cosine = cosine_rows(pair[0], pair[1], -1, eps, accumulation_dtype(grad.dtype))
        wanted = [t for t, need in zip(pair, needed, strict=True) if need]
        found = iter(torch.autograd.grad(cosine, wanted, grad.to(cosine), create_graph=graph))
    return [next(found) if need else None for need in needed]


def _viewed(x: Tensor) -> Tensor:
    return x.view_as(x) if x.requires_grad else x.detach().requires_grad_()


def matrix_gradient(grad: Tensor, x: Tensor, y: Tensor, eps: float) -> Tensor:
    """The derivative by x of <grad, cosine matrix>, with a graph where grad mode is on."""
    graph = torch.is_grad_enabled()
    dtype = accumulation_dtype(torch.promote_types(x.dtype, y.dtype))
    unit_y = unit_rows(y.to(dtype), -1, eps)
    by_unit_x = full_precision_product(grad.to(dtype), unit_y)
    with torch.enable_grad():
        seen = _viewed(x)
        unit_x = unit_rows(seen.to(dtype), -1, eps)
        (gradient,) = torch.autograd.grad(unit_x, seen, by_unit_x, create_graph=graph)
    return gradient


def rows_gradient_without_graph(x: Tensor, y: Tensor, grad: Tensor, eps: float) -> Tensor:
    """The derivative by x of <grad, cosines of paired rows>, by its formula: for ops' bodies."""
    wide = accumulation_dtype(torch.promote_types(x.dtype, y.dtype))
    weighted = unit_rows(y.to(wide), -1, eps) * grad.to(wide)[..., None]
    return _projected(weighted, x.to(wide), eps).to(x.dtype)


def matrix_gradient_without_graph(x: Tensor, y: Tensor, grad: Tensor, eps: float) -> Tensor:
    """The derivative by x of <grad, cosine matrix>, by its formula: for ops' bodies."""
    wide = accumulation_dtype(torch.promote_types(x.dtype, y.dtype))
    weighted = full_precision_product(grad.to(wide), unit_rows(y.to(wide), -1, eps))
    return _projected(weighted, x.to(wide), eps).to(x.dtype)


def _projected(weighted: Tensor, x: Tensor, eps: float) -> Tensor:
    """The derivative by x of <weighted, unit_rows(x)>: autograd sees nothing inside an op."""
    if x.shape[-1] == 0:
        return torch.zeros_like(x)
    scale = range_scale(x, -1)
    scaled = x * scale
    norm: Tensor = vector_norm(scaled, 2, -1, keepdim=True)
    bounded = torch.maximum(norm, eps * scale)
    along = torch.linalg.vecdot(scaled / bounded, weighted).unsqueeze(-1)
    direction = scaled / norm.masked_fill(norm == 0, 1.0)
    gradient: Tensor = (weighted - direction * along) / bounded * scale
    return gradient


def unit_rows(x: Tensor, dim: int, eps: float) -> Tensor:
    """Return x / max(|x|, eps) along `dim` for a float32 or float64 x of any magnitude.

    Differentiates as torch.nn.functional.cosine_similarity does: the maximum with eps acts on
    the value of the norm alone, whose derivative stays that of the norm.
    """
    if _has_no_width(x, dim):
        return x.clone()  # autograd can save a copy of an inference tensor
    scale = range_scale(x, dim)
    scaled = x * scale
    norm: Tensor = vector_norm(scaled, 2, dim, keepdim=True)
    norm = norm + (torch.maximum(norm, eps * scale) - norm).detach()
    return scaled / norm


def _has_no_width(x: Tensor, dim: int) -> bool:
    """Whether rows have no entries; False in a trace, which would keep the answer for all sizes."""
    return torch._C._get_tracing_state() is None and x.dim() > 0 and x.shape[dim] == 0


def row_norms(x: Tensor, dim: int) -> Tensor:
    """Return |x| along `dim`, kept as a dimension of size 1; inf only where |x| is too large."""
    if _has_no_width(x, dim):
        return x.sum(dim, keepdim=True)
    scale = range_scale(x, dim)
    norm: Tensor = vector_norm(x * scale, 2, dim, keepdim=True)
    return norm / scale


def range_scale(x: Tensor, dim: int) -> Tensor:
    """A power of two for each row that brings its squares into range; 1 for most rows.

    `dim` is counted from the end.
    """
    band = BANDS[x.dtype]
    entries = x.detach()
    if torch._C._get_tracing_state() is not None and not torch.onnx.is_in_onnx_export():
        # Rows may have no entries when the trace runs, of which torch finds no largest one.
        # Not by pad, which before 2.9 refuses what is empty along another dimension.
        nothing = torch.zeros_like(entries.sum(dim, keepdim=True))
        entries = torch.cat([entries, nothing], dim)
    # The norm for inf is slower by far on CPU, and on meta refuses what has no rows.
    largest = entries.abs().amax(dim, keepdim=True)
    one = torch.ones_like(largest)
    scale = torch.where(largest >= band.high, one * band.down, one)
    return torch.where(largest < band.low, one * band.up, scale)


def _clamp_value(cosine: Tensor) -> Tensor:
    """Clamp the value to [-1, 1] and leave the derivatives those of the unclamped value."""
    return cosine + (cosine.clamp(-1.0, 1.0) - cosine).detach()
