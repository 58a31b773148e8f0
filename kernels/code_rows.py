"""Codes of a corpus for the int8 screen, and what bounds their error, in one pass over the rows."""

import torch
import triton
import triton.language as tl

from .architecture import TileConfig, current_arch
from .configs import choose_config
from .launch import cost, kernel, on_device
from .tiles import inverse_norm, scaled_square, times_power_of_two

BLOCK = tl.constexpr(64)  # rows that share a scale, a residual and a radius
# A block with no larger entry is coded as zeros: the inverse of its scale might be infinite.
_TINY = tl.constexpr(2.0**-100)
# 1.5 times 2^23: added to a number below 2^22 and taken off again, it rounds to a whole number.
_ROUNDING = tl.constexpr(12582912.0)
_UNIT = tl.constexpr(2.0**-24)


def _metadata(grid, kernel, args):
    n, d, width = args["N"], args["D"], args["WIDTH"]
    moved = n * (d * args["x_ptr"].element_size() + width + 1) + 12 * (n // 64)
    return cost("code_rows", moved, flops32=10 * n * d)


@triton.jit
def _centred(x_ptr, centre_ptr, d, D, stride_d, finite, inverse, exponent):
    """Unit rows less the centre, (BLOCK, BLOCK_D); 0 where a row is not finite, and beyond D."""
    mask = finite[:, None] & (d < D)
    x = tl.load(x_ptr[:, None] + d * stride_d, mask=mask, other=0.0).to(tl.float32)
    centre = tl.load(centre_ptr + d, mask=d < D, other=0.0)
    unit = times_power_of_two(x, -exponent[:, None]) * inverse[:, None]
    return tl.where(mask, unit - centre, 0.0)


@kernel(launch_metadata=_metadata)
def _code_rows_kernel(
    x_ptr,  # (N, D)
    centre_ptr,  # (D,) float32
    codes_ptr,  # (64 BLOCKS, WIDTH) int8
    terms_ptr,  # (3, BLOCKS) float32
    eligible_ptr,  # (N,) int8
    N,
    D,
    WIDTH,
    stride_xn,
    stride_xd,
    stride_cn,
    stride_cd,
    stride_tt,
    stride_tb,
    BLOCK_D: tl.constexpr,
):
    """Write the codes of 64 rows, their scale, residual and radius, and which rows are finite.

    Owns one block of rows. A loop over D sums squares for the norms, a second, over unit rows less
    the centre, finds their largest entry and longest row, a third writes codes, and sums what they
    miss. The second and third read the rows from L2.
    Moves the input once and a byte a number; 10 operations an element.
    """
    block = tl.program_id(0).to(tl.int64)
    row = block * BLOCK + tl.arange(0, BLOCK)
    inside = row < N
    x_row = x_ptr + row * stride_xn
    column = tl.arange(0, BLOCK_D).to(tl.int64)

    square, exponent = scaled_square(x_row, stride_xd, inside, D, 0.0, BLOCK, BLOCK_D)
    inverse = inverse_norm(square, exponent, 0.0)
    finite = inside & (square < float("inf"))
    inverse = tl.where(square > 0, inverse, 0.0)  # a row of zeros stands for itself
    tl.store(eligible_ptr + row, finite.to(tl.int8), mask=inside)

    squares = tl.zeros((BLOCK, BLOCK_D), dtype=tl.float32)
    most = tl.zeros((BLOCK, BLOCK_D), dtype=tl.float32)
    for start in range(0, D, BLOCK_D):
        d = (start + column)[None, :]
        y = _centred(x_row, centre_ptr, d, D, stride_xd, finite, inverse, exponent)
        squares += y * y
        most = tl.maximum(most, tl.abs(y))
    radius = tl.sqrt_rn(tl.max(tl.sum(squares, axis=1), axis=0))
    largest = tl.max(tl.max(most, axis=1), axis=0)
    scale = tl.where(largest > _TINY, tl.div_rn(largest, 127.0), 0.0)
    inverse_scale = tl.where(largest > _TINY, tl.div_rn(127.0, tl.maximum(largest, _TINY)), 0.0)

    squares = tl.zeros((BLOCK, BLOCK_D), dtype=tl.float32)
    code_row = codes_ptr + row * stride_cn
    for start in range(0, WIDTH, BLOCK_D):
        d = (start + column)[None, :]
        y = _centred(x_row, centre_ptr, d, D, stride_xd, finite, inverse, exponent)
        code = (y * inverse_scale + _ROUNDING) - _ROUNDING
        code = tl.minimum(tl.maximum(code, -127.0), 127.0)
        missed = y - code * scale
        squares += missed * missed
        tl.store(code_row[:, None] + d * stride_cd, code.to(tl.int8), mask=d < WIDTH)
    residual = tl.sqrt_rn(tl.max(tl.sum(squares, axis=1), axis=0))

    # See launch_code_rows.
    size = tl.cast(D, tl.float32)
    grown = 1.0 + (size + 8.0) * _UNIT
    radius = radius * grown + (size + 12.0) * _UNIT
    residual = residual * grown + (size + 12.0) * _UNIT
    residual += (radius + residual) * (2.0 * _UNIT)
    term = terms_ptr + block * stride_tb
    tl.store(term, scale)
    tl.store(term + stride_tt, residual)
    tl.store(term + 2 * stride_tt, radius)


def launch_code_rows(
    x: torch.Tensor, centre: torch.Tensor, config: TileConfig | None = None
) -> tuple[torch.Tensor, torch.Tensor, torch.Tensor]:
    """Return codes (64 blocks, d') int8, terms (3, blocks) and eligibility (n,) of rows x (n, d).

    With u = 2^-24, x̄ = x / |x| (0 for a row of zeros) and y = x̄ - centre, the terms of a block of
    64 rows are a scale s, a residual of at least |y - s z| and a radius of at least |y| for each
    finite row and its code z. A row that is not finite has codes of 0 and no say. d' is a
    multiple of 16; codes beyond d and beyond n are 0.

    The bound: a sum of d squares in float32 errs by (d + 1) u of itself at most, so 1 / |x| by
    (d + 8) u, and what is computed for y by (d + 12) u in norm, with its own roundings. A norm that
    is summed in float32 is enlarged by (d + 8) u of itself; the product s z and the difference
    round by at most u (|y| + 2 |y - s z|).
    """
    n, d = x.shape
    blocks = triton.cdiv(n, 64)
    width = triton.cdiv(d, 16) * 16
    codes = x.new_empty((64 * blocks, width), dtype=torch.int8)
    terms = x.new_empty((3, blocks), dtype=torch.float32)
    eligible = x.new_empty((n,), dtype=torch.int8)
    if blocks == 0:
        return codes, terms, eligible.view(torch.bool)
    with on_device(x):
        config = config or choose_config("code_rows", x.dtype, d, current_arch())
        _code_rows_kernel[(blocks,)](
            x,
            centre.contiguous(),
            codes,
            terms,
            eligible,
            n,
            d,
            width,
            *x.stride(),
            *codes.stride(),
            *terms.stride(),
            BLOCK_D=config.block_k,
            **config.options(),
        )
    return codes, terms, eligible.view(torch.bool)
