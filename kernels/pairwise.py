"""Cosine similarity of every row of x with every row of y."""

import torch
import triton
import triton.language as tl

from .architecture import TileConfig, current_arch
from .configs import choose_config
from .launch import (
    aligned_rows,
    cdiv,
    kernel,
    multiprocessors,
    on_device,
    same_rows,
    tiled_product,
)
from .pairwise_persistent import (
    _pairwise_fwd_persistent_kernel,
    forward_cost,
    goes_on,
    half_tiles,
)
from .planes import launch_planes, planes_product
from .row_norm import RowNorms, launch_row_norms
from .tiles import clamp_cosine, grouped_tile, load_tile, times_power_of_two

# Programs that look for rows with exponents: one or two for each multiprocessor of today's devices.
SCALED_PROGRAMS = 256


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


@triton.jit
def _tile(
    x_ptr,
    y_ptr,
    inverse_x_ptr,
    inverse_y_ptr,
    out_ptr,
    exponent_x,  # (BLOCK_N,)
    exponent_y,  # (BLOCK_M,)
    batch,
    first_n,
    first_m,
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
    PRECISION: tl.constexpr,
    DESCRIPTORS: tl.constexpr,
    SYMMETRIC: tl.constexpr,
    SCALED: tl.constexpr,
    PARTS: tl.constexpr = 1,
):
    """Write one tile of cosines, of rows scaled by 2**-exponent if SCALED.

    If SYMMETRIC, write what lies on or below the diagonal, there and mirrored.
    """
    if PARTS > 1:
        acc = planes_product(
            x_ptr, y_ptr, stride_xb, stride_xn, stride_xd, stride_yb, stride_ym, stride_yd,
            batch, first_n, first_m, N, M, D, BLOCK_N, BLOCK_M, BLOCK_K, DESCRIPTORS, PARTS,
        )  # fmt: skip
    else:
        acc = _product(
            x_ptr, y_ptr, stride_xb, stride_xn, stride_xd, stride_yb, stride_ym, stride_yd,
            exponent_x, exponent_y, batch, first_n, first_m, N, M, D,
            BLOCK_N, BLOCK_M, BLOCK_K, PRECISION, DESCRIPTORS, SCALED,
        )  # fmt: skip
    row = tl.cast(first_n, tl.int64) + tl.arange(0, BLOCK_N)
    column = tl.cast(first_m, tl.int64) + tl.arange(0, BLOCK_M)
    row_mask = row < N
    column_mask = column < M
    flat_row = tl.cast(batch, tl.int64) * N + row
    flat_column = tl.cast(batch, tl.int64) * M + column
    inverse_x = tl.load(inverse_x_ptr + flat_row, mask=row_mask, other=0.0)
    inverse_y = tl.load(inverse_y_ptr + flat_column, mask=column_mask, other=0.0)
    c = clamp_cosine(acc * inverse_x[:, None] * inverse_y[None, :]).to(out_ptr.dtype.element_ty)
    batch_ptr = out_ptr + tl.cast(batch, tl.int64) * stride_ob
    out = batch_ptr + row[:, None] * stride_on + column[None, :] * stride_om
    mask = row_mask[:, None] & column_mask[None, :]
    if SYMMETRIC:
        mirrored = batch_ptr + column[:, None] * stride_on + row[None, :] * stride_om
        mirrored_mask = column_mask[:, None] & row_mask[None, :]
        # Only where needed: a mask that changes from element to element lets no store be wide.
        if first_m + BLOCK_M > first_n:
            tl.store(out, c, mask=mask & (column[None, :] <= row[:, None]))
            below = column[:, None] < row[None, :]
            tl.store(mirrored, tl.trans(c), mask=mirrored_mask & below)
        else:
            tl.store(out, c, mask=mask)
            tl.store(mirrored, tl.trans(c), mask=mirrored_mask)
    else:
        tl.store(out, c, mask=mask)


