"""Files of embeddings as one matrix: found, checked before any work begins, read by ranges."""

from __future__ import annotations

import bisect
from collections.abc import Iterator, Sequence
from concurrent.futures import ThreadPoolExecutor
from contextlib import contextmanager
from dataclasses import dataclass, replace
from itertools import accumulate
from pathlib import Path
from typing import IO, Any, cast

from torch import Tensor

from cossim_fast._extras import require
from cossim_fast.distributed.ids import check_ids
from cossim_fast.distributed.places import counting, name_of, place_of
from cossim_fast.distributed.ranges import Ranges
from cossim_fast.files import BadFileError
from cossim_fast.files.by_rows import SUFFIXES, open_rows
from cossim_fast.files.errors import explained, suffix_of
from cossim_fast.files.ranges import Group, RowFile
from cossim_fast.files.shards import natural

# Footers that are read at the same time: on an object store each takes tens of milliseconds.
_FOOTERS = 16


@dataclass(frozen=True)
class Shard:
    """One file of embeddings (rows, width)."""

    path: str
    size: int
    # What changes with the content: mtime in nanoseconds, or the etag of an object store.
    version: str
    rows: int
    width: int
    dtype: str
    # The global number of its first row.
    first: int
    # Rows that are read together at best: where a range of rows begins and ends with a group,
    # nothing is read that is not used.
    groups: tuple[Group, ...]
    # Bytes that are read to open it.
    opening: int
    # As arrow calls it.
    id_type: str | None


@dataclass(frozen=True)
class ShardSet:
    """Files as one matrix (rows, width), in their order.

    It is small, and pickles: tasks carry it, never embeddings.
    """

    shards: tuple[Shard, ...]
    column: str | None
    id_column: str | None

    @property
    def rows(self) -> int:
        """How many rows there are in all."""
        return self.shards[-1].first + self.shards[-1].rows

    @property
    def width(self) -> int:
        """The width of all of them."""
        return self.shards[0].width

    @property
    def dtype(self) -> str:
        """The dtype of all of them, as torch calls it."""
        return self.shards[0].dtype

    def boundaries(self) -> list[int]:
        """Global numbers of rows where reading may begin or end without reading more than is used.

        They begin with 0 and end with ``rows``: shards, and row groups within them.
        """
        counts = [group.rows for shard in self.shards for group in shard.groups if group.rows]
        return list(accumulate(counts, initial=0))

    def bytes_between(self, start: int, stop: int) -> int:
        """How many bytes `between` reads of files.

        More, where a row group of over 64 MiB is not read to its end.
        """
        total = 0
        for shard, low, high in self._parts(start, stop):
            total, at = total + shard.opening, 0
            # Rows that lie side by side are read alone, a row group as a whole.
            plain = suffix_of(name_of(shard.path)) != ".parquet"
            for group in shard.groups:
                used = max(min(high, at + group.rows) - max(low, at), 0)
                if used:
                    total += group.nbytes * used // group.rows if plain else group.nbytes
                at += group.rows
        return total

    def between(self, start: int, stop: int) -> Iterator[tuple[int, Tensor]]:
        """Read the rows from ``start`` up to ``stop``: (global number of the first, rows (n, d)).

        Pieces are consecutive, of one file each, on the CPU, and take 16 MiB at most, or one row.

        Raises:
            ValueError: which file, and which of its rows, is not as it was when it was listed.
        """
        for shard, low, high in self._parts(start, stop):
            with _open(shard.path, self.column, shard) as (_, rows):
                at = shard.first + low
                for piece in rows.rows(low, high):
                    yield at, piece
                    at += len(piece)

    def ids(self, start: int, stop: int) -> Any | None:
        """The ids of those rows, an array of arrow's; None without an ``id_column``."""
        return None if self.id_column is None else self.column_values(self.id_column, start, stop)

    def column_values(self, name: str, start: int, stop: int) -> Any:
        """Another column of the rows from ``start`` up to ``stop``, an array of arrow's."""
        pyarrow = require("pyarrow", extra="distributed")
        pieces = [values for _, values in self.column_between(name, start, stop)]
        if len({piece.type for piece in pieces}) > 1:
            self.check_column(name)
        return pyarrow.concat_arrays(pieces) if pieces else pyarrow.array([])

    def column_between(self, name: str, start: int, stop: int) -> Iterator[tuple[int, Any]]:
        """The same by row groups: (global number of the first row, an array of arrow's)."""
        for shard, low, high in self._parts(start, stop):
            with _open(shard.path, self.column, shard) as (_, rows):
                at = shard.first + low
                for piece in rows.values(name, low, high):
                    yield at, piece
                    at += len(piece)

    def check_column(self, name: str) -> None:
        """See whether all files have a column, by their footers.

        Raises:
            ValueError: one has not, or has a row without a value; or they are of several types.
        """
        with ThreadPoolExecutor(_FOOTERS) as pool:
            types = list(
                pool.map(lambda shard: _column_type(shard, self.column, name), self.shards)
            )
        for kind, shard in zip(types, self.shards, strict=True):
            if kind != types[0]:
                raise BadFileError(
                    f"expected {name!r} of one type in all files, got {types[0]} in "
                    f"{name_of(self.shards[0].path)} and {kind} in {name_of(shard.path)}"
                )

    def shard_of(self, row: int) -> Shard:
        """The file that holds a row."""
        firsts = [shard.first for shard in self.shards]
        return self.shards[bisect.bisect_right(firsts, row) - 1]

    def _parts(self, start: int, stop: int) -> Iterator[tuple[Shard, int, int]]:
        """The files that hold a range of rows, and which of their own rows."""
        if not 0 <= start <= stop <= self.rows:
            raise ValueError(f"expected a range of {self.rows} rows, got {start} to {stop}")
        for shard in self.shards:
            low, high = max(start - shard.first, 0), min(stop - shard.first, shard.rows)
            if low < high:
                yield shard, low, high


