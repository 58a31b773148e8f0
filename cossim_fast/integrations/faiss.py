"""In place of a flat index of FAISS over unit rows: `IndexFlatCosine`, and `knn`. Needs no FAISS.

Written after ``IndexFlatIP`` of FAISS 1.15, whose inner products of unit rows are cosines. It is no
object of FAISS's own, so what takes its C++ objects, ``write_index`` and ``IndexIDMap`` for
instance, takes ``index.to_faiss()``.
"""

from __future__ import annotations

from typing import Any

import numpy as np

from cossim_fast import _checks
from cossim_fast.retrieval import CosineIndex

Array = np.ndarray[Any, Any]
# What FAISS gives as the inner product with no row.
_NO_SCORE = np.finfo(np.float32).min
_INNER_PRODUCT = 0


class ArgumentError(ValueError, AssertionError):
    """An argument that FAISS asserts to be another: a k below 1, an array of another shape."""


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
        metric_arg: 0.0.
        verbose: whatever you set it to.

    Where FAISS takes an ``IDSelector``, alone or in ``SearchParameters(sel=...)``, it is asked
    about each row, and the search looks at those that it has alone.

    >>> index = IndexFlatCosine(2)
    >>> index.add(np.array([[1.0, 0.0], [0.0, 2.0]], dtype="float32"))
    >>> index.search(np.array([[3.0, 4.0]], dtype="float32"), 2)
    (array([[0.8, 0.6]], dtype=float32), array([[1, 0]]))
    """

    is_trained = True
    metric_type = _INNER_PRODUCT
    metric_arg = 0.0
    verbose = False

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

    @property
    def code_size(self) -> int:
        """Bytes of a row in float32."""
        return 4 * self.d

    def train(self, x: Any) -> None:
        """Check rows (n, d): there is nothing to train."""
        self._given(x)

    def add(self, x: Any) -> None:
        """Add rows (n, d); they are copied."""
        rows = self._given(x).copy()
        self._index.add(rows)
        self._parts.append(rows)

    def add_with_ids(self, x: Any, ids: Any) -> None:
        """Refuse ids, as ``IndexFlatIP`` does."""
        raise RuntimeError(
            "add_with_ids is not implemented for a flat index, whose rows are numbered; "
            "cossim_fast.CosineIndex(x, ids) has ids"
        )

    def search(
        self,
        x: Any,
        k: int,
        *,
        params: Any = None,
        D: Any = None,
        I: Any = None,  # noqa: E741 - FAISS's name
        numeric_type: Any = None,
    ) -> tuple[Array, Array]:
        """Find the k rows with the largest cosine to each query.

        Args:
            x: (q, d) queries.
            k: how many; where there are fewer rows, the rest is -1, as in FAISS.
            params: ``faiss.SearchParameters``, of which ``sel`` counts: which rows may be found.
            D: (q, k) float32 array to write cosines to, if not a new one.
            I: (q, k) int64 array to write rows to.
            numeric_type: of no consequence: queries are read as they are.

        Returns:
            D (q, k) float32 cosines, largest first, and I (q, k) int64 rows, equal ones in order.
        """
        queries = self._given(x)
        shape = len(queries), _positive(k)
        scores = _output("D", D, shape, np.float32)
        rows = _output("I", I, shape, np.int64)
        scores[:], rows[:] = _NO_SCORE, -1
        found = min(shape[1], self.ntotal)
        if found and len(queries):
            where = self._selected(getattr(params, "sel", None))
            best, at = self._index.search(queries, found, where=where)[:2]
            rows[:, :found] = at
            scores[:, :found] = np.where(at < 0, _NO_SCORE, best)
        return scores, rows

    def assign(self, x: Any, k: int = 1, labels: Any = None) -> Array:
        """Find the k rows with the largest cosine to each query: ``I`` of `search` alone."""
        return self.search(x, k, I=labels)[1]

    def search_and_reconstruct(
        self,
        x: Any,
        k: int,
        *,
        params: Any = None,
        D: Any = None,
        I: Any = None,  # noqa: E741 - FAISS's name
        R: Any = None,
    ) -> tuple[Array, Array, Array]:
        """Find rows as `search`, and return them too: D, I, and R (q, k, d); NaN for no row."""
        scores, rows = self.search(x, k, params=params, D=D, I=I)
        found = _output("R", R, (*rows.shape, self.d), np.float32)
        found[:] = np.nan
        found[rows >= 0] = self._rows()[rows[rows >= 0]]
        return scores, rows, found

    def range_search(
        self, x: Any, thresh: float, *, params: Any = None
    ) -> tuple[Array, Array, Array]:
        """Find the rows whose cosine to each query is above a threshold, as in FAISS: not equal.

        Args:
            x: (q, d) queries.
            thresh: any number; it is compared in float64. Nothing is above NaN.
            params: as in `search`.

        Returns:
            lims (q + 1,) uint64, D and I: what was found for query i lies in lims[i] to
            lims[i + 1] of the cosines D, float32, and the rows I, int64, in order.
        """
        queries = self._given(x)
        least = float(np.nextafter(np.float64(thresh), np.inf))
        lims = np.zeros(len(queries) + 1, np.uint64)
        if not least <= 1 or not self.ntotal:
            return lims, np.empty(0, np.float32), np.empty(0, np.int64)
        found = self._index.range_search(
            queries, max(least, -1.0), where=self._selected(getattr(params, "sel", None))
        )
        lims[:] = found.lims
        return lims, found.scores, found.indices

    def reconstruct(self, key: int, x: Any = None) -> Array:
        """Return the row with a number, as it was added; in ``x`` (d,), if given."""
        row = _output("x", x, (self.d,), np.float32)
        row[:] = self.reconstruct_batch([key])[0]
        return row

    def reconstruct_batch(self, key: Any, x: Any = None) -> Array:
        """Return the rows with some numbers (n,), as they were added; in ``x`` (n, d), if given."""
        numbers = _whole(key)
        wrong = numbers[(numbers < 0) | (numbers >= self.ntotal)]
        if len(wrong):
            raise RuntimeError(f"expected a row from 0 to {self.ntotal - 1}, got {wrong[0]}")
        rows = _output("x", x, (len(numbers), self.d), np.float32)
        rows[:] = self._rows()[numbers]
        return rows

    def reconstruct_n(self, n0: int = 0, ni: int = -1, x: Any = None) -> Array:
        """Return ``ni`` rows from ``n0`` on, all by default; in ``x`` (ni, d), if given."""
        stop = self.ntotal if ni == -1 else n0 + ni
        if not 0 <= n0 <= stop <= self.ntotal:
            raise RuntimeError(f"expected rows within 0 to {self.ntotal}, got {n0} to {stop}")
        rows = _output("x", x, (stop - n0, self.d), np.float32)
        rows[:] = self._rows()[n0:stop]
        return rows

    def get_xb(self) -> Array:
        """Return a read-only view (ntotal, d) of the rows, as they were added.

        FAISS's method gives a pointer, for ``faiss.rev_swig_ptr``.
        """
        view = self._rows().view()
        view.flags.writeable = False
        return view

    def remove_ids(self, x: Any) -> int:
        """Remove the rows with some numbers, and return how many there were; others are ignored.

        What is left is numbered and coded anew.

        Args:
            x: numbers (n,), or an ``IDSelector``.
        """
        selected = self._selected(x)
        gone = np.unique(_whole(x)) if selected is None else np.flatnonzero(selected)
        gone = gone[(gone >= 0) & (gone < self.ntotal)]
        if len(gone):
            self._parts = [np.delete(self._rows(), gone, axis=0)]
            self._index = CosineIndex(self._parts[0])
        return len(gone)

    def merge_from(self, otherIndex: Any, add_id: int = 0) -> None:
        """Move all rows of another index, of this kind or of FAISS's, to the end of this one."""
        if otherIndex is self or add_id:
            raise RuntimeError("expected another index, and add_id = 0: rows are numbered")
        self.check_compatible_for_merge(otherIndex)
        self.add(otherIndex.reconstruct_n(0, otherIndex.ntotal))
        otherIndex.reset()

    def check_compatible_for_merge(self, otherIndex: Any) -> None:
        """Refuse an index of rows of another width, or of another metric."""
        if (otherIndex.d, otherIndex.metric_type) != (self.d, self.metric_type):
            raise RuntimeError(
                f"expected an index of d = {self.d} and the inner product, got d = {otherIndex.d} "
                f"and metric_type {otherIndex.metric_type}"
            )

    def to_faiss(self) -> Any:
        """Return a ``faiss.IndexFlatIP`` of the unit rows, in float32 (needs FAISS).

        For ``faiss.write_index(index.to_faiss(), path)``, and all else that takes FAISS's objects.
        A zero row stays zero.
        """
        import faiss  # noqa: PLC0415

        index = faiss.IndexFlatIP(self.d)
        wide = self._rows().astype(np.float64)
        norms = np.linalg.norm(wide, axis=1, keepdims=True)
        index.add((wide / np.where(norms == 0, 1.0, norms)).astype(np.float32))
        return index

    @classmethod
    def from_faiss(cls, index: Any) -> IndexFlatCosine:
        """Return an index of the rows of a flat index of FAISS, ``faiss.read_index(path)`` for one.

        Args:
            index: of the inner product, as FAISS gives it; its rows need not be unit rows.
        """
        made = cls(index.d)
        made.check_compatible_for_merge(index)
        made.add(index.reconstruct_n(0, index.ntotal))
        return made

    def _selected(self, selector: Any) -> Array | None:
        """Which rows (ntotal,) a selector has; None for what is none."""
        if not hasattr(selector, "is_member"):
            return None
        return np.fromiter(map(selector.is_member, range(self.ntotal)), bool, self.ntotal)

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
            raise ArgumentError(f"expected x of shape (n, {self.d}), got {rows.shape}")
        return rows


