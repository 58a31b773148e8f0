"""Which rows each query may find, and results among these: what ``where`` means to all searches."""

from __future__ import annotations

from collections.abc import Callable, Sequence
from dataclasses import dataclass
from functools import partial
from typing import Any

import numpy as np
import torch
from torch import Tensor

from cossim_fast import _checks
from cossim_fast.retrieval import tuning
from cossim_fast.retrieval.results import Best, Oracle


@dataclass(frozen=True)
class Selection:
    """Queries that may find the same rows."""

    queries: Tensor  # (g,) ascending numbers
    count: int  # of the rows
    # Gives the rows' ascending positions (m,): of a mask they would take eight times its memory.
    positions: Callable[[], Tensor]

    @property
    def rows(self) -> Tensor:
        """Ascending positions (m,)."""
        return self.positions()

    @property
    def pairs(self) -> int:
        """How many queries and rows may meet."""
        return len(self.queries) * self.count

    def is_small_share(self, total: int) -> bool:
        """Whether it takes less time to code the rows and search them than to search all."""
        g, m = len(self.queries), self.count
        return 2 * m < total and m * (tuning.CODED_AS_QUERIES + g) < total * g


def mask_of(where: Any) -> np.ndarray[Any, Any] | None:
    """What says yes or no of each row, as an array; None for ids."""
    if isinstance(where, (list, tuple)) and where:
        if all(isinstance(item, (bool, np.bool_)) for item in where):
            return np.array(where)
        masks: list[np.ndarray[Any, Any]] = []
        for item in where:
            mask = mask_of(item)
            if mask is None or (masks and mask.shape != masks[0].shape):
                return None
            masks.append(mask)
        return np.stack(masks)
    if isinstance(where, Tensor) and where.dtype == torch.bool:
        where = _checks.as_tensor("where", where).cpu().numpy()
    # A copy, since a certificate looks at it later.
    return np.array(where) if getattr(where, "dtype", None) == np.bool_ else None


def by_mask(
    mask: np.ndarray[Any, Any], queries: int, live: Tensor | None = None
) -> list[Selection]:
    """Queries that may find the same rows, by a mask (n,) for all of them or (q, n) for each.

    Args:
        mask: of the live rows.
        queries: how many.
        live: (n,) positions of these rows; None where they are those from 0 on.
    """

    def positions(allowed: np.ndarray[Any, Any]) -> Tensor:
        rows = torch.from_numpy(allowed.nonzero()[0])
        return rows if live is None else live[rows]

    if mask.ndim == 1:
        everybody = torch.arange(queries, device="cpu")
        return [Selection(everybody, int(mask.sum()), partial(positions, mask))]
    same: dict[bytes, list[int]] = {}
    for number, allowed in enumerate(mask):
        same.setdefault(np.packbits(allowed).tobytes(), []).append(number)
    return [
        Selection(_numbers(some), int(mask[some[0]].sum()), partial(positions, mask[some[0]]))
        for some in same.values()
    ]


def by_rows(query: Tensor | None, positions: Tensor, queries: int) -> list[Selection]:
    """The same by positions (p,), with the queries (p,) that they are for, or for all of them.

    Positions below 0 are of no row.
    """
    if query is None:
        everybody = torch.arange(queries, device="cpu")
        return [_selection(everybody, torch.unique(positions[positions >= 0]))]
    counts = torch.bincount(query, minlength=queries).tolist()
    lists = [torch.unique(some[some >= 0]) for some in positions.split(counts)]
    same: dict[bytes, list[int]] = {}
    for number, rows in enumerate(lists):
        same.setdefault(rows.numpy().tobytes(), []).append(number)
    return [_selection(_numbers(some), lists[some[0]]) for some in same.values()]


def _numbers(queries: list[int]) -> Tensor:
    return torch.tensor(queries, dtype=torch.int64, device="cpu")


def _selection(queries: Tensor, rows: Tensor) -> Selection:
    return Selection(queries, len(rows), lambda: rows)


def by_size(
    each: Sequence[Selection], at_once: int = tuning.SCORED_PAIRS_AT_ONCE
) -> tuple[list[list[Selection]], list[Selection]]:
    """Selections of few pairs, taken together up to a number of pairs, and all others."""
    few: list[list[Selection]] = []
    pairs = 0
    for one in each:
        if one.pairs > tuning.SCORED_PAIRS:
            continue
        pairs += one.pairs
        if not few or pairs > at_once:
            few.append([])
            pairs = one.pairs
        few[-1].append(one)
    return few, [one for one in each if one.pairs > tuning.SCORED_PAIRS]


def pairs_of(selections: Sequence[Selection]) -> tuple[Tensor, Tensor]:
    """All pairs of some selections: query numbers and positions (p,)."""
    rows = [one.rows for one in selections]
    number = [
        one.queries.repeat_interleave(len(some)) for one, some in zip(selections, rows, strict=True)
    ]
    position = [some.repeat(len(one.queries)) for one, some in zip(selections, rows, strict=True)]
    return torch.cat(number), torch.cat(position)


def nothing_found(queries: int, k: int, total: int) -> Best:
    """The result of a search that has not begun."""
    return Best(
        torch.full((queries, k), torch.nan, dtype=torch.float64, device="cpu"),
        torch.full((queries, k), -1, device="cpu"),
        torch.full((queries,), -torch.inf, dtype=torch.float64, device="cpu"),
        torch.zeros(queries, dtype=torch.int64, device="cpu"),
        total,
        0,
    )


def rank(number: Tensor, found: Tensor, scored: Tensor, best: Best) -> None:
    """Put the k best of the pairs (p,) of some queries into a result; all others are dropped."""
    k, queries = best.positions.shape[1], len(best.rescored)
    query, position, score = number.numpy(), found.numpy(), scored.numpy()
    order = np.lexsort((position, -score, query))
    query, position, score = query[order], position[order], score[order]
    count = np.bincount(query, minlength=queries)
    place = np.arange(len(query)) - (np.cumsum(count) - count)[query]
    first, next_best = place < k, place == k
    best.positions.numpy()[query[first], place[first]] = position[first]
    best.scores.numpy()[query[first], place[first]] = score[first]
    best.rescored += torch.from_numpy(count)
    assert best.dropped_bound is not None
    best.dropped_bound.numpy()[query[next_best]] = score[next_best]


def put(one: Selection, found: Best, best: Best, rows: Tensor | None = None) -> None:
    """Put what the queries of a selection found, at positions or numbers of rows, into a result."""
    position = found.positions
    if rows is not None:
        position = torch.where(position < 0, position, rows[position.clamp_min(0)])
    k = position.shape[1]
    best.positions[one.queries, :k] = position
    best.scores[one.queries, :k] = found.scores
    best.rescored[one.queries] = found.rescored
    if found.dropped_bound is not None and best.dropped_bound is not None:
        best.dropped_bound[one.queries] = found.dropped_bound


def oracle_among(each: Sequence[Selection], given: Oracle) -> Oracle:
    """Scores as given; NaN of what a query may not find."""
    of_query = {int(query): one for one in each for query in one.queries}

    def scores(query: Tensor, position: Tensor) -> Tensor:
        found = given(query, position)
        for row, number in zip(found, query.tolist(), strict=True):
            row.masked_fill_(~torch.isin(position, of_query[number].rows), torch.nan)
        return found

    return scores
