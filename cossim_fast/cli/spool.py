"""Pairs kept on the disk until all are found: with little memory, and safe from interruption."""

import os
from collections.abc import Mapping
from pathlib import Path
from typing import Any

import numpy as np

from cossim_fast.retrieval import FileError, Pairs, resumable
from cossim_fast.retrieval.resumable import Digest

# The first bytes of the file: no file that begins otherwise is overwritten.
_HEADER = b"cossim_fast pair"
_PIECE = 1 << 24  # bytes that are read at a time


class Spool:
    """A file of pairs beside a checkpoint, which records how many are valid, and their digest.

    A table cannot be continued by another process (a .parquet ends with the places of its parts);
    records of one size can: what follows the valid ones is cut off. Pairs are flushed to the disk
    before the checkpoint counts them, so the process may be killed at any moment.

    Args:
        checkpoint: of the join; locked by this process.
        metadata: what `metadata` returned when the checkpoint was written; empty without one.
        double: whether scores are float64.

    Attributes:
        path: the file of pairs.
        count: how many it holds.

    Raises:
        FileError: valid pairs are missing, or changed.
        ValueError: there is a file of another kind in its place.
    """

    def __init__(self, checkpoint: Path, metadata: Mapping[str, Any], *, double: bool) -> None:
        self.path = checkpoint.with_name(f"{checkpoint.name}.pairs")
        self._checkpoint = checkpoint
        self._kind = np.dtype([("i", "<i8"), ("j", "<i8"), ("score", "<f8" if double else "<f4")])
        self._digest, self.count = Digest(), 0
        there = resumable.is_there(self.path)
        if not metadata:
            if there:
                self._remove_old()
            self._file = resumable.create(self.path)
            self._file.write(_HEADER)
            return
        if not there:
            raise FileError(
                f"expected {self.path} beside {checkpoint}, and it is not there; delete "
                f"{checkpoint.name} to begin anew"
            )
        self._file = resumable.reopen(self.path)
        try:
            self._check(int(metadata["pairs"]), metadata["digest"])
        except BaseException:
            self._file.close()
            raise

    def _remove_old(self) -> None:
        """Delete the file of a process that was killed before its first checkpoint."""
        with resumable.reopen(self.path) as file:
            begins = file.read(len(_HEADER))
        if not _HEADER.startswith(begins):
            raise ValueError(
                f"expected {self.path} not to be there, or to hold pairs of cossim, and it holds "
                "something else; move it, or name another checkpoint"
            )
        self.path.unlink()

    def _check(self, count: int, digest: str) -> None:
        """Verify the digest of the valid pairs, and cut off what follows."""
        left = count * self._kind.itemsize
        size = len(_HEADER) + left
        there = os.fstat(self._file.fileno()).st_size
        anew = f"delete {self._checkpoint.name} to begin anew"
        if there < size:
            raise FileError(
                f"{self.path} is truncated: {there} bytes, and {size} expected for {count} pairs; "
                f"{anew}"
            )
        complete = self._file.read(len(_HEADER)) == _HEADER
        while complete and left:
            piece = self._file.read(min(left, _PIECE))
            complete = bool(piece)
            left -= len(piece)
            self._digest.add(piece)
        if not complete or self._digest.text() != digest:
            raise FileError(f"{self.path} is damaged: its pairs were changed; {anew}")
        self._file.truncate(size)
        self._file.seek(size)
        self.count = count

    def add(self, pairs: Pairs) -> None:
        """Append pairs; they are on the disk when this returns."""
        some = np.empty(len(pairs.i), self._kind)
        some["i"], some["j"], some["score"] = (np.asarray(column) for column in pairs)
        data = some.view(np.uint8).data
        self._file.write(data)
        self._file.flush()
        os.fsync(self._file.fileno())
        self._digest.add(data)
        self.count += len(some)

    def metadata(self) -> dict[str, Any]:
        """The number and digest of the pairs so far, for the checkpoint."""
        return {"pairs": self.count, "digest": self._digest.text()}

    def pairs(self) -> Pairs:
        """All pairs, memory-mapped."""
        held = (
            np.memmap(self._file, self._kind, "r", offset=len(_HEADER), shape=(self.count,))
            if self.count
            else np.empty(0, self._kind)
        )
        return Pairs(held["i"], held["j"], held["score"])

    def __enter__(self) -> "Spool":
        return self

    def __exit__(self, *raised: object) -> None:
        try:
            self._file.close()
        finally:
            if not self._checkpoint.exists():  # without it the file has no use
                self.path.unlink(missing_ok=True)
