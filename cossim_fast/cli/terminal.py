"""What all commands share: notes and errors of one line, interruption, progress."""

import sys
from collections.abc import Iterator
from contextlib import contextmanager, suppress
from pathlib import Path
from typing import Any

import numpy as np
import typer
from rich.console import Console

from cossim_fast import files
from cossim_fast._escaped import escaped

# Exit statuses.
FINDING, TROUBLE, INTERRUPTED = 1, 2, 130
BROKEN_PIPE = 141  # what a shell says of a program that the signal has ended
# typer names them nowhere, and has them from click or from a copy of its own.
UsageError: Any = typer.BadParameter.__base__
ClickException: Any = UsageError.__base__


def note(text: str) -> None:
    """Say something beside the result, which has stdout for itself."""
    with suppress(OSError):  # where nothing can be said, the exit status says it
        print(f"cossim: {escaped(text)}", file=sys.stderr, flush=True)


def at_most(k: int, rows: int) -> int:
    """How many rows there are to be found for each query, saying so where they are fewer than k."""
    if k > rows:
        note(f"there are {rows} rows, fewer than -k {k}: all of them are ranked")
    return min(k, rows) if rows else k


def number(value: float) -> str:
    """A number by as few digits as tell it from its neighbours: 0.9, 0.9999999, 1."""
    return np.format_float_positional(value, trim="-")


class _Console(Console):
    def on_broken_pipe(self) -> None:
        """Leave it to who handles all errors; rich would exit with 1."""
        raise  # noqa: PLE0704


def console(*, soft_wrap: bool = False) -> Console:
    """What a result is shown on, letter for letter: texts go through `escaped` first."""
    return _Console(highlight=False, markup=False, emoji=False, soft_wrap=soft_wrap)


@contextmanager
def one_line_errors(checkpoint: Path | None = None) -> Iterator[None]:
    """Turn errors into one line and an exit status; name the checkpoint if there is one."""
    try:
        yield
    except (typer.Exit, typer.Abort, ClickException):
        raise
    except (Exception, KeyboardInterrupt) as error:
        raise typer.Exit(told(error, checkpoint)) from error


# NotImplementedError: a GPU that lacks what it needs.
_MISTAKES = ValueError, TypeError, ModuleNotFoundError, NotImplementedError


def told(error: BaseException, checkpoint: Path | None = None) -> int:
    """Say in one line what went wrong, and return the exit status for it."""
    if isinstance(error, KeyboardInterrupt):
        note(f"interrupted{_way_on(checkpoint) or '; nothing was written'}")
        return INTERRUPTED
    if isinstance(error, BrokenPipeError):  # the reader has had enough
        return BROKEN_PIPE
    if isinstance(error, OSError):
        words = (str(part) for part in (error.filename, error.strerror or error) if part)
        note(": ".join(words) + _way_on(checkpoint))
    elif isinstance(error, Exception) and files.is_lack_of_memory(error):
        named = isinstance(error, files.NotEnoughMemoryError)  # says for what
        note(f"{error if named else 'there is not enough memory'}{_way_on(checkpoint)}")
    elif isinstance(error, _MISTAKES):
        note(" ".join(str(error).split()) or type(error).__name__)
    else:
        said = " ".join([type(error).__name__, *str(error).split()])
        note(f"unexpected, and no fault of yours: {said}{_way_on(checkpoint)}")
    return TROUBLE


def _way_on(checkpoint: Path | None) -> str:
    if checkpoint is None or not checkpoint.exists():
        return ""
    return f"; {checkpoint} has what was found: the same command goes on from it"


def bar_wanted(asked: bool | None) -> bool:
    """Whether to show progress: as asked, or on a terminal."""
    return sys.stderr.isatty() if asked is None else asked
