"""Where the full vectors of an index lie: in memory, or in a file."""

from __future__ import annotations

import math
from collections.abc import Callable, Iterator
from pathlib import Path
from typing import Any

import numpy as np
import torch
from numpy.typing import NDArray
from torch import Tensor

from cossim_fast import _checks
from cossim_fast._score.exact import row_norms
from cossim_fast.retrieval.memory_map import file_map, release_pages, shared_map
from cossim_fast.retrieval.storage.block_sums import BlockSums, Summing, raw_bytes
from cossim_fast.retrieval.storage.corpus import ArrayCorpus, block_rows
from cossim_fast.retrieval.storage.tensor_file import FileError, pieces


class Vectors:
    """Full vectors (n, d): in memory, or in a memory-mapped file.

    Pickling writes vectors in memory; of those in a file, its name and the offset in it.

    Args:
        tensor: (n, d).
        mapping: the memory mapping that holds it, if its contents are those of the file.
        sums: checksums, verified as rows are read; None if unknown or not to be verified.
        owned: in memory that only this object uses.
        borrowed: in memory of the caller, to be copied before it is kept.
    """

    def __init__(
        self,
        tensor: Tensor,
        mapping: np.memmap[Any, Any] | None = None,
        sums: BlockSums | None = None,
        *,
        owned: bool = False,
        borrowed: bool = False,
    ) -> None:
        self.tensor, self.mapping, self.sums, self.borrowed = tensor, mapping, sums, borrowed
        self.owned = owned or borrowed

    def place(self) -> tuple[Path, int] | None:
        """The file and the offset in it, if all rows lie there contiguously."""
        mapping = self.mapping
        if mapping is None or mapping.filename is None or not self.tensor.is_contiguous():
            return None
        begin = self.tensor.data_ptr() - int(mapping.__array_interface__["data"][0])
        return Path(mapping.filename), int(mapping.offset) + begin

    def blocks(self) -> Iterator[Tensor]:
        """Yield all rows, a block at a time; pages of a file are released after each."""
        n, d = self.tensor.shape
        step = n if self.mapping is None else block_rows(d)
        for start in range(0, n, max(step, 1)):
            block = self.tensor[start : start + step]
            if self.sums is not None:
                self.sums.check(slice(start, start + step))
            yield block
            if self.mapping is not None:
                release_pages(self.mapping, block)

    def sample(self, count: int = 1024) -> Tensor:
        """Evenly spaced rows: at least so many if there are."""
        step = max(len(self.tensor) // count, 1)
        return torch.cat([rows[::step].clone() for rows in self.blocks()])

    def holding(self, tensor: Tensor) -> Vectors:
        """Other rows in memory."""
        return Vectors(tensor, owned=True)

    def release_pages(self) -> None:
        """Release the pages of a file that were read."""
        if self.mapping is not None:
            release_pages(self.mapping, self.tensor)

    def summing(self, summed: Summing, norms: Tensor) -> Iterator[Tensor]:
        """Yield all rows, a block at a time, and compute their checksums.

        Rows of a file are verified to be those that were coded, by their checksums if these are
        known, and else by their norms (n,).
        """
        first = 0
        for block in self.blocks():
            for piece in pieces(block):
                summed.add(piece)
            if self.mapping is not None and self.sums is None:
                self.compare(slice(first, first + len(block)), norms)
            first += len(block)
            yield block
        if self.sums is not None and not np.array_equal(self.sums.sums, summed.sums()):
            raise self._other()

    def compare(self, row: slice | Tensor, norms: Tensor) -> None:
        """Verify that some rows have the norms that they were coded with; ``norms`` are of all."""
        if self.sums is not None:
            self.sums.check(row)
        found = row_norms(self.tensor[row]).nan_to_num_(-1.0, -1.0, -1.0)
        coded = norms[row].nan_to_num(-1.0, -1.0, -1.0)
        if not torch.allclose(found, coded, rtol=2.0**-40, atol=0):
            raise self._other()

    def _other(self) -> FileError:
        place = self.place()
        return FileError(
            f"{place[0] if place else 'the file'} is damaged, or holds other vectors than "
            "those that were coded"
        )

    def know_sums(self, norms: Tensor) -> None:
        """Read rows of a file once to compute their checksums, unless these are known."""
        place = self.place()
        if place is not None and self.sums is None:
            summed = Summing(self.tensor.shape[1] * self.tensor.itemsize)
            for _ in self.summing(summed, norms):
                pass
            self.sums = BlockSums(
                raw_bytes(self.tensor), len(self.tensor), summed.sums(), place[0], compared=True
            )

    def __reduce__(self) -> tuple[Callable[..., Vectors], tuple[Any, ...]]:
        place = self.place()
        if place is None:
            return _in_memory, (self.tensor.contiguous(),)
        sums = None if self.sums is None else self.sums.sums
        return map_vectors, (*place, tuple(self.tensor.shape), self.tensor.dtype, sums)


def _in_memory(tensor: Tensor) -> Vectors:
    return Vectors(tensor, owned=True)


def map_vectors(
    path: Path,
    offset: int,
    shape: tuple[int, int],
    dtype: torch.dtype,
    sums: NDArray[np.uint32] | None,
) -> Vectors:
    """Map rows of a file; their checksums are verified as they are first read."""
    end = offset + math.prod(shape) * dtype.itemsize
    with path.open("rb") as file:
        size = file.seek(0, 2)
        if size < end:
            raise FileError(f"{path} is truncated: {size} bytes, at least {end} expected")
        mapping = np.memmap(file, np.uint8, "r", offset, (end - offset,))
    return vectors_of_map(mapping, shape, dtype, sums)


def vectors_of_map(
    mapping: np.memmap[Any, Any],
    shape: tuple[int, ...],
    dtype: torch.dtype,
    sums: NDArray[np.uint32] | None = None,
    *,
    compared: bool = False,
) -> Vectors:
    """Rows that fill a memory mapping; ``compared`` if their checksums were verified."""
    raw = _checks.as_tensor("rows", mapping)
    held = None
    if sums is not None:
        held = BlockSums(raw.numpy(), shape[0], sums, mapping.filename, compared=compared)
    return Vectors(raw.view(dtype).view(shape), mapping, held)


def converted(rows: Any, dtype: torch.dtype) -> Iterator[Tensor]:
    """Yield rows in another dtype, a block at a time.

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


def vectors_of(given: Any, dtype: torch.dtype) -> Vectors:
    """Rows of one dtype: of that dtype, a memory map stays mapped, and memory is borrowed."""
    rows = _checks.embedding_rows("embeddings", given)
    if rows.dtype == dtype and file_map(given) is None:
        return Vectors(rows, borrowed=True)
    if rows.dtype == dtype and rows.data_ptr() == given.ctypes.data:
        return Vectors(rows, shared_map(given))
    held, first = torch.empty(tuple(rows.shape), dtype=dtype, device="cpu"), 0
    for block in converted(given, dtype):
        held[first : first + len(block)] = block
        first += len(block)
    return Vectors(held, owned=True)
