"""Ids that are to stand for rows: each once."""

from __future__ import annotations

from collections.abc import Iterator
from typing import TYPE_CHECKING, Any

import numpy as np

from cossim_fast.distributed.places import name_of
from cossim_fast.files import BadFileError

if TYPE_CHECKING:
    from cossim_fast.distributed.shards import ShardSet

# Rows whose ids are compared at a time, at 16 bytes each; of more, ids are read several times.
_AT_ONCE = 1 << 27


def check_ids(found: ShardSet) -> None:
    """Read the ids of all rows, and see that they differ.

    It takes 2 GiB at most, and a pass over the ids for each 134 million rows.

    Raises:
        ValueError: two rows have one id, or one has none; it names files and rows.
    """
    passes = -(-found.rows // _AT_ONCE)
    for number in range(passes):
        pieces = [keys[keys % np.uint64(passes) == number] for _, _, keys in _ids_of(found)]
        keys = np.concatenate(pieces)
        del pieces
        keys.sort()
        repeated = keys[1:][keys[1:] == keys[:-1]]
        if len(repeated):
            _refuse(found, repeated)


def _ids_of(found: ShardSet) -> Iterator[tuple[int, Any, np.ndarray[Any, Any]]]:
    """Ids by row groups: (number of the first row, ids, keys (n,) that are equal for equal ids)."""
    for first, ids in found.column_between(str(found.id_column), 0, found.rows):
        yield first, ids, _keys(ids)


def _keys(ids: Any) -> np.ndarray[Any, Any]:
    """Whole numbers (n,) uint64 as they are; of anything else a hash, of this process."""
    if str(ids.type).startswith(("int", "uint")):
        return np.asarray(ids.to_numpy(zero_copy_only=False)).astype(np.uint64)
    hashes = (hash(value) for value in ids.to_pylist())
    return np.fromiter(hashes, np.int64, len(ids)).view(np.uint64)


def _refuse(found: ShardSet, repeated: np.ndarray[Any, Any]) -> None:
    """Name the first two rows of one id, if it is not only that different ids have one key."""
    rows: dict[Any, int] = {}
    for first, ids, keys in _ids_of(found):
        for place in np.flatnonzero(np.isin(keys, repeated)).tolist():
            row, value = first + place, ids[place].as_py()
            if (before := rows.setdefault(value, row)) != row:
                raise BadFileError(
                    f"expected ids that differ, got {found.id_column} {value!r} in "
                    f"{_place(found, before)} and in {_place(found, row)}"
                )


def _place(found: ShardSet, row: int) -> str:
    shard = found.shard_of(row)
    return f"row {row - shard.first} of {name_of(shard.path)}"
