"""What the arguments of the public functions stand for: checked, and files found, before work."""

from __future__ import annotations

import os
from collections.abc import Sequence
from pathlib import Path
from typing import Any

from cossim_fast import _checks
from cossim_fast.distributed.duplicates import Deduplication
from cossim_fast.distributed.joins import Join
from cossim_fast.distributed.places import is_local
from cossim_fast.distributed.shards import ShardSet, find
from cossim_fast.distributed.topk import Search

Paths = str | Path | Sequence[str | Path]


def search_of(
    queries: Paths,
    corpus: Paths,
    *,
    k: Any = 10,
    output: str | Path = "",
    column: str | None = None,
    id_column: str | None = None,
    query_column: str | None = None,
    query_id_column: str | None = None,
    screen: str = "auto",
    queries_per_task: Any = None,
    rows_per_task: Any = None,
    threads: int = 1,
) -> Search:
    """The job of `topk`."""
    return Search(
        absolute(output),
        _find(queries, query_column or column, query_id_column or id_column),
        _find(corpus, column, id_column),
        k,
        screen=screen,
        threads=threads,
        queries_per_task=_size("queries_per_task", queries_per_task),
        rows_per_task=_size("rows_per_task", rows_per_task),
    )


def join_of(
    x: Paths,
    y: Paths | None = None,
    threshold: Any = 0.8,
    *,
    output: str | Path = "",
    max_pairs: Any = None,
    column: str | None = None,
    id_column: str | None = None,
    screen: str = "auto",
    rows_per_task: Any = None,
    threads: int = 1,
) -> Join:
    """The job of `pairs_above`."""
    return Join(
        absolute(output),
        _find(x, column, id_column),
        None if y is None else _find(y, column, id_column),
        threshold,
        max_pairs=max_pairs,
        screen=screen,
        threads=threads,
        rows_per_task=_size("rows_per_task", rows_per_task),
    )


def deduplication_of(
    x: Paths,
    threshold: Any,
    *,
    output: str | Path = "",
    keep: str = "first",
    max_pairs: Any = None,
    column: str | None = None,
    id_column: str | None = None,
    screen: str = "auto",
    rows_per_task: Any = None,
    threads: int = 1,
) -> Deduplication:
    """The job of `deduplicate`."""
    return Deduplication(
        absolute(output),
        _find(x, column, id_column),
        threshold,
        keep=keep,
        max_pairs=max_pairs,
        screen=screen,
        threads=threads,
        rows_per_task=_size("rows_per_task", rows_per_task),
    )


def _find(paths: Paths, column: str | None, id_column: str | None) -> ShardSet:
    given = [paths] if isinstance(paths, (str, Path)) else list(paths)
    return find([absolute(path) for path in given], column=column, id_column=id_column)


def absolute(path: str | Path) -> str:
    """A path that workers, whose folder is another, understand."""
    return os.path.abspath(path) if is_local(str(path)) else str(path)


def _size(name: str, value: Any) -> int | None:
    return None if value is None else _checks.whole_number(name, value)


def threads_of(cpus_per_task: Any, gpus_per_task: Any) -> int:
    """The threads of a worker."""
    if gpus_per_task:
        raise ValueError(
            f"expected gpus_per_task=0, got {gpus_per_task!r}: nothing has tested that a worker "
            "with a GPU returns the bits of one without; use CPUs, cpus_per_task of them a task"
        )
    return _checks.whole_number("cpus_per_task", cpus_per_task)
