"""Screen of an exact top-k: products of low-precision codes, reduced to block maxima at once."""

import torch
import triton
import triton.language as tl

from .architecture import TileConfig
from .launch import aligned_rows, kernel, on_device, tiled_product
from .tiles import grouped_tile, load_tile
from .topk_persistent import launch_persistent, maxima_cost


@kernel(launch_metadata=maxima_cost)
def _block_max_kernel(
    query_ptr,  # (1, N, D) int8 or bfloat16, or a descriptor of it
    corpus_ptr,  # (1, M, D) int8 or bfloat16, or a descriptor of it
    eligible_ptr,  # (M,) bool, contiguous, or None
    out_ptr,  # (N, cdiv(M, BLOCK)) int32 or float32
    N,
    M,
    D,
    stride_qn,
    stride_qd,
    stride_cm,
    stride_cd,
    stride_on,
    stride_ob,
    BLOCK: tl.constexpr,
    BLOCK_N: tl.constexpr,
    BLOCK_M: tl.constexpr,
    BLOCK_K: tl.constexpr,
    DOTS: tl.constexpr,
    GROUP: tl.constexpr,
    SWAP: tl.constexpr,
    DESCRIPTORS: tl.constexpr,
):
    """Write the largest inner product of each query with each block of BLOCK corpus rows.

    Owns a tile of BLOCK_N queries and BLOCK_M corpus rows, GROUP query tiles innermost, so that the
    corpus leaves device memory once a group. Loops over D in DOTS products of BLOCK_K a step, keeps
    the sums in registers (exact for int8), masks padding and rows that are not eligible, reduces
    each run of BLOCK columns and writes only these maxima: the scores never leave the registers.
    SWAP puts the corpus on the product's rows, for a handful of queries.
    Moves (N + M) D codes and 4 N M / BLOCK bytes; 2 N M D operations.
    """
    tiles_n = tl.cdiv(N, BLOCK_N)
    tiles_m = tl.cdiv(M, BLOCK_M)
    tile_n, tile_m = grouped_tile(tl.program_id(0), tiles_n, tiles_m, GROUP)
    first_n = tile_n * BLOCK_N
    first_m = tile_m * BLOCK_M
    integer: tl.constexpr = out_ptr.dtype.element_ty == tl.int32
    sums: tl.constexpr = tl.int32 if integer else tl.float32

    if SWAP:
        acc = tl.zeros((BLOCK_M, BLOCK_N), dtype=sums)
    else:
        acc = tl.zeros((BLOCK_N, BLOCK_M), dtype=sums)
    for k in range(0, D, BLOCK_K * DOTS):
        for i in tl.static_range(DOTS):
            query = load_tile(
                query_ptr, 0, stride_qn, stride_qd, 0, first_n, k + i * BLOCK_K, N, D,
                BLOCK_N, BLOCK_K, DESCRIPTORS,
            )  # fmt: skip
            corpus = load_tile(
                corpus_ptr, 0, stride_cm, stride_cd, 0, first_m, k + i * BLOCK_K, M, D,
                BLOCK_M, BLOCK_K, DESCRIPTORS,
            )  # fmt: skip
            if SWAP:
                acc = tl.dot(corpus, query.T, acc, out_dtype=sums)
            else:
                acc = tl.dot(query, corpus.T, acc, out_dtype=sums)

    lowest: tl.constexpr = -(2**31) if integer else float("-inf")
    column = tl.cast(first_m, tl.int64) + tl.arange(0, BLOCK_M)
    keep = column < M
    if eligible_ptr is not None:
        keep &= tl.load(eligible_ptr + column, mask=keep, other=0).to(tl.int1)
    if SWAP:
        acc = tl.where(keep[:, None], acc, lowest)
        maxima = tl.max(tl.reshape(acc, (BLOCK_M // BLOCK, BLOCK, BLOCK_N)), axis=1)
        maxima = tl.trans(maxima)
    else:
        acc = tl.where(keep[None, :], acc, lowest)
        maxima = tl.max(tl.reshape(acc, (BLOCK_N, BLOCK_M // BLOCK, BLOCK)), axis=2)

    row = tl.cast(first_n, tl.int64) + tl.arange(0, BLOCK_N)
    block = tl.cast(first_m // BLOCK, tl.int64) + tl.arange(0, BLOCK_M // BLOCK)
    mask = (row < N)[:, None] & (block < tl.cdiv(M, BLOCK))[None, :]
    tl.store(out_ptr + row[:, None] * stride_on + block[None, :] * stride_ob, maxima, mask=mask)


def launch_block_max(
    queries: torch.Tensor,
    corpus: torch.Tensor,
    block: int = 64,
    eligible: torch.Tensor | None = None,
    config: TileConfig | None = None,
) -> torch.Tensor:
    """Return (n, cdiv(m, block)): the largest <query, row> over each block of corpus rows.

    ``queries`` (n, d) and ``corpus`` (m, d) hold int8 codes, whose sums are exact int32 for
    d <= 133 000, or bfloat16 rows, whose sums are float32 and need the caller's rounding bound.
    Rows where ``eligible`` (m,) is False, and the padding of the last block, take no part; a block
    without any eligible row gives the lowest value of its dtype. A bfloat16 row that holds NaN
    takes no part either. Rows that are not aligned to 16 bytes, or whose d is no multiple of 16,
    are copied first: a corpus that is searched more than once is best stored so.
    """
    n, m = queries.shape[0], corpus.shape[0]
    dtype = torch.int32 if queries.dtype == torch.int8 else torch.float32
    out = queries.new_empty((n, triton.cdiv(m, block)), dtype=dtype)
    if out.numel() == 0:
        return out
    queries, corpus = aligned_rows(queries), aligned_rows(corpus)
    d = queries.shape[1]
    with on_device(queries):
        config, query_source, corpus_source = tiled_product(
            "block_max_few" if n <= 16 else "block_max", queries[None], corpus[None], config=config
        )
        strides = *queries.stride(), *corpus.stride(), *out.stride()
        if config.persistent:
            shape = n, m, d
            launch_persistent(
                query_source, corpus_source, eligible, out, shape, strides, block, config
            )
            return out
        tiles = triton.cdiv(n, config.block_n) * triton.cdiv(m, config.block_m)
        _block_max_kernel[(tiles,)](
            query_source,
            corpus_source,
            eligible,
            out,
            n,
            m,
            d,
            *strides,
            BLOCK=block,
            BLOCK_N=config.block_n,
            BLOCK_M=config.block_m,
            BLOCK_K=config.block_k,
            DOTS=config.dots,
            GROUP=config.group,
            SWAP=config.swap,
            DESCRIPTORS=config.descriptors,
            **config.options(),
        )
    return out
