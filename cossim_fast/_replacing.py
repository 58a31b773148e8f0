"""Files that are written whole or not at all: beside their place first, then renamed into it."""

from __future__ import annotations

import errno
import hashlib
import os
import re
import secrets
import stat
import time
from collections.abc import Iterator
from contextlib import contextmanager, suppress
from pathlib import Path
from typing import BinaryIO

from cossim_fast._file_kinds import kind_of

try:
    import fcntl
except ImportError:  # Windows
    fcntl = None  # type: ignore[assignment]

# Where it does not, a file that is open or mapped can be neither replaced nor deleted.
_REPLACES_OPEN_FILES = os.name == "posix"
_NO_LINK = getattr(os, "O_NOFOLLOW", 0)
_BINARY = getattr(os, "O_BINARY", 0)
# Bytes of a name that its temporary file repeats, and no digest of it: file systems take 255.
_LONGEST = 200
# Seconds within which a writer has renamed what it has closed, where nothing else tells that it
# lives.
_RENAMED_WITHIN = 60.0


@contextmanager
def replacing(path: Path, *, mode: int = 0o666) -> Iterator[BinaryIO]:
    """Open a file that takes the place of ``path`` once all of it is on the disk.

    A link stays, and the file that it leads to is replaced. A file keeps its mode, and its owner
    and group where the system permits; access lists, other attributes and further hard links are
    not carried over. A new file has the mode that the umask leaves of ``mode``.

    Temporary files that killed writers of the same path have left are deleted. A writer holds a
    lock (flock) on its own, so that one whose lock can be taken has no writer: forked children
    hold it too. A folder on a network has to share such locks between hosts, as NFS and SMB do by
    default; mounted without (``nolock``, ``local_lock``), two hosts that write to one path at the
    same time may delete each other's temporary file, which is an error at the rename.

    Raises:
        OSError: see `check_place`; and what went wrong in writing, with the path. What was there
            before is there still, and nothing else is.
        PermissionError: Windows keeps a file that somebody has open, or mapped, in its place.
    """
    target, old = check_place(path)
    part = _sibling(target)
    try:
        _sweep(target)
        # One that will be as the umask has it may be so at once: nobody sees more of it than later.
        file, part = _create(part, target, mode if old is None else 0o600)
        with file:
            yield file
            file.flush()
            if old is not None and fcntl is not None:
                _take_after(file.fileno(), old)
            os.fsync(file.fileno())
            if not _is_at(part, file.fileno()):
                raise FileNotFoundError(
                    errno.ENOENT, "its temporary file was deleted while it was written", str(path)
                )
            if not _REPLACES_OPEN_FILES:
                file.close()
            _rename(part, target)
            sync_folder(target.parent)
    except BaseException as error:
        with suppress(OSError):
            part.unlink(missing_ok=True)
        if isinstance(error, OSError) and error.filename in (None, str(part), part):
            raise OSError(error.errno, error.strerror or str(error), str(path)) from error
        raise


def check_place(path: Path) -> tuple[Path, os.stat_result | None]:
    """Look, before any work begins, whether a file can be written or replaced there.

    Returns where links lead to, and what is there.

    Raises:
        FileNotFoundError: there is no such folder.
        IsADirectoryError: a folder stands there.
        PermissionError: the folder cannot be written to, or what is there is read-only.
        OSError: what is there is no regular file: a device, a pipe or a socket.
    """
    try:
        # The system refuses a link that somebody else has left in a folder for all (/tmp).
        old = path.stat()
    except (FileNotFoundError, NotADirectoryError):
        old = None
    target = Path(os.path.realpath(path)) if path.is_symlink() else path
    if old is not None:
        _refuse_irregular(old, path)
        # Whoever took away everybody's permission meant it, though root may write all the same.
        if not old.st_mode & 0o222 or not os.access(path, os.W_OK):
            raise PermissionError(
                errno.EACCES,
                "expected a file that can be written to, and it is read-only",
                str(path),
            )
    folder = target.parent
    if not folder.is_dir():
        raise FileNotFoundError(errno.ENOENT, "expected a folder, and there is none", str(folder))
    if not os.access(folder, os.W_OK | os.X_OK):
        raise PermissionError(errno.EACCES, "expected a folder that can be written to", str(folder))
    return target, old


