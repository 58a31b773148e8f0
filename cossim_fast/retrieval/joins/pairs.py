"""`pairs_above`: every pair of rows whose cosine reaches a threshold, all at once or in blocks."""

from __future__ import annotations

import math
from collections.abc import Iterator, Sequence
from pathlib import Path
from typing import Any, NamedTuple

import torch
from torch import Tensor

from cossim_fast import _checks
from cossim_fast._as_one import as_one
from cossim_fast._threads import one_thread_after_fork
from cossim_fast.retrieval.joins.checkpoint import JoinCheckpoint
from cossim_fast.retrieval.joins.corpus import CodedRows
from cossim_fast.retrieval.joins.rounds import Rounds, TooManyError
from cossim_fast.retrieval.joins.sweep import Found, Sweep
from cossim_fast.retrieval.progress import Progress
from cossim_fast.retrieval.results import like
from cossim_fast.retrieval.screening.codes import Segment
from cossim_fast.retrieval.screening.screens import choose
from cossim_fast.retrieval.storage.corpus import ArrayCorpus


class Pairs(NamedTuple):
    """Pairs of rows and their cosines, sorted by i, then by j."""

    i: Any  # (p,) int64
    j: Any  # (p,) int64
    scores: Any  # (p,) float32, float64 for float64 input


class TooManyPairsError(ValueError):
    """More pairs reach the threshold than ``max_pairs`` allows.

    Attributes:
        found: how many there were when the join stopped.
        suggested: a threshold that would leave about ``max_pairs``, judged by these; None if none
            up to 1 would.
    """

    def __init__(self, message: str, found: int, suggested: float | None) -> None:
        super().__init__(message)
        self.found, self.suggested = found, suggested

    def __reduce__(self) -> tuple[Any, ...]:
        return type(self), (*self.args, self.found, self.suggested)


@as_one
def pairs_above(
    x: Any,
    y: Any = None,
    threshold: float = 0.8,
    *,
    screen: str = "auto",
    max_pairs: int | None = None,
    progress: bool = False,
    checkpoint: str | Path | None = None,
) -> Pairs:
    """Find every pair of rows whose cosine is at least a threshold, exactly.

    The score of a pair is <x, y> / (|x| |y|) in float64, added up in one fixed order, and 0 where
    either is zero: that of `topk`. The result holds each pair whose score reaches the threshold
    and no other, however many neighbours a row has; the same bits come back whatever the batch,
    the threads or the screen. Copies of a row score exactly 1, also scaled by a power of two.

    Args:
        x: (n, d) tensor or array of float16, bfloat16, float32, float64 or int8, for instance
            ``np.load(path, mmap_mode="r")``.
        y: (m, d) likewise. None joins x with itself: each unordered pair once, i < j.
        threshold: -1 to 1.
        screen: ``"auto"``, ``"int8"``, ``"bfloat16"`` or ``"float32"``: what decides cheaply which
            pairs need not be scored. ``"auto"`` takes the narrowest that is fast on this
            processor, and a wider one where too many pairs pass. On large sets it first compares
            projections onto a few directions, if a sample shows that this rules out enough pairs.
        max_pairs: stop with an error as soon as more pairs are found.
        progress: show a progress bar (needs tqdm: ``pip install 'cossim_fast[retrieval]'``).
        checkpoint: a file that keeps the pairs of the rows of x that are finished, written every
            few thousand rows (which takes at most a twentieth of the time) and deleted at the end.
            If it exists when the join starts, the join resumes from it. A digest of all bytes of
            the rows (1.4 GB/s a thread) ties it to them. No other join can use the file meanwhile.

    Returns:
        Pairs(i, j, scores), (p,) each: int64, int64 and float32 (float64 if an input is float64),
        sorted by i, then j; arrays for an array x, tensors for a tensor.

    Rows that hold NaN or an infinity are in no pair. No gradients.

    Memory beyond inputs and result: 5 d / 3 bytes a row of y for codes, 430 MB at most; for up to
    2^14 rows of x at a time their codes and float64 values (9 d bytes each); four tiles of scores
    (8 MB each, 16 in float64) for each thread; and up to 2 million pairs (about 200 MB) before they
    are sorted. Nothing of size n m.

    Raises:
        TypeError: for integer, complex or sparse input, or a threshold that is no number.
        ValueError: for shapes that do not match, a threshold outside [-1, 1], an unknown screen, or
            a checkpoint of another join, or of other rows.
        InUseError: a ValueError, where another join uses this checkpoint.
        TooManyPairsError: a ValueError, past ``max_pairs``; it says how many pairs there are so
            far, and which threshold to try.

    >>> x = torch.tensor([[1.0, 0.0], [4.0, 3.0], [0.0, 2.0]])
    >>> pairs_above(x, threshold=0.6)
    Pairs(i=tensor([0, 1]), j=tensor([1, 2]), scores=tensor([0.8000, 0.6000]))
    """
    if max_pairs is not None:
        max_pairs = _checks.whole_number("max_pairs", max_pairs, least=0)
    join = _Join(x, y, threshold, screen)
    with JoinCheckpoint(checkpoint) as kept:
        done, before = join.begin(kept, "pairs")
        held = [before]
        rounds = join.rounds(done, None if max_pairs is None else max_pairs - before.scores.numel())
        with Progress(progress, "pairs_above", join.x.n, done) as bar:
            try:
                for found in rounds:
                    held.append(found)
                    kept.save(rounds.done, held, join.sweep.dtype)
                    bar.update(rounds.done - done)
                    done = rounds.done
            except TooManyError as error:
                assert max_pairs is not None
                scores = torch.cat([*(found.scores for found in held), error.scores])
                raise _too_many(scores, max_pairs, join) from None
        result = Found.concatenate(held, join.sweep.dtype)
        kept.remove()
    return _pairs(x, result)


