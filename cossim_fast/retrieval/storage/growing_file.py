"""A safetensors file of rows to append to, which is consistent after a kill at any moment.

After the header there are three pages without rows, a tensor called ``journal``: two commit
records, written in turn, and a note of who may append. Rows are written first, then flushed to the
disk, then recorded. So the newest complete record describes rows that are on the disk. The header,
for other readers of safetensors, is written last, and is not read here.

The flush protects against a loss of power, after which a record could be on the disk without its
rows. It takes most of the time of a small `add` (4 ms on ext4 on a virtual disk). After a kill, the
system still writes everything that it was given. The record itself is not flushed: a loss of power
may take the last `add`, but a kill takes none that returned.
"""

from __future__ import annotations

import contextlib
import errno
import json
import os
import platform
import struct
import time
import weakref
import zlib
from dataclasses import dataclass, replace
from pathlib import Path
from typing import IO, Any

import numpy as np
import torch

from cossim_fast._replacing import sync_folder
from cossim_fast._threads import watch
from cossim_fast.retrieval.storage.tensor_file import NAMES, PAGE, FileError, header, naming, pieces
from cossim_fast.retrieval.storage.vectors import Vectors, converted, vectors_of_map

_KIND = "cossim_fast vectors"
# [bytes] Offsets of the commit records, of the note of who may append, and of the rows.
_RECORDS, _WRITER, _ROWS = PAGE, 3 * PAGE, 4 * PAGE
_RECORD = struct.Struct("<QQQ8sI")
_DTYPES = {name.encode(): dtype for dtype, name in NAMES.items() if dtype.is_floating_point}


@dataclass(frozen=True)
class _Commit:
    """A commit record."""

    turn: int  # counts commits
    count: int  # of rows
    d: int
    dtype: torch.dtype
    sum: int  # the crc32 of all rows

    def coded(self) -> bytes:
        """The bytes of the record."""
        name = NAMES[self.dtype].encode()
        raw = _RECORD.pack(self.turn, self.count, self.d, name, self.sum)
        return raw + zlib.crc32(raw).to_bytes(4, "little")

    @classmethod
    def read(cls, raw: bytes) -> _Commit | None:
        """The record with these bytes; None if they are incomplete."""
        coded, check = raw[: _RECORD.size], raw[_RECORD.size : _RECORD.size + 4]
        if len(check) < 4 or zlib.crc32(coded) != int.from_bytes(check, "little"):
            return None
        turn, count, d, name, total = _RECORD.unpack(coded)
        dtype = _DTYPES.get(name.rstrip(b"\0"))
        return None if dtype is None else cls(turn, count, d, dtype, total)


