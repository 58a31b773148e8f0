"""Exact top-k on one device: screen by codes, drop blocks by proven bounds, rescore the rest.

It calls registered ops only, so CUDA tensors run kernels, and CPU tensors the ops' CPU bodies.

The stages of a pass over n queries, after the block maxima; none waits for the device:

1. the k-th best lower bound of the blocks, and k blocks that reach it (`block_thresholds`);
2. the best row of each of these (`best_rows`), scored: the least score is the threshold;
3. the pairs of a query and a block that reach it, in one list, sorted (`block_candidates`);
4. the rows of these blocks that reach it, a list for each query, sorted (`recheck`, `rescore`);
5. one stable sort by score, which leaves equal scores in the order of rows.

The lists have a length that is chosen beforehand. How much was found is read once, when all this is
under way: the one wait for the device. Where a list was too short, its queries are done again at
the length that they need, never cut.
"""

from __future__ import annotations

from collections.abc import Iterator
from dataclasses import dataclass
from typing import NamedTuple

import torch
from torch import Tensor

from cossim_fast import _checks, _ops
from cossim_fast._score.exact import round_up

BLOCK = 64  # rows that share a scale, a residual and a radius
GROUPS = 1024  # at least, and 4 k: two of the k best blocks rarely fall into one group
CAPACITY = 128  # candidates of a query that there is room for at first, and of a larger k 8 k + 48
MAXIMA_AT_ONCE = 2**26  # 256 MiB of int32: bounds the queries of one pass
ROWS_AT_ONCE = 2**22  # rows rescored at once, unused places of lists included
NO_PAIR = 2**31 - 1  # in a list of pairs


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
    capacity: int | None = None,
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
      and NaN say nothing;
    - ``capacity``: room a query for candidates at first, which changes nothing but the time.

    Memory beyond the inputs and the result: block maxima of at most 256 MiB (those of one query if
    that is more), 100 bytes for each place of the lists, of which there are 2^22 at most, and 8 KiB
    a query of a pass (100 k bytes if that is more). Where the bounds drop little, 32 bytes for each
    of the block maxima, or 100 for each row of the corpus if that is more.

    Source: Cauchy-Schwarz on the residuals of the codes, derived at `_cpu.topk_ops.cosine_bounds`.
    """
    k = _checks.whole_number("k", k)
    if floors is not None:
        _checks.query_values("floors", floors, queries, torch.float32)
    n, m = queries.shape[0], corpus.shape[0]
    scores = queries.new_full((n, k), torch.nan, dtype=torch.float64)
    rows = queries.new_full((n, k), -1, dtype=torch.int64)
    thresholds = queries.new_full((n,), -torch.inf, dtype=torch.float32)
    rescored = queries.new_zeros((n,), dtype=torch.int64)
    screen = _Screen(queries, corpus, query_codes, query_terms, corpus_codes, block_terms, eligible)
    width = min(max(CAPACITY, 8 * k + 48) if capacity is None else capacity, m)
    single = screen.blocks < k
    for some in _passes(n, m if single else screen.blocks, max(width, min(k, m))):
        part = screen.of(some)
        reach = part.thresholds(min(k, m), single)
        thresholds[some] = reach if floors is None else torch.fmax(reach, floors[some])
        for found in part.rows_in_reach(thresholds[some], width):
            at = found.query + some.start
            rescored[at] = found.counts.long()
            scores[at], rows[at] = _best(found, k)
    return Screened(scores, rows, thresholds, rescored)


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
    capacity: int | None = None,
) -> tuple[Tensor, Tensor, Tensor]:
    """Find all rows whose score is at least the query's threshold.

    Returns queries (p,) int64, rows (p,) int64 and scores (p,) float64, sorted by query, then row.
    ``thresholds`` (q,) are float64; a NaN is reached by no row. The other arguments are those of
    `screened_topk`, and so is the memory beyond the result.
    """
    _checks.query_values("thresholds", thresholds, queries, torch.float64)
    # Rounded down, so that what reaches a threshold reaches its float32.
    reach = -round_up(-thresholds)
    n, m = queries.shape[0], corpus.shape[0]
    screen = _Screen(queries, corpus, query_codes, query_terms, corpus_codes, block_terms, eligible)
    width = min(CAPACITY if capacity is None else capacity, m)
    parts = [(reach.new_empty((0,), dtype=torch.int64), thresholds.new_empty((0,)))]
    for some in _passes(n, screen.blocks, width):
        for found in screen.of(some).rows_in_reach(reach[some], width):
            at = found.query + some.start
            kept = (found.scores >= thresholds[at, None]) & found.complete[:, None]
            place = kept.nonzero(as_tuple=True)
            parts.append((at[place[0]] * m + found.rows[place], found.scores[place]))
    key, score = (torch.cat(part) for part in zip(*parts, strict=True))
    # Queries that were done again come after the others.
    key, order = key.sort()
    return key // max(m, 1), key % max(m, 1), score[order]


def _passes(n: int, columns: int, width: int) -> Iterator[slice]:
    """Slices of n queries whose maxima and whose lists are of bounded size."""
    step = max(1, min(MAXIMA_AT_ONCE // max(columns, 1), ROWS_AT_ONCE // max(width, 1)))
    # Without rows there is nothing to find.
    for start in range(0, n if columns else 0, step):
        yield slice(start, min(start + step, n))


class _Found(NamedTuple):
    """Rows that may reach their queries' thresholds, w places a query."""

    query: Tensor  # (n,) int64, different ones
    rows: Tensor  # (n, w) int64, ascending; the -1 of unused places come first
    scores: Tensor  # (n, w) float64, NaN where unused
    counts: Tensor  # (n,) int32: how many there are, beyond w too
    complete: Tensor  # (n,) bool: whether these are all


