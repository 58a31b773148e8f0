"""Parts of one search or join, for programs that compute them apart and put them together.

`search` finds the nearest among some consecutive rows of a corpus, numbered as in all of it. Its
scores are float64: parts are merged by them, then by row number, and rounded last. Merging scores
that were rounded before gave wrong neighbours for 50 of 50 queries on scaled copies.

A search of all rows drops each row whose upper bound misses the k-th best score so far. A part
begins without one, unless it is given floors: scores that k rows elsewhere are known to reach.

`join` finds the pairs of a panel, which stays in memory and is coded once, with rows that stream
past it. Each pair is scored once, in one part alone, so its score may be rounded there.
"""

from __future__ import annotations

from collections.abc import Iterator
from typing import Any, NamedTuple

import numpy as np
import torch
from numpy.typing import NDArray
from torch import Tensor

from cossim_fast import _checks
from cossim_fast._threads import one_thread_after_fork
from cossim_fast.retrieval import tuning
from cossim_fast.retrieval.joins.corpus import CodedRows
from cossim_fast.retrieval.joins.pairs import Pairs, too_many
from cossim_fast.retrieval.joins.rounds import Rounds, TooManyError
from cossim_fast.retrieval.joins.sweep import Found, Sweep
from cossim_fast.retrieval.nearest.batches import Batches
from cossim_fast.retrieval.nearest.pool import NO_THRESHOLD
from cossim_fast.retrieval.screening.codes import centre_of, encode
from cossim_fast.retrieval.storage.corpus import ArrayCorpus, block_rows


class Nearest(NamedTuple):
    """The nearest rows of each query among those of a part, best first."""

    scores: NDArray[np.float64]  # (q, k), NaN where there are no more
    rows: NDArray[np.int64]  # (q, k) numbers of rows of the whole corpus, -1 likewise


def search(
    queries: Any,
    pieces: Iterator[Any],
    first: int,
    stop: int,
    k: int,
    *,
    floors: NDArray[np.float64] | None = None,
    seen: int = 0,
    screen: str = "auto",
) -> Nearest:
    """Find the k rows among ``first`` to ``stop`` with the largest cosine to each query, exactly.

    Args:
        queries: (q, d), as for `topk`.
        pieces: yields these rows in order, in pieces (n_i, d) of any sizes.
        first: number of the first row.
        stop: number after the last row.
        k: how many rows, of this part or of others, each query is to get in the end.
        floors: (q,), each at most the k-th best score of its query among all rows; -inf or NaN
            where none is known. Rows that score less may be left out, those that score as much
            never are.
        seen: among how many rows the floors were found. No result depends on it.
        screen: as for `topk`.

    Returns:
        Nearest(scores, rows), (q, k) each. If floors leave out rows, there may be less than k.
    """
    one_thread_after_fork()
    asked = _checks.embedding_rows("queries", queries)
    k = _checks.whole_number("k", k)
    _checks.screen_name(screen)
    result = Nearest(np.full((len(asked), k), np.nan), np.full((len(asked), k), -1, np.int64))
    total = stop - first
    if not total or not len(asked):
        return result
    if screen == "auto" and len(asked) < tuning.CODING_PAYS:
        screen = "float32"
    # A guessed threshold is proven by k rows of this part, but the k best may be in others.
    found = Batches(asked, min(k, total), screen, guess=floors is None)
    at = first
    for rows in _together(pieces, asked.shape[1]):
        if found.centre is None:
            found.centre = centre_of(rows)
            if floors is not None:
                _begin(found, floors, seen or total)
        segment = encode(rows, found.centre, first=at, codes=screen in ("auto", "int8"))
        at += len(rows)
        found.through([segment], last=at == stop)
        del rows, segment  # so that they are freed before the next piece is read
    if at != stop:
        raise ValueError(f"expected rows {first} to {stop}, got {at - first} rows")
    best = found.best()
    width = best.scores.shape[1]
    result.scores[:, :width], result.rows[:, :width] = best.scores.numpy(), best.positions.numpy()
    return result


def _begin(found: Batches, floors: NDArray[np.float64], seen: int) -> None:
    """Begin a search at proven thresholds (q,), as if rows that reach them had been seen."""
    proven = np.where(np.isnan(floors), NO_THRESHOLD, np.maximum(floors, NO_THRESHOLD))
    nothing = torch.empty(0, dtype=torch.int64, device="cpu")
    found.seen = seen
    found.restore(
        {
            "query": nothing,
            "row": nothing,
            "score": torch.empty(0, dtype=torch.float64, device="cpu"),
            "threshold": torch.from_numpy(proven),
            "rescored": torch.zeros(len(floors), dtype=torch.int64, device="cpu"),
        }
    )


