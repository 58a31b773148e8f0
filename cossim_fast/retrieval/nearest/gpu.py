"""A search with queries and corpus on one GPU: by a scan, or coded there and then screened.

Nothing here depends on the device, so tests run it on CPU tensors.
"""

from __future__ import annotations

import torch
from torch import Tensor

from cossim_fast import _ops
from cossim_fast._score.exact import round_up, widened
from cossim_fast.retrieval.nearest import scanned_topk
from cossim_fast.retrieval.nearest.screened_topk import Screened, screened_topk
from cossim_fast.retrieval.results import Best, Oracle
from cossim_fast.retrieval.screening.codes import centre_of

# Largest code of a query: integer tensor cores do not saturate.
_LEVELS = 127


def search_on_device(
    queries: Tensor, corpus: Tensor, k: int, *, certify: bool, screen: str = "auto"
) -> Best:
    """Find the k best rows (n, d) for each query (q, d), both of one dtype on one device."""
    n = len(corpus)
    # The k + 1st row gives the bound on the dropped ones.
    more = min(k + 1, n) if certify else k
    found, skipped = best_rows(queries, corpus, more, screen=screen)
    return as_best(
        found.scores, found.rows, found.rescored, k, certify, rows_searched=n, skipped=skipped
    )


def best_rows(
    queries: Tensor, corpus: Tensor, k: int, *, screen: str = "auto", floors: Tensor | None = None
) -> tuple[Screened, int]:
    """The k best rows, of those that reach the ``floors`` (q,), and how many are not finite."""
    n = len(corpus)
    if screen == "auto" and scanned_topk.suits(len(queries), k, n):
        found, eligible = scanned_topk.scanned_topk(queries, corpus, k, floors=floors)
        return found, n - int(eligible.sum())
    centre = centre_of(corpus)
    codes, terms, eligible = _ops.code_rows(corpus, centre)
    codes = codes[:n]
    skipped = n - int(eligible.sum())
    query_codes, query_terms = _code_queries(queries, centre)
    query_codes = torch.nn.functional.pad(query_codes, (0, codes.shape[1] - query_codes.shape[1]))
    found = screened_topk(
        queries, corpus, k, query_codes, query_terms, codes, terms, eligible if skipped else None,
        floors=floors,
    )  # fmt: skip
    return found, skipped


def as_best(
    scores: Tensor, rows: Tensor, rescored: Tensor, k: int, certify: bool, *, rows_searched: int,
    skipped: int,
) -> Best:  # fmt: skip
    """The result of a search from the k + 1 best rows, or from k where there is no other."""
    dropped_bound = None
    if certify:
        dropped_bound = torch.full_like(scores[:, 0], -torch.inf)
        if scores.shape[1] > k:
            dropped_bound = scores[:, k].nan_to_num(-torch.inf)
    return Best(
        scores[:, :k].contiguous(),
        rows[:, :k].contiguous(),
        dropped_bound,
        rescored,
        rows=rows_searched,
        skipped=skipped,
    )


def _code_queries(queries: Tensor, centre: Tensor) -> tuple[Tensor, Tensor]:
    """Codes (q, d) int8 and terms (4, q) float32 of queries, as `screened_topk` wants them."""
    wide = widened(queries)
    norms = torch.linalg.vector_norm(wide, dim=1)
    unit = wide / norms.masked_fill(norms == 0, 1.0)[:, None]
    unit = unit.masked_fill(~norms.isfinite()[:, None], 0.0)
    # In float32, as the kernels read it; rounded up, so that no code exceeds the levels.
    scale = round_up(unit.abs().amax(1) / _LEVELS).double()
    codes = (unit / scale[:, None]).round()
    coded = codes * scale[:, None]
    terms = torch.stack(
        [
            scale.float(),
            round_up(torch.linalg.vector_norm(unit - coded, dim=1)),
            round_up(torch.linalg.vector_norm(coded, dim=1)),
            (unit @ centre.double()).float(),
        ]
    )
    return codes.to(torch.int8), terms.masked_fill(~norms.isfinite(), torch.nan)


def coded_queries(queries: Tensor, centre: Tensor, width: int) -> tuple[Tensor, Tensor]:
    """The same with codes (q, width), padded as those of the rows are."""
    codes, terms = _code_queries(queries, centre)
    return torch.nn.functional.pad(codes, (0, width - codes.shape[1])), terms


def device_oracle(queries: Tensor, corpus: Tensor) -> Oracle:
    """The scores of all pairs of some queries and some rows, from the rows as they are now."""

    def scores(query: Tensor, position: Tensor) -> Tensor:
        pairs = torch.cartesian_prod(query, position).view(-1, 2).to(queries.device)
        index = pairs[:, 0].contiguous(), pairs[:, 1].contiguous()
        found: Tensor = _ops.rescore(queries, corpus, *index)
        return found.view(len(query), len(position)).cpu()

    return scores
