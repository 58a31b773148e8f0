"""The arrays that a file says it holds: names and shapes first, one of them read."""

import fnmatch
from collections.abc import Callable, Mapping, Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import numpy as np
import torch

from cossim_fast.files.errors import BadFileError

# Names that an error lists.
_LISTED = 20


@dataclass(frozen=True)
class Entry:
    """One array of a file, not read yet."""

    # None, or an axis that is None: not known before the array is read, or, with a refusal, at all.
    shape: tuple[int | None, ...] | None
    nbytes: int
    read: Callable[[], Any]
    # Why it cannot be read, and what to do: the end of a sentence about the array.
    refusal: str = ""
    # What stands beside it in the file and is no part of it, where that could have been meant.
    left_out: str = ""

    def claim(self) -> str:
        """Shape and size in words."""
        return f"{shown(self.shape)}, {size_text(self.nbytes)}"

    def may_have(self, ndim: int) -> bool:
        """Whether it is, or could be, an array of ``ndim`` axes."""
        if self.shape is None:
            return True
        return len(self.shape) == ndim and not (self.refusal and None in self.shape)


def choose(
    entries: Mapping[str, Entry], key: str | None, ndim: int, path: Path
) -> tuple[str, Entry]:
    """Return the array that was named, or the only one of ``ndim`` axes.

    Raises:
        BadFileError: what was expected, what the file holds, and what to pass.
    """
    if key is not None:
        if key not in entries and ndim == 2 and (rows := fnmatch.filter(entries, key)):
            return key, _stacked({name: entries[name] for name in rows}, path)
        if key not in entries:
            raise BadFileError(f"expected {key!r} in {path}, which holds {_listed(entries)}")
        name = key
    else:
        fitting = [name for name, entry in entries.items() if entry.may_have(ndim)]
        if len(fitting) != 1:
            fix = "; name one with its key" if len(fitting) > 1 else ""
            if not fix and ndim == 2 and _one_length(entries):
                fix = "; --key '*' takes vectors of one length as rows"
            raise BadFileError(
                f"expected one array of {ndim} axes in {path}, which holds {_listed(entries)}{fix}"
            )
        name = fitting[0]
    if entries[name].refusal:
        raise BadFileError(f"{name or 'the array'} of {path} {entries[name].refusal}")
    return name, entries[name]


def _one_length(entries: Mapping[str, Entry]) -> bool:
    shapes = {entry.shape for entry in entries.values()}
    return len(shapes) == 1 and len(shapes.pop() or ()) == 1


def _stacked(entries: Mapping[str, Entry], path: Path) -> Entry:
    """The vectors of several names as the rows of one matrix, in their order in the file.

    Raises:
        BadFileError: they are no vectors of one length, or one of them cannot be read.
    """
    for name, entry in entries.items():
        if entry.refusal:
            raise BadFileError(f"{name} of {path} {entry.refusal}")
    if not _one_length(entries):
        raise BadFileError(
            f"expected vectors of one length in {path}, to be rows, got {_listed(entries)}"
        )
    ((width,),) = {entry.shape for entry in entries.values() if entry.shape}

    def read() -> Any:
        rows = [entry.read() for entry in entries.values()]
        return torch.stack(rows) if isinstance(rows[0], torch.Tensor) else np.stack(rows)

    return Entry((len(entries), width), sum(entry.nbytes for entry in entries.values()), read)


def refusal_of(dtype: np.dtype[Any], ndim: int) -> str:
    """Why an array of numpy's cannot be used, or nothing; labels and ids may be text."""
    if dtype.hasobject:
        return "cannot be read: it holds Python objects; save numbers, as x.astype('float32')"
    if dtype.fields is not None:
        return (
            f"cannot be read: its items are records of {', '.join(dtype.fields)}; save "
            "numpy.lib.recfunctions.structured_to_unstructured(x)"
        )
    if dtype.kind == "V":
        return (
            f"cannot be read: its items are {dtype.itemsize} bytes without a meaning, as "
            "numpy.save makes of bfloat16; save x.astype('float32')"
        )
    if dtype.kind == "c":
        return f"is of {dtype}, and real numbers are expected; save x.view(x.real.dtype)"
    if not dtype.itemsize:
        return f"is of {dtype}, whose items have no width"
    if dtype.kind not in "biuf" and ndim > 1:
        return f"is of {dtype}, and numbers are expected"
    if dtype.kind == "u" and dtype.itemsize > 1 and ndim > 1:
        return f"is of {dtype}, in which torch computes little; save x.astype('float32')"
    if dtype.kind == "f" and dtype.itemsize > 8:
        return f"is of {dtype}, which torch has not; save x.astype('float64')"
    return ""


def size_text(nbytes: int) -> str:
    """A number of bytes as people say it."""
    if nbytes < 1000:
        return f"{nbytes} bytes"
    unit = min(len(str(nbytes)) - 1, 20) // 3
    return f"{nbytes / 1000**unit:.3g} {('kB', 'MB', 'GB', 'TB', 'PB', 'EB')[unit - 1]}"


def shown(shape: tuple[int | None, ...] | None) -> str:
    """A shape as numpy shows it, with ``?`` for what varies."""
    return "of unknown shape" if shape is None else str(shape).replace("None", "?")


def _listed(entries: Mapping[str, Entry]) -> str:
    words = [
        f"{name or 'array'}{'' if entry.shape == () else f' {shown(entry.shape)}'}"
        + (entry.refusal and f", which {entry.refusal}")
        for name, entry in list(entries.items())[:_LISTED]
    ]
    return listed_names(words, len(entries)) or "no array"


def named_columns(key: str, columns: list[str]) -> list[str]:
    """The columns that a key names, in the order of the key, then of the file."""
    if key in columns:
        return [key]
    found: dict[str, None] = {}
    for pattern in key.split(","):
        some = fnmatch.filter(columns, pattern.strip())
        if not some:
            return []
        found |= dict.fromkeys(some)
    return list(found)


def listed_names(names: Sequence[str], count: int | None = None) -> str:
    """The first of ``count`` names, and how many more there are."""
    count = len(names) if count is None else count
    more = count - min(count, _LISTED)
    return ", ".join([*names[:_LISTED], *([f"and {more} more"] if more else [])])
