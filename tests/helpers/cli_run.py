"""Run the command in this process: into pipes, or on a terminal of 80 columns."""

import contextlib
import io
import os
import re
import struct
import sys
import threading
from unittest import mock

import pytest

from cossim_fast import cli

try:
    import fcntl
    import pty
    import termios
except ImportError:  # Windows
    pty = None


def _run(arguments, out, err):
    with (
        mock.patch.object(sys, "argv", ["cossim", *map(str, arguments)]),
        contextlib.redirect_stdout(out),
        contextlib.redirect_stderr(err),
    ):
        try:
            cli.main()
        except SystemExit as stopped:
            return stopped.code or 0
    return 0


def run(*arguments):
    """Exit status, stdout and stderr, as in a pipe."""
    out, err = io.StringIO(), io.StringIO()
    status = _run(arguments, out, err)
    return status, out.getvalue(), err.getvalue()


def run_on_terminal(*arguments, bar=False):
    """The same with stdout on a terminal, and stderr too if bars are wanted; without colours."""
    if pty is None:
        pytest.skip("Windows has no pseudo-terminals")
    leader, follower = pty.openpty()
    fcntl.ioctl(follower, termios.TIOCSWINSZ, struct.pack("HHHH", 24, 80, 0, 0))
    seen = []

    def read():
        with contextlib.suppress(OSError):  # the other end was closed
            while piece := os.read(leader, 4096):
                seen.append(piece)

    reader = threading.Thread(target=read)
    reader.start()
    err = io.StringIO()
    with (
        os.fdopen(follower, "w", encoding="utf-8") as terminal,
        mock.patch.dict(os.environ, {"COLUMNS": "80", "TERM": "xterm"}),
    ):
        status = _run(arguments, terminal, terminal if bar else err)
    reader.join()
    os.close(leader)
    out = b"".join(seen).decode().replace("\r\n", "\n")
    return status, re.sub(r"\x1b\[[0-9;]*m", "", out), err.getvalue()


def npz_columns(held):
    """The columns of an output in .npz, texts put together from their bytes and ends."""
    columns = {}
    for name in held.files:
        if name.endswith("_utf8"):
            raw, ends = held[name].tobytes(), held[name.replace("_utf8", "_ends")].tolist()
            columns[name.removesuffix("_utf8")] = [
                raw[begin:end].decode("utf-8", "surrogatepass")
                for begin, end in zip([0, *ends], ends, strict=False)
            ]
        elif not name.endswith("_ends"):
            columns[name] = held[name].tolist()
    return columns
