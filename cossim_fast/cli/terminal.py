"""What all commands share: notes and errors of one line, interruption, progress."""

import sys
from collections.abc import Iterator
from contextlib import contextmanager
from pathlib import Path

import typer
from rich.console import Console

from cossim_fast import files
from cossim_fast._escaped import escaped

# Exit statuses.
FINDING, TROUBLE, INTERRUPTED = 1, 2, 130


def note(text: str) -> None:
    """Print a note to stderr; stdout is for the result alone."""
    print(f"cossim: {escaped(text)}", file=sys.stderr, flush=True)


def console(*, soft_wrap: bool = False) -> Console:
    """The console for results, without markup; texts must be `escaped` first."""
    return Console(highlight=False, markup=False, emoji=False, soft_wrap=soft_wrap)


@contextmanager
def one_line_errors(checkpoint: Path | None = None) -> Iterator[None]:
    """Turn errors into one line and an exit status; name the checkpoint if there is one."""
    try:
        yield
    except KeyboardInterrupt:
        note(f"interrupted{_way_on(checkpoint) or '; nothing was written'}")
        raise typer.Exit(INTERRUPTED) from None
    except BrokenPipeError:
        raise  # the reader closed the pipe: typer ends quietly
    except OSError as error:
        words = (str(part) for part in (error.filename, error.strerror or error) if part)
        note(": ".join(words) + _way_on(checkpoint))
        raise typer.Exit(TROUBLE) from error
    except (ValueError, TypeError, ModuleNotFoundError) as error:
        note(" ".join(str(error).split()) or type(error).__name__)
        raise typer.Exit(TROUBLE) from error
    except (MemoryError, RuntimeError) as error:
        # torch has no class of its own for it.
        if isinstance(error, RuntimeError) and "can't allocate memory" not in str(error):
            raise
        named = isinstance(error, files.NotEnoughMemoryError)  # says for what
        note(f"{error if named else 'there is not enough memory'}{_way_on(checkpoint)}")
        raise typer.Exit(TROUBLE) from error


def _way_on(checkpoint: Path | None) -> str:
    if checkpoint is None or not checkpoint.exists():
        return ""
    return f"; {checkpoint} has what was found: the same command goes on from it"


def bar_wanted(asked: bool | None) -> bool:
    """Whether to show progress: as asked, or on a terminal."""
    return sys.stderr.isatty() if asked is None else asked