def find(
    paths: str | Path | Sequence[str | Path],
    *,
    column: str | None = None,
    id_column: str | None = None,
) -> ShardSet:
    """List files of embeddings, and check what each says of its rows.

    Args:
        paths: a file, a folder, a pattern as ``"c/*.parquet"``, or several of them, which keep the
            order in which they are given; files of one folder or pattern are in the order of their
            names and of the numbers in them, part-2 before part-10.
        column: of a ``.parquet``, or a tensor of a ``.safetensors``; not needed where there is one
            alone of lists of floats, or of 2 axes.
        id_column: whose values stand for the rows in results; they are all read here, since no two
            may be equal. Of a ``.safetensors``, a tensor of one number a row.

    Raises:
        ValueError: there are no files, or one of them is damaged, or not of the width and dtype of
            the first, or two ids are equal; it names the file, and the row where one is at fault.
        OSError: a file may not be read.
    """
    named = [paths] if isinstance(paths, (str, Path)) else list(paths)
    listed = [file for path in named for file in _listed(str(path))]
    if not listed:
        raise ValueError("expected files of embeddings, got an empty list")
    if len(set(listed)) < len(listed):
        twice = next(path for path in listed if listed.count(path) > 1)
        raise ValueError(f"expected each file once, got {name_of(twice)} several times")
    with ThreadPoolExecutor(_FOOTERS) as pool:
        shards = list(pool.map(lambda path: _look(path, column, id_column), listed))
    width = _check_alike(shards)
    firsts = accumulate((shard.rows for shard in shards[:-1]), initial=0)
    numbered = tuple(
        replace(shard, first=first, width=width)
        for shard, first in zip(shards, firsts, strict=True)
    )
    found = ShardSet(numbered, column, id_column)
    if id_column is not None:
        check_ids(found)
    return found


def _listed(path: str) -> list[str]:
    """The files that one path stands for."""
    there = place_of(path).files(path)
    if there is None:
        return [path]
    found = [
        name
        for name in there
        if suffix_of(name_of(name)) in SUFFIXES and not _is_hidden(name_of(name))
    ]
    if not found:
        raise BadFileError(
            f"expected files ending in {', '.join(SUFFIXES)} at {name_of(path)}; there are none"
        )
    kinds = sorted({suffix_of(name_of(name)) for name in found})
    if len(kinds) > 1:
        raise BadFileError(
            f"expected files of one kind at {name_of(path)}, got {', '.join(kinds)}; name some by "
            f"a pattern, as '*{kinds[0]}', or several in a list"
        )
    return sorted(found, key=natural)


def _is_hidden(path: str) -> bool:
    return Path(path).name.startswith((".", "_"))


def _look(path: str, column: str | None, id_column: str | None) -> Shard:
    """What a file says of itself."""
    with counting() as traffic, _open(path, column) as (file, rows):
        count = sum(group.rows for group in rows.groups)
        id_type = None if id_column is None else rows.check_column(id_column)
        return Shard(
            path, file.size, file.version, count, rows.width, rows.dtype, 0, rows.groups,
            traffic.read, id_type,
        )  # fmt: skip


@contextmanager
def _open(
    path: str, column: str | None, listed: Shard | None = None
) -> Iterator[tuple[Ranges, RowFile]]:
    """A file, the same that was listed, and its rows; errors name the file."""
    name = name_of(path)
    try:
        with place_of(path).open(path) as file, explained(name):
            if listed is not None:
                _check_same(listed, file)
            yield file, open_rows(cast("IO[bytes]", file), name, column)
    except FileNotFoundError as error:
        raise BadFileError(f"expected a file at {name}, and there is none") from error


def _column_type(shard: Shard, column: str | None, name: str) -> str:
    with _open(shard.path, column, shard) as (_, rows):
        return rows.check_column(name)


def _check_same(shard: Shard, file: Ranges) -> None:
    if (file.size, file.version) != (shard.size, shard.version):
        raise BadFileError(
            f"expected {name_of(shard.path)} as it was when it was listed ({shard.size} bytes, "
            f"version {shard.version}), got {file.size} bytes, version {file.version}; it changed "
            "meanwhile"
        )


def _check_alike(shards: list[Shard]) -> int:
    """Refuse files that differ from the first in width, dtype or type of ids; return the width.

    An empty ``.parquet`` of lists of any length has no width of its own.
    """
    first = next((shard for shard in shards if shard.width), shards[0])
    for shard in shards:
        free = not shard.width and not shard.rows
        if shard.dtype != first.dtype or (shard.width != first.width and not free):
            raise ValueError(
                f"expected files of one width and dtype, got rows of {first.width} {first.dtype} "
                f"in {name_of(first.path)} and of {shard.width} {shard.dtype} in "
                f"{name_of(shard.path)}"
            )
    for shard in shards:
        if shard.id_type != first.id_type:
            raise ValueError(
                f"expected ids of one type, got {first.id_type} in {name_of(first.path)} and "
                f"{shard.id_type} in {name_of(shard.path)}"
            )
    return first.width
