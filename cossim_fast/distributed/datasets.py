"""A `ray.data.Dataset` as files: tasks read those by ranges, and a dataset from its beginning."""

from __future__ import annotations

import os
from pathlib import Path
from typing import Any

from cossim_fast.distributed.places import is_local, joined, place_of, put
from cossim_fast.distributed.stores import store_of

_SUCCESS = "_SUCCESS"


def write_dataset(dataset: Any, folder: str | Path) -> str:
    """Write the rows of a Ray dataset as ``.parquet`` files, in their order, by the cluster.

    The folder is then what `topk`, `pairs_above` and `deduplicate` take; name the column of the
    embeddings to them, of lists or of tensors of one axis.

    Args:
        dataset: a `ray.data.Dataset`, or what has its ``write_parquet`` and ``context``.
        folder: new, or empty; workers write to it.

    Returns:
        The folder; ``_SUCCESS`` in it says that all rows were written.

    Raises:
        TypeError: it is no such dataset.
        ValueError: there is something in the folder: rows would be numbered with those of others.
    """
    if not hasattr(dataset, "write_parquet") or not hasattr(dataset, "context"):
        raise TypeError(f"expected a ray.data.Dataset, got {type(dataset).__name__}")
    path = os.path.abspath(folder) if is_local(str(folder)) else str(folder)
    if there := place_of(path).files(path):
        raise ValueError(
            f"expected an empty folder for the rows of a dataset, got {path}, which holds "
            f"{sorted(there)[0]}; delete what is there, or name another folder"
        )
    options = dataset.context.execution_options
    before = options.preserve_order
    options.preserve_order = True
    try:
        if is_local(path):
            dataset.write_parquet(path)
        else:
            client, key = store_of(path).arrow_client(path)
            dataset.write_parquet(key, filesystem=client)
    finally:
        options.preserve_order = before
    put(joined(path, _SUCCESS), b"")
    return path
