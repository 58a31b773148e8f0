"""Keeps a session on a GPU going when its process dies or hangs: a kernel can take it with it."""

import subprocess
import time
from collections.abc import Sequence
from pathlib import Path

# The exit status of a process that wants another to go on: its device is of no more use to it.
AGAIN = 75
# Longer than any trial takes with its compilation; each writes the file when it begins and ends.
PATIENCE = 100.0


def watched(
    command: Sequence[str], path: Path, *, patience: float = PATIENCE, most: int = 12
) -> int:
    """Run a command that resumes from the file that it writes, until it ends by itself.

    It is started again where it was killed by a signal, asks for it with AGAIN, or wrote nothing
    for ``patience`` seconds, at most ``most`` times. Returns its exit status.
    """
    for _ in range(most):
        status = _once(command, path, patience)
        if status >= 0 and status != AGAIN:
            return status
        print(f"the session's process ended with {status}; another goes on", flush=True)
    return AGAIN


def _once(command: Sequence[str], path: Path, patience: float) -> int:
    child = subprocess.Popen(command)
    seen, since = _written(path), time.monotonic()
    try:
        while child.poll() is None:
            time.sleep(min(0.2, patience / 4))
            if (now := _written(path)) != seen:
                seen, since = now, time.monotonic()
            elif time.monotonic() - since > patience:
                child.kill()
        return child.returncode
    finally:
        child.kill()
        child.wait()


def _written(path: Path) -> int:
    return path.stat().st_mtime_ns if path.exists() else 0
