"""Near scores: within their bound of the scores, whatever the rows."""

import numpy as np
import pytest
import torch

from cossim_fast import CosineIndex, topk
from cossim_fast._score import near as near_module
from cossim_fast._score.exact import row_norms, score_pairs, widen
from cossim_fast._score.near import near_error, near_scores, sampled_product_works, undecided
from search_data import CORPORA, brute_force, make

DTYPES = (torch.float16, torch.bfloat16, torch.float32, torch.float64)


def every_pair(queries, corpus):
    """Near scores and scores of every pair of finite rows, shuffled."""
    queries = queries[queries.isfinite().all(1)]
    wide, norms = widen(queries), row_norms(corpus)
    finite = norms.isfinite().nonzero()[:, 0]
    pairs = torch.cartesian_prod(torch.arange(len(queries)), finite)
    pairs = pairs[torch.randperm(len(pairs), generator=torch.Generator().manual_seed(1))]
    query, row = (column.contiguous() for column in pairs.mT)
    near = near_scores(wide, corpus, query, row, norms)
    return near, score_pairs(wide, corpus, query, row, norms)


@pytest.mark.parametrize("kind", CORPORA)
@pytest.mark.parametrize("dtype", DTYPES)
def test_near_scores_keep_their_bound(kind, dtype):
    for d in (1, 7, 130):
        near, scores = every_pair(*make(kind, 300, d, 6, dtype))
        assert (near - scores).abs().max() <= near_error(d)
        decided = ~undecided(near, near_error(d))
        assert torch.equal(near.float()[decided], scores.float()[decided])


def test_near_scores_of_extreme_float64_rows():
    draw = torch.Generator().manual_seed(0)
    size = 10.0 ** torch.linspace(-300, 300, 400).double()[:, None]
    corpus = torch.randn(400, 33, generator=draw, dtype=torch.float64) * size
    corpus[::50] = 0
    near, scores = every_pair(corpus[::100] / 3, corpus)
    assert (near - scores).abs().max() <= near_error(33)
    assert (near[scores == 0] == 0).all()


def test_they_are_not_the_scores_themselves():
    """Otherwise nothing here would test a bound."""
    near, scores = every_pair(*make("gaussian", 300, 130, 6, torch.float32))
    assert not torch.equal(near, scores)


def test_steps_and_strides_change_nothing(monkeypatch):
    queries, corpus = make("gaussian", 300, 24, 6, torch.float32)
    expected = every_pair(queries, corpus)[0]
    monkeypatch.setattr(near_module, "_NUMBERS", 24 * 7)
    monkeypatch.setattr(near_module, "_PAIRS", 500)
    assert torch.equal(every_pair(queries, corpus)[0], expected)
    strided = torch.zeros(300, 48)[:, ::2].copy_(corpus)
    assert torch.equal(every_pair(queries, strided)[0], expected)


def test_without_a_sampled_product_they_are_the_scores(monkeypatch):
    monkeypatch.setattr(near_module, "sampled_product_works", lambda: False)
    near, scores = every_pair(*make("gaussian", 300, 130, 6, torch.float32))
    assert torch.equal(near, scores)


def test_a_wrong_product_is_not_used(monkeypatch):
    wrong = lambda rows, queries, places, query: torch.zeros(len(query), dtype=rows.dtype)  # noqa: E731
    sampled_product_works.cache_clear()
    with monkeypatch.context() as patched:
        patched.setattr(near_module, "_sampled", wrong)
        assert not sampled_product_works()
    sampled_product_works.cache_clear()
    assert sampled_product_works()


@pytest.mark.parametrize("kind", ["near", "duplicates", "cone", "holes", "gaussian"])
@pytest.mark.parametrize("dtype", [torch.float32, torch.float64])
def test_large_k_is_exact(kind, dtype):
    queries, corpus = make(kind, 2000, 33, 8, dtype)
    for k in (1, 100, 700):
        scores, rows = brute_force(queries, corpus, k)
        for found in (topk(queries, corpus, k), CosineIndex(corpus).search(queries, k)):
            assert torch.equal(found.indices, rows)
            torch.testing.assert_close(
                found.scores, scores.to(dtype), rtol=0, atol=0, equal_nan=True
            )


def test_certified_scores_are_the_scores():
    """A certificate states them in float64, so none of them may be near only."""
    queries, corpus = make("clustered", 2000, 65, 40, torch.float32)
    found = topk(queries, corpus, 20, certify=True)
    expected, _ = brute_force(queries, corpus, 20)
    assert np.array_equal(found.certificate.kth_score, expected[:, -1].numpy())
    assert found.certificate.verify(None) == 40 * (20 + 2000)
