"""Checkpoints of long runs: where they are, and which input files they belong to."""

from collections.abc import Iterator
from contextlib import contextmanager
from datetime import datetime, timezone
from pathlib import Path
from typing import TypeVar

from cossim_fast.cli.terminal import note
from cossim_fast.retrieval.resumable import Checkpoint, Lock

Kept = TypeVar("Kept", bound=Checkpoint)


def place(output: Path | None, asked: Path | None) -> Path | None:
    """The checkpoint of a run: as asked, or beside its output, or None."""
    return asked if asked is not None or output is None else _beside(output)


def _beside(output: Path) -> Path:
    return output.with_name(f"{output.name}.checkpoint")


def files(**given: tuple[Path, str | None]) -> dict[str, str | int | None]:
    """What identifies input files: path, key, size and time of change of each, by its name.

    Called before they are read, so that a file replaced meanwhile does not count as the one read.
    """
    found: dict[str, str | int | None] = {}
    for name, (path, key) in given.items():
        if not path.is_file():  # reading it will give a better error
            continue
        there = path.stat()
        seconds, rest = divmod(there.st_mtime_ns, 10**9)
        changed = datetime.fromtimestamp(seconds, timezone.utc)
        found |= {
            f"path of {name}": str(path.resolve()),
            f"key of {name}": key,
            f"bytes of {name}": there.st_size,
            f"time of change of {name}": f"{changed:%Y-%m-%d %H:%M:%S}.{rest:09d} UTC",
        }
    return found


@contextmanager
def alone(kept: Kept, output: Path | None) -> Iterator[Kept]:
    """Keep other runs from a checkpoint and an output; print a note if the run resumes.

    The lock of the checkpoint beside the output also stands for the output. With a checkpoint
    elsewhere, both are locked.
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
