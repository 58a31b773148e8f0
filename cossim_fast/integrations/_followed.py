"""Vectors in a dictionary that somebody else changes, coded as they were at the last search."""

from __future__ import annotations

import threading
from collections.abc import Iterable
from operator import is_
from typing import Any

import numpy as np

from cossim_fast import _checks
from cossim_fast._threads import watch
from cossim_fast.retrieval import CosineIndex


class Followed:
    """An index that follows a dictionary: compared at each search, by the identity of its vectors.

    Rows of the index have numbers, and so keys of the dictionary may be anything. May be used by
    several threads; a copy or a pickle is an empty one.
    """

    def __init__(self) -> None:
        self._forget()
        watch(self)

    def __reduce__(self) -> tuple[type[Followed], tuple[()]]:
        return Followed, ()

    def _forget(self) -> None:
        self._lock = threading.Lock()
        self._index: CosineIndex | None = None
        self._vectors: dict[Any, Any] = {}
        self._number: dict[Any, int] = {}
        self._key: dict[int, Any] = {}

    def forked(self) -> None:
        """Be fit for use in a child process: a thread that is not there may hold the lock."""
        if self._lock.locked():
            self._forget()

    def nearest(
        self, vectors: dict[Any, Any], query: Any, k: int, wanted: Iterable[Any] | None = None
    ) -> list[tuple[Any, float]]:
        """The keys of the k nearest vectors and their cosines, best first.

        Args:
            vectors: by their keys, a copy that nobody changes.
            query: (d,) numbers.
            k: at least 1; how many, if there are as many.
            wanted: keys of those that may be found; None for all.
        """
        asked = _checks.as_tensor("the query", query).detach().cpu().double().numpy()[None]
        with self._lock:
            index = self._follow(vectors)
            where = None
            if wanted is not None:
                where = np.array([self._number[key] for key in wanted], dtype=np.int64)
            if index is None or (where is not None and not len(where)):
                return []
            scores, numbers = index.search(asked, min(k, len(vectors)), where=where)[:2]
            hits = zip(numbers[0].tolist(), scores[0].tolist(), strict=True)
            return [(self._key[row], score) for row, score in hits if row >= 0]

    def _follow(self, vectors: dict[Any, Any]) -> CosineIndex | None:
        """The index, after what was added, replaced and deleted since the last search."""
        before = self._vectors
        if list(vectors) == list(before) and all(map(is_, vectors.values(), before.values())):
            return self._index
        new = [key for key, vector in vectors.items() if before.get(key) is not vector]
        gone = [key for key, vector in before.items() if vectors.get(key) is not vector]
        widths = sorted({len(vectors[key]) for key in new})
        if len(widths) > 1:
            raise ValueError(f"expected vectors of one length in the store, got {widths}")
        rows = np.array([vectors[key] for key in new], dtype=np.float64)
        if self._index is None or len(gone) == len(before):
            self._index = CosineIndex(rows) if new else None
            self._number, self._key = {}, {}
        else:
            if new:
                self._index.add(rows)
            old = [self._number.pop(key) for key in gone]
            for number in old:
                del self._key[number]
            self._index.remove(old)
        if self._index is not None:
            numbers = self._index.ids[len(vectors) - len(new) :].tolist()
            self._number.update(zip(new, numbers, strict=True))
            self._key.update(zip(numbers, new, strict=True))
        self._vectors = vectors
        return self._index
