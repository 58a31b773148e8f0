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
    asked = coded_queries(queries, centre, codes.shape[1])
    found = screened_topk(
        queries, corpus, k, *asked, codes, terms, eligible if skipped else None, floors=floors
    )
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


def coded_queries(queries: Tensor, centre: Tensor, width: int) -> tuple[Tensor, Tensor]:
    """Codes (q, width) int8 and terms (4, q) float32 of queries, as `screened_topk` wants them."""
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
    padded = torch.nn.functional.pad(codes.to(torch.int8), (0, width - codes.shape[1]))
    return padded, terms.masked_fill(~norms.isfinite(), torch.nan)


def floors_of(scores: Tensor, k: int) -> Tensor | None:
    """The k-th best scores (q,) so far, rounded down to float32; None if fewer were looked for.

    A later row with less is not among the k best. NaN where fewer were found, which says nothing.
    """
    return -round_up(-scores[:, k - 1]) if scores.shape[1] >= k else None


def merge_ranked(
    scores: Tensor, rows: Tensor, more_scores: Tensor, more_rows: Tensor, k: int
) -> tuple[Tensor, Tensor]:
    """The k best scores and rows, or fewer, of two lists a query, best first; NaN and -1 last.

    Rows of the second come after all of the first: a stable sort leaves ties in their order.
    """
    scores, rows = torch.cat([scores, more_scores], 1), torch.cat([rows, more_rows], 1)
    order = scores.nan_to_num(-torch.inf).sort(dim=1, descending=True, stable=True).indices[:, :k]
    scores = scores.gather(1, order)
    return scores, rows.gather(1, order).masked_fill_(scores.isnan(), -1)


def device_oracle(queries: Tensor, corpus: Tensor) -> Oracle:
    """The scores of all pairs of some queries and some rows, from the rows as they are now."""

    def scores(query: Tensor, position: Tensor) -> Tensor:
        pairs = torch.cartesian_prod(query, position).view(-1, 2).to(queries.device)
        index = pairs[:, 0].contiguous(), pairs[:, 1].contiguous()
        found: Tensor = _ops.rescore(queries, corpus, *index)
        return found.view(len(query), len(position)).cpu()

    return scores
