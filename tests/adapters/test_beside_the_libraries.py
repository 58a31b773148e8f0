"""The adapters for sentence-transformers and FAISS beside the libraries, on real embeddings."""

import inspect
from pathlib import Path

import faiss
import numpy as np
import pytest
import torch
from sentence_transformers import SimilarityFunction, util

from cossim_fast import communities
from cossim_fast.integrations import sentence_transformers as adapter
from cossim_fast.integrations.faiss import IndexFlatCosine, knn

DATA = Path(__file__).parent.parent.parent / "examples" / "data"
ROWS = torch.from_numpy(np.load(DATA / "wordnet_minilm_4k_f16.npy")).float()
NAMES = ["cos_sim", "pairwise_cos_sim", "semantic_search", "paraphrase_mining_embeddings",
         "community_detection"]  # fmt: skip


@pytest.mark.parametrize("name", NAMES)
def test_arguments_and_defaults_are_theirs(name):
    mine, theirs = (inspect.signature(getattr(one, name)).parameters for one in (adapter, util))
    assert list(mine) == list(theirs)
    for parameter in mine:
        defaults = [of[parameter].default for of in (mine, theirs)]
        assert defaults[0] == defaults[1] or parameter == "score_function"


def test_cosines_are_theirs():
    torch.testing.assert_close(
        adapter.cos_sim(ROWS[:500], ROWS), util.cos_sim(ROWS[:500], ROWS), atol=1e-6, rtol=0
    )
    torch.testing.assert_close(
        adapter.pairwise_cos_sim(ROWS[1:], ROWS[:-1]), util.pairwise_cos_sim(ROWS[1:], ROWS[:-1]),
        atol=1e-6, rtol=0,
    )  # fmt: skip


def assert_ranked_alike(mine, theirs):
    """Equal up to the order of cosines that float32 cannot tell apart: [(score, what), ...]."""
    np.testing.assert_allclose([s for s, _ in mine], [s for s, _ in theirs], atol=1e-6)
    last = theirs[-1][0] + 1e-6
    assert {w for s, w in mine if s > last} == {w for s, w in theirs if s > last}


def test_search_finds_the_same():
    found = [one.semantic_search(ROWS[:200], ROWS, top_k=20) for one in (adapter, util)]
    for mine, theirs in zip(*found, strict=True):
        assert_ranked_alike(
            *([(hit["score"], hit["corpus_id"]) for hit in hits] for hits in (mine, theirs))
        )


@pytest.mark.parametrize("as_tensor", [True, False])
def test_a_vector_is_a_corpus_of_one_row(as_tensor):
    query, corpus = (ROWS[3], ROWS[5]) if as_tensor else (ROWS[3].numpy(), ROWS[5].numpy())
    found = [one.semantic_search(query, corpus) for one in (adapter, util)]
    assert [[hit["corpus_id"] for hit in hits] for hits in found[0]] == [[0]]
    assert found[0][0][0]["score"] == pytest.approx(found[1][0][0]["score"], abs=1e-6)


@pytest.mark.parametrize(
    "score",
    [util.cos_sim, SimilarityFunction.to_similarity_fn("cosine"), adapter.cos_sim],
    ids=["theirs", "by name", "ours"],
)
def test_the_library_s_own_score_is_searched_exactly(score, monkeypatch):
    wanted = adapter.semantic_search(ROWS[:50], ROWS, top_k=7)
    pairs = adapter.paraphrase_mining_embeddings(ROWS[:300], top_k=5)
    monkeypatch.setattr(adapter, "_ranked", None)  # the way of other scores
    assert adapter.semantic_search(ROWS[:50], ROWS, top_k=7, score_function=score) == wanted
    found = adapter.paraphrase_mining_embeddings(ROWS[:300], top_k=5, score_function=score)
    assert found == pairs


@pytest.mark.parametrize("most", [100, 500_000])
def test_paraphrases_are_the_same(most):
    found = [
        one.paraphrase_mining_embeddings(ROWS, max_pairs=most, top_k=20) for one in (adapter, util)
    ]
    assert len(found[0]) == len(found[1])
    assert_ranked_alike(*([(s, (i, j)) for s, i, j in pairs] for pairs in found))


@pytest.mark.parametrize(("threshold", "least"), [(0.5, 5), (0.6, 3), (0.75, 2)])
def test_communities_are_the_same(threshold, least):
    found = [
        one.community_detection(ROWS, threshold, min_community_size=least)
        for one in (adapter, util)
    ]
    assert len(found[0]) == len(found[1]) > 0
    assert [(one[0], set(one)) for one in found[0]] == [(one[0], set(one)) for one in found[1]]


def test_communities_by_our_own_name_are_the_same():
    wanted = util.community_detection(ROWS, threshold=0.6, min_community_size=4)
    found = communities(ROWS, 0.6, 4)
    assert len(found) > 10
    assert [set(community.tolist()) for community in found] == [set(each) for each in wanted]
    assert [int(community[0]) for community in found] == [each[0] for each in wanted]


@pytest.fixture(scope="module")
def indexes():
    mine, theirs = IndexFlatCosine(384), faiss.IndexFlatIP(384)
    mine.add(ROWS.numpy())
    theirs.add(torch.nn.functional.normalize(ROWS).numpy())
    return mine, theirs