@kernel(launch_metadata=forward_cost)
def _pairwise_fwd_kernel(
    x_ptr,  # (B * PARTS, N, D), or a descriptor of it
    y_ptr,  # (B * PARTS, M, D), or a descriptor of it
    inverse_x_ptr,  # (B * N,) float32
    inverse_y_ptr,  # (B * M,) float32
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
    SYMMETRIC: tl.constexpr,
    PARTS: tl.constexpr = 1,
):
    """Write one BLOCK_N x BLOCK_M tile of cosines.

    Owns one tile of one batch, in groups of GROUP row tiles that share column tiles in L2. Loops
    over D in steps of BLOCK_K, keeps the float32 sums in registers, multiplies them by the inverse
    norms in the epilogue and writes the tile once. Tiles that hold a row with an exponent are
    written again by the next kernel. If SYMMETRIC, y is x: tiles above the diagonal are left out,
    the others are written twice, once mirrored.
    Moves (N + M) D inputs at best, N M outputs; 2 N M D operations, N M D if SYMMETRIC.
    """
    tiles_n = tl.cdiv(N, BLOCK_N)
    tiles_m = tl.cdiv(M, BLOCK_M)
    program = tl.program_id(0)
    batch = program // (tiles_n * tiles_m)
    tile_n, tile_m = grouped_tile(program % (tiles_n * tiles_m), tiles_n, tiles_m, GROUP)
    first_n = tile_n * BLOCK_N
    first_m = tile_m * BLOCK_M
    wanted = True
    if SYMMETRIC:
        wanted = first_m < first_n + BLOCK_N
    if wanted:
        _tile(
            x_ptr, y_ptr, inverse_x_ptr, inverse_y_ptr, out_ptr, 0, 0, batch, first_n, first_m,
            N, M, D, stride_xb, stride_xn, stride_xd, stride_yb, stride_ym, stride_yd,
            stride_ob, stride_on, stride_om,
            BLOCK_N, BLOCK_M, BLOCK_K, PRECISION, DESCRIPTORS, SYMMETRIC, SCALED=False, PARTS=PARTS,
        )  # fmt: skip


@kernel()
def _pairwise_fwd_scaled_kernel(
    x_ptr,  # (B, N, D), or a descriptor of it
    y_ptr,  # (B, M, D), or a descriptor of it
    inverse_x_ptr,  # (B * N,) float32
    inverse_y_ptr,  # (B * M,) float32
    exponent_x_ptr,  # (B * N,) int32
    exponent_y_ptr,  # (B * M,) int32
    any_scaled_ptr,  # () int32
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
    SYMMETRIC: tl.constexpr,
):
    """Write the tiles that hold a row with an exponent again, from scaled rows.

    A few programs share the tiles, and return at once where no row has an exponent, which is the
    usual case. In the kernel above, a branch for it cost bfloat16 0.4 of 1.3 ms (16384 rows of 768,
    H200): every tile then waits for its exponents before it multiplies.
    """
    tiles_n = tl.cdiv(N, BLOCK_N)
    tiles_m = tl.cdiv(M, BLOCK_M)
    tiles = B * tiles_n * tiles_m * tl.load(any_scaled_ptr)
    for tile in range(tl.program_id(0), tiles, tl.num_programs(0)):
        batch = tile // (tiles_n * tiles_m)
        tile_n, tile_m = grouped_tile(tile % (tiles_n * tiles_m), tiles_n, tiles_m, GROUP)
        first_n = tile_n * BLOCK_N
        first_m = tile_m * BLOCK_M
        row = tl.cast(first_n, tl.int64) + tl.arange(0, BLOCK_N)
        column = tl.cast(first_m, tl.int64) + tl.arange(0, BLOCK_M)
        x_exponents = exponent_x_ptr + tl.cast(batch, tl.int64) * N
        y_exponents = exponent_y_ptr + tl.cast(batch, tl.int64) * M
        exponent_x = tl.load(x_exponents + row, mask=row < N, other=0)
        exponent_y = tl.load(y_exponents + column, mask=column < M, other=0)
        largest = tl.max(tl.abs(exponent_x), axis=0) + tl.max(tl.abs(exponent_y), axis=0)
        wanted = largest > 0
        if SYMMETRIC:
            wanted = wanted & (first_m < first_n + BLOCK_N)
        if wanted:
            _tile(
                x_ptr, y_ptr, inverse_x_ptr, inverse_y_ptr, out_ptr, exponent_x, exponent_y,
                batch, first_n, first_m,
                N, M, D, stride_xb, stride_xn, stride_xd, stride_yb, stride_ym, stride_yd,
                stride_ob, stride_on, stride_om,
                BLOCK_N, BLOCK_M, BLOCK_K, PRECISION, DESCRIPTORS, SYMMETRIC, SCALED=True,
            )  # fmt: skip


def _planes_tile(x: torch.Tensor, config: TileConfig | None) -> TileConfig | None:
    """Return the tile of a product of planes of rows such as x, None if they are not split so."""
    if x.dtype != torch.float32:
        return None
    if config is None:
        with on_device(x):
            config = choose_config("pairwise_fwd", x.dtype, x.shape[-1], current_arch(), True)
    return config if config.planes else None


