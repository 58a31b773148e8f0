"""A direct scan for few queries: the largest cosine of each with every 64 rows, nothing coded."""

import torch
import triton
import triton.language as tl

from .architecture import TileConfig, current_arch
from .configs import choose_config
from .launch import cost, kernel, on_device
from .tiles import inverse_norm, out_of_range, scaling_exponent, times_power_of_two

BLOCK = tl.constexpr(64)  # rows that share a maximum


def _metadata(grid, kernel, args):
    q, n, d = args["Q"], args["N"], args["D"]
    moved = n * (d * args["x_ptr"].element_size() + 1) + 4 * q * (d + n // 64)
    return cost("scan_rows", moved, flops32=2 * (q + 1) * n * d)


@triton.jit
def _products(
    query_row, query_mask, x_row, inside, exponent, D, stride_qd, stride_xd,
    BLOCK_N: tl.constexpr, BLOCK_M: tl.constexpr, BLOCK_K: tl.constexpr,
    PRECISION: tl.constexpr, SCALED: tl.constexpr, STAGES: tl.constexpr,
):  # fmt: skip
    """Products (BLOCK_N, BLOCK_M) of rows with queries, and squares (BLOCK_N,) of the rows."""
    column = tl.arange(0, BLOCK_K).to(tl.int64)
    acc = tl.zeros((BLOCK_N, BLOCK_M), dtype=tl.float32)
    squares = tl.zeros((BLOCK_N, BLOCK_K), dtype=tl.float32)
    for start in tl.range(0, D, BLOCK_K, num_stages=STAGES):
        d = (start + column)[None, :]
        x = tl.load(x_row[:, None] + d * stride_xd, mask=inside[:, None] & (d < D), other=0.0)
        query = tl.load(
            query_row[:, None] + d * stride_qd, mask=query_mask[:, None] & (d < D), other=0.0
        )
        x = x.to(tl.float32)
        if SCALED:
            x = times_power_of_two(x, -exponent[:, None])
        squares += x * x
        acc = tl.dot(x, query.T, acc, input_precision=PRECISION)
    return acc, tl.sum(squares, axis=1)


@kernel(launch_metadata=_metadata)
def _scan_rows_kernel(
    query_ptr,  # (Q, D) float32
    x_ptr,  # (N, D)
    out_ptr,  # (Q, BLOCKS) float32
    eligible_ptr,  # (N,) int8
    Q,
    N,
    D,
    stride_qn,
    stride_qd,
    stride_xn,
    stride_xd,
    stride_on,
    stride_ob,
    BLOCK_N: tl.constexpr,
    BLOCK_M: tl.constexpr,
    BLOCK_K: tl.constexpr,
    PRECISION: tl.constexpr,
    STAGES: tl.constexpr,
):
    """Write the largest estimate of each block of rows for each query, and which rows are finite.

    Owns BLOCK_N rows and BLOCK_M queries, whose tiles are innermost. One loop over D multiplies and
    sums squares of the same loads; rows whose squares leave float32's comfortable range send their
    tile through two more, from L2: one for the largest magnitudes, one with rows scaled by powers
    of two. Estimates stay in registers, their maxima are written.
    Moves the rows once and the queries from L2 once a tile; 2 (Q + 1) N D operations.
    """
    tiles_q = max(tl.cdiv(Q, BLOCK_M), 1)
    tile = tl.program_id(0)
    first = (tile // tiles_q).to(tl.int64) * BLOCK_N
    row = first + tl.arange(0, BLOCK_N)
    inside = row < N
    x_row = x_ptr + row * stride_xn
    number = (tile % tiles_q).to(tl.int64) * BLOCK_M + tl.arange(0, BLOCK_M)
    query_mask = number < Q
    query_row = query_ptr + number * stride_qn

    exponent = tl.zeros((BLOCK_N,), dtype=tl.int32)
    acc, square = _products(
        query_row, query_mask, x_row, inside, exponent, D, stride_qd, stride_xd,
        BLOCK_N, BLOCK_M, BLOCK_K, PRECISION, False, STAGES,
    )  # fmt: skip
    # Squares of float16 never leave float32's range.
    if x_ptr.dtype.element_ty != tl.float16:
        suspect = out_of_range(square) & inside
        if tl.max(suspect.to(tl.int32), axis=0) > 0:
            column = tl.arange(0, BLOCK_K).to(tl.int64)
            largest = tl.zeros((BLOCK_N,), dtype=tl.float32)
            for start in tl.range(0, D, BLOCK_K, num_stages=1):
                d = (start + column)[None, :]
                mask = suspect[:, None] & (d < D)
                x = tl.load(x_row[:, None] + d * stride_xd, mask=mask, other=0.0)
                largest = tl.maximum(largest, tl.max(tl.abs(x.to(tl.float32)), axis=1))
            exponent = scaling_exponent(largest, square, 0.0, D)
            # The rows in range have the exponent 0 and get what they had.
            acc, square = _products(
                query_row, query_mask, x_row, inside, exponent, D, stride_qd, stride_xd,
                BLOCK_N, BLOCK_M, BLOCK_K, PRECISION, True, 1,
            )  # fmt: skip

    finite = inside & (square < float("inf"))
    inverse = inverse_norm(square, exponent, 0.0)
    inverse = tl.where(square > 0, inverse, 0.0)  # a row of zeros scores 0
    if tile % tiles_q == 0:
        tl.store(eligible_ptr + row, finite.to(tl.int8), mask=inside)
    estimate = tl.where(finite[:, None], acc * inverse[:, None], float("-inf"))
    maxima = tl.max(tl.reshape(estimate, (BLOCK_N // BLOCK, BLOCK, BLOCK_M)), axis=1)
    block = first // BLOCK + tl.arange(0, BLOCK_N // BLOCK)
    out = out_ptr + number[None, :] * stride_on + block[:, None] * stride_ob
    tl.store(out, maxima, mask=query_mask[None, :] & (block < tl.cdiv(N, BLOCK))[:, None])


def launch_scan_rows(
    queries: torch.Tensor, x: torch.Tensor, config: TileConfig | None = None
) -> tuple[torch.Tensor, torch.Tensor]:
    """Return maxima (q, ceil(n / 64)) float32 and eligibility (n,) bool of rows x (n, d).

    ``queries`` z (q, d) are float32 numbers of at most 11 significant bits (tf32's), finite, of
    norm at most 2. The maximum is that of estimates of <z, x> / |x|, 0 for a row of zeros, over the
    finite rows of a block; -inf where there is none. Rows that hold NaN or an infinity are not
    eligible.

    The bound: an estimate is off by at most e |z|, e = t + (d + 16) 2^-21, where t = 2^-10 for
    float32 rows, and 0 for those of 16 bits, which tf32 holds exactly. With S = |z| |x| and
    Σ |z_i x_i| <= S:

    - A tensor core drops the bits of x that tf32 has no place for: less than 2^-10 of each x_i, so
      2^-10 S in all. z loses none.
    - It multiplies exactly and adds up K >= 4 products and the sum so far at a time, each of the
      K + 1 cut to 24 bits below the largest or finer, and cuts the sum to float32. Whatever it
      adds is at most S in magnitude, so that d / K additions err by (K + 2) (d / K) 2^-23 S <=
      1.5 d 2^-23 S < d 2^-22 S. Sums that are rounded err by d 2^-24 S. (Measured on V100, T4 and
      A100 by Fasi, Higham, Mikaitis and Pranesh, 2021, on newer ones by others: 24 bits or more.)
    - A float32 sum of d squares in any order errs by (d + 1) 2^-24 of itself at most, and 1 / |x|,
      with root, division and the product with it, by (d + 8) 2^-24, so that the product errs by as
      much of S / |x|.
    - What underflows: x was scaled so that |x| > 2^-50, and what is lost of z_i x_i is below
      2^-126; the bounds' absolute 2^-36 (`cosine_bounds`) hold it.

    Together t + (1.25 d + 2) 2^-22 to first order; (2 d + 32) 2^-22 holds their products too, up to
    d = 2^20.
    """
    q, (n, d) = queries.shape[0], x.shape
    maxima = queries.new_empty((q, triton.cdiv(n, 64)))
    eligible = x.new_empty((n,), dtype=torch.int8)
    if n == 0:
        return maxima, eligible.view(torch.bool)
    with on_device(x):
        name = "scan_rows_few" if q <= 16 else "scan_rows"
        config = config or choose_config(name, x.dtype, d, current_arch())
        tiles = triton.cdiv(n, config.block_n) * max(triton.cdiv(q, config.block_m), 1)
        _scan_rows_kernel[(tiles,)](
            queries,
            x,
            maxima,
            eligible,
            q,
            n,
            d,
            *queries.stride(),
            *x.stride(),
            *maxima.stride(),
            BLOCK_N=config.block_n,
            BLOCK_M=config.block_m,
            BLOCK_K=config.block_k,
            PRECISION=config.precision,
            STAGES=config.num_stages,
            **config.options(),
        )
    return maxima, eligible.view(torch.bool)
