"""A lower bound on the k-th best cosine of each query, from one read of the block maxima."""

import torch
import triton
import triton.language as tl

from .architecture import TileConfig, current_arch
from .configs import choose_config
from .launch import cost, kernel, on_device
from .tiles import cosine_bounds, load_block_terms, load_query_terms


def _metadata(grid, kernel, args):
    n, blocks = args["N"], args["BLOCKS"]
    moved = 4 * n * (blocks + 2 * args["GROUPS"]) + 12 * blocks + 16 * n
    return cost("group_bounds", moved, flops32=13 * n * blocks)


@kernel(launch_metadata=_metadata)
def _group_bounds_kernel(
    maxima_ptr,  # (N, BLOCKS) int32 or float32
    query_terms_ptr,  # (4, N) float32, contiguous
    block_terms_ptr,  # (3, BLOCKS) float32, contiguous
    bound_ptr,  # (N, GROUPS) float32
    best_ptr,  # (N, GROUPS) int32, of the bounds' strides
    N,
    BLOCKS,
    GROUPS,
    stride_mn,
    stride_mb,
    stride_on,
    stride_og,
    BLOCK_N: tl.constexpr,
    BLOCK_M: tl.constexpr,
):
    """Write the largest lower bound of each of GROUPS groups of blocks, and the block that has it.

    Block b is in group b % GROUPS. Owns BLOCK_N queries and BLOCK_M groups, loops over the blocks
    in strides of GROUPS, keeps one bound and one block a group in registers and writes them once.
    Moves the N BLOCKS maxima once, 8 N GROUPS bytes out; 13 operations a maximum.
    """
    tiles_g = tl.cdiv(GROUPS, BLOCK_M)
    program = tl.program_id(0)
    row = (program // tiles_g).to(tl.int64) * BLOCK_N + tl.arange(0, BLOCK_N)
    group = (program % tiles_g).to(tl.int64) * BLOCK_M + tl.arange(0, BLOCK_M)
    row_mask = row < N
    group_mask = group < GROUPS
    scale, residual, norm, offset = load_query_terms(query_terms_ptr, N, row, row_mask)
    lowest: tl.constexpr = -(2**31) if maxima_ptr.dtype.element_ty == tl.int32 else float("-inf")

    bound = tl.full((BLOCK_N, BLOCK_M), float("-inf"), dtype=tl.float32)
    # The start of the stride that the bound comes from; -1 while it comes from none.
    best = tl.full((BLOCK_N, BLOCK_M), -1, dtype=tl.int32)
    for first in range(0, BLOCKS, GROUPS):
        block = first + group
        mask = group_mask & (block < BLOCKS)
        tile = maxima_ptr + row[:, None] * stride_mn + block[None, :] * stride_mb
        product = tl.load(tile, mask=row_mask[:, None] & mask[None, :], other=lowest)
        block_scale, block_residual, block_radius = load_block_terms(
            block_terms_ptr, BLOCKS, block, mask
        )
        lower, _ = cosine_bounds(
            product, scale[:, None], residual[:, None], norm[:, None], offset[:, None],
            block_scale[None, :], block_residual[None, :], block_radius[None, :],
        )  # fmt: skip
        # False for a NaN, which the contract drops.
        larger = lower > bound
        bound = tl.where(larger, lower, bound)
        best = tl.where(larger, first, best)
    best = tl.where(best < 0, -1, best + group[None, :].to(tl.int32))
    place = row[:, None] * stride_on + group[None, :] * stride_og
    mask = row_mask[:, None] & group_mask[None, :]
    tl.store(bound_ptr + place, bound, mask=mask)
    tl.store(best_ptr + place, best, mask=mask)


def launch_block_thresholds(
    maxima: torch.Tensor,
    query_terms: torch.Tensor,
    block_terms: torch.Tensor,
    k: int,
    groups: int,
    config: TileConfig | None = None,
) -> tuple[torch.Tensor, torch.Tensor]:
    """Return (n,) float32, a lower bound on the k-th best cosine, and (n, k) int64 blocks.

    ``maxima`` (n, blocks) are what ``launch_block_max`` gives, the terms (4, n) and (3, blocks)
    what bounds a cosine. The blocks are dealt to ``groups`` >= k groups and the k-th largest of the
    groups' best lower bounds is taken: k groups hold k different blocks, so the bound is valid, and
    it is the k-th of all blocks unless two of the best fall into one group. One maximum a score in
    registers; a histogram would count in shared memory and round the bound down to a bin's edge.
    The blocks are k different ones whose lower bounds reach the threshold, -1 where there are none.
    """
    n, blocks = maxima.shape
    groups = min(groups, blocks)
    if n == 0 or k > groups:
        none = maxima.new_full((n, k), -1, dtype=torch.int64)
        return maxima.new_full((n,), float("-inf"), dtype=torch.float32), none
    bounds = maxima.new_empty((n, groups), dtype=torch.float32)
    best = maxima.new_empty((n, groups), dtype=torch.int32)
    with on_device(maxima):
        config = config or choose_config("group_bounds", maxima.dtype, 0, current_arch())
        tiles = triton.cdiv(n, config.block_n) * triton.cdiv(groups, config.block_m)
        _group_bounds_kernel[(tiles,)](
            maxima,
            query_terms.contiguous(),
            block_terms.contiguous(),
            bounds,
            best,
            n,
            blocks,
            groups,
            *maxima.stride(),
            *bounds.stride(),
            BLOCK_N=config.block_n,
            BLOCK_M=config.block_m,
            **config.options(),
        )
    largest = bounds.topk(k, dim=1, sorted=False)
    return largest.values.amin(1), best.gather(1, largest.indices).long()
