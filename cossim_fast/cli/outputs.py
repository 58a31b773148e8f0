"""What the commands write: a table of named columns, whole or not at all."""

import json
import os
import sys
from collections.abc import Iterable, Iterator, Mapping, Sequence
from contextlib import suppress
from pathlib import Path
from typing import Annotated, Any, BinaryIO, TextIO

import numpy as np
import typer
from rich.table import Table

from cossim_fast import _replacing
from cossim_fast._escaped import escaped, escaped_json
from cossim_fast._extras import require
from cossim_fast._replacing import replacing
from cossim_fast.cli.terminal import console

# One array or sequence of texts a column, all of one length. It may lie on the disk: it is read by
# slices.
Columns = Mapping[str, "np.ndarray[Any, Any] | Numbers | Sequence[str]"]

Output = Annotated[
    Path | None,
    typer.Option("-o", "--output", help=".parquet, .npz or .jsonl.", show_default=False),
]
Show = Annotated[int, typer.Option(min=0, help="Lines of the table on a terminal.")]
# Lines that are turned into text together, and rows of a group in .parquet.
_LINES, _GROUP = 1 << 14, 1 << 20


class Texts(Sequence[str]):
    """The texts of rows (n,), looked up as they are needed."""

    def __init__(self, texts: Sequence[str], rows: np.ndarray[Any, Any]) -> None:
        self._texts, self._rows = texts, rows

    def __len__(self) -> int:
        return len(self._rows)

    def __getitem__(self, some: Any) -> Any:
        rows = self._rows[some]
        return [self._texts[row] for row in rows] if rows.ndim else self._texts[rows]


class Numbers:
    """The numbers of rows (n,), looked up as they are needed."""

    def __init__(self, numbers: np.ndarray[Any, Any], rows: np.ndarray[Any, Any]) -> None:
        self._numbers, self._rows = numbers, rows

    def __len__(self) -> int:
        return len(self._rows)

    def __getitem__(self, some: slice) -> np.ndarray[Any, Any]:
        found: np.ndarray[Any, Any] = self._numbers[self._rows[some]]
        return found

    def __array__(self, *_: Any, **__: Any) -> np.ndarray[Any, Any]:
        return self[:]


def looked_up(ids: np.ndarray[Any, Any], rows: np.ndarray[Any, Any]) -> Numbers | Texts:
    """The ids of rows, whole numbers or objects of str."""
    return Texts(ids, rows) if ids.dtype == object else Numbers(ids, rows)  # type: ignore[arg-type]


def check(output: Path | None, inputs: Iterable[Path | None]) -> None:
    """Look before the work begins whether its result can be written.

    Raises:
        ValueError: for another format, an input in its place, or this command's own stdout.
        OSError: for a place that cannot be written.
        ModuleNotFoundError: the format needs a package that is not there.
    """
    if output is None:
        return
    if _is_own(output):
        raise ValueError(
            f"expected a file, got {output}; leave -o out to write JSON lines to a pipe"
        )
    if output.suffix.lower() not in _WRITERS:
        raise ValueError(f"expected an output ending in {', '.join(_WRITERS)}, got {output.name!r}")
    check_place(output, inputs)
    if output.suffix.lower() == ".parquet":
        require("pyarrow.parquet", extra="cli")


def check_place(output: Path, inputs: Iterable[Path | None]) -> None:
    """Look whether a file of any format can be written there."""
    if _is_own(output):
        raise ValueError(f"expected a file of its own, and {output} is where this command prints")
    _replacing.check_place(output)
    for path in inputs:
        if path is not None and path.exists() and output.exists() and path.samefile(output):
            raise ValueError(f"expected an output beside the inputs, and {output} is one of them")


def _is_own(output: Path) -> bool:
    """Whether a path leads to this process's own stdout or stderr."""
    if str(output) == "-":
        return True
    for handle in (1, 2):
        with suppress(OSError):  # nothing is there, or the handle is closed
            if os.path.samestat(output.stat(), os.fstat(handle)):
                return True
    return False


def write(output: Path | None, columns: Columns, show: int) -> None:
    """Write columns to a file; without one as a table to a terminal, as JSON lines to a pipe."""
    if output is not None:
        with replacing(output) as file:
            _WRITERS[output.suffix.lower()](file, columns)
    elif sys.stdout.isatty():
        _print_table(columns, show, length(columns))
    else:
        _write_lines(sys.stdout, columns)
        sys.stdout.flush()


def stream(pieces: Iterable[Columns], show: int) -> int:
    """Write pieces of a table to a pipe as they come, or the first rows to a terminal.

    Returns how many rows there were.
    """
    head: list[Columns] = []
    count = 0
    terminal = sys.stdout.isatty()
    for some in pieces:
        if not terminal:
            _write_lines(sys.stdout, some)
            sys.stdout.flush()
        elif count < show:
            head.append({name: column[: show - count] for name, column in some.items()})
        count += length(some)
    if head:
        _print_table(
            {name: _joined([some[name] for some in head]) for name in head[0]}, show, count
        )
    return count


