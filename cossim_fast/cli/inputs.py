"""What the commands read: embeddings, and texts to be shown beside row numbers."""

from pathlib import Path
from typing import Annotated, Any

import numpy as np
import torch
import typer

from cossim_fast import _checks, files
from cossim_fast.cli.terminal import note

_FORMATS = (
    "(n, d) in .npy, .npz, .pt, .safetensors, .parquet, .csv or .jsonl; or a folder, or "
    "'part-*.npy'; or - for standard input"
)
# Numbers that are looked at together.
_CHUNK = 1 << 22

Embeddings = Annotated[Path, typer.Argument(help=_FORMATS, show_default=False)]
Queries = Annotated[Path, typer.Argument(help=_FORMATS.replace("n", "q", 1), show_default=False)]
Key = Annotated[
    str | None, typer.Option(help="Which array, or columns (x,y or x*), of a file with several.")
]
QueryKey = Annotated[str | None, typer.Option(help="The same for the queries.")]
Texts = Annotated[Path | None, typer.Option(help="A text file, one line a row, to be shown.")]
QueryTexts = Annotated[Path | None, typer.Option(help="The same for the queries.")]
Ids = Annotated[
    Path | None,
    typer.Option(
        help="Ids of the rows: a text file, one a line, or a column of .npy, .parquet, .csv or "
        ".jsonl."
    ),
]
IdsKey = Annotated[
    str | None,
    typer.Option(help="Which column of the table of ids; without --ids, of the rows' own table."),
]
Format = Annotated[
    str | None,
    typer.Option(
        help="npy, csv, tsv or jsonl: of standard input, or of files whose names do not say it."
    ),
]
SkipNan = Annotated[
    bool, typer.Option("--skip-nan", help="Leave out rows that hold NaN or an infinity.")
]
Screen = Annotated[str, typer.Option(help="auto, int8, bfloat16 or float32: same results.")]
Progress = Annotated[
    bool | None,
    typer.Option("--progress/--no-progress", help="A bar.  [default: on a terminal]",
                 show_default=False),
]  # fmt: skip
Checkpoint = Annotated[
    Path | None,
    typer.Option(help="What Ctrl-C leaves, to go on from.  [default: OUTPUT.checkpoint]",
                 show_default=False),
]  # fmt: skip


def embeddings(
    path: Path, *, key: str | None = None, skip_nan: bool = False, format: str | None = None
) -> Any:
    """Read (n, d) embeddings; files that can be mapped stay where they are.

    Raises:
        ValueError: the file cannot be read, its rows have no width, or one holds NaN or an
            infinity.
        TypeError: it holds no rows of floats.
    """
    rows = _checks.readable(
        f"what {path} holds", files.load(path, key=key, format=format, note=note)
    )
    # Rows of no width take no bytes, so that a short file may claim more of them than can be gone
    # through, here or in a search.
    if rows.ndim != 2 or not rows.shape[1]:
        raise ValueError(
            f"expected (n, d) embeddings with d >= 1 in {path}, got shape {tuple(rows.shape)}"
        )
    _checks.embedding_rows(f"what {path} holds", rows[:0])
    step = max(_CHUNK // rows.shape[1], 1)
    for start in range(0, 0 if skip_nan else len(rows), step):
        some = rows[start : start + step]
        finite = np.asarray(
            some.isfinite() if isinstance(some, torch.Tensor) else np.isfinite(some)
        )
        if not finite.all():
            row = start + int(np.argmin(finite.all(1)))
            raise ValueError(
                f"row {row} of {path} holds NaN or an infinity; --skip-nan leaves such rows out"
            )
    return rows


def texts(path: Path | None, rows: int) -> list[str] | None:
    """Read one text a row.

    Raises:
        ValueError: there are not as many lines as rows, or they are no UTF-8.
    """
    if path is None:
        return None
    lines = _lines(path)
    if len(lines) != rows:
        raise ValueError(f"expected {rows} lines in {path}, one a row, got {len(lines)}")
    return lines


def _lines(path: Path) -> list[str]:
    files.check_regular(path)
    try:
        lines = path.read_text(encoding="utf-8-sig").split("\n")
    except UnicodeDecodeError as error:
        raise ValueError(f"expected UTF-8 text in {path}: {error}") from error
    if lines[-1] == "":  # a final newline ends the last line
        lines.pop()
    return lines


def ids(path: Path | None, *, key: str | None = None, rows: Path | None = None) -> Any:
    """Read ids: the column of a .npy or of a table, or the lines of a text file.

    Args:
        path: the file, or None.
        key: the column of a table.
        rows: the file of the embeddings, whose own column ``key`` is taken where no file is named.
    """
    if path is None and key is not None:
        if rows is None or rows.suffix.lower() not in files.TABLES or not rows.is_file():
            raise ValueError(
                f"expected a file of ids, or embeddings in {', '.join(files.TABLES)}, of which "
                f"--ids-key {key} is a column, got {rows}"
            )
        path = rows
    if path is None:
        return None
    if path.suffix.lower() in files.TABLES:
        return files.load_column(path, key)
    return files.load(path, ndim=1) if path.suffix.lower() == ".npy" else _lines(path)


def row_ids(
    path: Path | None, count: int, *, key: str | None = None, rows: Path | None = None
) -> np.ndarray[Any, Any] | None:
    """Read ids (n) that stand for rows in what is written.

    Raises:
        ValueError: they are not as many as rows.
        TypeError: they are neither whole numbers nor strings.
    """
    found = ids(path, key=key, rows=rows)
    return None if found is None else _checks.row_ids(f"ids of {path or rows}", found, count)
