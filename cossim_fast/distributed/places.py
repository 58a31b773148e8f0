"""File systems by path: what is there and of which version; read by ranges, written as a whole."""

from __future__ import annotations

import glob
import io
import os
import re
from collections.abc import Callable, Iterator
from contextlib import contextmanager
from contextvars import ContextVar
from dataclasses import dataclass
from pathlib import Path
from typing import Protocol

from cossim_fast._replacing import replacing
from cossim_fast.files import check_regular


@dataclass
class Traffic:
    """Bytes of files that were read and written within `counting`."""

    read: int = 0
    written: int = 0


_counted: ContextVar[Traffic | None] = ContextVar("cossim_fast_traffic", default=None)


@contextmanager
def counting() -> Iterator[Traffic]:
    """Count the bytes that this thread's calls read and write meanwhile."""
    traffic = Traffic()
    token = _counted.set(traffic)
    try:
        yield traffic
    finally:
        _counted.reset(token)


class Ranges(io.RawIOBase):
    """A file open for reading by ranges; libraries take it as any file.

    Args:
        path: what errors call it.
        size: in bytes.
        version: of what is open.
        read_at: returns so many bytes from an offset on; fewer at the end of the file alone.
        close: called once.
    """

    def __init__(
        self,
        path: str,
        size: int,
        version: str,
        read_at: Callable[[int, int], bytes],
        close: Callable[[], None],
    ) -> None:
        self.path, self.size, self.version = path, size, version
        self._read_at, self._close, self._at = read_at, close, 0
        self._traffic = _counted.get()

    def readable(self) -> bool:
        """It is."""
        return True

    def seekable(self) -> bool:
        """It is."""
        return True

    def tell(self) -> int:
        """Where the next byte is read."""
        return self._at

    def seek(self, offset: int, whence: int = io.SEEK_SET) -> int:
        """Say where the next byte is read."""
        start = {io.SEEK_SET: 0, io.SEEK_CUR: self._at, io.SEEK_END: self.size}[whence]
        if start + offset < 0:
            raise ValueError(f"expected a place in {self.path}, got {start + offset}")
        self._at = start + offset
        return self._at

    def read(self, count: int | None = -1) -> bytes:
        """Read so many bytes, or all that are left."""
        left = max(self.size - self._at, 0)
        count = left if count is None or count < 0 else min(count, left)
        found = self._read_at(self._at, count) if count else b""
        self._at += len(found)
        if self._traffic is not None:
            self._traffic.read += len(found)
        return found

    def close(self) -> None:
        """Close it."""
        if not self.closed:
            self._close()
        super().close()


class Place(Protocol):
    """A file system; paths are those that the user gave, or begin with them."""

    def files(self, path: str) -> list[str] | None:
        """The files of a folder, or those that match a pattern; None where it is neither."""

    def open(self, path: str) -> Ranges:
        """Open a file for reading.

        Raises:
            FileNotFoundError: there is none.
        """

    def put(self, path: str, content: bytes | memoryview) -> None:
        """Write a file: it is there as a whole, on the disk, or as it was before."""

    def exists(self, path: str) -> bool:
        """Whether there is a file."""

    def delete(self, path: str) -> None:
        """Delete a file, if there is one."""


class _Local:
    """The file system of this machine, or one that is mounted as such."""

    def files(self, path: str) -> list[str] | None:
        if os.path.isdir(path):
            found = [os.path.join(path, name) for name in os.listdir(path)]
        elif glob.has_magic(path) and not os.path.exists(path):
            found = glob.glob(path)
        else:
            return None
        return [name for name in found if os.path.isfile(name)]

    def open(self, path: str) -> Ranges:
        check_regular(Path(path))
        file = open(path, "rb", buffering=0)  # noqa: SIM115 - closed by what is returned
        status = os.fstat(file.fileno())

        def read_at(offset: int, count: int) -> bytes:
            file.seek(offset)
            parts = []
            # A call of the system may return fewer bytes than are there.
            while count and (part := file.read(count)):
                parts.append(part)
                count -= len(part)
            return parts[0] if len(parts) == 1 else b"".join(parts)

        return Ranges(path, status.st_size, str(status.st_mtime_ns), read_at, file.close)

    def put(self, path: str, content: bytes | memoryview) -> None:
        place = Path(path)
        place.parent.mkdir(parents=True, exist_ok=True)
        with replacing(place) as file:
            file.write(content)

    def exists(self, path: str) -> bool:
        return os.path.isfile(path)

    def delete(self, path: str) -> None:
        Path(path).unlink(missing_ok=True)


# A letter and a colon are a drive of Windows.
_SCHEME = re.compile(r"([a-z][a-z0-9+.-]+)://", re.IGNORECASE)
_LOCAL = _Local()


def is_local(path: str) -> bool:
    """Whether a path is of this machine's file system."""
    return _SCHEME.match(path) is None


def place_of(path: str) -> Place:
    """The file system that a path is of."""
    return _LOCAL


def put(path: str, content: bytes | memoryview) -> None:
    """Write a file as a whole, and count its bytes."""
    place_of(path).put(path, content)
    if (traffic := _counted.get()) is not None:
        traffic.written += len(content)


def read_all(path: str) -> bytes:
    """Read a small file.

    Raises:
        FileNotFoundError: there is none.
    """
    with place_of(path).open(path) as file:
        return file.read()


def joined(folder: str, name: str) -> str:
    """The path of a file in a folder."""
    return f"{folder.rstrip('/')}/{name}"
