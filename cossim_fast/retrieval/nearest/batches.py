"""From queries and segments to the k best rows: batches, repeats, results."""

from __future__ import annotations

import itertools
from collections.abc import Callable, Iterator, Mapping, Sequence
from functools import partial

import numpy as np
import torch
from torch import Tensor

from cossim_fast import _threads
from cossim_fast._lazily import lazily
from cossim_fast._numpy import places
from cossim_fast._score.exact import WideRows, score_pairs, widen
from cossim_fast._score.near import near_error, near_scores
from cossim_fast.retrieval import tuning
from cossim_fast.retrieval.memory_map import release_pages
from cossim_fast.retrieval.nearest import few_queries, ranked
from cossim_fast.retrieval.nearest.pool import Pool
from cossim_fast.retrieval.nearest.scan import Scan, Trace
from cossim_fast.retrieval.results import Best
from cossim_fast.retrieval.screening import costs, screens
from cossim_fast.retrieval.screening.codes import Segment
from cossim_fast.retrieval.storage.corpus import block_rows

# [standard deviations] Candidates are first selected as if no screen erred by more than this. The
# error of a screen is a sum of d terms, which reaches its bound only if all have one sign. If signs
# are random, its standard deviation is at most the bound over sqrt(d). Of 39 000 sentence
# embeddings, k = 100, 169 rows a query are scored with 2 of these, and 239 with the bound alone.
LIKELY = 2.0

# Pairs (query numbers, positions) that may not be returned, sorted by position.
Forbidden = tuple[Tensor, Tensor]


class Scorer:
    """Scores (query numbers, positions) from the rows of segments; NaN for other positions."""

    def __init__(self, queries: WideRows, segments: Sequence[Segment]) -> None:
        self._queries, self._segments = queries, segments
        d = queries.rows.shape[1]
        self.error, self.likely = near_error(d), min(LIKELY / max(d, 1) ** 0.5, 1.0)

    def near(self, query: Tensor, position: Tensor) -> Tensor:
        """Scores that are off by `error` at most."""
        return self._each(near_scores, query, position)

    def exact(self, query: Tensor, position: Tensor) -> Tensor:
        """The scores."""
        return self._each(score_pairs, query, position)

    def _each(self, score: Callable[..., Tensor], query: Tensor, position: Tensor) -> Tensor:
        if len(self._segments) == 1 and self._segments[0].mapping is None:
            (segment,) = self._segments
            return score(
                self._queries, segment.rows, query, position - segment.first, segment.norms
            )
        found = torch.full(query.shape, torch.nan, dtype=torch.float64, device="cpu")
        for segment in self._segments:
            row = position - segment.first
            here = places((row >= 0) & (row < len(segment)))
            for some in _stretches(segment, row, here):
                found[some] = score(
                    self._queries, segment.rows, query[some], row[some], segment.norms
                )
        return found


