"""Searches that rank all rows by one float32 product: exact, and only where they are meant to."""

import numpy as np
import pytest
import torch

from cossim_fast import CosineIndex, _products, topk
from cossim_fast.retrieval import tuning
from cossim_fast.retrieval.nearest import ranked
from cossim_fast.retrieval.screening import costs, float_product, rates
from search_data import CORPORA, brute_force, make

DTYPES = [torch.float16, torch.bfloat16, torch.float32, torch.float64]


@pytest.fixture(autouse=True)
def _always(monkeypatch):
    """Rank where it may be done at all, a few queries at a time."""
    monkeypatch.setattr(tuning, "CODING_PAYS", 0)
    monkeypatch.setattr(tuning, "RANKED_SPARES", 1e9)
    monkeypatch.setattr(tuning, "RANKED_SCORES", 7 * 700)


def assert_exact(found, queries, corpus, k):
    scores, rows = brute_force(queries, corpus, k)
    assert torch.equal(found.indices, rows)
    assert torch.equal(found.scores.nan_to_num(-9), scores.to(found.scores.dtype).nan_to_num(-9))


@pytest.mark.parametrize("k", [1, 10, 300, 700])
@pytest.mark.parametrize("dtype", DTYPES, ids=str)
@pytest.mark.parametrize("kind", CORPORA)
def test_every_kind_of_corpus(kind, dtype, k):
    queries, corpus = make(kind, 700, 40, 20, dtype)
    index = CosineIndex(corpus)
    assert "all are ranked" in index.explain(queries, k).reason
    assert_exact(index.search(queries, k), queries, corpus, k)
    assert_exact(topk(queries, corpus, k), queries, corpus, k)


@pytest.mark.parametrize("linear", [False, True])
@pytest.mark.parametrize("d", [1, 3, 384])
def test_by_either_library(linear, d, monkeypatch):
    monkeypatch.setattr(_products, "linear_is_faster", lambda: linear)
    queries, corpus = make("clustered", 901, d, 33, torch.float32)
    assert_exact(CosineIndex(corpus).search(queries, 200), queries, corpus, 200)


def test_queries_that_hold_nan_find_nothing():
    queries, corpus = make("gaussian", 300, 24, 20, torch.float32)
    queries[4, 3], queries[17] = torch.nan, torch.inf
    found = CosineIndex(corpus).search(queries, 40)
    assert (found.indices[[4, 17]] == -1).all()
    assert found.scores[[4, 17]].isnan().all()
    assert_exact(found, queries, corpus, 40)


def test_excluded_and_removed_rows_are_not_returned():
    queries, corpus = make("gaussian", 400, 24, 20, torch.float32)
    index = CosineIndex(corpus)
    index.remove(np.arange(0, 400, 5))
    each = [np.arange(number, 400, 3) for number in range(20)]
    found = index.search(queries, 100, exclude=each)
    scores = torch.nn.functional.normalize(queries.double()) @ (
        torch.nn.functional.normalize(corpus.double()).mT
    )
    scores[:, ::5] = -torch.inf
    for number, rows in enumerate(each):
        scores[number, rows] = -torch.inf
    best = scores.topk(100)
    assert torch.equal(found.indices, best.indices)
    torch.testing.assert_close(found.scores.double(), best.values, atol=1e-7, rtol=0)


def test_the_first_margin_that_is_too_narrow_loses_rows(monkeypatch):
    """Rows that float32 cannot tell apart are found by the margin alone."""
    queries, corpus = make("near", 700, 40, 20, torch.float64)
    monkeypatch.setattr(ranked, "_passing", _without_margin)
    _, rows = brute_force(queries, corpus, 50)
    assert not torch.equal(CosineIndex(corpus).search(queries, 50).indices, rows)


def _without_margin(values, margin, k, passing=ranked._passing):
    return passing(values, 0 * margin, k)


def test_what_decides(monkeypatch):
    _, corpus = make("gaussian", 1600, 384, 20, torch.float32)
    segment = CosineIndex(corpus)._snapshot.parts[0].segment
    for name, rate in {"int8": 450.0, "float32": 128.0}.items():
        monkeypatch.setattr(rates, name, lambda rate=rate: rates.Rate(rate, rate / 128))
    monkeypatch.setattr(costs, "pair_ns", lambda: 140.0)
    monkeypatch.setattr(tuning, "RANKED_SPARES", 0.4)
    # 4.4 ns a row more, 96 less for each that is wanted: one in 22.
    assert ranked.pays(80, segment, 20)
    assert not ranked.pays(60, segment, 20)
    assert not ranked.pays(80, segment, tuning.RANKED_QUERIES - 1)
    monkeypatch.setattr(tuning, "RANKED_NUMBERS", 1600 * 384 - 1)
    assert not ranked.pays(80, segment, 20)


def test_named_screens_and_certificates_are_not_ranked():
    queries, corpus = make("gaussian", 700, 40, 20, torch.float32)
    assert "ranked" not in CosineIndex(corpus, screen="float32").explain(queries, 100).reason
    CosineIndex(corpus).search(queries, 100, certify=True).certificate.verify()


@pytest.mark.parametrize("shape", [(1, 1, 1), (16, 16, 5), (65, 130, 40), (300, 17, 64)])
def test_the_product_is_that_of_full_numbers(shape, monkeypatch):
    n, m, d = shape
    draw = torch.Generator().manual_seed(0)
    rows, others = torch.randn(n, d, generator=draw), torch.randn(m, d, generator=draw)
    exact = rows.double() @ others.double().mT
    allowed = d * 2.0**-24 * torch.outer(rows.double().norm(dim=1), others.double().norm(dim=1))
    for linear in (False, True):
        monkeypatch.setattr(_products, "linear_is_faster", lambda found=linear: found)
        with torch.autocast("cpu", dtype=torch.bfloat16):
            found = float_product.product(rows, others)
        assert found.dtype == torch.float32
        assert ((found - exact).abs() <= allowed + 2.0**-140).all()
