"""Every row of an index above a threshold."""

import math

import numpy as np
import pytest
import torch

from cossim_fast import CosineIndex
from cossim_fast._score.exact import score_pairs, widen
from search_data import CORPORA, make


def brute_force(queries, corpus, threshold):
    pairs = torch.cartesian_prod(torch.arange(len(queries)), torch.arange(len(corpus)))
    wide = widen(queries)
    scores = score_pairs(wide, corpus, *(p.contiguous() for p in pairs.mT))
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


def test_excluded_rows_are_not_returned():
    queries, corpus = make("clustered", 300, 16, 4, torch.float32)
    index = CosineIndex(corpus[:120], ids=torch.arange(1000, 1120))
    index.add(corpus[120:], ids=torch.arange(1120, 1300))
    index.remove([1001, 1299])
    pairs, scores = brute_force(queries, corpus, 0.2)
    there = ~torch.isin(pairs[:, 1], torch.tensor([1, 299]))
    for_all = [1000, 1001, 1150, 7]  # one is removed and one was never there
    nearest = index.search(queries, 5).indices
    per_query = torch.cat([nearest, torch.full((4, 1), -1)], 1)
    for exclude, excluded in (
        (for_all, torch.isin(pairs[:, 1] + 1000, torch.tensor(for_all))),
        (set(for_all), torch.isin(pairs[:, 1] + 1000, torch.tensor(for_all))),
        (per_query, (nearest[pairs[:, 0]] == pairs[:, 1:] + 1000).any(1)),
        ([], torch.zeros(len(pairs), dtype=torch.bool)),
    ):
        kept = there & ~excluded
        found = index.range_search(queries, 0.2, exclude=exclude)
        assert torch.equal(found.indices, pairs[kept, 1] + 1000)
        assert torch.equal(found.scores, scores[kept].float())
        assert found.lims.tolist() == [int((pairs[kept, 0] < i).sum()) for i in range(5)]
    with pytest.raises(TypeError, match="strings"):
        index.range_search(queries, 0.2, exclude=["a"])
    with pytest.raises(ValueError, match="4"):
        index.range_search(queries, 0.2, exclude=[[1000], [1001]])


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