def _best(found: _Found, k: int) -> tuple[Tensor, Tensor]:
    """Scores and rows (n, k) of the best, ties to the smaller row; NaN and -1 beyond."""
    scores = found.scores.nan_to_num(nan=-torch.inf)
    scores, order = scores.sort(dim=1, descending=True, stable=True)
    scores, rows = scores[:, :k], found.rows.gather(1, order[:, :k])
    missing = k - scores.shape[1]
    rows = torch.nn.functional.pad(rows, (0, missing), value=-1)
    scores = torch.nn.functional.pad(scores, (0, missing), value=torch.nan)
    return scores.masked_fill(rows < 0, torch.nan), rows


@dataclass(frozen=True)
class _Screen:
    """Queries, a corpus, and the codes that bound their cosines; see `screened_topk`."""

    queries: Tensor
    corpus: Tensor
    query_codes: Tensor
    query_terms: Tensor
    corpus_codes: Tensor
    block_terms: Tensor
    eligible: Tensor | None

    @property
    def blocks(self) -> int:
        return self.block_terms.shape[1]

    def of(self, some: slice) -> _Pass:
        """A pass over some of the queries: reads the codes of the corpus once."""
        terms = self.query_terms[:, some].contiguous()
        codes = self.query_codes[some]
        maxima = _ops.block_max(codes, self.corpus_codes, BLOCK, self.eligible)
        return _Pass(self, self.queries[some], codes, terms, maxima)


@dataclass(frozen=True)
class _Pass:
    """Some queries of a screen and their block maxima."""

    screen: _Screen
    queries: Tensor
    codes: Tensor
    terms: Tensor
    maxima: Tensor

    def thresholds(self, k: int, single: bool) -> Tensor:
        """A lower bound (n,) float32 on the k-th best score of each query, -inf if none is known.

        The least score of k rows that are good by their codes, which the k-th best cannot be below:
        about an error bound above what the codes alone prove, so that less is in reach. With
        ``single``, because there are fewer than k blocks, the k rows with the best codes of all;
        else those of k blocks.
        """
        s, n, m = self.screen, len(self.queries), len(self.screen.corpus)
        groups = max(GROUPS, 1 << (4 * k - 1).bit_length())
        if single:
            products = _ops.block_max(self.codes, s.corpus_codes, 1, s.eligible)
            terms = s.block_terms.repeat_interleave(BLOCK, 1)[:, :m].contiguous()
            reach, row = _ops.block_thresholds(products, self.terms, terms, k, groups)
        else:
            reach, block = _ops.block_thresholds(self.maxima, self.terms, s.block_terms, k, groups)
            query = torch.arange(n, device=block.device)[:, None]
            pairs = (block * n + query).masked_fill_(block < 0, NO_PAIR).view(-1)
            pairs, order = pairs.int().sort()
            row = torch.empty_like(block)
            row.view(-1)[order] = _ops.best_rows(
                self.codes, s.corpus_codes, pairs, BLOCK, s.eligible
            )
        score = self._scores(row).amin(1)
        # Rounded down; NaN where fewer than k rows are known.
        return torch.fmax(reach, -round_up(-score))

    def rows_in_reach(self, reach: Tensor, width: int) -> Iterator[_Found]:
        """Yield all rows that may reach their queries' thresholds, at first ``width`` a query.

        Then the queries that these were not all of, each once more, with all.
        """
        n = len(self.queries)
        everyone = torch.arange(n, device=reach.device)
        room = min(n * width, self.maxima.numel())
        total, found = self._listed(everyone, reach, room, width)
        yield found
        pairs, most = torch.cat([total, found.counts.amax(0, keepdim=True)]).tolist()
        if pairs > room:
            _, found = self._listed(everyone, reach, pairs, width)
            yield found
            most = int(found.counts.max())
        if most <= width:
            return
        counts = found.counts.tolist()
        longest = sorted((i for i in range(n) if counts[i] > width), key=counts.__getitem__)
        while longest:
            most = counts[longest[-1]]
            again = longest[-max(1, ROWS_AT_ONCE // most) :]
            del longest[-len(again) :]
            some = torch.tensor(again, dtype=torch.int64, device=reach.device)
            part = _Pass(
                self.screen, self.queries[some], self.codes[some], self.terms[:, some].contiguous(),
                self.maxima[some],
            )  # fmt: skip
            yield part._listed(some, reach[some], min(pairs, part.maxima.numel()), most)[1]

    def _listed(self, query: Tensor, reach: Tensor, room: int, width: int) -> tuple[Tensor, _Found]:
        """The number of pairs of a block in reach, and the rows of those listed.

        ``query`` says where the queries of this pass stand.
        """
        s = self.screen
        total, pairs = _ops.block_candidates(self.maxima, self.terms, s.block_terms, reach, room)
        counts, rows = _ops.recheck(
            self.codes, s.corpus_codes, self.terms, s.block_terms, reach, pairs.sort().values,
            BLOCK, s.eligible, width,
        )  # fmt: skip
        rows = rows.sort(dim=1).values
        complete = (counts <= width) & (total <= room)
        return total, _Found(query, rows, self._scores(rows), counts, complete)

    def _scores(self, rows: Tensor) -> Tensor:
        """Scores (n, w) float64 of rows (n, w) of the queries, NaN for a row of -1."""
        query = torch.arange(len(rows), device=rows.device)[:, None].expand_as(rows)
        found: Tensor = _ops.rescore(
            self.queries, self.screen.corpus, query.reshape(-1), rows.reshape(-1)
        )
        return found.view_as(rows)