def launch_pairwise_fwd(
    x: torch.Tensor,
    y: torch.Tensor,
    eps: float,
    precision: str = "highest",
    out_dtype: torch.dtype | None = None,
    config: TileConfig | None = None,
    norms: RowNorms | None = None,
    out: torch.Tensor | None = None,
) -> torch.Tensor:
    """Return the cosines (b, n, m) of the rows of x (b, n, d) and y (b, m, d), any strides.

    If y is x, half of the matrix is computed and mirrored, so that it is symmetric to the bit.
    ``precision`` concerns float32 inputs alone. "highest" is full float32: each factor is split
    into three bfloat16 parts and the six products that count are summed, so that the split errs by
    2e-8 at most where float32 sums err by 5e-7 (d = 768); six bfloat16 products cost 0.4 of a
    float32 product without tensor cores by published peaks. "high" and "medium" are one product of
    rows scaled by powers of two and rounded to float16, whose 11 bits are those of tf32, at twice
    its rate: a tf32 product took 1.4 ms and three of them 5.0 where a float16 product takes 0.74
    (16384 rows of 768, H200).
    A tile whose ``planes`` is not 0 has "highest" split the rows beforehand, in a pass that takes
    norms and scales too: see planes.py for its errors and its memory.
    Rows that are not aligned to 16 bytes, or whose d is no multiple of 16, are copied first.
    ``norms`` are those of x and y where they are known; rows that are rounded have others. ``out``
    (b, n, m) is written to, of any strides and dtype, where there is one.
    """
    (b, n, d), m = x.shape, y.shape[1]
    if out is None:
        out = x.new_empty((b, n, m), dtype=out_dtype or torch.result_type(x, y))
    if out.numel() == 0 or d == 0:
        return out.zero_()
    symmetric = same_rows(x, y)
    halved = x.dtype == torch.float32 and precision != "highest"
    split = None if halved else _planes_tile(x, config)
    config = split or config
    parts = 1 if halved else split.planes if split else 0
    if parts:
        x, inverse_x, y, inverse_y = launch_planes(x, None if symmetric else y, eps, parts)
    else:
        x = aligned_rows(x)
        y = x if symmetric else aligned_rows(y)
        norms = norms or launch_row_norms(x, None if symmetric else y, eps)
        inverse_x, inverse_y = norms.inverse_x, norms.inverse_y
    d = x.shape[-1]
    with on_device(x):
        sizes = (b, n, m, d, *x.stride(), *y.stride(), *out.stride())

        def launch(
            kernel, product: tuple, most: int | None, *rest: object, **more: int | bool
        ) -> None:
            tile, x_source, y_source = product
            tiles = b * cdiv(n, tile.block_n) * cdiv(m, tile.block_m)
            kernel[(min(tiles, most or tiles),)](
                x_source,
                y_source,
                inverse_x,
                inverse_y,
                *rest,
                out,
                *sizes,
                BLOCK_N=tile.block_n,
                BLOCK_M=tile.block_m,
                BLOCK_K=tile.block_k,
                GROUP=tile.group,
                PRECISION=tile.precision,
                DESCRIPTORS=tile.descriptors,
                SYMMETRIC=symmetric,
                **more,
                **tile.options(),
            )

        # What is written twice, in float32 or scaled, takes narrower tiles of 16-bit rows.
        twice = symmetric and x.dtype != torch.float32
        name = "pairwise_fwd_mirrored" if twice and out.dtype == torch.float32 else "pairwise_fwd"
        product = tiled_product(name, x, y, config)
        tile = product[0]
        if goes_on(tile, out):
            halves, most = half_tiles(tile, out), multiprocessors()
            launch(_pairwise_fwd_persistent_kernel, product, most, halves, FLATTEN=tile.flatten)
        else:
            launch(_pairwise_fwd_kernel, product, None, PARTS=parts or 1)
        # Squares of float16 never leave float32's range, nor do those of scaled rows.
        if not parts and x.dtype != torch.float16:
            exponents = norms.exponent_x, norms.exponent_y, norms.any_scaled
            name = "pairwise_fwd_scaled_mirrored" if twice else "pairwise_fwd_scaled"
            product = tiled_product(name, x, y, config)
            launch(_pairwise_fwd_scaled_kernel, product, SCALED_PROGRAMS, *exponents)
    return out
