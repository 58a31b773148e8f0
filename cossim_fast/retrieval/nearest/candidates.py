"""Rows that may be among the best of a query, in columns: their order, and where the k-th lies."""

from __future__ import annotations

from collections.abc import Sequence
from typing import Any, NamedTuple

import numpy as np
from numpy.typing import NDArray

from cossim_fast.retrieval import tuning

# No cosine, nor a bound on one that matters, is larger; and what the steps up to it are rounded by.
_TOP, _ROUNDED = 1.0 + 2.0**-10, 2.0**-45


class Candidates(NamedTuple):
    """Rows by query, each column of shape (p,).

    numpy takes them by place, or by mask (`compress`), in a fifth of the time of torch's indexing.
    """

    query: NDArray[np.int64]
    row: NDArray[np.int64]
    upper: NDArray[np.float64]  # bounds on its score
    lower: NDArray[np.float64]
    known: NDArray[np.bool_]  # whether they are those of a near score, or the score

    @classmethod
    def none(cls) -> Candidates:
        """No row."""
        whole = np.empty(0, np.int64)
        return cls(whole, whole, np.empty(0), np.empty(0), np.empty(0, bool))

    @classmethod
    def concatenate(cls, parts: Sequence[Candidates]) -> Candidates:
        """One after another."""
        columns: list[NDArray[Any]] = [np.concatenate(parts) for parts in zip(*parts, strict=True)]
        return cls(*columns)

    def taken(self, place: NDArray[np.int64]) -> Candidates:
        """Those at some places, in their order."""
        columns: list[NDArray[Any]] = [column.take(place) for column in self]
        return Candidates(*columns)

    def kept(self, mask: NDArray[np.bool_]) -> Candidates:
        """Those of a mask."""
        return self.taken(np.flatnonzero(mask))

    def middle(self) -> NDArray[np.float64]:
        """What is known best of each score: the score itself where it was made exact."""
        return (self.upper + self.lower) / 2

    def below(self, share: float) -> NDArray[np.float64]:
        """What lies a share of the bound below the middle."""
        return self.lower * ((1 + share) / 2) + self.upper * ((1 - share) / 2)


def kth_largest(
    group: NDArray[np.int64], value: NDArray[np.float64], k: int, least: NDArray[np.float64]
) -> NDArray[np.float64]:
    """Numbers (groups,) that k values of each group reach, and hardly more: -inf where none do.

    Counted in steps, which takes a third of the time of sorting groups and a partition of each.

    Args:
        group: (p,), in any order.
        value: (p,).
        k: how many are to reach it.
        least: (groups,) what a number is to exceed.
    """
    groups, least = len(least), np.minimum(least, _TOP)
    wanted = np.clip(8 * len(group) // max(groups, 1), 64, tuning.COUNTED_STEPS)
    steps = 1 << int(wanted - 1).bit_length()
    width = (_TOP - least) / steps
    per = np.divide(1.0, width, out=np.zeros(groups), where=width > 0)
    # Downwards, since numpy adds up rows that are reversed at a quarter of the speed. The first
    # step holds what lies above it too, the last one what lies below.
    down = (_TOP - value) * per.take(group)
    ranked = step_of_rank(group, down.clip(0, steps - 1).astype(np.int64), k, (groups, steps))
    lower = _TOP - (ranked + 1) * width - _ROUNDED
    return np.where((ranked < steps - 1) & (width > 0), lower, -np.inf)


def step_of_rank(
    group: NDArray[np.int64], step: NDArray[Any], rank: int, shape: tuple[int, int]
) -> NDArray[np.int64]:
    """The step (groups,) at which as many of each group have come; that after the last for fewer.

    Args:
        group: (p,), in any order.
        step: (p,) whole numbers, the first step 0.
        rank: how many are to come.
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
    """The order (p,) of groups, in each of values downwards, and of rows where these are equal.

    Groups stand together. numpy sorts the rows of a table with vector instructions; three keys for
    each number take ten times as long.
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
        run = np.cumsum(~equal[tied])  # whether it equals the one before
        order[tied] = order[tied][np.lexsort((row[order[tied]], run))]
    return order
