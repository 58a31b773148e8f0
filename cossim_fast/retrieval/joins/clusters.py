"""`deduplicate` and `communities`: clusters from the join of a set with itself."""

from __future__ import annotations

from collections.abc import Callable, Iterator
from typing import Any, NamedTuple

import numpy as np
import torch
from torch import Tensor

from cossim_fast import _checks
from cossim_fast._as_one import as_one
from cossim_fast._threads import one_thread_after_fork
from cossim_fast.retrieval.joins.corpus import CodedRows
from cossim_fast.retrieval.joins.rounds import Rounds
from cossim_fast.retrieval.joins.sweep import Found, Sweep
from cossim_fast.retrieval.progress import Progress
from cossim_fast.retrieval.results import like
from cossim_fast.retrieval.storage.corpus import ArrayCorpus

Skip = Callable[[Tensor], Tensor]
# [pairs] Most pairs that `communities` keeps, to avoid a second join: 320 MB.
KEPT_PAIRS = 1 << 24


class Deduplicated(NamedTuple):
    """Kept rows, and for each dropped row the kept one that it duplicates."""

    kept: Any  # (k,) int64, ascending
    dropped: Any  # (n - k,) int64, ascending
    representatives: Any  # (n - k,) int64, the kept row that each dropped one duplicates
    scores: Any  # (n - k,) their cosines: float32, float64 for float64 input


@as_one
def deduplicate(
    x: Any,
    threshold: float,
    *,
    keep: Any = "first",
    screen: str = "auto",
    progress: bool = False,
) -> Deduplicated:
    """Drop every row that is similar to a kept row: greedy, exact and deterministic.

    Rows are visited in the order given by ``keep``. A row is dropped if its cosine to a row kept
    before it reaches the threshold, else it is kept. So no two kept rows reach the threshold, and
    every dropped row reaches it with a kept one. The representative of a dropped row is the one
    with the largest cosine, rounded as it is returned, among the rows kept before it; of equal ones
    the first that was kept.

    Args:
        x: (n, d) tensor, array or memory map of float16, bfloat16, float32, float64 or int8.
        threshold: -1 to 1; copies of a row reach 1.
        keep: ``"first"`` goes through the rows from the first to the last, ``"last"`` from the last
            to the first; priorities (n,), for instance lengths of texts, or dates of numpy's or
            Python's, from the largest to the smallest, equal ones as they stand.
        screen: as for `pairs_above`.
        progress: show a progress bar (needs tqdm: ``pip install 'cossim_fast[retrieval]'``).

    Returns:
        Deduplicated(kept, dropped, representatives, scores); arrays for an array x, tensors for a
        tensor. ``x[kept]`` is what remains.

    Rows that hold NaN or an infinity are similar to none, and kept. Scores and memory are those of
    `pairs_above`, and 26 bytes a row more. No gradients.

    Raises:
        TypeError: for integer, complex or sparse input, or a threshold that is no number.
        ValueError: for a wrong shape, a threshold outside [-1, 1], or an unknown keep or screen.

    >>> x = torch.tensor([[1.0, 0.0], [4.0, 3.0], [0.0, 2.0], [5.0, 1.0]])
    >>> deduplicate(x, 0.9)
    Deduplicated(kept=tensor([0, 1, 2]), dropped=tensor([3]), representatives=tensor([0]),
                 scores=tensor([0.9806]))
    """
    join = _SelfJoin(x, threshold, screen, keep=keep)
    n = join.n
    best = torch.full((n,), -torch.inf, dtype=join.dtype, device="cpu")
    by = torch.full((n,), -1, device="cpu")
    rounds = join.rounds(later=True, skip=lambda numbers: by[numbers] >= 0)
    done = 0
    with Progress(progress, "deduplicate", n) as bar:
        for found in rounds:
            for row, others, scores in _by_query(found):
                if by[row] >= 0:
                    continue
                nearer = scores > best[others]
                best[others[nearer]], by[others[nearer]] = scores[nearer], row
            bar.update(rounds.done - done)
            done = rounds.done
    kept, dropped = by < 0, by >= 0
    row_of = torch.arange(n, device="cpu") if join.order is None else join.order
    order = torch.sort(row_of[dropped]).indices
    columns = (
        torch.sort(row_of[kept]).values,
        row_of[dropped][order],
        row_of[by[dropped]][order],
        best[dropped][order],
    )
    return Deduplicated(*(like(x, column) for column in columns))


