"""The adapter for sentence-transformers: the cases of its own tests, as data, and real embeddings.

The cases are those of ``tests/util/test_similarity.py`` and ``tests/util/test_retrieval.py`` that
concern these functions, save those that need a model or a GPU. `tests/adapters` compares with the
library itself.
"""

from pathlib import Path

import numpy as np
import pytest
import torch

from cossim_fast.integrations.sentence_transformers import (
    community_detection,
    cos_sim,
    pairwise_cos_sim,
    paraphrase_mining_embeddings,
    semantic_search,
)

# torch says so of products of two sparse tensors, once in a process.
pytestmark = pytest.mark.filterwarnings("ignore:Sparse (CSR|invariant):UserWarning")

REAL = Path(__file__).parents[2] / "examples" / "data" / "wordnet_minilm_4k_f16.npy"
NARROW = [torch.float16, torch.bfloat16]


def gaussian(*shape, seed=0):
    return np.random.default_rng(seed).standard_normal(shape)


def exact_cosines(a, b):
    a, b = np.asarray(a, np.float64), np.asarray(b, np.float64)
    return (a / np.linalg.norm(a, axis=1)[:, None]) @ (b / np.linalg.norm(b, axis=1)[:, None]).T


def another_cosine(a, b):
    """A function that is not known to be `cos_sim`, so that its scores are ranked in chunks."""
    return cos_sim(a, b)


def dot(a, b):
    return a @ b.T


def negative_distance(p):
    return lambda a, b: -torch.cdist(a, b, p=p)


# cos_sim and pairwise_cos_sim.


def test_matrix_against_float64():
    a, b = gaussian(50, 100), gaussian(50, 100, seed=1)
    scores = cos_sim(a, b)
    assert scores.dtype == torch.float64
    np.testing.assert_allclose(scores.numpy(), exact_cosines(a, b), atol=1e-14)
    np.testing.assert_allclose(
        pairwise_cos_sim(a, b).numpy(), np.diag(exact_cosines(a, b)), atol=1e-14
    )


AXES = [[1, 0], [0, 1], [-1, 0]]


@pytest.mark.parametrize("kind", [torch.tensor, np.array, list])
def test_axes(kind):
    first, axes = kind([[1.0, 0.0]]), kind([[float(v) for v in row] for row in AXES])
    assert cos_sim(first, axes).tolist() == [[1, 0, -1]]
    assert cos_sim(first[0], axes).tolist() == [[1, 0, -1]]
    again = kind([[1.0, 0.0]] * 3)
    assert pairwise_cos_sim(again, axes).tolist() == [1, 0, -1]


@pytest.mark.parametrize("make", [torch.stack, list])
def test_lists_of_rows(make):
    rows = torch.tensor(gaussian(4, 8)).float()
    expected = cos_sim(rows, rows)
    assert torch.equal(cos_sim(make(list(rows)), [row.numpy() for row in rows]), expected)


def sparse(seed):
    draw = torch.Generator().manual_seed(seed)
    rows = torch.arange(50).repeat_interleave(10)
    columns = torch.randint(0, 1000, (500,), generator=draw)
    return torch.sparse_coo_tensor(
        torch.stack([rows, columns]), torch.randn(500, generator=draw), (50, 1000)
    ).coalesce()


@pytest.mark.parametrize("which", ["both", "first", "second"])
def test_sparse_is_as_dense(which):
    a, b = sparse(42), sparse(1337)
    dense = a.to_dense(), b.to_dense()
    given = (a if which != "second" else dense[0], b if which != "first" else dense[1])
    torch.testing.assert_close(cos_sim(*given), cos_sim(*dense), rtol=1e-5, atol=1e-6)
    torch.testing.assert_close(
        pairwise_cos_sim(*given), pairwise_cos_sim(*dense), rtol=1e-5, atol=1e-6
    )


def test_a_list_of_sparse_rows_and_a_sparse_row_of_zeros():
    a = sparse(42)
    assert torch.equal(cos_sim([a[i] for i in range(3)], a), cos_sim(a, a)[:3])
    assert cos_sim(torch.zeros(2, 3).to_sparse(), torch.ones(1, 3)).tolist() == [[0], [0]]
    one = a[0].coalesce()
    torch.testing.assert_close(pairwise_cos_sim(one, one), torch.tensor(1.0))


