"""Cosines of every row of x with every row of y, by programs that go from tile to tile."""

import torch
import triton
import triton.language as tl
from triton.tools.tensor_descriptor import TensorDescriptor

from .architecture import TileConfig
from .launch import cost, describable, descriptor, element_size, kernel
from .tiles import clamp_cosine, grouped_tile, load_tile


def forward_cost(grid, kernel, args):
    """Launch metadata of a kernel that writes the matrix of cosines."""
    b, n, m, d = args["B"], args["N"], args["M"], args["D"]
    size, parts = element_size(args["x_ptr"]), args.get("PARTS", 1)
    moved = b * ((n + m) * d * parts * size + n * m * args["out_ptr"].element_size())
    products = parts * (parts + 1) // 2
    operations = (1 if args["SYMMETRIC"] else 2) * products * b * n * m * d
    return cost("pairwise_fwd", moved, **{f"flops{8 * size}": operations})


@triton.jit
def triangle_size(TILES_N, RATIO: tl.constexpr):
    """How many tiles lie on or below the diagonal, each RATIO times as wide as it is high."""
    whole = TILES_N // RATIO
    squares = ((whole + 1) // 2) * (whole | 1)  # whole * (whole + 1) / 2, whose product may be 2^32
    return squares * RATIO + (TILES_N - whole * RATIO) * (whole + 1)


@triton.jit
def triangle_tile(tile, TILES_N, RATIO: tl.constexpr, GROUP: tl.constexpr):
    """Map a linear index to a tile on or below the diagonal, so that GROUP row tiles share columns.

    A tile is RATIO times as wide as it is high, and RATIO divides GROUP. The group of row tiles
    next to the top comes before the one at the bottom, and so on inwards: each two of them have
    equally many tiles, so that a division tells where an index belongs. A last group that is not
    whole comes at the end. Within a group the row tile moves fastest, as in grouped_tile; at the
    diagonal each column of tiles is followed by the one that complements it in the same way.
    """
    squares: tl.constexpr = GROUP // RATIO
    corner: tl.constexpr = RATIO * squares * (squares + 1) // 2  # tiles of a group at the diagonal
    groups = TILES_N // GROUP
    pair = GROUP * squares * (groups - 1) + 2 * corner
    group = tile // pair
    within = tile % pair
    size = GROUP * squares * group + corner
    lower = within >= size
    within = tl.where(lower, within - size, within)
    group = tl.where(lower, groups - 1 - group, group)
    whole = triangle_size(groups * GROUP, RATIO)
    last = tile >= whole
    within = tl.where(last, tile - whole, within)
    first = tl.where(last, groups, group) * GROUP
    rows = tl.minimum(TILES_N - first, GROUP)

    left = first // RATIO  # columns of tiles to the left of the diagonal
    beside = within < left * rows
    columns = tl.cdiv(rows, RATIO)
    two = 2 * rows - (columns - 1) * RATIO
    corner_tile = tl.where(beside, 0, within - left * rows)
    column = corner_tile // two
    row = corner_tile % two
    length = rows - column * RATIO
    complement = row >= length
    row = tl.where(complement, row - length, row)
    column = tl.where(complement, columns - 1 - column, column)
    row = tl.where(beside, within % rows, row + column * RATIO)
    column = tl.where(beside, within // rows, left + column)
    return first + row, column


@triton.jit
def _store_half(half_ptr, c, batch, first_n, first_m):
    """Store half a tile by descriptor, which leaves out what lies beyond the result."""
    half_ptr.store([batch, first_n, first_m], tl.reshape(c, (1, c.shape[0], c.shape[1])))


@kernel(launch_metadata=forward_cost)
def _pairwise_fwd_persistent_kernel(
    x_ptr,  # descriptor of (B, N, D)
    y_ptr,  # descriptor of (B, M, D)
    inverse_x_ptr,  # (B * N,) float32
    inverse_y_ptr,  # (B * M,) float32
    half_ptr,  # descriptor of (B, N, M), BLOCK_N rows and BLOCK_M / 2 columns at a time
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
    FLATTEN: tl.constexpr,
):
    """Write every BLOCK_N x BLOCK_M tile of cosines whose number is the program's, and so on.

    One program a multiprocessor goes from tile to tile in the order of the other kernel, with the
    same sums in the same order, so that the bits are the same. Loads and stores by descriptor; a
    tile is stored in two halves through one buffer, which is waited for when it is filled again, so
    that a half leaves while the next tile is multiplied. If FLATTEN, the loops over tiles and over
    D are one, and the next tile's first loads are issued before the halves are stored.
    If SYMMETRIC, y is x, and halves are squares: those below the diagonal are stored twice, once
    mirrored, those on it once, with what lies below mirrored in registers; the others are left out.
    Moves (N + M) D inputs at best, N M outputs; 2 N M D operations, N M D if SYMMETRIC.
    """
    HALF: tl.constexpr = BLOCK_M // 2
    tl.static_assert(DESCRIPTORS, "programs that go from tile to tile load by descriptor")
    tl.static_assert(not SYMMETRIC or (HALF == BLOCK_N and GROUP % 2 == 0), "halves are squares")
    tl.assume(D > 0)  # or the flattened loop has a second epilogue, for no steps at all
    tiles_n = tl.cdiv(N, BLOCK_N)
    tiles_m = tl.cdiv(M, BLOCK_M)
    tiles = triangle_size(tiles_n, 2) if SYMMETRIC else tiles_n * tiles_m
    # Mirroring float32 in registers takes 64 KiB, which nothing else may need at the time.
    flatten: tl.constexpr = FLATTEN and not (SYMMETRIC and out_ptr.dtype.element_ty == tl.float32)
    program, programs = tl.program_id(0), tl.num_programs(0)
    for tile in tl.range(program, B * tiles, programs, flatten=flatten):
        batch = tile // tiles
        if SYMMETRIC:
            tile_n, tile_m = triangle_tile(tile % tiles, tiles_n, 2, GROUP)
        else:
            tile_n, tile_m = grouped_tile(tile % tiles, tiles_n, tiles_m, GROUP)
        first_n = tile_n * BLOCK_N
        first_m = tile_m * BLOCK_M
        acc = tl.zeros((BLOCK_N, BLOCK_M), dtype=tl.float32)
        for k in range(0, D, BLOCK_K):
            x = load_tile(x_ptr, 0, 0, 0, batch, first_n, k, N, D, BLOCK_N, BLOCK_K, True)
            y = load_tile(y_ptr, 0, 0, 0, batch, first_m, k, M, D, BLOCK_M, BLOCK_K, True)
            acc = tl.dot(x, y.T, acc, input_precision=PRECISION)

        row = tl.cast(first_n, tl.int64) + tl.arange(0, BLOCK_N)
        flat_row = tl.cast(batch, tl.int64) * N + row
        inverse_x = tl.load(inverse_x_ptr + flat_row, mask=row < N, other=0.0)
        sums = tl.split(tl.permute(tl.reshape(acc, (BLOCK_N, 2, HALF)), (0, 2, 1)))
        for half in tl.static_range(2):
            first = first_m + half * HALF
            column = tl.cast(first, tl.int64) + tl.arange(0, HALF)
            flat_column = tl.cast(batch, tl.int64) * M + column
            inverse_y = tl.load(inverse_y_ptr + flat_column, mask=column < M, other=0.0)
            c = clamp_cosine(sums[half] * inverse_x[:, None] * inverse_y[None, :])
            c = c.to(out_ptr.dtype.element_ty)
            if SYMMETRIC:
                if first < first_n:
                    _store_half(half_ptr, c, batch, first_n, first)
                    _store_half(half_ptr, tl.trans(c), batch, first, first_n)
                elif first == first_n:
                    below = tl.arange(0, HALF)[None, :] <= tl.arange(0, BLOCK_N)[:, None]
                    c = tl.where(below, c, tl.trans(c))
                    _store_half(half_ptr, c, batch, first_n, first)
            else:
                _store_half(half_ptr, c, batch, first_n, first)


def goes_on(tile: TileConfig, out: torch.Tensor) -> bool:
    """Whether programs go from tile to tile: if asked to, and a descriptor can store to out."""
    return tile.persistent and tile.descriptors and describable(out)


def half_tiles(tile: TileConfig, out: torch.Tensor) -> TensorDescriptor:
    """Describe the halves in which a tile of out (b, n, m) is stored."""
    return descriptor(out, (1, tile.block_n, tile.block_m // 2))
