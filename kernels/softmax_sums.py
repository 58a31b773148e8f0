"""Sums of a softmax loss over the negatives of each row and column, with no matrix in memory."""

import torch
import triton
import triton.language as tl

from .architecture import TileConfig
from .launch import aligned_rows, cost, element_size, kernel, on_device, tiled_product
from .row_norm import launch_row_norm, launch_unit_rows
from .tiles import grouped_tile, load_tile

# Logits are counted in bits, as the losses on CPU count them: exp2 is the device's own function.
BITS = 1.4426950408889634
_BITS = tl.constexpr(BITS)


def _metadata(grid, kernel, args):
    n, m, d = args["N"], args["M"], args["D"]
    size = element_size(args["x_ptr"])
    partials = 8 * n * -(-m // args["BLOCK_M"])
    if args["SYMMETRIC"]:
        partials += 8 * m * -(-n // args["BLOCK_N"])
    moved = (n + m) * (d * size + 4) + 8 * n + partials
    return cost("softmax_sums", moved, **{f"flops{8 * size}": 2 * n * m * d})


@triton.jit
def cosine_tile(
    x_ptr,
    y_ptr,
    inverse_x_ptr,
    inverse_y_ptr,
    first_n,
    first_m,
    N,
    M,
    D,
    stride_xn,
    stride_xd,
    stride_ym,
    stride_yd,
    BLOCK_N: tl.constexpr,
    BLOCK_M: tl.constexpr,
    BLOCK_K: tl.constexpr,
    PRECISION: tl.constexpr,
    DESCRIPTORS: tl.constexpr,
):
    """Cosines (BLOCK_N, BLOCK_M) of a tile of rows, as float32 sums give them: not clamped."""
    acc = tl.zeros((BLOCK_N, BLOCK_M), dtype=tl.float32)
    for k in range(0, D, BLOCK_K):
        x = load_tile(
            x_ptr, 0, stride_xn, stride_xd, 0, first_n, k, N, D, BLOCK_N, BLOCK_K, DESCRIPTORS
        )
        y = load_tile(
            y_ptr, 0, stride_ym, stride_yd, 0, first_m, k, M, D, BLOCK_M, BLOCK_K, DESCRIPTORS
        )
        acc = tl.dot(x, y.T, acc, input_precision=PRECISION)
    row = tl.cast(first_n, tl.int64) + tl.arange(0, BLOCK_N)
    column = tl.cast(first_m, tl.int64) + tl.arange(0, BLOCK_M)
    inverse_x = tl.load(inverse_x_ptr + row, mask=row < N, other=0.0)
    inverse_y = tl.load(inverse_y_ptr + column, mask=column < M, other=0.0)
    return acc * inverse_x[:, None] * inverse_y[None, :]


@triton.jit
def positive_within(
    positive_ptr,  # (N,) int64
    first_n,
    first_m,
    N,
    BLOCK_N: tl.constexpr,
    BLOCK_M: tl.constexpr,
):
    """Column of each row's positive within the tile (BLOCK_N,), -1 if elsewhere: 32 bits."""
    row = tl.cast(first_n, tl.int64) + tl.arange(0, BLOCK_N)
    within = tl.load(positive_ptr + row, mask=row < N, other=-1) - first_m
    return tl.where((within >= 0) & (within < BLOCK_M), within, -1).to(tl.int32)


@triton.jit
def negatives(
    positive,  # (BLOCK_N,), as `positive_within` gives it
    id_x_ptr,  # (N,) int64, or None
    id_y_ptr,  # (M,) int64, or None
    first_n,
    first_m,
    N,
    M,
    BLOCK_N: tl.constexpr,
    BLOCK_M: tl.constexpr,
):
    """Which pairs (BLOCK_N, BLOCK_M) are negatives: within both, no positive, of unequal ids."""
    row = tl.cast(first_n, tl.int64) + tl.arange(0, BLOCK_N)
    column = tl.cast(first_m, tl.int64) + tl.arange(0, BLOCK_M)
    keep = (row < N)[:, None] & (column < M)[None, :]
    keep &= tl.arange(0, BLOCK_M)[None, :] != positive[:, None]
    if id_x_ptr is not None:
        id_x = tl.load(id_x_ptr + row, mask=row < N, other=0)
        id_y = tl.load(id_y_ptr + column, mask=column < M, other=0)
        keep &= id_x[:, None] != id_y[None, :]
    return keep


@triton.jit
def _maxima_and_sums(c, bits, AXIS: tl.constexpr):
    """Largest cosines along an axis, and sums of 2**(bits * (c - largest)); -inf is left out.

    Of an axis that holds NaN, the sum is NaN whatever the maximum; of one that is left out whole,
    the maximum is -inf and the sum 0.
    """
    largest = tl.max(c, axis=AXIS)
    shift = tl.where(largest > float("-inf"), largest, 0.0)
    sums = tl.sum(tl.exp2((c - tl.expand_dims(shift, AXIS)) * bits), axis=AXIS)
    return largest, sums


@kernel(launch_metadata=_metadata)
def _softmax_sums_kernel(
    x_ptr,  # (1, N, D), or a descriptor of it
    y_ptr,  # (1, M, D), or a descriptor of it
    inverse_x_ptr,  # (N,) float32
    inverse_y_ptr,  # (M,) float32
    scale_ptr,  # () float32
    positive_ptr,  # (N,) int64
    id_x_ptr,  # (N,) int64, or None
    id_y_ptr,  # (M,) int64, or None
    rows_ptr,  # (2, N, cdiv(M, BLOCK_M)) float32: maxima, sums
    columns_ptr,  # (2, cdiv(N, BLOCK_N), M) float32, or None
    N,
    M,
    D,
    stride_xn,
    stride_xd,
    stride_ym,
    stride_yd,
    stride_rp,
    stride_rn,
    stride_rt,
    stride_cp,
    stride_ct,
    stride_cm,
    BLOCK_N: tl.constexpr,
    BLOCK_M: tl.constexpr,
    BLOCK_K: tl.constexpr,
    GROUP: tl.constexpr,
    PRECISION: tl.constexpr,
    DESCRIPTORS: tl.constexpr,
    SYMMETRIC: tl.constexpr,
):
    """Write the largest cosine and the sum of powers over a tile's negatives, for each of its rows.

    Owns one tile, in groups of GROUP row tiles that share column tiles in L2. Loops over D in steps
    of BLOCK_K, keeps the cosines in registers, masks what is no negative, reduces along rows and,
    if SYMMETRIC, along columns: the cosines never leave the registers.
    Moves (N + M) D inputs at best and 8 bytes a row and column tile; 2 N M D operations, and an
    exponential or two a pair.
    """
    tile_n, tile_m = grouped_tile(tl.program_id(0), tl.cdiv(N, BLOCK_N), tl.cdiv(M, BLOCK_M), GROUP)
    first_n = tile_n * BLOCK_N
    first_m = tile_m * BLOCK_M
    c = cosine_tile(
        x_ptr, y_ptr, inverse_x_ptr, inverse_y_ptr, first_n, first_m, N, M, D,
        stride_xn, stride_xd, stride_ym, stride_yd,
        BLOCK_N, BLOCK_M, BLOCK_K, PRECISION, DESCRIPTORS,
    )  # fmt: skip
    positive = positive_within(positive_ptr, first_n, first_m, N, BLOCK_N, BLOCK_M)
    keep = negatives(positive, id_x_ptr, id_y_ptr, first_n, first_m, N, M, BLOCK_N, BLOCK_M)
    c = tl.where(keep, c, float("-inf"))
    bits = tl.load(scale_ptr) * _BITS
    row = tl.cast(first_n, tl.int64) + tl.arange(0, BLOCK_N)
    largest, sums = _maxima_and_sums(c, bits, 1)
    part = rows_ptr + row * stride_rn + tl.cast(tile_m, tl.int64) * stride_rt
    tl.store(part, largest, mask=row < N)
    tl.store(part + stride_rp, sums, mask=row < N)
    if SYMMETRIC:
        column = tl.cast(first_m, tl.int64) + tl.arange(0, BLOCK_M)
        largest, sums = _maxima_and_sums(c, bits, 0)
        part = columns_ptr + tl.cast(tile_n, tl.int64) * stride_ct + column * stride_cm
        tl.store(part, largest, mask=column < M)
        tl.store(part + stride_cp, sums, mask=column < M)


def launch_scaled_rows(x: torch.Tensor, eps: float) -> tuple[torch.Tensor, torch.Tensor]:
    """Return rows (n, d') of x (n, d) that load in 16-byte pieces, and their inverse norms (n,).

    Rows whose squares leave float32's range are multiplied by a power of two, exactly: the inverse
    is 1 / max(norm, eps) of the row that is returned, NaN for one that is not finite. Scaling costs
    a pass over the rows, which float16 does without: its squares never leave that range.
    """
    inverse, exponent = launch_row_norm(x[None], eps)
    if x.dtype == torch.float16:
        return aligned_rows(x), inverse
    ones = torch.ones_like(inverse)
    return launch_unit_rows(x[None], ones, exponent, x.dtype)[0], inverse


def launch_softmax_sums(
    x: torch.Tensor,
    inverse_x: torch.Tensor,
    y: torch.Tensor,
    inverse_y: torch.Tensor,
    scale: torch.Tensor,
    positives: torch.Tensor,
    ids: tuple[torch.Tensor, torch.Tensor] | None = None,
    symmetric: bool = False,
    config: TileConfig | None = None,
) -> tuple[torch.Tensor, torch.Tensor | None]:
    """Return maxima and sums of tiles: of rows (2, n, tiles_m) and, if symmetric, (2, tiles_n, m).

    Args:
        x: rows (n, d) as `launch_scaled_rows` gives them.
        inverse_x: float32 (n,), their inverse norms; ones where rows are taken as they are.
        y: rows (m, d), likewise.
        inverse_y: float32 (m,).
        scale: float32 (), what cosines are multiplied by, above 0; on the device, so that a scale
            that is learnt is not waited for.
        positives: int64 (n,), the row of y that is no negative of each row of x, -1 for none.
        ids: int64 (n,) and (m,): pairs of equal ids are not negatives.
        symmetric: sum over the negatives of each row of y too.
        config: the tile, if not the one that is chosen.

    First is the largest cosine of the negatives within a tile, -inf where there are none, second
    the sum of exp(scale * (cosine - largest)) over them, NaN where one of them is. `log2_sums`
    makes one number a row of them.
    """
    n, m = x.shape[0], y.shape[0]
    x, y = aligned_rows(x), aligned_rows(y)
    d = x.shape[1]
    with on_device(x):
        tile, x_source, y_source = tiled_product("softmax_sums", x[None], y[None], config)
        tiles_n, tiles_m = triton.cdiv(n, tile.block_n), triton.cdiv(m, tile.block_m)
        rows = x.new_empty((2, n, tiles_m), dtype=torch.float32)
        columns = x.new_empty((2, tiles_n, m), dtype=torch.float32) if symmetric else None
        if n == 0 or m == 0:
            return rows, columns
        id_x, id_y = (None, None) if ids is None else (part.contiguous() for part in ids)
        _softmax_sums_kernel[(tiles_n * tiles_m,)](
            x_source,
            y_source,
            inverse_x,
            inverse_y,
            scale,
            positives.contiguous(),
            id_x,
            id_y,
            rows,
            columns,
            n,
            m,
            d,
            *x.stride(),
            *y.stride(),
            *rows.stride(),
            *(rows if columns is None else columns).stride(),
            BLOCK_N=tile.block_n,
            BLOCK_M=tile.block_m,
            BLOCK_K=tile.block_k,
            GROUP=tile.group,
            PRECISION=tile.precision,
            DESCRIPTORS=tile.descriptors,
            SYMMETRIC=symmetric,
            **tile.options(),
        )
    return rows, columns


def log2_sums(
    partials: torch.Tensor, scale: torch.Tensor, shift: torch.Tensor, dim: int
) -> torch.Tensor:
    """Return log2 of the sums of exp(scale * (cosine - shift)), float64, in a fixed order.

    Args:
        partials: (2, n, tiles) or (2, tiles, m) of `launch_softmax_sums`.
        scale: the one that it was given.
        shift: (n,) or (m,), the cosine that each row's are relative to: of its positive.
        dim: of the tiles, 1 or 0.

    -inf where there are no negatives. Relative to the positive, saturated rows keep their digits.
    """
    maxima, sums = partials.double()
    bits = scale.double() * BITS
    if maxima.shape[dim] == 0:
        return torch.full_like(shift, -torch.inf, dtype=torch.float64)
    largest = maxima.amax(dim)
    largest = torch.where(largest > -torch.inf, largest, 0.0)
    powers = torch.exp2((maxima - largest.unsqueeze(dim)) * bits)
    return (powers * sums).sum(dim).log2() + (largest - shift.double()) * bits