def _joined(columns: list[Any]) -> Any:
    if isinstance(columns[0], np.ndarray):
        return np.concatenate(columns)
    return [text for column in columns for text in column]


def _parquet(file: BinaryIO, columns: Columns) -> None:
    pyarrow = require("pyarrow", extra="cli")
    parquet = require("pyarrow.parquet", extra="cli")
    schema = pyarrow.schema(
        [
            (name, pyarrow.array(column[:1] if _numbers(column) else [""]).type)
            for name, column in columns.items()
        ]
    )
    with parquet.ParquetWriter(file, schema) as writer:
        for some in _slices(columns, _GROUP):
            try:
                writer.write_table(pyarrow.table(dict(some), schema=schema))
            except UnicodeEncodeError as error:
                raise ValueError(
                    f"expected texts of whole characters, got {error.object!r}: .parquet is in "
                    "UTF-8; write .jsonl or .npz"
                ) from error


def _numbers(column: np.ndarray[Any, Any] | Numbers | Sequence[str]) -> bool:
    return isinstance(column, Numbers) or (
        isinstance(column, np.ndarray) and column.dtype != object
    )


def _npz(file: BinaryIO, columns: Columns) -> None:
    """Arrays by their names; texts as UTF-8 one after another, and where each of them ends.

    An array of texts would give each the room of the longest, four bytes a character.
    """
    held: dict[str, Any] = {}
    for name, column in columns.items():
        if _numbers(column):
            held[name] = column
            continue
        # Halves of surrogate pairs, which ids may hold, stay what they are.
        coded = [str(text).encode("utf-8", "surrogatepass") for text in column[:]]
        held[f"{name}_utf8"] = np.frombuffer(b"".join(coded), np.uint8)
        held[f"{name}_ends"] = np.cumsum([len(text) for text in coded], dtype=np.int64)
    np.savez(file, **held)


def _jsonl(file: BinaryIO, columns: Columns) -> None:
    for lines in _lines(columns):
        file.write(lines.encode())


_WRITERS = {".parquet": _parquet, ".npz": _npz, ".jsonl": _jsonl}


def _write_lines(file: TextIO, columns: Columns) -> None:
    # A pipe with another code page gets the letters that it may not have escaped, as JSON does.
    ascii_alone = (file.encoding or "utf-8").lower().replace("-", "") != "utf8"
    for lines in _lines(columns, ascii_alone):
        file.write(lines)


def _lines(columns: Columns, ascii_alone: bool = False) -> Iterator[str]:
    """Yield JSON lines, many at a time."""
    names = (json.dumps(name).replace("%", "%%") for name in columns)
    line = "{" + ", ".join(f"{name}: %s" for name in names) + "}\n"
    for some in _slices(columns, _LINES):
        values = (_coded(column, ascii_alone) for column in some.values())
        yield "".join(line % row for row in zip(*values, strict=True))


def length(columns: Columns) -> int:
    """How many rows there are."""
    return len(next(iter(columns.values())))


def _slices(columns: Columns, size: int) -> Iterator[Columns]:
    """Cut columns into pieces of ``size`` rows."""
    for start in range(0, length(columns), size):
        yield {name: column[start : start + size] for name, column in columns.items()}


def _coded(column: Any, ascii_alone: bool) -> list[str]:
    """The values in JSON: a float32 by its own digits, NaN as null."""
    if not _numbers(column):
        return [escaped_json(json.dumps(text, ensure_ascii=ascii_alone)) for text in column]
    return ["null" if text == "nan" else text for text in map(str, column)]


def _print_table(columns: Columns, show: int, count: int) -> None:
    """Show the first of ``count`` rows."""
    shown = console()
    cells = {name: [_cell(value) for value in column[:show]] for name, column in columns.items()}
    # Numbers are never cut; texts share the rest of the line. Between columns stand two blanks.
    widths = {
        name: max(map(len, [name, *cells[name]]))
        for name, column in columns.items()
        if _numbers(column)
    }
    left = shown.width - sum(widths.values()) - 2 * (len(columns) - 1)
    texts = len(columns) - len(widths)
    table = Table(box=None, pad_edge=False, padding=(0, 2, 0, 0))
    for name in columns:
        if name in widths:
            table.add_column(name, justify="right", no_wrap=True, width=widths[name])
        else:
            table.add_column(name, no_wrap=True, width=max(left // texts, len(name)))
    for row in zip(*cells.values(), strict=True):
        table.add_row(*row)
    if count:
        shown.print(table)
    if count > show:
        shown.print(f"... {count - show} more; -o FILE keeps all")


def _cell(value: Any) -> str:
    if isinstance(value, np.floating):
        return "" if np.isnan(value) else f"{value:.6f}"
    return escaped(str(value))
