"""In place of `sentence_transformers.util`: the same functions, exact. Needs torch alone.

Written after sentence-transformers 6.2.0, ``util/similarity.py`` and ``util/retrieval.py``.

What differs: cosines of dense rows on CPU are ranked and compared with thresholds in float64, so
that no chunk size changes a result, and equal ones are ranked by position. Rows that hold NaN or
an infinity are never found. Sums of float16 rows are kept in float32, rows of any magnitude are
right, and every cosine lies in [-1, 1].
"""

from __future__ import annotations

from collections.abc import Callable, Iterator
from typing import Any

import numpy as np
import torch
from torch import Tensor

from cossim_fast import _checks
from cossim_fast.functional import cosine_similarity, pairwise_cosine
from cossim_fast.retrieval import CosineIndex, communities, topk

Score = Callable[[Tensor, Tensor], Tensor]
# The smallest norm that F.normalize divides by.
_EPS = 1e-12


def cos_sim(a: Any, b: Any) -> Tensor:
    """Return the cosine of every row of a with every row of b, (n, m).

    Args:
        a: (n, d) or (d,) tensor, array or list; dense, or a sparse COO tensor.
        b: (m, d) or (d,) likewise.

    Returns:
        A dense tensor (n, m) in float32, float64 if an input is. With gradients.

    A product with a sparse tensor stays sparse: nothing is made dense but the result.

    >>> cos_sim([[3.0, 4.0]], [[1.0, 0.0], [0.0, 1.0]])
    tensor([[0.6000, 0.8000]])
    """
    a, b = _matrix(_floats("a", a)), _matrix(_floats("b", b))
    if a.is_sparse or b.is_sparse:
        return torch.mm(_unit(a), _unit(b).transpose(0, 1)).to_dense()
    return pairwise_cosine(a, b, eps=_EPS)


def pairwise_cos_sim(a: Any, b: Any) -> Tensor:
    """Return the cosine of each row of a with the same row of b, (n,).

    Args:
        a: (n, d) tensor, array or list; dense, or a sparse COO tensor.
        b: (n, d) likewise.

    >>> pairwise_cos_sim([[3.0, 4.0], [1.0, 0.0]], [[1.0, 0.0], [2.0, 0.0]])
    tensor([0.6000, 1.0000])
    """
    a, b = _floats("a", a), _floats("b", b)
    if a.is_sparse or b.is_sparse:
        return (_unit(a) * _unit(b)).sum(dim=-1).to_dense()
    return cosine_similarity(a, b, dim=-1, eps=_EPS)


def semantic_search(
    query_embeddings: Any,
    corpus_embeddings: Any,
    query_chunk_size: int = 100,
    corpus_chunk_size: int = 500000,
    top_k: int = 10,
    score_function: Score = cos_sim,
) -> list[list[dict[str, int | float]]]:
    """Find the rows of a corpus that are most like each query.

    Args:
        query_embeddings: (q, d) or (d,) tensor, array or list; may be sparse COO.
        corpus_embeddings: (n, d) or (d,) likewise.
        query_chunk_size: queries at a time. An exact search of dense rows on CPU does not need it,
            nor the next; other searches hold as many scores as the product of the two.
        corpus_chunk_size: rows at a time.
        top_k: how many rows for each query, if there are as many.
        score_function: `cos_sim`, this one or the library's, for which the search is exact; or any
            other function of two chunks that gives a matrix of scores.

    Returns:
        For each query a list of ``{"corpus_id": int, "score": float}``, best first.

    >>> semantic_search([[0.0, 2.0]], [[1.0, 0.0], [0.0, 1.0]], top_k=1)
    [[{'corpus_id': 1, 'score': 1.0}]]
    """
    _checks.whole_number("query_chunk_size", query_chunk_size)
    _checks.whole_number("corpus_chunk_size", corpus_chunk_size)
    corpus = _rows("corpus_embeddings", corpus_embeddings)
    corpus = _matrix(corpus) if len(corpus) else corpus
    queries = _rows("query_embeddings", query_embeddings, single=True).to(corpus.device)
    k = min(top_k, len(corpus))
    if k < 1 or not len(queries):
        return [[] for _ in range(len(queries))]
    found: list[list[dict[str, int | float]]] = []
    chunks: Iterator[Any]
    if _exact(score_function, queries, corpus):
        chunks = iter([topk(queries, corpus, k)[:2]])
    else:
        chunks = _ranked(score_function, queries, corpus, k, query_chunk_size, corpus_chunk_size)
    for values, positions in chunks:
        for scores, rows in zip(values.tolist(), positions.tolist(), strict=True):
            hits = zip(rows, scores, strict=True)
            found.append([{"corpus_id": i, "score": score} for i, score in hits if i >= 0])
    return found


