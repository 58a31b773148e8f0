"""A search with queries and corpus on one GPU: they are coded there, then `screened_topk`.

Nothing here depends on the device, so tests run it on CPU tensors.
"""

from __future__ import annotations

import torch
from torch import Tensor

from cossim_fast import _ops
from cossim_fast._score.exact import widened
from cossim_fast.retrieval.nearest.screened_topk import screened_topk
from cossim_fast.retrieval.results import Best, Oracle
from cossim_fast.retrieval.screening.codes import BLOCK, centre_of, code, enlarge, unit_rows

# [numbers] Widths of codes are padded to a multiple: kernels read full vectors of codes.
_WIDTH = 16
# Largest code of a query: integer tensor cores do not saturate.
_LEVELS = 127
# [numbers] Coded at a time, in half a GB of scratch. Each step waits for the host: 400 million
# numbers took 990 ms with 2^18, which fit a processor's cache, 60 with 2^22, 18 with 2^25 (H200).
_AT_ONCE = 1 << 25


def search_on_device(queries: Tensor, corpus: Tensor, k: int, *, certify: bool) -> Best:
    """Find the k best rows (n, d) for each query (q, d), both of one dtype on one device."""
    n = len(corpus)
    centre = centre_of(corpus)
    codes, terms, eligible = _code_corpus(corpus, centre)
    skipped = n - int(eligible.sum())
    query_codes, query_terms = _code_queries(queries, centre)
    # The k + 1st row gives the bound on the dropped ones.
    more = min(k + 1, n) if certify else k
    found = screened_topk(
        queries,
        corpus,
        more,
        torch.nn.functional.pad(query_codes, (0, -query_codes.shape[1] % _WIDTH)),
        query_terms,
        codes,
        terms,
        eligible if skipped else None,
    )
    dropped_bound = None
    if certify:
        nothing = torch.full_like(found.scores[:, 0], -torch.inf)
        dropped_bound = found.scores[:, k].nan_to_num(-torch.inf) if more > k else nothing
    return Best(
        found.scores[:, :k].contiguous(),
        found.rows[:, :k].contiguous(),
        dropped_bound,
        found.rescored,
        rows=n,
        skipped=skipped,
    )


def _code_corpus(rows: Tensor, centre: Tensor) -> tuple[Tensor, Tensor, Tensor]:
    """Codes (n, d') int8, block terms (3, blocks) float32 and eligibility (n,) of rows (n, d).

    As `screening.codes.encode` measures them, in steps that suit a GPU.
    """
    n, d = rows.shape
    codes = rows.new_zeros((-(-n // BLOCK) * BLOCK, d + -d % _WIDTH), dtype=torch.int8)
    eligible = rows.new_empty(n, dtype=torch.bool)
    scale, residual, radius = terms = rows.new_empty((3, len(codes) // BLOCK), dtype=torch.float32)
    step = max(_AT_ONCE // max(d, 1) // BLOCK, 1) * BLOCK
    for start in range(0, n, step):
        some = rows[start : start + step]
        norms = torch.linalg.vector_norm(widened(some), dim=1)
        eligible[start : start + step] = norms.isfinite()
        y = torch.nn.functional.pad(unit_rows(some, norms, centre), (0, 0, 0, -len(some) % BLOCK))
        at = slice(start // BLOCK, (start + len(y)) // BLOCK)
        radius[at] = torch.linalg.vector_norm(y, dim=1).view(-1, BLOCK).amax(1)
        scale[at], residual[at] = code(y, codes[start : start + len(y), :d])
    enlarge(radius, residual, d)
    return codes[:n], terms, eligible


def _code_queries(queries: Tensor, centre: Tensor) -> tuple[Tensor, Tensor]:
    """Codes (q, d) int8 and terms (4, q) float32 of queries, as `screened_topk` wants them."""
    wide = widened(queries)
    norms = torch.linalg.vector_norm(wide, dim=1)
    unit = wide / norms.masked_fill(norms == 0, 1.0)[:, None]
    unit = unit.masked_fill(~norms.isfinite()[:, None], 0.0)
    # In float32, as the kernels read it; rounded up, so that no code exceeds the levels.
    scale = _up(unit.abs().amax(1) / _LEVELS).double()
    codes = (unit / scale[:, None]).round()
    coded = codes * scale[:, None]
    terms = torch.stack(
        [
            scale.float(),
            _up(torch.linalg.vector_norm(unit - coded, dim=1)),
            _up(torch.linalg.vector_norm(coded, dim=1)),
            (unit @ centre.double()).float(),
        ]
    )
    return codes.to(torch.int8), terms.masked_fill(~norms.isfinite(), torch.nan)


def _up(x: Tensor) -> Tensor:
    """Float32 above x, where x was rounded in float64."""
    single = x.float()
    return torch.nextafter(single, torch.full_like(single, torch.inf)) + 2.0**-40


def device_oracle(queries: Tensor, corpus: Tensor) -> Oracle:
    """The scores of all pairs of some queries and some rows, from the rows as they are now."""

    def scores(query: Tensor, position: Tensor) -> Tensor:
        pairs = torch.cartesian_prod(query, position).view(-1, 2).to(queries.device)
        index = pairs[:, 0].contiguous(), pairs[:, 1].contiguous()
        found: Tensor = _ops.rescore(queries, corpus, *index)
        return found.view(len(query), len(position)).cpu()

    return scores
