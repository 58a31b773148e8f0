"""How work is cut into blocks: by the data alone, so that a rerun elsewhere cuts it alike."""

from __future__ import annotations

from bisect import bisect_right
from collections.abc import Callable, Sequence
from dataclasses import dataclass, replace
from itertools import pairwise
from typing import Any

from cossim_fast.distributed.shards import ShardSet

# Rows from a first number up to, and without, a last one.
Range = tuple[int, int]


@dataclass(frozen=True)
class Block:
    """A piece of work whose result is one file.

    Attributes:
        name: of its file.
        function: computes it, and knows nothing of the engine.
        arguments: of the function.
        memory: bytes that it takes at most, see `TASK`.
        reads: bytes that it reads of the files of embeddings.
        writes: bytes of numbers that it writes at most, without ids and what a file says of itself;
            of a join, none of its pairs, which nobody knows before.
        operations: multiplications and additions of its products.
        key: which block of its kind it is.
        also: names of further files that its function writes, before that of its own.
    """

    name: str
    function: Callable[..., Any]
    arguments: tuple[Any, ...]
    memory: int
    reads: int = 0
    writes: int = 0
    operations: float = 0.0
    key: tuple[int, ...] = ()
    also: tuple[str, ...] = ()


# [bytes] Of a worker before it does anything: Python, torch, arrow and Ray.
TASK = 400 << 20
# [rows] Of a file with a line for each row.
_LISTED = 1 << 22


def even(total: int, most: int) -> list[Range]:
    """Cut 0 to ``total`` into as few ranges of at most ``most`` as there can be, of like length."""
    count = -(-total // most)
    bounds = [total * n // count for n in range(count + 1)] if count else []
    return list(pairwise(bounds))


def at_boundaries(boundaries: Sequence[int], most: int) -> list[Range]:
    """Cut rows into ranges of at most ``most``, at given boundaries where these allow for it.

    A range ends at the last boundary within reach, unless that would make it shorter than half of
    ``most``: then rows that are read together are read twice, for the end of one range and the
    beginning of the next.
    """
    found: list[Range] = []
    start, total = 0, boundaries[-1] if boundaries else 0
    while start < total:
        stop = boundaries[bisect_right(boundaries, start + most) - 1]
        if stop - start < min(-(-most // 2), total - start):
            stop = min(start + most, total)
        found.append((start, stop))
        start = stop
    return found


def seen_by(rows: ShardSet, some: Range) -> ShardSet:
    """The files that a range of rows is in: all that a task has to know, and small."""
    start, stop = some
    here = tuple(one for one in rows.shards if one.first < stop and start < one.first + one.rows)
    return replace(rows, shards=here or rows.shards[:1])


def row_parts(rows: int) -> dict[str, Range]:
    """The files of a result with a line for each row, and which rows each is of."""
    return {f"part-{n:05d}.parquet": some for n, some in enumerate(even(rows, _LISTED))}