@as_one
def iter_pairs_above(
    x: Any,
    y: Any = None,
    threshold: float = 0.8,
    *,
    screen: str = "auto",
    progress: bool = False,
    checkpoint: str | Path | None = None,
) -> Iterator[Pairs]:
    """Yield the pairs of `pairs_above` in blocks, so that memory does not grow with the result.

    Concatenated, the blocks are the result of `pairs_above`, sorted by i, then j. A block holds all
    pairs of some rows of x: at most 2 million, or all those of one row. Arguments, special rows,
    errors and memory are as for `pairs_above`.

    Args:
        x: (n, d) tensor, array or memory map.
        y: (m, d) likewise. None joins x with itself.
        threshold: -1 to 1.
        screen: as for `pairs_above`.
        progress: show a progress bar.
        checkpoint: a file that records which rows of x are finished. It is written when the next
            block is asked for (at most a twentieth of the time goes into that), and deleted after
            the last. A run that resumes therefore repeats every block that the caller may not have
            finished with, and leaves none out.

    Yields:
        Pairs(i, j, scores), none of them empty.

    >>> x = torch.tensor([[1.0, 0.0], [4.0, 3.0], [0.0, 2.0]])
    >>> sum(len(block.i) for block in iter_pairs_above(x, threshold=0.6))
    2
    """
    kept = JoinCheckpoint(checkpoint)
    try:
        blocks = JoinBlocks(x, y, threshold, screen=screen, progress=progress, kept=kept)
    except BaseException:
        kept.close()
        raise
    return blocks.to_the_end()


class JoinBlocks:
    """The blocks of `iter_pairs_above`, for a caller who stores them.

    The checkpoint stays after the last block: the caller removes and closes it.

    Args:
        x: as for `pairs_above`, and so are the others.
        kept: the checkpoint.

    Attributes:
        done: how many rows of x are finished.
        double: whether scores are float64.
    """

    def __init__(
        self,
        x: Any,
        y: Any = None,
        threshold: float = 0.8,
        *,
        screen: str = "auto",
        max_pairs: int | None = None,
        progress: bool = False,
        kept: JoinCheckpoint,
    ) -> None:
        if max_pairs is not None:
            max_pairs = _checks.whole_number("max_pairs", max_pairs, least=0)
        self._x, self._join = x, _Join(x, y, threshold, screen)
        self._most, self._progress, self._kept = max_pairs, progress, kept
        self.double = self._join.sweep.double
        self.done, _ = self._join.begin(kept, "blocks")

    def blocks(self, before: int = 0) -> Iterator[Pairs]:
        """Yield the pairs of rows that are not done; a block is done when the next is asked for.

        Args:
            before: how many pairs finished rows have, which ``max_pairs`` counts too.
        """
        join, kept = self._join, self._kept
        most = None if self._most is None else self._most - before
        rounds = join.rounds(self.done, most)
        scores: list[Tensor] = []
        with Progress(self._progress, "pairs_above", join.x.n, self.done) as bar:
            try:
                for found in rounds:
                    if found.scores.numel():
                        yield _pairs(self._x, found)
                    if most is not None:
                        scores.append(found.scores)
                    kept.save(rounds.done, [], join.sweep.dtype, last=rounds.done == join.x.n)
                    bar.update(rounds.done - self.done)
                    self.done = rounds.done
            except TooManyError as error:
                assert self._most is not None
                raise _too_many(torch.cat([*scores, error.scores]), self._most, join) from None

    def to_the_end(self) -> Iterator[Pairs]:
        """Yield all blocks, then remove the checkpoint; in any case close it."""
        with self._kept as kept:
            yield from self.blocks()
            kept.remove()


