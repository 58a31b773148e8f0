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
from cases import FLAT, OURS, OURS_FLOAT32, SENTENCE, TRIANGLE, Case
from contender import Call, Contender
from search_peers import load_faiss, unit, unit_numpy


def _pairs_above(case: Case, x: Tensor) -> Call:
    return lambda: cossim_fast.pairs_above(x, threshold=case.threshold)


def _pairs_above_float32(case: Case, x: Tensor) -> Call:
    return lambda: cossim_fast.pairs_above(x, threshold=case.threshold, screen="float32")


def _of_pairs(answer: Any, case: Case) -> Tensor:
    return torch.stack([torch.as_tensor(answer.i), torch.as_tensor(answer.j)], 1)


def _torch_pairs(case: Case, x: Tensor) -> Call:
    def pairs() -> Tensor:
        (rows,) = unit(x)
        found = []
        for start in range(0, len(rows), 1024):
            scores = rows[start : start + 1024] @ rows[start:].T
            hits = (scores >= case.threshold).triu_(1).nonzero()
            found.append(hits + start)
        return torch.cat(found)

    return pairs


def _paraphrases(case: Case, x: Tensor) -> Call:
    # https://sbert.net/docs/package_reference/util.html. It keeps top_k neighbours a row: more
    # than any row has, where few pairs pass; where most do it cannot answer.
    from sentence_transformers.util import paraphrase_mining_embeddings  # noqa: PLC0415

    return lambda: paraphrase_mining_embeddings(x, top_k=100, max_pairs=10**9)


def _of_paraphrases(answer: Any, case: Case) -> Tensor:
    pairs = [(i, j) for score, i, j in answer if score >= case.threshold]
    return torch.tensor(pairs).reshape(-1, 2)


def _communities(case: Case, x: Tensor) -> Call:
    # The same page. It answers another question and drops most pairs: a community is a row and
    # those near it, and a row that is in one is in no other.
    from sentence_transformers.util import community_detection  # noqa: PLC0415

    how = {"threshold": case.threshold, "min_community_size": 2}
    return lambda: community_detection(x, **how)


def _of_communities(answer: Any, case: Case) -> Tensor:
    pairs = [(first, other) for first, *others in answer for other in others]
    return torch.tensor(pairs).reshape(-1, 2).sort(1).values


def _radius_neighbors(case: Case, x: Tensor) -> Call:
    # https://scikit-learn.org/stable/modules/generated/sklearn.neighbors.NearestNeighbors.html
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
    # https://github.com/facebookresearch/faiss/wiki/Special-operations-on-indexes, range_search
    faiss = load_faiss(case)
    (rows,) = unit_numpy(x)
    index = faiss.IndexFlatIP(rows.shape[1])
    index.add(rows)
    return lambda: index.range_search(rows, case.threshold)


def _of_ranges(answer: Any, case: Case) -> Tensor:
    limits, _, found = answer
    firsts = np.repeat(np.arange(len(limits) - 1), np.diff(limits.astype(np.int64)))
    return _upper(np.stack([firsts, found], 1))


def _torch_mapped_pairs(case: Case, x: np.ndarray[Any, Any]) -> Call:
    def pairs() -> Any:
        return _torch_pairs(case, torch.from_numpy(np.asarray(x, np.float32)))()

    return pairs


def _few_pass(case: Case) -> bool:
    return case.data in ("real", "clustered")


def _most_pass(case: Case) -> bool:
    return not _few_pass(case)


def _many_rows(case: Case) -> bool:
    return case.data != "real" and case.shapes[0][0] > 20000


JOIN = (
    Contender(OURS, _pairs_above, "cossim_fast:pairs_above", read=_of_pairs),
    Contender(
        OURS_FLOAT32,
        _pairs_above_float32,
        "cossim_fast:pairs_above",
        read=_of_pairs,
        takes=_most_pass,
    ),
    Contender(TRIANGLE, _torch_pairs),
    Contender(FLAT, _faiss_pairs, "faiss:IndexFlatIP", read=_of_ranges),
    Contender(
        "scikit-learn",
        _radius_neighbors,
        "sklearn.neighbors",
        read=_of_neighbour_lists,
        too_slow=_many_rows,
    ),
    Contender(
        SENTENCE,
        _paraphrases,
        "sentence_transformers.util",
        read=_of_paraphrases,
        takes=_few_pass,
        too_slow=_many_rows,
    ),
    Contender(
        f"{SENTENCE}, communities",
        _communities,
        "sentence_transformers.util",
        approximate=True,
        read=_of_communities,
        takes=_few_pass,
        too_slow=_many_rows,
    ),
    *floors.HALVES,
)
MAPPED_JOIN = (
    Contender(OURS, _pairs_above, "cossim_fast:pairs_above", read=_of_pairs),
    Contender(
        TRIANGLE,
        _torch_mapped_pairs,
        too_slow=lambda case: case.shapes[0][0] > 50000,
    ),
    *floors.HALF_MAPPED,
)
