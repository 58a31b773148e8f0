"""`.parquet`: one column of lists as a matrix, or one float a column; what is wanted is read."""

import json
import re
from pathlib import Path
from typing import IO, Any

import numpy as np

from cossim_fast._extras import require
from cossim_fast.files.entries import Entry, listed_names, named_columns
from cossim_fast.files.errors import BadFileError, DamagedError
from cossim_fast.files.memory import check_fits

# What pyarrow calls an index without a name, also where the metadata of pandas got lost.
_NAMELESS_INDEX = re.compile(r"__index_level_\d+__")


def entries(path: Path, key: str | None, verify: bool) -> dict[str, Entry]:
    """What may be meant: columns of lists; without any, the columns of floats as one array.

    Each other column stands by itself, as labels do; the index of a pandas frame is left out. A
    key names one column, or several that are to stand beside each other: names or patterns
    (`fnmatch`) between commas.
    """
    with open_table(path, verify) as file:
        table = _Table(path, file, verify)
        fields = {field.name: stored(field.type) for field in file.schema_arrow}
        index = _index_of_pandas(file.schema_arrow, fields)
    lists = [name for name, kind in fields.items() if is_list(kind)]
    if key is not None and (named := named_columns(key, list(fields))):
        if len(named) == 1:
            name = named[0]
            return {key: table.matrix(name) if name in lists else table.numbers([name])}
        return {key: table.numbers(named)}
    there = [name for name in fields if name not in index]
    floats = [name for name in there if _is_float(fields[name])]
    lists = [name for name in lists if _is_float(fields[name].value_type)] or (
        lists if len(floats) < 2 else []
    )
    if len(lists) > 1 and key is None:
        # Which of them is a matrix is seen only by reading the lengths.
        return {name: table.looked_at(name) for name in lists}
    found = {name: table.matrix(name) for name in lists}
    found |= {name: table.numbers([name]) for name in there if not is_list(fields[name])}
    if not lists:
        rest = listed_names([f"{name} ({fields[name]})" for name in fields if name not in floats])
        if len(floats) > 1:
            found[""] = table.numbers(floats, left_out=rest)
        elif len(there) > 1:
            found[""] = Entry(
                (table.rows, len(there)),
                0,
                lambda: None,
                f"has no columns of floats beside each other, but {rest}; name with a key those "
                "that are coordinates, as 'x,y' or 'x*'",
            )
    return found


def _index_of_pandas(schema: Any, columns: Any) -> set[str]:
    """Columns that number or name the rows of a pandas frame, and are no part of its values.

    Raises:
        DamagedError: the metadata of pandas make no sense.
    """
    index = {name for name in columns if _NAMELESS_INDEX.fullmatch(name)}
    said = (schema.metadata or {}).get(b"pandas")
    if said is None:
        return index
    try:
        levels = json.loads(said).get("index_columns", [])
        # A range is not stored as a column, but described.
        return index | {name for name in levels if isinstance(name, str)}
    except (ValueError, AttributeError, TypeError, RecursionError) as error:
        raise DamagedError("its metadata of pandas make no sense") from error


def column(path: Path, name: str | None) -> np.ndarray[Any, Any]:
    """One column of a table, of any kind, without gaps."""
    with open_table(path, True) as file:
        table = _Table(path, file, True)
        there = file.schema_arrow.names
        index = _index_of_pandas(file.schema_arrow, there)
    values = [column for column in there if column not in index] or there
    chosen = name if name is not None else values[0] if len(values) == 1 else None
    if chosen is None or chosen not in there:
        wanted = "one column" if name is None else repr(name)
        raise BadFileError(f"expected {wanted} in {path}, which holds {listed_names(there)}")
    held = table.read([chosen]).column(0)
    if held.null_count:
        raise BadFileError(
            f"expected {chosen!r} of {path} without gaps, got {held.null_count}, the first in row "
            f"{_first(held.is_null())}"
        )
    array: np.ndarray[Any, Any] = held.to_numpy()
    return array


def open_table(path: Path | IO[bytes], verify: bool, **options: Any) -> Any:
    """A file of tables, open; its footer is read."""
    parquet = require("pyarrow.parquet", extra="cli")
    return parquet.ParquetFile(path, page_checksum_verification=verify, **options)


