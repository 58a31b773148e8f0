"""Queries against rows: every pair at or above a threshold, by screens and by products.

A tile of scores is screened, and pairs whose upper bound reaches the threshold are scored one by
one. Where a screen lets too much through, the next is tried; where every screen does, since most
of those pairs are results, the tile is multiplied in float64 (`dense`).
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
    """Pairs (p,): of each query, in the order of the positions."""

    query: Tensor  # int64 numbers
    position: Tensor  # int64
    scores: Tensor  # float32 or float64

    @classmethod
    def concatenate(cls, parts: Sequence[Found], dtype: torch.dtype) -> Found:
        """One after another; nothing of a dtype where there are none."""
        if len(parts) == 1:
            return parts[0]
        none = torch.empty(0, dtype=torch.int64, device="cpu")
        columns = [[none, none, torch.empty(0, dtype=dtype, device="cpu")], *parts]
        return cls(*(torch.cat(column) for column in zip(*columns, strict=True)))

    def of_first(self, queries: int) -> Found:
        """What the first queries of a batch found."""
        if self.in_order():
            kept: slice | Tensor = slice(int(torch.searchsorted(self.query, queries)))
        else:
            kept = self.query < queries
        return Found(*(column[kept] for column in self))

    def in_order(self) -> bool:
        """Whether pairs stand query by query."""
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
        """What a screen wants."""
        if level not in self._terms:
            self._terms[level] = self._screens[level].queries(self.wide, self._centre)
        return self._terms[level]

    def filtered(self, level: int, coded: Segment) -> FilteredProduct:
        """What multiplies the codes that a screen has of a segment; the last one is kept."""
        held = self._filtered
        if held is None or held[0] != level or held[1] is not coded:
            terms = self.terms(level)
            assert isinstance(terms, CodedTerms)
            held = self._filtered = level, coded, FilteredProduct(terms, coded)
        return held[2]

    def first(self, queries: int) -> Batch:
        """A batch of the first queries alone."""
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
    """Goes through segments with batches of queries.

    Attributes:
        screens: each wider than the one before.
        centre: (d,) of the rows.
        threshold: what a score is to reach.
        later: look only at rows whose position is above the number of the query.
        double: keep scores in float64.
        compared: how many pairs were looked at.
        levels: how many tiles each screen decided, and last those that were multiplied in float64.
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
        """A sweep for another thread, which begins with the screen that this one has come to."""
        other = replace(self, compared=0)
        other.begin_as(self)
        return other

    def begin_as(self, other: Sweep) -> None:
        """Begin with the screen that another has come to."""
        self._level = other._level

    def note(self, other: Sweep) -> None:
        """Count what the sweep of another thread did."""
        self.compared += other.compared
        self.levels = [a + b for a, b in zip(self.levels, other.levels, strict=True)]

    def through(
        self, batch: Batch, segment: Segment, budget: Budget, before: int = 0
    ) -> tuple[Found, int]:
        """Every pair of the first queries of a batch with a segment, and how many queries.

        All of them, unless more pairs promise to come than there is room for: then as many as there
        is room for, at least one.

        Args:
            batch: of queries.
            segment: of rows.
            budget: for the pairs of the batch, with those of other segments.
            before: how many other segments gave.
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
        """What `through` gives for all queries of a batch, or None where that may not fit."""
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
        """Pairs of a tile that may reach the threshold; a score of NaN is to be computed."""
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
        """Query and row (p,) of what a screen lets through, or None if it is more than pays."""
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
        """How many scores of the next wider product take as long as to score a pair."""
        wider = self.screens[level + 1].name if level + 1 < len(self.screens) else "float32"
        return costs.pair_cost(self.centre.numel(), wider)

    def _note(self, level: int) -> None:
        self._level = level
        self.levels[level] += 1

    def _first_level(self, batch: Batch, segment: Segment, rows: slice) -> int:
        """Where to start: with the first screen, as long as it decides.

        After a tile of which it let too much through, one block says whether the next is like it.
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
        """Without pairs of a row with itself or with an earlier one, if they are not wanted."""
        if not self.later or segment.first + start > int(batch.numbers.max()):
            return found
        after = segment.first + found.position > batch.numbers[found.query]
        return Found(*(column[after] for column in found))

    def _scored(self, batch: Batch, segment: Segment, found: Found) -> Found:
        """Compute the scores that are NaN, drop what misses the threshold, and number the rest."""
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
    """How many pairs a segment promises after some of its tiles; those found where they are few.

    They are taken to go on as they began.
    """
    here = sum(part.scores.numel() for part in parts)
    if 2 * here <= room:
        return here
    first: int = tiles[0].start
    seen: int = tiles[number].stop
    last: int = tiles[-1].stop
    return here * (last - first) // (seen - first)


def few_filtered(values: Tensor, cost: float) -> tuple[Tensor, Tensor] | None:
    """Query and row (p,) of what passed a filter, or None if it is more than pays.

    For each query, rows are in order. A pair takes as long as ``cost`` scores of the next screen.
    """
    if np.count_nonzero(values.numpy()) * cost > values.numel():
        return None
    place, _ = passed(values)
    row = place // values.shape[1]
    return torch.from_numpy(place - row * values.shape[1]), torch.from_numpy(row)


def few_above(tile: Tile, threshold: float, cost: float) -> tuple[Tensor, Tensor] | None:
    """Query and row (p,) of what may reach a threshold, or None if it is more than pays.

    For each query, rows are in order. A pair takes as long as ``cost`` scores of the next screen.
    """
    width = tile.values.shape[1]
    asked = torch.full((width,), threshold, dtype=torch.float64, device="cpu")
    needed = tile.needed(asked)
    group, query = (tile.maxima(BLOCK) >= needed).nonzero(as_tuple=True)
    # A sample spares the look into so many groups.
    if group.numel() * 4 > needed.numel() and passing(tile, needed) * cost > 1:
        return None
    found = tile.values.view(-1, BLOCK, width)[group, :, query]  # (hits, BLOCK)
    hit, row = (found >= needed[group, query][:, None]).nonzero(as_tuple=True)
    if hit.numel() * cost > tile.values.numel():
        return None
    return query[hit], row + group[hit] * BLOCK
