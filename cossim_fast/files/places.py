"""What is at a path: opening a pipe or a device may block or never end, so it is looked at."""

import stat
from pathlib import Path

from cossim_fast._file_kinds import kind_of
from cossim_fast.files.errors import BadFileError


def check_regular(path: Path) -> int:
    """Return the size in bytes of a regular file, without opening it.

    Raises:
        BadFileError: it is a folder, a named pipe, a device or a socket.
        OSError: there is none, or its folder may not be looked into.
    """
    found = path.stat()
    if not stat.S_ISREG(found.st_mode):
        what = kind_of(found.st_mode)
        if stat.S_ISFIFO(found.st_mode):
            what = "a named pipe; write what comes out of it to a file first, or pipe it into -"
        raise BadFileError(f"expected a file at {path}, which is {what}")
    return found.st_size
