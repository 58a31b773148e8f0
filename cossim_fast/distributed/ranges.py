"""Files that are read by ranges, and how many bytes of them are."""

from __future__ import annotations

import errno
import io
from collections.abc import Callable, Iterator
from contextlib import contextmanager
from contextvars import ContextVar
from dataclasses import dataclass


@dataclass
class Traffic:
    """Bytes of files that were read and written within `counting`."""

    read: int = 0
    written: int = 0


_counted: ContextVar[Traffic | None] = ContextVar("cossim_fast_traffic", default=None)


def count_written(nbytes: int) -> None:
    """Add to what was written."""
    if (traffic := _counted.get()) is not None:
        traffic.written += nbytes


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
        try:
            found = self._read_at(self._at, count) if count else b""
        except OSError as error:
            if error.errno is not None:
                raise
            # Clients of object stores give no number, as readers do that find a file damaged.
            raise OSError(errno.EIO, str(error), self.path) from error
        self._at += len(found)
        if self._traffic is not None:
            self._traffic.read += len(found)
        return found

    def close(self) -> None:
        """Close it."""
        if not self.closed:
            self._close()
        super().close()
