"""Blocks of results: ``.parquet`` files that are there as a whole, and tell when they are not.

A block is written under the name that its task determines, once: whoever finds it, finds all of it
(`places.put`). A digest of what it says stands in its footer. Columns are stored as they are in
memory, neither packed nor by dictionaries, so that what a block takes is known beforehand.
"""

from __future__ import annotations

import json
from collections.abc import Mapping
from pathlib import Path
from typing import Any

import numpy as np

from cossim_fast._extras import require
from cossim_fast.distributed.places import joined, name_of, place_of, put, read_all
from cossim_fast.retrieval import FileError
from cossim_fast.retrieval.resumable import Digest

_DIGEST, _SUMMARY = b"cossim_fast.digest", b"cossim_fast.summary"


def write_block(
    output: str | Path, name: str, columns: Mapping[str, Any], summary: Mapping[str, Any]
) -> None:
    """Write a block as a whole.

    Args:
        output: the folder, which is made.
        name: of the file in it; it may begin with folders.
        columns: of one length: arrays of numpy's, or of arrow's without nulls.
        summary: what `summary_of` and `read_summary` return; JSON.

    Raises:
        ValueError: a column has nulls, or is of a type that is none of numbers, text, bytes, times.
    """
    pyarrow = require("pyarrow", extra="distributed")
    parquet = require("pyarrow.parquet", extra="distributed")
    table = pyarrow.table({name: _array(values) for name, values in columns.items()})
    said = json.dumps(dict(summary), sort_keys=True).encode()
    table = table.replace_schema_metadata({_SUMMARY: said, _DIGEST: _digest(table, said)})
    sink = pyarrow.BufferOutputStream()
    parquet.write_table(
        table,
        sink,
        compression="none",
        use_dictionary=False,
        write_page_checksum=True,
    )
    put(joined(str(output), name), memoryview(sink.getvalue()))


def read_block(output: str | Path, name: str) -> Any:
    """Read a block, a table of arrow's.

    Raises:
        FileError: it is truncated, or was altered.
        FileNotFoundError: there is none.
    """
    pyarrow = require("pyarrow", extra="distributed")
    parquet = require("pyarrow.parquet", extra="distributed")
    path = joined(str(output), name)
    content = pyarrow.BufferReader(read_all(path))
    try:
        with parquet.ParquetFile(content, page_checksum_verification=True) as file:
            table = file.read()
        found = table.schema.metadata or {}
        digest = _digest(table, found.get(_SUMMARY, b""))
    except (pyarrow.ArrowException, ValueError, OSError) as error:
        raise _damaged(path) from error
    if found.get(_DIGEST) != digest:
        raise _damaged(path)
    return table


def summary_of(block: Any) -> dict[str, Any]:
    """What `write_block` was told beside the columns of a block that was read."""
    said: dict[str, Any] = json.loads(block.schema.metadata[_SUMMARY])
    return said


def read_summary(output: str | Path, name: str) -> dict[str, Any]:
    """The same, of a block that is known to be whole: its footer alone is read."""
    parquet = require("pyarrow.parquet", extra="distributed")
    path = joined(str(output), name)
    with place_of(path).open(path) as file:
        said: dict[str, Any] = json.loads(parquet.ParquetFile(file).metadata.metadata[_SUMMARY])
        return said


def is_whole(output: str | Path, name: str) -> bool:
    """Whether a block is there, and as it was written; all of it is read for that."""
    try:
        read_block(output, name)
    except (FileError, FileNotFoundError):
        return False
    return True


def delete_block(output: str | Path, name: str) -> None:
    """Delete a block, if it is there."""
    path = joined(str(output), name)
    place_of(path).delete(path)


def _damaged(path: str) -> FileError:
    return FileError(
        f"{name_of(path)} is truncated, or was altered after it was written; delete it, and "
        "start the same run again: it computes what is missing"
    )


def _array(values: Any) -> Any:
    pyarrow = require("pyarrow", extra="distributed")
    array = pyarrow.array(values) if isinstance(values, np.ndarray) else values
    if isinstance(array, pyarrow.ChunkedArray):
        array = pyarrow.concat_arrays(array.chunks) if array.num_chunks else array.combine_chunks()
    if array.null_count:
        raise ValueError(f"expected a column without nulls, got {array.null_count} of them")
    return array


def _digest(table: Any, summary: bytes) -> bytes:
    """A digest of names, types and values, whichever way they are laid out."""
    digest = Digest()
    digest.add(summary)
    for name, column in zip(table.column_names, table.columns, strict=True):
        digest.add(f"{name}\n{column.type}\n{len(column)}\n".encode())
        for part in _values(column):
            digest.add(part)
    return digest.text().encode()


def _values(column: Any) -> list[np.ndarray[Any, Any]]:
    """The bytes of a column without nulls.

    Raises:
        ValueError: it is of lists, records or dictionaries, or has nulls.
    """
    pyarrow = require("pyarrow", extra="distributed")
    array = _array(column)
    array = getattr(array, "storage", array)
    types = pyarrow.types
    kind = array.type
    if types.is_boolean(kind):
        array, kind = array.cast(pyarrow.uint8()), pyarrow.uint8()
    if types.is_string(kind) or types.is_binary(kind):
        large = pyarrow.large_string() if types.is_string(kind) else pyarrow.large_binary()
        array, kind = array.cast(large), large
    count, offset = len(array), array.offset
    if not count:
        return []
    if types.is_large_string(kind) or types.is_large_binary(kind):
        _, ends, data = array.buffers()
        ends = np.frombuffer(ends, np.int64)[offset : offset + count + 1]
        held = np.frombuffer(data, np.uint8) if data is not None else np.empty(0, np.uint8)
        return [(ends - ends[0]).view(np.uint8), held[ends[0] : ends[-1]]]
    if not types.is_primitive(kind) and not types.is_fixed_size_binary(kind):
        raise ValueError(f"expected a column of numbers, text, bytes or times, got {kind}")
    width = kind.bit_width // 8
    return [np.frombuffer(array.buffers()[1], np.uint8)[offset * width : (offset + count) * width]]
