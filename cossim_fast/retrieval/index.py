"""`CosineIndex`: rows that are coded once and searched many times."""

from __future__ import annotations

import threading
import time
from collections.abc import Sequence
from dataclasses import replace
from functools import partial
from pathlib import Path
from typing import Any

import numpy as np
import torch
from torch import Tensor

from cossim_fast import _checks
from cossim_fast._as_one import as_one
from cossim_fast._threads import one_thread_after_fork, watch
from cossim_fast.retrieval import tuning
from cossim_fast.retrieval.exclusion import Banned, of_queries
from cossim_fast.retrieval.explanation import SearchExplanation, merged_traces, reason_for
from cossim_fast.retrieval.joins.pairs import range_search
from cossim_fast.retrieval.joins.sweep import Found
from cossim_fast.retrieval.nearest.batches import Batches, Forbidden, independent_threads
from cossim_fast.retrieval.nearest.scan import Trace
from cossim_fast.retrieval.progress import Progress
from cossim_fast.retrieval.results import (
    Best,
    CertifiedTopK,
    Oracle,
    RangeHits,
    TopK,
    assemble,
    like,
    merged,
)
from cossim_fast.retrieval.screening.codes import Segment
from cossim_fast.retrieval.selection import Selections
from cossim_fast.retrieval.storage.growing_file import VectorFile
from cossim_fast.retrieval.storage.ids import Ids
from cossim_fast.retrieval.storage.index_file import load_parts, save_parts
from cossim_fast.retrieval.storage.parts import ids_at
from cossim_fast.retrieval.storage.snapshot import Snapshot, snapshot_of, with_rows, without_rows
from cossim_fast.retrieval.storage.vectors import Vectors, vectors_of


