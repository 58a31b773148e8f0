"""Rows of float32 as sums of 16-bit parts, split before they are multiplied.

One float16 part of rows scaled by powers of two is what "high" and "medium" multiply. For
"highest", three bfloat16 parts hold all 24 bits of a number, and six of their nine products count.
Two float16 parts of rows scaled by powers of two miss 2^-23 of a number at most, and three of their
products count: what the fourth adds is 2^-22 at most. Errors of cosines in units of 1e-8, mean and
largest (40 x 48 pairs, 16 x 16 at d = 8192), on tensor cores as modelled: 16 products and the sum
are cut two bits below the last one of the largest, added, and cut to float32.

    rows, d                       torch's    float32  | three parts  two parts  three, one sum
    Gaussian, 1                    0 / 0     3.1 / 12 |  4.4 / 18    5.8 / 42     4.4 / 18
    Gaussian, 65                 0.9 / 7.1   1.3 / 12 |  0.9 / 7.6   1.4 / 9.2    1.9 / 15
    Gaussian, 768               0.35 / 2.1  0.8 / 4.7 | 0.34 / 2.7  0.46 / 3.1     15 / 79
    Gaussian, 8192              0.16 / 1.0  0.3 / 1.2 | 0.19 / 1.3  0.21 / 1.4     48 / 160
    spread over e^8, 768        0.30 / 3.6  0.5 / 6.5 | 0.34 / 3.9  0.39 / 4.0    8.5 / 69
    nearly parallel, 768         6.3 / 26    12 / 63  |   12 / 40     21 / 47     440 / 600
    nearly parallel, 8192         10 / 30   8.7 / 29  |   17 / 68     23 / 74    4500 / 4800
    one entry of 1e4, 768       0.03 / 1.7 0.04 / 3.9 | 0.02 / 1.9  0.02 / 1.9    0.6 / 27
    1e38, 768                       wrong   0.8 / 4.3 | 0.30 / 2.4  0.42 / 2.5     14 / 63
    1e-40, 768                      wrong   0.8 / 5.9 | 0.33 / 3.2  0.41 / 2.8     10 / 55
    cancelling, 768              0.5 / 1.8    8 / 46  |  1.9 / 8.2   1.9 / 9.2    150 / 210

Torch's function and a float32 product of scaled rows ran on a CPU. The last column carries one sum
through all steps, as a plain loop does; the others start each step of 64 from zero and add it in
float32. A fourth product and a sum of their own for small products change little. Compensated sums
of the steps would take a third off at d = 8192, and nearly all from cancelling rows.
What is published of "highest", 2 (d + 4) 2^-24 = 60, 820, 9200 and 98000 of these units for the
four d, holds for both; of two parts the worst found was 48 at d = 1 and 54 at d = 2, of 60 and 72,
from numbers chosen to lose most. There torch's function is exact: no worse than twice its error are
three parts alone.
"""

from typing import NamedTuple

import torch
import triton
import triton.language as tl

from .architecture import TileConfig, current_arch
from .configs import choose_config
from .launch import cost, kernel, on_device
from .tiles import half_exponent, inverse_norm, load_tile, times_power_of_two

# By the number of parts a number is split into.
DTYPES = {1: torch.float16, 2: torch.float16, 3: torch.bfloat16}


def _metadata(grid, kernel, args):
    rows, d = args["ROWS_X"] + args["ROWS_Y"], args["D"]
    written = 2 * args["PARTS"] * args["WIDTH"]
    return cost("planes", rows * (4 * d + written + 4), flops32=(4 + args["PARTS"]) * rows * d)


