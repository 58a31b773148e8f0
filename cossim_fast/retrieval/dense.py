"""Tiles of which most pairs reach a threshold: one product in float64, rounded where that is safe.

The score of a pair is a sum in one fixed order (`_cpu_screen.score_pairs`), and takes about as long
as ten of its products in a matrix product, whose order of additions is open. The two differ by
`product_error` at most. So where a cosine of the product is farther than that from the threshold
and from where the rounding to float32 turns, both give the same float32, or both give none. The
few others are scored.
"""

from __future__ import annotations

import numpy as np
import torch
from torch import Tensor

from cossim_fast import _cpu_screen
from cossim_fast.retrieval.codes import Segment

# Numbers of the rows that are multiplied at a time: 2 MB, which stay in cache.
_NUMBERS = 1 << 18
_UNIT = 2.0**-53


def product_error(d: int) -> float:
    """How far a product of unit rows may be from the score.

    With u = 2^-53, n_q and n_x the norms as they were computed, and S = sum |q_k x_k| / (n_q n_x),
    which is 1 but for the rounding of the norms, by Cauchy and Schwarz: the product sums d terms
    fl(q_k / n_q) fl(x_k / n_x), each of three roundings, in d - 1 additions, so it is within
    (d + 2) u S of the cosine, to first order, whatever their order (Higham, Accuracy and Stability,
    2002, section 4.2); fewer where additions are fused. The score sums the products, of one
    rounding each, in pairs of halves down to 128, these in eight sums: at most d / 128 + 30
    additions on the way of a term. The product of the norms and the division add two. Two more
    roundings are those of the sums by which `unsure` is decided. Together
    (d + d / 128 + 37) u S; 64 hold the second order and the rounding of the norms.
    """
    return (d + d / 64 + 64) * _UNIT


def cosines_above(
    queries: Tensor, segment: Segment, rows: slice, threshold: float, *, double: bool
) -> tuple[Tensor, Tensor]:
    """Which pairs may reach the threshold, and their scores.

    Args:
        queries: (q, d) unit rows in float64; NaN in those that reach nothing.
        segment: of the rows.
        rows: of the segment.
        threshold: -1 to 1.
        double: scores are wanted in float64, which a product never has.

    Returns:
        (q, rows) bool, and (q, rows) scores as they are returned; NaN where they are to be
        computed, anything where the threshold is not reached.
    """
    d, count = segment.rows.shape[1], rows.stop - rows.start
    error = product_error(d)
    hit = torch.empty((len(queries), count), dtype=torch.bool)
    if double:
        scores = torch.full(hit.shape, torch.nan, dtype=torch.float64)
    else:
        scores = torch.empty(hit.shape, dtype=torch.float32)
    step = max(_NUMBERS // max(d, 1), 1)
    for start in range(0, count, step):
        at = slice(start, min(start + step, count))
        unit = _unit_rows(segment, slice(rows.start + at.start, rows.start + at.stop))
        cosines = (queries @ unit.mT).add_(error)
        torch.ge(cosines, threshold, out=hit[:, at])
        if double:
            continue
        highest = cosines.float()
        sure = cosines.sub_(2 * error) >= threshold
        sure &= highest == cosines.float()
        # What lies beyond 1 rounds to 1 in the score.
        highest.clamp_(-1.0, 1.0)
        scores[:, at] = highest.masked_fill_(~sure, torch.nan)
    return hit, scores


def _unit_rows(segment: Segment, rows: slice) -> Tensor:
    """Unit rows in float64; NaN in those that are not eligible."""
    stored = segment.rows[rows]
    wide = _cpu_screen.in_range(stored.double(), stored.dtype)
    unit = _cpu_screen.WideRows(wide, segment.norms[rows]).unit()
    unit[~segment.eligible[rows]] = torch.nan
    return unit


def listed(hit: Tensor, scores: Tensor) -> tuple[Tensor, Tensor, Tensor]:
    """Query, row and score (p,) of the pairs (q, rows) that hit, query by query."""
    width = hit.shape[1]
    # numpy's search of a flat array takes a third of the time of torch's.
    flat = torch.from_numpy(np.flatnonzero(hit.numpy()))
    query = torch.repeat_interleave(hit.sum(1))
    found = scores.view(-1)[flat]
    return query, flat.sub_(query * width), found
