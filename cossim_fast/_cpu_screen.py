"""CPU bodies of the screen and the rescoring: the contracts that the kernels are held to."""

from __future__ import annotations

import torch
from torch import Tensor

# Partial sums a pair. Part of the definition of the score: another width gives other bits.
LANES = 128
PAIRS_AT_ONCE = 4096
QUERIES_AT_ONCE = 256


def block_max(queries: Tensor, corpus: Tensor, block: int, eligible: Tensor | None) -> Tensor:
    """The largest product of each query with each block of rows.

    Products of int8 codes go through float64, which holds their sums exactly: torch's own integer
    product saturates on some processors.
    """
    integer = queries.dtype == torch.int8
    wide = torch.float64 if integer else torch.float32
    lowest = float(torch.iinfo(torch.int32).min) if integer else -torch.inf
    n, m = queries.shape[0], corpus.shape[0]
    blocks = (m + block - 1) // block
    out = queries.new_empty((n, blocks), dtype=torch.int32 if integer else torch.float32)
    if out.numel() == 0:
        return out
    columns = corpus.to(wide).mT
    # A NaN product takes no part either, as in the kernel.
    for start in range(0, n, QUERIES_AT_ONCE):
        scores = (queries[start : start + QUERIES_AT_ONCE].to(wide) @ columns).nan_to_num_(
            nan=lowest, posinf=torch.inf, neginf=-torch.inf
        )
        if eligible is not None:
            scores.masked_fill_(~eligible, lowest)
        padded = torch.nn.functional.pad(scores, (0, blocks * block - m), value=lowest)
        out[start : start + QUERIES_AT_ONCE] = padded.view(-1, blocks, block).amax(-1)
    return out


def rescore(queries: Tensor, corpus: Tensor, query_index: Tensor, corpus_index: Tensor) -> Tensor:
    """Cosines of candidate pairs in float64, in an order of additions that nothing changes."""
    out = queries.new_empty(query_index.shape, dtype=torch.float64)
    for start in range(0, query_index.numel(), PAIRS_AT_ONCE):
        chosen = slice(start, start + PAIRS_AT_ONCE)
        out[chosen] = _rescore_some(queries, corpus, query_index[chosen], corpus_index[chosen])
    return out


def _rescore_some(
    queries: Tensor, corpus: Tensor, query_index: Tensor, corpus_index: Tensor
) -> Tensor:
    if queries.shape[0] == 0 or corpus.shape[0] == 0:
        return torch.full(query_index.shape, torch.nan, dtype=torch.float64)
    present = (query_index >= 0) & (corpus_index >= 0)
    q = _in_range(queries[query_index.clamp_min(0)].double(), queries.dtype)
    c = _in_range(corpus[corpus_index.clamp_min(0)].double(), corpus.dtype)
    norm_q, norm_c = _tree_dot(q, q).sqrt(), _tree_dot(c, c).sqrt()
    # A row of zeros gives 0: divide by 1 instead, which keeps a NaN of the other row.
    norms = norm_q.masked_fill(norm_q == 0, 1.0) * norm_c.masked_fill(norm_c == 0, 1.0)
    score = (_tree_dot(q, c) / norms).clamp(-1.0, 1.0)
    return score.masked_fill(~present, torch.nan)


def _in_range(rows: Tensor, stored: torch.dtype) -> Tensor:
    """Scale float64 rows by a power of two: only theirs can leave the range when squared."""
    if stored != torch.float64 or rows.shape[1] == 0:
        return rows
    largest = rows.abs().amax(1, keepdim=True)
    exponent = torch.frexp(largest.masked_fill(~largest.isfinite(), 1.0)).exponent
    half = exponent // 2
    return torch.ldexp(torch.ldexp(rows, -half), half - exponent)


def _tree_dot(x: Tensor, y: Tensor) -> Tensor:
    """LANES partial sums in the order of the columns, then neighbours until one is left."""
    partial = x.new_zeros((x.shape[0], LANES))
    for start in range(0, x.shape[1], LANES):
        product = x[:, start : start + LANES] * y[:, start : start + LANES]
        partial[:, : product.shape[1]] += product
    while partial.shape[1] > 1:
        partial = partial[:, 0::2] + partial[:, 1::2]
    return partial[:, 0]
