"""`.parquet`: lists as rows, read by row groups and, of those that are large, by pages."""

import io
from collections.abc import Iterator
from typing import IO, Any

import numpy as np
import torch
from torch import Tensor

from cossim_fast._extras import require
from cossim_fast.files.entries import listed_names
from cossim_fast.files.errors import BadFileError, DamagedError
from cossim_fast.files.parquet import is_list, open_table, stored
from cossim_fast.files.parquet_footer import Chunk, chunks_of, read_tail
from cossim_fast.files.ranges import AT_ONCE, Group

# What lists may be of, by arrow's names.
_DTYPES = {
    "halffloat": "float16",
    "float": "float32",
    "double": "float64",
    "int8": "int8",
    "uint8": "uint8",
}
# [bytes] Read at a time of a row group that takes more than `AT_ONCE`; an object store answers each
# request after tens of milliseconds.
_BUFFER = 8 << 20
# [bytes] Of rows that are decoded at a time, for which arrow takes ten times as much.
_DECODED = 4 << 20


class ParquetRows:
    """One column of lists of an open ``.parquet``.

    The footer says how many numbers a row group has, and mostly how many of them are missing: so
    far lists that are not of one length are found before any is read.

    Raises:
        BadFileError: there is no such column.
        DamagedError: it holds no lists of one length, of `_DTYPES`.
    """

    def __init__(self, file: IO[bytes], path: str, column: str | None) -> None:
        tail = read_tail(file)
        metadata = open_table(io.BytesIO(tail), True).metadata
        self._path, self._chunks = path, chunks_of(tail)
        self._file = open_table(file, True, metadata=metadata, pre_buffer=False)
        self.column = _choose(self._file.schema_arrow, path, column)
        kind = stored(self._file.schema_arrow.field(self.column).type)
        if str(kind.value_type) not in _DTYPES:
            raise DamagedError(
                f"the lists of {self.column!r} are of {kind.value_type}, and "
                f"{', '.join(_DTYPES.values())} are expected"
            )
        self.dtype = _DTYPES[str(kind.value_type)]
        self.groups = self._groups(metadata)
        if max((group.nbytes for group in self.groups), default=0) > AT_ONCE:
            self._file = open_table(
                file, True, metadata=metadata, pre_buffer=False, buffer_size=_BUFFER
            )
        self.width = self._width(getattr(kind, "list_size", None))

    def _groups(self, metadata: Any) -> tuple[Group, ...]:
        """The row groups."""
        rows = [metadata.row_group(place).num_rows for place in range(metadata.num_row_groups)]
        if min(rows, default=0) < 0 or sum(rows) != metadata.num_rows:
            raise DamagedError(f"it claims {metadata.num_rows} rows, and {sum(rows)} in groups")
        return tuple(
            Group(count, self._chunk(self.column, number).nbytes)
            for number, count in enumerate(rows)
        )

    def _chunk(self, name: str, number: int) -> Chunk:
        """What the footer says of a column that is a list or none, in one row group."""
        leaves = self._chunks[number].get(name, ())
        if len(leaves) != 1:
            raise DamagedError(f"its footer names {len(leaves)} places of {name!r}, and not one")
        return leaves[0]

    def _width(self, width: int | None) -> int:
        """The width of all rows.

        Raises:
            DamagedError: the footer shows that one is missing, or not of the width of the first.
        """
        before = 0
        for number, group in enumerate(self.groups):
            chunk = self._chunk(self.column, number)
            if group.rows:
                if width is None:
                    width = chunk.values // group.rows
                    if chunk.values % group.rows:
                        width = self._first_length(number)
                if chunk.values != group.rows * width or (chunk.nulls and width):
                    for _ in self._read(number, before, width):  # says which row it is
                        pass
                if chunk.values != group.rows * width:
                    raise DamagedError(
                        f"it claims {chunk.values} numbers in {group.rows} rows of {width}"
                    )
            before += group.rows
        return width or 0

    def _first_length(self, number: int) -> int:
        """How long the first list of a row group is."""
        batch = next(self._file.iter_batches(1, row_groups=[number], columns=[self.column]))
        return len(batch.column(0)[0].as_py() or ())

    def rows(self, start: int, stop: int) -> Iterator[Tensor]:
        """Read consecutive rows (n_i, width).

        Raises:
            DamagedError: a list, or a number in it, is missing; or a list is not as long as others.
        """
        before = 0
        for number, group in enumerate(self.groups):
            low, high = max(start - before, 0), min(stop - before, group.rows)
            at = 0
            if low < high:
                for rows in self._read(number, before, self.width):
                    if at < high and at + len(rows) > low:
                        # A copy: arrow's memory may not be written to.
                        yield torch.from_numpy(rows[max(low - at, 0) : high - at].copy())
                    at += len(rows)
                    if at >= high:
                        break
                if at < high:
                    raise DamagedError(f"it ends before row {before + high}")
            before += group.rows

    def check_column(self, name: str) -> str:
        """The type of another column, which has no nulls as far as the footer counts them.

        Raises:
            BadFileError: there is none.
            DamagedError: a row has no value.
        """
        fields = {field.name: field.type for field in self._file.schema_arrow}
        if name not in fields:
            raise BadFileError(
                f"expected a column {name!r} in {self._path}, got {_described(fields)}"
            )
        before = 0
        for number, group in enumerate(self.groups):
            if any(chunk.nulls for chunk in self._chunks[number].get(name, ())):
                self._values(name, number, before)
            before += group.rows
        return str(_plain(fields[name]))

    def values(self, name: str, start: int, stop: int) -> Iterator[Any]:
        """Another column of those rows, arrays of arrow's, a row group at a time.

        Raises:
            BadFileError: there is none.
            DamagedError: a row has no value.
        """
        self.check_column(name)
        before = 0
        for number, group in enumerate(self.groups):
            low, high = max(start - before, 0), min(stop - before, group.rows)
            if low < high:
                yield self._values(name, number, before)[low:high]
            before += group.rows

    def _values(self, name: str, number: int, before: int) -> Any:
        """Another column of one row group, before which ``before`` rows stand."""
        column = self._file.read_row_group(number, columns=[name]).column(0)
        if column.null_count:
            row = before + _first(column.is_null())
            raise DamagedError(f"row {row} has no value of {name!r} (null); drop it, or fill it")
        return column.cast(_plain(column.type)).combine_chunks()

    def _read(self, number: int, before: int, width: int) -> Iterator[np.ndarray[Any, Any]]:
        """Rows of one row group, ``before`` being how many rows of the file stand before it."""
        size = max(_DECODED // max(width * np.dtype(self.dtype).itemsize, 1), 1)
        for batch in self._file.iter_batches(size, row_groups=[number], columns=[self.column]):
            lists = batch.column(0)
            yield _matrix(getattr(lists, "storage", lists), width, before)
            before += batch.num_rows


def _choose(schema: Any, path: str, column: str | None) -> str:
    """The column that is named, or the only one of lists of `_DTYPES`."""
    fields = {field.name: stored(field.type) for field in schema}
    if len(fields) < len(schema.names):
        raise DamagedError("two of its columns have one name")
    lists = [name for name, kind in fields.items() if is_list(kind)]
    if column is None:
        lists = [name for name in lists if str(fields[name].value_type) in _DTYPES] or lists
        if len(lists) != 1:
            raise BadFileError(
                f"expected one column of lists of floats in {path}, which holds "
                f"{_described(fields)}; name one by column="
            )
        return str(lists[0])
    if column not in fields:
        raise BadFileError(f"expected a column {column!r} in {path}, got {_described(fields)}")
    if column not in lists:
        raise DamagedError(f"{column!r} is of {fields[column]}, and lists of numbers are expected")
    return column


def _plain(kind: Any) -> Any:
    """The type of the values of a column, which may be stored by their places in a dictionary.

    Of text and bytes a type that holds over 2 GiB of them: columns of many files are put together.
    """
    pyarrow = require("pyarrow", extra="distributed")
    kind = kind.value_type if pyarrow.types.is_dictionary(kind) else kind
    if pyarrow.types.is_string(kind):
        return pyarrow.large_string()
    return pyarrow.large_binary() if pyarrow.types.is_binary(kind) else kind


def _described(fields: dict[str, Any]) -> str:
    return listed_names([f"{name} ({kind})" for name, kind in fields.items()]) or "no column"


def _matrix(lists: Any, width: int, before: int) -> np.ndarray[Any, Any]:
    """Lists (n,) as rows (n, width); row ``before`` is the first of them.

    Raises:
        DamagedError: which row is none.
    """
    compute = require("pyarrow.compute", extra="distributed")
    if lists.null_count:
        row = before + _first(lists.is_null())
        raise DamagedError(f"row {row} is missing (null); drop it, or fill it")
    lengths = compute.list_value_length(lists).to_numpy(zero_copy_only=False)
    if len(wrong := np.flatnonzero(lengths != width)):
        row = before + int(wrong[0])
        raise DamagedError(
            f"row {row} is of {lengths[wrong[0]]} numbers, and others are of {width}"
        )
    flat = lists.flatten()
    if flat.null_count:
        place = _first(flat.is_null())
        raise DamagedError(
            f"row {before + place // width} lacks number {place % width} (null); fill it"
        )
    rows: np.ndarray[Any, Any] = flat.to_numpy(zero_copy_only=False).reshape(len(lists), width)
    return rows


def _first(true: Any) -> int:
    """The place of the first that is true, of an array of arrow's."""
    return int(require("pyarrow.compute", extra="distributed").index(true, True).as_py())
