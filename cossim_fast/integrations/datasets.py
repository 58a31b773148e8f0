"""From a column of a Hugging Face dataset to its rows, and to an index. Needs what the dataset has.

Written after datasets 5.2. A column of one piece of Arrow memory is read where it lies, in a file's
memory map too.
"""

from __future__ import annotations

from collections.abc import Mapping
from pathlib import Path
from typing import Any

import numpy as np

from cossim_fast import _checks
from cossim_fast.retrieval import CosineIndex


def column_rows(dataset: Any, column: str) -> np.ndarray[Any, Any]:
    """Return a column of embeddings as an array (n, d), without copying it where possible.

    Args:
        dataset: a ``datasets.Dataset``, selected and shuffled as you like.
        column: its column of lists of d floats each, of float16, float32 or float64; or of arrays
            of shape (1, d), such as Array2D.

    Returns:
        A read-only view of Arrow's memory, if the column lies in one piece and the dataset is not
        selected or shuffled; one copy else. `topk`, `pairs_above` and all else take it.

    Raises:
        KeyError: there is no such column.
        TypeError: the column holds no lists of floats, or the dataset is a dictionary of splits or
            an iterable one.
        ValueError: its lists are missing, hold gaps, or differ in length.
    """
    pieces = [_piece(chunk, column) for chunk in _column(dataset, column).chunks if len(chunk)]
    widths = sorted({piece.shape[1] for piece in pieces})
    if len(widths) > 1:
        raise ValueError(f"expected {column!r} to hold lists of one length, got {widths}")
    if not pieces:
        raise ValueError(f"expected {column!r} to hold embeddings, got no rows")
    return pieces[0] if len(pieces) == 1 else np.concatenate(pieces)


def index_column(dataset: Any, column: str, ids: str | None = None, **options: Any) -> CosineIndex:
    """Build a `cossim_fast.CosineIndex` of a column of embeddings.

    Args:
        dataset: a ``datasets.Dataset``.
        column: its column of embeddings; see `column_rows`.
        ids: its column of ids; rows are numbered without, so that ``dataset[i]`` is row i.
        **options: of `CosineIndex`: ``store``, ``path``, ``screen``, ``device``.

    The index keeps a copy of the rows of its own, or in the file at ``path``.
    """
    names = None if ids is None else _column(dataset, ids).to_pylist()
    return CosineIndex(column_rows(dataset, column), names, **options)


class DatasetIndex:
    """A dataset with an index of a column: what `Dataset.add_faiss_index` gives, without FAISS.

    The methods have the names, arguments and results of the dataset's own, less the name of the
    index. Scores are cosines, largest first.

    Args:
        dataset: a ``datasets.Dataset``.
        column: its column of embeddings; see `column_rows`.
        **options: of `CosineIndex`: ``store``, ``path``, ``screen``, ``device``.

    Attributes:
        dataset: the dataset.
        index: the `cossim_fast.CosineIndex`, whose rows are those of the dataset.
    """

    def __init__(self, dataset: Any, column: str, **options: Any) -> None:
        self.dataset, self.index = dataset, index_column(dataset, column, **options)

    def search(self, query: Any, k: int = 10, **options: Any) -> Any:
        """Find the k rows that are nearest to a query (d,) or (1, d).

        Args:
            query: numbers.
            k: how many rows, if there are as many.
            **options: of `CosineIndex.search`: ``where``, ``exclude``.

        Returns:
            ``datasets.search.SearchResults(scores, indices)``, (k,) each.
        """
        from datasets.search import SearchResults  # noqa: PLC0415

        given = _checks.as_tensor("query", query)
        if given.dim() != 1 and (given.dim() != 2 or len(given) != 1):
            raise ValueError(f"expected query of shape (d,) or (1, d), got {tuple(given.shape)}")
        scores, rows = self.search_batch(given.reshape(1, -1), k, **options)
        return SearchResults(scores[0], rows[0])

    def search_batch(self, queries: Any, k: int = 10, **options: Any) -> Any:
        """Find the k rows that are nearest to each query (q, d); see `search`.

        Returns:
            ``datasets.search.BatchedSearchResults(total_scores, total_indices)``, (q, k) each; -1
            where there are no more rows.
        """
        from datasets.search import BatchedSearchResults  # noqa: PLC0415

        _checks.whole_number("k", k)
        given = _checks.as_tensor("queries", queries)
        found = self.index.search(given, min(k, len(self.index)), **options)
        return BatchedSearchResults(found.scores.numpy(), found.indices.numpy())

    def get_nearest_examples(self, query: Any, k: int = 10, **options: Any) -> Any:
        """Find the k examples that are nearest to a query: see `search`.

        Returns:
            ``datasets.search.NearestExamplesResults(scores, examples)``, the examples as
            ``dataset[rows]`` gives them.
        """
        from datasets.search import NearestExamplesResults  # noqa: PLC0415

        return NearestExamplesResults(*self._examples(*self.search(query, k, **options)))

    def get_nearest_examples_batch(self, queries: Any, k: int = 10, **options: Any) -> Any:
        """Find the k examples that are nearest to each query (q, d): see `search`.

        Returns:
            ``datasets.search.BatchedNearestExamplesResults(total_scores, total_examples)``.
        """
        from datasets.search import BatchedNearestExamplesResults  # noqa: PLC0415

        scores, rows = self.search_batch(queries, k, **options)
        found = [self._examples(*each) for each in zip(scores, rows, strict=True)]
        return BatchedNearestExamplesResults([s for s, _ in found], [e for _, e in found])

    def save(self, file: str | Path) -> None:
        """Write the index to a file; the dataset has its own."""
        self.index.save(file)

    @classmethod
    def load(cls, dataset: Any, file: str | Path) -> DatasetIndex:
        """Read what `save` wrote, for the dataset that it is an index of.

        Raises:
            ValueError: the dataset has another number of rows.
            FileError: a ValueError; see `CosineIndex.load`.
        """
        made = cls.__new__(cls)
        made.dataset, made.index = dataset, CosineIndex.load(file)
        if len(made.index) != len(dataset):
            raise ValueError(
                f"expected an index of the {len(dataset)} rows of the dataset, got one of "
                f"{len(made.index)}"
            )
        return made

    def _examples(self, scores: Any, rows: Any) -> tuple[Any, Any]:
        held = rows >= 0
        return scores[held], self.dataset[rows[held].tolist()]


