"""Queries against rows: every pair at or above a threshold, by screens and by products.

A tile of scores is screened, and pairs whose upper bound reaches the threshold are scored one by
one. Where a screen lets too much through, the next is tried; where every screen does, since most
of those pairs are results, the tile is multiplied in float64. That product has other bits than the
score, but is so near to it that nearly always both round to one float32; where they may not, the
pair is scored.
"""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass
from typing import NamedTuple

import torch
from torch import Tensor

from cossim_fast import _cpu_screen
from cossim_fast.retrieval.codes import BLOCK, Segment
from cossim_fast.retrieval.scan import Tile, passing, tile_rows, tiles
from cossim_fast.retrieval.screens import QueryTerms, Screen

# To score a pair takes as long as so many scores of a tile in the next wider product: a screen
# that lets more than one pair in so many through is not used.
PAIR_COST = 64
# Numbers of the rows of a product in float64: 2 MB, which stay in cache.
_NUMBERS = 1 << 18
_UNIT64 = 2.0**-53


class Found(NamedTuple):
    """Pairs (p,): of each query, in the order of the positions."""

    query: Tensor  # int64 numbers
    position: Tensor  # int64
    scores: Tensor  # float32 or float64

    @classmethod
    def join(cls, parts: Sequence[Found], dtype: torch.dtype) -> Found:
        """One after another; nothing of a dtype where there are none."""
        none = torch.empty(0, dtype=torch.int64)
        columns = [[none, none, torch.empty(0, dtype=dtype)], *parts]
        return cls(*(torch.cat(column) for column in zip(*columns, strict=True)))


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
        self.numbers, self.wide = numbers, _cpu_screen.widen(rows)
        self.finite = self.wide.norms.isfinite()
        self._screens, self._centre = screens, centre
        self._terms: dict[int, QueryTerms] = {}
        self._unit: Tensor | None = None

    def __len__(self) -> int:
        return self.numbers.numel()

    def terms(self, level: int) -> QueryTerms:
        """What a screen wants."""
        if level not in self._terms:
            self._terms[level] = self._screens[level].queries(self.wide, self._centre)
        return self._terms[level]

    def unit(self) -> Tensor:
        """Unit rows (q, d) in float64."""
        if self._unit is None:
            self._unit = self.wide.unit()
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

    def through(self, batch: Batch, segment: Segment, room: int) -> Found | None:
        """Every pair of a batch with a segment, or None as soon as there are more than ``room``.

        For one query there is always room.
        """
        start = 0
        if self.later:
            start = max(int(batch.numbers.min()) + 1 - segment.first, 0) // BLOCK * BLOCK
        parts: list[Found] = []
        held = 0
        for rows in tiles(max(len(segment) - start, 0), tile_rows(len(batch), 1)):
            part = self._tile(batch, segment, slice(start + rows.start, start + rows.stop))
            self.compared += len(batch) * (rows.stop - rows.start)
            held += part.scores.numel()
            if held > room and len(batch) > 1:
                return None
            parts.append(part)
        return self._scored(batch, segment, Found.join(parts, torch.float64))

    def _tile(self, batch: Batch, segment: Segment, rows: slice) -> Found:
        """Pairs of a tile that may reach the threshold; a score of NaN is to be computed."""
        for level in range(self._first_level(batch, segment, rows), len(self.screens)):
            candidates = few_above(self._screen(batch, segment, rows, level), self.threshold)
            if candidates is not None:
                self._note(level)
                query, row = candidates
                unknown = torch.full(query.shape, torch.nan, dtype=torch.float64)
                found = Found(query, row + rows.start, unknown)
                return self._allowed(batch, segment, rows.start, found)
        self._note(len(self.screens))
        size = max(_NUMBERS // segment.rows.shape[1], 1)
        parts = []
        for start in range(rows.start, rows.stop, size):
            some = slice(start, min(start + size, rows.stop))
            found = self._multiplied(batch, segment, some)
            parts.append(self._allowed(batch, segment, start, found))
        return Found.join(parts, torch.float64)

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
            asked = torch.full((len(batch),), self.threshold, dtype=torch.float64)
            if passing(tile, tile.needed(asked)) * PAIR_COST <= 1:
                return level
        return len(self.screens)

    def _screen(self, batch: Batch, segment: Segment, rows: slice, level: int) -> Tile:
        screen, terms = self.screens[level], batch.terms(level)
        values = screen.product(segment, rows, self.centre, terms)
        count = rows.stop - rows.start
        values[count:] = -torch.inf
        out = ~segment.eligible[rows]
        if bool(out.any()):
            values[:count][out] = -torch.inf
        if not bool(batch.finite.all()):
            values[:, ~batch.finite] = -torch.inf
        blocks = screen.blocks(segment, slice(rows.start // BLOCK, -(-rows.stop // BLOCK)))
        return Tile(segment.first + rows.start, values, terms, blocks)

    def _multiplied(self, batch: Batch, segment: Segment, rows: slice) -> Found:
        """Pairs of some rows by their product in float64, whose order of additions is open.

        Against the score it is off by the roundings of d products and additions there, of d / 128
        and 7 additions here, and of a few divisions: each 2^-53 of a sum of at most 1. The norms
        are the same.
        """
        d = segment.rows.shape[1]
        error = (d + d / 64 + 32) * _UNIT64
        stored = segment.rows[rows]
        wide = _cpu_screen.in_range(stored.double(), stored.dtype)
        unit = _cpu_screen.WideRows(wide, segment.norms[rows]).unit()
        cosines = (unit @ batch.unit().mT).clamp_(-1.0, 1.0)  # (rows, q)
        cosines[~segment.eligible[rows]] = torch.nan  # reaches nothing
        row, query = (cosines >= self.threshold - error).nonzero(as_tuple=True)
        near = cosines.view(-1)[row * len(batch) + query]
        unsure = (near < self.threshold + error) | (
            torch.ones_like(near, dtype=torch.bool)
            if self.double
            else (near - error).float() != (near + error).float()
        )
        return Found(query, row + rows.start, near.masked_fill_(unsure, torch.nan))

    def _allowed(self, batch: Batch, segment: Segment, start: int, found: Found) -> Found:
        """Without pairs of a row with itself or with an earlier one, if they are not wanted."""
        if not self.later or segment.first + start > int(batch.numbers.max()):
            return found
        after = segment.first + found.position > batch.numbers[found.query]
        return Found(*(column[after] for column in found))

    def _scored(self, batch: Batch, segment: Segment, found: Found) -> Found:
        """Compute the scores that are NaN, drop what misses the threshold, and number the rest."""
        query, row, scores = found
        wanted = scores.isnan().nonzero()[:, 0]
        if wanted.numel():
            scores[wanted] = exact = _cpu_screen.score_pairs(
                batch.wide, segment.rows, query[wanted], row[wanted], segment.norms
            )
            if not bool((exact >= self.threshold).all()):
                missed = torch.zeros_like(scores, dtype=torch.bool)
                missed[wanted] = ~(exact >= self.threshold)
                query, row, scores = query[~missed], row[~missed], scores[~missed]
        return Found(query, segment.first + row, scores if self.double else scores.float())


def few_above(tile: Tile, threshold: float) -> tuple[Tensor, Tensor] | None:
    """Query and row (p,) of what may reach a threshold, or None if it is more than pays.

    For each query, rows are in order.
    """
    width = tile.values.shape[1]
    asked = torch.full((width,), threshold, dtype=torch.float64)
    needed = tile.needed(asked)
    group, query = (tile.maxima(BLOCK) >= needed).nonzero(as_tuple=True)
    # A sample spares the look into so many groups.
    if group.numel() * 4 > needed.numel() and passing(tile, needed) * PAIR_COST > 1:
        return None
    found = tile.values.view(-1, BLOCK, width)[group, :, query]  # (hits, BLOCK)
    hit, row = (found >= needed[group, query][:, None]).nonzero(as_tuple=True)
    if hit.numel() * PAIR_COST > tile.values.numel():
        return None
    return query[hit], row + group[hit] * BLOCK
