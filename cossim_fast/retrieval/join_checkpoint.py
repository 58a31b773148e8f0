"""How far a join has come, in a file, so that it can go on after an interruption."""

from __future__ import annotations

import hashlib
import json
import time
from pathlib import Path
from typing import Any

import torch
from torch import Tensor

from cossim_fast.retrieval.files import FileError, read_tensors, write_tensors
from cossim_fast.retrieval.sweep import Found

_KIND = "cossim_fast join checkpoint"
# Rows whose values are part of what makes a join the same, spread over all.
_SAMPLE = 4096
# After it was written, a file waits so many times as long as that took.
_WAIT = 20


class JoinCheckpoint:
    """The file of one join; without a path it does nothing.

    Args:
        path: where it is, or None.
        rows: what is joined, one set of rows or two.
        said: what else makes it the same join.
    """

    def __init__(
        self, path: str | Path | None, rows: tuple[Tensor, ...], said: dict[str, Any]
    ) -> None:
        self._path = None if path is None else Path(path)
        self._next = 0.0
        if self._path is None:
            return
        self._of = dict(said)
        for name, some in zip("xy", rows, strict=False):
            self._of[name] = [*some.shape, str(some.dtype), _digest(some)]

    def restore(self, dtype: torch.dtype) -> tuple[int, Found]:
        """How many queries were finished, and what they found; 0 and nothing without a file."""
        if self._path is None or not self._path.exists():
            return 0, Found.join([], dtype)
        held, text = read_tensors(self._path, _KIND)
        saved = json.loads(text["join"])
        if saved != self._of:
            other = sorted(k for k in {*saved, *self._of} if saved.get(k) != self._of.get(k))
            raise ValueError(
                f"expected {self._path} to be the checkpoint of this join, and its "
                f"{', '.join(other)} differ; delete it, or name another file"
            )
        try:
            return int(text["done"]), Found(*(held[name] for name in Found._fields))
        except (KeyError, ValueError) as error:
            raise FileError(f"{self._path} is damaged: {error!r}; delete it") from error

    def save(
        self, done: int, found: list[Found], dtype: torch.dtype, *, last: bool = False
    ) -> None:
        """Write how many queries are finished, unless that was done a moment ago.

        The last time, when all are, it is done in any case.
        """
        began = time.monotonic()
        if self._path is None or (began < self._next and not last):
            return
        held = Found.join(found, dtype)._asdict()
        write_tensors(self._path, _KIND, held, {"join": json.dumps(self._of), "done": str(done)})
        ended = time.monotonic()
        self._next = ended + _WAIT * (ended - began)

    def remove(self) -> None:
        """Delete the file: the join is over."""
        if self._path is not None:
            self._path.unlink(missing_ok=True)


def _digest(rows: Tensor) -> str:
    some = rows[:: max(rows.shape[0] // _SAMPLE, 1)].contiguous()
    return hashlib.sha256(some.view(torch.uint8).numpy().tobytes()).hexdigest()
