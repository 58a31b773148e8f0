"""In place of scikit-learn's ``cosine_similarity`` and ``NearestNeighbors(metric="cosine")``.

Written after scikit-learn 1.9. Distances are 1 - cosine.
"""

from __future__ import annotations

from typing import Any

import numpy as np
import torch
from scipy.sparse import issparse
from sklearn.base import TransformerMixin
from sklearn.metrics import pairwise as theirs
from sklearn.neighbors import NearestNeighbors
from sklearn.utils.validation import check_is_fitted, validate_data
from torch import Tensor

from cossim_fast import _checks
from cossim_fast.functional import pairwise_cosine
from cossim_fast.retrieval import CosineIndex, pairs_above

Array = np.ndarray[Any, Any]
_FLOATS = [np.float64, np.float32]


def cosine_similarity(X: Any, Y: Any = None, dense_output: bool = True) -> Any:
    """Return the cosine of every row of X with every row of Y.

    Args:
        X: (n, d) array-like or sparse matrix.
        Y: (m, d) likewise; None compares X with itself, computes half and mirrors it.
        dense_output: whether the product of two sparse inputs is made dense.

    Returns:
        An array (n, m), float32 if both inputs are, else float64; a sparse matrix if both inputs
        are sparse and ``dense_output`` is False.

    Two sparse inputs go to scikit-learn's own function, whose product is sparse throughout. Where
    one is dense, the other is made dense: d numbers a row.

    >>> cosine_similarity([[0, 0, 0], [1, 1, 1]], [[1, 0, 0], [1, 1, 0]]).round(3)
    array([[0.   , 0.   ],
           [0.577, 0.816]])
    """
    same = Y is X
    X = _readable("X", X)
    X, Y = theirs.check_pairwise_arrays(X, X if same else _readable("Y", Y))
    if issparse(X) and issparse(Y):
        return theirs.cosine_similarity(X, None if Y is X else Y, dense_output=dense_output)
    x = _checks.as_tensor("X", _dense(X))
    y = None if Y is X else _checks.as_tensor("Y", _dense(Y))
    return pairwise_cosine(x, y, eps=torch.finfo(x.dtype).tiny).numpy()


