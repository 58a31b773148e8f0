"""`.parquet`: lists as rows, read by row groups and, of those that are large, by pages."""

from collections.abc import Iterator
from typing import IO, Any

import numpy as np
import torch
from torch import Tensor

from cossim_fast._extras import require
from cossim_fast.files.entries import listed_names
from cossim_fast.files.errors import BadFileError, DamagedError
from cossim_fast.files.parquet import is_list, open_table, stored
from cossim_fast.files.ranges import AT_ONCE, Group

# What lists may be of, by arrow's names.
_DTYPES = {
    "halffloat": "float16",
    "float": "float32",
    "double": "float64",
    "int8": "int8",
    "uint8": "uint8",
}
# [bytes] Read at a time of a column that is not read at once.
_BUFFER = 1 << 20


class ParquetRows:
    """One column of lists of an open ``.parquet``.

    The lengths of lists are not in the footer, but how many numbers there are in a row group is.

    Raises:
        BadFileError: there is no such column.
        DamagedError: it holds no lists of one length, of `_DTYPES`.
    """

    def __init__(self, file: IO[bytes], path: str, column: str | None) -> None:
        self._path, self._file = path, open_table(file, True, pre_buffer=False)
        self.column = _choose(self._file.schema_arrow, path, column)
        kind = stored(self._file.schema_arrow.field(self.column).type)
        if str(kind.value_type) not in _DTYPES:
            raise DamagedError(
                f"the lists of {self.column!r} are of {kind.value_type}, and "
                f"{', '.join(_DTYPES.values())} are expected"
            )
        self.dtype = _DTYPES[str(kind.value_type)]
        self.width, self.groups = self._groups(kind)
        if max((group.nbytes for group in self.groups), default=0) > AT_ONCE:
            self._file = open_table(
                file, True, pre_buffer=False, buffer_size=_BUFFER, metadata=self._file.metadata
            )

    def _groups(self, kind: Any) -> tuple[int, tuple[Group, ...]]:
        """The width of all rows, and the row groups."""
        metadata = self._file.metadata
        place = _leaf_of(metadata, self.column)
        width, groups, before = getattr(kind, "list_size", None), [], 0
        for number in range(metadata.num_row_groups):
            group = metadata.row_group(number)
            chunk = group.column(place)
            rows, numbers = group.num_rows, chunk.num_values
            if rows:
                if width is None:
                    width = numbers // rows
                if numbers != rows * width:
                    self._refuse_ragged(number, before, width)
            groups.append(Group(rows, chunk.total_compressed_size))
            before += rows
        return width or 0, tuple(groups)

    def _refuse_ragged(self, number: int, before: int, width: int) -> None:
        """Say which list of a row group is not as long as the others."""
        for _ in self._read(number, before, width):
            pass
        raise DamagedError(f"row group {number} does not hold the lists of {width} numbers it says")

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

    def check_column(self, name: str) -> None:
        """See whether there is another column of that name.

        Raises:
            BadFileError: there is none.
        """
        if name not in self._file.schema_arrow.names:
            fields = {field.name: field.type for field in self._file.schema_arrow}
            raise BadFileError(
                f"expected a column {name!r} in {self._path}, got {_described(fields)}"
            )

    def values(self, name: str, start: int, stop: int) -> Any:
        """Another column of those rows, a ChunkedArray of arrow's.

        Raises:
            BadFileError: there is none.
        """
        self.check_column(name)
        chunks, before = [], 0
        for number, group in enumerate(self.groups):
            low, high = max(start - before, 0), min(stop - before, group.rows)
            if low < high:
                column = self._file.read_row_group(number, columns=[name]).column(0)
                chunks += column.slice(low, high - low).chunks
            before += group.rows
        kind = self._file.schema_arrow.field(name).type
        return require("pyarrow", extra="distributed").chunked_array(chunks, kind)

    def _read(self, number: int, before: int, width: int) -> Iterator[np.ndarray[Any, Any]]:
        """Rows of one row group, ``before`` being how many rows of the file stand before it."""
        size = max(AT_ONCE // max(width * np.dtype(self.dtype).itemsize, 1), 1)
        for batch in self._file.iter_batches(size, row_groups=[number], columns=[self.column]):
            lists = batch.column(0)
            yield _matrix(getattr(lists, "storage", lists), width, before)
            before += batch.num_rows


def _choose(schema: Any, path: str, column: str | None) -> str:
    """The column that is named, or the only one of lists of floats."""
    fields = {field.name: stored(field.type) for field in schema}
    if len(fields) < len(schema.names):
        raise DamagedError("two of its columns have one name")
    lists = [name for name, kind in fields.items() if is_list(kind)]
    if column is None:
        if len(lists) != 1:
            raise BadFileError(
                f"expected one column of lists in {path}, which holds {_described(fields)}; name "
                "one by column="
            )
        return str(lists[0])
    if column not in fields:
        raise BadFileError(f"expected a column {column!r} in {path}, got {_described(fields)}")
    if column not in lists:
        raise DamagedError(f"{column!r} is of {fields[column]}, and lists of numbers are expected")
    return column


def _described(fields: dict[str, Any]) -> str:
    return listed_names([f"{name} ({kind})" for name, kind in fields.items()]) or "no column"


def _leaf_of(metadata: Any, column: str) -> int:
    """The place of the numbers of a column of lists among all that have values."""
    for place in range(metadata.num_columns):
        path = metadata.schema.column(place).path
        if path == column or path.startswith(f"{column}."):
            return place
    raise DamagedError(f"its footer does not say where {column!r} lies")


def _matrix(lists: Any, width: int, before: int) -> np.ndarray[Any, Any]:
    """Lists (n,) as rows (n, width); row ``before`` is the first of them.

    Raises:
        DamagedError: which row is none.
    """
    compute = require("pyarrow.compute", extra="distributed")
    if lists.null_count:
        row = before + int(compute.index(lists.is_null(), True).as_py())
        raise DamagedError(f"row {row} is missing (null); drop it, or fill it")
    lengths = compute.list_value_length(lists).to_numpy(zero_copy_only=False)
    if len(wrong := np.flatnonzero(lengths != width)):
        row = before + int(wrong[0])
        raise DamagedError(
            f"row {row} is of {lengths[wrong[0]]} numbers, and others are of {width}"
        )
    flat = lists.flatten()
    if flat.null_count:
        place = int(compute.index(flat.is_null(), True).as_py())
        raise DamagedError(
            f"row {before + place // width} lacks number {place % width} (null); fill it"
        )
    rows: np.ndarray[Any, Any] = flat.to_numpy(zero_copy_only=False).reshape(len(lists), width)
    return rows
