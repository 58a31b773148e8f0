"""What every public function does with every kind of value: the right answer, or one clear error.

The table is `ANSWERED`; what is not in it is refused at the door.
"""

import random
import traceback

import numpy as np
import pytest
import torch
import torch.nn.functional as F

from cossim_fast import (
    CosineIndex,
    CosineSimilarity,
    communities,
    cosine_similarity,
    deduplicate,
    diagnose,
    explain,
    iter_pairs_above,
    pairs_above,
    pairwise_cosine,
    topk,
)  # fmt: skip
from cossim_fast.integrations import faiss, sentence_transformers
from cossim_fast.integrations.mteb import CosineSearchIndex
from hostile_values import (
    COO,
    FLOAT8_TENSORS,
    FLOAT_ARRAYS,
    FLOAT_TENSORS,
    FUNCTIONAL,
    KINDS,
    MATRIX,
    TENSORS,
    UNSIGNED_ARRAYS,
    UNSIGNED_TENSORS,
    WHOLE_ARRAYS,
    WHOLE_TENSORS,
    D,
    N,
    dense,
    in_float64,
    made,
)  # fmt: skip

OTHER = dense(seed=1)
THRESHOLD = 0.8


def matrix(x, y):
    """Cosines of all pairs in float64; 0 for zero rows."""
    return F.normalize(x.double()) @ F.normalize(y.double()).mT


def best(x, y):
    return matrix(x, y).topk(2).values


def close(actual, expected):
    found = actual.detach() if torch.is_tensor(actual) else torch.as_tensor(np.asarray(actual))
    torch.testing.assert_close(found.double(), expected, atol=5e-3, rtol=0, equal_nan=True)


def plain(result):
    """A result as a tensor with numbers of its own."""
    if torch._is_functional_tensor(result):
        torch._sync(result)
        result = torch._from_functional_tensor(result)
    with torch._C.DisableTorchFunctionSubclass():
        return result.as_subclass(torch.Tensor)


def added(x):
    index = CosineIndex(torch.empty(0, D))
    index.add(x)
    return index


def flat(x):
    index = faiss.IndexFlatCosine(D)
    index.add(x)
    return index


def documents(x):
    index = CosineSearchIndex()
    index.add_documents(x, list("abcdef"))
    return index


def joined(pairs):
    """Pairs as a matrix of scores, 0 where there is none."""
    found = torch.zeros(N, N, dtype=torch.float64)
    for block in pairs:
        i, j, scores = (torch.as_tensor(np.asarray(column)) for column in block)
        found[i, j] = scores.double()
    return found


def above(x, y, *, half=False):
    # Thresholds lie between scores, so that rounding decides nothing.
    scores = matrix(x, y)
    return torch.where(scores >= THRESHOLD, scores, 0.0).triu(1 if half else -N)


def kept(x):
    """Rows that deduplicate keeps, as a mask."""
    scores, mask = matrix(x, x), []
    for i in range(N):
        mask.append(not any(scores[i, j] >= THRESHOLD for j in range(i) if mask[j]))
    return torch.tensor(mask).double()


def mask_of(rows):
    mask = torch.zeros(N, dtype=torch.float64)
    mask[torch.as_tensor(np.asarray(rows))] = 1
    return mask


def scores_of(hits):
    return torch.tensor([[hit["score"] for hit in row] for row in hits], dtype=torch.float64)


