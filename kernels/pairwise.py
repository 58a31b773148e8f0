"""Cosine similarity of every row of x with every row of y."""

import torch
import triton
import triton.language as tl

from .configs import TileConfig
from .launch import aligned_rows, cost, element_size, on_device, tiled_product
from .row_norm import launch_row_norm
from .tiles import clamp_cosine, grouped_tile, load_tile, times_power_of_two


def _metadata(grid, kernel, args):
    b, n, m, d = args["B"], args["N"], args["M"], args["D"]
    size = element_size(args["x_ptr"])
    moved = b * ((n + m) * d * size + n * m * args["out_ptr"].element_size())
    return cost("pairwise_fwd", moved, **{f"flops{8 * size}": 2 * b * n * m * d})


@triton.jit
def _product(
    x_ptr,
    y_ptr,
    stride_xb,
    stride_xn,
    stride_xd,
    stride_yb,
    stride_ym,
    stride_yd,
    exponent_x,  # (BLOCK_N,)
    exponent_y,  # (BLOCK_M,)
    batch,
    first_n,
    first_m,
    N,
    M,
    D,
    BLOCK_N: tl.constexpr,
    BLOCK_M: tl.constexpr,
    BLOCK_K: tl.constexpr,
    PRECISION: tl.constexpr,
    DESCRIPTORS: tl.constexpr,
    SCALED: tl.constexpr,
):
    """Inner products of a tile of rows, scaled by 2**-exponent if SCALED."""
    acc = tl.zeros((BLOCK_N, BLOCK_M), dtype=tl.float32)
    for k in range(0, D, BLOCK_K):
        x = load_tile(
            x_ptr, stride_xb, stride_xn, stride_xd, batch, first_n, k, N, D,
            BLOCK_N, BLOCK_K, DESCRIPTORS,
        )  # fmt: skip
        y = load_tile(
            y_ptr, stride_yb, stride_ym, stride_yd, batch, first_m, k, M, D,
            BLOCK_M, BLOCK_K, DESCRIPTORS,
        )  # fmt: skip
        if SCALED:
            x = times_power_of_two(x.to(tl.float32), -exponent_x[:, None]).to(x.dtype)
            y = times_power_of_two(y.to(tl.float32), -exponent_y[:, None]).to(y.dtype)
        acc = tl.dot(x, y.T, acc, input_precision=PRECISION)
    return acc


@triton.jit(launch_metadata=_metadata)
def _pairwise_fwd_kernel(
    x_ptr,  # (B, N, D), or a descriptor of it
    y_ptr,  # (B, M, D), or a descriptor of it
    inverse_x_ptr,  # (B * N,) float32
    inverse_y_ptr,  # (B * M,) float32
    exponent_x_ptr,  # (B * N,) int32
    exponent_y_ptr,  # (B * M,) int32
    out_ptr,  # (B, N, M)
    B,
    N,
    M,
    D,
    stride_xb,
    stride_xn,
    stride_xd,
    stride_yb,
    stride_ym,
    stride_yd,
    stride_ob,
    stride_on,
    stride_om,
    BLOCK_N: tl.constexpr,
    BLOCK_M: tl.constexpr,
    BLOCK_K: tl.constexpr,
    GROUP: tl.constexpr,
    PRECISION: tl.constexpr,
    DESCRIPTORS: tl.constexpr,
    RANGE_SAFE: tl.constexpr,
):
    """Write one BLOCK_N x BLOCK_M tile of cosines.

    Owns one tile of one batch, in groups of GROUP row tiles that share column tiles in L2. Loops
    over D in steps of BLOCK_K, keeps the float32 sums in registers, multiplies them by the inverse
    norms in the epilogue and writes the tile once. A tile that holds a row with an exponent runs
    the same loop on scaled rows; the others never see it.
    Moves (N + M) D inputs at best, N M outputs; 2 N M D operations.
    """
    tiles_n = tl.cdiv(N, BLOCK_N)
    tiles_m = tl.cdiv(M, BLOCK_M)
    program = tl.program_id(0)
    batch = program // (tiles_n * tiles_m)
    tile_n, tile_m = grouped_tile(program % (tiles_n * tiles_m), tiles_n, tiles_m, GROUP)
    first_n = tile_n * BLOCK_N
    first_m = tile_m * BLOCK_M

    row = tl.cast(first_n, tl.int64) + tl.arange(0, BLOCK_N)
    column = tl.cast(first_m, tl.int64) + tl.arange(0, BLOCK_M)
    row_mask = row < N
    column_mask = column < M
    flat_row = tl.cast(batch, tl.int64) * N + row
    flat_column = tl.cast(batch, tl.int64) * M + column

    exponent_x = tl.zeros((BLOCK_N,), dtype=tl.int32)
    exponent_y = tl.zeros((BLOCK_M,), dtype=tl.int32)
    if RANGE_SAFE:
        exponent_x = tl.load(exponent_x_ptr + flat_row, mask=row_mask, other=0)
        exponent_y = tl.load(exponent_y_ptr + flat_column, mask=column_mask, other=0)
        largest = tl.max(tl.abs(exponent_x), axis=0) + tl.max(tl.abs(exponent_y), axis=0)
    if RANGE_SAFE and largest > 0:
        acc = _product(
            x_ptr, y_ptr, stride_xb, stride_xn, stride_xd, stride_yb, stride_ym, stride_yd,
            exponent_x, exponent_y, batch, first_n, first_m, N, M, D,
            BLOCK_N, BLOCK_M, BLOCK_K, PRECISION, DESCRIPTORS, SCALED=True,
        )  # fmt: skip
    else:
        acc = _product(
            x_ptr, y_ptr, stride_xb, stride_xn, stride_xd, stride_yb, stride_ym, stride_yd,
            exponent_x, exponent_y, batch, first_n, first_m, N, M, D,
            BLOCK_N, BLOCK_M, BLOCK_K, PRECISION, DESCRIPTORS, SCALED=False,
        )  # fmt: skip

    inverse_x = tl.load(inverse_x_ptr + flat_row, mask=row_mask, other=0.0)
    inverse_y = tl.load(inverse_y_ptr + flat_column, mask=column_mask, other=0.0)
    c = clamp_cosine(acc * inverse_x[:, None] * inverse_y[None, :])
    out = out_ptr + tl.cast(batch, tl.int64) * stride_ob
    out += row[:, None] * stride_on + column[None, :] * stride_om
    mask = row_mask[:, None] & column_mask[None, :]
    tl.store(out, c.to(out_ptr.dtype.element_ty), mask=mask)