def test_faiss_finds_the_same(indexes):
    mine, theirs = indexes
    assert (mine.ntotal, mine.d, mine.is_trained, mine.metric_type) == (
        theirs.ntotal, theirs.d, theirs.is_trained, theirs.metric_type,
    )  # fmt: skip
    queries = torch.nn.functional.normalize(ROWS[:100]).numpy()
    for k in (1, 10):
        found = [one.search(queries, k) for one in indexes]
        assert [x.dtype for x in found[0]] == [x.dtype for x in found[1]]
        for a, b, c, d in zip(*found[0], *found[1], strict=True):
            assert_ranked_alike(list(zip(a, b, strict=True)), list(zip(c, d, strict=True)))
    found = [one.range_search(queries, 0.5) for one in indexes]
    for a, b in zip(*found, strict=True):
        assert a.dtype == b.dtype
    assert np.array_equal(found[0][0], found[1][0])
    for start, stop in zip(found[0][0][:-1], found[0][0][1:], strict=True):
        span = slice(int(start), int(stop))
        assert set(found[0][2][span]) == set(found[1][2][span])


def test_faiss_has_the_same_gaps_and_removes_the_same():
    mine, theirs = IndexFlatCosine(3), faiss.IndexFlatIP(3)
    eye = np.array([[1, 0, 0], [0.8, 0.6, 0], [0, 0.6, 0.8]], dtype="f")  # no ties
    for one in (mine, theirs):
        one.add(eye)
    for a, b in zip(mine.search(eye, 5), theirs.search(eye, 5), strict=True):
        np.testing.assert_allclose(a, b, rtol=1e-6)
    gone = np.array([0, 9], dtype="int64")
    assert mine.remove_ids(gone) == theirs.remove_ids(gone) == 1
    assert np.array_equal(mine.reconstruct_n(0, 2), theirs.reconstruct_n(0, 2))
    assert np.array_equal(mine.search(eye[2:], 1)[1], theirs.search(eye[2:], 1)[1])
    for one in (mine, theirs):
        with pytest.raises(RuntimeError):
            one.reconstruct(7)
        one.reset()
        assert one.ntotal == 0


SELECTORS = [
    lambda: faiss.IDSelectorBatch([3, 9, 3999, 10**6]),
    lambda: faiss.IDSelectorArray([3, 9]),
    lambda: faiss.IDSelectorRange(100, 3000),
    lambda: faiss.IDSelectorNot(faiss.IDSelectorBatch([0, 1, 2])),
    lambda: faiss.IDSelectorBitmap(np.full(500, 0b10101010, "uint8")),
]


@pytest.mark.parametrize("selector", SELECTORS)
def test_faiss_selects_the_same(indexes, selector):
    chosen, queries = selector(), torch.nn.functional.normalize(ROWS[:50]).numpy()
    found = [one.search(queries, 3, params=faiss.SearchParameters(sel=chosen)) for one in indexes]
    for a, b, c, d in zip(*found[0], *found[1], strict=True):
        assert np.array_equal(b < 0, d < 0)
        assert_ranked_alike(list(zip(a, b, strict=True)), list(zip(c, d, strict=True)))
    some = [IndexFlatCosine(384), faiss.IndexFlatIP(384)]
    for one in some:
        one.add(queries)
    assert some[0].remove_ids(chosen) == some[1].remove_ids(chosen)
    assert np.array_equal(some[0].reconstruct_n(), some[1].reconstruct_n())


def test_faiss_takes_and_gives_an_index(indexes, tmp_path):
    mine, theirs = indexes
    given = mine.to_faiss()
    assert isinstance(given, faiss.IndexFlatIP)
    np.testing.assert_allclose(given.reconstruct_n(), theirs.reconstruct_n(), atol=1e-7)
    faiss.write_index(given, str(tmp_path / "index"))
    again = IndexFlatCosine.from_faiss(faiss.read_index(str(tmp_path / "index")))
    queries = ROWS[:50].numpy()
    for a, b in zip(again.search(queries, 5), mine.search(queries, 5), strict=True):
        np.testing.assert_allclose(a, b, atol=1e-6)
    zero = IndexFlatCosine(2)
    zero.add([[0.0, 0.0], [3e-30, 4e-30]])
    np.testing.assert_allclose(zero.to_faiss().reconstruct_n(), [[0, 0], [0.6, 0.8]], atol=1e-7)
    with pytest.raises(RuntimeError, match="inner product"):
        IndexFlatCosine.from_faiss(faiss.IndexFlatL2(3))
    mine, moved = IndexFlatCosine(384), faiss.clone_index(theirs)
    mine.merge_from(moved)
    assert (mine.ntotal, moved.ntotal) == (len(ROWS), 0)


def test_faiss_finds_the_same_without_an_index():
    unit = torch.nn.functional.normalize(ROWS[:300]).numpy()
    theirs = faiss.knn(unit[:9], unit, 4, metric=faiss.METRIC_INNER_PRODUCT)
    found = knn(unit[:9], unit, 4, metric=faiss.METRIC_INNER_PRODUCT)
    assert np.array_equal(found[1], theirs[1])
    np.testing.assert_allclose(found[0], theirs[0], atol=1e-6)


@pytest.mark.parametrize("k", [0, -5])
def test_faiss_refuses_the_same_with_the_same_type(indexes, k):
    for one in indexes:
        with pytest.raises(AssertionError):
            one.search(ROWS[:1].numpy(), k)
        with pytest.raises(AssertionError):
            one.search(ROWS[:1, :3].numpy(), 1)
        with pytest.raises(RuntimeError):
            one.add_with_ids(ROWS[:1].numpy(), np.array([1]))
        assert one.range_search(ROWS[:2].numpy(), np.nan)[0].tolist() == [0, 0, 0]