# Embeddings in 8 bits, as quantization gives them, are searched as they are.
ROWS = {*FLOAT_TENSORS, *FLOAT_ARRAYS, *MATRIX, "int8", "uint8"}
WHOLE = {*WHOLE_TENSORS, *UNSIGNED_TENSORS}
BESIDE = {*FLOAT_TENSORS, *FUNCTIONAL, *WHOLE}
DIAGNOSED = {*ROWS, *WHOLE_TENSORS, *WHOLE_ARRAYS}
FAISS = {*DIAGNOSED, *UNSIGNED_TENSORS, *UNSIGNED_ARRAYS, *FLOAT8_TENSORS}
# Sparse tensors of sentence-transformers stay sparse where its own do.
SENTENCES = {*ROWS, *COO}
cosines = F.cosine_similarity
# function: (call, the same in float64, the kinds that are answered, the name in errors)
FUNCTIONS = {
    "cosine_similarity x1": (
        lambda x: plain(cosine_similarity(x, OTHER)),
        lambda x: cosines(x, OTHER.double()),
        BESIDE,
        "x1",
    ),
    "cosine_similarity x2": (
        lambda x: plain(cosine_similarity(OTHER, x)),
        lambda x: cosines(x, OTHER.double()),
        BESIDE,
        "x2",
    ),
    "CosineSimilarity": (
        lambda x: plain(CosineSimilarity()(x, OTHER)),
        lambda x: cosines(x, OTHER.double()),
        BESIDE,
        "x1",
    ),
    "explain": (
        lambda x: explain(cosine_similarity, x, OTHER).form == "paired rows",
        lambda x: torch.ones((), dtype=torch.float64),
        BESIDE,
        "x1",
    ),
    "pairwise_cosine": (
        lambda x: plain(pairwise_cosine(x)),
        lambda x: matrix(x, x),
        {*FLOAT_TENSORS, *FUNCTIONAL, "meta", "fake"},
        "x",
    ),
    "pairwise_cosine y": (
        lambda x: plain(pairwise_cosine(OTHER, x)),
        lambda x: matrix(OTHER, x),
        BESIDE,
        "y",
    ),
    "topk queries": (lambda x: topk(x, OTHER, 2)[0], lambda x: best(x, OTHER), ROWS, "queries"),
    "topk corpus": (
        lambda x: topk(OTHER, x, 2)[0],
        lambda x: best(OTHER, x),
        ROWS,
        "corpus",
    ),
    "CosineIndex": (
        lambda x: CosineIndex(x).search(OTHER, 2)[0],
        lambda x: best(OTHER, x),
        ROWS,
        "embeddings",
    ),
    "add": (
        lambda x: added(x).search(OTHER, 2)[0],
        lambda x: best(OTHER, x),
        ROWS,
        "embeddings",
    ),
    "search": (
        lambda x: CosineIndex(OTHER).search(x, 2)[0],
        lambda x: best(x, OTHER),
        ROWS,
        "queries",
    ),
    "range_search": (
        lambda x: np.diff(np.asarray(CosineIndex(OTHER).range_search(x, THRESHOLD).lims)),
        lambda x: (matrix(x, OTHER) >= THRESHOLD).sum(1).double(),
        ROWS,
        "queries",
    ),
    "index.explain": (
        lambda x: CosineIndex(OTHER).explain(x, 2).queries,
        lambda x: torch.tensor(N).double(),
        ROWS,
        "queries",
    ),
    "pairs_above": (
        lambda x: joined([pairs_above(x, threshold=THRESHOLD)]),
        lambda x: above(x, x, half=True),
        ROWS,
        "x",
    ),
    "pairs_above y": (
        lambda x: joined([pairs_above(OTHER, x, threshold=THRESHOLD)]),
        lambda x: above(OTHER, x),
        ROWS,
        "y",
    ),
    "iter_pairs_above": (
        lambda x: joined(iter_pairs_above(x, threshold=THRESHOLD)),
        lambda x: above(x, x, half=True),
        ROWS,
        "x",
    ),
    "deduplicate": (lambda x: mask_of(deduplicate(x, THRESHOLD).kept), kept, ROWS, "x"),
    "communities": (
        lambda x: sum(len(found) for found in communities(x, -1.0, 1)),
        lambda x: torch.tensor(N).double(),
        ROWS,
        "x",
    ),
    "diagnose.pair": (
        lambda x: diagnose.pair(x, OTHER).facts.exact[1],
        lambda x: cosines(x, OTHER.double())[x.norm(dim=1) > 0].mean(),
        {*DIAGNOSED, *UNSIGNED_TENSORS, *UNSIGNED_ARRAYS, "0-d array"},
        "a",
    ),
    "diagnose.embeddings": (
        lambda x: diagnose.embeddings(x).numbers.norm_max,
        lambda x: x.norm(dim=1).max(),
        DIAGNOSED,
        "x|embeddings",
    ),
    "faiss add": (
        lambda x: flat(x).search(OTHER, 2)[0],
        lambda x: best(OTHER, x),
        FAISS,
        "x",
    ),
    "faiss search": (
        lambda x: flat(OTHER).search(x, 2)[0],
        lambda x: best(x, OTHER),
        FAISS,
        "x",
    ),
    "mteb add_documents": (
        lambda x: documents(x).search(OTHER, 2, None)[0],
        lambda x: best(OTHER, x),
        ROWS,
        "embeddings",
    ),
    "cos_sim": (
        lambda x: plain(sentence_transformers.cos_sim(x, OTHER)),
        lambda x: matrix(x, OTHER),
        {
            *SENTENCES, *WHOLE, *WHOLE_ARRAYS, *UNSIGNED_ARRAYS, *FLOAT8_TENSORS, *FUNCTIONAL
        },
        "a|x",
    ),
    "semantic_search": (
        lambda x: scores_of(sentence_transformers.semantic_search(x, OTHER, top_k=2)),
        lambda x: best(x, OTHER),
        SENTENCES,
        "query_embeddings|queries",
    ),
    "community_detection": (
        lambda x: sum(map(len, sentence_transformers.community_detection(x, -1.0, 1))),
        lambda x: torch.tensor(N).double(),
        SENTENCES,
        "embeddings|x",
    ),
}  # fmt: skip
DROP_IN = {"cosine_similarity x1", "cosine_similarity x2", "CosineSimilarity", "explain"}