def _column(dataset: Any, column: str) -> Any:
    """A column as Arrow has it, whatever format the dataset is set to."""
    what = type(dataset).__name__
    if isinstance(dataset, Mapping):
        raise TypeError(
            f"expected a Dataset, got a {what} of {sorted(dataset)}; pass one of these, as in "
            "dataset['train']"
        )
    if not hasattr(dataset, "__len__") or not hasattr(dataset, "column_names"):
        raise TypeError(
            f"expected a Dataset, got {what}; load it without streaming=True, or make one with "
            "Dataset.from_generator"
        )
    if column not in dataset.column_names:
        raise KeyError(f"expected one of the columns {dataset.column_names}, got {column!r}")
    return dataset.select_columns([column]).with_format("arrow")[:].column(0)


def _piece(chunk: Any, column: str) -> np.ndarray[Any, Any]:
    """The rows of one piece of Arrow memory."""
    if hasattr(chunk, "storage"):  # Array2D and its kin
        chunk = chunk.storage
    while _holds_one_list_each(chunk):
        chunk = chunk.flatten()
    if not hasattr(chunk, "flatten") or not hasattr(chunk, "value_lengths"):
        raise TypeError(f"expected {column!r} to hold lists of floats, got {chunk.type}")
    if chunk.null_count:
        raise ValueError(f"expected {column!r} without gaps, got {chunk.null_count} rows missing")
    lengths = np.unique(chunk.value_lengths())
    if len(lengths) > 1:
        raise ValueError(f"expected {column!r} to hold lists of one length, got {lengths.tolist()}")
    values = chunk.flatten()
    if values.null_count:
        raise ValueError(
            f"expected {column!r} without gaps, got {values.null_count} numbers missing"
        )
    if str(values.type) not in ("halffloat", "float", "double"):
        raise TypeError(f"expected {column!r} to hold lists of floats, got {chunk.type}")
    rows = values.to_numpy(zero_copy_only=True).reshape(len(chunk), -1)
    _checks.embedding_rows(column, rows)
    return np.asarray(rows)


def _holds_one_list_each(chunk: Any) -> bool:
    """Whether lists hold one list each, as those of arrays of shape (1, d) do."""
    if chunk.null_count or not hasattr(chunk, "value_lengths"):
        return False
    nested = hasattr(chunk.type.value_type, "value_type")
    return nested and bool((chunk.value_lengths().to_numpy() == 1).all())
