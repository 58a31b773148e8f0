"""In place of a flat index of FAISS over unit rows: `IndexFlatCosine`. Needs no FAISS.

Written after ``IndexFlatIP`` of FAISS 1.15, whose inner products of unit rows are cosines.
"""

from __future__ import annotations

from typing import Any

import numpy as np

from cossim_fast import _checks
from cossim_fast.retrieval import CosineIndex

Array = np.ndarray[Any, Any]
# What FAISS gives as the inner product with no row.
_NO_SCORE = np.finfo(np.float32).min


class IndexFlatCosine:
    """An exact index of float32 rows, by cosine: ``IndexFlatIP`` without `normalize_L2`.

    Args:
        d: the width of a row.

    Rows are numbered in the order in which they are added; when some are removed, those behind
    them move up. They are kept as they were added, beside the copy and the codes of a
    `cossim_fast.CosineIndex`: 9 d bytes a row.

    Attributes:
        d: the width of a row.
        ntotal: how many rows there are.
        is_trained: True.
        metric_type: 0, FAISS's number for the inner product.

    >>> index = IndexFlatCosine(2)
    >>> index.add(np.array([[1.0, 0.0], [0.0, 2.0]], dtype="float32"))
    >>> index.search(np.array([[3.0, 4.0]], dtype="float32"), 2)
    (array([[0.8, 0.6]], dtype=float32), array([[1, 0]]))
    """

    is_trained = True
    metric_type = 0

    def __init__(self, d: int) -> None:
        _checks.whole_number("d", d)
        self.d = d
        self.reset()

    def __repr__(self) -> str:
        return f"IndexFlatCosine({self.ntotal} rows of {self.d})"

    def reset(self) -> None:
        """Remove all rows."""
        self._parts: list[Array] = []
        self._index = CosineIndex(np.empty((0, self.d), np.float32))

    @property
    def ntotal(self) -> int:
        """How many rows there are."""
        return len(self._index)

    def add(self, x: Any) -> None:
        """Add rows (n, d); they are copied."""
        rows = self._given(x).copy()
        self._index.add(rows)
        self._parts.append(rows)

    def search(self, x: Any, k: int) -> tuple[Array, Array]:
        """Find the k rows with the largest cosine to each query.

        Args:
            x: (q, d) queries.
            k: how many; where there are fewer rows, the rest is -1, as in FAISS.

        Returns:
            D (q, k) float32 cosines, largest first, and I (q, k) int64 rows, equal ones in order.
        """
        _checks.whole_number("k", k)
        queries = self._given(x)
        scores = np.full((len(queries), k), _NO_SCORE, np.float32)
        rows = np.full((len(queries), k), -1, np.int64)
        found = min(k, self.ntotal)
        if found and len(queries):
            best, at = self._index.search(queries, found)[:2]
            rows[:, :found] = at
            scores[:, :found] = np.where(at < 0, _NO_SCORE, best)
        return scores, rows

    def range_search(self, x: Any, thresh: float) -> tuple[Array, Array, Array]:
        """Find the rows whose cosine to each query is above a threshold, as in FAISS: not equal.

        Args:
            x: (q, d) queries.
            thresh: any number; it is compared in float64.

        Returns:
            lims (q + 1,) uint64, D and I: what was found for query i lies in lims[i] to
            lims[i + 1] of the cosines D, float32, and the rows I, int64, in order.
        """
        queries = self._given(x)
        least = float(np.nextafter(np.float64(thresh), np.inf))
        if np.isnan(least):
            raise ValueError(f"expected thresh to be a number, got {thresh!r}")
        lims = np.zeros(len(queries) + 1, np.uint64)
        if least > 1 or not self.ntotal:
            return lims, np.empty(0, np.float32), np.empty(0, np.int64)
        found = self._index.range_search(queries, max(least, -1.0))
        lims[:] = found.lims
        return lims, found.scores, found.indices

    def reconstruct(self, key: int) -> Array:
        """Return the row with a number, as it was added."""
        if not 0 <= key < self.ntotal:
            raise RuntimeError(f"expected a row from 0 to {self.ntotal - 1}, got {key}")
        row: Array = self._rows()[key].copy()
        return row

    def reconstruct_n(self, n0: int = 0, ni: int = -1) -> Array:
        """Return ``ni`` rows from ``n0`` on, all by default."""
        stop = self.ntotal if ni == -1 else n0 + ni
        if not 0 <= n0 <= stop <= self.ntotal:
            raise RuntimeError(f"expected rows within 0 to {self.ntotal}, got {n0} to {stop}")
        return self._rows()[n0:stop].copy()

    def remove_ids(self, x: Any) -> int:
        """Remove the rows with some numbers, and return how many there were; others are ignored.

        What is left is numbered and coded anew.
        """
        numbers = _checks.row_ids("x", x)
        if numbers.dtype == object and len(numbers):
            _checks.same_ids("strings", "whole numbers")
        gone = np.unique(numbers.astype(np.int64))
        gone = gone[(gone >= 0) & (gone < self.ntotal)]
        if len(gone):
            self._parts = [np.delete(self._rows(), gone, axis=0)]
            self._index = CosineIndex(self._parts[0])
        return len(gone)

    def _rows(self) -> Array:
        """All rows as one array, which is kept so."""
        if len(self._parts) != 1:
            empty = np.empty((0, self.d), np.float32)
            self._parts = [np.concatenate([empty, *self._parts])]
        return self._parts[0]

    def _given(self, x: Any) -> Array:
        """Rows (n, d) in float32, which is all that FAISS knows."""
        rows = np.ascontiguousarray(_checks.as_tensor("x", x).detach().cpu().float().numpy())
        if rows.ndim != 2 or rows.shape[1] != self.d:
            raise ValueError(f"expected x of shape (n, {self.d}), got {rows.shape}")
        return rows