def paraphrase_mining_embeddings(
    embeddings: Any,
    query_chunk_size: int = 5000,
    corpus_chunk_size: int = 100000,
    max_pairs: int = 500000,
    top_k: int = 100,
    score_function: Score = cos_sim,
) -> list[list[float | int]]:
    """Find the pairs of rows that are most like each other.

    Pairs are looked for among each row and the ``top_k`` others that are nearest to it. For every
    pair above a threshold, however many there are, see `cossim_fast.pairs_above`.

    Args:
        embeddings: (n, d) tensor, array or list.
        query_chunk_size: rows at a time.
        corpus_chunk_size: rows that these are compared with at a time; an exact search of dense
            rows on CPU does not need it.
        max_pairs: how many pairs to return at most.
        top_k: how many neighbours of each row to look at.
        score_function: `cos_sim`, this one or the library's, or another symmetric function of two
            chunks.

    Returns:
        A list of ``[score, i, j]``, i < j, best first, equal ones by (i, j).

    >>> paraphrase_mining_embeddings([[1.0, 0.0], [0.0, 1.0], [0.0, 2.0]], max_pairs=1)
    [[1.0, 1, 2]]
    """
    _checks.whole_number("query_chunk_size", query_chunk_size)
    _checks.whole_number("corpus_chunk_size", corpus_chunk_size)
    x = _rows("embeddings", embeddings)
    n = len(x)
    k = min(top_k + 1, n)
    if n < 2 or top_k < 1 or max_pairs < 1:
        return []
    chunks: Iterator[Any]
    if _exact(score_function, x, x):
        index = CosineIndex(x)
        starts = range(0, n, query_chunk_size)
        chunks = (index.search(x[i : i + query_chunk_size], k)[:2] for i in starts)
    else:
        chunks = _ranked(score_function, x, x, k, query_chunk_size, corpus_chunk_size)
    best = _BestPairs(n, max_pairs)
    first = 0
    for values, positions in chunks:
        best.add(first, values.cpu().numpy(), positions.cpu().numpy(), top_k)
        first += len(values)
    return best.listed()


def community_detection(
    embeddings: Any,
    threshold: float = 0.75,
    min_community_size: int = 10,
    batch_size: int = 1024,
    show_progress_bar: bool = False,
) -> list[list[int]]:
    """Find groups of rows around a central row, which comes first in each; largest group first.

    Args:
        embeddings: (n, d) tensor, array or list.
        threshold: the cosine to the centre that a member reaches.
        min_community_size: rows of the smallest community.
        batch_size: changes nothing here.
        show_progress_bar: show one (needs tqdm: ``pip install 'cossim_fast[retrieval]'``).

    See `cossim_fast.communities`, which says what is done step by step.

    >>> community_detection([[1.0, 0.0], [0.0, 1.0], [0.1, 2.0]], min_community_size=2)
    [[1, 2]]
    """
    _checks.whole_number("batch_size", batch_size)
    x = _rows("embeddings", embeddings)
    least = max(min_community_size, 1)
    # Cosines end at 1, thresholds need not: nothing reaches 1.1, and all reach -2.
    if len(x) < least or threshold > 1:
        return []
    x = _matrix(x.to_dense() if x.is_sparse else x).cpu()
    found = communities(x, max(threshold, -1.0), least, progress=show_progress_bar)
    return [community.tolist() for community in found]


class _BestPairs:
    """The pairs (i < j) with the largest scores among those that come, each once."""

    def __init__(self, n: int, most: int) -> None:
        self._n, self._most = n, most
        self._keys = np.empty(0, np.int64)  # i n + j
        self._scores = np.empty(0)

    def add(self, first: int, scores: Any, others: Any, top_k: int) -> None:
        """Take the neighbours (q, k), best first, of the rows from ``first`` on."""
        row = np.arange(first, first + len(others), dtype=np.int64)[:, None]
        # A row is among its own neighbours, save where many are as near: then one is too many.
        other = (others != row) & (others >= 0)
        other &= other.cumsum(1) <= top_k
        row = np.broadcast_to(row, others.shape)[other]
        low, high = np.minimum(row, others[other]), np.maximum(row, others[other])
        keys = np.concatenate([self._keys, low * self._n + high])
        keys, at = np.unique(keys, return_index=True)
        scores = np.concatenate([self._scores, scores[other]])[at]
        if len(keys) > self._most:
            best = np.sort(np.argsort(-scores, kind="stable")[: self._most])
            keys, scores = keys[best], scores[best]
        self._keys, self._scores = keys, scores

    def listed(self) -> list[list[float | int]]:
        """All of them as [score, i, j], best first."""
        order = np.argsort(-self._scores, kind="stable")
        low, high = np.divmod(self._keys[order], self._n)
        columns = (self._scores[order].tolist(), low.tolist(), high.tolist())
        return [list(pair) for pair in zip(*columns, strict=True)]