@as_one
def communities(
    x: Any, threshold: float, min_size: int, *, screen: str = "auto", progress: bool = False
) -> list[Any]:
    """Find clusters of rows around a central row, largest first: exact and deterministic.

    The neighbours of a row are the rows, itself among them, whose cosine to it reaches the
    threshold. Rows with at least ``min_size`` neighbours are visited, those with the most first and
    equal ones in row order. One that is in a community already is skipped. Another forms a
    community with those of its neighbours that are in none, if these are at least ``min_size``.

    This is sentence-transformers' ``community_detection`` with every step defined: there, the order
    of equal cosines depends on an unstable sort, and cosines are rounded to float32.

    Args:
        x: (n, d) tensor, array or memory map of float16, bfloat16, float32, float64 or int8.
        threshold: -1 to 1.
        min_size: rows of the smallest community, at least 1.
        screen: as for `pairs_above`.
        progress: show a progress bar (needs tqdm: ``pip install 'cossim_fast[retrieval]'``).

    Returns:
        One (size,) int64 array a community (a tensor if x is one): its centre, then the others by
        cosine to it, rounded to float32 unless x is float64, largest first, equal ones in row
        order. Largest communities first, those of one size in the order in which they were found.

    A row that holds NaN or an infinity has no neighbours, nor has a zero row if the threshold is
    positive. No gradients.

    Memory is that of `pairs_above`, with up to 16 million pairs (320 MB) instead of 2. If there
    are more, only numbers of neighbours are kept, and the neighbours of rows that may be centres
    are searched again.

    Raises:
        TypeError: for integer, complex or sparse input, or a min_size that is no int.
        ValueError: for a wrong shape, a threshold outside [-1, 1], min_size < 1, or an unknown
            screen.

    >>> x = torch.tensor([[1.0, 0.0], [0.0, 2.0], [4.0, 3.0], [5.0, 1.0]])
    >>> communities(x, 0.8, min_size=2)
    [tensor([0, 3, 2])]
    """
    min_size = _checks.whole_number("min_size", min_size)
    join = _SelfJoin(x, threshold, screen)
    itself = join.pairs_with_itself()
    counts, pairs = _count(join, itself, progress)
    centres = torch.from_numpy(np.argsort(-counts.numpy(), kind="stable"))
    centres = centres[counts[centres] >= min_size]
    used = torch.zeros(join.n, dtype=torch.bool, device="cpu")
    lists = _looked_up(pairs, centres, join.n) if pairs else _searched(join, centres, used)
    found = []
    for centre, others, scores in lists:
        if used[centre]:
            continue
        free = ~used[others]
        if 1 + int(free.sum()) >= min_size:
            nearest = torch.sort(scores[free], descending=True, stable=True).indices
            ranked = others[free][nearest]
            found.append(
                torch.cat([torch.tensor([centre], dtype=torch.int64, device="cpu"), ranked])
            )
            used[found[-1]] = True
    found.sort(key=len, reverse=True)
    return [like(x, community) for community in found]


