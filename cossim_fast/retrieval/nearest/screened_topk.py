"""Exact top-k on one device: screen by codes, drop blocks by proven bounds, rescore the rest.

It calls registered ops only, so CUDA tensors run kernels, and CPU tensors the ops' CPU bodies.
"""

from __future__ import annotations

from collections.abc import Callable, Iterator
from typing import NamedTuple

import torch
from torch import Tensor

from cossim_fast import _checks, _ops
from cossim_fast._score.exact import round_up

BLOCK = 64  # rows that share a scale, a residual and a radius
GROUPS = 1024  # at least, and 4 k: two of the k best blocks rarely fall into one group
CAPACITY = 256  # candidate blocks a query that the first pass has room for
MAXIMA_AT_ONCE = 2**26  # 256 MiB of int32: bounds the queries of one pass
RECHECKED_AT_ONCE = 2**26  # rows rechecked in one step, of which few are rescored
ROWS_AT_ONCE = 2**22  # rows rescored in one step


class Screened(NamedTuple):
    """What `screened_topk` found."""

    scores: Tensor  # (q, k) float64, best first, NaN where fewer than k rows are found
    rows: Tensor  # (q, k) int64, -1 where fewer than k rows are found
    thresholds: Tensor  # (q,) float32: no row that was not rescored reaches this cosine
    rescored: Tensor  # (q,) int64: rows that were


def screened_topk(
    queries: Tensor,
    corpus: Tensor,
    k: int,
    query_codes: Tensor,
    query_terms: Tensor,
    corpus_codes: Tensor,
    block_terms: Tensor,
    eligible: Tensor | None = None,
    *,
    floors: Tensor | None = None,
    capacity: int = CAPACITY,
) -> Screened:
    """Find the k rows of the corpus with the largest score, ties to the smaller row.

    The score is the fixed-order float64 cosine of `_ops.rescore`, whose bits depend on the two
    rows alone; codes decide only which rows need no score. With codes z, unit rows x̄ and any
    constant vector m, the caller guarantees the bounds of `_cpu.topk_ops.cosine_bounds`:

    - ``queries`` (q, d), ``corpus`` (n, d): the stored rows, of one floating dtype;
    - ``query_codes`` (q, d'), ``corpus_codes`` (n, d'): int8, or bfloat16 with residuals that also
      cover the rounding of the product; best with d' a multiple of 16, padded with zeros;
    - ``query_terms`` (4, q) float32: scale s, residual ρ >= ‖q̄ - s z_q‖, norm N >= ‖s z_q‖ and
      offset <q̄, m>; all NaN for a query that holds NaN, which gives rows -1 and scores NaN;
    - ``block_terms`` (3, ceil(n / 64)) float32: for each 64 rows scale s_B, residual
      ρ_B >= ‖x̄ - m - s_B z_x‖ and radius R_B >= ‖x̄ - m‖ over its eligible rows;
    - ``eligible`` (n,) bool: False for rows that must not be returned, such as those with NaN;
    - ``floors`` (q,) float32: scores below which a row need not be returned, such as the k-th best
      of rows that were searched before, rounded down; fewer than k rows may come back then. -inf
      and NaN say nothing.

    Memory beyond the inputs: block maxima of at most 256 MiB (those of one query if that is more),
    16 times that where the bounds drop nothing, 2^26 bytes and 16 for each of 2^26 rows at most
    that pass the recheck, and 2^22 rescored rows.

    Source: Cauchy-Schwarz on the residuals of the codes, derived at `_cpu.topk_ops.cosine_bounds`.
    """
    k = _checks.whole_number("k", k)
    if floors is not None:
        _checks.per_query("floors", floors, queries, torch.float32)
    n, m = queries.shape[0], corpus.shape[0]
    best = _Best(n, k, queries)
    thresholds = torch.full((n,), -torch.inf, dtype=torch.float32, device=queries.device)
    rescored = torch.zeros(n, dtype=torch.int64, device=queries.device)
    block = _block_rows(m, k, eligible)
    groups = max(GROUPS, 1 << (4 * k - 1).bit_length())

    def reach(maxima: Tensor, terms: Tensor, bounds: Tensor, some: slice) -> Tensor:
        found: Tensor = _ops.block_thresholds(maxima, terms, bounds, k, groups)
        thresholds[some] = found if floors is None else torch.fmax(found, floors[some])
        return thresholds[some]

    codes = query_codes, query_terms, corpus_codes, block_terms, eligible
    for query, row, score in _scored(queries, corpus, *codes, block, reach, capacity):
        rescored.index_add_(0, query, torch.ones_like(query))
        best.add(query, row, score)
    return Screened(*best.table(), thresholds, rescored)


