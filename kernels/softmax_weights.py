"""Gradient of a softmax loss by its logits, for a panel of rows: the factor of two products."""

import torch
import triton
import triton.language as tl

from .architecture import TileConfig
from .launch import aligned_rows, cost, element_size, kernel, on_device, tiled_product
from .softmax_sums import BITS, cosine_tile, negatives, positive_within
from .tiles import grouped_tile

_BITS = tl.constexpr(BITS)
# Nothing is added to larger losses by the one in 1 + exp(loss), in float64.
_LINEAR = 40.0


def _metadata(grid, kernel, args):
    n, m, d = args["N"], args["M"], args["D"]
    size = element_size(args["x_ptr"])
    vectors = 24 * n + (4 if args["column_terms_ptr"] is None else 12) * m
    moved = (n + m) * d * size + vectors + n * m * args["out_ptr"].element_size()
    return cost("softmax_weights", moved, **{f"flops{8 * size}": 2 * n * m * d})


@kernel(launch_metadata=_metadata)
def _softmax_weights_kernel(
    x_ptr,  # (1, N, D), or a descriptor of it
    y_ptr,  # (1, M, D), or a descriptor of it
    inverse_x_ptr,  # (N,) float32
    inverse_y_ptr,  # (M,) float32
    scale_ptr,  # () float32
    positive_ptr,  # (N,) int64
    id_x_ptr,  # (N,) int64, or None
    id_y_ptr,  # (M,) int64, or None
    row_terms_ptr,  # (3, N) float32, contiguous: shifts, factors, weights of the positives
    column_terms_ptr,  # (2, M) float32, contiguous: shifts, factors; or None
    out_ptr,  # (N, M)
    N,
    M,
    D,
    stride_xn,
    stride_xd,
    stride_ym,
    stride_yd,
    stride_on,
    stride_om,
    BLOCK_N: tl.constexpr,
    BLOCK_M: tl.constexpr,
    BLOCK_K: tl.constexpr,
    GROUP: tl.constexpr,
    PRECISION: tl.constexpr,
    DESCRIPTORS: tl.constexpr,
):
    """Write a tile of factor * exp(scale * (cosine - shift)), of rows and, if asked, of columns.

    Owns one tile, in groups of GROUP row tiles that share column tiles in L2. Loops over D in steps
    of BLOCK_K, raises, masks, puts the weights of the positives in and rounds once.
    Moves (N + M) D inputs at best, N M outputs; 2 N M D operations, and an exponential or two a
    pair.
    """
    tile_n, tile_m = grouped_tile(tl.program_id(0), tl.cdiv(N, BLOCK_N), tl.cdiv(M, BLOCK_M), GROUP)
    first_n = tile_n * BLOCK_N
    first_m = tile_m * BLOCK_M
    c = cosine_tile(
        x_ptr, y_ptr, inverse_x_ptr, inverse_y_ptr, first_n, first_m, N, M, D,
        stride_xn, stride_xd, stride_ym, stride_yd,
        BLOCK_N, BLOCK_M, BLOCK_K, PRECISION, DESCRIPTORS,
    )  # fmt: skip
    row = tl.cast(first_n, tl.int64) + tl.arange(0, BLOCK_N)
    column = tl.cast(first_m, tl.int64) + tl.arange(0, BLOCK_M)
    row_mask = row < N
    column_mask = column < M
    bits = tl.load(scale_ptr) * _BITS
    shift = tl.load(row_terms_ptr + row, mask=row_mask, other=0.0)
    factor = tl.load(row_terms_ptr + N + row, mask=row_mask, other=0.0)
    weight = factor[:, None] * tl.exp2((c - shift[:, None]) * bits)
    if column_terms_ptr is not None:
        shift = tl.load(column_terms_ptr + column, mask=column_mask, other=0.0)
        factor = tl.load(column_terms_ptr + M + column, mask=column_mask, other=0.0)
        weight += factor[None, :] * tl.exp2((c - shift[None, :]) * bits)
    positive = positive_within(positive_ptr, first_n, first_m, N, BLOCK_N, BLOCK_M)
    keep = negatives(positive, id_x_ptr, id_y_ptr, first_n, first_m, N, M, BLOCK_N, BLOCK_M)
    weight = tl.where(keep, weight, 0.0)
    own = tl.load(row_terms_ptr + 2 * N + row, mask=row_mask, other=0.0)
    is_own = tl.arange(0, BLOCK_M)[None, :] == positive[:, None]
    weight = tl.where(is_own, own[:, None], weight).to(out_ptr.dtype.element_ty)
    out = out_ptr + row[:, None] * stride_on + column[None, :] * stride_om
    tl.store(out, weight, mask=row_mask[:, None] & column_mask[None, :])