class _SelfJoin:
    """The join of a set of rows with itself, in a given order of the rows."""

    def __init__(self, x: Any, threshold: float, screen: str, keep: Any = "first") -> None:
        one_thread_after_fork()
        self._threshold = _checks.threshold(threshold)
        _checks.screen_name(screen)
        source = ArrayCorpus(_checks.embedding_rows("x", x))
        self.n = source.n
        self.order = _checks.order_to_keep(keep, source.n)
        self._rows = CodedRows(source, source.rows, self._threshold, screen, self.order)
        self.dtype = torch.float64 if source.dtype == torch.float64 else torch.float32

    def rounds(
        self, order: Tensor | None = None, *, later: bool, skip: Skip | None = None
    ) -> Rounds:
        """The join of all rows, or of some in an order, with all rows, or with later ones only."""
        sweep = Sweep(
            self._rows.screens,
            self._rows.centre,
            self._threshold,
            later=later,
            double=self.dtype == torch.float64,
        )
        order = torch.arange(self.n, device="cpu") if order is None else order
        return Rounds(order, self._rows.take, self._rows.segments, sweep, skip=skip)

    def pairs_with_itself(self) -> Tensor:
        """(n,) bool: whether a row is its own neighbour."""
        norms = [segment.norms for segment in self._rows.segments()]
        norm = torch.cat([torch.empty(0, dtype=torch.float64, device="cpu"), *norms])
        return norm.isfinite() & ((norm > 0) | (self._threshold <= 0))


def _by_query(found: Found) -> Iterator[tuple[int, Tensor, Tensor]]:
    """Yield each query with the positions and scores of its pairs."""
    if not found.query.numel():
        return
    numbers, counts = torch.unique_consecutive(found.query, return_counts=True)
    stops = counts.cumsum(0)
    for number, count, stop in zip(numbers.tolist(), counts.tolist(), stops.tolist(), strict=True):
        some = slice(stop - count, stop)
        yield number, found.position[some], found.scores[some]


def _count(join: _SelfJoin, itself: Tensor, progress: bool) -> tuple[Tensor, Found | None]:
    """The number of neighbours of each row, and the pairs (i < j) unless they are too many."""
    counts = itself.long()
    held: list[Found] | None = []
    pairs = done = 0
    rounds = join.rounds(later=True)
    with Progress(progress, "communities", join.n) as bar:
        for found in rounds:
            counts += torch.bincount(found.query, minlength=join.n)
            counts += torch.bincount(found.position, minlength=join.n)
            pairs += found.scores.numel()
            held = [*held, found] if held is not None and pairs <= KEPT_PAIRS else None
            bar.update(rounds.done - done)
            done = rounds.done
    return counts, None if held is None else Found.concatenate(held, join.dtype)


# Centres, with the positions and scores of their neighbours except themselves.
_Neighbours = Iterator[tuple[int, Tensor, Tensor]]


def _looked_up(pairs: Found, centres: Tensor, n: int) -> _Neighbours:
    """The neighbours of some rows among pairs (i < j) that are sorted by i, then j."""
    row = torch.cat([pairs.position, pairs.query])
    other = torch.cat([pairs.query, pairs.position])
    order = torch.from_numpy(np.argsort(row.numpy(), kind="stable"))
    other, scores = other[order], torch.cat([pairs.scores, pairs.scores])[order]
    stops = torch.bincount(row, minlength=n).cumsum(0).tolist()
    for centre in centres.tolist():
        some = slice(stops[centre - 1] if centre else 0, stops[centre])
        yield centre, other[some], scores[some]


def _searched(join: _SelfJoin, centres: Tensor, used: Tensor) -> _Neighbours:
    """The neighbours of some rows, searched again; rows in a community by then are skipped."""
    rounds = join.rounds(centres, later=False, skip=lambda numbers: used[numbers])
    done = 0
    for found in rounds:
        lists = {query: (others, scores) for query, others, scores in _by_query(found)}
        nothing = found.position[:0], found.scores[:0]
        for centre in centres[done : rounds.done].tolist():
            others, scores = lists.get(centre, nothing)
            yield centre, others[others != centre], scores[others != centre]
        done = rounds.done