def range_search(
    queries: Tensor,
    segments: Sequence[Segment],
    centre: Tensor,
    threshold: float,
    *,
    screen: str = "auto",
    double: bool = False,
) -> Iterator[Found]:
    """Yield every eligible row that reaches a threshold, query by query, by position.

    Args:
        queries: (q, d), checked.
        segments: of the rows, in order, coded about one centre.
        centre: (d,) float32.
        threshold: -1 to 1.
        screen: a screen's name, or ``"auto"``.
        double: keep scores in float64.
    """
    screens = choose(queries.shape[1], screen)
    if any(segment.codes is None for segment in segments):
        screens = [one for one in screens if one.name != "int8"]
    sweep = Sweep(screens, centre, threshold, double=double)
    order = torch.arange(queries.shape[0], device="cpu")
    return iter(Rounds(order, lambda some: queries[some], lambda _: segments, sweep))


class _Join:
    """The checked arguments of a join, and its corpus and sweep."""

    def __init__(self, x: Any, y: Any, threshold: float, screen: str) -> None:
        one_thread_after_fork()
        self.threshold = _checks.threshold(threshold)
        _checks.screen_name(screen)
        sources = [ArrayCorpus(_checks.embedding_rows("x", x))]
        if y is not None:
            sources.append(ArrayCorpus(_checks.embedding_rows("y", y)))
            _checks.joined_widths(sources[0].d, sources[1].d)
        self.sources = sources
        self.x = sources[0]
        self.rows = CodedRows(sources[-1], self.x.rows, self.threshold, screen)
        self.sweep = Sweep(
            self.rows.screens,
            self.rows.centre,
            self.threshold,
            later=y is None,
            double=any(source.dtype == torch.float64 for source in sources),
        )

    def rounds(self, done: int = 0, most: int | None = None) -> Rounds:
        """The queries that are not done yet."""
        order = torch.arange(self.x.n, device="cpu")
        return Rounds(
            order,
            lambda some: self.x.rows[some],
            self.rows.segments,
            self.sweep,
            done=done,
            most=most,
        )

    def begin(self, kept: JoinCheckpoint, kind: str) -> tuple[int, Found]:
        """How many queries the checkpoint has as finished, and their pairs."""
        arguments = {"threshold": self.threshold, "kind": kind}
        rows = tuple(source.rows for source in self.sources)
        return kept.begin(rows, arguments, self.sweep.dtype)


def _pairs(x: Any, found: Found) -> Pairs:
    return Pairs(*(like(x, column) for column in found))


def _too_many(scores: Tensor, most: int, join: _Join) -> TooManyPairsError:
    """The error of a join of all rows."""
    n, m = join.x.n, join.rows.n
    every = n * (n - 1) // 2 if join.sweep.later else n * m
    advice = "Raise one of the two, or take the pairs in blocks from iter_pairs_above"
    return too_many(scores, most, join.threshold, join.sweep.compared / every, advice)


def too_many(
    scores: Tensor, most: int, threshold: float, share: float, advice: str
) -> TooManyPairsError:
    """The error, with the pairs so far, and a threshold that would leave about ``most``.

    Args:
        scores: (p,) of the pairs so far.
        most: how many were allowed.
        threshold: of the join.
        share: of all pairs that were compared.
        advice: what else to do.
    """
    share = min(share, 1.0)
    highest = torch.sort(scores.double(), descending=True).values
    found = len(highest)
    suggested: float | None = None
    rank = int(most * share)
    if rank < found:
        # Above the first that would be too many, and rounded up to be read.
        suggested = (math.floor(float(highest[rank]) * 1e4) + 1) / 1e4
    ok = suggested is not None and suggested <= 1
    judged = (
        f"threshold={suggested:.4f} would leave about {most}"
        if ok
        else "no threshold would leave so few"
    )
    message = (
        f"expected at most max_pairs={most} pairs to reach threshold={threshold!r}, got {found} "
        f"among the first {share:.2%} of all pairs; judging by these, {judged}. {advice}"
    )
    return TooManyPairsError(message, found, suggested if ok else None)
