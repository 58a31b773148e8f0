"""In place of `llama_index.core.vector_stores.SimpleVectorStore`: the same, searched exactly.

Written after llama-index-core 0.14.
"""

from __future__ import annotations

from collections.abc import Callable
from typing import Any

from llama_index.core.bridge.pydantic import PrivateAttr
from llama_index.core.vector_stores.simple import SimpleVectorStore as _Theirs
from llama_index.core.vector_stores.types import (
    VectorStoreQuery,
    VectorStoreQueryMode,
    VectorStoreQueryResult,
)
from llama_index.core.vector_stores.utils import build_metadata_filter_fn

from cossim_fast.integrations._followed import Followed


class SimpleVectorStore(_Theirs):
    """llama-index's store of the same name, over a `cossim_fast.CosineIndex`.

    It takes llama-index's arguments: ``data`` is what another store held, ``fs`` the file system
    that `persist` writes to.

    All but the ranking of the mode ``DEFAULT`` is llama-index's own code: nodes, metadata filters,
    saving, and the modes ``MMR``, ``SVM`` and the like, which take every vector as they do there.
    Vectors are coded when they are first searched, not made an array of at every search; ``data``
    may be changed by anybody.

    What differs: of equal similarities those added first are found, and come first; a zero vector
    has the similarity 0, and one that holds NaN is never found.
    """

    _followed: Followed = PrivateAttr(default_factory=Followed)

    def query(self, query: VectorStoreQuery, **kwargs: Any) -> VectorStoreQueryResult:
        """Find the nodes with the largest cosine to a vector."""
        vectors = dict(self.data.embedding_dict)
        if (
            query.mode != VectorStoreQueryMode.DEFAULT
            or not vectors
            or query.query_embedding is None
            or (query.filters is not None and not self.data.metadata_dict)
        ):
            found: VectorStoreQueryResult = super().query(query, **kwargs)
            return found
        wanted = None
        if query.filters is not None or query.node_ids is not None:
            passes: Callable[[str], bool] = build_metadata_filter_fn(
                lambda node: self.data.metadata_dict[node], query.filters
            )
            named = vectors.keys() if query.node_ids is None else set(query.node_ids)
            wanted = [node for node in vectors if node in named and passes(node)]
        k = query.similarity_top_k or len(vectors)
        hits = self._followed.nearest(vectors, query.query_embedding, k, wanted)
        return VectorStoreQueryResult(
            similarities=[score for _, score in hits], ids=[node for node, _ in hits]
        )
