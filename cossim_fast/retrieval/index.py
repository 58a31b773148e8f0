"""`CosineIndex`: rows that are coded once and searched many times."""

from __future__ import annotations

from pathlib import Path
from typing import Any

import numpy as np
import torch

from cossim_fast import _checks
from cossim_fast._as_one import as_one
from cossim_fast._threads import one_thread_after_fork
from cossim_fast.retrieval.contents import Contents
from cossim_fast.retrieval.engines import engine_on
from cossim_fast.retrieval.explanation import SearchExplanation, explained
from cossim_fast.retrieval.results import CertifiedTopK, RangeHits, TopK, assemble
from cossim_fast.retrieval.searching import Search
from cossim_fast.retrieval.storage.growing_file import VectorFile
from cossim_fast.retrieval.storage.index_file import IndexFile, save_index


class CosineIndex(Contents):
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
        device: None or ``"cpu"``; or a GPU, as ``"cuda"`` or ``"cuda:1"``, that holds rows and
            codes, and searches them.

    Memory: codes, d bytes a row (none with ``screen`` "float32" or "bfloat16"), and the rows,
    unless they are in a file. Building needs 64 MB more. An index in memory of at least 2^23
    numbers that is often searched with one or two queries also codes projections of its rows onto
    their first principal directions, if that is predicted to make such searches faster. It does so
    in the 17th such search, which takes up to twice as long as building did. They take less than d
    bytes a row, and are neither saved nor pickled. Pages of a file that a search reads count as
    memory of the process until the search ends, and the system can reclaim them. Ids from the
    caller take what numpy or Python needs for them, and about 100 bytes each more from the first
    `add`, `remove` or ``exclude`` on.

    On a GPU, rows and codes lie in its memory: a byte a number and 2 a row more than the rows, and
    twice that while `add` merges parts. Ids are on the host. Arrays and CPU tensors are copied
    over, and what is found comes in their container; what is found for CUDA tensors stays on the
    GPU. Everything is done as on CPU, with the same results, but for the last bits of scores
    (2^-48, as on another processor). Refused are ``path``, screens of floats, and a GPU that cannot
    run the kernels. Pickling copies the rows, and unpickling needs the same GPU; `save` writes a
    file that needs none.

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
            ``store`` cannot hold, an unknown screen, a device that is not there.
        NotImplementedError: a GPU that cannot run the kernels; the message says what it lacks.
        FileExistsError: ``path`` exists.

    >>> index = CosineIndex(torch.eye(3), ids=["x", "y", "z"])
    >>> found = index.search(torch.tensor([[0.0, 3.0, 4.0]]), 2)
    >>> found.indices
    array([['z', 'y']], dtype=object)
    >>> found.scores
    tensor([[0.8000, 0.6000]])
    """

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
        given = _checks.embedding_rows("embeddings", embeddings, None)
        _checks.screen_name(screen)
        engine = engine_on(device, screen, given.shape[1], path)
        given = engine.given("embeddings", given)
        source = embeddings if isinstance(embeddings, np.ndarray) else given
        dtype = given.dtype if store is None else _checks.stored_dtype(store)
        self._start(engine, screen, dtype, given.shape[1])
        self._create(source, len(given), ids, path)

    def __len__(self) -> int:
        """How many rows there are, not counting removed ones."""
        return self._snapshot.live_count()

    def __repr__(self) -> str:
        where = "" if self.device.type == "cpu" else f", on {self.device}"
        screen = f"screen {self.screen!r}"
        return f"CosineIndex({len(self)} rows of {self.d}, {self.dtype}, {screen}{where})"

    @property
    def device(self) -> torch.device:
        """Where the rows are, and are searched."""
        return self._engine.device

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
        rows = self._engine.given("embeddings", embeddings)
        source = embeddings if isinstance(embeddings, np.ndarray) else rows
        _checks.index_width(rows.shape[1], self.d)
        self._extend(source, len(rows), ids)

    @as_one
    def remove(self, ids: Any) -> None:
        """Remove the rows with these ids (1-D).

        Searches no longer return them. Their memory is freed once more than half of a part's rows
        are removed; rows in a file stay in it.

        Raises:
            KeyError: no row has one of the ids. Nothing is removed then.
        """
        one_thread_after_fork()
        self._remove(_checks.row_ids("ids", ids))

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
        search = self._search(queries, exclude, where)
        k = _checks.number_of_neighbours(k, search.state.live_count())
        best, oracle = search.topk(k, certify=certify, progress=progress, traces=[])
        found = assemble(queries, best, double=search.double, oracle=oracle)
        ids = search.given_back(queries, search.ids(best.positions))
        return found._replace(scores=search.given_back(queries, found.scores), indices=ids)

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
        search = self._search(queries, exclude, where)
        found = search.reaching(_checks.threshold(threshold))
        scores = found.scores.to(torch.float64 if search.double else torch.float32)
        columns = search.lims(found), scores, search.ids(found.position)
        return RangeHits(*(search.given_back(queries, column) for column in columns))

    @as_one
    def explain(self, queries: Any, k: int) -> SearchExplanation:
        """Search, and report how: which screens, which tiles, how many rows had to be scored.

        Args:
            queries: as in `search`.
            k: as in `search`.
        """
        search = self._search(queries, None, None)
        k = _checks.number_of_neighbours(k, search.state.live_count())
        return explained(search, k, self._engine.reason)

    def _search(self, queries: Any, exclude: Any, where: Any) -> Search:
        one_thread_after_fork()
        asked = self._engine.given("queries", queries)
        _checks.same_width(asked.shape[1], self.d)
        double = torch.float64 in (asked.dtype, self.dtype)
        with self._lock:
            return Search(self._engine, self._snapshot, asked, exclude, where, double=double)

    def save(self, path: str | Path) -> None:
        """Write the complete index to a safetensors file: vectors, codes and ids.

        The file is written under a temporary name beside ``path`` and renamed once it is on the
        disk, so that ``path`` is always the old index or the new one. Vectors in a file or on a GPU
        are copied a block at a time, and need no memory. The file does not depend on the device.
        """
        with self._lock:
            state = self._snapshot
        save_index(Path(path), state, self.screen, self.dtype, self.d)

    @classmethod
    def load(
        cls,
        path: str | Path,
        mmap: bool = True,
        verify: bool = True,
        device: torch.device | str | None = None,
    ) -> CosineIndex:
        """Read what `save` wrote.

        Args:
            path: the file.
            mmap: leave the vectors in the file, which must not change; rows added later are kept in
                memory. Otherwise all vectors are read.
            verify: verify the checksums of vectors: of all that are read now; of vectors that stay
                in the file, 64 KB at a time as they are first needed, so that a search may raise
                FileError, too. Codes and ids are verified in any case. It takes 0.25 s a GB (Zen 5,
                one thread), once. All vectors of a file of version 1 are verified now.
            device: as in the constructor. A GPU gets all vectors now, a block at a time, and codes
                them itself.

        Raises:
            FileNotFoundError: there is no such file.
            FileError: a ValueError that says whether it is truncated, damaged, another kind of
                file, or of a later version.
        """
        index = cls.__new__(cls)
        with IndexFile(Path(path)) as file:
            engine = engine_on(device, file.screen, file.d)
            index._start(engine, file.screen, file.stored, file.d)
            coder = engine.part if engine.recodes else None
            mapped = mmap or engine.recodes
            index._snapshot = file.contents(engine.device, coder, mapped=mapped, verify=verify)
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
            index._start(engine_on(None, screen, file.d), screen, file.dtype, file.d)
            index._adopt(file, ids)
        except BaseException:
            file.close()
            raise
        return index
