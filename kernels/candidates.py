"""The blocks that may hold one of the k best rows of a query, from one read of the block maxima."""

import torch
import triton
import triton.language as tl

from .architecture import TileConfig, current_arch
from .configs import choose_config
from .launch import cost, kernel, on_device
from .tiles import NO_PAIR, cosine_bounds, load_block_terms, load_query_terms


def _metadata(grid, kernel, args):
    n, blocks = args["N"], args["BLOCKS"]
    return cost("block_candidates", 4 * n * blocks + 12 * blocks + 20 * n, flops32=13 * n * blocks)


@kernel(launch_metadata=_metadata)
def _block_candidates_kernel(
    maxima_ptr,  # (N, BLOCKS) int32 or float32
    query_terms_ptr,  # (4, N) float32, contiguous
    block_terms_ptr,  # (3, BLOCKS) float32, contiguous
    threshold_ptr,  # (N,) float32, contiguous
    count_ptr,  # (1,) int32, zero
    pair_ptr,  # (CAPACITY,) int32, contiguous
    N,
    BLOCKS,
    CAPACITY,
    stride_mn,
    stride_mb,
    BLOCK_N: tl.constexpr,
    BLOCK_M: tl.constexpr,
):
    """Append the pairs of a query and a block whose upper bound reaches the query's threshold.

    Owns BLOCK_N queries and BLOCK_M blocks. Its hits take their places from the counter at once,
    one atomic a tile, and are written if the places exist; the counter runs on past CAPACITY. The
    order of the list is free.
    Moves the N BLOCKS maxima once and 4 bytes a hit; 13 operations a maximum.
    """
    tiles_b = tl.cdiv(BLOCKS, BLOCK_M)
    program = tl.program_id(0)
    row = (program // tiles_b).to(tl.int64) * BLOCK_N + tl.arange(0, BLOCK_N)
    block = (program % tiles_b).to(tl.int64) * BLOCK_M + tl.arange(0, BLOCK_M)
    row_mask = row < N
    block_mask = block < BLOCKS
    mask = row_mask[:, None] & block_mask[None, :]
    scale, residual, norm, offset = load_query_terms(query_terms_ptr, N, row, row_mask)
    block_scale, block_residual, block_radius = load_block_terms(
        block_terms_ptr, BLOCKS, block, block_mask
    )
    lowest: tl.constexpr = -(2**31) if maxima_ptr.dtype.element_ty == tl.int32 else float("-inf")

    tile = maxima_ptr + row[:, None] * stride_mn + block[None, :] * stride_mb
    product = tl.load(tile, mask=mask, other=lowest)
    _, upper = cosine_bounds(
        product, scale[:, None], residual[:, None], norm[:, None], offset[:, None],
        block_scale[None, :], block_residual[None, :], block_radius[None, :],
    )  # fmt: skip
    threshold = tl.load(threshold_ptr + row, mask=row_mask, other=float("inf"))
    # A threshold of -inf asks for every block that holds a row, and for no other.
    hit = mask & (product != lowest) & (upper >= threshold[:, None])
    hits = tl.sum(hit.to(tl.int32), axis=1)
    total = tl.sum(hits, axis=0)
    # Reading the maxima leaves few instructions a score to spare.
    if total > 0:
        first = tl.atomic_add(count_ptr, total, sem="relaxed")
        before = tl.cumsum(hits, axis=0) - hits
        place = first + before[:, None] + tl.cumsum(hit.to(tl.int32), axis=1) - 1
        pair = block[None, :] * N + row[:, None]
        tl.store(pair_ptr + place, pair.to(tl.int32), mask=hit & (place < CAPACITY))


def launch_block_candidates(
    maxima: torch.Tensor,
    query_terms: torch.Tensor,
    block_terms: torch.Tensor,
    thresholds: torch.Tensor,
    capacity: int,
    config: TileConfig | None = None,
) -> tuple[torch.Tensor, torch.Tensor]:
    """Return the number (1,) int32 of pairs that reach the threshold, and the first of them found.

    The list (capacity,) holds block * n + query in int32, in any order, 2^31 - 1 where unused. A
    number above ``capacity`` says that the list is cut: ask again, with room for all.
    """
    n, blocks = maxima.shape
    count = maxima.new_zeros((1,), dtype=torch.int32)
    pairs = maxima.new_empty((capacity,), dtype=torch.int32).fill_(NO_PAIR.value)
    if maxima.numel() == 0:
        return count, pairs
    with on_device(maxima):
        config = config or choose_config("block_candidates", maxima.dtype, 0, current_arch())
        tiles = triton.cdiv(n, config.block_n) * triton.cdiv(blocks, config.block_m)
        _block_candidates_kernel[(tiles,)](
            maxima,
            query_terms.contiguous(),
            block_terms.contiguous(),
            thresholds.contiguous(),
            count,
            pairs,
            n,
            blocks,
            capacity,
            *maxima.stride(),
            BLOCK_N=config.block_n,
            BLOCK_M=config.block_m,
            **config.options(),
        )
    return count, pairs
