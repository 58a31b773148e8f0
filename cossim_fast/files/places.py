"""What is at a path: opening a pipe or a device may block or never end, so it is looked at."""

import stat
from pathlib import Path

from cossim_fast.files.errors import BadFileError

_KINDS = {
    stat.S_IFDIR: "a folder",
    stat.S_IFIFO: "a named pipe; write what comes out of it to a file first",
    stat.S_IFSOCK: "a socket",
    stat.S_IFCHR: "a device",
    stat.S_IFBLK: "a device",
}


def check_regular(path: Path) -> int:
    """Return the size in bytes of a regular file, without opening it.

    Raises:
        BadFileError: it is a folder, a named pipe, a device or a socket.
        OSError: there is none, or its folder may not be looked into.
    """
    found = path.stat()
    if not stat.S_ISREG(found.st_mode):
        kind = _KINDS.get(stat.S_IFMT(found.st_mode), "something else")
        raise BadFileError(f"expected a file at {path}, which is {kind}")
    return found.st_size
