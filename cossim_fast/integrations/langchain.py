"""In place of `langchain_core.vectorstores.InMemoryVectorStore`: the same, searched exactly.

Written after langchain-core 1.7.
"""

from __future__ import annotations

import threading
from collections.abc import Callable, Mapping
from operator import is_
from typing import Any

import numpy as np
from langchain_core.documents import Document
from langchain_core.embeddings import Embeddings
from langchain_core.vectorstores import InMemoryVectorStore as _Theirs

from cossim_fast import _checks
from cossim_fast._threads import watch
from cossim_fast.retrieval import CosineIndex

Filter = Callable[[Document], bool]
# What LangChain keeps of a document: its id, vector, text and metadata.
Entry = dict[str, Any]


class InMemoryVectorStore(_Theirs):
    """LangChain's store of the same name, over a `cossim_fast.CosineIndex`.

    Args:
        embedding: what makes vectors of texts.

    All but the ranking is LangChain's own code, so documents, ids of any kind, filters,
    asynchronous methods, ``dump`` and ``load`` are the same. Documents are coded when they are
    first searched, not at every search.

    The dictionary ``store`` may be changed by anybody, and another put in its place: a search
    compares it with what was coded, vector by vector (by identity, about 0.1 µs a document), and
    codes what is new. Only numbers that are written into a vector which stays where it is go
    unnoticed; put a new vector there.

    What differs: equal scores are in the order in which documents were added; a vector that holds
    NaN is never found, where LangChain ranks it with 0. A search is safe beside others, beside
    changes, and in its own filter; it sees documents as they are when it begins.

    Raises:
        ValueError: as LangChain, where no cosine is defined: the query is zero or holds NaN, or all
            vectors do; and where vectors differ in length.

    >>> from langchain_core.embeddings import DeterministicFakeEmbedding
    >>> store = InMemoryVectorStore(DeterministicFakeEmbedding(size=8))
    >>> _ = store.add_texts(["one", "two"], ids=["1", "2"])
    >>> store.similarity_search("two", k=1)[0].id
    '2'
    """

    def __init__(self, embedding: Embeddings) -> None:
        super().__init__(embedding)
        self._coded = _Coded()

    def _similarity_search_with_score_by_vector(
        self,
        embedding: list[float],
        k: int = 4,
        filter: Filter | None = None,
        **_kwargs: Any,
    ) -> list[tuple[Document, float, list[float]]]:
        """Find the k documents with the largest cosine to a vector, their cosines and vectors.

        Every search of the class comes here, and a subclass may override it.

        Args:
            embedding: (d,) numbers.
            k: how many documents, if there are as many; as in a slice, -1 is all but the last.
            filter: what says of a document whether it may be found.
        """
        wanted: dict[Any, Entry] | None = None
        if filter is not None:
            # Nothing is locked: it may take long, and search this store.
            held = dict(self.store)
            wanted = {key: entry for key, entry in held.items() if filter(_document(entry))}
        hits = self._coded.nearest(self.store, embedding, k, wanted)
        return [(_document(entry), score, entry["vector"]) for entry, score in hits]

    def __getstate__(self) -> dict[str, Any]:
        held = dict(self.__dict__)
        del held["_coded"]
        return held

    def __setstate__(self, held: dict[str, Any]) -> None:
        self.__dict__.update(held)
        self._coded = _Coded()


class _Coded:
    """The vectors of a dictionary of entries, coded as they were at the last search.

    Rows of the index have numbers, and so keys of the dictionary may be anything.
    """

    def __init__(self) -> None:
        self._forget()
        watch(self)

    def _forget(self) -> None:
        self._lock = threading.Lock()
        self._index: CosineIndex | None = None
        self._vectors: dict[Any, Any] = {}
        self._number: dict[Any, int] = {}
        self._key: dict[int, Any] = {}

    def forked(self) -> None:
        """Be fit for use in a child process: a thread that is not there may hold the lock."""
        if self._lock.locked():
            self._forget()

    def nearest(
        self, store: Mapping[Any, Entry], embedding: Any, k: int, wanted: dict[Any, Entry] | None
    ) -> list[tuple[Entry, float]]:
        """The k nearest entries, best first; of ``wanted`` ones that are still there, if given."""
        query = _checks.as_tensor("embedding", embedding).detach().cpu().double().numpy()[None]
        with self._lock:
            entries = dict(store)  # in one step, which other threads do not come into
            index = self._follow({key: entry["vector"] for key, entry in entries.items()})
            where = None
            if wanted is not None:
                entries = {key: e for key, e in wanted.items() if entries.get(key) is e}
                where = np.array([self._number[key] for key in entries], dtype=np.int64)
            if index is None or not entries:
                return []
            vectors = [entry["vector"] for entry in entries.values()]
            if not (_has_direction(query) and any(map(_has_direction, vectors))):
                raise ValueError(
                    "expected a query and documents with a direction, got vectors that are zero or "
                    "hold NaN alone: no cosine is defined"
                )
            most = len(range(len(entries))[:k])
            if not most:
                return []
            scores, numbers = index.search(query, most, where=where)[:2]
            hits = zip(numbers[0].tolist(), scores[0].tolist(), strict=True)
            return [(entries[self._key[row]], score) for row, score in hits if row >= 0]

    def _follow(self, vectors: dict[Any, Any]) -> CosineIndex | None:
        """The index, after what was added, replaced and deleted since the last search."""
        before = self._vectors
        if list(vectors) == list(before) and all(map(is_, vectors.values(), before.values())):
            return self._index
        new = [key for key, vector in vectors.items() if before.get(key) is not vector]
        gone = [key for key, vector in before.items() if vectors.get(key) is not vector]
        widths = sorted({len(vectors[key]) for key in new})
        if len(widths) > 1:
            raise ValueError(f"expected vectors of one length in the store, got {widths}")
        rows = np.array([vectors[key] for key in new], dtype=np.float64)
        if self._index is None or len(gone) == len(before):
            self._index = CosineIndex(rows) if new else None
            self._number, self._key = {}, {}
        else:
            if new:
                self._index.add(rows)
            old = [self._number.pop(key) for key in gone]
            for number in old:
                del self._key[number]
            self._index.remove(old)
        if self._index is not None:
            numbers = self._index.ids[len(vectors) - len(new) :].tolist()
            self._number.update(zip(new, numbers, strict=True))
            self._key.update(zip(numbers, new, strict=True))
        self._vectors = vectors
        return self._index


def _document(entry: Entry) -> Document:
    return Document(id=entry["id"], page_content=entry["text"], metadata=entry["metadata"])


def _has_direction(vector: Any) -> bool:
    """Whether a vector is finite and not zero."""
    numbers = np.asarray(vector, dtype=np.float64)
    return bool(numbers.any()) and bool(np.isfinite(numbers).all())