def loss_terms(
    sums: torch.Tensor, positive: torch.Tensor, scale: torch.Tensor
) -> tuple[torch.Tensor, torch.Tensor, torch.Tensor]:
    """Return losses, shifts, and the derivatives of the losses by their positives' logits, float64.

    Args:
        sums: (n,), what `log2_sums` gives relative to the positive.
        positive: (n,), the cosine of each row and its positive.
        scale: (), what cosines are multiplied by.

    A loss is softplus(log of the sum): of one negative j its derivative by the logit is
    exp(scale * (cosine_j - shift)), by the positive's expm1(-loss).
    """
    losses = torch.nn.functional.softplus(sums / BITS, threshold=_LINEAR)
    return losses, positive.double() + losses / scale.double(), torch.expm1(-losses)


def launch_softmax_weights(
    x: torch.Tensor,
    inverse_x: torch.Tensor,
    y: torch.Tensor,
    inverse_y: torch.Tensor,
    scale: torch.Tensor,
    positives: torch.Tensor,
    row_terms: torch.Tensor,
    column_terms: torch.Tensor | None = None,
    ids: tuple[torch.Tensor, torch.Tensor] | None = None,
    dtype: torch.dtype = torch.bfloat16,
    config: TileConfig | None = None,
) -> torch.Tensor:
    """Return the gradient (n, m) of a softmax loss by the logits of a panel of rows x (n, d).

    Args:
        x: rows (n, d) as `launch_scaled_rows` gives them: at least 1024 at a time keep the products
            that follow near their peak, and the panel, not a matrix, in memory.
        inverse_x: float32 (n,), their inverse norms; ones where rows are taken as they are.
        y: rows (m, d), likewise, all of them.
        inverse_y: float32 (m,).
        scale: float32 (), what cosines are multiplied by, above 0.
        positives: int64 (n,), the row of y that belongs to each row of x, -1 for none.
        row_terms: float32 (3, n), contiguous: shift, factor, and the gradient by the positive's
            logit. A row that has no loss has a factor of 0.
        column_terms: float32 (2, m), contiguous, for the other direction: shift and factor.
        ids: int64 (n,) and (m,): pairs of equal ids are not negatives and have no gradient.
        dtype: of the result. A weight is at most its factors: with factors near 1 (the mean's 1 / n
            is better multiplied afterwards) float16 keeps 11 bits down to 6e-5, bfloat16 8 bits.
        config: the tile, if not the one that is chosen.

    A negative weighs factor * exp(scale * (cosine - shift)) (`loss_terms`), of its row and of its
    column.
    """
    n, m = x.shape[0], y.shape[0]
    out = x.new_empty((n, m), dtype=dtype)
    if out.numel() == 0:
        return out
    x, y = aligned_rows(x), aligned_rows(y)
    d = x.shape[1]
    with on_device(x):
        name = "softmax_weights_wide" if dtype == torch.float32 else "softmax_weights"
        tile, x_source, y_source = tiled_product(name, x[None], y[None], config)
        id_x, id_y = (None, None) if ids is None else (part.contiguous() for part in ids)
        _softmax_weights_kernel[(triton.cdiv(n, tile.block_n) * triton.cdiv(m, tile.block_m),)](
            x_source,
            y_source,
            inverse_x,
            inverse_y,
            scale,
            positives.contiguous(),
            id_x,
            id_y,
            row_terms,
            column_terms,
            out,
            n,
            m,
            d,
            *x.stride(),
            *y.stride(),
            *out.stride(),
            BLOCK_N=tile.block_n,
            BLOCK_M=tile.block_m,
            BLOCK_K=tile.block_k,
            GROUP=tile.group,
            PRECISION=tile.precision,
            DESCRIPTORS=tile.descriptors,
            **tile.options(),
        )
    return out
