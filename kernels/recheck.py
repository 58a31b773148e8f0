"""Rows of candidate blocks by the products of their codes: the best one, or all in reach."""

import torch
import triton
import triton.language as tl

from .architecture import TileConfig, current_arch
from .configs import choose_config
from .launch import aligned_rows, cost, kernel, on_device
from .tiles import NO_PAIR, cosine_bounds, load_block_terms, load_query_terms, load_tile


def _cost(name: str, args: dict, moved: int) -> dict:
    products = args["P"] * args["BLOCK"] * args["D"]
    size = args["corpus_ptr"].element_size()
    moved += products * size + args["P"] * (args["D"] * size + 4)
    return cost(name, moved, **{f"flops{8 * size}": 2 * products})


def _recheck_metadata(grid, kernel, args):
    return _cost("recheck", args, 0)


def _best_rows_metadata(grid, kernel, args):
    return _cost("best_rows", args, 8 * args["P"])


@triton.jit
def _load_pairs(pair_ptr, P, N, BLOCK_P: tl.constexpr):
    """Load BLOCK_P pairs: their places in the list, queries, blocks (2^62 if none), whether any."""
    place = tl.program_id(0).to(tl.int64) * BLOCK_P + tl.arange(0, BLOCK_P)
    pair = tl.load(pair_ptr + place, mask=place < P, other=NO_PAIR)
    present = pair != NO_PAIR
    query = tl.where(present, pair % N, 0).to(tl.int64)
    none: tl.constexpr = 2**62
    return place, query, tl.where(present, (pair // N).to(tl.int64), none), present


@triton.jit
def _pair_products(
    query_ptr,  # (N, D) int8 or bfloat16
    corpus_ptr,  # (M, D) int8 or bfloat16
    eligible_ptr,  # (M,) bool, contiguous, or None
    query,  # (BLOCK_P,)
    block_index,  # (BLOCK_P,), 2^62 where there is no pair
    M,
    D,
    stride_qn,
    stride_qd,
    stride_cm,
    stride_cd,
    BLOCK: tl.constexpr,
    BLOCK_P: tl.constexpr,
    BLOCK_K: tl.constexpr,
):
    """Products (BLOCK, BLOCK_P) of each pair's query and the rows of its block, lowest if no row.

    For each different block among the pairs it multiplies the block's rows by all of the queries
    and keeps the columns of the pairs that asked: pairs sorted by block share the reading of it, in
    any order the answer is the same. Sums stay in registers.
    """
    none: tl.constexpr = 2**62
    in_list = block_index < none
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
    return product


@kernel(launch_metadata=_recheck_metadata)
def _recheck_kernel(
    query_ptr,  # (N, D) int8 or bfloat16
    corpus_ptr,  # (M, D) int8 or bfloat16
    query_terms_ptr,  # (4, N) float32, contiguous
    block_terms_ptr,  # (3, BLOCKS) float32, contiguous
    threshold_ptr,  # (N,) float32, contiguous
    pair_ptr,  # (P,) int32, contiguous
    eligible_ptr,  # (M,) bool, contiguous, or None
    count_ptr,  # (N,) int32, contiguous, zeros
    out_ptr,  # (N, CAPACITY) int64
    P,
    N,
    M,
    D,
    BLOCKS,
    CAPACITY,
    stride_qn,
    stride_qd,
    stride_cm,
    stride_cd,
    stride_on,
    stride_oc,
    BLOCK: tl.constexpr,
    BLOCK_P: tl.constexpr,
    BLOCK_K: tl.constexpr,
):
    """Append to each query's list the rows of its pairs' blocks that reach its threshold.

    Owns BLOCK_P pairs, and does next to nothing where the list of pairs is unused. A row takes its
    place from the query's counter, which runs on past CAPACITY, and is written if the place exists;
    the order within a list is free.
    Moves at most BLOCK D codes a pair, once a run of equal blocks, which binds it: a product needs
    sixteen columns, and the tensor cores idle. One atomic and 8 bytes a row in reach; 2 BLOCK D
    operations a pair.
    """
    _, query, block_index, present = _load_pairs(pair_ptr, P, N, BLOCK_P)
    product = _pair_products(
        query_ptr, corpus_ptr, eligible_ptr, query, block_index, M, D,
        stride_qn, stride_qd, stride_cm, stride_cd, BLOCK, BLOCK_P, BLOCK_K,
    )  # fmt: skip
    scale, residual, norm, offset = load_query_terms(query_terms_ptr, N, query, present)
    block_scale, block_residual, block_radius = load_block_terms(
        block_terms_ptr, BLOCKS, block_index, present
    )
    threshold = tl.load(threshold_ptr + query, mask=present, other=float("inf"))
    _, upper = cosine_bounds(
        product, scale[None, :], residual[None, :], norm[None, :], offset[None, :],
        block_scale[None, :], block_residual[None, :], block_radius[None, :],
    )  # fmt: skip
    lowest: tl.constexpr = -(2**31) if query_ptr.dtype.element_ty == tl.int8 else float("-inf")
    reached = (product != lowest) & (upper >= threshold[None, :])
    if tl.max(reached.to(tl.int32)) > 0:
        counter = count_ptr + tl.broadcast_to(query[None, :], (BLOCK, BLOCK_P))
        slot = tl.atomic_add(counter, 1, mask=reached, sem="relaxed")
        row = block_index[None, :] * BLOCK + tl.arange(0, BLOCK)[:, None]
        out = out_ptr + query[None, :] * stride_on + slot.to(tl.int64) * stride_oc
        tl.store(out, row, mask=reached & (slot < CAPACITY))


@kernel(launch_metadata=_best_rows_metadata)
def _best_rows_kernel(
    query_ptr,  # (N, D) int8 or bfloat16
    corpus_ptr,  # (M, D) int8 or bfloat16
    pair_ptr,  # (P,) int32, contiguous
    eligible_ptr,  # (M,) bool, contiguous, or None
    out_ptr,  # (P,) int64, contiguous
    P,
    N,
    M,
    D,
    stride_qn,
    stride_qd,
    stride_cm,
    stride_cd,
    BLOCK: tl.constexpr,
    BLOCK_P: tl.constexpr,
    BLOCK_K: tl.constexpr,
):
    """Write the row of each pair's block with the largest product, -1 where there is none.

    Owns BLOCK_P pairs; moves and multiplies what the check of their rows does, and writes 8 bytes a
    pair.
    """
    place, query, block_index, present = _load_pairs(pair_ptr, P, N, BLOCK_P)
    product = _pair_products(
        query_ptr, corpus_ptr, eligible_ptr, query, block_index, M, D,
        stride_qn, stride_qd, stride_cm, stride_cd, BLOCK, BLOCK_P, BLOCK_K,
    )  # fmt: skip
    lowest: tl.constexpr = -(2**31) if query_ptr.dtype.element_ty == tl.int8 else float("-inf")
    largest = tl.max(product, axis=0)
    lane = tl.arange(0, BLOCK)[:, None]
    first = tl.min(tl.where(product == largest[None, :], lane, BLOCK), axis=0)
    found = present & (largest != lowest) & (first < BLOCK)
    tl.store(out_ptr + place, tl.where(found, block_index * BLOCK + first, -1), mask=place < P)


def launch_recheck(
    queries: torch.Tensor,
    corpus: torch.Tensor,
    query_terms: torch.Tensor,
    block_terms: torch.Tensor,
    thresholds: torch.Tensor,
    pairs: torch.Tensor,
    block: int,
    eligible: torch.Tensor | None,
    capacity: int,
    config: TileConfig | None = None,
) -> tuple[torch.Tensor, torch.Tensor]:
    """Return the number (n,) int32 of rows in reach of each query, and the first of them found.

    ``queries`` (n, d) and ``corpus`` (m, d) hold the codes, the terms (4, n) and (3, blocks) bound
    a cosine, ``pairs`` (p,) int32 are block * n + query, 2^31 - 1 where unused. A row is in reach
    if it is eligible and its upper bound reaches its query's threshold. The lists (n, capacity) are
    int64 in any order, -1 where unused; a number above ``capacity`` says that its list is cut.
    Sort the pairs: those of one block then share the reading of its codes.
    """
    n, d = queries.shape
    counts = thresholds.new_zeros((n,), dtype=torch.int32)
    rows = thresholds.new_empty((n, capacity), dtype=torch.int64).fill_(-1)
    if pairs.numel() == 0 or n == 0:
        return counts, rows
    queries, corpus = aligned_rows(queries), aligned_rows(corpus)
    with on_device(queries):
        config = config or choose_config("recheck", queries.dtype, d, current_arch())
        _recheck_kernel[(triton.cdiv(pairs.numel(), config.block_n),)](
            queries,
            corpus,
            query_terms.contiguous(),
            block_terms.contiguous(),
            thresholds.contiguous(),
            pairs.contiguous(),
            eligible,
            counts,
            rows,
            pairs.numel(),
            n,
            corpus.shape[0],
            queries.shape[1],
            block_terms.shape[1],
            capacity,
            *queries.stride(),
            *corpus.stride(),
            *rows.stride(),
            BLOCK=block,
            BLOCK_P=config.block_n,
            BLOCK_K=config.block_k,
            **config.options(),
        )
    return counts, rows


def launch_best_rows(
    queries: torch.Tensor,
    corpus: torch.Tensor,
    pairs: torch.Tensor,
    block: int,
    eligible: torch.Tensor | None,
    config: TileConfig | None = None,
) -> torch.Tensor:
    """Return (p,) int64: the eligible row of each pair's block with the largest product of codes.

    ``pairs`` are those of ``launch_recheck``; -1 where there is no pair or no such row. Of equal
    products the first row's counts.
    """
    out = pairs.new_empty(pairs.shape, dtype=torch.int64)
    if pairs.numel() == 0:
        return out
    queries, corpus = aligned_rows(queries), aligned_rows(corpus)
    with on_device(queries):
        config = config or choose_config(
            "best_rows", queries.dtype, queries.shape[1], current_arch()
        )
        _best_rows_kernel[(triton.cdiv(pairs.numel(), config.block_n),)](
            queries,
            corpus,
            pairs.contiguous(),
            eligible,
            out,
            pairs.numel(),
            queries.shape[0],
            corpus.shape[0],
            queries.shape[1],
            *queries.stride(),
            *corpus.stride(),
            BLOCK=block,
            BLOCK_P=config.block_n,
            BLOCK_K=config.block_k,
            **config.options(),
        )
    return out
