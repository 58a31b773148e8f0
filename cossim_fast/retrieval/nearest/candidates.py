"""Candidates: rows that may be among the best of a query, in columns; how they are ranked."""

from __future__ import annotations

from collections.abc import Sequence
from typing import Any, NamedTuple

import numpy as np
from numpy.typing import NDArray

from cossim_fast.retrieval import tuning

# No cosine, and no relevant bound on one, is larger.
_TOP = 1.0 + 2.0**-10
# Rounding error of the steps of a histogram up to there.
_ROUNDED = 2.0**-45


class Candidates(NamedTuple):
    """Candidates of several queries, each column of shape (p,).

    numpy's `take` and `compress` need a fifth of the time of torch's indexing.
    """

    query: NDArray[np.int64]
    row: NDArray[np.int64]
    upper: NDArray[np.float64]  # bounds on its score
    lower: NDArray[np.float64]
    known: NDArray[np.bool_]  # whether the bounds are those of a near or exact score

    @classmethod
    def none(cls) -> Candidates:
        """No candidates."""
        numbers = np.empty(0, np.int64)
        return cls(numbers, numbers, np.empty(0), np.empty(0), np.empty(0, bool))

    @classmethod
    def concatenate(cls, parts: Sequence[Candidates]) -> Candidates:
        """One after another."""
        columns: list[NDArray[Any]] = [np.concatenate(parts) for parts in zip(*parts, strict=True)]
        return cls(*columns)

    def taken(self, place: NDArray[np.int64]) -> Candidates:
        """Those at these places, in their order."""
        columns: list[NDArray[Any]] = [column.take(place) for column in self]
        return Candidates(*columns)

    def kept(self, mask: NDArray[np.bool_]) -> Candidates:
        """Those of a mask."""
        return self.taken(np.flatnonzero(mask))

    def middle(self) -> NDArray[np.float64]:
        """The best estimate of each score: the score itself where it is exact."""
        return (self.upper + self.lower) / 2

    def below(self, share: float) -> NDArray[np.float64]:
        """The middle minus a share of the error bound."""
        return self.lower * ((1 + share) / 2) + self.upper * ((1 - share) / 2)


def kth_largest(
    group: NDArray[np.int64], value: NDArray[np.float64], k: int, least: NDArray[np.float64]
) -> NDArray[np.float64]:
    """A lower bound (groups,) of the k-th largest value of each group; -inf where it has fewer.

    Found by a histogram, in a third of the time of sorting by group and partitioning each.

    Args:
        group: (p,), in any order.
        value: (p,).
        k: which value to bound.
        least: (groups,) values up to this are not resolved: where the k-th is one, the bound is
            -inf.
    """
    groups, least = len(least), np.minimum(least, _TOP)
    wanted = np.clip(8 * len(group) // max(groups, 1), 64, tuning.COUNTED_STEPS)
    steps = 1 << int(wanted - 1).bit_length()
    width = (_TOP - least) / steps
    per = np.divide(1.0, width, out=np.zeros(groups), where=width > 0)
    # Steps count downwards, since numpy cumulates reversed rows at a quarter of the speed. The
    # first step also holds all values above it, and the last one all below.
    down = (_TOP - value) * per.take(group)
    ranked = step_of_rank(group, down.clip(0, steps - 1).astype(np.int64), k, (groups, steps))
    lower = _TOP - (ranked + 1) * width - _ROUNDED
    return np.where((ranked < steps - 1) & (width > 0), lower, -np.inf)


def step_of_rank(
    group: NDArray[np.int64], step: NDArray[Any], rank: int, shape: tuple[int, int]
) -> NDArray[np.int64]:
    """The step (groups,) that holds the rank-th of each group; ``steps`` where a group has fewer.

    Args:
        group: (p,), in any order.
        step: (p,) integers from 0 on.
        rank: from 1 on.
        shape: how many groups and steps there are.
    """
    groups, steps = shape
    counts = np.bincount(group * steps + step, minlength=groups * steps).reshape(shape)
    reached = counts.cumsum(1) >= rank
    return np.where(reached[:, -1], reached.argmax(1), steps)


def ranking(
    group: NDArray[np.int64],
    value: NDArray[np.float64],
    row: NDArray[np.int64],
    groups: int,
) -> NDArray[np.int64]:
    """The order (p,) by group, then by descending value, then by row; ``group`` is sorted.

    numpy sorts the rows of a table with vector instructions; sorting by three keys takes ten times
    as long.
    """
    held = np.bincount(group, minlength=groups)
    width = int(held.max(initial=0))
    if width * groups > 4 * len(group) + tuning.WIDEST_TABLE:
        return np.lexsort((row, -value, group))
    valid = np.arange(width) < held[:, None]
    table = np.full((groups, width), np.inf)
    table[valid] = -value
    by_value = np.argsort(table, axis=1) + (held.cumsum() - held)[:, None]
    order: NDArray[np.int64] = by_value[valid]
    ordered = value.take(order)
    equal = np.pad((ordered[1:] == ordered[:-1]) & (group[1:] == group[:-1]), 1)
    tied = np.flatnonzero(equal[1:] | equal[:-1])
    if len(tied):
        run = np.cumsum(~equal[tied])  # numbers each run of equal values
        order[tied] = order[tied][np.lexsort((row[order[tied]], run))]
    return order
