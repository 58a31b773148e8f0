"""Read a matrix of embeddings, or its labels, from a file; large ones stay on disk.

What a file claims is compared with what it holds before anything is read, and no code in it runs.
"""

from collections.abc import Callable
from pathlib import Path
from typing import Any

import numpy as np

from cossim_fast.files import gz, npy, npz, parquet, pt, safetensors
from cossim_fast.files.entries import choose
from cossim_fast.files.errors import (
    BadFileError,
    NotEnoughMemoryError,
    explained,
    is_lack_of_memory,
    suffix_of,
)
from cossim_fast.files.places import check_regular
from cossim_fast.files.shards import shards_of, together

__all__ = [
    "BadFileError",
    "NotEnoughMemoryError",
    "check_regular",
    "is_lack_of_memory",
    "load",
    "load_column",
]

_READERS = {
    ".npy": npy.entries,
    ".npy.gz": gz.entries,
    ".npz": npz.entries,
    ".pt": pt.entries,
    ".safetensors": safetensors.entries,
    ".parquet": parquet.entries,
}


def load(
    path: str | Path,
    *,
    key: str | None = None,
    ndim: int = 2,
    verify: bool = True,
    note: Callable[[str], None] | None = None,
) -> Any:
    """Return the array of ``ndim`` axes that a file holds.

    ``.npy``, ``.safetensors``, ``.pt`` and a ``.npz`` that is not compressed are mapped: what is
    not touched is not read. ``.npz``, ``.pt`` and ``.safetensors`` may hold several arrays:
    ``key`` names one, and is not needed where one alone has the right number of axes; the others
    are not read. ``.pt`` is read with ``weights_only=True``, so no code in it runs. ``.parquet``
    holds one column of lists, or one float a column, and is read into memory. There numbers that
    are no floats, and the index of a pandas frame, are no coordinates unless ``key`` names them.

    ``.npy.gz`` is unpacked into memory.

    ``.npz`` and ``.pt`` hold checksums, which are compared once, before the array is returned:
    all of it is read for that. So are those of the pages of a ``.parquet`` that has them.
    ``.npy``, ``.safetensors`` and ``.pt`` as torch wrote it before 1.6 have none: a number that
    was changed there, or the order of bytes, cannot be seen.

    Args:
        path: the file; or a folder, or a pattern such as ``"part-*.npy"``: rows of all its files,
            of one format, width and dtype, in memory, in the order of their names and numbers.
        key: the name of one array, or of a column; of a ``.parquet`` also several names or
            patterns, as ``"x,y"`` or ``"x*"``.
        ndim: how many axes the array is to have.
        verify: whether to compare checksums that need another pass over the file.
        note: is told which columns were left out, in one sentence.

    Raises:
        BadFileError: what was expected, what the file holds, and what to pass.
        NotEnoughMemoryError: the array has to be in memory, and is too large for it.
        OSError: the file may not be read, or the disk fails.
    """
    path = Path(path)
    if (shards := shards_of(path, _READERS)) is not None:
        if note is not None:
            note(f"{path} is {len(shards)} files, from {shards[0].name} to {shards[-1].name}")
        return together(shards, lambda one: load(one, key=key, ndim=ndim, verify=verify, note=note))
    reader = _READERS.get(suffix_of(path))
    if reader is None:
        raise BadFileError(f"expected a file ending in {', '.join(_READERS)}, got {path.name!r}")
    with explained(path):
        _check_readable(path)
        name, entry = choose(reader(path, key, verify), key, ndim, path)
    if note is not None and entry.left_out:
        note(
            f"left out of {path}, being no floats or an index: {entry.left_out}; --key names what "
            "is wanted"
        )
    with explained(path, f"{name or 'the array'} {entry.claim()}"):
        return entry.read()


def load_column(path: Path, name: str | None) -> np.ndarray[Any, Any]:
    """Read one column of whole numbers or strings from a ``.parquet``.

    Args:
        path: the file.
        name: of the column; not needed where there is one alone.

    Raises:
        BadFileError: what was expected, what the file holds, and what to pass.
        NotEnoughMemoryError: the column is too large for the memory.
        OSError: the file may not be read, or the disk fails.
    """
    with explained(path):
        _check_readable(path)
        return parquet.column(path, name)


def _check_readable(path: Path) -> None:
    """Look at a file before a library does, whose errors would not say why."""
    try:
        size = check_regular(path)
    except FileNotFoundError as error:
        raise BadFileError(f"expected a file at {path}, and there is none") from error
    if not size:
        raise BadFileError(f"{path} cannot be read as {suffix_of(path)}: it is empty")
    with path.open("rb"):
        pass
