"""What the commands write: a table of named columns, whole or not at all."""

import json
import os
import secrets
import sys
from collections.abc import Iterable, Iterator, Mapping, Sequence
from contextlib import contextmanager
from pathlib import Path
from typing import Annotated, Any, BinaryIO, TextIO

import numpy as np
import typer
from rich.console import Console
from rich.table import Table

from cossim_fast._extras import require

# One array or list of texts a column, all of one length.
Columns = Mapping[str, np.ndarray[Any, Any] | Sequence[str]]

Output = Annotated[
    Path | None,
    typer.Option("-o", "--output", help=".parquet, .npz or .jsonl.", show_default=False),
]
Show = Annotated[int, typer.Option(min=0, help="Lines of the table on a terminal.")]
# Lines that are turned into text together.
_LINES = 1 << 14


def check(output: Path | None, inputs: Iterable[Path | None]) -> None:
    """Look before the work begins whether its result can be written.

    Raises:
        ValueError: for another format, or an input in its place.
        FileNotFoundError, IsADirectoryError, PermissionError: for a place that cannot be written.
        ModuleNotFoundError: the format needs a package that is not there.
    """
    if output is None:
        return
    if output.suffix.lower() not in _WRITERS:
        raise ValueError(f"expected an output ending in {', '.join(_WRITERS)}, got {output.name!r}")
    check_place(output, inputs)
    if output.suffix.lower() == ".parquet":
        require("pyarrow.parquet", extra="cli")


def check_place(output: Path, inputs: Iterable[Path | None]) -> None:
    """Look whether a file of any format can be written there."""
    if output.is_dir():
        raise IsADirectoryError(21, "expected a file, and it is a folder", str(output))
    if not output.parent.is_dir():
        raise FileNotFoundError(2, "expected a folder, and there is none", str(output.parent))
    if not os.access(output.parent, os.W_OK):
        raise PermissionError(13, "expected a folder that can be written to", str(output.parent))
    for path in inputs:
        if path is not None and path.exists() and output.exists() and path.samefile(output):
            raise ValueError(f"expected an output beside the inputs, and {output} is one of them")


def write(output: Path | None, columns: Columns, show: int) -> None:
    """Write columns to a file; without one as a table to a terminal, as JSON lines to a pipe."""
    if output is not None:
        with replacing(output) as file:
            _WRITERS[output.suffix.lower()](file, columns)
    elif sys.stdout.isatty():
        _print_table(columns, show)
    else:
        _write_lines(sys.stdout, columns)
        sys.stdout.flush()


@contextmanager
def replacing(path: Path) -> Iterator[BinaryIO]:
    """Open a file under a temporary name, which takes its place once it is on the disk."""
    part = path.parent / f".{path.name}.{os.getpid()}-{secrets.token_hex(4)}.part"
    try:
        with part.open("xb") as file:
            yield file
            file.flush()
            os.fsync(file.fileno())
        part.replace(path)
    except OSError as error:
        part.unlink(missing_ok=True)
        raise OSError(error.errno, error.strerror or str(error), str(path)) from error
    except BaseException:
        part.unlink(missing_ok=True)
        raise


def _parquet(file: BinaryIO, columns: Columns) -> None:
    pyarrow = require("pyarrow", extra="cli")
    writer = require("pyarrow.parquet", extra="cli")
    writer.write_table(pyarrow.table(dict(columns)), file)


def _npz(file: BinaryIO, columns: Columns) -> None:
    held: dict[str, Any] = {name: np.asarray(column) for name, column in columns.items()}
    np.savez(file, **held)


def _jsonl(file: BinaryIO, columns: Columns) -> None:
    for lines in _lines(columns):
        file.write(lines.encode())


_WRITERS = {".parquet": _parquet, ".npz": _npz, ".jsonl": _jsonl}


def _write_lines(file: TextIO, columns: Columns) -> None:
    for lines in _lines(columns):
        file.write(lines)


def _lines(columns: Columns) -> Iterator[str]:
    """Yield JSON lines, many at a time."""
    count = len(next(iter(columns.values())))
    for start in range(0, count, _LINES):
        some = [_plain(column[start : start + _LINES]) for column in columns.values()]
        rows = (dict(zip(columns, row, strict=True)) for row in zip(*some, strict=True))
        yield "".join(json.dumps(row, ensure_ascii=False) + "\n" for row in rows)


def _plain(column: np.ndarray[Any, Any] | Sequence[str]) -> list[Any]:
    """The values as JSON knows them: a float32 by its own digits, NaN as null."""
    if not isinstance(column, np.ndarray):
        return list(column)
    if column.dtype.kind == "f":
        return [None if np.isnan(value) else float(str(value)) for value in column]
    return list(column.tolist())


def _print_table(columns: Columns, show: int) -> None:
    console = Console(highlight=False, markup=False)
    cells = {name: [_cell(value) for value in column[:show]] for name, column in columns.items()}
    # Numbers are never cut; texts share the rest of the line. Between columns stand two blanks.
    widths = {
        name: max(map(len, [name, *cells[name]]))
        for name, column in columns.items()
        if isinstance(column, np.ndarray)
    }
    left = console.width - sum(widths.values()) - 2 * (len(columns) - 1)
    texts = len(columns) - len(widths)
    table = Table(box=None, pad_edge=False, padding=(0, 2, 0, 0))
    for name in columns:
        if name in widths:
            table.add_column(name, justify="right", no_wrap=True, width=widths[name])
        else:
            table.add_column(name, no_wrap=True, width=max(left // texts, len(name)))
    for row in zip(*cells.values(), strict=True):
        table.add_row(*row)
    count = len(next(iter(columns.values())))
    if count:
        console.print(table)
    if count > show:
        console.print(f"... {count - show} more; -o FILE keeps all")


def _cell(value: Any) -> str:
    if isinstance(value, np.floating):
        return "" if np.isnan(value) else f"{value:.6f}"
    return str(value)
