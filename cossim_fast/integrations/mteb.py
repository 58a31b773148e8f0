"""In place of `mteb.models.search_encoder_index.FaissSearchIndex`: an exact search backend.

Written after MTEB 2.26, whose ``IndexEncoderSearchProtocol`` it follows. Needs torch alone.
"""

from __future__ import annotations

from collections.abc import Callable, Mapping, Sequence
from typing import Any

import torch
from torch import Tensor

from cossim_fast import _checks
from cossim_fast.retrieval import topk


class CosineSearchIndex:
    """Ranks the documents of a retrieval task by cosine, exactly.

    Args:
        model: the encoder, if its similarity is to be checked; it must be the cosine.

    Give it to ``mteb.models.SearchEncoderWrapper(model, index_backend=CosineSearchIndex(model))``.

    Raises:
        ValueError: the model is meant for another similarity.

    >>> index = CosineSearchIndex()
    >>> index.add_documents(torch.eye(3), ["a", "b", "c"])
    >>> index.search(torch.tensor([[0.0, 3.0, 0.0]]), 2, None)
    ([[1.0, 0.0]], [[1, 0]])
    """

    def __init__(self, model: Any = None) -> None:
        if model is not None:
            name = model.mteb_model_meta.similarity_fn_name
            if getattr(name, "value", name) not in ("cosine", None):
                raise ValueError(
                    f"expected a model whose similarity is the cosine, got {name}; "
                    "leave its search to MTEB"
                )
        self.clear()

    def add_documents(self, embeddings: Any, idxs: Sequence[str]) -> None:
        """Add documents (n, d) with their n ids."""
        rows = _rows("embeddings", embeddings)
        if len(rows) != len(idxs):
            raise ValueError(f"expected one id a document, got {len(rows)} and {len(idxs)} ids")
        if self._parts:
            _checks.index_width(rows.shape[1], self._parts[0].shape[1])
        self._parts.append(rows)
        self._ids.extend(idxs)

    def search(
        self,
        embeddings: Any,
        top_k: int,
        similarity_fn: Callable[[Any, Any], Any] | None,
        top_ranked: Mapping[str, Sequence[str]] | None = None,
        query_idx_to_id: Mapping[int, str] | None = None,
    ) -> tuple[list[list[float]], list[list[int]]]:
        """Find the best documents for each query, among all or among its candidates.

        Args:
            embeddings: (q, d) queries.
            top_k: how many documents for each query, if there are as many.
            similarity_fn: not used: the similarity is the cosine.
            top_ranked: for each query's id the ids of its candidates.
            query_idx_to_id: the id of each query, for ``top_ranked``.

        Returns:
            For each query the cosines, largest first, and the documents: their positions among all
            that were added, or among the query's candidates.
        """
        if not self._parts:
            raise ValueError("expected documents to search; call add_documents first")
        documents, queries = self._documents(), _rows("embeddings", embeddings)
        _checks.same_width(queries.shape[1], documents.shape[1])
        if top_ranked is None:
            return _found(queries, documents, top_k)
        if query_idx_to_id is None:
            raise ValueError("expected query_idx_to_id beside top_ranked, got None")
        place = {name: i for i, name in enumerate(self._ids)}
        scores: list[list[float]] = []
        positions: list[list[int]] = []
        for i in range(len(queries)):
            names = top_ranked.get(query_idx_to_id[i]) or ()
            candidates = documents[[place[name] for name in names]]
            best, at = _found(queries[i : i + 1], candidates, top_k)
            scores += best
            positions += at
        return scores, positions

    def clear(self) -> None:
        """Forget all documents."""
        self._parts: list[Tensor] = []
        self._ids: list[str] = []

    def _documents(self) -> Tensor:
        if len(self._parts) > 1:
            self._parts = [torch.cat(self._parts)]
        return self._parts[0]


def _rows(name: str, given: Any) -> Tensor:
    return _checks.embedding_rows(name, _checks.as_tensor(name, given).cpu())


def _found(queries: Tensor, rows: Tensor, k: int) -> tuple[list[list[float]], list[list[int]]]:
    """The k best rows for each query, without the gaps that NaN leaves."""
    if not len(rows) or not len(queries):
        return [[] for _ in queries], [[] for _ in queries]
    best, at = topk(queries, rows, min(k, len(rows)))[:2]
    held = at >= 0
    scores = [some[kept].tolist() for some, kept in zip(best, held, strict=True)]
    return scores, [some[kept].tolist() for some, kept in zip(at, held, strict=True)]
