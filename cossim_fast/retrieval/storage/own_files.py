"""Files that a run keeps beside its result: one run alone has them, and opens nothing planted."""

from __future__ import annotations

import contextlib
import json
import os
import socket
import stat
from datetime import datetime
from pathlib import Path
from types import TracebackType
from typing import TYPE_CHECKING, BinaryIO

if TYPE_CHECKING:
    from filelock import BaseFileLock

# Its owner alone reads it; a umask takes from that what it takes from any file.
MODE = 0o600
_FLAGS = os.O_RDWR | getattr(os, "O_NOFOLLOW", 0) | getattr(os, "O_BINARY", 0)
_KINDS = {
    stat.S_IFLNK: "a symbolic link",
    stat.S_IFDIR: "a folder",
    stat.S_IFIFO: "a pipe",
    stat.S_IFSOCK: "a socket",
    stat.S_IFCHR: "a device",
    stat.S_IFBLK: "a device",
}


class InUseError(ValueError):
    """Another process, or another call in this one, works with the same checkpoint or output."""


def is_there(path: Path) -> bool:
    """Whether there is a file; a link is not followed.

    Raises:
        ValueError: there is something that is no regular file.
    """
    try:
        kind = stat.S_IFMT(os.lstat(path).st_mode)
    except FileNotFoundError:
        return False
    if kind != stat.S_IFREG:
        raise ValueError(
            f"expected {path} to be a regular file or not to be there, got "
            f"{_KINDS.get(kind, 'something else')}; remove it, or name another place"
        )
    return True


def create(path: Path) -> BinaryIO:
    """Make a file that is not there, to be read and written."""
    return os.fdopen(os.open(path, _FLAGS | os.O_CREAT | os.O_EXCL, MODE), "w+b")


def reopen(path: Path) -> BinaryIO:
    """Open a file that is there, to be read and written."""
    is_there(path)
    return os.fdopen(os.open(path, _FLAGS), "r+b")


class Lock:
    """What keeps a path to one run, until it is released or its process has ended.

    It lies on a hidden file beside the path, and says there who holds it. The system takes it from
    a process that is killed, so what such a process leaves behind keeps nobody out. Taking and
    releasing it takes 0.3 ms.

    Args:
        path: what is to be kept to this run; it need not be there.

    Raises:
        InUseError: another run holds it; who, and since when.
        FileNotFoundError: there is no such folder.
        ValueError: something that is no regular file is in the lock's place.
    """

    def __init__(self, path: Path) -> None:
        from filelock import FileLock, Timeout  # noqa: PLC0415 - takes longer than a small search

        self._place = path.with_name(f".{path.name}.lock")
        if not path.parent.is_dir():
            raise FileNotFoundError(2, "expected a folder, and there is none", str(path.parent))
        is_there(self._place)
        # Each is a lock of its own, so that two calls in one process keep each other out too; it
        # belongs to no thread, since an iterator may be finished by another than began it.
        self._lock: BaseFileLock = FileLock(self._place, mode=MODE, thread_local=False)
        try:
            self._lock.acquire(blocking=False)
        except Timeout:
            raise InUseError(
                f"expected {path} for this run alone, and {_holder(self._place)}; wait for its "
                "end, or name another place"
            ) from None
        # On a file system without locks filelock makes it one of another class, which is held as
        # long as its file is there, with contents of its own.
        self._native = isinstance(self._lock, FileLock)
        if self._native:
            self._say_who()

    def _say_who(self) -> None:
        said = {
            "pid": os.getpid(),
            "host": socket.gethostname(),
            "since": datetime.now().astimezone().isoformat(" ", "seconds"),
        }
        # The first byte is what Windows locks, for readers too.
        with reopen(self._place) as file:
            file.seek(1)
            file.write(json.dumps(said).encode())
            file.truncate()

    def release(self) -> None:
        """Let others have the path. In a forked child the lock is its parent's, and stays so."""
        if not self._lock.is_locked:
            return
        if self._native and os.name == "posix":
            # Still held: filelock gives up a file that has lost its name by the time it is locked,
            # and looks for it anew. On Windows it removes the file itself.
            with contextlib.suppress(OSError):
                self._place.unlink(missing_ok=True)
        self._lock.release()

    def __enter__(self) -> Lock:
        return self

    def __exit__(
        self,
        kind: type[BaseException] | None,
        error: BaseException | None,
        trace: TracebackType | None,
    ) -> None:
        self.release()


def _holder(place: Path) -> str:
    """Who has a lock, as far as its file says."""
    try:
        with reopen(place) as file:
            file.seek(1)
            said = json.loads(file.read(1 << 12))
        pid, host, since = int(said["pid"]), str(said["host"]), str(said["since"])
    except (OSError, ValueError, KeyError, TypeError):
        return "another run has it"
    if not (host + since).isprintable():
        return f"process {pid} has it"
    here = pid == os.getpid() and host == socket.gethostname()
    who = "another call in this process" if here else f"process {pid} on {host}"
    return f"{who} has had it since {since}"
