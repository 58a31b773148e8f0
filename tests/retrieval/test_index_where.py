"""Searches of some rows of an index: `where`, against float64 of the rows that are left."""

import numpy as np
import pytest
import torch

from cossim_fast import CosineIndex
from cossim_fast._score.exact import score_pairs, widen
from cossim_fast.retrieval import selection, tuning
from search_data import make

N, D, Q, K = 900, 24, 6, 5
QUERIES, CORPUS = make("clustered", N, D, Q, torch.float32)
SHARES = {"none": 0.0, "few": 0.01, "some": 0.2, "most": 0.9, "all": 1.1}


def index_of(corpus=CORPUS, **options):
    """An index of two parts with ids that are no positions, of which some are removed."""
    index = CosineIndex(corpus[:500], ids=torch.arange(1000, 1500), **options)
    index.add(corpus[500:], ids=torch.arange(1500, 1900))
    index.remove(range(1000, 1900, 7))
    return index


def scores_of(allowed):
    """The float64 score of every query and row; NaN where they may not meet."""
    pairs = torch.cartesian_prod(torch.arange(Q), torch.arange(N))
    scores = score_pairs(widen(QUERIES), CORPUS, *(p.contiguous() for p in pairs.mT)).view(Q, N)
    scores[:, ::7] = torch.nan
    return scores.masked_fill_(~allowed, torch.nan).numpy()


def assert_best(found, allowed):
    exact = scores_of(allowed)
    for query in range(Q):
        order = np.argsort(-exact[query], kind="stable")[: int((~np.isnan(exact[query])).sum())][:K]
        got = found.indices[query]
        assert got[: len(order)].tolist() == (order + 1000).tolist()
        assert torch.equal(
            found.scores[query, : len(order)], torch.tensor(exact[query][order]).float()
        )
        assert (got[len(order) :] == -1).all()
        assert found.scores[query, len(order) :].isnan().all()


def drawn(share, seed=0):
    return torch.from_numpy(np.random.default_rng(seed).random((Q, N)) < share)


@pytest.fixture(params=["pairs", "gathered", "masked"])
def way(request, monkeypatch):
    """The three ways of `selection`, each made to do all of the work."""
    monkeypatch.setattr(tuning, "SCORED_PAIRS", 1 << 30 if request.param == "pairs" else -1)
    gathered = request.param == "gathered"
    monkeypatch.setattr(selection.Selection, "is_small_share", lambda *_: gathered)


@pytest.mark.parametrize("share", SHARES.values(), ids=SHARES)
@pytest.mark.parametrize("each", [False, True], ids=["for all", "each"])
@pytest.mark.parametrize("form", ["ids", "mask"])
def test_the_best_of_the_rows_that_are_left(way, share, each, form):
    index, allowed = index_of(), drawn(share)
    if not each:
        allowed = allowed[:1].expand(Q, N)
    live = torch.arange(N) % 7 > 0
    if form == "mask":
        where = allowed[:, live] if each else allowed[0, live]
    else:
        where = [(row.nonzero()[:, 0] + 1000).tolist() for row in allowed]
        where = where if each else set(where[0])
    found = index.search(QUERIES, K, where=where, certify=True)
    assert_best(found, allowed)
    found.certificate.verify(None)
    plain = index.search(QUERIES, K, where=where)
    assert torch.equal(plain.indices, found.indices)
    assert torch.equal(plain.scores.nan_to_num(9), found.scores.nan_to_num(9))
    reached = index.range_search(QUERIES, 0.3, where=where)
    exact = scores_of(allowed)
    query, row = (exact >= 0.3).nonzero()
    assert reached.indices.tolist() == (row + 1000).tolist()
    assert reached.lims.tolist() == [0, *np.bincount(query, minlength=Q).cumsum()]
    assert torch.equal(reached.scores, torch.from_numpy(exact[query, row]).float())


