"""`.csv` and `.tsv`: columns of numbers beside each other, or lists in one column; read strictly.

Which columns are coordinates is decided as in a table of `.parquet`: those of floats, or one of
lists. A text has no types, so the first lines say what each column holds, and the rest is compared
with it.
"""

import csv
import io
import itertools
import json
import operator
import re
from array import array
from collections.abc import Callable, Iterator, Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import Any, BinaryIO

import numpy as np

from cossim_fast.files.entries import Entry, listed_names, named_columns
from cossim_fast.files.errors import BadFileError, DamagedError
from cossim_fast.files.lists import column_of, matrix_of, numbered, shown

Opener = Callable[[], BinaryIO]

# Lines that say what the columns hold.
_HEAD = 1000
_WHOLE = re.compile(r"[+-]?[0-9]+")
# float() also takes underscores between digits, and digits of other scripts.
_NUMBER = re.compile(r"[+-]?([0-9]+\.?[0-9]*|\.[0-9]+)([eE][+-]?[0-9]+)?|[+-]?(nan|inf|infinity)",
                     re.IGNORECASE)  # fmt: skip
# What only a number that is not whole has.
_NOT_WHOLE = set(".eEnN")


def entries(path: Path, key: str | None, _verify: bool) -> dict[str, Entry]:
    """What may be meant, by the names of the first line; columns without names count from 0."""
    return entries_of(lambda: path.open("rb"), key)


def entries_of(opener: Opener, key: str | None) -> dict[str, Entry]:
    """The same of a stream, which is opened for each time it is read."""
    table = _Table(opener)
    names, kinds = table.names, table.kinds
    if key is not None and (named := named_columns(key, names)):
        places = [names.index(name) for name in named]
        if len(places) == 1:
            return {key: table.entry(places[0])}
        return {key: table.numbers(places)}
    # The index of a pandas frame is a column without a name.
    there = [place for place, name in enumerate(names) if name]
    lists = [place for place in there if kinds[place] == "lists"]
    floats = [place for place in there if kinds[place] == "floats"]
    found = {names[place]: table.entry(place) for place in there if place not in floats}
    if lists:
        return found
    found |= {names[place]: table.entry(place) for place in floats}
    rest = [
        f"{name or 'a column without a name'} ({kinds[place]})"
        for place, name in enumerate(names)
        if place not in floats
    ]
    if floats:
        found[""] = table.numbers(floats, left_out=listed_names(rest))
    elif len(there) > 1:
        found[""] = Entry(
            (None, len(there)),
            0,
            lambda: None,
            f"has no columns of floats, but {listed_names(rest)}; name with a key those that are "
            "coordinates, as 'x,y' or 'x*'",
        )
    return found


def column(opener: Opener, name: str | None, path: Path) -> np.ndarray[Any, Any]:
    """One column, of whole numbers or strings.

    Raises:
        BadFileError: there is none of that name.
    """
    table = _Table(opener)
    chosen = name if name is not None else table.names[0] if len(table.names) == 1 else None
    if chosen is None or chosen not in table.names:
        wanted = "one column" if name is None else repr(name)
        raise BadFileError(f"expected {wanted} in {path}, which holds {listed_names(table.names)}")
    return table.labels(table.names.index(chosen))


@dataclass(frozen=True)
class _Layout:
    """What the first lines say."""

    delimiter: str
    header: bool
    names: list[str]
    kinds: list[str]  # floats, whole numbers, lists, or text


