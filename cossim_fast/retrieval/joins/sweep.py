"""Every pair of queries and rows that reaches a threshold: by screens, or by a float64 product.

A screen scores a tile, and the pairs whose upper bound reaches the threshold are scored one by one.
Where a screen lets too many pairs through, the next wider one is tried. Where all of them do, most
of these pairs are results, and the tile is multiplied in float64 (`dense`).
"""

from __future__ import annotations

import copy
from collections.abc import Sequence
from dataclasses import dataclass, replace
from typing import NamedTuple

import numpy as np
import torch
from torch import Tensor

from cossim_fast import _threads
from cossim_fast._numpy import places
from cossim_fast._score.exact import WideRows, score_pairs, widen
from cossim_fast._score.near import float32_scores
from cossim_fast.retrieval.joins import dense
from cossim_fast.retrieval.joins.budget import Budget
from cossim_fast.retrieval.screening import costs
from cossim_fast.retrieval.screening.codes import BLOCK, Segment
from cossim_fast.retrieval.screening.filtered_product import FilteredProduct, passed
from cossim_fast.retrieval.screening.screens import CodedTerms, QueryTerms, Screen
from cossim_fast.retrieval.screening.tile import Tile, passing, tile_rows


class Found(NamedTuple):
    """Pairs (p,), those of each query in the order of the positions."""

    query: Tensor  # int64 numbers
    position: Tensor  # int64
    scores: Tensor  # float32 or float64

    @classmethod
    def concatenate(cls, parts: Sequence[Found], dtype: torch.dtype) -> Found:
        """Concatenate parts; no pairs, with scores of the dtype, where there are no parts."""
        if len(parts) == 1:
            return parts[0]
        none = torch.empty(0, dtype=torch.int64, device="cpu")
        columns = [[none, none, torch.empty(0, dtype=dtype, device="cpu")], *parts]
        return cls(*(torch.cat(column) for column in zip(*columns, strict=True)))

    def of_first(self, queries: int) -> Found:
        """The pairs of the first queries of a batch."""
        if self.in_order():
            kept: slice | Tensor = slice(int(torch.searchsorted(self.query, queries)))
        else:
            kept = self.query < queries
        return Found(*(column[kept] for column in self))

    def in_order(self) -> bool:
        """Whether pairs are sorted by query."""
        return bool((self.query[1:] >= self.query[:-1]).all())


class Batch:
    """Queries that are multiplied together, prepared for each screen when it is first used.

    Args:
        numbers: (q,) of the queries.
        rows: (q, d), as stored.
        screens: each wider than the one before.
        centre: (d,) of the rows that they are compared with.
    """

    def __init__(
        self, numbers: Tensor, rows: Tensor, screens: Sequence[Screen], centre: Tensor
    ) -> None:
        self.numbers, self.wide = numbers, widen(rows)
        self.finite = self.wide.norms.isfinite()
        self._screens, self._centre = screens, centre
        self._terms: dict[int, QueryTerms] = {}
        self._filtered: tuple[int, Segment, FilteredProduct] | None = None
        self._unit: Tensor | None = None

    def __len__(self) -> int:
        return self.numbers.numel()

    def terms(self, level: int) -> QueryTerms:
        """The query terms for the screen of this level, prepared once."""
        if level not in self._terms:
            self._terms[level] = self._screens[level].queries(self.wide, self._centre)
        return self._terms[level]

    def filtered(self, level: int, coded: Segment) -> FilteredProduct:
        """The filtered product for a segment's codes and the screen of this level; one is kept."""
        held = self._filtered
        if held is None or held[0] != level or held[1] is not coded:
            terms = self.terms(level)
            assert isinstance(terms, CodedTerms)
            held = self._filtered = level, coded, FilteredProduct(terms, coded)
        return held[2]

    def first(self, queries: int) -> Batch:
        """A batch of only the first queries."""
        other = copy.copy(self)
        other.numbers, other.finite = self.numbers[:queries], self.finite[:queries]
        other.wide = WideRows(*(column[:queries] for column in self.wide))
        other._unit = None if self._unit is None else self._unit[:queries]
        other._terms, other._filtered = {}, None
        return other

    def unit(self) -> Tensor:
        """Unit rows (q, d) in float64; NaN in those that are not finite."""
        if self._unit is None:
            self._unit = self.wide.unit()
            self._unit[~self.finite] = torch.nan
        return self._unit


