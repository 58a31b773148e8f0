"""The scan of a corpus: products in tiles, maxima of groups, and rows that pass the thresholds."""

from __future__ import annotations

from collections.abc import Iterator, Sequence
from dataclasses import dataclass, field

import numpy as np
import torch
from numpy.typing import NDArray
from torch import Tensor

from cossim_fast import _threads
from cossim_fast._numpy import places
from cossim_fast._score.exact import WideRows
from cossim_fast.retrieval import tuning
from cossim_fast.retrieval.nearest.hits import Hits
from cossim_fast.retrieval.nearest.pool import NO_THRESHOLD, Pool, Score
from cossim_fast.retrieval.screening import costs
from cossim_fast.retrieval.screening.codes import BLOCK, Segment
from cossim_fast.retrieval.screening.filtered_product import FilteredProduct
from cossim_fast.retrieval.screening.screens import CodedTerms, Screen
from cossim_fast.retrieval.screening.tile import Tile, passing, tile_rows, tiles


@dataclass
class Trace:
    """What a search did: for `explain`, and for tests."""

    screens: list[str] = field(default_factory=list)  # in the order in which they were tried
    tile: int = 0  # rows of a tile
    group: int = 0  # rows under one maximum
    tiles: int = 0
    emitted: int = 0  # candidates: rows that passed the threshold at that moment
    repeated: int = 0  # queries whose guessed threshold was too high
    ranked: bool = False  # whether all rows were ranked by one product
    head: int = 0  # width of the projection, where one was used

    def note_projection(self, width: int, rows: int, passed: int) -> None:
        """Record that so many rows were compared by a projection, and how many were scored."""
        self.screens.append("int8")
        self.head, self.tile, self.group = width, max(self.tile, rows), 1
        self.tiles += 1
        self.emitted += passed

    def note_ranked(self, rows: int, passed: int) -> None:
        """Record that so many rows were ranked at once, and how many were scored."""
        self.screens.append("float32")
        self.ranked, self.tile, self.group, self.tiles = True, rows, 1, 1
        self.emitted += passed