@pytest.mark.parametrize("dtype", NARROW, ids=str)
@pytest.mark.parametrize("function", [cos_sim, pairwise_cos_sim])
def test_narrow_inputs_give_float32(function, dtype):
    a, b = (torch.tensor(gaussian(16, 32, seed=i)).to(dtype) for i in (0, 1))
    scores = function(a, b)
    assert scores.dtype == torch.float32
    expected = exact_cosines(a.double(), b.double())
    expected = expected if scores.dim() == 2 else np.diag(expected)
    np.testing.assert_allclose(scores.numpy(), expected, atol=1e-6)


@pytest.mark.parametrize("dtype", NARROW, ids=str)
def test_narrow_inputs_make_no_ties(dtype):
    a, b = torch.tensor(gaussian(4, 32)).float(), torch.tensor(gaussian(50, 32, seed=1)).float()
    wide = torch.unique(cos_sim(a, b)).numel()
    narrow = [torch.nn.functional.normalize(x.to(dtype), dim=1) for x in (a, b)]
    assert torch.unique(narrow[0] @ narrow[1].T).numel() < wide
    assert torch.unique(cos_sim(a.to(dtype), b.to(dtype))).numel() >= wide - 1


def test_gradients_are_those_of_the_definition():
    a = torch.tensor(gaussian(3, 4), requires_grad=True)
    b = torch.tensor(gaussian(3, 4, seed=1))
    (mine,) = torch.autograd.grad(cos_sim(a, b).sin().sum(), a)
    theirs = torch.nn.functional.cosine_similarity(a[:, None], b[None], -1)
    (exact,) = torch.autograd.grad(theirs.sin().sum(), a)
    torch.testing.assert_close(mine, exact)


# semantic_search.


def best_rows(queries, corpus, k):
    scores = exact_cosines(queries, corpus)
    order = np.argsort(-scores, axis=1, kind="stable")[:, :k]
    return order, np.take_along_axis(scores, order, 1)


@pytest.mark.parametrize("chunks", [(5, 17), (1, 100), (100, 500_000)])
@pytest.mark.parametrize("function", [cos_sim, another_cosine], ids=["exact", "other"])
def test_search_whatever_the_chunks(function, chunks):
    corpus, queries = torch.tensor(gaussian(1000, 100)), torch.tensor(gaussian(20, 100, seed=1))
    hits = semantic_search(queries, corpus, *chunks, top_k=10, score_function=function)
    rows, scores = best_rows(queries, corpus, 10)
    assert [[hit["corpus_id"] for hit in of] for of in hits] == rows.tolist()
    found = np.array([[hit["score"] for hit in of] for of in hits])
    np.testing.assert_allclose(found, scores, atol=1e-13)


FORMATS = {
    "tensor": torch.from_numpy,
    "numpy": lambda x: x,
    "tensor_list": lambda x: list(torch.from_numpy(x)),
    "numpy_list": list,
    "sparse": lambda x: torch.from_numpy(x).to_sparse(),
}


@pytest.mark.parametrize("single", [False, True])
@pytest.mark.parametrize("query_format", FORMATS)
@pytest.mark.parametrize("corpus_format", FORMATS)
def test_search_takes_every_format(query_format, corpus_format, single):
    queries, corpus = gaussian(3, 16).astype("f"), gaussian(5, 16, seed=1).astype("f")
    if single and query_format in ("tensor", "numpy"):
        given = FORMATS[query_format](queries[0])
        queries = queries[:1]
    else:
        given = FORMATS[query_format](queries)
    rows, scores = best_rows(queries, corpus, 2)
    hits = semantic_search(given, FORMATS[corpus_format](corpus), top_k=2)
    assert [[hit["corpus_id"] for hit in of] for of in hits] == rows.tolist()
    for of, expected in zip(hits, scores, strict=True):
        assert [hit["score"] for hit in of] == pytest.approx(expected.tolist(), abs=1e-6)
        assert {type(hit["corpus_id"]) for hit in of} == {int}


@pytest.mark.parametrize("corpus", [torch.empty(0), np.array([]), []])
def test_search_in_nothing(corpus):
    assert semantic_search(torch.ones(2, 16), corpus) == [[], []]


