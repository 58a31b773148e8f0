"""Cosine similarity of paired rows, and its gradient."""

import torch
import triton
import triton.language as tl

from .architecture import TileConfig, current_arch
from .configs import choose_config
from .launch import cdiv, cost, kernel, on_device
from .tiles import (
    clamp_cosine,
    inverse_norm,
    out_of_range,
    scaling_exponent,
    times_power_of_two,
)


def _fwd_metadata(grid, kernel, args):
    elements = args["N"] * args["D"]
    x, y, out = args["x_ptr"], args["y_ptr"], args["out_ptr"]
    moved = elements * (x.element_size() + y.element_size()) + args["N"] * out.element_size()
    return cost("rowwise_fwd", moved, flops32=6 * elements)


def _bwd_metadata(grid, kernel, args):
    elements = args["N"] * args["D"]
    x, y, grad = args["x_ptr"], args["y_ptr"], args["grad_ptr"]
    moved = 2 * elements * (x.element_size() + y.element_size()) + args["N"] * grad.element_size()
    return cost("rowwise_bwd", moved, flops32=14 * elements)


@triton.jit
def _largest_magnitude(x_row, stride_xd, mask_n, D, BLOCK_N: tl.constexpr, BLOCK_D: tl.constexpr):
    """Largest |x| of each row; the rows outside mask_n give 0."""
    column = tl.arange(0, BLOCK_D).to(tl.int64)
    largest = tl.zeros((BLOCK_N,), dtype=tl.float32)
    for start in range(0, D, BLOCK_D):
        mask = mask_n[:, None] & (start + column < D)[None, :]
        x = tl.load(x_row[:, None] + (start + column)[None, :] * stride_xd, mask=mask, other=0.0)
        largest = tl.maximum(largest, tl.max(tl.abs(x.to(tl.float32)), axis=1))
    return largest


@triton.jit
def _row_sums(
    x_row,
    y_row,
    stride_xd,
    stride_yd,
    exponent_x,  # (BLOCK_N,)
    exponent_y,  # (BLOCK_N,)
    mask_n,  # (BLOCK_N,)
    D,
    BLOCK_N: tl.constexpr,
    BLOCK_D: tl.constexpr,
    SCALED: tl.constexpr,
):
    """<x, y>, <x, x> and <y, y> of each pair, of the rows scaled by 2**-exponent if SCALED."""
    column = tl.arange(0, BLOCK_D).to(tl.int64)
    xy = tl.zeros((BLOCK_N, BLOCK_D), dtype=tl.float32)
    xx = tl.zeros((BLOCK_N, BLOCK_D), dtype=tl.float32)
    yy = tl.zeros((BLOCK_N, BLOCK_D), dtype=tl.float32)
    for start in range(0, D, BLOCK_D):
        mask = mask_n[:, None] & (start + column < D)[None, :]
        x = tl.load(x_row[:, None] + (start + column)[None, :] * stride_xd, mask=mask, other=0.0)
        y = tl.load(y_row[:, None] + (start + column)[None, :] * stride_yd, mask=mask, other=0.0)
        x = x.to(tl.float32)
        y = y.to(tl.float32)
        if SCALED:
            x = times_power_of_two(x, -exponent_x[:, None])
            y = times_power_of_two(y, -exponent_y[:, None])
        xy += x * y
        xx += x * x
        yy += y * y
    return tl.sum(xy, axis=1), tl.sum(xx, axis=1), tl.sum(yy, axis=1)


@triton.jit
def _pair_statistics(
    x_row,
    y_row,
    stride_xd,
    stride_yd,
    mask_n,
    D,
    eps,
    BLOCK_N: tl.constexpr,
    BLOCK_D: tl.constexpr,
):
    """Sums of each pair and the exponents that they are scaled by; one read unless out of range."""
    zero = tl.zeros((BLOCK_N,), dtype=tl.int32)
    exponent_x = zero
    exponent_y = zero
    xy, xx, yy = _row_sums(
        x_row, y_row, stride_xd, stride_yd, zero, zero, mask_n, D, BLOCK_N, BLOCK_D, SCALED=False
    )
    suspect = (out_of_range(xx) | out_of_range(yy)) & mask_n
    if tl.max(suspect.to(tl.int32), axis=0) > 0:
        largest_x = _largest_magnitude(x_row, stride_xd, mask_n, D, BLOCK_N, BLOCK_D)
        largest_y = _largest_magnitude(y_row, stride_yd, mask_n, D, BLOCK_N, BLOCK_D)
        exponent_x = scaling_exponent(largest_x, xx, eps, D)
        exponent_y = scaling_exponent(largest_y, yy, eps, D)
        xy, xx, yy = _row_sums(
            x_row,
            y_row,
            stride_xd,
            stride_yd,
            exponent_x,
            exponent_y,
            mask_n,
            D,
            BLOCK_N,
            BLOCK_D,
            SCALED=True,
        )
    return xy, xx, yy, exponent_x, exponent_y


