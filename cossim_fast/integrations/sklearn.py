"""In place of scikit-learn's cosines and ``NearestNeighbors(metric="cosine")``.

Written after scikit-learn 1.9. Distances are 1 - cosine.

The functions can be put in the place of scikit-learn's own, in its module too. As there, a tensor
gives a tensor on its device under ``sklearn.config_context(array_api_dispatch=True)``, and an array
else; arrays of other libraries go to scikit-learn's own function there.
"""

from __future__ import annotations

from typing import Any

import numpy as np
import torch
from scipy.sparse import issparse
from sklearn import get_config
from sklearn.base import BaseEstimator, TransformerMixin

# By name: who looks them up when they are called may find ours in their place.
from sklearn.metrics.pairwise import check_paired_arrays, check_pairwise_arrays
from sklearn.metrics.pairwise import cosine_distances as their_distances
from sklearn.metrics.pairwise import cosine_similarity as their_similarity
from sklearn.neighbors import BallTree, KDTree, NearestNeighbors
from sklearn.utils._param_validation import InvalidParameterError
from sklearn.utils.validation import check_is_fitted, validate_data
from torch import Tensor

from cossim_fast import _checks
from cossim_fast.functional import cosine_similarity as paired_cosine
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
    if not isinstance(dense_output, (bool, np.bool_)):
        raise InvalidParameterError(f"expected dense_output to be a bool, got {dense_output!r}")
    if _of_another_library(X, Y):
        return their_similarity(X, Y, dense_output=dense_output)
    device, same = _device(X), Y is X
    X = _readable("X", X)
    X, Y = check_pairwise_arrays(X, X if same else _readable("Y", Y))
    if issparse(X) and issparse(Y):
        return their_similarity(X, None if Y is X else Y, dense_output=dense_output)
    x = _checks.as_tensor("X", _dense(X))
    y = None if Y is X else _checks.as_tensor("Y", _dense(Y))
    return _given_back(pairwise_cosine(x, y, eps=torch.finfo(x.dtype).tiny), device)


def cosine_distances(X: Any, Y: Any = None) -> Any:
    """Return 1 - cosine of every row of X with every row of Y, in [0, 2].

    Args:
        X: (n, d) array-like or sparse matrix.
        Y: (m, d) likewise; None compares X with itself, and a row is 0 from itself, a zero row too.

    >>> cosine_distances([[0, 0, 0], [1, 1, 1]], [[1, 0, 0], [1, 1, 0]]).round(3)
    array([[1.   , 1.   ],
           [0.423, 0.184]])
    """
    if _of_another_library(X, Y):
        return their_distances(X, Y)
    distances = 1 - cosine_similarity(X, Y)
    if Y is None or Y is X:
        at = range(len(distances))
        distances[at, at] = 0
    return distances


def paired_cosine_distances(X: Any, Y: Any) -> Any:
    """Return 1 - cosine of each row of X with the same row of Y, (n,).

    As in scikit-learn, a zero row is 0.5 from any other, and 0 from another zero row.

    >>> paired_cosine_distances([[0, 0, 0], [1, 1, 1]], [[1, 0, 0], [1, 1, 0]]).round(3)
    array([0.5  , 0.184])
    """
    device = _device(X)
    X, Y = check_paired_arrays(_readable("X", X), _readable("Y", Y))
    x, y = (_checks.as_tensor(name, _dense(a)) for name, a in (("X", X), ("Y", Y)))
    cosines = paired_cosine(x, y, dim=1, eps=torch.finfo(x.dtype).tiny)
    # Half the square of the distance of two unit rows, of which one may be zero.
    squares = x.any(1).to(cosines.dtype) + y.any(1).to(cosines.dtype)
    return _given_back(squares / 2 - cosines, device)


