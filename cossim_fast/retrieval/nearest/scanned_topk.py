"""Exact top-k of few queries on one device: rows as they are, blocks dropped by proven bounds.

Nothing is coded: float estimates of the cosines of all rows take one pass over them. The steps are
registered ops, which are kernels for CUDA tensors, and torch's operations on their small results.
"""

from __future__ import annotations

import torch
from torch import Tensor

from cossim_fast import _checks, _ops
from cossim_fast._score.exact import round_up, widened
from cossim_fast.retrieval.nearest import screened_topk as screened
from cossim_fast.retrieval.nearest.screened_topk import BLOCK, Screened

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
AT_ONCE = 2**22  # rows rescored in one step


def suits(q: int, k: int, n: int) -> bool:
    """Whether to scan n rows for the k best of q queries, rather than to code them.

    All 64 rows of a candidate block are rescored: to look at them one by one first would read them
    once more, and the estimates leave few blocks beside those that hold the k best. A scan spares
    the codes, written and read, which take as long as reading half of all float32 rows, and may
    not rescore more.
    """
    return q <= FEW and q * min(BLOCK * k, n) <= max(n // 2, ALWAYS)


def scanned_topk(
    queries: Tensor, corpus: Tensor, k: int, *, floors: Tensor | None = None
) -> tuple[Screened, Tensor]:
    """Find the k rows of the corpus with the largest score, ties to the smaller row.

    Scores, ranks and ``floors`` are those of `screened_topk`, and so are queries (q, d) and corpus
    (n, d), of one floating dtype. Returns also which rows (n,) are finite; others are not returned.

    All bounds of a query's cosines are its estimates with one margin, so that the k-th largest
    estimate less two margins tells which blocks may hold one of the k best.

    Memory beyond the inputs: block maxima of at most 256 MiB (those of one query if that is more),
    16 bytes for each block that is in reach of a query, and 2^22 rescored rows.
    """
    k = _checks.whole_number("k", k)
    n, m = queries.shape[0], corpus.shape[0]
    factors, margins = scan_factors(queries, corpus.dtype)
    best = _Best(n, k, queries)
    thresholds = margins.new_full((n,), -torch.inf)
    rescored = torch.zeros(n, dtype=torch.int64, device=queries.device)
    step = max(1, screened.MAXIMA_AT_ONCE // max(1, -(-m // BLOCK)))
    for start in range(0, max(n, 1), step):
        some = slice(start, start + step)
        maxima, eligible = _ops.scan_rows(factors[some], corpus)
        reach = _kth_largest(maxima, k) - margins[some]
        if floors is not None:
            reach = torch.fmax(reach, floors[some])
        thresholds[some] = reach
        in_reach = (maxima >= (reach - margins[some])[:, None]) & (maxima > -torch.inf)
        # By blocks: queries that share one share the reading of it, and rows of a query ascend.
        pairs = in_reach.mT.nonzero()
        del maxima, in_reach
        for block, query in (piece.unbind(1) for piece in pairs.split(AT_ONCE // BLOCK)):
            row = block[:, None] * BLOCK + torch.arange(BLOCK, device=block.device)
            keep = (row < m) & eligible[row.clamp_max(m - 1)]
            pair_query, row = (query[:, None] + start).expand_as(row)[keep], row[keep]
            rescored.index_add_(0, pair_query, torch.ones_like(pair_query))
            best.add(pair_query, row, _ops.rescore(queries, corpus, pair_query, row))
    return Screened(*best.table(), thresholds, rescored), eligible


def _kth_largest(maxima: Tensor, k: int) -> Tensor:
    """At most the k-th largest maximum (q,) of k different blocks; -inf where there are fewer.

    That of the largest of groups of blocks: two of the k best rarely fall into one.
    """
    q, blocks = maxima.shape
    groups = min(max(screened.GROUPS, 1 << (4 * k - 1).bit_length()), blocks)
    if k > groups:
        return maxima.new_full((q,), -torch.inf)
    padded = torch.nn.functional.pad(maxima, (0, -blocks % groups), value=-torch.inf)
    largest = padded.view(q, padded.shape[1] // groups, groups).amax(1)
    return largest.topk(k, sorted=False).values.amin(1)


def scan_factors(queries: Tensor, stored: torch.dtype) -> tuple[Tensor, Tensor]:
    """What a scan multiplies rows by, (q, d), and the margin (q,) of its estimates; both float32.

    The factors z are unit queries q̄ rounded to 11 significant bits, so that tensor cores lose none
    of them. An estimate of `_ops.scan_rows` is off by e |z| at most, so the cosine by

        |<q̄, x̄> - D| <= |q̄ - z| |x̄| + e |z|,  |x̄| <= 1.

    2^-21 more hold what is rounded where D and the margin are added, 2^-24 of less than 2 each
    time, and the rounding of the score in float64. NaN for a query that is not finite.

    Args:
        queries: (q, d).
        stored: the dtype of the rows.
    """
    wide = widened(queries)
    norms = torch.linalg.vector_norm(wide, dim=1)
    unit = wide / norms.masked_fill(norms == 0, 1.0)[:, None]
    unit = unit.masked_fill(~norms.isfinite()[:, None], 0.0)
    bits = unit.float().view(torch.int32)
    # To the nearest, ties to even.
    factors = ((bits + 0xFFF + ((bits >> 13) & 1)) & ~0x1FFF).view(torch.float32)
    near = factors.double()
    missed, size = (torch.linalg.vector_norm(x, dim=1) for x in (unit - near, near))
    margins = round_up(missed + _ops.scan_error(queries.shape[1], stored) * size) + 2.0**-21
    return factors, margins.masked_fill(~norms.isfinite(), torch.nan)


class _Best:
    """The k best (query, row, score) a query of all that were added."""

    def __init__(self, n: int, k: int, like: Tensor) -> None:
        self.n, self.k = n, k
        self.query = like.new_empty((0,), dtype=torch.int64)
        self.row = self.query
        self.score = like.new_empty((0,), dtype=torch.float64)

    def add(self, query: Tensor, row: Tensor, score: Tensor) -> None:
        """Add entries; rows of one query ascend, and come after all that were added before."""
        query = torch.cat([self.query, query])
        row = torch.cat([self.row, row])
        score = torch.cat([self.score, score])
        # By query, then the larger score; stable sorts leave equal scores in the order of rows.
        order = score.argsort(descending=True, stable=True)
        order = order[query[order].argsort(stable=True)]
        query = query[order]
        kept = self._rank(query) < self.k
        self.query, order = query[kept], order[kept]
        self.row, self.score = row[order], score[order]

    def _rank(self, query: Tensor) -> Tensor:
        """The place of each entry among those of its query; ``query`` is sorted."""
        start = torch.searchsorted(query, torch.arange(self.n, device=query.device))
        return torch.arange(query.numel(), device=query.device) - start[query]

    def table(self) -> tuple[Tensor, Tensor]:
        """Scores and rows (n, k), best first."""
        scores = self.score.new_full((self.n, self.k), torch.nan)
        rows = self.row.new_full((self.n, self.k), -1)
        place = self._rank(self.query)
        scores[self.query, place] = self.score
        rows[self.query, place] = self.row
        return scores, rows