class VectorFile:
    """A file that one index in one process appends to.

    `create` and `reopen` return it. It keeps its descriptor open and locked; a forked process
    closes its copy, and appends nothing.

    Attributes:
        path: of the file.
        count: of rows that were committed.
    """

    def __init__(self, path: Path, file: IO[bytes], commit: _Commit) -> None:
        self.path, self._file, self._commit, self._before = path, file, commit, commit
        # A memory mapping keeps a copy of its descriptor, and with it the lock. So mappings use a
        # second descriptor, without a lock.
        self._unlocked = _open(path, "rb")
        self.close = weakref.finalize(self, _close, file, self._unlocked)  # lets others append
        if not os.path.samestat(os.fstat(file.fileno()), os.fstat(self._unlocked.fileno())):
            raise FileError(f"expected {path} to stay where it is, but it was replaced")
        self._size, self._unsure = os.fstat(file.fileno()).st_size, False
        self._process = os.getpid()
        watch(self)

    @classmethod
    def create(cls, path: Path, d: int, dtype: torch.dtype) -> VectorFile:
        """Create a file without rows.

        Raises:
            FileExistsError: the path exists.
        """
        path = path.parent.resolve() / path.name
        try:
            file = _open(path, "x+b")
        except FileExistsError as error:
            raise FileExistsError(
                f"expected path to name a new file, and {path} exists; delete it, or name another"
            ) from error
        try:
            _lock(file, path)
            made = cls(path, file, _Commit(0, 0, d, dtype, 0))
            with naming(path):
                made._write(_WRITER, _writer())
                made._write(_ROWS - 1, b"\0")
                made._write_commit(0, 0)
                sync_folder(path.parent)
            return made
        except BaseException:
            _discard(path, file)
            raise

    @classmethod
    def reopen(cls, path: Path) -> VectorFile:
        """Open an existing file; what was not committed is cut off.

        Raises:
            FileNotFoundError: there is no such file.
            BlockingIOError: an index has it open.
            FileError: it is truncated, damaged, or of another kind or version.
        """
        path = path.resolve()
        file = _open(path, "r+b")
        try:
            _lock(file, path)
            with naming(path):
                commit = _newest(file, path)
                if not commit.d and commit.count:
                    raise FileError(f"expected {path} to hold vectors, got rows without a number")
                made = cls(path, file, commit)
                if made._size < made._end():
                    raise FileError(
                        f"{path} is truncated: {made._size} bytes, at least {made._end()} expected"
                    )
                made._compare()
                made._cut(made._end())
                made._write(_WRITER, _writer())
                made._write_commit(commit.count, commit.sum)
            return made
        except BaseException:
            file.close()
            raise

    @property
    def count(self) -> int:
        """How many rows were committed."""
        return self._commit.count

    @property
    def d(self) -> int:
        """The width of a row."""
        return self._commit.d

    @property
    def dtype(self) -> torch.dtype:
        """The dtype of the rows."""
        return self._commit.dtype

    def writable(self) -> bool:
        """Whether this process may append."""
        return os.getpid() == self._process

    def append(self, rows: Any) -> None:
        """Write rows at the end, and commit them.

        Raises:
            FileError: there is another file at the path, or this one was changed meanwhile. Nothing
                is written then.
            OSError: they cannot be written; it names the path.
        """
        self._check_ours()
        with naming(self.path):
            if self._unsure:
                # An interrupted commit may have recorded rows that are now overwritten.
                self._write_commit(self.count, self._commit.sum)
            self._before, begin, total = self._commit, self._end(), self._commit.sum
            place = begin
            try:
                for block in converted(rows, self.dtype):
                    for piece in pieces(block):
                        self._write(place, piece)
                        place += len(piece)
                        total = zlib.crc32(piece, total)
                os.fsync(self._file.fileno())
            except BaseException:
                self._cut(begin)
                raise
            self._write_commit(self.count + len(rows), total)

    def take_back(self, count: int) -> None:
        """Undo an append whose rows are not used: keep the first ``count`` rows."""
        if self._unsure or self._commit.count != count:
            self._commit = replace(self._before, turn=self._commit.turn)
            with naming(self.path):
                self._write_commit(self._before.count, self._before.sum)
                self._cut(self._end())

    def rows(self, first: int) -> Vectors:
        """The rows from number ``first`` on, memory-mapped."""
        shape, size = (self.count - first, self.d), self.d * self.dtype.itemsize
        if not shape[0] * size:
            return Vectors(torch.empty(shape, dtype=self.dtype, device="cpu"), owned=True)
        begin, length = _ROWS + first * size, shape[0] * size
        mapping = np.memmap(self._unlocked, np.uint8, "r", begin, (length,))
        return vectors_of_map(mapping, shape, self.dtype)

    def first_of(self, rows: Vectors) -> int | None:
        """The number in the file of the first of these rows; None if they are not in it."""
        place = rows.place()
        if place is None or place[0] != self.path:
            return None
        return (place[1] - _ROWS) // (self.d * self.dtype.itemsize)

    def discard(self) -> None:
        """Delete the file, unless another has taken its place, and close it."""
        self._unlocked.close()
        _discard(self.path, self._file)

    def forked(self) -> None:
        """Close the descriptor in a forked child, where it would hold the lock, too."""
        self.close()

    def _end(self) -> int:
        return _ROWS + self.count * self.d * self.dtype.itemsize

    def _check_ours(self) -> None:
        """Refuse to write to a file that another process opened, or that was replaced meanwhile."""
        if not self.writable():
            raise FileError(
                f"expected process {self._process}, which opened {self.path}, to append to it, "
                f"got process {os.getpid()}"
            )
        mine = os.fstat(self._file.fileno())
        try:
            there = os.stat(self.path, follow_symlinks=False)
        except FileNotFoundError:
            what = "was deleted or moved"
        else:
            if not os.path.samestat(mine, there):
                what = "was replaced by another file"
            elif mine.st_size != self._size:
                what = f"was changed: {mine.st_size} bytes, {self._size} expected"
            else:
                return
        raise FileError(
            f"expected {self.path} to be the file that this index appends to, and it {what}; "
            "build an index with another path. This one can still be searched and saved"
        )

    def _write(self, place: int, piece: bytes | memoryview) -> None:
        self._file.seek(place)
        left = memoryview(piece)
        while left:
            left = left[self._file.write(left) :]
        self._size = max(self._size, place + len(piece))

    def _cut(self, end: int) -> None:
        # Windows does not truncate a mapped file: the next rows overwrite what follows.
        with contextlib.suppress(PermissionError):
            self._file.truncate(end)
        self._size = os.fstat(self._file.fileno()).st_size

    def _write_commit(self, count: int, total: int) -> None:
        """Record the number of rows; the other record stays valid until this one is complete."""
        commit = replace(self._commit, turn=self._commit.turn + 1, count=count, sum=total)
        self._unsure = True
        self._write(_RECORDS + commit.turn % 2 * PAGE, commit.coded())
        self._commit = commit
        self._unsure = False
        journal = self._read(_RECORDS, _ROWS)
        shapes = {
            "journal": (torch.uint8, (3, PAGE)),
            "rows": (commit.dtype, (commit.count, commit.d)),
        }
        sums = {"journal": zlib.crc32(journal), "rows": total}
        self._write(0, header(_KIND, shapes, {}, sums))

    def _read(self, begin: int, end: int) -> bytes:
        self._file.seek(begin)
        return self._file.read(end - begin)

    def _compare(self) -> None:
        """Verify the checksum of the rows."""
        total = 0
        for block in self.rows(0).blocks():
            for piece in pieces(block):
                total = zlib.crc32(piece, total)
        if total != self._commit.sum:
            raise FileError(f"{self.path} is damaged: the checksum of its rows does not fit")