@pytest.mark.parametrize("each", [False, True])
def test_what_is_excluded_is_not_returned_even_so(way, each):
    index, allowed = index_of(), drawn(0.3)
    where = [(row.nonzero()[:, 0] + 1000).tolist() for row in allowed]
    first = index.search(QUERIES, 3, where=where).indices
    exclude = first if each else first.flatten()
    for query in range(Q):
        hidden = (first[query] if each else first.flatten()) - 1000
        allowed[query, hidden] = False
    assert_best(index.search(QUERIES, K, where=where, exclude=exclude), allowed)
    found = index.range_search(QUERIES, 0.3, where=where, exclude=exclude)
    assert found.indices.tolist() == ((scores_of(allowed) >= 0.3).nonzero()[1] + 1000).tolist()


def test_a_few_rows_are_found_without_a_look_at_the_others(monkeypatch):
    index = index_of()

    def fail(*_arguments, **_named):
        raise AssertionError("all rows are searched")

    monkeypatch.setattr(selection, "_masked", fail)
    assert_best(
        index.search(QUERIES, K, where=[1001, 1002]),
        drawn(0).index_fill(1, torch.tensor([1, 2]), True),
    )
    monkeypatch.setattr(tuning, "SCORED_PAIRS", -1)
    index.search(QUERIES, K, where=range(1000, 1100))


def test_a_mask_may_be_a_list():
    index, allowed = index_of(), drawn(0.3)
    live = allowed[:, torch.arange(N) % 7 > 0]
    wanted = index.search(QUERIES, K, where=live).indices
    for where in (live.tolist(), list(live), list(live.numpy()), live.numpy()):
        assert torch.equal(index.search(QUERIES, K, where=where).indices, wanted)
    one = index.search(QUERIES, K, where=live[0].tolist()).indices
    assert torch.equal(one, index.search(QUERIES, K, where=live[0]).indices)


@pytest.mark.parametrize("screen", ["float32", "bfloat16"])
@pytest.mark.parametrize("dtype", [torch.float64, torch.float16])
def test_screens_and_dtypes(way, screen, dtype):
    index = CosineIndex(CORPUS.to(dtype), screen=screen)
    allowed = drawn(0.3)[0]
    found = index.search(QUERIES, K, where=allowed)
    left = CosineIndex(CORPUS.to(dtype)[allowed], screen=screen).search(QUERIES, K)
    assert torch.equal(found.indices, allowed.nonzero()[:, 0][left.indices])
    assert torch.equal(found.scores, left.scores)


def test_strings_files_nan_and_empty(tmp_path, way):
    rows = CORPUS.clone()
    rows[3] = torch.nan
    names = [f"row {i}" for i in range(N)]
    index = CosineIndex(rows, ids=names, path=tmp_path / "rows.safetensors")
    found = index.search(QUERIES, 3, where=["row 3", "row 4", "nobody", None])
    assert found.indices[:, 0].tolist() == ["row 4"] * Q
    assert found.indices[:, 1:].tolist() == [[None, None]] * Q
    assert index.search(QUERIES, 2, where=[]).indices.tolist() == [[None] * 2] * Q
    assert index.search(QUERIES[:0], 2, where=names[:4]).indices.shape == (0, 2)
    assert index.range_search(QUERIES, -1, where=[]).lims.tolist() == [0] * (Q + 1)
    nothing = index.search(torch.full((1, D), torch.nan), 2, where=names)
    assert nothing.indices.tolist() == [[None, None]]


@pytest.mark.parametrize(
    ("where", "error", "message"),
    [
        ("row", TypeError, "where to be a sequence or a set of ids.*got str"),
        (7, TypeError, "where to be a sequence or a set of ids.*got int"),
        (["row"], TypeError, "ids to be whole numbers"),
        (np.ones(3, bool), ValueError, r"mask, of shape \(771,\).*\(6, 771\).*got \(3,\)"),
        (torch.ones(2, 771, dtype=torch.bool), ValueError, r"got \(2, 771\)"),
        ([[1001], [1002]], ValueError, "where to hold one list of ids for each of 6 queries"),
        ([True, 1001], TypeError, "where to be whole numbers or str, got bool, int"),
        ([[True]] + [[True, False]] * 5, TypeError, "got bool"),
        ([1001.5], TypeError, "where to be whole numbers or str, got float"),
    ],
)
def test_mistakes(where, error, message):
    for call in (
        lambda i: i.search(QUERIES, 1, where=where),
        lambda i: i.range_search(QUERIES, 0, where=where),
    ):
        with pytest.raises(error, match=message):
            call(index_of())
