"""Where the full vectors of an index lie: in memory, or in a file."""

from __future__ import annotations

import contextlib
import math
import os
import zlib
from collections.abc import Callable, Iterator
from pathlib import Path
from typing import Any

import numpy as np
import torch
from torch import Tensor

from cossim_fast import _checks
from cossim_fast.retrieval.files import (
    PAGE,
    Blocks,
    FileError,
    TensorFile,
    header,
    pieces,
    write_tensors,
)
from cossim_fast.retrieval.sources import ArrayCorpus, block_rows, file_map, let_go, shared_map

_KIND = "cossim_fast vectors"


class Rows:
    """Full vectors (n, d): in memory, or in a file that is read where they are needed.

    Pickling writes those in memory, and of those in a file its name and the place in it.

    Args:
        tensor: (n, d).
        whole: the map that it lies in, if what the map holds is what the file holds.
        owned: in memory, and nobody else's.
        borrowed: in memory of somebody else's, of which who keeps them makes his own.
    """

    def __init__(
        self,
        tensor: Tensor,
        whole: np.memmap[Any, Any] | None = None,
        *,
        owned: bool = False,
        borrowed: bool = False,
    ) -> None:
        self.tensor, self.whole, self.borrowed = tensor, whole, borrowed
        self.owned = owned or borrowed

    def place(self) -> tuple[Path, int] | None:
        """The file and the first byte in it, if all bytes of the rows lie there in a row."""
        whole = self.whole
        if whole is None or whole.filename is None or not self.tensor.is_contiguous():
            return None
        begin = self.tensor.data_ptr() - int(whole.__array_interface__["data"][0])
        return Path(whole.filename), int(whole.offset) + begin

    def blocks(self) -> Iterator[Tensor]:
        """Yield all rows by blocks; those of a file take no memory once they were looked at."""
        n, d = self.tensor.shape
        step = n if self.whole is None else block_rows(d)
        for start in range(0, n, max(step, 1)):
            block = self.tensor[start : start + step]
            yield block
            if self.whole is not None:
                let_go(self.whole, block)

    def sample(self, count: int = 1024) -> Tensor:
        """Rows spread over all of them, at least so many if there are."""
        step = max(len(self.tensor) // count, 1)
        return torch.cat([rows[::step].clone() for rows in self.blocks()])

    def let_go(self) -> None:
        """Give back the memory of pages of a file that were read."""
        if self.whole is not None:
            let_go(self.whole, self.tensor)

    def __reduce__(self) -> tuple[Callable[..., Rows], tuple[Any, ...]]:
        place = self.place()
        if place is None:
            return _in_memory, (self.tensor.contiguous(),)
        return map_rows, (*place, tuple(self.tensor.shape), self.tensor.dtype)


def _in_memory(tensor: Tensor) -> Rows:
    return Rows(tensor, owned=True)


def map_rows(path: Path, offset: int, shape: tuple[int, int], dtype: torch.dtype) -> Rows:
    """Map rows of a file."""
    end = offset + math.prod(shape) * dtype.itemsize
    if path.stat().st_size < end:
        raise FileError(
            f"{path} is truncated: {path.stat().st_size} bytes, at least {end} expected"
        )
    return rows_of_map(np.memmap(path, np.uint8, "r", offset, (end - offset,)), shape, dtype)


def rows_of_map(whole: np.memmap[Any, Any], shape: tuple[int, ...], dtype: torch.dtype) -> Rows:
    """Rows that are all the bytes of a map."""
    tensor = _checks.as_tensor("rows", whole).view(dtype).view(shape)
    return Rows(tensor, whole)


def converted(rows: Any, dtype: torch.dtype) -> Iterator[Tensor]:
    """Yield rows by blocks in another dtype.

    Raises:
        ValueError: at a number that it cannot hold.
    """
    first = 0
    for block in ArrayCorpus(rows).blocks():
        held = block.to(dtype)
        if held.dtype != block.dtype:
            _checks.still_finite(block, held, first)
        first += len(block)
        yield held


def rows_of(given: Any, dtype: torch.dtype) -> Rows:
    """Rows of one dtype; a memory map that has it stays where it is, and memory is borrowed."""
    rows = _checks.embedding_rows("embeddings", given)
    if rows.dtype == dtype and file_map(given) is None:
        return Rows(rows, borrowed=True)
    if rows.dtype == dtype and rows.data_ptr() == given.ctypes.data:
        return Rows(rows, shared_map(given))
    held, first = torch.empty(tuple(rows.shape), dtype=dtype), 0
    for block in converted(given, dtype):
        held[first : first + len(block)] = block
        first += len(block)
    return Rows(held, owned=True)


class RowFile:
    """A safetensors file of rows that grows at its end.

    Only the process that made it writes to it: a copy of an index in a process that was forked or
    that unpickled it would write over the rows of the other.

    Raises:
        FileExistsError: there is a file.
    """

    def __init__(self, path: Path, rows: Any, d: int, dtype: torch.dtype) -> None:
        path = path.resolve()
        if path.exists():
            raise FileExistsError(
                f"expected path to name a new file, and {path} exists; delete it, or name another"
            )
        self.path, self.d, self.dtype = path, d, dtype
        self.count, self._process = len(rows), os.getpid()
        stream = Blocks((self.count, d), dtype, converted(rows, dtype))
        write_tensors(path, _KIND, {"rows": stream}, {})
        with TensorFile(path, _KIND) as file:
            self._sum = file.sums["rows"]

    def writable(self) -> bool:
        """Whether this process may append."""
        return os.getpid() == self._process

    def append(self, rows: Any) -> None:
        """Write rows at the end."""
        size, total = self.d * self.dtype.itemsize, self._sum
        count = self.count + len(rows)
        with self.path.open("r+b") as file:
            file.seek(PAGE + self.count * size)
            try:
                for block in converted(rows, self.dtype):
                    for piece in pieces(block):
                        file.write(piece)
                        total = zlib.crc32(piece, total)
            except BaseException:
                # Windows does not cut a file that is mapped: what stands behind its rows is
                # written over by those that come next.
                with contextlib.suppress(PermissionError):
                    file.truncate(PAGE + self.count * size)
                raise
            shape = {"rows": (self.dtype, (count, self.d))}
            file.seek(0)
            file.write(header(_KIND, shape, {}, {"rows": total}))
        self.count, self._sum = count, total

    def rows(self, first: int) -> Rows:
        """The rows from one on."""
        size = self.d * self.dtype.itemsize
        return map_rows(self.path, PAGE + first * size, (self.count - first, self.d), self.dtype)

    def first_of(self, rows: Rows) -> int | None:
        """Which row of the file is the first of these, if they lie in it."""
        place = rows.place()
        if place is None or place[0] != self.path:
            return None
        return (place[1] - PAGE) // (self.d * self.dtype.itemsize)