@kernel(launch_metadata=_fwd_metadata)
def _rowwise_fwd_kernel(
    x_ptr,  # (N, D)
    y_ptr,  # (N, D)
    out_ptr,  # (N,)
    N,
    D,
    stride_xn,
    stride_xd,
    stride_yn,
    stride_yd,
    stride_on,
    eps,
    BLOCK_N: tl.constexpr,
    BLOCK_D: tl.constexpr,
):
    """Write the cosine of BLOCK_N pairs of rows.

    Owns BLOCK_N pairs, loops over D in steps of BLOCK_D, keeps three BLOCK_N x BLOCK_D partial sums
    in registers and writes one value a pair. Reads both inputs once (rows out of range again, from
    L2); 6 operations a pair of elements.
    """
    row = tl.program_id(0).to(tl.int64) * BLOCK_N + tl.arange(0, BLOCK_N)
    mask_n = row < N
    xy, xx, yy, exponent_x, exponent_y = _pair_statistics(
        x_ptr + row * stride_xn,
        y_ptr + row * stride_yn,
        stride_xd,
        stride_yd,
        mask_n,
        D,
        eps,
        BLOCK_N,
        BLOCK_D,
    )
    c = xy * inverse_norm(xx, exponent_x, eps) * inverse_norm(yy, exponent_y, eps)
    c = clamp_cosine(c).to(out_ptr.dtype.element_ty)
    tl.store(out_ptr + row * stride_on, c, mask=mask_n)


@triton.jit
def _load_pair(x_row, y_row, d, stride_xd, stride_yd, mask):
    """Load a step of the rows of each pair as float32, 0 outside."""
    x = tl.load(x_row[:, None] + d * stride_xd, mask=mask, other=0.0).to(tl.float32)
    y = tl.load(y_row[:, None] + d * stride_yd, mask=mask, other=0.0).to(tl.float32)
    return x, y


@triton.jit
def _scaled_pair(x, y, mask_n, D, eps):
    """Whole rows of each pair (BLOCK_N, BLOCK_D), scaled where needed, with _pair_statistics."""
    xy, xx, yy = tl.sum(x * y, axis=1), tl.sum(x * x, axis=1), tl.sum(y * y, axis=1)
    exponent_x = tl.zeros_like(mask_n.to(tl.int32))
    exponent_y = exponent_x
    suspect = (out_of_range(xx) | out_of_range(yy)) & mask_n
    if tl.max(suspect.to(tl.int32), axis=0) > 0:
        exponent_x = scaling_exponent(tl.max(tl.abs(x), axis=1), xx, eps, D)
        exponent_y = scaling_exponent(tl.max(tl.abs(y), axis=1), yy, eps, D)
        x = times_power_of_two(x, -exponent_x[:, None])
        y = times_power_of_two(y, -exponent_y[:, None])
        xy, xx, yy = tl.sum(x * y, axis=1), tl.sum(x * x, axis=1), tl.sum(y * y, axis=1)
    return x, y, xy, xx, yy, exponent_x, exponent_y


@triton.jit
def _store_gradient(
    grad_row,  # (BLOCK_N,) pointers to rows
    stride_gd,
    x,  # (BLOCK_N, BLOCK_D) scaled rows
    y,
    factor,  # (BLOCK_N,)
    inverse_y,
    along_x,
    exponent_x,
    d,
    mask,
):
    """Write a step of the gradients for x."""
    grad = factor[:, None] * (y * inverse_y[:, None] - x * along_x[:, None])
    grad = times_power_of_two(grad, -exponent_x[:, None]).to(grad_row.dtype.element_ty)
    tl.store(grad_row[:, None] + d * stride_gd, grad, mask=mask)