def _refuse_irregular(found: os.stat_result, path: Path) -> None:
    if stat.S_ISDIR(found.st_mode):
        raise IsADirectoryError(errno.EISDIR, "expected a file, and it is a folder", str(path))
    if not stat.S_ISREG(found.st_mode):
        what = kind_of(found.st_mode)
        raise OSError(errno.EINVAL, f"expected a regular file, and it is {what}", str(path))


def _sibling(target: Path) -> Path:
    """A new name beside a file."""
    return target.with_name(f".{_stem(target)}.{os.getpid()}-{secrets.token_hex(8)}.part")


def _stem(target: Path) -> str:
    coded = os.fsencode(target.name)
    return target.name if len(coded) <= _LONGEST else hashlib.sha256(coded).hexdigest()


def _create(part: Path, target: Path, mode: int) -> tuple[BinaryIO, Path]:
    """Open a temporary file, and lock it: the file, and its name."""
    while True:
        file = os.fdopen(
            os.open(part, os.O_CREAT | os.O_EXCL | os.O_WRONLY | _NO_LINK | _BINARY, mode), "wb"
        )
        # Another writer may have found it before it was locked, and deleted it.
        if _lock(file.fileno()) is not False and _is_at(part, file.fileno()):
            return file, part
        file.close()
        part = _sibling(target)


def _lock(handle: int) -> bool | None:
    """Lock a file: whether nobody else has; None where there are no such locks."""
    if fcntl is None:
        return None
    try:
        fcntl.flock(handle, fcntl.LOCK_EX | fcntl.LOCK_NB)
    except BlockingIOError:
        return False
    except OSError:  # a file system without
        return None
    return True


def _is_at(path: Path, handle: int) -> bool:
    """Whether an open file still has that name."""
    if not _REPLACES_OPEN_FILES:  # nor deletes them
        return True
    try:
        return os.path.samestat(path.lstat(), os.fstat(handle))
    except FileNotFoundError:
        return False


def _sweep(target: Path) -> None:
    """Delete the temporary files of writers that are gone."""
    left = re.compile(rf"\.{re.escape(_stem(target))}\.\d+-[0-9a-f]{{16}}\.part", re.DOTALL)
    with suppress(OSError), os.scandir(target.parent) as entries:
        for entry in entries:
            if left.fullmatch(entry.name) and entry.is_file(follow_symlinks=False):
                with suppress(OSError):
                    _delete_if_left(target.with_name(entry.name))


def _delete_if_left(part: Path) -> None:
    if fcntl is None:  # Windows deletes no file that is open
        if time.time() - part.lstat().st_mtime > _RENAMED_WITHIN:
            part.unlink()
        return
    handle = os.open(part, os.O_RDWR | os.O_NONBLOCK | _NO_LINK)
    try:
        if _lock(handle) and _is_at(part, handle):
            part.unlink()
    finally:
        os.close(handle)


def _take_after(handle: int, old: os.stat_result) -> None:
    """Give a file the owner and the mode of another, as far as the system permits."""
    mode, new = old.st_mode & 0o777, os.fstat(handle)
    if new.st_uid != old.st_uid:
        with suppress(OSError):
            os.fchown(handle, old.st_uid, -1)
    if new.st_gid != old.st_gid:
        try:
            os.fchown(handle, -1, old.st_gid)
        except OSError:  # another group is let do no more than everybody
            mode = mode & ~0o070 | (mode & 0o007) << 3
    with suppress(OSError):  # a file system without modes
        os.fchmod(handle, mode)


def _rename(part: Path, target: Path) -> None:
    """Give a finished file its place."""
    with suppress(FileNotFoundError):
        _refuse_irregular(target.lstat(), target)
    try:
        os.replace(part, target)
    except PermissionError as error:
        if _REPLACES_OPEN_FILES or not target.exists():
            raise
        raise PermissionError(
            error.errno,
            "expected a file that can be replaced; close what has it open, such as an index that "
            "was loaded from it with mmap=True, or save elsewhere",
            str(target),
        ) from error


def sync_folder(folder: Path) -> None:
    """See to it that new names are on the disk: in POSIX they are once their folder is."""
    if os.name != "posix":
        return
    try:
        handle = os.open(folder, os.O_RDONLY)
    except PermissionError:  # it can be written to, and not be read
        return
    try:
        os.fsync(handle)
    finally:
        os.close(handle)
