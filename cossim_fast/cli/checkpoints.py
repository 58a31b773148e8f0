"""Where long runs keep what they found, and what they say of their files."""

from collections.abc import Iterator
from contextlib import contextmanager
from datetime import datetime, timezone
from pathlib import Path
from typing import TypeVar

from cossim_fast.cli.terminal import note
from cossim_fast.retrieval.resumable import Checkpoint, Lock

Kept = TypeVar("Kept", bound=Checkpoint)


def place(output: Path | None, asked: Path | None) -> Path | None:
    """Where a long run keeps what it found: as asked, or beside its output, or nowhere."""
    return asked if asked is not None or output is None else _beside(output)


def _beside(output: Path) -> Path:
    return output.with_name(f"{output.name}.checkpoint")


def files(**given: tuple[Path, str | None]) -> dict[str, str | int | None]:
    """What makes files the same: path, key, size and time of change, of each by its name.

    To be asked before they are read: of what replaces them meanwhile nothing is said then.
    """
    said: dict[str, str | int | None] = {}
    for name, (path, key) in given.items():
        if not path.is_file():  # which reading it says better
            continue
        there = path.stat()
        seconds, rest = divmod(there.st_mtime_ns, 10**9)
        changed = datetime.fromtimestamp(seconds, timezone.utc)
        said |= {
            f"path of {name}": str(path.resolve()),
            f"key of {name}": key,
            f"bytes of {name}": there.st_size,
            f"time of change of {name}": f"{changed:%Y-%m-%d %H:%M:%S}.{rest:09d} UTC",
        }
    return said


@contextmanager
def alone(kept: Kept, output: Path | None) -> Iterator[Kept]:
    """Have a checkpoint and an output for this run alone, and say if there is one to go on from.

    Without another's name the checkpoint stands for the output. With one, that which would stand
    beside the output is kept from others too.
    """
    with kept:
        if kept.exists():
            note(f"going on from {kept.path}")
        beside = None if output is None else _beside(output)
        if beside is None or kept.path is None or kept.path.resolve() == beside.resolve():
            yield kept
        else:
            with Lock(beside):
                yield kept
