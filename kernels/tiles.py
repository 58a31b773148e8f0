"""Device helpers that two or more kernels share: tile order, powers of two, the clamp, scores."""

import triton
import triton.language as tl

# A row whose squared norm lies outside these bounds is scaled by a power of two before it is
# squared: below, squares become subnormal and lose bits; above, sums of products overflow.
SMALLEST_SQUARE = tl.constexpr(2.0**-100)
LARGEST_SQUARE = tl.constexpr(2.0**100)
# Where the largest entry of a row lies in [2^14, 2^15), rounding it to float16 cannot overflow, and
# what float16 loses of the smallest entries is 2^-39 of the norm.
LARGEST = tl.constexpr(14)
# No pair, in a list of pairs block * n + query in int32: the largest number, so that it sorts last.
NO_PAIR = tl.constexpr(2**31 - 1)


@triton.jit
def grouped_tile(tile, TILES_N, TILES_M, GROUP: tl.constexpr):
    """Map a linear index to a tile so that GROUP row tiles share the column tiles in L2.

    Within a group the row tile moves fastest, so a column tile is read once a group.
    """
    group_size = GROUP * TILES_M
    first_n = (tile // group_size) * GROUP
    rows = min(TILES_N - first_n, GROUP)
    within = tile % group_size
    return first_n + within % rows, within // rows


@triton.jit
def load_tile(
    x_ptr,  # (B, N, D), or a descriptor of it
    stride_xb,
    stride_xn,
    stride_xd,
    batch,
    first_n,
    first_d,
    N,
    D,
    BLOCK_N: tl.constexpr,
    BLOCK_D: tl.constexpr,
    DESCRIPTORS: tl.constexpr,
):
    """Load rows [first_n, +BLOCK_N) and columns [first_d, +BLOCK_D) of x[batch], 0 outside."""
    if DESCRIPTORS:
        tile = tl.reshape(x_ptr.load([batch, first_n, first_d]), (BLOCK_N, BLOCK_D))
    else:
        row = tl.cast(first_n, tl.int64) + tl.arange(0, BLOCK_N)
        column = tl.cast(first_d, tl.int64) + tl.arange(0, BLOCK_D)
        pointer = x_ptr + tl.cast(batch, tl.int64) * stride_xb
        pointer += row[:, None] * stride_xn + column[None, :] * stride_xd
        tile = tl.load(pointer, mask=(row < N)[:, None] & (column < D)[None, :], other=0.0)
    return tile


@triton.jit
def power_of_two(exponent):
    """2**exponent as float32, built from its bits; -126 <= exponent <= 127."""
    return ((exponent + 127) << 23).to(tl.float32, bitcast=True)


@triton.jit
def times_power_of_two(x, exponent):
    """X * 2**exponent in two exact steps, so that |exponent| may reach 252."""
    half = exponent // 2
    return x * power_of_two(half) * power_of_two(exponent - half)


@triton.jit
def binary_exponent(x):
    """Exponent of a float32 x >= 0; -127 for zero and subnormal values."""
    return (x.to(tl.int32, bitcast=True) >> 23) - 127


@triton.jit
def half_exponent(largest):
    """Power of two that is taken out of a row, by its largest magnitude, before it is rounded.

    A row of zeros needs none; one that is not finite says so without.
    """
    scaled = (largest > 0) & (largest < float("inf"))
    return tl.where(scaled, binary_exponent(largest) - LARGEST, 0)


@triton.jit
def out_of_range(square):
    """Whether a squared norm says that its row must be looked at again (true for NaN)."""
    return ~((square >= SMALLEST_SQUARE) & (square <= LARGEST_SQUARE))


@triton.jit
def scaling_exponent(largest, square, eps, D):
    """Power of two that brings a row's largest magnitude into [1, 2), or 0 to leave the row alone.

    Left alone are rows in range, rows of zeros, rows that hold NaN or an infinity, and rows whose
    norm cannot exceed eps: what such a row loses to underflow is lost against eps anyway.
    """
    not_a_number = square != square  # noqa: PLR0124
    finite = (largest < float("inf")) & ~not_a_number
    above_eps = largest * tl.sqrt(tl.cast(D, tl.float32)) > eps
    scale = out_of_range(square) & finite & (largest > 0) & above_eps
    return tl.where(scale, binary_exponent(largest), 0)


@triton.jit
def scaled_square(
    x_row,  # (BLOCK_N,) pointers to rows
    stride_d,
    row_mask,  # (BLOCK_N,)
    D,
    eps,
    BLOCK_N: tl.constexpr,
    BLOCK_D: tl.constexpr,
):
    """Squared norms of rows scaled by 2**-exponent, and the exponents: 0 for rows in range.

    Rows whose squares leave float32's comfortable range are read twice more, from L2: once for
    their largest magnitude, once scaled.
    """
    column = tl.arange(0, BLOCK_D).to(tl.int64)
    squares = tl.zeros((BLOCK_N, BLOCK_D), dtype=tl.float32)
    for start in range(0, D, BLOCK_D):
        d = (start + column)[None, :]
        x = tl.load(x_row[:, None] + d * stride_d, mask=row_mask[:, None] & (d < D), other=0.0)
        x = x.to(tl.float32)
        squares += x * x
    square = tl.sum(squares, axis=1)
    exponent = tl.zeros((BLOCK_N,), dtype=tl.int32)

    # Squares of float16 never leave float32's range.
    if x_row.dtype.element_ty != tl.float16:
        suspect = out_of_range(square) & row_mask
        if tl.max(suspect.to(tl.int32), axis=0) > 0:
            largest = tl.zeros((BLOCK_N,), dtype=tl.float32)
            for start in range(0, D, BLOCK_D):
                d = (start + column)[None, :]
                mask = suspect[:, None] & (d < D)
                x = tl.load(x_row[:, None] + d * stride_d, mask=mask, other=0.0)
                largest = tl.maximum(largest, tl.max(tl.abs(x.to(tl.float32)), axis=1))
            exponent = scaling_exponent(largest, square, eps, D)
            squares = tl.zeros((BLOCK_N, BLOCK_D), dtype=tl.float32)
            for start in range(0, D, BLOCK_D):
                d = (start + column)[None, :]
                mask = suspect[:, None] & (d < D)
                x = tl.load(x_row[:, None] + d * stride_d, mask=mask, other=0.0)
                x = times_power_of_two(x.to(tl.float32), -exponent[:, None])
                squares += x * x
            square = tl.where(suspect, tl.sum(squares, axis=1), square)
    return square, exponent


@triton.jit
def inverse_norm(square, exponent, eps):
    """1 / max(norm, eps) of the row scaled by 2**-exponent; NaN for a row that is not finite."""
    norm = tl.sqrt_rn(square)
    inverse = tl.div_rn(1.0, tl.maximum(norm, times_power_of_two(eps, -exponent)))
    return tl.where(norm < float("inf"), inverse, float("nan"))


@triton.jit
def clamp_cosine(c):
    """Clamp to [-1, 1] and keep NaN, which plain minimum and maximum would lose."""
    return tl.clamp(c, -1.0, 1.0, propagate_nan=tl.PropagateNan.ALL)


@triton.jit
def load_query_terms(query_terms_ptr, N, query, mask):
    """Load scale, residual, norm and offset of queries from the contiguous (4, N) float32 terms."""
    scale = tl.load(query_terms_ptr + query, mask=mask, other=0.0)
    residual = tl.load(query_terms_ptr + N + query, mask=mask, other=0.0)
    norm = tl.load(query_terms_ptr + 2 * N + query, mask=mask, other=0.0)
    offset = tl.load(query_terms_ptr + 3 * N + query, mask=mask, other=0.0)
    return scale, residual, norm, offset


@triton.jit
def load_block_terms(block_terms_ptr, BLOCKS, block, mask):
    """Load scale, residual and radius of blocks from the contiguous (3, BLOCKS) float32 terms."""
    scale = tl.load(block_terms_ptr + block, mask=mask, other=0.0)
    residual = tl.load(block_terms_ptr + BLOCKS + block, mask=mask, other=0.0)
    radius = tl.load(block_terms_ptr + 2 * BLOCKS + block, mask=mask, other=0.0)
    return scale, residual, radius


@triton.jit
def cosine_bounds(
    product, query_scale, query_residual, query_norm, query_offset,
    block_scale, block_residual, block_radius,
):  # fmt: skip
    """Bounds of the cosine from the product of codes: (lower, upper), -inf where masked.

    The same float32 operations in the same order as the op's CPU body, whose docstring derives the
    margin; compile without fused multiply-adds and the bits agree.
    """
    integer: tl.constexpr = product.dtype == tl.int32
    present = product != (-(2**31) if integer else float("-inf"))
    estimate = query_scale * block_scale * product.to(tl.float32) + query_offset
    size = query_norm * (block_radius + block_residual)
    margin = query_residual * block_radius + query_norm * block_residual
    margin += (size + margin + tl.abs(query_offset)) * 2.0**-21 + 2.0**-36
    lower = tl.where(present, estimate - margin, float("-inf"))
    upper = tl.where(present, estimate + margin, float("-inf"))
    return lower, upper