def knn(xq: Any, xb: Any, k: int, metric: int = _INNER_PRODUCT) -> tuple[Array, Array]:
    """Find the k rows with the largest cosine to each query, without an index.

    Args:
        xq: (q, d) queries.
        xb: (n, d) rows.
        k: how many; where there are fewer rows, the rest is -1.
        metric: ``faiss.METRIC_INNER_PRODUCT``, which is 0 and the default here.

    Returns:
        D (q, k) float32 cosines, largest first, and I (q, k) int64 rows, equal ones in order.

    >>> knn([[3.0, 4.0]], [[1.0, 0.0], [0.0, 2.0]], 1)
    (array([[0.8]], dtype=float32), array([[1]]))
    """
    if metric != _INNER_PRODUCT:
        raise ValueError(f"expected metric to be 0, the inner product, got {metric!r}")
    rows = _checks.embedding_rows("xb", _checks.as_tensor("xb", xb).float())
    index = IndexFlatCosine(rows.shape[1])
    index.add(rows)
    return index.search(xq, k)


def _positive(k: Any) -> int:
    count = int(k) if isinstance(k, np.integer) else k
    if isinstance(count, int) and count < 1:
        raise ArgumentError(f"expected k >= 1, got {k}")
    _checks.whole_number("k", count)
    return int(count)


def _whole(numbers: Any) -> Array:
    """Numbers of rows (n,) in int64."""
    found = _checks.row_ids("x", numbers)
    if found.dtype == object and len(found):
        _checks.same_ids("strings", "whole numbers")
    return found.astype(np.int64)


def _output(name: str, given: Any, shape: tuple[int, ...], dtype: Any) -> Array:
    """An array to write to: the caller's, if it fits, or a new one."""
    if given is None:
        return np.empty(shape, dtype)
    if not isinstance(given, np.ndarray) or (given.shape, given.dtype) != (shape, np.dtype(dtype)):
        what = getattr(given, "shape", type(given).__name__)
        raise ArgumentError(
            f"expected {name} to be an array {shape} of {np.dtype(dtype)}, got {what} "
            f"of {getattr(given, 'dtype', 'no dtype')}"
        )
    return given
