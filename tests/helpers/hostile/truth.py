"""What is right: float64 by numpy alone, and nothing of the package."""

from pathlib import Path
from typing import Any

import numpy as np

from hostile.tries import WrongError

# Scores are those of float64, rounded once to float32.
ROUNDED = 2.0**-24 * 1.01
# Sums of float64 in another order.
SUMS = 1e-12

Array = np.ndarray[Any, Any]


def rows(rng: np.random.Generator, n: int, d: int, dtype: Any = np.float32) -> Array:
    """Rows (n, d) in clusters, some of them copies, so that joins find pairs."""
    centres = rng.standard_normal((max(n // 8, 1), d))
    some = centres[rng.integers(len(centres), size=n)] + 0.4 * rng.standard_normal((n, d))
    copied = rng.integers(n, size=(2, n // 20 + 1))
    some[copied[0]] = some[copied[1]]
    return some.astype(dtype)


def cosines(x: Any, y: Any) -> Array:
    """(n, d) with (m, d): (n, m), 0 for rows of zeros, NaN for rows that are not finite."""
    wide = [np.asarray(each, np.float64) for each in (x, y)]
    with np.errstate(all="ignore"):
        units = []
        for each in wide:
            # Scaled first: squares of large numbers overflow.
            largest = np.abs(each).max(1, keepdims=True, initial=0.0)
            scaled = each / np.where(largest > 0, largest, 1)
            norm = np.sqrt((scaled**2).sum(1, keepdims=True))
            units.append(scaled / np.where(norm > 0, norm, 1))
        return units[0] @ units[1].T


def check_topk(
    scores: Any, found: Any, queries: Any, corpus: Any, k: int, *, alive: Array | None = None
) -> None:
    """Look that (q, k) scores and numbers of rows are those of the k nearest.

    Args:
        scores: what was found.
        found: likewise.
        queries: (q, d).
        corpus: (n, d).
        k: how many were asked for.
        alive: (n,) which rows may be found.

    Raises:
        WrongError: they are not.
    """
    true = cosines(queries, corpus)
    if alive is not None:
        true[:, ~alive] = -np.inf
    check_ranked(scores, found, true, k)


def check_ranked(scores: Any, found: Any, true: Array, k: int) -> None:
    """The same with the cosines (q, n) at hand: without a product, which a fork may make hang."""
    scores, found = np.asarray(scores, np.float64), np.asarray(found)
    if found.shape != (len(true), k) or scores.shape != found.shape:
        raise WrongError(f"expected ({len(true)}, {k}) results, got {found.shape}")
    if found.size and not (found.min() >= 0 and found.max() < true.shape[1]):
        raise WrongError("a row that is not there")
    if any(len(set(each)) < k for each in found.tolist()):
        raise WrongError("one row twice")
    best = -np.sort(-true, 1)[:, :k]
    theirs = np.take_along_axis(true, found, 1)
    off = ~(np.abs(theirs - best) <= SUMS)
    if off.any():
        raise WrongError(f"wrong rows for {int(off.any(1).sum())} of {len(true)} queries")
    if not (np.abs(scores - theirs) <= ROUNDED).all():
        raise WrongError(f"wrong scores, by up to {np.nanmax(np.abs(scores - theirs)):.2g}")


def check_pairs(i: Any, j: Any, scores: Any, x: Any, threshold: float, y: Any = None) -> None:
    """Look that pairs are all that reach a threshold, in order, and no other.

    Raises:
        WrongError: they are not.
    """
    true = cosines(x, x if y is None else y)
    if y is None:
        true[np.tril_indices(len(true))] = -np.inf
    true[np.isnan(true)] = -np.inf
    check_reached(i, j, scores, true, threshold)


def check_reached(i: Any, j: Any, scores: Any, true: Array, threshold: float) -> None:
    """The same with the cosines at hand, -inf where there is no pair."""
    i, j, scores = np.asarray(i), np.asarray(j), np.asarray(scores, np.float64)
    if len(i) and not (
        i.min() >= 0 and i.max() < true.shape[0] and j.min() >= 0 and j.max() < true.shape[1]
    ):
        raise WrongError("a row that is not there")
    order = i.astype(np.int64) * true.shape[1] + j
    if (np.diff(order) <= 0).any():
        raise WrongError("pairs twice, or out of order")
    reached = np.zeros(true.shape, bool)
    reached[i, j] = True
    missing = (true >= threshold + SUMS) & ~reached
    more = (true < threshold - SUMS) & reached
    if missing.any() or more.any():
        raise WrongError(f"{int(missing.sum())} pairs missing, {int(more.sum())} too many")
    if len(i) and not (np.abs(scores - true[i, j]) <= ROUNDED).all():
        raise WrongError("wrong scores of pairs")


def check_matrix(found: Any, x: Any, y: Any, tolerance: float = 4e-6) -> None:
    """Look that a matrix of cosines is right.

    Raises:
        WrongError: it is not.
    """
    check_close(found, cosines(x, y), tolerance)


def check_close(found: Any, true: Array, tolerance: float = 4e-6) -> None:
    """The same with the cosines at hand."""
    off = np.abs(np.asarray(found, np.float64) - true)
    if not (off <= tolerance).all():
        raise WrongError(f"a cosine is off by {off.max():.2g}, more than {tolerance:.2g}")


def table(path: Path) -> dict[str, Array]:
    """The columns that a command wrote."""
    if path.suffix == ".npz":
        with np.load(path) as held:
            return {name: held[name] for name in held.files}
    if path.suffix == ".parquet":
        import pyarrow.parquet as pq

        held = pq.read_table(path)
        return {name: held.column(name).to_numpy() for name in held.column_names}
    return lines(path.read_text(encoding="utf-8"))


def lines(text: str) -> dict[str, Array]:
    """The columns of JSON lines."""
    import json

    each = [json.loads(line) for line in text.splitlines()]
    return {name: np.array([one[name] for one in each]) for name in (each[0] if each else ())}


def check_topk_table(columns: dict[str, Array], queries: Any, corpus: Any, k: int) -> None:
    """Look that the table of `cossim topk` is right."""
    shape = (len(queries), k)
    if {"row", "score"} - set(columns) or columns["row"].size != shape[0] * k:
        raise WrongError(
            f"not all results: {columns.get('row', np.empty(0)).size} of {shape[0] * k}"
        )
    check_topk(columns["score"].reshape(shape), columns["row"].reshape(shape), queries, corpus, k)


def check_pairs_table(columns: dict[str, Array], x: Any, threshold: float) -> None:
    """Look that the table of `cossim pairs` is right."""
    empty = np.empty(0, np.int64)
    got = (columns.get(name, empty) for name in ("i", "j", "score"))
    check_pairs(*got, x, threshold)
