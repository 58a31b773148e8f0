"""Pairs on the disk until all are found: memory stays small, and an interruption loses none."""

import os
from pathlib import Path
from types import TracebackType
from typing import BinaryIO

import numpy as np

from cossim_fast.retrieval import Pairs


class Spool:
    """A file of pairs beside a checkpoint, which says up to which row they are complete.

    A table cannot be gone on with once a process is gone (the end of a .parquet says where all of
    it is), records of one size can: whatever stands behind those of finished rows is cut off.

    Args:
        checkpoint: the file that says how far the join has come.
        done: how many rows it says are finished.
        double: whether scores are float64.

    Attributes:
        path: the file of pairs.
        count: how many it holds.

    Raises:
        ValueError: rows are finished, and their pairs are not there.
    """

    def __init__(self, checkpoint: Path, done: int, *, double: bool) -> None:
        self.path = checkpoint.with_name(f"{checkpoint.name}.pairs")
        self._checkpoint = checkpoint
        self._kind = np.dtype([("i", "<i8"), ("j", "<i8"), ("score", "<f8" if double else "<f4")])
        if not done:
            self.path.write_bytes(b"")
        elif not self.path.exists():
            raise ValueError(
                f"expected {self.path} beside {checkpoint}, and it is not there; delete "
                f"{checkpoint.name} to begin anew"
            )
        self.count = self.path.stat().st_size // self._kind.itemsize
        # Sorted by i: those of rows that are not finished stand last.
        self.count = int(np.searchsorted(self.pairs().i, done))
        os.truncate(self.path, self.count * self._kind.itemsize)
        self._file: BinaryIO = self.path.open("ab")

    def add(self, pairs: Pairs) -> None:
        """Append pairs; they are on the disk when this returns."""
        some = np.empty(len(pairs.i), self._kind)
        some["i"], some["j"], some["score"] = (np.asarray(column) for column in pairs)
        self._file.write(some.data)
        self._file.flush()
        os.fsync(self._file.fileno())
        self.count += len(some)

    def pairs(self) -> Pairs:
        """All of them, read as they are touched."""
        held = (
            np.memmap(self.path, self._kind, "r", shape=(self.count,))
            if self.count
            else np.empty(0, self._kind)
        )
        return Pairs(held["i"], held["j"], held["score"])

    def __enter__(self) -> "Spool":
        return self

    def __exit__(
        self,
        kind: type[BaseException] | None,
        error: BaseException | None,
        trace: TracebackType | None,
    ) -> None:
        try:
            self._file.close()
        finally:
            if not self._checkpoint.exists():  # nothing says any more what the file is good for
                self.path.unlink(missing_ok=True)
