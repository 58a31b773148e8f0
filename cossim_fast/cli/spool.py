"""Pairs on the disk until all are found: memory stays small, and an interruption loses none."""

import os
from collections.abc import Mapping
from pathlib import Path
from types import TracebackType
from typing import Any

import numpy as np

from cossim_fast.retrieval import FileError, Pairs, resumable
from cossim_fast.retrieval.resumable import Digest

# What every such file begins with: nothing else is taken for one, and overwritten.
_HEADER = b"cossim_fast pair"
_PIECE = 1 << 24  # bytes that are read at a time


class Spool:
    """A file of pairs beside a checkpoint, which says how many of them count, and their digest.

    A table cannot be gone on with once a process is gone (the end of a .parquet says where all of
    it is), records of one size can: whatever stands behind those that count is cut off. What counts
    is on the disk before the checkpoint says so, so a process may be killed at any moment.

    Args:
        checkpoint: the file that says how far the join has come; this process alone has it.
        said: what it says of pairs, as `said` gave it; empty if there is none yet.
        double: whether scores are float64.

    Attributes:
        path: the file of pairs.
        count: how many it holds.

    Raises:
        FileError: pairs that count are missing, or changed.
        ValueError: there is another file in its place.
    """

    def __init__(self, checkpoint: Path, said: Mapping[str, Any], *, double: bool) -> None:
        self.path = checkpoint.with_name(f"{checkpoint.name}.pairs")
        self._checkpoint = checkpoint
        self._kind = np.dtype([("i", "<i8"), ("j", "<i8"), ("score", "<f8" if double else "<f4")])
        self._digest, self.count = Digest(), 0
        there = resumable.is_there(self.path)
        if not said:
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
            self._check(int(said["pairs"]), said["digest"])
        except BaseException:
            self._file.close()
            raise

    def _remove_old(self) -> None:
        """Delete what a process left that was killed before its checkpoint was written."""
        with resumable.reopen(self.path) as file:
            begins = file.read(len(_HEADER))
        if not _HEADER.startswith(begins):
            raise ValueError(
                f"expected {self.path} not to be there, or to hold pairs of cossim, and it holds "
                "something else; move it, or name another checkpoint"
            )
        self.path.unlink()

    def _check(self, count: int, digest: str) -> None:
        """Compare the pairs that count with what is known of them, and cut off the others."""
        left = count * self._kind.itemsize
        size = len(_HEADER) + left
        there = os.fstat(self._file.fileno()).st_size
        anew = f"delete {self._checkpoint.name} to begin anew"
        if there < size:
            raise FileError(
                f"{self.path} is truncated: {there} bytes, and {size} expected for {count} pairs; "
                f"{anew}"
            )
        whole = self._file.read(len(_HEADER)) == _HEADER
        while whole and left:
            piece = self._file.read(min(left, _PIECE))
            whole = bool(piece)
            left -= len(piece)
            self._digest.add(piece)
        if not whole or self._digest.text() != digest:
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

    def said(self) -> dict[str, Any]:
        """What the checkpoint is to say of the pairs so far."""
        return {"pairs": self.count, "digest": self._digest.text()}

    def pairs(self) -> Pairs:
        """All of them, read as they are touched."""
        held = (
            np.memmap(self._file, self._kind, "r", offset=len(_HEADER), shape=(self.count,))
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