class _Table:
    """A text of columns.

    Raises:
        DamagedError: lines are of different lengths, or two columns have one name.
    """

    def __init__(self, opener: Opener) -> None:
        self._open = opener
        self._layout = self._looked_at()
        self.names, self.kinds = self._layout.names, self._layout.kinds

    def _looked_at(self) -> _Layout:
        with self._open() as stream:
            text = io.TextIOWrapper(stream, "utf-8-sig", newline="")
            try:
                line = text.readline()
            except UnicodeDecodeError as error:
                raise DamagedError(f"it is no UTF-8: {error}") from error
            finally:
                text.detach()
        delimiter = next((each for each in "\t;" if each in line), ",")
        head = [row for _, row in itertools.islice(self._records(delimiter), _HEAD + 1)]
        if not head:
            raise DamagedError("it holds no lines")
        header = _is_header(head)
        names = head[0] if header else [str(place) for place in range(len(head[0]))]
        if header and len(set(names)) < len(names):
            raise DamagedError("two of its columns have one name")
        columns = list(zip(*head[header:], strict=True)) or [()] * len(names)
        return _Layout(delimiter, header, names, [_kind(values) for values in columns])

    def _records(self, delimiter: str) -> Iterator[tuple[int, list[str]]]:
        """The fields of each line, with its number."""
        with self._open() as stream:
            text = io.TextIOWrapper(stream, "utf-8-sig", newline="")
            reader = csv.reader(text, delimiter=delimiter, strict=True)
            width = empty = 0
            try:
                for row in reader:
                    if not row:
                        empty = empty or reader.line_num
                        continue
                    if empty:
                        raise DamagedError(f"line {empty} is empty")
                    width = width or len(row)
                    if len(row) != width:
                        raise DamagedError(
                            f"line {reader.line_num} has {len(row)} columns, and those before it "
                            f"have {width}"
                        )
                    yield reader.line_num, row
            except csv.Error as error:
                raise DamagedError(f"line {reader.line_num}: {error}") from error
            except UnicodeDecodeError as error:
                raise DamagedError(
                    f"line {reader.line_num + 1} or later is no UTF-8: {error}"
                ) from error
            finally:
                text.detach()

    def _rows(self) -> Iterator[tuple[int, list[str]]]:
        return itertools.islice(
            self._records(self._layout.delimiter), int(self._layout.header), None
        )

    def entry(self, place: int) -> Entry:
        """One column: a matrix if it holds lists, else labels."""
        if self.kinds[place] != "lists":
            return Entry((None,), 0, lambda: self.labels(place))
        return Entry((None, None), 0, lambda: matrix_of(self._lists(place)))

    def _lists(self, place: int) -> Iterator[tuple[str, Any]]:
        for line, row in self._rows():
            where = f"line {line}, column {self.names[place]!r}"
            try:
                yield where, json.loads(row[place])
            except (ValueError, RecursionError) as error:
                raise DamagedError(
                    f"{where}: expected a list of numbers as [0.1, 0.2], got {shown(row[place])}"
                ) from error

    def labels(self, place: int) -> np.ndarray[Any, Any]:
        """One column of whole numbers, of floats, or of text."""
        if self.kinds[place] == "floats":
            return self._read([place], [])[:, 0]
        texts = [row[place] for _, row in self._rows()]
        # A whole number with zeros before it is the name of something.
        if texts and all(_WHOLE.fullmatch(text) and text == str(int(text)) for text in texts):
            return column_of([int(text) for text in texts])
        return column_of(texts)

    def numbers(self, places: list[int], left_out: str = "") -> Entry:
        """Columns beside each other, (n, d)."""
        watched = [
            place
            for place, kind in enumerate(self.kinds)
            if left_out and kind == "whole numbers" and self.names[place]
        ]
        return Entry((None, len(places)), 0, lambda: self._read(places, watched), left_out=left_out)

    def _read(self, places: list[int], watched: list[int]) -> np.ndarray[Any, Any]:
        flat = array("d")
        every = places == list(range(len(self.names)))
        for line, row in self._rows():
            values = row if every else [row[place] for place in places]
            text = "".join(values)
            try:
                if "_" in text or not text.isascii():
                    raise ValueError
                flat.extend(map(float, values))
            except ValueError:
                raise self._no_number(line, row, places) from None
            if watched and not _NOT_WHOLE.isdisjoint("".join([row[place] for place in watched])):
                self._check_whole(line, row, watched)
        return np.frombuffer(flat, np.float64).reshape(-1, len(places))

    def _no_number(self, line: int, row: Sequence[str], places: list[int]) -> DamagedError:
        place = next(place for place in places if not _NUMBER.fullmatch(row[place].strip()))
        got = shown(row[place]) if row[place] else "nothing"
        return DamagedError(
            f"line {line}, column {self.names[place]!r}: expected a number, got {got}"
        )

    def _check_whole(self, line: int, row: Sequence[str], watched: list[int]) -> None:
        """What the first lines took for no coordinate may be one after all."""
        for place in watched:
            text = row[place].strip()
            if _NUMBER.fullmatch(text) and not _WHOLE.fullmatch(text):
                raise DamagedError(
                    f"line {line}, column {self.names[place]!r}: expected a whole number, as in "
                    f"the first {_HEAD} lines, got {text}; name the coordinates with a key"
                )


def _is_header(head: Sequence[Sequence[str]]) -> bool:
    """Whether a first line is names: where a number would be, as the line after it shows.

    Names that count from 0, as those of a frame made of an array, look like numbers themselves.
    """
    first = [bool(_NUMBER.fullmatch(text.strip())) for text in head[0]]
    skipped = int(not first[0])
    # Of two columns, 0 and 1 may as well be a vector, before others of 0 and 1.
    if numbered(head[0][skipped:]) and (
        len(first) - skipped > 2
        or not any(_WHOLE.fullmatch(text.strip()) for row in head[1:2] for text in row[skipped:])
    ):
        return True
    if len(head) == 1:
        return not any(first)
    after = [bool(_NUMBER.fullmatch(text.strip())) for text in head[1]]
    lists = [text.startswith("[") for text in head[0]], [text.startswith("[") for text in head[1]]
    return any(map(operator.lt, first, after)) or any(map(operator.lt, *lists))


def _kind(values: Sequence[str]) -> str:
    """What a column holds: floats also where some of them are missing or no numbers."""
    texts = [text.strip() for text in values]
    if texts and all(text.startswith("[") for text in texts):
        return "lists"
    whole = sum(1 for text in texts if _WHOLE.fullmatch(text))
    numbers = sum(1 for text in texts if _NUMBER.fullmatch(text))
    if texts and whole == len(texts):
        return "whole numbers"
    return "floats" if numbers > whole and 2 * numbers >= len(texts) else "text"