def _exact(score_function: Score, *given: Tensor) -> bool:
    """Whether a search is one for cosines that `topk` does."""
    return _is_cosine(score_function) and not any(x.is_sparse or not x.is_cpu for x in given)


def _is_cosine(score: Score) -> bool:
    """Whether a score is `cos_sim`: ours, or the library's, which need not be loaded."""
    if score is cos_sim:
        return True
    room = str(getattr(score, "__module__", "")).partition(".")[0]
    return (room, getattr(score, "__name__", "")) == ("sentence_transformers", "cos_sim")


def _ranked(
    score: Score, queries: Tensor, corpus: Tensor, k: int, query_chunk: int, corpus_chunk: int
) -> Iterator[tuple[Tensor, Tensor]]:
    """The k best scores (q, k) and rows of each chunk of queries, chunk by chunk of the corpus."""
    for start in range(0, len(queries), query_chunk):
        some = _part(queries, start, query_chunk)
        best: Tensor | None = None
        positions = torch.empty(0, dtype=torch.int64, device="cpu")
        for first in range(0, len(corpus), corpus_chunk):
            scores = score(some, _part(corpus, first, corpus_chunk)).detach()
            rows = torch.arange(first, first + scores.shape[1], device=scores.device)
            rows = rows.expand(scores.shape)
            if best is not None:
                scores, rows = torch.cat([best, scores], 1), torch.cat([positions, rows], 1)
            best, at = torch.topk(scores, min(k, scores.shape[1]), dim=1)
            positions = rows.gather(1, at)
        assert best is not None
        yield best, positions


def _part(x: Tensor, start: int, rows: int) -> Tensor:
    """Some rows of a tensor, which slicing does not give of a sparse one."""
    if not x.is_sparse:
        return x[start : start + rows]
    return x.index_select(0, torch.arange(start, min(start + rows, len(x)), device=x.device))


def _rows(name: str, given: Any, *, single: bool = False) -> Tensor:
    """A tensor with values and an axis of rows; ``single`` makes a row of a vector."""
    x = _tensor(name, given)
    if not x.is_sparse:
        _checks.with_values(name, x)
    if x.dim() == 0:
        raise ValueError(f"expected {name} of shape (n, d), got a single number")
    return _matrix(x) if single else x


def _tensor(name: str, given: Any) -> Tensor:
    """A tensor of what these functions take; lists are stacked, sparse tensors are float32."""
    if isinstance(given, (list, tuple)) and len(given):
        if all(isinstance(item, Tensor) for item in given):
            given = _checks.stacked(name, given)
        elif all(isinstance(item, np.ndarray) for item in given):
            given = _checks.as_tensor(name, given)
    if isinstance(given, Tensor):
        if given.is_sparse:
            return given.to(torch.float32)
        _checks.dense_tensor(name, given)
        return given
    return _checks.listed(name, given)


def _floats(name: str, given: Any) -> Tensor:
    """A tensor of float32 or wider."""
    x = _tensor(name, given)
    narrow = x.is_floating_point() and torch.finfo(x.dtype).bits < 32
    return x.to(torch.float32) if narrow else x


def _matrix(x: Tensor) -> Tensor:
    return x.unsqueeze(0) if x.dim() == 1 else x


def _unit(x: Tensor) -> Tensor:
    """The rows of a dense or a sparse matrix, divided by their norms."""
    if not x.is_sparse:
        return torch.nn.functional.normalize(x, dim=-1, eps=_EPS)
    x = x.coalesce()
    values = x.values()
    # A sparse vector is one row.
    row = x.indices()[0] if x.dim() > 1 else torch.zeros_like(x.indices()[0])
    squares = values.new_zeros(x.shape[0] if x.dim() > 1 else 1).index_add(0, row, values * values)
    unit = values / squares.sqrt().clamp_min(_EPS)[row]
    return torch.sparse_coo_tensor(
        x.indices(), unit, x.shape, dtype=unit.dtype, device=unit.device, is_coalesced=True
    )
