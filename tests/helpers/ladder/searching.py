"""A search of a screen, by the ops' CPU bodies or by kernels, and the brute force beside it."""

from math import isnan

import torch
from torch import Tensor

from cossim_fast._cpu import topk_ops
from cossim_fast.retrieval.nearest.screened_topk import Screened, screened_range, screened_topk
from ladder import oracle
from ladder.checks import F32
from ladder.screening import Screen


def brute_force(s: Screen, k: int) -> tuple[list, list]:
    """Scores and rows, best first and ties to the smaller row, from the score of every pair."""
    n, m = s.cosines.shape
    query = torch.arange(n).repeat_interleave(m)
    scores = topk_ops.rescore(s.queries, s.corpus, query, torch.arange(m).repeat(n)).view(n, m)
    scores, rows = scores.tolist(), []
    allowed = [j for j in range(m) if s.eligible[j]]
    for i in range(n):
        finite = bool(s.queries[i].isfinite().all())
        best = sorted(allowed, key=lambda j: (-scores[i][j], j))[:k] if finite else []
        rows.append(best + [-1] * (k - len(best)))
    return [[scores[i][j] for j in row if j >= 0] for i, row in enumerate(rows)], rows


def search(s: Screen, k: int, eligible: bool = True, **options) -> Screened:
    mask = s.eligible if eligible else None
    return screened_topk(s.queries, s.corpus, k, s.query_codes, s.query_terms, s.corpus_codes,
                         s.block_terms, mask, **options)  # fmt: skip


def assert_exact(s: Screen, k: int, **options) -> Screened:
    found = search(s, k, **options)
    scores, rows = brute_force(s, k)
    assert found.rows.tolist() == rows
    assert [[x for x in row if not isnan(x)] for row in found.scores.tolist()] == scores
    # The certificate: a row that reaches the threshold was rescored, so its number is a bound.
    n = len(rows)
    reaching = ((s.cosines >= found.thresholds[:, None].double()) & s.eligible).sum(1)
    finite = s.queries.isfinite().all(1)
    assert bool((found.rescored >= reaching)[finite].all())
    assert found.rescored[~finite].tolist() == [0] * int((~finite).sum())
    assert found.scores.shape == found.rows.shape == (n, k)
    return found


def gaussian(n: int, m: int, d: int, dtype: torch.dtype = F32, shift: float = 0.3) -> tuple:
    queries, corpus = oracle.inputs(n, d, dtype=F32), oracle.inputs(m, d, dtype=F32, seed=1) + shift
    return queries.to(dtype), corpus.to(dtype), torch.ones(m, dtype=torch.bool)


def all_scores(s: Screen) -> Tensor:
    """The score (n, m) of every pair, -inf where none may be returned."""
    n, m = s.cosines.shape
    query = torch.arange(n).repeat_interleave(m)
    scores = topk_ops.rescore(s.queries, s.corpus, query, torch.arange(m).repeat(n)).view(n, m)
    allowed = s.eligible & s.queries.isfinite().all(1)[:, None]
    return scores.masked_fill(~allowed, -torch.inf)


def search_range(s: Screen, thresholds: Tensor, **options) -> tuple:
    return screened_range(
        s.queries, s.corpus, thresholds, s.query_codes, s.query_terms, s.corpus_codes,
        s.block_terms, s.eligible, **options,
    )  # fmt: skip