def check(function, kind):
    call, reference, answered, name = FUNCTIONS[function]
    value = made(kind)
    if kind in answered:
        result = call(value)
        if kind in ("meta", "fake"):
            assert result.shape == (N, N)
            return
        close(result, reference(in_float64(kind)))
        return
    # torch's function has errors of its own, all but those of no tensor a RuntimeError.
    expected = (RuntimeError, TypeError) if function in DROP_IN else (TypeError, ValueError)
    if kind == "freed":
        expected = (TypeError, ValueError)  # torch would crash
    if kind == "escaped":
        expected = (RuntimeError, TypeError, ValueError)  # torch says it well
    with pytest.raises(expected) as caught:
        call(value)
    said = str(caught.value)
    if kind == "escaped" and "vmap" in said:
        return
    assert "expected" in said
    assert "got" in said or "yet common dtype is" in said
    assert len(said) < 600
    named = (*name.split("|"), "common dtype", "both tensors", "x and y", "x1 and x2", "tensors")
    assert any(f"{word} " in said for word in named), said
    assert "cossim_fast" in traceback.extract_tb(caught.value.__traceback__)[-1].filename


@pytest.mark.parametrize("function", FUNCTIONS)
@pytest.mark.parametrize("kind", KINDS)
@pytest.mark.filterwarnings("ignore")
def test_the_right_answer_or_one_clear_error(function, kind):
    check(function, kind)