def _stretches(segment: Segment, row: Tensor, here: Tensor) -> Iterator[Tensor]:
    """Yield pairs in the order of their rows, a stretch of the file at a time, and free its pages.

    The system also maps the pages around one that is read, so 20 000 pairs of random rows map all
    of 3.7 GB. In order, with pages released after each stretch, they hold 152 MB and take no
    longer.
    """
    if segment.mapping is None:
        yield here
        return
    here = here[row[here].argsort()]
    step = block_rows(segment.rows.shape[1])
    ends = torch.bincount(row[here] // step).cumsum(0).tolist()
    for number, (begin, end) in enumerate(itertools.pairwise([0, *ends])):
        if begin < end:
            segment.touch(row[here[begin:end]])
            yield here[begin:end]
            release_pages(segment.mapping, segment.rows[number * step : (number + 1) * step])


class Search:
    """A batch of queries: their candidates so far, and the scan of further segments.

    Args:
        queries: as they enter a score.
        k: how many rows each is to get.
        centre: (d,) of the corpus.
        screen: a screen's name, or ``"auto"``.
        forbidden: what may not be returned.
        certify: whether to keep an upper bound of all dropped rows.
        exact: whether final scores are needed in float64, see `Pool.finalize`.
        guess: whether thresholds may be guessed, see `Pool`.

    Attributes:
        trace: what it did.
    """

    def __init__(
        self,
        queries: WideRows,
        k: int,
        centre: Tensor,
        screen: str,
        *,
        forbidden: Forbidden | None = None,
        certify: bool = False,
        exact: bool = True,
        guess: bool = True,
    ) -> None:
        self._queries, self._centre, self._screen = queries, centre, screen
        self._forbidden, self._exact = forbidden, exact
        self.trace = Trace()
        self.pool = Pool(len(queries.norms), k, guess=guess, certify=certify)

    def _new_scan(self, queries: WideRows, pool: Pool, forbidden: Forbidden | None) -> Scan:
        count, d = queries.rows.shape
        tried = screens.choose(d, self._screen, queries=count)
        return Scan(queries, pool, self._centre, tried, self.trace, forbidden)

    def through(self, segments: Sequence[Segment], total: int, *, last: bool) -> None:
        """Search segments of a corpus of ``total`` rows, and score the k best.

        After the ``last`` segment near scores suffice, unless float64 results are wanted: nothing
        is compared with them any more.
        """
        score = Scorer(self._queries, segments)
        if last and self._is_ranked(segments):
            self._rank(segments[0], score)
            return
        before, exact = self.pool.state(), self._exact or not last
        for segment in segments:
            if not self._by_projection(segment, score):
                self._scan.through(segment, total, score)
        self.pool.finalize(score, exact=exact)
        for segment in segments:
            if self._may_use_projection(segment):
                few_queries.note(segment, self._queries, self.pool.threshold)
        failed = self.pool.refuted()
        if failed.numel():
            self._repeat(failed, segments, total, before, exact=exact)

    def _may_use_projection(self, segment: Segment) -> bool:
        """Whether a projection may serve: few queries, a long segment, and no certificate."""
        free = self._screen == "auto" and self.pool.dropped_bound is None
        return free and few_queries.suits(len(self._queries.norms), self.pool.k, segment)

    def _by_projection(self, segment: Segment, score: Scorer) -> bool:
        """Search a segment by its projection; False if that was not possible."""
        if not self._may_use_projection(segment):
            return False
        projection = few_queries.projection_of(segment, self._centre)
        if projection is None:
            return False
        # A second thread gains little, and beside a busy process the two wait for each other (Zen
        # 5, 200 000 rows of 384, one and two threads: 3.9 and 3.7 ms; beside one 4.2 and 11.1 ms).
        return _threads.single_threaded(
            few_queries.through,
            *(projection, segment, self._queries, self.pool, score.error, self.trace),
            self._forbidden,
        )

    @lazily
    def _scan(self) -> Scan:
        return self._new_scan(self._queries, self.pool, self._forbidden)

    def _is_ranked(self, segments: Sequence[Segment]) -> bool:
        """Whether to rank all rows by one product: of one segment, before any other."""
        free = self._screen == "auto" and self.pool.dropped_bound is None and not len(self.pool)
        if not free or len(segments) != 1:
            return False
        return ranked.pays(self.pool.k, segments[0], len(self._queries.norms))

    def _rank(self, segment: Segment, score: Scorer) -> None:
        pool = self.pool
        seen = ranked.rank_all(self._queries, pool, segment, self._centre, score, self._forbidden)
        self.trace.note_ranked(len(segment), seen)
        pool.finalize(score, exact=self._exact)

    def resume(self, seen: int) -> None:
        """Go on after so many rows, whose best are in the pool."""
        self._scan.resume(seen)

    def _repeat(
        self,
        failed: Tensor,
        segments: Sequence[Segment],
        total: int,
        before: Mapping[str, Tensor],
        *,
        exact: bool,
    ) -> None:
        """Search again, with proven thresholds, for queries whose guessed threshold was too high.

        They restart from the pool's state ``before`` these segments, since the guess may have
        dropped rows of it.
        """
        self.trace.repeated += failed.numel()
        queries = WideRows(self._queries.rows[failed], self._queries.norms[failed])
        pool = Pool(
            len(failed), self.pool.k, guess=False, certify=self.pool.dropped_bound is not None
        )
        pool.take(before, failed)
        forbidden = self._forbidden
        if forbidden is not None:
            number = torch.full((self.pool.queries,), -1, device="cpu")
            number[failed] = torch.arange(len(failed), device="cpu")
            query = number[forbidden[0]]
            forbidden = query[query >= 0], forbidden[1][query >= 0]
        scan, score = self._new_scan(queries, pool, forbidden), Scorer(queries, segments)
        for segment in segments:
            scan.through(segment, total, score)
        pool.finalize(score, exact=exact)
        self.pool.replace(failed, pool)


class Batches:
    """All queries of a call, in batches; each segment is searched for all of them in turn.

    With enough queries, each usable thread takes batches of its own. The results of a query do not
    depend on the other queries.

    Args:
        queries: (q, d) as given; each batch widens its own.
        k: how many rows each is to get.
        screen: a screen's name, or ``"auto"``.
        centre: (d,) of the corpus; to be set before the first segment.
        forbidden: what may not be returned.
        certify: whether to keep an upper bound of all dropped rows.
        exact: whether scores are returned in float64.
        guess: whether thresholds may be guessed, see `Pool`.
    """

    def __init__(
        self,
        queries: Tensor,
        k: int,
        screen: str,
        *,
        centre: Tensor | None = None,
        forbidden: Forbidden | None = None,
        certify: bool = False,
        exact: bool = True,
        guess: bool = True,
    ) -> None:
        self._queries, self._k, self._screen = queries, k, screen
        self._forbidden, self._certify, self._guess = forbidden, certify, guess
        self._exact = exact or certify
        self._searches: list[Search] = []
        self._threads = independent_threads(len(queries), k)
        self._spans = batches(len(queries), k, self._threads)
        self.centre = centre
        self.seen = self.skipped = 0

    def through(self, segments: Sequence[Segment], *, last: bool) -> None:
        """Search the next segments, or the last ones."""
        self.seen += sum(len(segment) for segment in segments)
        costs.find_out()
        screens.choose(self._queries.shape[1], self._screen)
        # Each thread prepares its own batches: preparing all of them first takes longer.
        self._searches = _threads.run_independent(
            self._threads,
            [
                partial(self._step, each, segments, last=last)
                for each in self._searches or self._spans
            ],
        )
        self.skipped += sum(segment.skipped for segment in segments)

    def _step(self, search: Search | slice, segments: Sequence[Segment], *, last: bool) -> Search:
        """Search segments for a batch, which is made from its queries the first time."""
        made = self._search(search) if isinstance(search, slice) else search
        made.through(segments, self.seen, last=last)
        return made

    def searches(self) -> list[Search]:
        """The batches; the first call makes them."""
        if not self._searches and self.centre is not None:
            self._searches = [self._search(some) for some in self._spans]
        return self._searches

    def _search(self, some: slice) -> Search:
        assert self.centre is not None
        return Search(
            widen(self._queries[some]),
            self._k,
            self.centre,
            self._screen,
            forbidden=self._forbidden_of(some),
            certify=self._certify,
            exact=self._exact,
            guess=self._guess,
        )

    def _forbidden_of(self, some: slice) -> Forbidden | None:
        if self._forbidden is None:
            return None
        query, position = self._forbidden
        here = (query >= some.start) & (query < some.stop)
        return query[here] - some.start, position[here]

    def traces(self) -> list[Trace]:
        """What each batch did."""
        return [search.trace for search in self._searches]

    def state(self) -> dict[str, Tensor]:
        """What was found so far, by name; it does not depend on the division into batches."""
        states = [search.pool.state() for search in self.searches()]
        for state, some in zip(states, self._spans, strict=True):
            state["query"] = state["query"] + some.start
        names = states[0] if states else ()
        return {name: torch.cat([state[name] for state in states]) for name in names}

    def restore(self, held: Mapping[str, Tensor]) -> None:
        """Take back what `state` gave; ``centre`` and ``seen`` are to be set before."""
        for search, some in zip(self.searches(), self._spans, strict=True):
            search.pool.restore(held, torch.arange(some.start, some.stop, device="cpu"))
            search.resume(self.seen)

    def best(self) -> Best:
        """What was found."""
        # By numpy: torch shares copies among threads, which then spin, waiting for the next one, on
        # processors that the next search could use.
        count = len(self._queries)
        scores = np.full((count, self._k), np.nan)
        rows = np.full((count, self._k), -1, np.int64)
        rescored = np.zeros(count, np.int64)
        dropped_bound = np.full(count, -np.inf) if self._certify else None
        for search, some in zip(self.searches(), self._spans, strict=False):
            pool = search.pool
            pool.best(scores[some], rows[some])
            rescored[some] = pool.rescored.numpy()
            if dropped_bound is not None and pool.dropped_bound is not None:
                dropped_bound[some] = pool.dropped_bound.numpy()
        return Best(
            torch.from_numpy(scores),
            torch.from_numpy(rows),
            None if dropped_bound is None else torch.from_numpy(dropped_bound),
            torch.from_numpy(rescored),
            self.seen,
            self.skipped,
        )


def independent_threads(queries: int, k: int) -> int:
    """How many threads take batches of their own: all usable ones if queries suffice, otherwise 1.

    Threads that share each of torch's operations wait for each other, and for the Python and numpy
    code between them, which one thread runs. Threads with batches of their own wait only for the
    interpreter's lock.
    """
    threads = min(_threads.usable_threads(), _threads.MOST_THREADS)
    worth = queries * max(k // tuning.MANY_RESULTS, 1) // tuning.THREAD_QUERIES
    return threads if worth >= threads else 1


def batches(queries: int, k: int, threads: int) -> list[slice]:
    """Cut queries into batches, as many for each thread."""
    size = max(min(tuning.MOST_QUERIES, tuning.MOST_RESULTS // k), 1)
    count = -(-queries // (size * threads)) * threads
    ends = [number * queries // max(count, 1) for number in range(count + 1)]
    return [slice(*ends) for ends in itertools.pairwise(ends)]