def test_search_with_another_score():
    x = torch.tensor(gaussian(30, 4))
    hits = semantic_search(x, x * torch.arange(30)[:, None], 7, 11, top_k=3, score_function=dot)
    expected = (x @ (x * torch.arange(30)[:, None]).T).topk(3).indices.tolist()
    assert [[hit["corpus_id"] for hit in of] for of in hits] == expected


def test_search_leaves_out_rows_of_nan_and_stops_at_the_corpus():
    corpus = torch.eye(3)
    corpus[1] = torch.nan
    (hits,) = semantic_search(torch.ones(1, 3), corpus, top_k=9)
    assert [hit["corpus_id"] for hit in hits] == [0, 2]


# paraphrase_mining_embeddings.


@pytest.mark.parametrize(("most", "count"), [(0, 0), (1, 1), (2, 2)])
def test_pairs_of_a_score_that_is_not_symmetric(most, count):
    scores = torch.tensor([[10.0, 9.0, 8.0], [7.0, 10.0, 6.0], [5.0, 4.0, 10.0]])
    pairs = paraphrase_mining_embeddings(
        torch.zeros(3, 2), 3, 3, max_pairs=most, top_k=2, score_function=lambda a, b: scores
    )
    assert len(pairs) == count


@pytest.mark.parametrize("most", [2, 10, 50])
def test_no_more_pairs_than_asked_for_and_each_once(most):
    torch.manual_seed(0)
    pairs = paraphrase_mining_embeddings(torch.randn(40, 8), max_pairs=most, top_k=10)
    assert len(pairs) == len({(i, j) for _, i, j in pairs}) == most


@pytest.mark.parametrize(
    "score", [cos_sim, dot, negative_distance(2.0), negative_distance(1.0)],
    ids=["cosine", "dot", "euclidean", "manhattan"],
)  # fmt: skip
@pytest.mark.parametrize("most", [2, 10, 50])
def test_the_best_of_all_pairs(score, most):
    x = torch.tensor(gaussian(40, 8))
    i, j = torch.triu_indices(40, 40, offset=1)
    of_all = score(x, x)[i, j].tolist()
    expected = sorted(zip(of_all, i.tolist(), j.tolist(), strict=True), reverse=True)[:most]
    pairs = paraphrase_mining_embeddings(x, max_pairs=most, top_k=40, score_function=score)
    assert [(i, j) for _, i, j in pairs] == [(i, j) for _, i, j in expected]
    # Float32 scores of the exact search, beside float64.
    assert [s for s, _, _ in pairs] == pytest.approx([s for s, _, _ in expected], abs=1e-6)


@pytest.mark.parametrize("corpus_chunk", [1, 3, 7, 40])
@pytest.mark.parametrize("query_chunk", [1, 5, 40])
@pytest.mark.parametrize("top_k", [1, 3])
@pytest.mark.parametrize("most", [10, 500_000])
@pytest.mark.parametrize("function", [cos_sim, another_cosine], ids=["exact", "other"])
def test_neighbours_are_counted_by_row(query_chunk, corpus_chunk, top_k, most, function):
    x = torch.tensor(gaussian(40, 8))
    scores = torch.tensor(exact_cosines(x, x)).fill_diagonal_(-torch.inf)
    near = scores.topk(top_k, dim=1).indices.tolist()
    candidates = {(min(i, j), max(i, j)) for i, row in enumerate(near) for j in row}
    expected = sorted(([scores[i, j].item(), i, j] for i, j in candidates), reverse=True)[:most]
    pairs = paraphrase_mining_embeddings(
        x, query_chunk, corpus_chunk, top_k=top_k, max_pairs=most, score_function=function
    )
    assert [(i, j) for _, i, j in pairs] == [(i, j) for _, i, j in expected]
    assert [s for s, _, _ in pairs] == pytest.approx([s for s, _, _ in expected], abs=1e-6)


def test_more_copies_of_a_row_than_are_looked_at():
    pairs = paraphrase_mining_embeddings(torch.ones(6, 4), top_k=2)
    assert pairs == [[1.0, i, j] for i in (0, 1) for j in range(i + 1, 6)]


# community_detection.