def screened_range(
    queries: Tensor,
    corpus: Tensor,
    thresholds: Tensor,
    query_codes: Tensor,
    query_terms: Tensor,
    corpus_codes: Tensor,
    block_terms: Tensor,
    eligible: Tensor | None = None,
    *,
    capacity: int = CAPACITY,
) -> tuple[Tensor, Tensor, Tensor]:
    """Find all rows whose score is at least the query's threshold.

    Returns queries (p,) int64, rows (p,) int64 and scores (p,) float64, sorted by query, then row.
    ``thresholds`` (q,) are float64; a NaN is reached by no row. The other arguments are those of
    `screened_topk`, and so is what is needed beyond the result.
    """
    _checks.per_query("thresholds", thresholds, queries, torch.float64)
    # Rounded down, so that what reaches a threshold reaches its float32.
    reach = -round_up(-thresholds)
    found = [(torch.empty(0, dtype=torch.int64, device=queries.device),) * 2]
    scores = [torch.empty(0, dtype=torch.float64, device=queries.device)]
    codes = query_codes, query_terms, corpus_codes, block_terms, eligible
    for query, row, score in _scored(
        queries, corpus, *codes, BLOCK, lambda *step: reach[step[-1]], capacity
    ):
        kept = score >= thresholds[query]
        found.append((query[kept], row[kept]))
        scores.append(score[kept])
    query, row = (torch.cat(part) for part in zip(*found, strict=True))
    order = (query * max(1, corpus.shape[0]) + row).argsort()
    return query[order], row[order], torch.cat(scores)[order]


def _scored(
    queries: Tensor, corpus: Tensor, query_codes: Tensor, query_terms: Tensor,
    corpus_codes: Tensor, block_terms: Tensor, eligible: Tensor | None, block: int,
    reach_of: Callable[[Tensor, Tensor, Tensor, slice], Tensor], capacity: int,
) -> Iterator[tuple[Tensor, Tensor, Tensor]]:  # fmt: skip
    """Yield queries, rows and scores of all rows that may reach their query's threshold.

    ``reach_of`` gives the thresholds of a slice of queries from their block maxima and terms. Rows
    of one query ascend, within what is yielded at once and from one to the next.
    """
    n, m = queries.shape[0], corpus.shape[0]
    if block == 1:
        block_terms = block_terms.repeat_interleave(BLOCK, 1)[:, :m].contiguous()
    step = max(1, MAXIMA_AT_ONCE // max(1, block_terms.shape[1]))
    for start in range(0, n, step):
        some = slice(start, start + step)
        codes, terms = query_codes[some], query_terms[:, some].contiguous()
        maxima = _ops.block_max(codes, corpus_codes, block, eligible)
        reach = reach_of(maxima, terms, block_terms, some)
        query, number = _candidates(maxima, terms, block_terms, reach, capacity)
        del maxima
        # Adjacent pairs of one block share the reading of its codes; rows of a query ascend.
        order = number.argsort()
        query, number = query[order], number[order]
        for first in range(0, query.numel(), RECHECKED_AT_ONCE // block):
            piece = slice(first, first + RECHECKED_AT_ONCE // block)
            pair_query, row = query[piece], number[piece]
            if block > 1:
                reached = _ops.recheck(codes, corpus_codes, terms, block_terms, reach, pair_query,
                                     row, block, eligible)  # fmt: skip
                pair, lane = reached.nonzero(as_tuple=True)
                pair_query, row = pair_query[pair], row[pair] * block + lane
            pair_query = pair_query + start
            for some_query, some_row in zip(
                pair_query.split(ROWS_AT_ONCE), row.split(ROWS_AT_ONCE), strict=True
            ):
                yield some_query, some_row, _ops.rescore(queries, corpus, some_query, some_row)


def _block_rows(m: int, k: int, eligible: Tensor | None) -> int:
    """Rows a block: 64, or 1 where fewer than k blocks hold a row that may be returned.

    k different blocks must reach a threshold for it to bound the k-th best row.
    """
    if eligible is None:
        blocks = -(-m // BLOCK)
    else:
        padded = torch.nn.functional.pad(eligible, (0, -m % BLOCK))
        blocks = int(padded.view(-1, BLOCK).any(1).sum())
    return BLOCK if blocks >= k else 1


def _candidates(
    maxima: Tensor, query_terms: Tensor, block_terms: Tensor, thresholds: Tensor, capacity: int
) -> tuple[Tensor, Tensor]:
    """All (query, block) whose upper bound reaches the threshold: two lists of one length.

    Queries with more than ``capacity`` of them are asked again at their exact number, never cut.
    """
    counts, blocks = _ops.block_candidates(maxima, query_terms, block_terms, thresholds, capacity)
    most = int(counts.max()) if counts.numel() else 0
    place = torch.arange(capacity, device=maxima.device)
    if most <= capacity:
        query, slot = (place < counts[:, None]).nonzero(as_tuple=True)
        return query, blocks[query, slot].long()
    over = counts > capacity
    query, slot = (place < counts.masked_fill(over, 0)[:, None]).nonzero(as_tuple=True)
    again = over.nonzero().squeeze(1)
    query_again, number_again = _candidates(
        maxima[again], query_terms[:, again], block_terms, thresholds[again], most
    )
    number = torch.cat([blocks[query, slot].long(), number_again])
    return torch.cat([query, again[query_again]]), number


class _Best:
    """The k best (query, row, score) a query of all that were added."""

    def __init__(self, n: int, k: int, like: Tensor):
        self.n, self.k = n, k
        self.query = torch.empty(0, dtype=torch.int64, device=like.device)
        self.row = self.query
        self.score = torch.empty(0, dtype=torch.float64, device=like.device)

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
        """(n, k) scores and rows, best first."""
        scores = self.score.new_full((self.n, self.k), torch.nan)
        rows = self.row.new_full((self.n, self.k), -1)
        place = self._rank(self.query)
        scores[self.query, place] = self.score
        rows[self.query, place] = self.row
        return scores, rows