class Scan:
    """The scan of a corpus, segment by segment, for a batch of queries.

    Args:
        queries: as they enter a score.
        pool: for these queries.
        centre: (d,) of the corpus.
        screens: each wider than the one before; each is used until it no longer pays.
        trace: records what happens.
        forbidden: pairs (query numbers, positions) that may not be returned, sorted by position.
    """

    def __init__(
        self,
        queries: WideRows,
        pool: Pool,
        centre: Tensor,
        screens: Sequence[Screen],
        trace: Trace,
        forbidden: tuple[Tensor, Tensor] | None = None,
    ) -> None:
        self._queries, self._pool, self._centre = queries, pool, centre
        self._screens, self._trace = list(screens), trace
        self._forbidden = forbidden
        self._seen, self._next_raise = 0, 0
        # A query that holds NaN finds nothing: no row reaches an infinite threshold.
        self._pool.close(~queries.norms.isfinite())
        self._use(self._screens.pop(0))

    def _use(self, screen: Screen) -> None:
        self._screen, self._fresh = screen, True
        self._hits: Hits | None = None
        self._terms = screen.queries(self._queries, self._centre)
        self._trace.screens.append(screen.name)

    def resume(self, seen: int) -> None:
        """Continue after so many rows, whose best are in the pool."""
        self._seen = self._next_raise = seen
        self._fresh = False

    def through(self, segment: Segment, total: int, score: Score) -> None:
        """Put every row of a segment that may be among the best into the pool.

        Args:
            segment: the next rows.
            total: how many rows there are in all, as far as is known.
            score: scores candidates early, when the pool is crowded.
        """
        total = max(total, self._seen + len(segment))
        while not self._passes(segment, total, score):
            # The next screen scores these rows again, with tighter bounds.
            self._pool.discard_from(segment.first)
            self._use(self._screens.pop(0))
        self._seen += len(segment)

    def _passes(self, segment: Segment, total: int, score: Score) -> bool:
        """Scan a segment; False as soon as a wider screen is predicted to be cheaper."""
        pool, trace = self._pool, self._trace
        trace.group = group_rows(pool.k, total)
        coded = self._screen.coded(segment)
        width = 0 if coded is None or coded.codes is None else coded.codes.shape[1]
        rows = tiles(len(segment), tile_rows(pool.queries, pool.k, width))
        trace.tile = max([trace.tile, *(r.stop - r.start for r in rows)])
        steps = [[r] for r in rows]
        if self._needs_thresholds():
            steps = with_first(rows, first_rows(pool.k, total))
            # The first step sets the thresholds.
            count = sum(r.stop - r.start for r in steps[0]) if steps else 0
            self._next_raise = tuning.GROWTH * (self._seen + count)
        # Rows of filtered products since thresholds were last raised; whether others came too.
        filtered, kept = 0, False
        self._hits, seen = None, self._seen
        most = tuning.MOST_PENDING * pool.k * pool.queries
        for some in self._parts(segment, steps):
            _threads.go_on()
            count = sum(r.stop - r.start for r in some)
            seen += count
            hits = self._hits_of(segment)
            if hits is not None and hits.product.suits(some[0]):
                pays = self._filter(segment, hits, some[0], seen, total)
                filtered += count
            else:
                kept = kept or not self._needs_thresholds()  # the first step sets them itself
                pays = self._keep(segment, some, seen, total)
            if not pays:
                return False
            held = 0 if hits is None else hits.count
            due = seen >= self._next_raise or pool.pending + held > most
            crowded = len(pool) + held > tuning.CROWDED
            if hits is not None and (due or crowded):
                hits.move_to(pool, pool.rank(filtered, total))
                filtered = 0
            if due and (kept or pool.pending > most):
                pool.raise_thresholds(seen, total)
                kept = False
            if due:
                self._next_raise = tuning.GROWTH * seen
            if crowded:
                pool.finalize(score, exact=False)
        if self._hits is not None:
            self._hits.move_to(pool, pool.rank(filtered, total))
        return True

    def _parts(
        self, segment: Segment, steps: Sequence[Sequence[slice]]
    ) -> Iterator[Sequence[slice]]:
        """Tiles, with blocks that a filtered product cannot multiply separated from the others."""
        for some in steps:
            hits = self._hits_of(segment) if len(some) == 1 else None
            if hits is None:
                yield some
            else:
                yield from ([part] for part in hits.product.parts(some[0]))

    def _keep(self, segment: Segment, stretch: Sequence[slice], seen: int, total: int) -> bool:
        """Multiply tiles, and put what passes into the pool; False if a wider screen is cheaper.

        Args:
            segment: whose rows they are.
            stretch: the tiles; the first of a screen set the thresholds.
            seen: how many rows were seen, with these.
            total: how many there are.
        """
        pool, trace = self._pool, self._trace
        some = [self._tile(segment, stretch[0])]
        if self._fresh and self._screens:
            # Judge the screen by its first tile, at the threshold that k / total of its rows
            # reach. The guess of `Pool.rank` is lower, to be safe, so that many rows would pass
            # with any screen.
            tile, count = some[0], stretch[0].stop - stretch[0].start
            rank = max(round(pool.k * count / total), 1)
            own = first_threshold(some, trace.group, rank, proven=False)
            times = passing(tile, tile.needed(own)) * count / rank
            if self._is_beaten(times, total, multiplied=count):
                return False
        some += [self._tile(segment, r) for r in stretch[1:]]
        rank = pool.rank(seen, total)
        if self._needs_thresholds():
            pool.raise_to(first_threshold(some, trace.group, rank, proven=rank == pool.k), rank)
            self._fresh = False
        needed = [tile.needed(pool.threshold) for tile in some]
        times = max(map(passing, some, needed)) * seen / rank
        enough = sum(r.stop - r.start for r in stretch) >= tuning.JUDGED_SHARE * trace.tile
        if enough and self._is_beaten(times, total, multiplied=seen - self._seen):
            return False
        for tile, least in zip(some, needed, strict=True):
            trace.emitted += add_passing(pool, tile, least, trace.group)
        trace.tiles += len(some)
        return True

    def _filter(self, segment: Segment, hits: Hits, rows: slice, seen: int, total: int) -> bool:
        """Form a filtered product, and keep what passes; False if a wider screen is cheaper."""
        hits.aim(self._pool.threshold)
        values = hits.product.tile(rows)
        self._mask_banned(segment, rows, values, 0)
        count = hits.add(rows.start, values)
        self._trace.emitted += count
        self._trace.tiles += 1
        times = count / values.numel() * seen / self._pool.rank(seen, total)
        return not self._is_beaten(times, total, multiplied=seen - self._seen)

    def _is_beaten(self, times: float, total: int, *, multiplied: int) -> bool:
        """Whether a wider screen is predicted to be cheaper.

        Args:
            times: rows that pass, relative to those that an exact screen would let pass.
            total: how many rows there are.
            multiplied: how many of them the wider screen would have to multiply again.
        """
        if not self._screens:
            return False
        d = self._queries.rows.shape[1]
        cost = costs.pair_cost(d, self._screens[0].name, self._screen.name)
        saved = (times - 1) * self._pool.k * cost
        return saved > total + tuning.REPEATED_COST * multiplied

    def _needs_thresholds(self) -> bool:
        """Whether thresholds are missing, or come from a screen with wider bounds."""
        return self._fresh or bool((self._pool.threshold.numpy() == NO_THRESHOLD).any())

    def _hits_of(self, segment: Segment) -> Hits | None:
        """The hits of a filtered product; None without codes, thresholds, or for a certificate."""
        if self._pool.dropped_bound is not None or self._needs_thresholds():
            return None
        coded = self._screen.coded(segment)
        if self._hits is None and coded is not None:
            assert isinstance(self._terms, CodedTerms)
            self._hits = Hits(FilteredProduct(self._terms, coded))
        return self._hits

    def _tile(self, segment: Segment, rows: slice) -> Tile:
        values = self._screen.product(segment, rows, self._centre, self._terms)
        self._mask_banned(segment, rows, values, -torch.inf)
        blocks = self._screen.blocks(segment, slice(rows.start // BLOCK, -(-rows.stop // BLOCK)))
        return Tile(segment.first + rows.start, values, self._terms, blocks)

    def _mask_banned(self, segment: Segment, rows: slice, values: Tensor, nothing: float) -> None:
        segment.mask_banned(rows, values, nothing)
        if self._forbidden is not None:
            query, position = self._forbidden
            ends = [segment.first + rows.start, segment.first + rows.stop]
            span = torch.tensor(ends, dtype=torch.int64, device="cpu")
            first, last = torch.searchsorted(position, span).tolist()
            values[position[first:last] - span[0], query[first:last]] = nothing


def group_rows(k: int, total: int) -> int:
    """Rows under one maximum: fewer for a large k, with which most large groups would pass."""
    if 32 * k > total:
        return 1
    return tuning.GROUP if k <= tuning.GROUP_RESULTS else tuning.SMALL_GROUP


def first_rows(k: int, total: int) -> int:
    """How many of ``total`` rows set the first thresholds.

    Their products return float32, which takes longer than a filtered product; but fewer rows give
    lower thresholds, which more rows pass.
    """
    return max(
        min(max(total // tuning.FIRST_SHARE, tuning.FEWEST_FIRST), tuning.MOST_FIRST),
        tuning.FIRST_WANTED * k,
    )


def with_first(rows: Sequence[slice], count: int) -> list[list[slice]]:
    """Steps of a scan: the first takes parts of a few tiles from all over, the others a tile each.

    Args:
        rows: the tiles.
        count: about how many rows the first step takes.
    """
    spread = max(len(rows) // tuning.FIRST_TILES, 1)
    blocks = -(-count // (max(min(tuning.FIRST_TILES, len(rows)), 1) * BLOCK))
    first: list[slice] = []
    rest: list[list[slice]] = []
    for number, tile in enumerate(rows):
        start = tile.start
        if number % spread == 0 and len(first) < tuning.FIRST_TILES:
            start = min(start + blocks * BLOCK, tile.stop)
            first.append(slice(tile.start, start))
        if start < tile.stop:
            rest.append([slice(start, tile.stop)])
    # A short first part may already show that a screen does not pay.
    if first and first[0].stop > tuning.FEWEST_FIRST:
        first[:1] = [slice(0, tuning.FEWEST_FIRST), slice(tuning.FEWEST_FIRST, first[0].stop)]
    return [first, *rest] if first else []


def first_threshold(some: Sequence[Tile], group: int, rank: int, *, proven: bool) -> Tensor:
    """The rank-th largest cosine (q,) of tiles; if ``proven``, the rank-th largest lower bound."""
    rows = sum(tile.values.shape[0] for tile in some)
    # Maxima of groups may stand for rows as long as few groups hold two of the best rows.
    while group > 1 and rows // group < 8 * rank:
        group //= 2
    found = [tile.cosines(tile.maxima(group), lower=proven) for tile in some]
    if rows // group < rank:
        return found[0].new_full((found[0].shape[1],), -torch.inf, dtype=torch.float64)
    # numpy's partition takes a tenth to a half of the time of torch.topk.
    values = torch.cat(found).mT.contiguous().numpy()
    values.partition(values.shape[1] - rank, axis=1)
    return torch.from_numpy(values[:, values.shape[1] - rank]).double()


def add_passing(pool: Pool, tile: Tile, needed: Tensor, group: int) -> int:
    """Put every row of a tile whose value reaches ``needed`` (blocks, q) into the pool."""
    width, per = tile.values.shape[1], BLOCK // group
    scale, margin = tile.scale.numpy().reshape(-1), tile.margin.numpy().reshape(-1)
    offset, least = tile.offset.numpy(), needed.numpy().reshape(-1)

    def bounds(
        value: NDArray[np.float32], number: NDArray[np.int64], query: NDArray[np.int64], rows: int
    ) -> tuple[NDArray[np.float64], NDArray[np.float64]]:
        """Upper and lower bounds (p,) of the values of groups (by number) of so many rows."""
        place = number // (BLOCK // rows) * width + query
        middle, error = value * scale[place] + offset[query], margin[place]
        return middle + error, middle - error

    maxima = tile.maxima(group).view(-1, per, width)
    reached = maxima >= needed[:, None]
    if pool.dropped_bound is not None:
        over = maxima.masked_fill(reached, -torch.inf).amax(1).double()
        pool.note_dropped((over * tile.scale + tile.margin).amax(0) + tile.offset)
    hit = places(reached.view(-1)).numpy()
    number = hit // width
    query = hit - number * width
    if group == 1:
        row, value = number, maxima.numpy().reshape(-1)[hit]
    else:
        found = tile.values.view(-1, group, width).numpy()[number, :, query]  # (hits, group)
        passed = found >= least[number // per * width + query][:, None]
        if pool.dropped_bound is not None:
            upper, _ = bounds(np.where(passed, -np.inf, found).max(1), number, query, group)
            pool.dropped_bound.scatter_reduce_(
                0, torch.from_numpy(query), torch.from_numpy(upper), "amax"
            )
        at = np.flatnonzero(passed)
        which, value = at // group, found.reshape(-1)[at]
        row = number[which] * group + (at - which * group)
        query = query[which]
    pool.add(query, row + tile.first, *bounds(value, row, query, 1))
    return len(query)
