"""Two groups of rows that lie apart: what is left of the spectrum within them?"""

import math
from dataclasses import dataclass

import torch
from torch import Tensor

from cossim_fast.diagnose import chance
from cossim_fast.diagnose.geometry import Geometry, describe, singular_values
from cossim_fast.diagnose.neighbours import replication

# Ashman's D of a set cut in two: 2.7 for a normal distribution, 3.5 for a uniform one, 4.1 for
# the projection of a circle. Two groups have more than any of them.
_APART = 6.0
# Fewer rows are no group.
_SMALLEST = 4
# Beyond this cosine of their means two groups are the ends of one axis.
_OPPOSITE = -0.5
_STEPS = 50


@dataclass(frozen=True)
class Groups:
    """Two groups that the first axis separates, and the spectrum of rows less their own mean."""

    sizes: tuple[int, int]
    separation: float  # Ashman's D of the unit rows along the axis
    within: Geometry
    replication: float  # of the rows within: see neighbours.replication; 0 where rows differ well


def two_groups(directions: Tensor, norms: Tensor) -> Groups | None:
    """Split unit rows (n, d) along their first axis; None where that gives no two groups.

    The separation is that of Ashman, Bird and Zepf (1994), "Detecting bimodality in astronomical
    datasets". Rows on one axis through the origin become its two ends when they are divided by
    their lengths; ends count as groups where the rows as they are lie apart too.
    """
    rows = directions.double()
    centred = rows - rows.mean(0)
    along = centred @ _first_axis(centred)
    right = _cut(along)
    sizes = int((~right).sum()), int(right.sum())
    if min(sizes) < _SMALLEST:
        return None
    means = torch.stack([rows[~right].mean(0), rows[right].mean(0)])
    separation = _separation(along[~right], along[right])
    if not separation > _APART:
        return None
    if float(torch.nn.functional.cosine_similarity(means[0], means[1], dim=0)) < _OPPOSITE:
        lengths = norms.to(rows) * (
            rows @ torch.nn.functional.normalize(means[1] - means[0], dim=0)
        )
        if not _separation(lengths[~right], lengths[right]) > _APART:
            return None
    less = rows - means[right.long()]
    # Unit rows around one mean lie on a sphere of one axis less.
    rank = max(min(len(rows) - 2, rows.shape[1] - 1), 1)
    values = singular_values(less)[:rank]
    within = describe(float(less.square().sum()), means.mean(0), len(rows), values, rank + 1)
    tight = within.distance < chance.BFLOAT16_STEP
    return Groups(sizes, separation, within, replication(less) if tight else 0.0)


def _first_axis(centred: Tensor) -> Tensor:
    """Return the direction of the largest variance, by power iteration from the longest row."""
    axis = centred[centred.square().sum(1).argmax()]
    for _ in range(_STEPS):
        axis = torch.nn.functional.normalize(centred.T @ (centred @ axis), dim=0)
    return axis


def _cut(along: Tensor) -> Tensor:
    """Return which numbers are right of the cut that leaves the least variance on both sides."""
    ordered = along.sort().values
    n = len(ordered)
    count = torch.arange(1, n, dtype=ordered.dtype, device=ordered.device)
    left = ordered.cumsum(0)[:-1]
    between = left.square() / count + (ordered.sum() - left).square() / (n - count)
    cut = int(between.argmax())
    return along > (ordered[cut] + ordered[cut + 1]) / 2


def _separation(left: Tensor, right: Tensor) -> float:
    spread = float(left.var() + right.var())
    return math.sqrt(2) * float((right.mean() - left.mean()).abs()) / max(math.sqrt(spread), 1e-300)
