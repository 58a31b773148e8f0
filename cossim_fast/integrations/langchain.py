"""In place of `langchain_core.vectorstores.InMemoryVectorStore`: the same, searched exactly.

Written after langchain-core 1.7.
"""

from __future__ import annotations

from collections.abc import Callable
from typing import Any

import numpy as np
from langchain_core.documents import Document
from langchain_core.embeddings import Embeddings
from langchain_core.vectorstores import InMemoryVectorStore as _Theirs

from cossim_fast import _checks
from cossim_fast.integrations._followed import Followed

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
        self._coded = Followed()

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
        entries = dict(self.store)  # in one step, which other threads do not come into
        vectors = {key: entry["vector"] for key, entry in entries.items()}
        if wanted is not None:  # of ones that are still there
            entries = {key: entry for key, entry in wanted.items() if entries.get(key) is entry}
        query = _checks.as_tensor("embedding", embedding)
        if entries and not (
            _has_direction(query.detach().cpu().double().numpy())
            and any(_has_direction(entry["vector"]) for entry in entries.values())
        ):
            raise ValueError(
                "expected a query and documents with a direction, got vectors that are zero or "
                "hold NaN alone: no cosine is defined"
            )
        most = len(range(len(entries))[:k])
        if not most:
            return []
        hits = self._coded.nearest(vectors, query, most, None if wanted is None else entries)
        found = [(entries[key], score) for key, score in hits]
        return [(_document(entry), score, entry["vector"]) for entry, score in found]

    def __getstate__(self) -> dict[str, Any]:
        held = dict(self.__dict__)
        del held["_coded"]
        return held

    def __setstate__(self, held: dict[str, Any]) -> None:
        self.__dict__.update(held)
        self._coded = Followed()


def _document(entry: Entry) -> Document:
    return Document(id=entry["id"], page_content=entry["text"], metadata=entry["metadata"])


def _has_direction(vector: Any) -> bool:
    """Whether a vector is finite and not zero."""
    numbers = np.asarray(vector, dtype=np.float64)
    return bool(numbers.any()) and bool(np.isfinite(numbers).all())
