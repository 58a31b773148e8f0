"""CPU bodies of the screen and the rescoring: the contracts that the kernels are held to."""

from __future__ import annotations

from typing import NamedTuple

import numpy as np
import torch
from torch import Tensor

# Numbers of a chunk of pairs: 1.5 MB in float64. 1 µs a pair of 384 with half or four times as
# many, 0.8 with these.
CHUNK = 3 << 16
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
    out = queries.new_full(query_index.shape, torch.nan, dtype=torch.float64)
    present = (query_index >= 0) & (corpus_index >= 0)
    if queries.shape[0] and corpus.shape[0]:
        chosen = query_index[present], corpus_index[present]
        out[present] = score_pairs(widen(queries), corpus, *chosen)
    return out


class WideRows(NamedTuple):
    """Rows in float64, scaled by powers of two so that no square leaves its range."""

    rows: Tensor  # (n, d)
    norms: Tensor  # (n,)


def widen(rows: Tensor) -> WideRows:
    """Rows (n, d) of any floating dtype as they enter a score, with their norms."""
    wide = _in_range(rows.double().contiguous(), rows.dtype)
    return WideRows(wide, _norms(wide))


def row_norms(rows: Tensor) -> Tensor:
    """Norms (n,) in float64 of rows as they enter a score: those of `widen`, by chunks."""
    norms = rows.new_empty(rows.shape[0], dtype=torch.float64)
    step = max(CHUNK // max(rows.shape[1], 1), 1)
    for start in range(0, rows.shape[0], step):
        some = slice(start, start + step)
        norms[some] = _norms(_in_range(rows[some].double(), rows.dtype))
    return norms


def score_pairs(
    queries: WideRows,
    corpus: Tensor,
    query_index: Tensor,
    corpus_index: Tensor,
    corpus_norms: Tensor | None = None,
) -> Tensor:
    """The score (p,) of queries[query_index] and corpus[corpus_index], in float64.

    It is <q, x> / (|q| |x|), and 0 where a row is zero. Products are added up in one order
    (`_row_sums`), so the bits depend on the two rows alone: not on the batch, the threads or the
    processor.

    Args:
        queries: from `widen`.
        corpus: (m, d), in the dtype that is stored.
        query_index: (p,) int64.
        corpus_index: (p,) int64.
        corpus_norms: `row_norms` of the corpus (m,), where they are known.
    """
    pairs, d = query_index.numel(), corpus.shape[1]
    dots = torch.empty(pairs, dtype=torch.float64)
    if corpus_norms is None:
        norms = torch.empty(pairs, dtype=torch.float64)
    else:
        norms = corpus_norms[corpus_index]
    step = max(CHUNK // max(d, 1), 1)
    q = torch.empty((min(step, pairs), d), dtype=torch.float64)
    stored, x = torch.empty_like(q, dtype=corpus.dtype), torch.empty_like(q)
    for start in range(0, pairs, step):
        some = slice(start, start + step)
        size = dots[some].numel()
        torch.index_select(queries.rows, 0, query_index[some], out=q[:size])
        torch.index_select(corpus, 0, corpus_index[some], out=stored[:size])
        gathered = _in_range(x[:size].copy_(stored[:size]), corpus.dtype)
        if corpus_norms is None:
            norms[some] = _norms(gathered)
        dots[some] = _row_sums(q[:size].mul_(gathered))
    # A row of zeros gives 0: divide by 1 instead, which keeps a NaN of the other row.
    below = _or_one(queries.norms[query_index]).mul_(_or_one(norms))
    return dots.div_(below).clamp_(-1.0, 1.0)


def _or_one(norms: Tensor) -> Tensor:
    return norms.masked_fill(norms == 0, 1.0)


def _in_range(rows: Tensor, stored: torch.dtype) -> Tensor:
    """Scale float64 rows by a power of two: only theirs can leave the range when squared."""
    if stored != torch.float64 or rows.shape[1] == 0:
        return rows
    largest = rows.abs().amax(1, keepdim=True)
    exponent = torch.frexp(largest.masked_fill(~largest.isfinite(), 1.0)).exponent
    half = exponent // 2
    return torch.ldexp(torch.ldexp(rows, -half), half - exponent)


def _norms(rows: Tensor) -> Tensor:
    return _row_sums(rows * rows).sqrt_()


def _row_sums(products: Tensor) -> Tensor:
    """Sum each row of (p, d) in float64, in an order that d alone decides.

    numpy adds contiguous numbers pairwise, in eight partial sums for each 128, with one thread. A
    tree of our own out of torch's operators took five times as long; torch's sum takes half as
    long, and its order depends on the processor and, for a single long row, on the threads.
    """
    with np.errstate(invalid="ignore", over="ignore"):  # rows that are not finite give NaN
        return torch.from_numpy(np.add.reduce(products.contiguous().numpy(), axis=1))