class CosineNeighbors(TransformerMixin, NearestNeighbors):
    """``NearestNeighbors(metric="cosine")``, exact and screened; see `cossim_fast.CosineIndex`.

    Args:
        n_neighbors: how many neighbours to find, if not said otherwise.
        radius: how far those of `radius_neighbors` are, at most. The cosine is compared, in
            float64, with 1 - radius. A row and its copy can be 2^-53 apart.
        algorithm: ``"auto"`` or ``"brute"``, as scikit-learn has it for the cosine.
        leaf_size: held, as there; it says nothing of a search without trees.
        metric: ``"cosine"``.
        p: held; it says nothing of the cosine.
        metric_params: None or an empty dictionary: the cosine has none.
        n_jobs: held; a search uses the threads that torch may.

    ``kneighbors``, ``radius_neighbors``, ``kneighbors_graph`` and ``radius_neighbors_graph`` are
    those of scikit-learn's class; equal distances are in the order of the rows. Distances are
    float32 for float32 rows, else float64. Sparse rows and queries are made dense: d numbers a row.
    `fit` takes a fitted NearestNeighbors too, or a tree, for its rows.

    What differs: a zero row has the distance 1 from every row of X, itself too; in scikit-learn 0
    from itself, where X is the very array that was fitted.

    ``transform`` gives ``radius_neighbors_graph(X, mode="distance")``, as scikit-learn's
    RadiusNeighborsTransformer does, so that in a pipeline an estimator with
    ``metric="precomputed"`` can follow.

    >>> near = CosineNeighbors(n_neighbors=1).fit([[1.0, 0.0], [0.0, 1.0]])
    >>> near.kneighbors([[3.0, 4.0]])
    (array([[0.2]]), array([[1]]))
    """

    def __init__(
        self,
        *,
        n_neighbors: int = 5,
        radius: float = 1.0,
        algorithm: str = "auto",
        leaf_size: int = 30,
        metric: str = "cosine",
        p: float | None = 2,
        metric_params: dict[str, Any] | None = None,
        n_jobs: int | None = None,
    ) -> None:
        super().__init__(
            n_neighbors=n_neighbors,
            radius=radius,
            algorithm=algorithm,
            leaf_size=leaf_size,
            metric=metric,
            p=p,
            metric_params=metric_params,
            n_jobs=n_jobs,
        )

    def fit(self, X: Any, y: Any = None) -> CosineNeighbors:
        """Keep and code the rows (n, d); y is ignored."""
        if self.n_neighbors is not None:
            _count(self.n_neighbors)
        self._validate_params()
        if self.metric != "cosine" or self.algorithm not in ("auto", "brute"):
            raise ValueError(
                "expected metric='cosine' and algorithm='auto' or 'brute', got "
                f"{self.metric!r} and {self.algorithm!r}; see sklearn.neighbors.NearestNeighbors"
            )
        if self.metric_params:
            raise ValueError(f"expected no metric_params, got {self.metric_params!r}")
        # A copy: neighbours of the fitted rows are looked for among what was coded.
        self._fit_X = np.array(_dense(self._valid(_rows_of(X))))
        self._index = CosineIndex(self._fit_X)
        self._fit_method, self._tree = "brute", None
        self.n_samples_fit_ = len(self._fit_X)
        self.effective_metric_ = self.metric
        self.effective_metric_params_: dict[str, Any] = {}
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


def _rows_of(fitted: Any) -> Any:
    """The rows of what scikit-learn has fitted, or rows as they are."""
    if isinstance(fitted, (BallTree, KDTree)):
        return np.asarray(fitted.data)
    if isinstance(fitted, BaseEstimator):
        check_is_fitted(fitted)
        return fitted._fit_X
    return fitted


def _of_another_library(*given: Any) -> bool:
    """Whether arrays are to be dispatched to neither numpy nor torch."""
    if not get_config().get("array_api_dispatch"):
        return False
    return any(hasattr(x, "__array_namespace__") and not isinstance(x, np.ndarray) for x in given)


def _device(X: Any) -> torch.device | None:
    """Where a tensor is, if scikit-learn dispatches to its library."""
    dispatched = isinstance(X, Tensor) and get_config().get("array_api_dispatch")
    return X.device if dispatched else None


def _given_back(found: Tensor, device: torch.device | None) -> Any:
    return found.numpy() if device is None else found.to(device)


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
