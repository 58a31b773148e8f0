"""Scores of candidate pairs by one fixed-order float64 function: the bits that a top-k returns."""

import torch
import triton
import triton.language as tl

from .architecture import TileConfig, current_arch
from .configs import choose_config
from .launch import cost, kernel, on_device

# Partial sums a pair. Part of the definition of the score: another width gives other bits.
LANES = tl.constexpr(128)


def _metadata(grid, kernel, args):
    elements = args["P"] * args["D"]
    moved = elements * (args["query_ptr"].element_size() + args["corpus_ptr"].element_size())
    return cost("rescore", moved + 24 * args["P"], flops64=6 * elements)


@triton.jit
def _largest_exponent(x_row, stride_xd, mask_p, D, BLOCK_P: tl.constexpr):
    """Binary exponent of the largest magnitude of each float64 row."""
    lane = tl.arange(0, LANES).to(tl.int64)
    largest = tl.zeros((BLOCK_P,), dtype=tl.float64)
    for start in range(0, D, LANES):
        d = (start + lane)[None, :]
        x = tl.load(x_row[:, None] + d * stride_xd, mask=mask_p[:, None] & (d < D), other=0.0)
        largest = tl.maximum(largest, tl.max(tl.abs(x), axis=1))
    exponent = (largest.to(tl.int64, bitcast=True) >> 52) - 1023
    return tl.where((largest > 0) & (largest < float("inf")), exponent, 0)


@triton.jit
def _times_power_of_two(x, exponent):
    """X * 2**exponent for float64, in two exact steps."""
    half = exponent // 2
    rest = exponent - half
    first = ((half + 1023) << 52).to(tl.float64, bitcast=True)
    second = ((rest + 1023) << 52).to(tl.float64, bitcast=True)
    return x * first * second


@triton.jit
def _tree_sum(partial, BLOCK_P: tl.constexpr):
    """Sum neighbouring lanes until one is left: an order that no layout can change."""
    for level in tl.static_range(1, 8):
        left, right = tl.split(tl.reshape(partial, (BLOCK_P, LANES >> level, 2)))
        partial = left + right
    return tl.reshape(partial, (BLOCK_P,))


