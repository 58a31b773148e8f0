"""A search where queries and corpus are on one GPU: coded there, then `_screened_topk`.

Nothing in it asks what the device is, so its tests run it on CPU tensors.
"""

from __future__ import annotations

import torch
from torch import Tensor

from cossim_fast import _cpu_screen, _ops
from cossim_fast._screened_topk import screened_topk
from cossim_fast.retrieval.codes import centre_of, encode
from cossim_fast.retrieval.engine import Best
from cossim_fast.retrieval.results import Oracle

# The kernels' products read whole vectors of codes.
_WIDTH = 16
_LEVELS = 127  # integer tensor cores do not saturate


def search_on_device(queries: Tensor, corpus: Tensor, k: int, *, certify: bool) -> Best:
    """Find the k best rows (n, d) for each query (q, d), both of one dtype on one device."""
    n, d = corpus.shape
    centre = centre_of(corpus)
    segment = encode(corpus, centre)
    assert segment.codes is not None
    assert segment.scale is not None
    assert segment.residual is not None
    pad = (0, -d % _WIDTH)
    query_codes, query_terms = _code_queries(queries, centre)
    # One row more is the best of those that are left out.
    more = min(k + 1, n) if certify else k
    found = screened_topk(
        queries,
        corpus,
        more,
        torch.nn.functional.pad(query_codes, pad),
        query_terms,
        torch.nn.functional.pad(segment.codes[:n], pad),
        torch.stack([segment.scale, segment.residual, segment.radius]),
        segment.eligible,
    )
    excluded = None
    if certify:
        nothing = torch.full_like(found.scores[:, 0], -torch.inf)
        excluded = found.scores[:, k].nan_to_num(-torch.inf) if more > k else nothing
    return Best(
        found.scores[:, :k].contiguous(),
        found.rows[:, :k].contiguous(),
        excluded,
        found.rescored,
        rows=n,
        skipped=int((~segment.eligible).sum()),
    )


def _code_queries(queries: Tensor, centre: Tensor) -> tuple[Tensor, Tensor]:
    """Codes (q, d) int8 and terms (4, q) float32 of queries, as `screened_topk` wants them."""
    wide = _cpu_screen.widened(queries)
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
    """Float32 above x, which was rounded in float64."""
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
