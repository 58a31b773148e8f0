"""What is said about a file that cannot be read: damage, the system's reasons, memory."""

import errno
import re
from collections.abc import Iterator
from contextlib import contextmanager
from pathlib import Path


class BadFileError(ValueError):
    """A file that is missing, damaged, of an unknown kind, or without a fitting array."""


class NotEnoughMemoryError(MemoryError):
    """A file whose array has to be in memory, and is too large for it."""


class DamagedError(Exception):
    """Why a file cannot be read; it never leaves `explained`, which says which file."""


# The readers' own messages advise to load what is not safe.
_EXPECTED = {
    ".npy": "numbers saved by numpy.save",
    ".npy.gz": "numbers saved by numpy.save and packed by gzip",
    ".npz": "numbers saved by numpy.savez",
    ".pt": "a tensor or a dict of tensors saved by torch.save; nothing else in it is loaded",
    ".safetensors": "tensors saved by safetensors",
    ".parquet": "a table of numbers, or of one column of lists of one length",
    ".csv": "columns of numbers, or lists of them in one column, in UTF-8",
    ".tsv": "columns of numbers, or lists of them in one column, in UTF-8",
    ".jsonl": "a list of numbers a line, or an object with one, in UTF-8",
}

# torch has no class of its own for it, Windows other words than Linux. What oneDNN cannot create
# for lack of memory is machine code; for what it was asked it has another error, of descriptors.
_OF_MEMORY = re.compile(
    r"can't allocate memory|not enough memory|std::bad_alloc"
    r"|could not create a (primitive|memory object)(?! descriptor)"
)


def suffix_of(path: str | Path) -> str:
    """What the name of a file says about its format."""
    path = Path(path)
    packed = path.name.lower().endswith(".npy.gz")
    return ".npy.gz" if packed else path.suffix.lower()


@contextmanager
def explained(path: str | Path, wanted: str = "", *, kind: str | None = None) -> Iterator[None]:
    """Say of every error what it means for this file.

    Args:
        path: the file; text where it is on another file system.
        wanted: what is being read, and how large it is.
        kind: its format, where the name of the file does not say it.

    Raises:
        BadFileError: for whatever a library raises about what the file holds.
        NotEnoughMemoryError: memory ran out.
        OSError: as the system gave it, with the file's name.
    """
    kind = suffix_of(path) if kind is None else kind
    try:
        yield
    except (BadFileError, NotEnoughMemoryError, ModuleNotFoundError):
        raise
    except DamagedError as error:
        raise BadFileError(f"{path} cannot be read as {kind}: {error}") from error
    except Exception as error:  # every reader has errors of its own
        if is_lack_of_memory(error):
            detail = wanted or " ".join(str(error).split())
            raise NotEnoughMemoryError(
                f"there is not enough memory to read {path}" + (f": {detail}" if detail else "")
            ) from error
        # A damaged offset makes libraries seek where nothing is (EINVAL), or raise without number.
        if isinstance(error, OSError) and error.errno not in (None, errno.EINVAL):
            raise OSError(error.errno, error.strerror, str(path)) from error
        raise BadFileError(
            f"{path} cannot be read as {kind}: expected {_EXPECTED[kind]}"
        ) from error


def is_lack_of_memory(error: Exception) -> bool:
    """Whether memory ran out, by numpy, the system, torch or oneDNN."""
    if isinstance(error, OSError):
        return error.errno == errno.ENOMEM
    return isinstance(error, MemoryError) or (
        isinstance(error, RuntimeError) and _OF_MEMORY.search(str(error)) is not None
    )
