"""`.jsonl`: a list of numbers a line, or an object with one of them; strictly numbers."""

import json
from collections.abc import Callable, Iterator
from pathlib import Path
from typing import Any, BinaryIO

import numpy as np

from cossim_fast.files.entries import Entry
from cossim_fast.files.errors import BadFileError, DamagedError
from cossim_fast.files.lists import column_of, is_vector, matrix_of, shown
from cossim_fast.files.texts import lines_of

Opener = Callable[[], BinaryIO]


def entries(path: Path, key: str | None, _verify: bool) -> dict[str, Entry]:
    """What each line holds, as the first says it."""
    return entries_of(lambda: path.open("rb"), key)


def entries_of(opener: Opener, key: str | None) -> dict[str, Entry]:
    """The same of a stream, which is opened for each time it is read."""
    _, first = next(_values(opener), ("", []))
    if not isinstance(first, dict):
        return {"": Entry((None, None), 0, lambda: matrix_of(_values(opener)))}
    names = [key] if key is not None and key in first else list(first)
    return {name: _entry(opener, name, first[name]) for name in names}


def _entry(opener: Opener, name: str, first: Any) -> Entry:
    if is_vector(first):
        return Entry((None, None), 0, lambda: matrix_of(_named(opener, name)))
    if isinstance(first, (list, dict)) or first is None:
        kind = "null" if first is None else "a list" if isinstance(first, list) else "an object"
        return Entry((), 0, lambda: None, f"is {kind} of no numbers alone")
    return Entry((None,), 0, lambda: column_of([value for _, value in _named(opener, name)]))


def column(opener: Opener, name: str | None, path: Path) -> np.ndarray[Any, Any]:
    """One value of each line, whole numbers or strings.

    Raises:
        BadFileError: lines are no objects with such a name.
    """
    _, first = next(_values(opener), ("", None))
    there = list(first) if isinstance(first, dict) else []
    chosen = name if name is not None else there[0] if len(there) == 1 else None
    if chosen is None or chosen not in there:
        wanted = "one name" if name is None else repr(name)
        raise BadFileError(f"expected {wanted} in {path}, whose lines hold {', '.join(there)}")
    values = []
    for place, value in _named(opener, chosen):
        if type(value) not in (int, str):
            raise DamagedError(f"{place}: expected a whole number or text, got {shown(value)}")
        values.append(value)
    return column_of(values)


def _named(opener: Opener, name: str) -> Iterator[tuple[str, Any]]:
    for place, value in _values(opener):
        if not isinstance(value, dict) or name not in value:
            raise DamagedError(f"{place}: expected an object with {name!r}, got {shown(value)}")
        yield f"{place}, {name!r}", value[name]


def _values(opener: Opener) -> Iterator[tuple[str, Any]]:
    """What each line holds, and where it stands."""
    with opener() as stream:
        for number, line in lines_of(stream):
            try:
                yield f"line {number}", json.loads(line)
            except (ValueError, RecursionError) as error:
                raise DamagedError(
                    f"line {number}: expected one value of JSON, got {shown(line.rstrip())}"
                ) from error
