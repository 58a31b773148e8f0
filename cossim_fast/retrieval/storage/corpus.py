"""A corpus that is read once, a block of rows at a time: an array, memory map or iterator."""

from __future__ import annotations

import itertools
from collections.abc import Callable, Iterator
from typing import Any

import torch
from torch import Tensor

from cossim_fast import _checks
from cossim_fast.retrieval.memory_map import release_pages, shared_map
from cossim_fast.retrieval.screening.codes import BLOCK

# [numbers] Of a block: 64 MB of float32, 16 MB of codes.
NUMBERS = 1 << 24

# Called with rows that need not be searched again, and how many such rows are still to follow.
Passed = Callable[[Tensor, int], None]


def block_rows(d: int) -> int:
    """How many rows are searched at a time."""
    return max(NUMBERS // max(d, 1) // BLOCK, 1) * BLOCK


class ArrayCorpus:
    """Rows of a tensor, an array or a memory map."""

    def __init__(self, corpus: Any) -> None:
        self.rows = _checks.embedding_rows("corpus", corpus)
        self.n, self.d = self.rows.shape
        self.dtype = self.rows.dtype
        self._map = shared_map(corpus)

    def blocks(self, start: int = 0, passed: Passed | None = None) -> Iterator[Tensor]:
        """Yield blocks of rows from ``start`` on; those before are given to ``passed`` first."""
        if passed is not None:
            left = start
            for block in self._between(0, start):
                left -= len(block)
                passed(block, left)
        yield from self._between(start, self.n)

    def taken(self, positions: Tensor) -> Iterator[Tensor]:
        """Yield blocks of the rows at ascending positions, copied."""
        step = block_rows(self.d)
        for first in range(0, len(positions), step):
            some = positions[first : first + step]
            yield self.rows[some]
            if self._map is not None:
                release_pages(self._map, self.rows[int(some[0]) : int(some[-1]) + 1])

    def _between(self, start: int, stop: int) -> Iterator[Tensor]:
        step = block_rows(self.d)
        for first in range(start, stop, step):
            block = self.rows[first : min(first + step, stop)]
            yield block
            if self._map is not None:
                release_pages(self._map, block)


class StreamCorpus:
    """Rows of an iterator of blocks."""

    n = None

    def __init__(self, blocks: Iterator[Any], d: int) -> None:
        self._blocks, self.d = blocks, d
        self.dtype: torch.dtype | None = None

    def blocks(self, start: int = 0, passed: Passed | None = None) -> Iterator[Tensor]:
        """Yield blocks of rows from ``start`` on, of `block_rows` rows each.

        Rows before ``start`` are given to ``passed`` first. The iterator's block is released before
        the next one is asked for. Only the rows left over from it, less than a block, are copied.
        """
        step, to_skip = block_rows(self.d), start
        waiting, held, numbers = list[Tensor](), 0, itertools.count()
        for block in self._blocks:  # not by `enumerate`, which would keep a block for the next one
            rows = self._checked(next(numbers), block)
            del block
            skipped = min(to_skip, len(rows))
            to_skip -= skipped
            if skipped and passed is not None:
                passed(rows[:skipped], to_skip)
            at = skipped
            while held + len(rows) - at >= step:
                some = rows[at : at + step - held]
                at += len(some)
                yield torch.cat([*waiting, some]) if waiting else some
                waiting, held = [], 0
                del some
            if at < len(rows):
                waiting.append(rows[at:].clone())
                held += len(rows) - at
            del rows
        if to_skip:
            raise ValueError(
                f"expected the iterator to give the rows again from the first, at least {start} "
                f"of them, got {start - to_skip}; start it anew, or delete the checkpoint"
            )
        if held:
            yield torch.cat(waiting)

    def _checked(self, number: int, block: Any) -> Tensor:
        rows = _checks.embedding_rows(f"block {number} of corpus", block)
        if self.dtype is None:
            self.dtype = rows.dtype
        if rows.shape[1] != self.d or rows.dtype != self.dtype:
            raise ValueError(
                f"expected block {number} of corpus of shape (n, {self.d}) and dtype {self.dtype}, "
                f"got {tuple(rows.shape)} and {rows.dtype}"
            )
        return rows


Corpus = ArrayCorpus | StreamCorpus


def open_corpus(corpus: Any, d: int) -> Corpus:
    """Take what `topk` takes for a corpus; blocks of an iterator must be ``d`` wide."""
    if hasattr(corpus, "__next__"):
        return StreamCorpus(corpus, d)
    return ArrayCorpus(corpus)