def join(
    panel: Any,
    pieces: Iterator[Any] | None,
    threshold: float,
    *,
    rows: int = 0,
    double: bool = False,
    most: int | None = None,
    screen: str = "auto",
) -> Pairs:
    """Find every pair of streamed rows and rows of a panel that reaches a threshold, exactly.

    Args:
        panel: (m, d), which is coded once.
        pieces: yields rows in order, in pieces (n_i, d) of any sizes; None joins the panel with
            itself, each unordered pair once, i < j.
        threshold: -1 to 1.
        rows: how many rows are streamed.
        double: whether rows of either side are float64, and so the scores.
        most: raise an error as soon as more pairs are found.
        screen: as for `pairs_above`.

    Returns:
        Pairs(i, j, scores), sorted by i, then j: the number of the streamed row, that of the row of
        the panel, both from 0 on, and the score as `pairs_above` returns it. Arrays.

    Raises:
        TooManyPairsError: past ``most``.
    """
    one_thread_after_fork()
    threshold = _checks.threshold(threshold)
    _checks.screen_name(screen)
    source = ArrayCorpus(_checks.embedding_rows("panel", panel))
    itself = pieces is None
    dtype = torch.float64 if double else torch.float32
    found: list[Found] = []
    coded: CodedRows | None = None
    at = 0
    streamed = iter([source.rows]) if pieces is None else _together(pieces, source.d)
    for some in streamed if source.n else ():
        if coded is None:
            coded = CodedRows(source, some, threshold, screen)
            sweep = Sweep(coded.screens, coded.centre, threshold, later=itself, double=double)
        room = None if most is None else most - sum(len(part.scores) for part in found)
        order = torch.arange(at, at + len(some), device="cpu")
        taken = _Taken(some, at)
        try:
            found.extend(Rounds(order, taken, coded.segments, sweep, most=room))
        except TooManyError as error:
            assert most is not None
            every = source.n * (source.n - 1) // 2 if itself else source.n * rows
            scores = torch.cat([*(part.scores for part in found), error.scores])
            advice = "That is in one block of the join: raise one of the two"
            raise too_many(scores, most, threshold, sweep.compared / every, advice) from None
        at += len(some)
        del some, taken
    if not itself and source.n and at != rows:
        raise ValueError(f"expected {rows} rows, got {at}")
    return Pairs(*(column.numpy() for column in Found.concatenate(found, dtype)))


class _Taken:
    """Rows of a piece by their numbers."""

    def __init__(self, rows: Tensor, first: int) -> None:
        self._rows, self._first = rows, first

    def __call__(self, numbers: Tensor) -> Tensor:
        return self._rows[numbers - self._first]


def _together(pieces: Iterator[Any], d: int) -> Iterator[Tensor]:
    """Yield rows (n, d) in blocks of about `block_rows`, from pieces of any sizes.

    Each block costs every batch of queries a few milliseconds, so small pieces are put together.
    A large one is cut into views of equal sizes.
    """
    step = block_rows(d)
    held: list[Tensor] = []
    for piece in pieces:
        rows = _checks.embedding_rows("rows", piece)
        _checks.same_width(d, rows.shape[1])
        held.append(rows)
        del piece, rows
        if 2 * sum(map(len, held)) >= step:
            yield from _cut(held, step)
    yield from _cut(held, step)


def _cut(held: list[Tensor], step: int) -> Iterator[Tensor]:
    """Yield some pieces as blocks of about ``step`` rows; the list is empty then."""
    if not sum(map(len, held)):
        return
    rows = held[0] if len(held) == 1 else torch.cat(held)
    held.clear()
    yield from rows.chunk(max(round(len(rows) / step), 1))


def visiting_order(keep: Any, n: int) -> NDArray[np.int64] | None:
    """The order (n,) in which `deduplicate` visits rows; None for the order of the rows.

    Args:
        keep: as for `deduplicate`.
        n: how many rows.
    """
    order = _checks.order_to_keep(keep, n)
    return None if order is None else order.numpy()


__all__ = ["Nearest", "join", "search", "visiting_order"]
