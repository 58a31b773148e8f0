"""Read a matrix of embeddings, or its labels, from a file; large ones stay on disk.

What a file claims is compared with what it holds before anything is read, and no code in it runs.
"""

from collections.abc import Callable
from pathlib import Path
from typing import Any

import numpy as np

from cossim_fast.files import csv, gz, jsonl, npy, npz, parquet, pt, safetensors, stdin
from cossim_fast.files.entries import Entry, choose
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
    "TABLES",
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
    ".csv": csv.entries,
    ".tsv": csv.entries,
    ".jsonl": jsonl.entries,
}
# Those with columns that may be ids.
TABLES = (".parquet", ".csv", ".tsv", ".jsonl")


def load(
    path: str | Path,
    *,
    key: str | None = None,
    ndim: int = 2,
    format: str | None = None,
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

    ``.npy.gz`` is unpacked into memory. So are ``.csv`` and ``.tsv``, of columns of floats beside
    each other or of one column of lists ``[0.1, 0.2]``, and ``.jsonl``, of a list a line or of
    objects that hold one: as float64, and every number is checked. Their columns are named by the
    first line, or count from 0.

    ``.npz`` and ``.pt`` hold checksums, which are compared once, before the array is returned:
    all of it is read for that. So are those of the pages of a ``.parquet`` that has them.
    ``.npy``, ``.safetensors`` and ``.pt`` as torch wrote it before 1.6 have none: a number that
    was changed there, or the order of bytes, cannot be seen.

    Args:
        path: the file; or a folder, or a pattern such as ``"part-*.npy"``: rows of all its files,
            of one format, width and dtype, in memory, in the order of their names and numbers; or
            ``"-"``: standard input, a ``.npy``, ``.csv``, ``.tsv`` or ``.jsonl``.
        key: the name of one array, or of a column; of a ``.parquet`` also several names or
            patterns, as ``"x,y"`` or ``"x*"``.
        ndim: how many axes the array is to have.
        format: as ``"csv"``, of standard input, whose beginning tells it otherwise, and
            of files whose names do not.
        verify: whether to compare checksums that need another pass over the file.
        note: is told which columns were left out, in one sentence.

    Raises:
        BadFileError: what was expected, what the file holds, and what to pass.
        NotEnoughMemoryError: the array has to be in memory, and is too large for it.
        OSError: the file may not be read, or the disk fails.
    """
    path = Path(path)
    if str(path) == "-":
        return _standard_input(_format(format), key, ndim, note)
    if (shards := shards_of(path, _READERS, TABLES[1:])) is not None:
        if note is not None:
            note(f"{path} is {len(shards)} files, from {shards[0].name} to {shards[-1].name}")
        return together(shards, lambda one: load(one, key=key, ndim=ndim, verify=verify, note=note))
    kind = suffix_of(path)
    if kind not in _READERS and format is not None:
        kind = _format(format) or kind
    if kind not in _READERS:
        raise BadFileError(
            f"expected a file ending in {', '.join(_READERS)}, or its format, got {path.name!r}"
        )
    with explained(path, kind=kind):
        _check_readable(path)
        name, entry = choose(_READERS[kind](path, key, verify), key, ndim, path)
    return _chosen(path, kind, name, entry, note)


def _standard_input(
    kind: str | None, key: str | None, ndim: int, note: Callable[[str], None] | None
) -> Any:
    if kind not in (None, *stdin.FORMATS):
        raise BadFileError(f"expected {', '.join(stdin.FORMATS)} in standard input, got {kind}")
    path, raw = Path("standard input"), stdin.read()
    kind = kind or stdin.format_of(raw)
    with explained(path, kind=kind):
        name, entry = choose(stdin.entries(raw, kind, key), key, ndim, path)
    return _chosen(path, kind, name, entry, note)


def _chosen(
    path: Path, kind: str, name: str, entry: Entry, note: Callable[[str], None] | None
) -> Any:
    if note is not None and entry.left_out:
        note(
            f"left out of {path}, being no floats or an index: {entry.left_out}; --key names what "
            "is wanted"
        )
    with explained(path, f"{name or 'the array'} {entry.claim()}", kind=kind):
        return entry.read()


def _format(asked: str | None) -> str | None:
    """The format as the ends of names say it."""
    if asked is None:
        return None
    kind = f".{asked.lower().removeprefix('.')}"
    if kind not in _READERS:
        raise BadFileError(f"expected format to be one of {', '.join(_READERS)}, got {asked!r}")
    return kind


def load_column(path: Path, name: str | None) -> np.ndarray[Any, Any]:
    """Read one column of whole numbers or strings from a table: ``.parquet``, ``.csv``, ``.jsonl``.

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
        kind = suffix_of(path)
        if kind == ".parquet":
            return parquet.column(path, name)
        column = jsonl.column if kind == ".jsonl" else csv.column
        return column(lambda: path.open("rb"), name, path)


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
