"""In place of `langchain_core.vectorstores.InMemoryVectorStore`: the same, searched exactly.

Written after langchain-core 1.7.
"""

from __future__ import annotations

import threading
from collections.abc import Callable, Sequence
from typing import Any, cast

import numpy as np
from langchain_core.documents import Document
from langchain_core.embeddings import Embeddings
from langchain_core.vectorstores import InMemoryVectorStore as _Theirs
from langchain_core.vectorstores.utils import maximal_marginal_relevance

from cossim_fast import _checks
from cossim_fast._threads import watch
from cossim_fast.retrieval import CosineIndex

Filter = Callable[[Document], bool]


class InMemoryVectorStore(_Theirs):
    """LangChain's store of the same name, over a `cossim_fast.CosineIndex`.

    Args:
        embedding: what makes vectors of texts.

    Documents, ids, filters, asynchronous methods, ``dump`` and ``load`` are LangChain's. Documents
    are coded when they are first searched, not at every search. Equal scores are in the order in
    which documents were added, and vectors that hold NaN are never found. Searches and changes in
    several threads are safe.

    >>> from langchain_core.embeddings import DeterministicFakeEmbedding
    >>> store = InMemoryVectorStore(DeterministicFakeEmbedding(size=8))
    >>> _ = store.add_texts(["one", "two"], ids=["1", "2"])
    >>> store.similarity_search("two", k=1)[0].id
    '2'
    """

    def __init__(self, embedding: Embeddings) -> None:
        super().__init__(embedding)
        self._forget()

    def _forget(self) -> None:
        """Code everything anew at the next search."""
        self._lock = threading.Lock()
        self._index: CosineIndex | None = None
        self._coded: set[str] = set()
        self._changed = set(self.store)
        watch(self)

    def forked(self) -> None:
        """Be fit for use in a forked child: another thread may have been at it."""
        self._forget()

    def add_documents(
        self, documents: list[Document], ids: list[str] | None = None, **kwargs: Any
    ) -> list[str]:
        """Add documents; those whose ids are taken replace what is there."""
        return self._noted(super().add_documents(documents, ids, **kwargs))

    async def aadd_documents(
        self, documents: list[Document], ids: list[str] | None = None, **kwargs: Any
    ) -> list[str]:
        """Add documents; those whose ids are taken replace what is there."""
        return self._noted(await super().aadd_documents(documents, ids, **kwargs))

    def delete(self, ids: Sequence[str] | None = None, **kwargs: Any) -> None:
        """Delete the documents with these ids; ids that are not there are ignored."""
        super().delete(ids, **kwargs)
        self._noted(list(ids or ()))

    def similarity_search_with_score_by_vector(
        self,
        embedding: list[float],
        k: int = 4,
        filter: Filter | None = None,
        **_kwargs: Any,
    ) -> list[tuple[Document, float]]:
        """Find the k documents with the largest cosine to a vector, and their cosines.

        Args:
            embedding: (d,) numbers.
            k: how many documents, if there are as many.
            filter: what says of a document whether it may be found.
        """
        return [(hit, score) for hit, score, _ in self._nearest(embedding, k, filter)]

    def max_marginal_relevance_search_by_vector(
        self,
        embedding: list[float],
        k: int = 4,
        fetch_k: int = 20,
        lambda_mult: float = 0.5,
        *,
        filter: Filter | None = None,
        **kwargs: Any,
    ) -> list[Document]:
        """Choose k of the ``fetch_k`` nearest documents that are unlike each other."""
        hits = self._nearest(embedding, fetch_k, filter)
        vectors = [vector for _, _, vector in hits]
        query = np.array(embedding, dtype=np.float32)
        chosen = maximal_marginal_relevance(query, vectors, k=k, lambda_mult=lambda_mult)
        return [hits[i][0] for i in chosen]

    @classmethod
    def load(cls, path: str, embedding: Embeddings, **kwargs: Any) -> InMemoryVectorStore:
        """Read what ``dump`` wrote."""
        store = cast("InMemoryVectorStore", super().load(path, embedding, **kwargs))
        store._forget()
        return store

    def __getstate__(self) -> dict[str, Any]:
        return {"store": self.store, "embedding": self.embedding}

    def __setstate__(self, held: dict[str, Any]) -> None:
        self.__dict__.update(held)
        self._forget()

    def _noted(self, ids: list[str]) -> list[str]:
        with self._lock:
            self._changed.update(ids)
        return ids

    def _document(self, name: str) -> Document:
        held = self.store[name]
        return Document(id=name, page_content=held["text"], metadata=held["metadata"])

    def _nearest(
        self, embedding: list[float], k: int, wanted: Filter | None
    ) -> list[tuple[Document, float, list[float]]]:
        query = _checks.as_tensor("embedding", embedding).detach().cpu().double().numpy()[None]
        with self._lock:
            index = self._up_to_date()
            hidden = []
            if wanted is not None:
                hidden = [name for name in self.store if not wanted(self._document(name))]
            most = min(k, len(self.store) - len(hidden))
            if index is None or most < 1:
                return []
            scores, names = index.search(query, most, exclude=hidden or None)[:2]
            hits = zip(names[0], scores[0].tolist(), strict=True)
            return [
                (self._document(name), score, self.store[name]["vector"])
                for name, score in hits
                if name is not None
            ]

    def _up_to_date(self) -> CosineIndex | None:
        """The index, after what was added, replaced and deleted since the last search."""
        new = [name for name in self.store if name in self._changed]
        rows = np.array([self.store[name]["vector"] for name in new], dtype=np.float64)
        old = self._changed & self._coded
        if self._index is not None and old:
            self._index.remove(sorted(old))
            self._coded -= old
        if new and self._index is None:
            self._index = CosineIndex(rows, ids=new)
        elif new and self._index is not None:
            self._index.add(rows, ids=new)
        self._coded.update(new)
        self._changed.clear()
        return self._index
