"""`topk(where=)`: against float64 of the rows that are left to each query."""

import numpy as np
import pytest
import torch

from cossim_fast import topk
from cossim_fast._score.exact import score_pairs, widen
from cossim_fast.retrieval import tuning
from cossim_fast.retrieval.nearest import filtered
from search_data import make

N, D, Q, K = 900, 24, 6, 5
QUERIES, CORPUS = make("clustered", N, D, Q, torch.float32)
CORPUS[17] = torch.nan
CORPUS[18] = 0
SHARES = {"none": 0.0, "few": 0.01, "some": 0.2, "most": 0.9, "all": 1.1}


def assert_best(found, allowed, queries=QUERIES, corpus=CORPUS):
    pairs = torch.cartesian_prod(torch.arange(Q), torch.arange(N))
    exact = score_pairs(widen(queries), corpus, *(p.contiguous() for p in pairs.mT)).view(Q, N)
    exact = exact.masked_fill_(~allowed, torch.nan).numpy()
    exact[:, 17] = np.nan
    scores, indices = torch.as_tensor(found.scores), torch.as_tensor(found.indices)
    for query in range(Q):
        order = np.argsort(-exact[query], kind="stable")[: int((~np.isnan(exact[query])).sum())][:K]
        assert indices[query, : len(order)].tolist() == order.tolist()
        stated = torch.from_numpy(exact[query][order]).to(scores.dtype)
        assert torch.equal(scores[query, : len(order)], stated)
        assert (indices[query, len(order) :] == -1).all()
        assert scores[query, len(order) :].isnan().all()


def drawn(share, seed=0):
    return torch.from_numpy(np.random.default_rng(seed).random((Q, N)) < share)


@pytest.fixture(params=["pairs", "searched"])
def way(request, monkeypatch):
    """Pairs scored one by one do all of the work, or none."""
    monkeypatch.setattr(tuning, "SCORED_PAIRS", 1 << 30 if request.param == "pairs" else -1)
    # Several blocks of the corpus.
    monkeypatch.setattr("cossim_fast.retrieval.storage.corpus.NUMBERS", D * 128)


@pytest.mark.parametrize("share", SHARES.values(), ids=SHARES)
@pytest.mark.parametrize("each", [False, True], ids=["for all", "each"])
@pytest.mark.parametrize("form", ["rows", "mask"])
def test_the_best_of_the_rows_that_are_left(way, share, each, form):
    allowed = drawn(share)
    if not each:
        allowed = allowed[:1].expand(Q, N)
    if form == "mask":
        where = allowed if each else allowed[0]
    else:
        where = [row.nonzero()[:, 0].tolist() for row in allowed]
        where = where if each else set(where[0])
    for screen in ("auto", "int8", "float32"):
        assert_best(topk(QUERIES, CORPUS, K, where=where, screen=screen), allowed)
    found = topk(QUERIES, CORPUS, K, where=where, certify=True)
    assert_best(found, allowed)
    found.certificate.verify(None)
    assert found.certificate.skipped == int(allowed[:, 17].any())


def test_some_queries_share_a_set_and_dtypes_differ(way):
    allowed = drawn(0.6)
    allowed[3:] = allowed[0]
    for dtype in (torch.float64, torch.float16):
        queries, corpus = QUERIES.to(dtype), CORPUS.to(dtype)
        assert_best(topk(queries, corpus, K, where=allowed), allowed, queries, corpus)
    found = topk(QUERIES.numpy(), CORPUS.numpy(), K, where=allowed.numpy())
    assert isinstance(found.indices, np.ndarray)
    assert_best(found, allowed)


def test_many_queries_are_searched_by_codes(way):
    queries = QUERIES.repeat(20, 1)
    mask = drawn(0.4)[0]
    found = topk(queries, CORPUS, K, where=mask)
    left = topk(queries, CORPUS[mask], K)
    assert torch.equal(found.indices, mask.nonzero()[:, 0][left.indices])
    assert torch.equal(found.scores, left.scores)


def test_other_rows_are_not_read(monkeypatch, tmp_path):
    """Of a memory map neither, where one set of rows is left."""
    np.save(tmp_path / "x.npy", CORPUS.numpy())
    rows = np.load(tmp_path / "x.npy", mmap_mode="r")
    read = []
    taken = filtered.ArrayCorpus.taken

    def watched(source, positions):
        read.append(len(positions))
        return taken(source, positions)

    def fail(*_arguments, **_named):
        raise AssertionError("all rows are searched")

    monkeypatch.setattr(filtered.ArrayCorpus, "taken", watched)
    monkeypatch.setattr(filtered.ArrayCorpus, "blocks", fail)
    assert_best(topk(QUERIES, rows, K, where=[1, 2, -1]), drawn(0).index_fill(
        1, torch.tensor([1, 2]), True
    ))  # fmt: skip
    monkeypatch.setattr(tuning, "SCORED_PAIRS", -1)
    mask = drawn(0.9)[0]
    assert_best(topk(QUERIES, rows, K, where=mask), mask.expand(Q, N))
    assert read == [2, int(mask.sum())]


def test_nothing_to_find():
    assert topk(QUERIES, CORPUS, 2, where=[]).indices.tolist() == [[-1, -1]] * Q
    assert topk(QUERIES[:0], CORPUS, 2, where=[3]).indices.shape == (0, 2)
    nothing = topk(torch.full((1, D), torch.nan), CORPUS, 2, where=range(100))
    assert nothing.indices.tolist() == [[-1, -1]]


def test_a_certificate_keeps_the_mask_that_was_given():
    mask = drawn(0.5)[0].numpy()
    found = topk(QUERIES, CORPUS, K, where=mask, certify=True)
    mask[:] = True
    found.certificate.verify(None)


@pytest.mark.parametrize(
    ("where", "error", "message"),
    [
        ("row", TypeError, "where to be a sequence or a set of ids.*got str"),
        (7, TypeError, "where to be a sequence or a set of ids.*got int"),
        (["row"], TypeError, "where to be a boolean mask or numbers of rows, got str"),
        (np.ones(3, bool), ValueError, r"of shape \(900,\) as the rows of the corpus.*got \(3,\)"),
        (torch.ones(2, N, dtype=torch.bool), ValueError, r"got \(2, 900\)"),
        ([[1], [2]], ValueError, "where to hold one list of ids for each of 6 queries"),
        ([0, N], ValueError, "where to hold numbers of 900 rows, got 900"),
        ([-2, 0], ValueError, "where to hold numbers of 900 rows, got -2"),
        ([0.5], TypeError, "where to be whole numbers or str, got float"),
    ],
)
def test_mistakes(where, error, message):
    with pytest.raises(error, match=message):
        topk(QUERIES, CORPUS, 1, where=where)


def test_what_knows_no_filter_says_so(tmp_path):
    mask = torch.ones(N, dtype=torch.bool)
    with pytest.raises(ValueError, match=r"no where for an iterator; leave rows out of its blocks"):
        topk(QUERIES, iter([CORPUS]), 1, where=mask)
    with pytest.raises(ValueError, match=r"no where with a checkpoint; search corpus\[mask\]"):
        topk(QUERIES, CORPUS, 1, where=mask, checkpoint=tmp_path / "c")
    assert not list(tmp_path.iterdir())