class _Table:
    """What a file claims, and its columns when they are read.

    Sizes are taken from rows and types: pyarrow ends the process (a C++ exception nobody catches,
    in 26.0) where one asks for the metadata of a column that are damaged. How many bytes rows take
    in the file says nothing: equal ones are written once.

    Raises:
        DamagedError: the claims do not agree with each other.
    """

    def __init__(self, path: Path, file: Any, verify: bool) -> None:
        self.path, self._verify = path, verify
        metadata = file.metadata
        names = file.schema_arrow.names
        if len(set(names)) < len(names):
            raise DamagedError("two of its columns have one name")
        self._types = {field.name: stored(field.type) for field in file.schema_arrow}
        groups = [metadata.row_group(place).num_rows for place in range(metadata.num_row_groups)]
        self.rows = metadata.num_rows
        if min([self.rows, *groups]) < 0 or self.rows != sum(groups):
            raise DamagedError(f"it claims {self.rows} rows, and {sum(groups)} in groups")

    def _nbytes(self, name: str) -> int:
        """What a column takes in memory; of lists of any length, what they take at least."""
        kind, numbers = self._types[name], self.rows
        if is_list(kind):
            numbers, kind = numbers * max(getattr(kind, "list_size", 1), 1), kind.value_type
        return int(numbers * (kind.bit_width if _is_number(kind) else 8) // 8)

    def read(self, names: list[str]) -> Any:
        """Read some columns, if memory holds them."""
        check_fits(f"{', '.join(names)} of {self.path}", sum(map(self._nbytes, names)))
        with open_table(self.path, self._verify) as file:
            table = file.read(columns=names)
        if table.column_names != names or table.num_rows != self.rows:
            raise DamagedError(f"expected {self.rows} rows of {names}, got {table.num_rows}")
        return table

    def numbers(self, names: list[str], left_out: str = "") -> Entry:
        """Columns beside each other; text is left to labels, which are one column."""

        def read() -> Any:
            columns = []
            for column in self.read(names).columns:
                if column.null_count:
                    row = _first(column.is_null())
                    said = _these(column.null_count, "value")
                    raise DamagedError(f"{said} missing; the first in row {row}")
                if len(names) > 1 and not _is_number(column.type):
                    raise DamagedError(f"a column is of {column.type}, and numbers are expected")
                columns.append(column.to_numpy(zero_copy_only=False))
            return columns[0] if len(columns) == 1 else np.stack(columns, 1)

        shape = (self.rows,) if len(names) == 1 else (self.rows, len(names))
        return Entry(shape, sum(map(self._nbytes, names)), read, left_out=left_out)

    def matrix(self, name: str) -> Entry:
        """Lists as rows; whether they are of one length is seen when they are read."""
        # Of lists of any length the width is not known before.
        width = getattr(self._types[name], "list_size", None)

        def read() -> Any:
            rows: list[np.ndarray[Any, Any]] = []
            start = 0
            for chunk in self.read([name]).column(0).chunks:
                if len(chunk):
                    most = rows[0].shape[1] if rows else None
                    rows.append(_rows(getattr(chunk, "storage", chunk), start, most))
                start += len(chunk)
            return (
                rows[0] if len(rows) == 1 else np.concatenate(rows or [np.empty((0, width or 0))])
            )

        return Entry((self.rows, width), self._nbytes(name), read)

    def looked_at(self, name: str) -> Entry:
        """The same, read once to see whether it is a matrix."""
        entry = self.matrix(name)
        try:
            shape = entry.read().shape
        except DamagedError as error:
            return Entry((self.rows, None), entry.nbytes, entry.read, f"is no matrix: {error}")
        return Entry(shape, entry.nbytes, entry.read)


def _rows(lists: Any, start: int, width: int | None) -> np.ndarray[Any, Any]:
    """Lists (n,) of one length as rows (n, d).

    Args:
        lists: of numbers.
        start: the row of the first.
        width: how many numbers the row 0 has, if that is not the first.

    Raises:
        DamagedError: they are not of one length, some are missing, or they are not of numbers.
    """
    if not _is_number(lists.type.value_type):
        raise DamagedError(f"its lists are of {lists.type.value_type}, and numbers are expected")
    if lists.null_count:
        row = start + _first(lists.is_null())
        raise DamagedError(f"{_these(lists.null_count, 'list')} missing; the first in row {row}")
    lengths = require("pyarrow.compute", extra="cli").list_value_length(lists)
    lengths = lengths.to_numpy(zero_copy_only=False)
    width = int(lengths[0]) if width is None else width
    if (lengths != width).any():
        at = int(np.argmax(lengths != width))
        raise DamagedError(
            f"its lists are of different lengths: {lengths[at]} numbers in row {start + at}, "
            f"{width} in row 0"
        )
    flat = lists.flatten()
    if flat.null_count:
        row = start + _first(flat.is_null()) // width
        raise DamagedError(f"{_these(flat.null_count, 'number')} missing; the first in row {row}")
    matrix: np.ndarray[Any, Any] = flat.to_numpy(zero_copy_only=False).reshape(len(lists), width)
    return matrix


def _first(marks: Any) -> int:
    return int(np.argmax(marks.to_numpy(zero_copy_only=False)))


def _these(count: int, what: str) -> str:
    return f"{count} {what} is" if count == 1 else f"{count} {what}s are"


def stored(kind: Any) -> Any:
    """What a column of tensors of one shape is stored as; of vectors, lists of one length.

    They are arrow's own, or those of a library that has told arrow about them, as Ray does.
    """
    vectors = hasattr(kind, "storage_type") and len(getattr(kind, "shape", ())) == 1
    return kind.storage_type if vectors else kind


def is_list(kind: Any) -> bool:
    """Whether a type of arrow's is one of lists."""
    return hasattr(kind, "value_field")


def _is_float(kind: Any) -> bool:
    return bool(require("pyarrow.types", extra="cli").is_floating(kind))


def _is_number(kind: Any) -> bool:
    types = require("pyarrow.types", extra="cli")
    return bool(types.is_integer(kind) or types.is_floating(kind) or types.is_boolean(kind))
