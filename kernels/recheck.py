"""Which rows of the candidate blocks can be among the k best: products of codes, row by row."""

import torch
import triton
import triton.language as tl

from .configs import TileConfig, choose_config, current_arch
from .launch import aligned_rows, cost, on_device
from .tiles import cosine_bounds, load_block_terms, load_query_terms, load_tile


def _metadata(grid, kernel, args):
    products = args["P"] * args["BLOCK"] * args["D"]
    size = args["corpus_ptr"].element_size()
    moved = products * size + args["P"] * (args["D"] * size + args["BLOCK"] + 16)
    return cost("recheck", moved, **{f"flops{8 * size}": 2 * products})


@triton.jit(launch_metadata=_metadata)
def _recheck_kernel(
    query_ptr,  # (N, D) int8 or bfloat16
    corpus_ptr,  # (M, D) int8 or bfloat16
    query_terms_ptr,  # (4, N) float32, contiguous
    block_terms_ptr,  # (3, BLOCKS) float32, contiguous
    threshold_ptr,  # (N,) float32, contiguous
    query_index_ptr,  # (P,) int64, contiguous
    block_index_ptr,  # (P,) int64, contiguous
    eligible_ptr,  # (M,) bool, contiguous, or None
    out_ptr,  # (P, BLOCK) int8
    P,
    N,
    M,
    D,
    BLOCKS,
    stride_qn,
    stride_qd,
    stride_cm,
    stride_cd,
    stride_op,
    stride_ob,
    BLOCK: tl.constexpr,
    BLOCK_P: tl.constexpr,
    BLOCK_K: tl.constexpr,
):
    """Write whether the rows of the blocks of BLOCK_P pairs reach the threshold of their query.

    Owns BLOCK_P (query, block) pairs. For each different block among them it multiplies the block's
    rows by all of its queries and keeps the columns of the pairs that asked: pairs sorted by block
    share the reading of it, in any order the answer is the same. Sums stay in registers.
    Moves at most BLOCK D codes a pair, once a run of equal blocks, which binds it: a product needs
    sixteen columns, and the tensor cores idle. 2 BLOCK D operations a pair.
    """
    pair = tl.program_id(0).to(tl.int64) * BLOCK_P + tl.arange(0, BLOCK_P)
    in_list = pair < P
    query = tl.load(query_index_ptr + pair, mask=in_list, other=0)
    none: tl.constexpr = 2**62
    block_index = tl.load(block_index_ptr + pair, mask=in_list, other=none)
    query_row = query_ptr + query[:, None] * stride_qn

    integer: tl.constexpr = query_ptr.dtype.element_ty == tl.int8
    sums: tl.constexpr = tl.int32 if integer else tl.float32
    lowest: tl.constexpr = -(2**31) if integer else float("-inf")
    product = tl.full((BLOCK, BLOCK_P), lowest, dtype=sums)
    block = tl.min(block_index, axis=0)
    while block < none:
        first = block * BLOCK
        acc = tl.zeros((BLOCK, BLOCK_P), dtype=sums)
        for k in range(0, D, BLOCK_K):
            rows = load_tile(
                corpus_ptr, 0, stride_cm, stride_cd, 0, first, k, M, D,
                BLOCK, BLOCK_K, DESCRIPTORS=False,
            )  # fmt: skip
            d = (k + tl.arange(0, BLOCK_K).to(tl.int64))[None, :]
            mask = in_list[:, None] & (d < D)
            columns = tl.load(query_row + d * stride_qd, mask=mask, other=0)
            acc = tl.dot(rows, columns.T, acc, out_dtype=sums)
        row = first + tl.arange(0, BLOCK)
        keep = row < M
        if eligible_ptr is not None:
            keep &= tl.load(eligible_ptr + row, mask=keep, other=0).to(tl.int1)
        asked = block_index == block
        product = tl.where(asked[None, :] & keep[:, None], acc, product)
        block = tl.min(tl.where(block_index > block, block_index, none), axis=0)

    scale, residual, norm, offset = load_query_terms(query_terms_ptr, N, query, in_list)
    block_scale, block_residual, block_radius = load_block_terms(
        block_terms_ptr, BLOCKS, block_index, in_list
    )
    threshold = tl.load(threshold_ptr + query, mask=in_list, other=float("inf"))
    _, upper = cosine_bounds(
        product, scale[None, :], residual[None, :], norm[None, :], offset[None, :],
        block_scale[None, :], block_residual[None, :], block_radius[None, :],
    )  # fmt: skip
    reached = (product != lowest) & (upper >= threshold[None, :])
    lane = tl.arange(0, BLOCK)
    out = out_ptr + pair[None, :] * stride_op + lane[:, None] * stride_ob
    tl.store(out, reached.to(tl.int8), mask=tl.broadcast_to(in_list[None, :], (BLOCK, BLOCK_P)))


def launch_recheck(
    queries: torch.Tensor,
    corpus: torch.Tensor,
    query_terms: torch.Tensor,
    block_terms: torch.Tensor,
    thresholds: torch.Tensor,
    query_index: torch.Tensor,
    block_index: torch.Tensor,
    block: int = 64,
    eligible: torch.Tensor | None = None,
    config: TileConfig | None = None,
) -> torch.Tensor:
    """Return (p, block) bool: the rows of blocks[block_index] that may be among the best.

    ``queries`` (n, d) and ``corpus`` (m, d) hold the codes, the terms (4, n) and (3, blocks) bound
    a cosine, and a row stays if it is eligible and its upper bound reaches thresholds[query_index].
    Sort the (p,) int64 pairs by block: neighbours then share the reading of its codes.
    """
    p, m = query_index.numel(), corpus.shape[0]
    out = queries.new_empty((p, block), dtype=torch.int8)
    if p == 0:
        return out.view(torch.bool)
    queries, corpus = aligned_rows(queries), aligned_rows(corpus)
    n, d = queries.shape
    with on_device(queries):
        config = config or choose_config("recheck", queries.dtype, d, current_arch())
        _recheck_kernel[(triton.cdiv(p, config.block_n),)](
            queries,
            corpus,
            query_terms.contiguous(),
            block_terms.contiguous(),
            thresholds.contiguous(),
            query_index.contiguous(),
            block_index.contiguous(),
            eligible,
            out,
            p,
            n,
            m,
            d,
            block_terms.shape[1],
            *queries.stride(),
            *corpus.stride(),
            *out.stride(),
            BLOCK=block,
            BLOCK_P=config.block_n,
            BLOCK_K=config.block_k,
            **config.options(),
        )
    return out.view(torch.bool)
