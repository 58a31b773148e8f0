"""Exact top-k of few queries on one device: rows as they are, blocks dropped by proven bounds.

As `screened_topk`, it calls registered ops only, and differs from it in what it screens by: nothing
is coded, float estimates of the cosines of all rows take one pass over them.
"""

from __future__ import annotations

import torch
from torch import Tensor

from cossim_fast import _checks, _ops
from cossim_fast._cpu.topk_ops import scan_error
from cossim_fast._score.exact import round_up, widened
from cossim_fast.retrieval.nearest import screened_topk as screened
from cossim_fast.retrieval.nearest.screened_topk import BLOCK, CAPACITY, Screened

# Up to so many queries the rows are scanned as they are. By arithmetic, for 2^20 float32 rows of
# 384 on an H200 (4.3 TB/s, 395 T operations of tf32): reading them takes 0.37 ms, to which a scan
# adds what its products take beyond that. 64 queries are one tile, and at half of the peak 0.26 ms,
# under the reading; each further 64 add 0.26. Coding reads the rows and writes a byte a number,
# 0.47 ms, which are read again, 0.1, and adds 0.06 for each 64 queries: 0.6 for up to 64 of them,
# 0.37 as a scan; at 128 they are about even. Float16 rows: 0.19 for reading, products as before,
# so 0.26 a tile, and 0.28 + 0.1 + 0.06.
FEW = 64
# Rows that a search may rescore whatever its size: 0.05 ms at 384 float32 numbers.
ALWAYS = 2**17


def suits(q: int, k: int, n: int) -> bool:
    """Whether to scan n rows for the k best of q queries, rather than to code them.

    All 64 rows of a candidate block are rescored: to look at them one by one first would read them
    once more, and the estimates leave few blocks beside those that hold the k best. A scan spares
    the codes, written and read, which take as long as reading half of all float32 rows, and may
    not rescore more.
    """
    return q <= FEW and q * min(BLOCK * k, n) <= max(n // 2, ALWAYS)


def scanned_topk(
    queries: Tensor,
    corpus: Tensor,
    k: int,
    *,
    floors: Tensor | None = None,
    capacity: int = CAPACITY,
) -> tuple[Screened, Tensor]:
    """Find the k rows of the corpus with the largest score, ties to the smaller row.

    Scores, ranks and ``floors`` are those of `screened_topk`, and so are queries (q, d) and corpus
    (n, d), of one floating dtype. Returns also which rows (n,) are finite; others are not returned.

    Memory beyond the inputs: block maxima of at most 256 MiB (those of one query if that is more),
    and 2^22 rescored rows.
    """
    k = _checks.whole_number("k", k)
    (n, d), m = queries.shape, corpus.shape[0]
    factors, query_terms = scan_factors(queries)
    blocks = -(-m // BLOCK)
    # Estimates of the cosines themselves: of scale 1, with unit rows for radius and no centre.
    terms_of_block = (1.0, scan_error(d, corpus.dtype), 1.0)
    block_terms = query_terms.new_tensor(terms_of_block)[:, None].expand(3, blocks).contiguous()
    best = screened._Best(n, k, queries)
    thresholds = torch.full((n,), -torch.inf, dtype=torch.float32, device=queries.device)
    rescored = torch.zeros(n, dtype=torch.int64, device=queries.device)
    groups = max(screened.GROUPS, 1 << (4 * k - 1).bit_length())
    step = max(1, screened.MAXIMA_AT_ONCE // max(1, blocks))
    for start in range(0, max(n, 1), step):
        some = slice(start, start + step)
        terms = query_terms[:, some].contiguous()
        maxima, eligible = _ops.scan_rows(factors[some], corpus)
        reach = _ops.block_thresholds(maxima, terms, block_terms, k, groups)
        if floors is not None:
            reach = torch.fmax(reach, floors[some])
        thresholds[some] = reach
        query, number = screened._candidates(maxima, terms, block_terms, reach, capacity)
        del maxima
        # Rows of a query ascend, and queries that share a block share the reading of it.
        order = number.argsort()
        at_once = screened.ROWS_AT_ONCE // BLOCK
        for piece in order.split(at_once):
            pair_query, row = _rows_of(query[piece] + start, number[piece], eligible)
            rescored.index_add_(0, pair_query, torch.ones_like(pair_query))
            best.add(pair_query, row, _ops.rescore(queries, corpus, pair_query, row))
    return Screened(*best.table(), thresholds, rescored), eligible


def _rows_of(query: Tensor, block: Tensor, eligible: Tensor) -> tuple[Tensor, Tensor]:
    """All pairs of queries with the rows of their blocks that are eligible."""
    row = block[:, None] * BLOCK + torch.arange(BLOCK, device=block.device)
    last = len(eligible) - 1
    keep = (row <= last) & eligible[row.clamp_max(last)]
    return query[:, None].expand_as(row)[keep], row[keep]


def scan_factors(queries: Tensor) -> tuple[Tensor, Tensor]:
    """What a scan multiplies rows by, (q, d) float32, and the queries' terms (4, q) float32.

    These are unit rows, rounded to 11 significant bits, so that tensor cores lose none of them:
    as `_ops.scan_rows` and `_cpu.topk_ops.cosine_bounds` want them.
    """
    wide = widened(queries)
    norms = torch.linalg.vector_norm(wide, dim=1)
    unit = wide / norms.masked_fill(norms == 0, 1.0)[:, None]
    unit = unit.masked_fill(~norms.isfinite()[:, None], 0.0)
    bits = unit.float().view(torch.int32)
    # To the nearest, ties to even.
    rounded = (bits + 0xFFF + ((bits >> 13) & 1)) & ~0x1FFF
    factors = rounded.view(torch.float32)
    near = factors.double()
    terms = torch.stack(
        [
            torch.ones_like(norms, dtype=torch.float32),
            round_up(torch.linalg.vector_norm(unit - near, dim=1)),
            round_up(torch.linalg.vector_norm(near, dim=1)),
            torch.zeros_like(norms, dtype=torch.float32),
        ]
    )
    return factors, terms.masked_fill(~norms.isfinite(), torch.nan)
