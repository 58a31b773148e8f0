"""From a column of a Hugging Face dataset to its rows, and to an index. Needs what the dataset has.

A column of one piece of Arrow memory is read where it lies, in a file's memory map too. For
`Dataset.add_faiss_index` there is ``custom_index=IndexFlatCosine(d)`` of the FAISS adapter.
"""

from __future__ import annotations

from typing import Any

import numpy as np

from cossim_fast import _checks
from cossim_fast.retrieval import CosineIndex


def column_rows(dataset: Any, column: str) -> np.ndarray[Any, Any]:
    """Return a column of embeddings as an array (n, d), without copying it where possible.

    Args:
        dataset: a ``datasets.Dataset``, selected and shuffled as you like.
        column: its column of lists of d floats each, of float16, float32 or float64.

    Returns:
        A read-only view of Arrow's memory, if the column lies in one piece and the dataset is not
        selected or shuffled; one copy else. `topk`, `pairs_above` and all else take it.

    Raises:
        KeyError: there is no such column.
        TypeError: the column holds no lists of floats.
        ValueError: its lists are missing, hold gaps, or differ in length.
    """
    if column not in dataset.column_names:
        raise KeyError(f"expected one of the columns {dataset.column_names}, got {column!r}")
    table = dataset.select_columns([column]).with_format("arrow")[:]
    pieces = [_piece(chunk, column) for chunk in table.column(0).chunks if len(chunk)]
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
        **options: of `CosineIndex`: ``store``, ``path``, ``screen``.

    The index keeps a copy of the rows of its own, or in the file at ``path``.
    """
    names = None if ids is None else list(dataset[ids])
    return CosineIndex(column_rows(dataset, column), names, **options)


def _piece(chunk: Any, column: str) -> np.ndarray[Any, Any]:
    """The rows of one piece of Arrow memory."""
    if hasattr(chunk, "storage"):  # Array2D and its kin
        chunk = chunk.storage
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