@kernel(launch_metadata=_metadata)
def _rescore_kernel(
    query_ptr,  # (N, D)
    corpus_ptr,  # (M, D)
    query_index_ptr,  # (P,) int64, contiguous
    corpus_index_ptr,  # (P,) int64, contiguous
    out_ptr,  # (P,) float64, contiguous
    P,
    D,
    stride_qn,
    stride_qd,
    stride_cm,
    stride_cd,
    BLOCK_P: tl.constexpr,
):
    """Write the float64 cosine of BLOCK_P (query, row) pairs.

    Owns BLOCK_P pairs, loops over D in steps of LANES, keeps LANES partial sums of <q, x>, <q, q>
    and <x, x> a pair in registers, adds them in one fixed tree and writes 8 bytes a pair. Nothing
    but the two rows enters a score, so batch, tile and order leave its bits alone.
    Moves both rows of each pair; 6 float64 operations a pair of elements.
    """
    pair = tl.program_id(0).to(tl.int64) * BLOCK_P + tl.arange(0, BLOCK_P)
    in_list = pair < P
    query_index = tl.load(query_index_ptr + pair, mask=in_list, other=-1)
    corpus_index = tl.load(corpus_index_ptr + pair, mask=in_list, other=-1)
    mask_p = (query_index >= 0) & (corpus_index >= 0)
    query_row = query_ptr + query_index * stride_qn
    corpus_row = corpus_ptr + corpus_index * stride_cm

    # Only float64 rows can leave the range of float64 when squared.
    wide_q: tl.constexpr = query_ptr.dtype.element_ty == tl.float64
    wide_c: tl.constexpr = corpus_ptr.dtype.element_ty == tl.float64
    if wide_q:
        exponent_q = _largest_exponent(query_row, stride_qd, mask_p, D, BLOCK_P)
    if wide_c:
        exponent_c = _largest_exponent(corpus_row, stride_cd, mask_p, D, BLOCK_P)

    lane = tl.arange(0, LANES).to(tl.int64)
    qc = tl.zeros((BLOCK_P, LANES), dtype=tl.float64)
    qq = tl.zeros((BLOCK_P, LANES), dtype=tl.float64)
    cc = tl.zeros((BLOCK_P, LANES), dtype=tl.float64)
    # Unused places of a list stand together: a program without a pair has nothing to add up.
    # 194 registers on sm_90, 198 without.
    length = tl.where(tl.max(mask_p.to(tl.int32), axis=0) > 0, D, 0)
    for start in range(0, length, LANES):
        d = (start + lane)[None, :]
        mask = mask_p[:, None] & (d < D)
        q = tl.load(query_row[:, None] + d * stride_qd, mask=mask, other=0.0).to(tl.float64)
        c = tl.load(corpus_row[:, None] + d * stride_cd, mask=mask, other=0.0).to(tl.float64)
        if wide_q:
            q = _times_power_of_two(q, -exponent_q[:, None])
        if wide_c:
            c = _times_power_of_two(c, -exponent_c[:, None])
        qc += q * c
        qq += q * q
        cc += c * c
    norm_q = tl.sqrt(_tree_sum(qq, BLOCK_P))
    norm_c = tl.sqrt(_tree_sum(cc, BLOCK_P))
    product = _tree_sum(qc, BLOCK_P)
    # A row of zeros gives 0: divide by 1 instead, which keeps a NaN of the other row.
    norms = tl.where(norm_q == 0, 1.0, norm_q) * tl.where(norm_c == 0, 1.0, norm_c)
    score = product / norms
    # Copies, also scaled by a power of two: their products are the squares, so that the root of
    # their sum is the norm in every bit. Other rows for which it is are nearer to 1 than rounding.
    significand = norm_q.to(tl.int64, bitcast=True) ^ norm_c.to(tl.int64, bitcast=True)
    alike = ((significand & 0xFFFFFFFFFFFFF) == 0) & (norm_q > 0) & (norm_c > 0)
    ratio = norm_q / tl.where(norm_c == 0, 1.0, norm_c)
    copies = alike & (tl.sqrt(tl.abs(product) * ratio) == norm_q)
    score = tl.where(copies, tl.where(product < 0, -1.0, 1.0), score)
    # Comparisons, which keep NaN: tl.clamp does not compile for float64 on sm_90 (Triton 3.9).
    score = tl.where(score > 1.0, 1.0, tl.where(score < -1.0, -1.0, score))
    tl.store(out_ptr + pair, tl.where(mask_p, score, float("nan")), mask=in_list)


def launch_rescore(
    queries: torch.Tensor,
    corpus: torch.Tensor,
    query_index: torch.Tensor,
    corpus_index: torch.Tensor,
    config: TileConfig | None = None,
) -> torch.Tensor:
    """Return (p,) float64 cosines of queries[query_index] and corpus[corpus_index].

    ``queries`` (n, d) and ``corpus`` (m, d) are floating and may be strided; the indices are (p,)
    int64. A negative index gives NaN. No eps: a row of zeros gives 0.
    """
    p, d = query_index.numel(), queries.shape[1]
    out = queries.new_empty((p,), dtype=torch.float64)
    if p == 0:
        return out
    with on_device(queries):
        widest = torch.promote_types(queries.dtype, corpus.dtype)
        config = config or choose_config("rescore", widest, d, current_arch())
        _rescore_kernel[(triton.cdiv(p, config.block_n),)](
            queries,
            corpus,
            query_index.contiguous(),
            corpus_index.contiguous(),
            out,
            p,
            d,
            *queries.stride(),
            *corpus.stride(),
            BLOCK_P=config.block_n,
            **config.options(),
        )
    return out
