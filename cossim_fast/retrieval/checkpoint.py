"""What a long search has found so far, in a file, so that it can go on after an interruption."""

from __future__ import annotations

import hashlib
import json
from pathlib import Path
from typing import Any

import torch
from torch import Tensor

from cossim_fast.retrieval.engine import Batches
from cossim_fast.retrieval.files import FileError, read_tensors, write_tensors
from cossim_fast.retrieval.sources import Corpus

_KIND = "cossim_fast search checkpoint"


class Checkpoint:
    """The file of one search; without a path it does nothing.

    Args:
        path: where it is, or None.
        queries: (q, d), whose values are part of what makes a search the same.
        corpus: whose shape and dtype are, where they are known before it is read.
        k: how many rows each query is to get.
        certify: whether bounds are kept.
    """

    def __init__(
        self, path: str | Path | None, queries: Tensor, corpus: Corpus, k: int, *, certify: bool
    ) -> None:
        self._path = None if path is None else Path(path)
        if self._path is None:
            return
        values = queries.contiguous().view(torch.uint8).numpy()
        self._of: dict[str, Any] = {
            "queries": hashlib.sha256(values.tobytes()).hexdigest(),
            "query dtype": str(queries.dtype),
            "rows": corpus.n,
            "width": corpus.d,
            "k": k,
            "certify": certify,
        }

    def restore(self, found: Batches) -> None:
        """Put what the file holds into a search that has not begun, if there is a file."""
        if self._path is None or not self._path.exists():
            return
        held, said = read_tensors(self._path, _KIND)
        saved = json.loads(said["search"])
        if saved != self._of:
            other = sorted(key for key in self._of if saved.get(key) != self._of[key])
            raise ValueError(
                f"expected {self._path} to be the checkpoint of this search, and its "
                f"{', '.join(other)} differ; delete it, or name another file"
            )
        try:
            found.centre, found.seen = held["centre"], int(said["seen"])
            found.skipped = int(said["skipped"])
            found.restore(held)
        except (KeyError, ValueError) as error:
            raise FileError(f"{self._path} is damaged: {error!r}; delete it") from error

    def save(self, found: Batches) -> None:
        """Write what was found so far."""
        if self._path is None or found.centre is None:
            return
        held = {**found.state(), "centre": found.centre}
        said = {
            "search": json.dumps(self._of),
            "seen": str(found.seen),
            "skipped": str(found.skipped),
        }
        write_tensors(self._path, _KIND, held, said)

    def remove(self) -> None:
        """Delete the file: the search is over."""
        if self._path is not None:
            self._path.unlink(missing_ok=True)