NEAR_X = [[1.0, 0.0, 0.0], [0.9, 0.1, 0.0], [0.8, 0.2, 0.0]]
COMMUNITIES = {
    "two": ([*NEAR_X, [0.1, 0.9, 0], [0, 1.0, 0], [0.2, 0.8, 0]], 0.8, 2, [[0, 1, 2], [3, 4, 5]]),
    "none at a high threshold": (np.eye(3).tolist(), 0.99, 2, []),
    "one": (NEAR_X, 0.5, 2, [[0, 1, 2]]),
    "too small ones are left out": ([*NEAR_X, [0.1, 0.9, 0.0]], 0.8, 3, [[0, 1, 2]]),
    "fewer rows than a community has": (np.ones((3, 4)).tolist(), 0.8, 4, []),
    "as many rows as a community has": (np.ones((4, 4)).tolist(), 0.8, 4, [[0, 1, 2, 3]]),
    "overlapping": (
        [*NEAR_X, [0.7, 0.3, 0.0], [0.1, 0.9, 0.0], [0.0, 1.0, 0.0]],
        0.8,
        2,
        [[0, 1, 2, 3], [4, 5]],
    ),
    "a threshold that no cosine reaches": (np.ones((4, 4)).tolist(), 1.5, 2, []),
    "a threshold that all cosines reach": ([[1.0], [-1.0]], -3.0, 2, [[0, 1]]),
    "nothing": ([], 0.8, 4, []),
}


@pytest.mark.parametrize("kind", [torch.tensor, np.array, list])
@pytest.mark.parametrize(
    ("rows", "threshold", "least", "expected"), COMMUNITIES.values(), ids=COMMUNITIES
)
def test_communities(rows, threshold, least, expected, kind):
    given = kind(rows)
    before = str(given)
    found = community_detection(given, threshold=threshold, min_community_size=least)
    assert sorted(sorted(one) for one in found) == expected
    assert str(given) == before
    assert all(type(i) is int for one in found for i in one)


def test_communities_of_many_rows_are_as_large_as_asked():
    x = torch.rand(1000, 128, generator=torch.Generator().manual_seed(0))
    found = community_detection(x, threshold=0.8, min_community_size=10, batch_size=256)
    assert found
    assert all(len(one) >= 10 for one in found)


@pytest.mark.parametrize("least", [5, 10, 30])
def test_a_cosine_equal_to_the_threshold_counts(least):
    found = community_detection(torch.ones(200, 16), threshold=1.0, min_community_size=least)
    assert [len(one) for one in found] == [200]


# Real embeddings, against float64, and mistakes.


def test_real_embeddings():
    x = np.load(REAL)[:2000]
    scores = exact_cosines(x, x)
    hits = semantic_search(x[:200], x, top_k=5)
    rows, _ = best_rows(x[:200], x, 5)
    assert [[hit["corpus_id"] for hit in of] for of in hits] == rows.tolist()
    i, j = np.triu_indices(len(x), 1)
    best = np.argsort(-scores[i, j], kind="stable")[:50]
    pairs = paraphrase_mining_embeddings(x, max_pairs=50)
    assert [(a, b) for _, a, b in pairs] == list(zip(i[best], j[best], strict=True))
    for one in community_detection(x, threshold=0.6, min_community_size=4):
        assert (scores[one[0], one[1:]] >= 0.6).all()


@pytest.mark.parametrize(
    ("call", "error", "message"),
    [
        (lambda: cos_sim([[1.0]], [[1.0, 2.0]]), ValueError, r"\(m, 1\)"),
        (lambda: cos_sim([[1]], [[1]]), TypeError, "promote to float16"),
        (lambda: semantic_search([[1]], [[1]]), TypeError, r"convert it with \.float"),
        (lambda: semantic_search([[1.0]], [[1.0, 2.0]]), ValueError, r"\(q, 2\)"),
        (lambda: semantic_search([[1.0]], [[1.0]], 0), ValueError, "query_chunk_size >= 1"),
        (
            lambda: paraphrase_mining_embeddings(torch.ones(3, 2), corpus_chunk_size=0),
            ValueError,
            "corpus_chunk_size >= 1",
        ),
    ],
)
def test_mistakes(call, error, message):
    with pytest.raises(error, match=message):
        call()
