"""Contenders of the join: every pair of rows above a threshold.

`read` returns the pairs (number, 2), each with i < j, in any order.
"""

from __future__ import annotations

from typing import Any

import numpy as np
import torch
from torch import Tensor

import cossim_fast
import floors
from cases import FLAT, OURS, SENTENCE, Case
from contender import Call, Contender
from search_peers import load_faiss, unit, unit_numpy


def _pairs_above(case: Case, x: Tensor) -> Call:
    return lambda: cossim_fast.pairs_above(x, threshold=case.threshold)


def _of_pairs(answer: Any, case: Case) -> Tensor:
    return torch.stack([answer.i, answer.j], 1)


def _torch_pairs(case: Case, x: Tensor) -> Call:
    def pairs() -> Tensor:
        (rows,) = unit(x)
        found = []
        for start in range(0, len(rows), 1024):
            scores = rows[start : start + 1024] @ rows[start:].T
            hits = (scores.triu_(1) >= case.threshold).nonzero()
            found.append(hits + start)
        return torch.cat(found)

    return pairs


def _paraphrases(case: Case, x: Tensor) -> Call:
    # It keeps top_k neighbours a row: more than any row has. community_detection of the same
    # library answers another question: it drops pairs that belong to no community.
    from sentence_transformers.util import paraphrase_mining_embeddings  # noqa: PLC0415

    return lambda: paraphrase_mining_embeddings(x, top_k=100, max_pairs=10**9)


def _of_paraphrases(answer: Any, case: Case) -> Tensor:
    pairs = [(i, j) for score, i, j in answer if score >= case.threshold]
    return torch.tensor(pairs).reshape(-1, 2)


def _radius_neighbors(case: Case, x: Tensor) -> Call:
    from sklearn.neighbors import NearestNeighbors  # noqa: PLC0415

    rows = x.numpy()
    found = NearestNeighbors(metric="cosine", algorithm="brute").fit(rows)
    return lambda: found.radius_neighbors(rows, 1 - case.threshold, return_distance=False)


def _of_neighbour_lists(answer: Any, case: Case) -> Tensor:
    firsts = np.repeat(np.arange(len(answer)), [len(rows) for rows in answer])
    return _upper(np.stack([firsts, np.concatenate(answer)], 1))


def _upper(pairs: Any) -> Tensor:
    """Those with i < j, which is what the libraries that return both orders leave to the user."""
    return torch.from_numpy(pairs[pairs[:, 0] < pairs[:, 1]].astype(np.int64))


def _faiss_pairs(case: Case, x: Tensor) -> Call:
    faiss = load_faiss(case)
    (rows,) = unit_numpy(x)
    index = faiss.IndexFlatIP(rows.shape[1])
    index.add(rows)
    return lambda: index.range_search(rows, case.threshold)


def _of_ranges(answer: Any, case: Case) -> Tensor:
    limits, _, found = answer
    firsts = np.repeat(np.arange(len(limits) - 1), np.diff(limits.astype(np.int64)))
    return _upper(np.stack([firsts, found], 1))


JOIN = (
    Contender(OURS, _pairs_above, "cossim_fast:pairs_above", read=_of_pairs),
    Contender("triangular product", _torch_pairs),
    Contender(FLAT, _faiss_pairs, "faiss:IndexFlatIP", read=_of_ranges),
    Contender("scikit-learn", _radius_neighbors, "sklearn.neighbors", read=_of_neighbour_lists),
    Contender(SENTENCE, _paraphrases, "sentence_transformers.util", read=_of_paraphrases),
    *floors.HALVES,
)
