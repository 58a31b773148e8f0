"""Rows of float32 as float16, scaled by powers of two: the factors of the lower precisions."""

import torch
import triton
import triton.language as tl

from .architecture import TileConfig, current_arch
from .configs import choose_config
from .launch import cdiv, cost, kernel, on_device
from .tiles import binary_exponent, inverse_norm, times_power_of_two

# The largest entry of a row lies in [2^14, 2^15): rounding cannot overflow, and what float16 loses
# of the smallest entries is 2^-39 of the norm.
LARGEST = tl.constexpr(14)


@triton.jit
def half_exponent(largest):
    """Power of two that is taken out of a row by its largest magnitude.

    A row of zeros needs none; one that is not finite says so without.
    """
    scaled = (largest > 0) & (largest < float("inf"))
    return tl.where(scaled, binary_exponent(largest) - LARGEST, 0)


def _metadata(grid, kernel, args):
    rows, d, width = args["ROWS"], args["D"], args["WIDTH"]
    return cost("half_rows", rows * (4 * d + 2 * width + 4), flops32=4 * rows * d)


@triton.jit
def row_exponent(
    x_row,  # (BLOCK_N,) pointers to float32 rows
    inside,  # (BLOCK_N,)
    stride_xd,
    D,
    BLOCK_N: tl.constexpr,
    BLOCK_D: tl.constexpr,
):
    """`half_exponent` of rows (BLOCK_N,)."""
    column = tl.arange(0, BLOCK_D).to(tl.int64)
    most = tl.zeros((BLOCK_N, BLOCK_D), dtype=tl.float32)
    for start in range(0, D, BLOCK_D):
        d = (start + column)[None, :]
        x = tl.load(x_row[:, None] + d * stride_xd, mask=inside[:, None] & (d < D), other=0.0)
        most = tl.maximum(most, tl.abs(x))
    return half_exponent(tl.max(most, axis=1))


@kernel(launch_metadata=_metadata)
def _half_rows_kernel(
    x_ptr,  # (B, N, D) float32
    out_ptr,  # (B, N, WIDTH) float16
    inverse_ptr,  # (B * N,) float32
    ROWS,  # B * N
    N,
    D,
    WIDTH,
    stride_xb,
    stride_xn,
    stride_xd,
    stride_ob,
    stride_on,
    stride_od,
    eps,
    BLOCK_N: tl.constexpr,
    BLOCK_D: tl.constexpr,
):
    """Write rows scaled by a power of two, zeros from D to WIDTH, and 1 / max(norm, eps) of them.

    Owns BLOCK_N rows. A first loop over D finds the largest entries, a second reads the same
    elements again, from L2, and writes; norms are those of the float32 entries.
    Moves the input and the output once; 4 operations an element.
    """
    row = tl.program_id(0).to(tl.int64) * BLOCK_N + tl.arange(0, BLOCK_N)
    inside = row < ROWS
    x_row = x_ptr + (row // N) * stride_xb + (row % N) * stride_xn
    out_row = out_ptr + (row // N) * stride_ob + (row % N) * stride_on
    exponent = row_exponent(x_row, inside, stride_xd, D, BLOCK_N, BLOCK_D)

    column = tl.arange(0, BLOCK_D).to(tl.int64)
    squares = tl.zeros((BLOCK_N, BLOCK_D), dtype=tl.float32)
    for start in range(0, WIDTH, BLOCK_D):
        d = (start + column)[None, :]
        x = tl.load(x_row[:, None] + d * stride_xd, mask=inside[:, None] & (d < D), other=0.0)
        x = times_power_of_two(x, -exponent[:, None])
        squares += x * x
        mask = inside[:, None] & (d < WIDTH)
        tl.store(out_row[:, None] + d * stride_od, x.to(tl.float16), mask=mask)
    inverse = inverse_norm(tl.sum(squares, axis=1), exponent, eps)
    tl.store(inverse_ptr + row, inverse, mask=inside)


def launch_half_rows(
    x: torch.Tensor, eps: float, config: TileConfig | None = None
) -> tuple[torch.Tensor, torch.Tensor]:
    """Return the rows of a float32 x (b, n, d) in float16, scaled, and inverse norms (b * n,).

    The rows (b, n, d') are padded with zeros so that they load in pieces of 16 bytes. The inverse
    is 1 / max(norm, eps) of the scaled row, NaN for one that is not finite: a product of two rows
    times their inverses is their cosine.
    """
    b, n, d = x.shape
    width = cdiv(d, 16) * 16
    out = x.new_empty((b, n, width), dtype=torch.float16)
    inverse = x.new_empty((b * n,), dtype=torch.float32)
    if inverse.numel() == 0:
        return out, inverse
    with on_device(x):
        config = config or choose_config("half_rows", x.dtype, d, current_arch())
        _half_rows_kernel[(cdiv(b * n, config.block_n),)](
            x,
            out,
            inverse,
            b * n,
            n,
            d,
            width,
            *x.stride(),
            *out.stride(),
            float(eps),
            BLOCK_N=config.block_n,
            BLOCK_D=config.block_k,
            **config.options(),
        )
    return out, inverse