def launch_pairwise_fwd(
    x: torch.Tensor,
    y: torch.Tensor,
    eps: float,
    precision: str = "highest",
    out_dtype: torch.dtype | None = None,
    config: TileConfig | None = None,
) -> torch.Tensor:
    """Return the cosines (b, n, m) of the rows of x (b, n, d) and y (b, m, d), any strides.

    ``precision`` concerns float32 inputs alone. "highest" is full float32: each factor is split
    into three bfloat16 parts and the six products that count are summed, so that the split errs by
    2e-8 at most where float32 sums err by 5e-7 (d = 768); six bfloat16 products cost 0.4 of a
    float32 product without tensor cores by published peaks. "high" is three tf32 products (error
    1e-6, at the same peak cost; three bfloat16 products on AMD, 1e-5, half of it), "medium" one
    tf32 product (2e-3, a third of that; as "high" on gfx90a, which has no tf32).
    Two float16 parts of rows scaled by a power of two were tried for "highest": four products take
    0.59 (sm_80), 0.45 (sm_90) and 0.38 (sm_100) of the clocks to issue, in two thirds of the tensor
    clocks, three products 0.55, 0.43 and 0.35 in a half. Interpreted they err by 1.2e-7 at d = 67
    where torch's product errs by 1.7e-7, but at d = 65 four products err by 1.4e-7 and three by
    1.2e-7 where torch's own function, summed in another order, errs by 5.5e-8: more than twice it.
    Rows that are not aligned to 16 bytes, or whose d is no multiple of 16, are copied first.
    """
    (b, n, _), m = x.shape, y.shape[1]
    out = x.new_empty((b, n, m), dtype=out_dtype or torch.result_type(x, y))
    if out.numel() == 0:
        return out
    x, y = aligned_rows(x), aligned_rows(y)
    d = x.shape[-1]
    inverse_x, exponent_x = launch_row_norm(x, eps)
    inverse_y, exponent_y = launch_row_norm(y, eps)
    with on_device(x):
        config, x_source, y_source = tiled_product("pairwise_fwd", x, y, precision, config)
        tiles = triton.cdiv(n, config.block_n) * triton.cdiv(m, config.block_m)
        _pairwise_fwd_kernel[(b * tiles,)](
            x_source,
            y_source,
            inverse_x,
            inverse_y,
            exponent_x,
            exponent_y,
            out,
            b,
            n,
            m,
            d,
            *x.stride(),
            *y.stride(),
            *out.stride(),
            BLOCK_N=config.block_n,
            BLOCK_M=config.block_m,
            BLOCK_K=config.block_k,
            GROUP=config.group,
            PRECISION=config.precision,
            DESCRIPTORS=config.descriptors,
            RANGE_SAFE=x.dtype != torch.float16,
            **config.options(),
        )
    return out