class CosineIndex:
    """Finds the rows with the largest cosine to a query, exactly, in rows that are coded once.

    The result is that of `topk`: ranked by <q, x> / (|q| |x|) in float64, summed in one fixed
    order, equal scores in the order in which rows were added. It has the same bits for any batch,
    any threads and any sequence of `add`, and after `save` and `load`.

    Args:
        embeddings: (n, d) tensor or array of float16, bfloat16, float32, float64 or int8; n may be
            0. They are copied, save for a memory map in the dtype of ``store`` where no ``path`` is
            given: that is searched where it lies, and must stay as it is.
        ids: n different whole numbers (int64, not -1) or strings. Without them rows are numbered
            from 0 on in the order in which they are added, and a number is never given twice.
        store: the dtype in which rows are kept, and in which they are exact; that of
            ``embeddings`` by default.
        path: a new file that takes the full vectors, in the safetensors format, so that memory
            holds the codes (a byte a number) and 20 bytes a row. `add` goes on at its end, and no
            other index can meanwhile. The file is not deleted with the index, and is no index: see
            `save`, and `reopen`.
        screen: as in `topk`. ``"float32"`` and ``"bfloat16"`` need no codes.
        device: None or ``"cpu"``.

    Memory: codes, d bytes a row (none with ``screen`` "float32" or "bfloat16"), and the rows,
    unless they are in a file. Building needs 64 MB more. An index in memory of at least 2^23
    numbers that is often searched with one or two queries also codes projections of its rows onto
    their first principal directions, if that is predicted to make such searches faster. It does so
    in the 17th such search, which takes up to twice as long as building did. They take less than d
    bytes a row, and are neither saved nor pickled. Pages of a file that a search reads count as
    memory of the process until the search ends, and the system can reclaim them. Ids from the
    caller take what numpy or Python needs for them, and about 100 bytes each more from the first
    `add`, `remove` or ``exclude`` on.

    Threads: searching is safe while other threads add, remove or save: each search sees the index
    as it was when it began. Forks: a forked child may search, add and remove, whichever calls of
    this package run in other threads of the parent, since a fork waits for their products. (The
    child's first call sets torch to one thread, since the parent's threads do not exist in it; if
    the parent had started none, set the number again afterwards.) For torch's own calls this does
    not hold. Pickling writes what is in memory; rows in a file are pickled as its name, the offset
    in it, and checksums, for which the file is read once. The file must exist when they are
    unpickled; the copy verifies rows as it first reads them. A child and an unpickled copy keep
    added rows in memory, and never write to the file.

    Rows that hold NaN or an infinity are never returned, and counted (`skipped`). Zero rows score
    0. No gradients.

    Raises:
        TypeError: for integer, complex or sparse input, and for ids of two kinds.
        ValueError: for shapes that do not match, repeated ids, numbers that
            ``store`` cannot hold, an unknown screen or device.
        FileExistsError: ``path`` exists.

    >>> index = CosineIndex(torch.eye(3), ids=["x", "y", "z"])
    >>> found = index.search(torch.tensor([[0.0, 3.0, 4.0]]), 2)
    >>> found.indices
    array([['z', 'y']], dtype=object)
    >>> found.scores
    tensor([[0.8000, 0.6000]])
    """

    screen: str
    dtype: torch.dtype
    d: int
    _file: VectorFile | None
    _snapshot: Snapshot

    @as_one
    def __init__(
        self,
        embeddings: Any,
        ids: Any = None,
        *,
        store: torch.dtype | None = None,
        path: str | Path | None = None,
        screen: str = "auto",
        device: torch.device | str | None = None,
    ) -> None:
        one_thread_after_fork()
        given = _checks.embedding_rows("embeddings", embeddings)
        source = embeddings if isinstance(embeddings, np.ndarray) else given
        _checks.screen_name(screen)
        _checks.index_device(device)
        dtype = given.dtype if store is None else _checks.stored_dtype(store)
        self._start(screen, dtype, given.shape[1])
        names = self._snapshot.ids.accept((), ids, len(given))
        if path is None:
            self._append(vectors_of(source, self.dtype), names)
            return
        self._file = VectorFile.create(Path(path), self.d, self.dtype)
        try:
            self._file.append(source)
            self._append(self._file.rows(0), names)
        except BaseException:
            self._file.discard()
            raise

    def _start(self, screen: str, dtype: torch.dtype, d: int) -> None:
        """Initialize an index without rows."""
        self.screen, self.dtype, self.d = screen, dtype, d
        self._codes = screen in ("auto", "int8")
        self._file = None
        self._snapshot = Snapshot((), torch.zeros(d, dtype=torch.float32, device="cpu"), Ids())
        self._share()

    def _share(self) -> None:
        """Create the lock, which is neither pickled nor inherited by a fork."""
        self._lock = threading.Lock()
        watch(self)

    def __len__(self) -> int:
        """How many rows there are, not counting removed ones."""
        return self._snapshot.live_count()

    def __repr__(self) -> str:
        return f"CosineIndex({len(self)} rows of {self.d}, {self.dtype}, screen {self.screen!r})"

    @property
    def skipped(self) -> int:
        """How many rows hold NaN or an infinity, and are never returned."""
        return self._snapshot.skipped()

    @property
    def ids(self) -> np.ndarray[Any, Any]:
        """The ids of all rows, in the order in which they were added."""
        held = [part.ids()[part.live.numpy()] for part in self._snapshot.parts]
        return np.concatenate(held) if held else np.empty(0, np.int64)

    @as_one
    def add(self, embeddings: Any, ids: Any = None) -> None:
        """Add rows (n, d), in the dtype of the index; with ids if the first rows had some.

        Two consecutive parts of the index are merged and coded again as soon as the later one is
        half as long as the earlier. So n rows that are added one by one are coded about log(n)
        times each, and are in at most log(n) parts. A memory map stays a part of its own. When all
        parts become one, the mean direction that is subtracted before coding is measured again.

        With a ``path``, rows are on the disk before they count: after a kill at any moment, or a
        loss of power, `reopen` can use the file (a loss of power may take all of the last `add`,
        but not a part of it). Waiting for the disk takes most of the time of a small `add`: one row
        takes 3.4 ms with it and 0.8 without, on ext4 on a virtual disk.

        Raises:
            TypeError: for ids of another kind than those of the index.
            ValueError: for rows of another width, ids that are taken, or numbers that the dtype of
                the index cannot hold. Nothing is added then.
            FileError: a ValueError; the file of ``path`` was deleted, replaced or changed
                meanwhile. Nothing is written then, and the index can still be searched.
            OSError: the file cannot be written. Nothing is added then.
        """
        one_thread_after_fork()
        rows = _checks.embedding_rows("embeddings", embeddings)
        source = embeddings if isinstance(embeddings, np.ndarray) else rows
        _checks.index_width(rows.shape[1], self.d)
        with self._lock:
            names = self._snapshot.ids.accept(self._snapshot.parts, ids, len(rows))
            file = self._own_file()
            if file is None:
                self._append(vectors_of(source, self.dtype), names)
            else:
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
        self._snapshot = with_rows(self._snapshot, new, names, self._own_file(), codes=self._codes)

    @as_one
    def remove(self, ids: Any) -> None:
        """Remove the rows with these ids (1-D).

        Searches no longer return them. Their memory is freed once more than half of a part's rows
        are removed; rows in a file stay in it.

        Raises:
            KeyError: no row has one of the ids. Nothing is removed then.
        """
        one_thread_after_fork()
        names = _checks.row_ids("ids", ids)
        with self._lock:
            state = self._snapshot
            positions = state.ids.positions(state.parts, names)
            _checks.known_ids(names, (positions >= 0).numpy())
            self._snapshot = without_rows(state, positions, names, codes=self._codes)

    @as_one
    def search(
        self,
        queries: Any,
        k: int,
        *,
        certify: bool = False,
        exclude: Any = None,
        where: Any = None,
        progress: bool = False,
    ) -> TopK | CertifiedTopK:
        """Find the k rows with the largest cosine to each query, exactly.

        Args:
            queries: (q, d) tensor or array of float16, bfloat16, float32, float64 or int8.
            k: how many rows for each query, 1 to ``len(index)``.
            certify: return a `Certificate` too, which names rows by their position among all kept
                rows, and can be verified as long as the vectors do not change.
            exclude: ids that are not to be returned: a sequence (m,) or a set of them for all
                queries, or an array (q, m) or q sequences, one for each query. Ids that are not in
                the index are ignored, as are -1 and None; so the ``indices`` of one search exclude
                what it returned from the next.
            where: which rows may be returned, for access rights, tenants or metadata: ids, as
                ``exclude`` takes them, for all queries or for each; or a boolean array, (n,) for
                all queries or (q, n) for each, in the order of `ids`. What ``exclude`` names is not
                returned even so. The time is that of the rows that are left: where these are few,
                no other is looked at. Queries that may find the same rows are searched together.
            progress: show a progress bar (needs tqdm: ``pip install 'cossim_fast[retrieval]'``).

        Returns:
            TopK(scores, indices), (q, k) both: float32 (float64 if the queries or the index are),
            and ids: int64, or an array of str objects. Best first; tensors for tensors and arrays
            for arrays, except that strings are always an array. With ``certify=True``,
            CertifiedTopK(scores, indices, certificate).

        Where fewer than k rows may be returned to a query (NaN rows and excluded ones may not, nor
        others than those of ``where``), the rest is NaN and -1, None for strings; so is all of a
        query that holds NaN.

        Raises:
            TypeError: for integer, complex or sparse queries, and ids of another kind.
            ValueError: for shapes that do not match, and k out of range.
        """
        asked, best, oracle, state = self._search(
            queries, k, certify=certify, exclude=exclude, where=where, progress=progress, traces=[]
        )
        double = torch.float64 in (asked.dtype, self.dtype)
        result = assemble(queries, best, double=double, oracle=oracle)
        ids = ids_at(state.parts, best.positions, state.ids.missing())
        named = ids if ids.dtype == object else like(queries, torch.from_numpy(ids))
        return result._replace(indices=named)

    @as_one
    def range_search(
        self, queries: Any, threshold: float, *, exclude: Any = None, where: Any = None
    ) -> RangeHits:
        """Find every row whose cosine to a query is at least a threshold, exactly.

        Args:
            queries: (q, d) tensor or array of float16, bfloat16, float32, float64 or int8.
            threshold: -1 to 1; compared with the score in float64.
            exclude: ids that are not to be returned, as in `search`.
            where: which rows may be returned, as in `search`.

        Returns:
            RangeHits(lims, scores, indices): the hits of query i are at ``lims[i]:lims[i + 1]``, in
            the order in which their rows were added. Types as in `search`.

        Rows and queries that hold NaN reach nothing. The number of hits is not limited: a
        threshold that most rows reach gives most of q · n hits.

        Raises:
            TypeError: for integer, complex or sparse queries, and excluded ids of another kind.
            ValueError: for shapes that do not match, and a threshold that is no cosine.
        """
        one_thread_after_fork()
        asked = _checks.embedding_rows("queries", queries)
        _checks.same_width(asked.shape[1], self.d)
        threshold = _checks.threshold(threshold)
        with self._lock:
            state = self._snapshot
            banned = Banned(state.ids, state.parts, exclude, len(asked))
            chosen = None if where is None else Selections(where, state, len(asked))
        double = torch.float64 in (asked.dtype, self.dtype)
        dtype = torch.float64 if double else torch.float32
        segments = banned.segments([part.segment for part in state.parts])

        def reaching(some: Tensor, rows: Sequence[Segment]) -> Found:
            blocks = range_search(
                some, rows, state.centre, threshold, screen=self.screen, double=double
            )
            return Found.concatenate(list(blocks), dtype)

        if chosen is None:
            found = banned.left(reaching(asked, segments))
        else:
            found = chosen.reaching(asked, threshold, segments, banned, reaching)
        lims = torch.searchsorted(found.query, torch.arange(len(asked) + 1, device="cpu"))
        ids = ids_at(state.parts, found.position, state.ids.missing())
        named = ids if ids.dtype == object else like(queries, torch.from_numpy(ids))
        return RangeHits(like(queries, lims), like(queries, found.scores.to(dtype)), named)

    @as_one
    def explain(self, queries: Any, k: int) -> SearchExplanation:
        """Search, and report how: which screens, which tiles, how many rows had to be scored.

        Args:
            queries: as in `search`.
            k: as in `search`.
        """
        traces: list[Trace] = []
        begin = time.perf_counter()
        asked, best, _, state = self._search(
            queries, k, certify=False, exclude=None, where=None, progress=False, traces=traces
        )
        seconds, trace = time.perf_counter() - begin, merged_traces(traces)
        return SearchExplanation(
            queries=len(asked),
            k=k,
            rows=state.rows(),
            segments=len(state.parts),
            screens=tuple(trace.screens),
            reason=reason_for(
                self.screen, tuple(trace.screens), ranked=trace.ranked, head=trace.head
            ),
            tile=trace.tile,
            group=trace.group,
            emitted=trace.emitted / max(len(asked), 1),
            rescored=best.rescored.numpy(),
            repeated=trace.repeated,
            seconds=seconds,
        )

    def _search(
        self,
        queries: Any,
        k: int,
        *,
        certify: bool,
        exclude: Any,
        where: Any,
        progress: bool,
        traces: list[Trace],
    ) -> tuple[Tensor, Best, Oracle, Snapshot]:
        one_thread_after_fork()
        asked = _checks.embedding_rows("queries", queries)
        _checks.same_width(asked.shape[1], self.d)
        with self._lock:
            state = self._snapshot
            banned = Banned(state.ids, state.parts, exclude, len(asked))
            chosen = None if where is None else Selections(where, state, len(asked))
        k = _checks.number_of_neighbours(k, state.live_count())
        segments = banned.segments([part.segment for part in state.parts])
        oracle = banned.oracle(asked, segments)
        with Progress(progress, "search", len(asked), unit="queries") as bar:
            search = partial(self._ranked, state, bar, traces, certify)
            if chosen is None:
                best = search(asked, k, segments, banned.pairs())
            else:
                best = chosen.topk(asked, k, segments, banned, search)
                bar.update(chosen.scored_queries())
                oracle = chosen.oracle(oracle)
        kept = best.dropped_bound if certify else None
        best = replace(best, skipped=state.skipped(), dropped_bound=kept)
        return asked, best, oracle, state

    def _ranked(
        self,
        state: Snapshot,
        bar: Progress,
        traces: list[Trace],
        certify: bool,
        asked: Tensor,
        k: int,
        segments: Sequence[Segment],
        forbidden: Forbidden | None,
    ) -> Best:
        """Search segments for the k best rows of all queries."""
        found: list[Best] = []
        # Queries take 8 d bytes in float64: not all at once.
        step = tuning.MOST_QUERIES * independent_threads(len(asked), k)
        for start in range(0, max(len(asked), 1), step):
            some = slice(start, start + step)
            batches = Batches(
                asked[some],
                k,
                self.screen,
                centre=state.centre,
                forbidden=of_queries(forbidden, some),
                certify=certify,
                exact=torch.float64 in (asked.dtype, self.dtype),
            )
            batches.through(segments, last=True)
            found.append(batches.best())
            traces += batches.traces()
            bar.update(len(asked[some]))
            for part in state.parts:
                part.rows.release_pages()
        return merged(found, skipped=0)

    def save(self, path: str | Path) -> None:
        """Write the complete index to a safetensors file: vectors, codes and ids.

        The file is written under a temporary name beside ``path`` and renamed once it is on the
        disk, so that ``path`` is always the old index or the new one. Vectors in a file are copied
        a block at a time, and need no memory.
        """
        with self._lock:
            state = self._snapshot
        save_parts(
            Path(path),
            state.parts,
            state.centre,
            {
                "screen": self.screen,
                "dtype": str(self.dtype).removeprefix("torch."),
                "width": str(self.d),
                "ids": state.ids.kind or "",
                "count": str(state.ids.count),
            },
        )

    @classmethod
    def load(cls, path: str | Path, mmap: bool = True, verify: bool = True) -> CosineIndex:
        """Read what `save` wrote.

        Args:
            path: the file.
            mmap: leave the vectors in the file, which must not change; rows added later are kept in
                memory. Otherwise all vectors are read.
            verify: verify the checksums of vectors: of all that are read now; of vectors that stay
                in the file, 64 KB at a time as they are first needed, so that a search may raise
                FileError, too. Codes and ids are verified in any case. It takes 0.25 s a GB (Zen 5,
                one thread), once. All vectors of a file of version 1 are verified now.

        Raises:
            FileNotFoundError: there is no such file.
            FileError: a ValueError that says whether it is truncated, damaged, another kind of
                file, or of a later version.
        """
        parts, centre, metadata = load_parts(Path(path), mapped=mmap, verify=verify)
        index = cls.__new__(cls)
        index._start(metadata["screen"], getattr(torch, metadata["dtype"]), int(metadata["width"]))
        ids = Ids(metadata["ids"] or None, int(metadata["count"]))  # type: ignore[arg-type]
        index._snapshot = snapshot_of(parts, centre, ids)
        return index

    @classmethod
    def reopen(cls, path: str | Path, ids: Any = None, *, screen: str = "auto") -> CosineIndex:
        """Make an index of the file that another index had as its ``path``, and that none has now.

        The file holds every row of every `add` that returned, however the process ended, including
        rows that were removed later. Their checksum is verified, and they are coded again and
        numbered from 0; `add` appends to the file.

        Args:
            path: the file.
            ids: of all rows in it, as in the constructor; the file has none.
            screen: as in `topk`.

        Raises:
            FileNotFoundError: there is no such file.
            FileError: it is truncated, damaged, of another kind, or of another version.
            BlockingIOError: another index, in this process or another, has it open; the message
                says which.
        """
        one_thread_after_fork()
        _checks.screen_name(screen)
        file = VectorFile.reopen(Path(path))
        try:
            index = cls.__new__(cls)
            index._start(screen, file.dtype, file.d)
            names = index._snapshot.ids.accept((), ids, file.count)
            index._file = file
            index._append(file.rows(0), names)
        except BaseException:
            file.close()
            raise
        return index

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
