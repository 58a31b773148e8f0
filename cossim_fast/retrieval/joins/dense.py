"""Tiles of which most pairs reach a threshold: a matrix product in float64, where it is certain.

The score of a pair is a sum in one fixed order (`score_pairs`), and takes about as long
as ten of its products in a matrix product, whose order of additions is open. The two differ by
`product_error` at most. So where a cosine of the product is farther than that from the threshold
and from where the rounding to float32 turns, both give the same float32, or both give none. The
few others are scored.
"""

from __future__ import annotations

import numpy as np
import torch
from torch import Tensor

from cossim_fast._numpy import places
from cossim_fast._score.exact import WideRows, widened
from cossim_fast._threads import unforked
from cossim_fast.retrieval import tuning
from cossim_fast.retrieval.screening.codes import Segment

_UNIT = 2.0**-53


def product_error(d: int) -> float:
    """Largest difference between a product of unit rows and the score.

    With u = 2^-53, n_q and n_x the norms as they were computed, and S = sum |q_k x_k| / (n_q n_x),
    which is 1 but for the rounding of the norms, by Cauchy and Schwarz: the product sums d terms
    fl(q_k / n_q) fl(x_k / n_x), each of three roundings, in d - 1 additions, so it is within
    (d + 2) u S of the cosine, to first order, whatever their order (Higham, Accuracy and Stability,
    2002, section 4.2); fewer where additions are fused. The score sums the products, of one
    rounding each, in pairs of halves down to 128, these in eight sums: at most d / 128 + 30
    additions on the way of a term. The product of the norms and the division add two, and that
    copies score 1 adds four (`_score.exact`). Three more roundings are those of the sums that are
    compared below. Together (d + d / 128 + 42) u S; 64 hold the second order and the rounding of
    the norms.
    """
    return (d + d / 64 + 64) * _UNIT


def pairs_above(
    queries: Tensor,
    segment: Segment,
    rows: slice,
    threshold: float,
    *,
    double: bool,
    after: Tensor | None = None,
) -> tuple[Tensor, Tensor, Tensor]:
    """List the pairs that may reach the threshold, query by query.

    Args:
        queries: (q, d) unit rows in float64; NaN in those that reach nothing.
        segment: of the rows.
        rows: of the segment.
        threshold: -1 to 1.
        double: scores are wanted in float64: all are to be computed.
        after: (q,) positions; only later rows are wanted.

    Returns:
        Query, row of the segment and final score (p,); NaN where the score is to be computed.
    """
    d, count = segment.rows.shape[1], rows.stop - rows.start
    error = product_error(d)
    cosines = torch.empty((len(queries), count), dtype=torch.float64, device="cpu")
    step = max(tuning.DENSE_NUMBERS // max(d, 1), 1)
    for start in range(0, count, step):
        at = slice(start, min(start + step, count))
        unit = _unit_rows(segment, slice(rows.start + at.start, rows.start + at.stop))
        unforked(torch.mm, queries, unit.mT, out=cosines[:, at])
    hit = cosines >= threshold - error
    if after is not None and segment.first + rows.start <= int(after.max()):
        hit &= torch.arange(rows.start, rows.stop, device="cpu") + segment.first > after[:, None]
    # numpy counts, as it searches (`places`), in a third of the time of torch.
    if bool(hit.all()):
        flat, near = torch.arange(hit.numel(), device="cpu"), cosines.view(-1)
    else:
        flat = places(hit.view(-1))
        near = cosines.view(-1)[flat]
    query = torch.repeat_interleave(torch.from_numpy(np.count_nonzero(hit.numpy(), axis=1)))
    row = flat.sub_(query * count).add_(rows.start)
    if double:
        return query, row, near.fill_(torch.nan)
    scores = near.add_(error).float()
    lowest = near.sub_(2 * error)
    unsure = (lowest.float() != scores).logical_or_(lowest < threshold)
    # The score of a pair whose product exceeds 1 rounds to 1.
    return query, row, scores.clamp_(-1.0, 1.0).masked_fill_(unsure, torch.nan)


def _unit_rows(segment: Segment, rows: slice) -> Tensor:
    """Unit rows in float64; NaN in those that are not eligible."""
    segment.touch(rows)
    wide = widened(segment.rows[rows])
    unit = WideRows(wide, segment.norms[rows]).unit()
    unit[~segment.eligible[rows]] = torch.nan
    return unit
