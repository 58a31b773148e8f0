"""The `cossim` command: parsing and printing; the work is done by the public functions.

One file a group of commands. They need typer and rich, so they are imported when the command runs.
"""

import os
import sys
from contextlib import suppress
from typing import TextIO

from cossim_fast._extras import require


def main() -> None:
    """Run the command.

    Exit status: 0 done, 1 a finding, 2 trouble, 130 interrupted, 141 nobody reads what is printed.
    """
    if sys.stdout is None:  # closed by who called; what is printed fails
        sys.stdout = _nowhere(1, os.O_RDONLY)
    if sys.stderr is None:  # what is said is lost
        sys.stderr = _nowhere(2, os.O_WRONLY)
    try:
        for name in ("typer", "rich"):
            require(name, extra="cli")
    except ModuleNotFoundError as error:
        print(f"cossim: {error}", file=sys.stderr)
        sys.exit(2)
    for stream in (sys.stdout, sys.stderr):
        # A pipe of Windows, or of an old locale, has no letters for most texts.
        if hasattr(stream, "reconfigure"):
            stream.reconfigure(errors="backslashreplace")
    sys.exit(_run())


def _run() -> int:
    """Run the command, and have all of what it printed out: its exit status."""
    from cossim_fast.cli.app import app  # noqa: PLC0415
    from cossim_fast.cli.terminal import FINDING, told  # noqa: PLC0415

    try:
        app(prog_name="cossim")
        status = 0
    except SystemExit as stopped:
        status = stopped.code if isinstance(stopped.code, int) else 2 if stopped.code else 0
    except (Exception, KeyboardInterrupt) as error:  # an error of usage that cannot be printed
        status = told(error)
    try:
        sys.stdout.flush()
    except OSError as error:
        status = told(error) if status in (0, FINDING) else status
    # What is left cannot be printed, and Python would try again at its end.
    for stream in (sys.stdout, sys.stderr):
        try:
            stream.flush()
        except OSError:
            _discard(stream)
    return status


def _nowhere(handle: int, mode: int) -> TextIO:
    """A stream in place of one that was closed, whose number no other file is to get."""
    nothing = os.open(os.devnull, mode)
    try:
        os.fstat(handle)
    except OSError:
        os.dup2(nothing, handle)
    return os.fdopen(nothing, "w", encoding="utf-8")


def _discard(stream: TextIO) -> None:
    """Let go of what a stream has not written."""
    with suppress(OSError, ValueError):
        nothing = os.open(os.devnull, os.O_WRONLY)
        os.dup2(nothing, stream.fileno())
        os.close(nothing)
        stream.flush()
