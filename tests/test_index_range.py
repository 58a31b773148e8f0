"""Every row of an index above a threshold."""

import math

import numpy as np
import pytest
import torch

from cossim_fast import CosineIndex, _cpu_screen
from search_data import CORPORA, make


def brute_force(queries, corpus, threshold):
    pairs = torch.cartesian_prod(torch.arange(len(queries)), torch.arange(len(corpus)))
    wide = _cpu_screen.widen(queries)
    scores = _cpu_screen.score_pairs(wide, corpus, *(p.contiguous() for p in pairs.mT))
    kept = scores >= threshold
    return pairs[kept], scores[kept]


@pytest.mark.parametrize("threshold", [-1.0, 0.0, 0.3, 0.99])
@pytest.mark.parametrize("kind", CORPORA)
def test_every_kind_of_corpus(kind, threshold):
    dtype = torch.float64 if kind == "near" else torch.float32
    queries, corpus = make(kind, 500, 24, 5, dtype)
    index = CosineIndex(corpus[:200])
    index.add(corpus[200:])
    found = index.range_search(queries, threshold)
    pairs, scores = brute_force(queries, corpus, threshold)
    assert torch.equal(found.indices, pairs[:, 1])
    assert torch.equal(found.scores, scores.to(dtype))
    assert found.lims.tolist() == [int((pairs[:, 0] < i).sum()) for i in range(6)]


def test_removed_rows_ids_and_containers():
    queries, corpus = make("clustered", 300, 16, 4, torch.float32)
    names = [f"row {i}" for i in range(300)]
    index = CosineIndex(corpus.numpy(), ids=names)
    index.remove([f"row {i}" for i in range(0, 300, 3)])
    found = index.range_search(queries.numpy(), 0.5)
    pairs, _ = brute_force(queries, corpus, 0.5)
    left = pairs[pairs[:, 1] % 3 > 0, 1]
    assert found.indices.tolist() == [names[i] for i in left]
    assert isinstance(found.scores, np.ndarray)
    empty = index.range_search(queries[:0], 0.5)
    assert (empty.lims.tolist(), len(empty.scores)) == ([0], 0)
    nothing = index.range_search(torch.full((1, 16), math.nan), -1)
    assert nothing.lims.tolist() == [0, 0]


@pytest.mark.parametrize(
    ("queries", "threshold", "error", "message"),
    [
        (torch.ones(1, 3), 0.5, ValueError, r"\(q, 16\).*got \(q, 3\)"),
        (torch.ones(1, 16), 1.5, ValueError, "threshold in"),
        (torch.ones(1, 16).int(), 0.5, TypeError, "got torch.int32"),
    ],
)
def test_errors(queries, threshold, error, message):
    index = CosineIndex(make("gaussian", 20, 16, 2, torch.float32)[1])
    with pytest.raises(error, match=message):
        index.range_search(queries, threshold)
