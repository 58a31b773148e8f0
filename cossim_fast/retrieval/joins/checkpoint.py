"""How far a join has come, and what it has found."""

from __future__ import annotations

import time
from collections.abc import Mapping
from pathlib import Path
from typing import Any

import torch
from torch import Tensor

from cossim_fast.retrieval.joins.sweep import Found
from cossim_fast.retrieval.storage.checkpoint import Checkpoint
from cossim_fast.retrieval.storage.digest import digest_of

# [ratio] Time until a file is written again, relative to the time that writing it took.
_WAIT = 20


class JoinCheckpoint(Checkpoint):
    """The file of one join; without a path it does nothing.

    Attributes:
        beside: data of the caller, by name, saved and restored with the rest.
    """

    kind = "cossim_fast join checkpoint"
    run = "join"

    def __init__(
        self, path: str | Path | None, inputs: Mapping[str, str | int | None] | None = None
    ) -> None:
        super().__init__(path, inputs)
        self.beside: dict[str, Any] = {}
        self._next = 0.0

    def begin(
        self, rows: tuple[Tensor, ...], arguments: Mapping[str, Any], dtype: torch.dtype
    ) -> tuple[int, Found]:
        """How many queries are finished, and their pairs; 0 and none without a file.

        Args:
            rows: what is joined, one set of rows (n, d) or two. All are digested.
            arguments: of the join, which must be the same when it resumes.
            dtype: of the scores.
        """
        nothing = 0, Found.concatenate([], dtype)
        if self.path is None:
            return nothing
        of = dict(arguments)
        for name, some in zip("xy", rows, strict=False):
            of[f"rows of {name}"], of[f"width of {name}"] = some.shape
            of[f"dtype of {name}"] = str(some.dtype)
            of[f"values of {name}"] = digest_of(some)
        self._belongs_to(of)

        def understand(
            held: Mapping[str, Tensor], metadata: Mapping[str, Any]
        ) -> tuple[int, Found, dict[str, Any]]:
            done = int(metadata["done"])
            if not 0 < done <= len(rows[0]):
                raise ValueError(f"{done} rows of {len(rows[0])}")
            found = Found(*(held[name] for name in Found._fields))
            return done, found, dict(metadata["beside"])

        restored = self._read(understand)
        if restored is None:
            return nothing
        done, found, self.beside = restored
        return done, found

    def save(
        self, done: int, found: list[Found], dtype: torch.dtype, *, last: bool = False
    ) -> None:
        """Write how many queries are finished, unless the file was written a moment ago.

        With ``last``, it is written in any case.
        """
        began = time.monotonic()
        if self.path is None or (began < self._next and not last):
            return
        held = Found.concatenate(found, dtype)._asdict()
        self._write(held, {"done": done, "beside": self.beside})
        ended = time.monotonic()
        self._next = ended + _WAIT * (ended - began)
