"""In place of ``scipy.spatial.distance``'s ``cdist`` and ``pdist`` with ``metric="cosine"``.

Written after scipy 1.17. Other metrics, and weights, go to scipy's own functions, in whose place
these can be put.
"""

from __future__ import annotations

from typing import Any

import numpy as np
import torch

# By name: who looks them up when they are called may find ours in their place.
from scipy.spatial.distance import cdist as their_cdist
from scipy.spatial.distance import pdist as their_pdist
from torch import Tensor

from cossim_fast import _checks
from cossim_fast.functional import pairwise_cosine

Array = np.ndarray[Any, Any]
# Rows of `pdist` whose distances are found at a time.
_ROWS = 256


def cdist(
    XA: Any, XB: Any, metric: Any = "euclidean", *, out: Array | None = None, **kwargs: Any
) -> Array:
    """Return 1 - cosine of every row of XA with every row of XB.

    Args:
        XA: (n, d) tensor, array or list.
        XB: (m, d) likewise.
        metric: ``"cosine"`` or ``"cos"``; anything else is scipy's.
        out: (n, m) float64 array to write to.
        **kwargs: of scipy's metrics: ``w``, for instance.

    Returns:
        An array (n, m) of float64, within [0, 2]; NaN where a row is zero, as in scipy, or not
        finite.

    >>> cdist([[3.0, 4.0]], [[1.0, 0.0], [0.0, 1.0]], "cosine").round(3)
    array([[0.4, 0.2]])
    """
    if not _is_cosine(metric) or kwargs:
        theirs: Array = their_cdist(XA, XB, metric, out=out, **kwargs)
        return theirs
    a, b = _rows("XA", XA), _rows("XB", XB)
    if a.shape[1] != b.shape[1]:
        raise ValueError(f"expected XB of shape (m, {a.shape[1]}), got {tuple(b.shape)}")
    found = _output(out, (len(a), len(b)))
    found[:] = _distances(a, b)
    return found


def pdist(X: Any, metric: Any = "euclidean", *, out: Array | None = None, **kwargs: Any) -> Array:
    """Return 1 - cosine of every two rows of X, for ``scipy.spatial.distance.squareform``.

    Args:
        X: (n, d) tensor, array or list.
        metric: ``"cosine"`` or ``"cos"``; anything else is scipy's.
        out: (n (n - 1) / 2,) float64 array to write to.
        **kwargs: of scipy's metrics.

    Returns:
        An array (n (n - 1) / 2,) of float64: of rows 0 and 1, 0 and 2, and so on; as in `cdist`.

    Memory beyond inputs and result: 256 n numbers.

    >>> pdist([[3.0, 4.0], [1.0, 0.0], [0.0, 1.0]], "cosine").round(3)
    array([0.4, 0.2, 1. ])
    """
    if not _is_cosine(metric) or kwargs:
        theirs: Array = their_pdist(X, metric, out=out, **kwargs)
        return theirs
    x = _rows("X", X)
    n = len(x)
    found, filled = _output(out, (n * (n - 1) // 2,)), 0
    for start in range(0, n - 1, _ROWS):
        block = _distances(x[start : start + _ROWS], x[start + 1 :])
        for row, distances in enumerate(block[: n - 1 - start]):
            size = n - 1 - start - row
            found[filled : filled + size] = distances[row:]
            filled += size
    return found


def _is_cosine(metric: Any) -> bool:
    return isinstance(metric, str) and metric.lower() in ("cosine", "cos")


def _rows(name: str, given: Any) -> Tensor:
    """Rows (n, d) in float64, as scipy reads all numbers."""
    rows = _checks.as_tensor(name, given).detach().cpu().double()
    if rows.dim() != 2:
        raise ValueError(f"expected {name} of shape (n, d), got {tuple(rows.shape)}")
    return rows


def _distances(a: Tensor, b: Tensor) -> Array:
    """1 - cosine; NaN where a row is zero."""
    found = 1 - pairwise_cosine(a, b, eps=torch.finfo(torch.float64).tiny)
    found[~a.any(1)] = torch.nan
    found[:, ~b.any(1)] = torch.nan
    distances: Array = found.numpy()
    return distances


def _output(out: Array | None, shape: tuple[int, ...]) -> Array:
    if out is None:
        return np.empty(shape)
    if out.shape != shape or out.dtype != np.float64 or not out.flags.c_contiguous:
        raise ValueError(
            f"expected out to be a C-contiguous array {shape} of float64, got {out.shape} of "
            f"{out.dtype}"
        )
    return out
