"""In place of `langgraph.store.memory.InMemoryStore`: the same, searched exactly.

Written after langgraph-checkpoint 4.3.
"""

from __future__ import annotations

from typing import Any

from langgraph.store.base import IndexConfig, Item, Result, SearchItem, SearchOp
from langgraph.store.memory import InMemoryStore as _Theirs

from cossim_fast.integrations._followed import Followed

# What a search is asked, and the items that pass its filter, with their vectors.
Asked = dict[int, tuple[SearchOp, list[tuple[Item, list[list[float]]]]]]


class InMemoryStore(_Theirs):
    """LangGraph's store of the same name, over a `cossim_fast.CosineIndex`.

    Args:
        index: how texts become vectors, as LangGraph takes it; None for a store without search.

    All but the ranking by a query is LangGraph's own code: items, namespaces, filters, fields,
    asynchronous methods. Vectors are coded when they are first searched, not made an array of at
    every search. An item of several vectors counts with its best, as there.

    What differs: equal scores are in the order in which vectors were added; a vector that holds NaN
    is never found; a query of zeros gives 0, and no warning.

    >>> def embed(texts):
    ...     return [[1.0, len(text)] for text in texts]
    >>> store = InMemoryStore(index={"dims": 2, "embed": embed, "fields": ["text"]})
    >>> for text in ("a", "bb", "cccc"):
    ...     store.put(("docs",), text, {"text": text})
    >>> [item.key for item in store.search(("docs",), query="dddd", limit=2)]
    ['cccc', 'bb']
    """

    def __init__(self, *, index: IndexConfig | None = None) -> None:
        super().__init__(index=index)
        self._followed = Followed()

    def _batch_search(
        self, ops: Asked, queryinmem_store: dict[str, list[float]], results: list[Result]
    ) -> None:
        """Answer searches: those by a query, and by LangGraph's code all others."""
        mine = {number for number, (op, _) in ops.items() if op.query and queryinmem_store}
        others = {number: asked for number, asked in ops.items() if number not in mine}
        super()._batch_search(others, queryinmem_store, results)
        if not mine:
            return
        vectors = {
            (namespace, key, path): vector
            for namespace, items in dict(self._vectors).items()
            for key, paths in dict(items).items()
            for path, vector in dict(paths).items()
        }
        paths: dict[Any, list[Any]] = {}
        for name in vectors:
            paths.setdefault(name[:2], []).append(name)
        for number in mine:
            op, candidates = ops[number]
            assert op.query is not None
            query = queryinmem_store[op.query]
            results[number] = self._ranked(op, candidates, query, vectors, paths)

    def _ranked(
        self,
        op: SearchOp,
        candidates: list[tuple[Item, list[list[float]]]],
        query: list[float],
        vectors: dict[Any, Any],
        paths: dict[Any, list[Any]],
    ) -> list[SearchItem]:
        """The items of one search, by the best of their vectors; those without any at the end."""
        items = {(item.namespace, item.key): item for item, found in candidates if found}
        wanted = [name for key in items for name in paths.get(key, ())]
        last = op.offset + op.limit
        # The best rows hold as many items, whichever these are.
        most = max((len(paths.get(key, ())) for key in items), default=0) * last
        if min(op.offset, op.limit) < 0:
            most = len(wanted)
        hits = self._followed.nearest(vectors, query, most, wanted) if wanted and most else []
        best: dict[Any, float] = {}
        for name, score in hits:
            best.setdefault(name[:2], score)
        kept: list[tuple[Item, float | None]] = []
        for place, (key, score) in enumerate(best.items()):
            if place >= last:
                break
            if place >= op.offset:
                kept.append((items[key], score))
        scoreless = [item for item, found in candidates if not found]
        if len(kept) < op.limit:
            kept += [(item, None) for item in scoreless[: op.limit - len(kept)]]
        return [
            SearchItem(
                namespace=item.namespace,
                key=item.key,
                value=item.value,
                created_at=item.created_at,
                updated_at=item.updated_at,
                score=score,
            )
            for item, score in kept
        ]
