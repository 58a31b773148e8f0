"""What an index holds, and how that changes: one change at a time, each by one assignment."""

from __future__ import annotations

import threading
from pathlib import Path
from typing import Any

import numpy as np
import torch
from torch import Tensor

from cossim_fast import _checks
from cossim_fast._threads import watch
from cossim_fast.retrieval.engine import Engine
from cossim_fast.retrieval.storage.growing_file import VectorFile
from cossim_fast.retrieval.storage.ids import Ids
from cossim_fast.retrieval.storage.snapshot import Snapshot, with_rows, without_rows
from cossim_fast.retrieval.storage.vectors import Vectors


class Contents:
    """A snapshot, the lock that changes take, and the file that vectors are appended to.

    Attributes:
        screen: as in `topk`.
        dtype: in which rows are kept.
        d: their width.
    """

    screen: str
    dtype: torch.dtype
    d: int
    _engine: Engine
    _file: VectorFile | None
    _snapshot: Snapshot
    _lock: threading.Lock

    def _start(self, engine: Engine, screen: str, dtype: torch.dtype, d: int) -> None:
        """Begin without rows."""
        self.screen, self.dtype, self.d = screen, dtype, d
        self._engine, self._file = engine, None
        self._snapshot = Snapshot((), torch.zeros(d, dtype=torch.float32, device="cpu"), Ids())
        self._share()

    def _share(self) -> None:
        """Create the lock, which is neither pickled nor inherited by a fork."""
        self._lock = threading.Lock()
        watch(self)

    def _create(self, source: Any, n: int, ids: Any, path: str | Path | None) -> None:
        """Take the first n rows, with a new file at the path if there is one."""
        names = self._snapshot.ids.accept((), ids, n)
        if path is None:
            self._append(self._engine.vectors(source, self.dtype), names)
            return
        self._file = VectorFile.create(Path(path), self.d, self.dtype)
        try:
            self._file.append(source)
            self._append(self._file.rows(0), names)
        except BaseException:
            self._file.discard()
            raise

    def _adopt(self, file: VectorFile, ids: Any) -> None:
        """Take the rows of a file, which is appended to from now on."""
        names = self._snapshot.ids.accept((), ids, file.count)
        self._file = file
        self._append(file.rows(0), names)

    def _extend(self, source: Any, n: int, ids: Any) -> None:
        """Take n more rows."""
        with self._lock:
            names = self._snapshot.ids.accept(self._snapshot.parts, ids, n)
            file = self._own_file()
            if file is None:
                self._append(self._engine.vectors(source, self.dtype), names)
                return
            before, first = self._snapshot, file.count
            try:
                file.append(source)
                self._append(file.rows(first), names)
            except BaseException:
                if self._snapshot is before:
                    file.take_back(first)
                raise

    def _own_file(self) -> VectorFile | None:
        """The file to append to, if there is one and this process opened it."""
        return self._file if self._file is not None and self._file.writable() else None

    def _append(self, new: Vectors, names: np.ndarray[Any, Any] | None) -> None:
        if not len(new.tensor):
            return
        self._snapshot = with_rows(self._snapshot, new, names, self._own_file(), self._engine.part)

    def _remove(self, names: np.ndarray[Any, Any]) -> None:
        """Drop the rows with these ids; refuse ids that no row has."""
        with self._lock:
            state = self._snapshot
            positions: Tensor = state.ids.positions(state.parts, names)
            _checks.known_ids(names, (positions >= 0).numpy())
            self._snapshot = without_rows(state, positions, names, self._engine.part)

    def __getstate__(self) -> dict[str, Any]:
        held = {**self.__dict__, "_file": None}
        del held["_lock"]
        return held

    def __setstate__(self, held: dict[str, Any]) -> None:
        self.__dict__.update(held)
        self._share()

    def forked(self) -> None:
        """Replace the lock in a forked child process."""
        # A thread of the parent may hold it, during a change that never completes here.
        self._lock = threading.Lock()
