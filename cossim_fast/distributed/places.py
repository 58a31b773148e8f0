"""File systems by path: what is there and of which version; read by ranges, written as a whole."""

from __future__ import annotations

import glob
import os
import re
from pathlib import Path
from typing import Protocol

from cossim_fast._replacing import replacing
from cossim_fast.distributed.ranges import Ranges, count_written, counting
from cossim_fast.distributed.stores import joined, name_of, store_of
from cossim_fast.files import check_regular

__all__ = [
    "Place",
    "counting",
    "is_local",
    "joined",
    "name_of",
    "place_of",
    "put",
    "read_all",
]


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
    """The file system that a path is of.

    Raises:
        ValueError: it is this machine's, said as a URL.
    """
    if is_local(path):
        return _LOCAL
    if path.lower().startswith(("file:", "local:")):
        raise ValueError(f"expected a path of this machine without a protocol, got {path!r}")
    return store_of(path)


def put(path: str, content: bytes | memoryview) -> None:
    """Write a file as a whole, and count its bytes."""
    place_of(path).put(path, content)
    count_written(len(content))


def read_all(path: str) -> bytes:
    """Read a small file.

    Raises:
        FileNotFoundError: there is none.
    """
    with place_of(path).open(path) as file:
        return file.read()
