"""Rows of an open file of any format, by ranges."""

from typing import IO

from cossim_fast.files.errors import BadFileError, suffix_of
from cossim_fast.files.parquet_ranges import ParquetRows
from cossim_fast.files.ranges import RowFile, npy_rows
from cossim_fast.files.safetensors_ranges import SafetensorsRows

SUFFIXES = (".npy", ".safetensors", ".parquet")


def open_rows(file: IO[bytes], path: str, column: str | None) -> RowFile:
    """Read what a file says of its rows, and compare it with its size.

    Args:
        file: open for reading; seekable.
        path: what errors call it, and what says the format.
        column: of a ``.parquet``, or a tensor of a ``.safetensors``.

    Raises:
        BadFileError: there is no such column.
        DamagedError: it cannot be read; to be explained by `errors.explained`.
    """
    suffix = suffix_of(path)
    if suffix == ".npy":
        return npy_rows(file, path)
    if suffix == ".safetensors":
        return SafetensorsRows(file, path, column)
    if suffix == ".parquet":
        return ParquetRows(file, path, column)
    raise BadFileError(
        f"expected a file ending in {', '.join(SUFFIXES)}, got {path}; save it as one"
    )