@kernel(launch_metadata=_bwd_metadata)
def _rowwise_bwd_kernel(
    grad_ptr,  # (N,)
    x_ptr,  # (N, D)
    y_ptr,  # (N, D)
    grad_x_ptr,  # (N, D)
    grad_y_ptr,  # (N, D)
    N,
    D,
    stride_gn,
    stride_xn,
    stride_xd,
    stride_yn,
    stride_yd,
    stride_gxn,
    stride_gxd,
    stride_gyn,
    stride_gyd,
    eps,
    BLOCK_N: tl.constexpr,
    BLOCK_D: tl.constexpr,
    ONE_STEP: tl.constexpr,
):
    """Write the gradients of BLOCK_N cosines for both of their rows.

    Owns BLOCK_N pairs. A first loop over D recomputes the three sums, a second reads the same
    elements again, from L2, and writes
    grad_x = g (y / (n_x n_y) - c x / (n_x |x|)), with n = max(|.|, eps), and likewise grad_y.
    If ONE_STEP, BLOCK_D >= D, and the rows stay in registers in between.
    Moves both inputs and both gradients once; 14 operations a pair of elements.
    """
    row = tl.program_id(0).to(tl.int64) * BLOCK_N + tl.arange(0, BLOCK_N)
    mask_n = row < N
    x_row = x_ptr + row * stride_xn
    y_row = y_ptr + row * stride_yn
    column = tl.arange(0, BLOCK_D).to(tl.int64)[None, :]
    if ONE_STEP:
        whole = mask_n[:, None] & (column < D)
        x, y = _load_pair(x_row, y_row, column, stride_xd, stride_yd, whole)
        x, y, xy, xx, yy, exponent_x, exponent_y = _scaled_pair(x, y, mask_n, D, eps)
    else:
        xy, xx, yy, exponent_x, exponent_y = _pair_statistics(
            x_row, y_row, stride_xd, stride_yd, mask_n, D, eps, BLOCK_N, BLOCK_D
        )
    inverse_x = inverse_norm(xx, exponent_x, eps)
    inverse_y = inverse_norm(yy, exponent_y, eps)
    c = xy * inverse_x * inverse_y
    # The derivative of a norm at a row of zeros is 0, as torch has it.
    along_x = tl.where(xx == 0, 0.0, c * tl.div_rn(1.0, tl.sqrt_rn(xx)))
    along_y = tl.where(yy == 0, 0.0, c * tl.div_rn(1.0, tl.sqrt_rn(yy)))

    grad = tl.load(grad_ptr + row * stride_gn, mask=mask_n, other=0.0).to(tl.float32)
    factor_x = grad * inverse_x
    factor_y = grad * inverse_y
    to_x = grad_x_ptr + row * stride_gxn
    to_y = grad_y_ptr + row * stride_gyn
    if ONE_STEP:
        _store_gradient(
            to_x, stride_gxd, x, y, factor_x, inverse_y, along_x, exponent_x, column, whole
        )
        _store_gradient(
            to_y, stride_gyd, y, x, factor_y, inverse_x, along_y, exponent_y, column, whole
        )
    else:
        for start in range(0, D, BLOCK_D):
            d = start + column
            mask = mask_n[:, None] & (d < D)
            x, y = _load_pair(x_row, y_row, d, stride_xd, stride_yd, mask)
            x = times_power_of_two(x, -exponent_x[:, None])
            y = times_power_of_two(y, -exponent_y[:, None])
            _store_gradient(
                to_x, stride_gxd, x, y, factor_x, inverse_y, along_x, exponent_x, d, mask
            )
            _store_gradient(
                to_y, stride_gyd, y, x, factor_y, inverse_x, along_y, exponent_y, d, mask
            )


def launch_rowwise_fwd(
    x: torch.Tensor,
    y: torch.Tensor,
    eps: float,
    out_dtype: torch.dtype | None = None,
    config: TileConfig | None = None,
) -> torch.Tensor:
    """Return (n,) cosines of the rows of x (n, d) and y (n, d), any strides; float32 sums."""
    n, d = x.shape
    out = x.new_empty((n,), dtype=out_dtype or torch.result_type(x, y))
    if n == 0:
        return out
    with on_device(x):
        config = config or choose_config("rowwise_fwd", x.dtype, d, current_arch())
        _rowwise_fwd_kernel[(cdiv(n, config.block_n),)](
            x,
            y,
            out,
            n,
            d,
            *x.stride(),
            *y.stride(),
            out.stride(0),
            float(eps),
            BLOCK_N=config.block_n,
            BLOCK_D=config.block_k,
            **config.options(),
        )
    return out


def launch_rowwise_bwd(
    grad: torch.Tensor,
    x: torch.Tensor,
    y: torch.Tensor,
    eps: float,
    config: TileConfig | None = None,
) -> tuple[torch.Tensor, torch.Tensor]:
    """Return the gradients for x and y (n, d) of the cosines whose gradient is grad (n,)."""
    n, d = x.shape
    grad_x, grad_y = x.new_empty((n, d)), y.new_empty((n, d))
    if grad_x.numel() == 0:
        return grad_x, grad_y
    with on_device(x):
        config = config or choose_config("rowwise_bwd", x.dtype, d, current_arch())
        _rowwise_bwd_kernel[(cdiv(n, config.block_n),)](
            grad,
            x,
            y,
            grad_x,
            grad_y,
            n,
            d,
            grad.stride(0),
            *x.stride(),
            *y.stride(),
            *grad_x.stride(),
            *grad_y.stride(),
            float(eps),
            BLOCK_N=config.block_n,
            BLOCK_D=config.block_k,
            ONE_STEP=config.block_k >= d,
            **config.options(),
        )
    return grad_x, grad_y