@triton.jit
def _row_exponent(
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


@triton.jit
def _write_planes(
    x_ptr,  # (B, N, D) float32
    out_ptr,  # (B * PARTS, N, WIDTH) float16 or bfloat16
    inverse_ptr,  # (ROWS,) float32
    tile,
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
    PARTS: tl.constexpr,
    BLOCK_N: tl.constexpr,
    BLOCK_D: tl.constexpr,
):
    """Write the parts of BLOCK_N rows scaled by powers of two, and their inverse norms."""
    row = tl.cast(tile, tl.int64) * BLOCK_N + tl.arange(0, BLOCK_N)
    inside = row < ROWS
    x_row = x_ptr + (row // N) * stride_xb + (row % N) * stride_xn
    out_row = out_ptr + (row // N) * PARTS * stride_ob + (row % N) * stride_on
    exponent = _row_exponent(x_row, inside, stride_xd, D, BLOCK_N, BLOCK_D)

    column = tl.arange(0, BLOCK_D).to(tl.int64)
    squares = tl.zeros((BLOCK_N, BLOCK_D), dtype=tl.float32)
    for start in range(0, WIDTH, BLOCK_D):
        d = (start + column)[None, :]
        x = tl.load(x_row[:, None] + d * stride_xd, mask=inside[:, None] & (d < D), other=0.0)
        rest = times_power_of_two(x, -exponent[:, None])
        squares += rest * rest
        mask = inside[:, None] & (d < WIDTH)
        for part in tl.static_range(PARTS):
            rounded = rest.to(out_ptr.dtype.element_ty)
            out = out_row[:, None] + part * stride_ob + d * stride_od
            tl.store(out, rounded, mask=mask)
            rest -= rounded.to(tl.float32)
    inverse = inverse_norm(tl.sum(squares, axis=1), exponent, eps)
    tl.store(inverse_ptr + row, inverse, mask=inside)


@kernel(launch_metadata=_metadata)
def _planes_kernel(
    x_ptr,  # (B, N_X, D) float32
    y_ptr,  # (B, N_Y, D) float32, or None
    x_out_ptr,  # (B * PARTS, N_X, WIDTH) float16 or bfloat16
    y_out_ptr,  # (B * PARTS, N_Y, WIDTH), or None
    inverse_ptr,  # (ROWS_X + ROWS_Y,) float32
    ROWS_X,  # B * N_X
    ROWS_Y,  # B * N_Y, or 0
    N_X,
    N_Y,
    D,
    WIDTH,
    stride_xb,
    stride_xn,
    stride_xd,
    stride_yb,
    stride_yn,
    stride_yd,
    stride_xob,
    stride_xon,
    stride_xod,
    stride_yob,
    stride_yon,
    stride_yod,
    eps,
    PARTS: tl.constexpr,
    BLOCK_N: tl.constexpr,
    BLOCK_D: tl.constexpr,
):
    """Write rows of two inputs as sums of PARTS numbers, and 1 / max(norm, eps) of them.

    Owns BLOCK_N rows of x or of y. A first loop over D finds the largest entries, a second reads
    the same elements again, from L2, scales them by the row's power of two, and writes what each
    part leaves of them as the next, zeros from D to WIDTH; norms are those of the float32 entries.
    Moves the inputs and the outputs once; 4 + PARTS operations an element.
    """
    program = tl.program_id(0)
    tiles_x = tl.cdiv(ROWS_X, BLOCK_N)
    if program < tiles_x:
        _write_planes(
            x_ptr, x_out_ptr, inverse_ptr, program, ROWS_X, N_X, D, WIDTH,
            stride_xb, stride_xn, stride_xd, stride_xob, stride_xon, stride_xod, eps,
            PARTS, BLOCK_N, BLOCK_D,
        )  # fmt: skip
    elif y_ptr is not None:
        _write_planes(
            y_ptr, y_out_ptr, inverse_ptr + ROWS_X, program - tiles_x, ROWS_Y, N_Y, D, WIDTH,
            stride_yb, stride_yn, stride_yd, stride_yob, stride_yon, stride_yod, eps,
            PARTS, BLOCK_N, BLOCK_D,
        )  # fmt: skip


class Planes(NamedTuple):
    """What `launch_planes` gives of x (b, n, d) and of y (b, m, d): parts, and inverse norms."""

    x: torch.Tensor  # (b * parts, n, d'): the parts of a batch one after the other, largest first
    inverse_x: torch.Tensor  # (b * n,) float32
    y: torch.Tensor  # (b * parts, m, d')
    inverse_y: torch.Tensor  # (b * m,) float32


def launch_planes(
    x: torch.Tensor,
    y: torch.Tensor | None,
    eps: float,
    parts: int,
    config: TileConfig | None = None,
) -> Planes:
    """Split the rows of x and y, float32, by one launch; y=None is x.

    Each row is scaled by a power of two of its own, so that rows of any magnitude are right, and
    padded with zeros to a d' that loads in pieces of 16 bytes. The inverse is 1 / max(norm, eps) of
    the scaled row, NaN for one that is not finite: the sum of its parts' products with another
    row's, times both inverses, is their cosine. Memory: 2 (one part), 4 or 6 (three) bytes for each
    of the d' numbers of each row, beside the 4 of the input.
    """
    b, n, d = x.shape
    m = 0 if y is None else y.shape[1]
    width = triton.cdiv(d, 16) * 16
    x_out = x.new_empty((b * parts, n, width), dtype=DTYPES[parts])
    y_out = None if y is None else x.new_empty((b * parts, m, width), dtype=DTYPES[parts])
    inverse = x.new_empty((b * (n + m),), dtype=torch.float32)
    if inverse.numel() > 0:
        with on_device(x):
            config = config or choose_config("planes", x.dtype, d, current_arch())
            tiles = triton.cdiv(b * n, config.block_n) + triton.cdiv(b * m, config.block_n)
            _planes_kernel[(tiles,)](
                x,
                y,
                x_out,
                y_out,
                inverse,
                b * n,
                b * m,
                n,
                m,
                d,
                width,
                *x.stride(),
                *(x if y is None else y).stride(),
                *x_out.stride(),
                *(x_out if y is None else y_out).stride(),
                float(eps),
                PARTS=parts,
                BLOCK_N=config.block_n,
                BLOCK_D=config.block_k,
                **config.options(),
            )
    of_x, of_y = slice(b * n), slice(None) if y is None else slice(b * n, None)
    return Planes(x_out, inverse[of_x], x_out if y is None else y_out, inverse[of_y])


@triton.jit
def planes_product(
    x_ptr,  # (B * PARTS, N, D), or a descriptor of it
    y_ptr,  # (B * PARTS, M, D), or a descriptor of it
    stride_xb,
    stride_xn,
    stride_xd,
    stride_yb,
    stride_ym,
    stride_yd,
    batch,
    first_n,
    first_m,
    N,
    M,
    D,
    BLOCK_N: tl.constexpr,
    BLOCK_M: tl.constexpr,
    BLOCK_K: tl.constexpr,
    DESCRIPTORS: tl.constexpr,
    PARTS: tl.constexpr,
):
    """Inner products of a tile of rows: the sum of the products of parts that count.

    Each step starts from zero, its small products first, and is added in float32: tensor cores cut
    off what is smaller than the last bits of a sum.
    """
    acc = tl.zeros((BLOCK_N, BLOCK_M), dtype=tl.float32)
    plane = batch * PARTS
    for k in range(0, D, BLOCK_K):
        x = load_tile(
            x_ptr, stride_xb, stride_xn, stride_xd, plane, first_n, k, N, D,
            BLOCK_N, BLOCK_K, DESCRIPTORS,
        )  # fmt: skip
        y = load_tile(
            y_ptr, stride_yb, stride_ym, stride_yd, plane, first_m, k, M, D,
            BLOCK_M, BLOCK_K, DESCRIPTORS,
        )  # fmt: skip
        x_second = load_tile(
            x_ptr, stride_xb, stride_xn, stride_xd, plane + 1, first_n, k, N, D,
            BLOCK_N, BLOCK_K, DESCRIPTORS,
        )  # fmt: skip
        y_second = load_tile(
            y_ptr, stride_yb, stride_ym, stride_yd, plane + 1, first_m, k, M, D,
            BLOCK_M, BLOCK_K, DESCRIPTORS,
        )  # fmt: skip
        if PARTS == 3:
            x_third = load_tile(
                x_ptr, stride_xb, stride_xn, stride_xd, plane + 2, first_n, k, N, D,
                BLOCK_N, BLOCK_K, DESCRIPTORS,
            )  # fmt: skip
            y_third = load_tile(
                y_ptr, stride_yb, stride_ym, stride_yd, plane + 2, first_m, k, M, D,
                BLOCK_M, BLOCK_K, DESCRIPTORS,
            )  # fmt: skip
            product = tl.dot(x_third, y.T)
            product = tl.dot(x, y_third.T, product)
            product = tl.dot(x_second, y_second.T, product)
            product = tl.dot(x_second, y.T, product)
        else:
            product = tl.dot(x_second, y.T)
        product = tl.dot(x, y_second.T, product)
        acc += tl.dot(x, y.T, product)
    return acc