def _open(path: Path, mode: str) -> IO[bytes]:
    """Open a file without a buffer; where the system supports that, not through a link."""
    more = getattr(os, "O_NOFOLLOW", 0)
    return open(path, mode, buffering=0, opener=lambda p, flags: os.open(p, flags | more, 0o666))


def _close(*files: IO[bytes]) -> None:
    for file in files:
        file.close()


def _lock(file: IO[bytes], path: Path) -> None:
    """Lock the file against other indexes, as long as it is open.

    Raises:
        BlockingIOError: another index has it open.
    """
    from filelock import lock_descriptor  # noqa: PLC0415 - takes 20 ms

    with naming(path):
        if lock_descriptor(file.fileno(), blocking=False):
            return
    holder = "another index"
    with contextlib.suppress(OSError, ValueError, KeyError, TypeError):
        file.seek(_WRITER)
        held = json.loads(file.read(PAGE).rstrip(b"\0"))
        where = "this process" if held["pid"] == os.getpid() else f"process {held['pid']}"
        holder = f"an index in {where} on {held['host']}, since {held['since']}"
    raise BlockingIOError(
        errno.EWOULDBLOCK,
        f"expected a file that no index has open, but {holder}, has it; delete that index, or "
        "name another file",
        str(path),
    )


def _writer() -> bytes:
    """The page that records who may append."""
    holder = {
        "pid": os.getpid(),
        "host": platform.node()[:256],
        "since": time.strftime("%Y-%m-%d %H:%M:%S"),
    }
    return json.dumps(holder).encode().ljust(PAGE, b"\0")


def _newest(file: IO[bytes], path: Path) -> _Commit:
    """The newest complete record.

    Raises:
        FileError: there is none.
    """
    file.seek(_RECORDS)
    raw = file.read(2 * PAGE)
    found = [_Commit.read(raw[begin : begin + PAGE]) for begin in (0, PAGE)]
    complete = [commit for commit in found if commit is not None]
    if not complete:
        raise FileError(
            f"expected {path} to be a {_KIND} file of version 2, which CosineIndex(path=...) "
            "writes, but it has no record of its rows"
        )
    return max(complete, key=lambda commit: commit.turn)


def _discard(path: Path, file: IO[bytes]) -> None:
    """Close a file and delete it, unless another has taken its place."""
    # Windows does not delete a mapped file.
    with contextlib.suppress(FileNotFoundError, PermissionError):
        ours = os.path.samestat(os.fstat(file.fileno()), os.stat(path, follow_symlinks=False))
        file.close()
        if ours:
            path.unlink()
    file.close()