@dataclass
class Sweep:
    """Finds the pairs of batches of queries with segments.

    A level is the number of a screen; the last level is the float64 product.

    Attributes:
        screens: each wider than the one before.
        centre: (d,) of the rows.
        threshold: of scores.
        later: only rows whose position is above the number of the query.
        double: return scores in float64.
        compared: how many pairs were compared.
        levels: how many tiles each level decided.
    """

    screens: Sequence[Screen]
    centre: Tensor
    threshold: float
    later: bool = False
    double: bool = False
    compared: int = 0

    def __post_init__(self) -> None:
        self.levels = [0] * (len(self.screens) + 1)
        self._level = 0

    @property
    def dtype(self) -> torch.dtype:
        """Of scores."""
        return torch.float64 if self.double else torch.float32

    def for_thread(self) -> Sweep:
        """A sweep for another thread, which begins at the current level of this one."""
        other = replace(self, compared=0)
        other.begin_as(self)
        return other

    def begin_as(self, other: Sweep) -> None:
        """Begin at the current level of another sweep."""
        self._level = other._level

    def note(self, other: Sweep) -> None:
        """Add the counts of a sweep from `for_thread`."""
        self.compared += other.compared
        self.levels = [a + b for a, b in zip(self.levels, other.levels, strict=True)]

    def through(
        self, batch: Batch, segment: Segment, budget: Budget, before: int = 0
    ) -> tuple[Found, int]:
        """Every pair of the first queries of a batch with a segment, and how many queries.

        These are all queries, unless more pairs are predicted than there is room for. Then they are
        as many as there is room for, at least one.

        Args:
            batch: of queries.
            segment: of rows.
            budget: for the pairs of the batch, over all segments.
            before: how many pairs it has from other segments.
        """
        tiles, parts = self._tiles(batch, segment), list[Found]()
        for number, rows in enumerate(tiles):
            parts.append(self._tile(batch, segment, rows))
            self.compared += len(batch) * (rows.stop - rows.start)
            while len(batch) > 1:
                expected = before + _expected(parts, tiles, number, budget.pairs - before)
                if expected <= budget.pairs:
                    break
                kept = budget.fitting(len(batch), expected)
                before = before * kept // len(batch)
                batch = batch.first(kept)
                parts = [part.of_first(kept) for part in parts]
        return self._scored(batch, segment, Found.concatenate(parts, self.dtype)), len(batch)

    def if_it_fits(
        self, batch: Batch, segment: Segment, budget: Budget, before: int = 0
    ) -> Found | None:
        """The pairs of all queries of a batch, as in `through`; None if they may not fit."""
        tiles, parts = self._tiles(batch, segment), list[Found]()
        for number, rows in enumerate(tiles):
            _threads.go_on()
            parts.append(self._tile(batch, segment, rows))
            self.compared += len(batch) * (rows.stop - rows.start)
            if before + _expected(parts, tiles, number, budget.pairs - before) > budget.pairs:
                return None
        return self._scored(batch, segment, Found.concatenate(parts, self.dtype))

    def _tiles(self, batch: Batch, segment: Segment) -> list[slice]:
        start = 0
        if self.later:
            start = max(int(batch.numbers.min()) + 1 - segment.first, 0) // BLOCK * BLOCK
        size = tile_rows(len(batch), 1)
        return [slice(at, min(at + size, len(segment))) for at in range(start, len(segment), size)]

    def _tile(self, batch: Batch, segment: Segment, rows: slice) -> Found:
        """Pairs of a tile that may reach the threshold; scores not computed yet are NaN."""
        for level in range(self._first_level(batch, segment, rows), len(self.screens)):
            candidates = self._candidates(batch, segment, rows, level)
            if candidates is not None:
                self._note(level)
                query, row = candidates
                unknown = torch.full(query.shape, torch.nan, dtype=self.dtype, device="cpu")
                found = Found(query, row + rows.start, unknown)
                return self._allowed(batch, segment, rows.start, found)
        self._note(len(self.screens))
        after = batch.numbers if self.later else None
        return Found(
            *dense.pairs_above(
                batch.unit(), segment, rows, self.threshold, double=self.double, after=after
            )
        )

    def _candidates(
        self, batch: Batch, segment: Segment, rows: slice, level: int
    ) -> tuple[Tensor, Tensor] | None:
        """Query and row (p,) of a screen's candidates, or None if a wider screen is cheaper."""
        cost = self._pair_cost(level)
        coded = self.screens[level].coded(segment)
        product = None if coded is None else batch.filtered(level, coded)
        if product is None or not product.suits(rows):
            return few_above(self._screen(batch, segment, rows, level), self.threshold, cost)
        product.aim(torch.full((len(batch),), self.threshold, dtype=torch.float64, device="cpu"))
        values = product.tile(rows)
        segment.mask_banned(rows, values, 0)
        return few_filtered(values, cost)

    def _pair_cost(self, level: int) -> float:
        """The cost of scoring a pair, in scores of the next level."""
        wider = self.screens[level + 1].name if level + 1 < len(self.screens) else "float32"
        return costs.pair_cost(self.centre.numel(), wider)

    def _note(self, level: int) -> None:
        self._level = level
        self.levels[level] += 1

    def _first_level(self, batch: Batch, segment: Segment, rows: slice) -> int:
        """The level to start at: the first, as long as that decides tiles.

        After a tile of which it let too many pairs through, one block of the next tile is tested.
        """
        if self._level == 0:
            return 0
        middle = (rows.start + rows.stop) // 2 // BLOCK * BLOCK
        some = slice(max(middle, rows.start), min(middle + BLOCK, rows.stop))
        for level in range(len(self.screens)):
            tile = self._screen(batch, segment, some, level)
            asked = torch.full((len(batch),), self.threshold, dtype=torch.float64, device="cpu")
            if passing(tile, tile.needed(asked)) * self._pair_cost(level) <= 1:
                return level
        return len(self.screens)

    def _screen(self, batch: Batch, segment: Segment, rows: slice, level: int) -> Tile:
        screen, terms = self.screens[level], batch.terms(level)
        values = screen.product(segment, rows, self.centre, terms)
        segment.mask_banned(rows, values, -torch.inf)
        if not bool(batch.finite.all()):
            values[:, ~batch.finite] = -torch.inf
        blocks = screen.blocks(segment, slice(rows.start // BLOCK, -(-rows.stop // BLOCK)))
        return Tile(segment.first + rows.start, values, terms, blocks)

    def _allowed(self, batch: Batch, segment: Segment, start: int, found: Found) -> Found:
        """The pairs that are wanted: with ``later``, none with the same row or an earlier one."""
        if not self.later or segment.first + start > int(batch.numbers.max()):
            return found
        after = segment.first + found.position > batch.numbers[found.query]
        return Found(*(column[after] for column in found))

    def _scored(self, batch: Batch, segment: Segment, found: Found) -> Found:
        """Compute scores that are NaN, drop pairs below the threshold, number rows by position."""
        query, row, scores = found
        wanted = places(scores.isnan())
        if wanted.numel():
            pairs = query[wanted], row[wanted], segment.norms
            segment.touch(row[wanted])
            if self.double:
                computed = score_pairs(batch.wide, segment.rows, *pairs)
            else:
                computed = float32_scores(batch.wide, segment.rows, *pairs, self.threshold)
            scores[wanted] = computed.to(scores.dtype)
            if not bool((computed >= self.threshold).all()):
                missed = torch.zeros_like(scores, dtype=torch.bool)
                missed[wanted] = ~(computed >= self.threshold)
                query, row, scores = query[~missed], row[~missed], scores[~missed]
        return Found(query, row.add_(segment.first), scores)


def _expected(parts: list[Found], tiles: list[slice], number: int, room: int) -> int:
    """Predict the pairs of a segment from some of its tiles; the pairs so far if they are few."""
    here = sum(part.scores.numel() for part in parts)
    if 2 * here <= room:
        return here
    first: int = tiles[0].start
    seen: int = tiles[number].stop
    last: int = tiles[-1].stop
    return here * (last - first) // (seen - first)


def few_filtered(values: Tensor, cost: float) -> tuple[Tensor, Tensor] | None:
    """Query and row (p,) of a filtered product's candidates, or None if the next level is cheaper.

    For each query, rows are in order. Scoring a pair costs as much as ``cost`` scores of the next
    level.
    """
    if np.count_nonzero(values.numpy()) * cost > values.numel():
        return None
    place, _ = passed(values)
    row = place // values.shape[1]
    return torch.from_numpy(place - row * values.shape[1]), torch.from_numpy(row)


def few_above(tile: Tile, threshold: float, cost: float) -> tuple[Tensor, Tensor] | None:
    """Query and row (p,) of a tile's candidates, or None if the next level is cheaper.

    For each query, rows are in order. Scoring a pair costs as much as ``cost`` scores of the next
    level.
    """
    width = tile.values.shape[1]
    asked = torch.full((width,), threshold, dtype=torch.float64, device="cpu")
    needed = tile.needed(asked)
    group, query = (tile.maxima(BLOCK) >= needed).nonzero(as_tuple=True)
    # Where many blocks have a candidate, a sample first tells whether there are too many.
    if group.numel() * 4 > needed.numel() and passing(tile, needed) * cost > 1:
        return None
    found = tile.values.view(-1, BLOCK, width)[group, :, query]  # (hits, BLOCK)
    hit, row = (found >= needed[group, query][:, None]).nonzero(as_tuple=True)
    if hit.numel() * cost > tile.values.numel():
        return None
    return query[hit], row + group[hit] * BLOCK