@pytest.mark.filterwarnings("ignore")
def test_pairs_of_kinds_by_chance():
    """Both arguments of a function are of some kind, and of some shape."""
    chance = random.Random(16)
    tensors = [*FLOAT_TENSORS, *WHOLE, *FUNCTIONAL]
    calls = {
        "cosine_similarity": (lambda x, y: plain(cosine_similarity(x, y)), cosines, tensors),
        "pairwise_cosine": (lambda x, y: plain(pairwise_cosine(x, y)), matrix, tensors),
        "topk": (lambda x, y: topk(x, y, 2)[0], best, ROWS),
        "pairs_above": (lambda x, y: joined([pairs_above(x, y, THRESHOLD)]), above, ROWS),
        "search": (lambda x, y: CosineIndex(y).search(x, 2)[0], best, ROWS),
    }
    answered = 0
    for _ in range(2000):
        function = chance.choice(list(calls))
        call, reference, fitting = calls[function]
        kinds = [chance.choice(KINDS) if chance.random() < 0.3 else chance.choice(list(fitting))
                 for _ in range(2)]  # fmt: skip
        x, y = made(kinds[0]), made(kinds[1], seed=1)
        try:
            result = call(x, y)
        except (TypeError, ValueError, RuntimeError) as error:
            said = str(error)
            assert "expected" in said or "escaped" in said, (function, kinds, said)
            refused = [kind for kind in kinds if kind not in fitting]
            # Two kinds of whole numbers promote to no floating dtype.
            assert refused or set(kinds) <= WHOLE, (function, kinds, said)
            continue
        assert set(kinds) <= set(fitting) or set(kinds) <= {"meta", "fake"}, (function, kinds)
        if set(kinds) <= set(fitting):
            close(result, reference(in_float64(kinds[0]), in_float64(kinds[1], seed=1)))
            answered += 1
    assert answered > 500


def test_a_gradient_beside_an_inference_tensor_of_no_width():
    with torch.inference_mode():
        empty = torch.zeros(3, 0)
    for function in (cosine_similarity, pairwise_cosine):
        x = torch.zeros(3, 0, requires_grad=True)
        for pair in ((x, empty), (empty, x)):
            function(*pair).sum().backward()
            assert x.grad.shape == (3, 0)


@pytest.mark.parametrize("kind", ["sparse COO", "sparse_csr", "mkldnn", "nested", "quantized"])
@pytest.mark.filterwarnings("ignore")
def test_an_out_of_no_dense_kind_is_refused(kind):
    x = dense()
    with pytest.raises((TypeError, ValueError), match="expected out"):
        pairwise_cosine(x, x[:D], out=made(kind))


@pytest.mark.filterwarnings("ignore")
@pytest.mark.parametrize(
    ("kind", "advice"),
    [
        ("sparse COO", ".to_dense()"),
        ("mkldnn", ".to_dense()"),
        ("quantized", ".dequantize()"),
        ("float8_e5m2", ".float()"),
        ("nested", "to_padded_tensor"),
        ("masked tensor", ".to_tensor"),
        ("masked array", "numpy.ma.filled"),
        ("records", "structured_to_unstructured"),
        ("longdouble", "dtype=numpy.float64"),
    ],
)
def test_the_error_says_how_to_convert(kind, advice):
    if np.dtype(np.longdouble).itemsize == 8 and kind == "longdouble":
        advice = None
    functions = [lambda x: topk(x, OTHER, 2)]
    if kind in TENSORS:
        functions += [lambda x: cosine_similarity(x, OTHER), lambda x: pairwise_cosine(OTHER, x)]
    for function in functions:
        if advice is None:
            function(made(kind))
            continue
        with pytest.raises((TypeError, NotImplementedError)) as caught:
            function(made(kind))
        assert advice in str(caught.value)


@pytest.mark.parametrize("labels", ["sparse COO", "nested", "quantized", "meta", "masked array"])
@pytest.mark.filterwarnings("ignore")
def test_labels_and_priorities_of_a_hostile_kind(labels):
    with pytest.raises(TypeError, match="expected labels"):
        diagnose.embeddings(dense(), labels=made(labels))
    with pytest.raises(TypeError, match="expected keep"):
        deduplicate(dense(), 0.5, keep=made(labels))


def test_labels_that_are_taken():
    for labels in (["a"] * 3 + ["b"] * 3, np.arange(N) % 2, (torch.arange(N) % 2).bfloat16()):
        assert diagnose.embeddings(dense(), labels=labels).classes is not None
    for labels in ([1, "a", None, 2, 3, 4], [[1], [1, 2], 3, 4, 5, 6], np.zeros(N, complex)):
        with pytest.raises((TypeError, ValueError), match="expected labels"):
            diagnose.embeddings(dense(), labels=labels)