class CosineNeighbors(TransformerMixin, NearestNeighbors):
    """``NearestNeighbors(metric="cosine")``, exact and screened; see `cossim_fast.CosineIndex`.

    Args:
        n_neighbors: how many neighbours to find, if not said otherwise.
        radius: how far those of `radius_neighbors` are, at most. The cosine is compared, in
            float64, with 1 - radius. A row and its copy can be 2^-53 apart.

    ``kneighbors``, ``radius_neighbors``, ``kneighbors_graph`` and ``radius_neighbors_graph`` are
    those of scikit-learn's class; equal distances are in the order of the rows. Distances are
    float32 for float32 rows, else float64. Sparse rows and queries are made dense: d numbers a row.

    ``transform`` gives ``radius_neighbors_graph(X, mode="distance")``, as scikit-learn's
    RadiusNeighborsTransformer does, so that in a pipeline an estimator with
    ``metric="precomputed"`` can follow.

    >>> near = CosineNeighbors(n_neighbors=1).fit([[1.0, 0.0], [0.0, 1.0]])
    >>> near.kneighbors([[3.0, 4.0]])
    (array([[0.2]]), array([[1]]))
    """

    metric = "cosine"

    def __init__(self, *, n_neighbors: int = 5, radius: float = 1.0) -> None:
        self.n_neighbors = n_neighbors
        self.radius = radius

    def fit(self, X: Any, y: Any = None) -> CosineNeighbors:
        """Keep and code the rows (n, d); y is ignored."""
        _count(self.n_neighbors)
        self._fit_X = _dense(self._valid(X))
        self._index = CosineIndex(self._fit_X)
        self.n_samples_fit_ = len(self._fit_X)
        self.effective_metric_ = self.metric
        return self

    def kneighbors(
        self,
        X: Any = None,
        n_neighbors: int | None = None,
        return_distance: bool = True,
    ) -> Any:
        """Find the nearest rows to each row of X, or to each fitted row among the others.

        Returns:
            Distances (q, k), nearest first, and indices (q, k); the indices alone without
            ``return_distance``.
        """
        check_is_fitted(self)
        k = _count(self.n_neighbors if n_neighbors is None else n_neighbors)
        most = self.n_samples_fit_ - (X is None)
        queries = self._fit_X if X is None else self._queries(X)
        if k > most:
            raise ValueError(
                f"Expected n_neighbors <= {most}, got n_neighbors = {k}, with "
                f"n_samples_fit = {self.n_samples_fit_}, n_samples = {len(queries)}"
            )
        scores, rows = self._index.search(queries, k + (X is None))[:2]
        if X is None:
            # A row is among its own neighbours, save where many are as near: then one is too many.
            other = rows != np.arange(len(rows))[:, None]
            other &= other.cumsum(1) <= k
            scores, rows = scores[other].reshape(-1, k), rows[other].reshape(-1, k)
        return (_distances(scores), rows) if return_distance else rows

    def radius_neighbors(
        self,
        X: Any = None,
        radius: float | None = None,
        return_distance: bool = True,
        sort_results: bool = False,
    ) -> Any:
        """Find the rows within a radius of each row of X, or of each fitted row among the others.

        Returns:
            Arrays (q,) of arrays: distances and indices, in the order of the rows, by distance if
            ``sort_results``; the indices alone without ``return_distance``.
        """
        check_is_fitted(self)
        if sort_results and not return_distance:
            raise ValueError("return_distance must be True if sort_results is True.")
        wanted = self.radius if radius is None else radius
        if not wanted >= 0:
            raise ValueError(f"expected radius >= 0, got {wanted!r}")
        least = max(1 - wanted, -1.0)
        if X is None:
            half = pairs_above(self._fit_X, threshold=least)
            i, j = np.concatenate([half.i, half.j]), np.concatenate([half.j, half.i])
            distance, n = _distances(np.concatenate([half.scores, half.scores])), len(self._fit_X)
        else:
            queries = self._queries(X)
            found = self._index.range_search(queries, least)
            i, j = np.repeat(np.arange(len(queries)), np.diff(found.lims)), found.indices
            distance, n = _distances(found.scores), len(queries)
        order = np.lexsort((j, distance, i) if sort_results else (j, i))
        starts = np.searchsorted(i[order], np.arange(1, n))
        rows = _arrays(np.split(j[order], starts))
        return (_arrays(np.split(distance[order], starts)), rows) if return_distance else rows

    def transform(self, X: Any) -> Any:
        """Return the sparse matrix (q, n) of distances within the radius."""
        return self.radius_neighbors_graph(X, mode="distance", sort_results=True)

    def _queries(self, X: Any) -> Array:
        return _dense(self._valid(X, reset=False))

    def _valid(self, X: Any, *, reset: bool = True) -> Any:
        given = _readable("X", X)
        return validate_data(
            self, given, accept_sparse="csr", dtype=_FLOATS, order="C", reset=reset
        )


def _count(k: Any) -> int:
    """A number of neighbours; numpy's whole numbers are as good as Python's."""
    count = int(k) if isinstance(k, np.integer) else k
    _checks.whole_number("n_neighbors", count)
    return int(count)


def _readable(name: str, rows: Any) -> Any:
    """Rows as scikit-learn reads them: it takes no notice of masks, nor of torch's kinds."""
    if isinstance(rows, Tensor):
        rows = _checks.as_tensor(name, rows).detach().cpu()
        # numpy has neither bfloat16 nor float8.
        narrow = rows.is_floating_point() and rows.dtype not in (torch.float32, torch.float64)
        return (rows.float() if narrow else rows).numpy()
    _checks.unmasked(name, rows)
    return np.asarray(rows) if isinstance(rows, np.ma.MaskedArray) else rows


def _dense(rows: Any) -> Array:
    dense: Array = rows.toarray() if issparse(rows) else rows
    return dense


def _distances(scores: Array) -> Array:
    return np.asarray(1 - scores)


def _arrays(parts: list[Array]) -> Array:
    """An array (q,) of arrays, which numpy would stack if they are equally long."""
    found = np.empty(len(parts), dtype=object)
    found[:] = parts
    return found
