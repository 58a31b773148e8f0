"""Files of embeddings read by ranges of rows, on any file system: what a task of many reads.

A file is open, and read a few megabytes at a time; nothing is mapped.
"""

import io
from collections.abc import Iterator
from dataclasses import dataclass
from typing import IO, Any, Protocol

import numpy as np
import torch
from torch import Tensor

from cossim_fast.files import npy
from cossim_fast.files.entries import refusal_of
from cossim_fast.files.errors import BadFileError, DamagedError

# [bytes] Most of a file that is in memory at a time, and of rows that lie side by side in it.
AT_ONCE, PIECE = 64 << 20, 16 << 20
# What rows may be of; `cossim_fast.topk` takes these.
DTYPES = ("float16", "bfloat16", "float32", "float64", "int8", "uint8")


@dataclass(frozen=True)
class Group:
    """Rows that are read together at best, and how many bytes of the file they take."""

    rows: int
    nbytes: int


class RowFile(Protocol):
    """Rows (rows, width) of an open file."""

    width: int
    dtype: str
    groups: tuple[Group, ...]

    def rows(self, start: int, stop: int) -> Iterator[Tensor]:
        """Read consecutive rows (n_i, width), at most `PIECE` bytes of them at a time, or one.

        Raises:
            DamagedError: they are not what the file said of them; with the number of the row.
        """

    def check_column(self, name: str) -> str:
        """The type of another column.

        Raises:
            BadFileError: there is none.
            DamagedError: the file says that it has nulls; which row.
        """

    def values(self, name: str, start: int, stop: int) -> Iterator[Any]:
        """Another column of those rows, arrays of arrow's.

        Raises:
            BadFileError: there is none.
            DamagedError: a row has no value.
        """


class PlainRows:
    """Rows that lie one after another, as they are in memory."""

    def __init__(
        self,
        path: str,
        file: IO[bytes],
        begin: int,
        count: int,
        width: int,
        stored: np.dtype[Any],
        dtype: str,
    ) -> None:
        self._path, self._file, self._begin, self._stored = path, file, begin, stored
        self.count, self.width, self.dtype = count, width, dtype
        self._row = width * stored.itemsize
        self.groups: tuple[Group, ...] = (Group(count, count * self._row),)

    def rows(self, start: int, stop: int) -> Iterator[Tensor]:
        """As `RowFile`."""
        step = max(PIECE // max(self._row, 1), 1)
        for low in range(start, stop, step):
            count = min(step, stop - low)
            found = self._numbers(self._begin, self._stored, low * self.width, count * self.width)
            rows = torch.from_numpy(found).reshape(count, self.width)
            yield rows.view(torch.bfloat16) if self.dtype == "bfloat16" else rows

    def _numbers(
        self, begin: int, stored: np.dtype[Any], skipped: int, count: int
    ) -> np.ndarray[Any, Any]:
        """Read numbers of an array that begins at a place of the file.

        Raises:
            DamagedError: the file ends before.
        """
        self._file.seek(begin + skipped * stored.itemsize)
        raw = self._file.read(count * stored.itemsize)
        if len(raw) < count * stored.itemsize:
            raise DamagedError(f"it ends before byte {self._file.tell() + 1}, and more is expected")
        # A copy: the bytes may not be written to, and are of the file's order.
        return np.frombuffer(raw, stored).astype(stored.newbyteorder("="))

    def check_column(self, name: str) -> str:
        """As `RowFile`."""
        raise BadFileError(
            f"expected a column {name!r} in {self._path}, which holds one array and no columns; "
            "save both as .parquet, or leave the column out and use the numbers of the rows"
        )

    def values(self, name: str, start: int, stop: int) -> Iterator[Any]:
        """As `RowFile`."""
        self.check_column(name)
        yield from ()


def npy_rows(file: IO[bytes], path: str) -> RowFile:
    """The rows of a ``.npy``.

    Raises:
        DamagedError: it holds no matrix of `DTYPES`, or is not as long as it says.
    """
    header = npy.read_header(file)
    header.check_size(file.seek(0, io.SEEK_END))
    shape, dtype = header.shape, header.dtype
    if len(shape) != 2:
        raise DamagedError(f"expected rows (n, d), got an array of {shape}")
    if refusal := refusal_of(dtype, 2):
        raise DamagedError(f"the array {refusal}")
    if dtype.name not in DTYPES:
        raise DamagedError(f"it is of {dtype}, and {', '.join(DTYPES)} are expected")
    if header.fortran and min(shape) > 1:
        raise DamagedError(
            "its columns lie one after another, and rows are read; save np.ascontiguousarray(x)"
        )
    return PlainRows(path, file, header.length, shape[0], shape[1], dtype, dtype.name)
