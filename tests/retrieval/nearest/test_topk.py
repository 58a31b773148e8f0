"""Exact top-k: what comes back, on every kind of corpus, is the brute force's answer."""

import math
import platform
import subprocess
import sys

import numpy as np
import pytest
import torch
from hypothesis import given
from hypothesis import strategies as st

import arithmetic as models
from cossim_fast import CosineIndex, _reference, topk
from cossim_fast._score.exact import row_norms, score_pairs, widen
from cossim_fast.retrieval import VerificationError, tuning
from cossim_fast.retrieval.nearest import batches as batches_module
from cossim_fast.retrieval.nearest import pool, scan
from cossim_fast.retrieval.nearest import topk as topk_module
from cossim_fast.retrieval.screening import codes
from cossim_fast.retrieval.storage import corpus as corpus_module
from search_data import CORPORA, brute_force, make

DTYPES = [torch.float16, torch.bfloat16, torch.float32, torch.float64]
SCREENS = ["auto", "bfloat16", "float32"]


@pytest.fixture(autouse=True)
def coding_pays_for_few_queries(monkeypatch, int8_product):
    """So that `auto` begins with int8 here."""
    monkeypatch.setattr(tuning, "CODING_PAYS", 0)


@pytest.fixture
def small_parts(monkeypatch):
    """Tiles of 64 rows, segments of 256, batches of 5 queries: every seam in a small corpus."""
    monkeypatch.setattr(tuning, "LONGEST_TILE", 64)
    monkeypatch.setattr(tuning, "MOST_QUERIES", 5)
    monkeypatch.setattr(corpus_module, "block_rows", lambda d: 256)
    monkeypatch.setattr(tuning, "CODED_NUMBERS", 1 << 10)


def assert_exact(found, queries, corpus, k):
    scores, rows = brute_force(queries, corpus, k)
    assert found.indices.dtype == torch.int64
    assert torch.equal(found.indices, rows)
    dtype = torch.float64 if torch.float64 in (queries.dtype, corpus.dtype) else torch.float32
    assert found.scores.dtype == dtype
    assert torch.equal(found.scores.nan_to_num(-9), scores.to(dtype).nan_to_num(-9))


@pytest.mark.parametrize("dtype", DTYPES, ids=str)
def test_the_score_is_the_cosine(dtype):
    queries, corpus = make("gaussian", 50, 100, 8, dtype)
    pairs = torch.cartesian_prod(torch.arange(8), torch.arange(50))
    found = score_pairs(widen(queries), corpus, *pairs.mT).view(8, 50)
    expected = _reference.pairwise_cosine(queries, corpus, eps=0.0)
    assert (found - expected).abs().max() <= 2**-48


@models.every_processor
@pytest.mark.parametrize("k", [1, 10, 100])
@pytest.mark.parametrize("screen", SCREENS)
@pytest.mark.parametrize("kind", CORPORA)
def test_every_kind_of_corpus(kind, screen, k, processor):
    dtype = torch.float64 if kind == "near" else torch.float32
    queries, corpus = make(kind, 1500, 40, 12, dtype)
    found = topk(queries, corpus, k, screen=screen, certify=True)
    assert_exact(found, queries, corpus, k)
    found.certificate.verify(None)


@models.every_processor
@pytest.mark.parametrize("kind", CORPORA)
@pytest.mark.usefixtures("small_parts")
def test_every_kind_of_corpus_in_small_parts(kind, processor):
    dtype = torch.float64 if kind == "near" else torch.float32
    queries, corpus = make(kind, 1111, 24, 12, dtype)
    for k in (1, 9, 70):
        found = topk(queries, corpus, k, certify=True)
        assert_exact(found, queries, corpus, k)
        found.certificate.verify(None)


@pytest.fixture
def batches_apart(monkeypatch):
    """Three threads, each with batches of its own of at most five queries."""
    before = torch.get_num_threads()
    torch.set_num_threads(3)
    monkeypatch.setattr(tuning, "THREAD_QUERIES", 1)
    yield
    torch.set_num_threads(before)


@pytest.mark.parametrize("kind", CORPORA)
@pytest.mark.usefixtures("small_parts", "batches_apart")
def test_every_kind_of_corpus_in_batches_apart(kind):
    assert batches_module.independent_threads(20, 1) == 3
    assert [some.stop for some in batches_module.batches(20, 9, 3)] == [3, 6, 10, 13, 16, 20]
    dtype = torch.float64 if kind == "near" else torch.float32
    queries, corpus = make(kind, 1111, 24, 20, dtype)
    with torch.inference_mode(kind == "clustered"):
        found = topk(queries, corpus, 9, certify=True)
    assert_exact(found, queries, corpus, 9)
    found.certificate.verify(None)


@pytest.mark.usefixtures("batches_apart")
def test_fewer_queries_than_threads():
    assert batches_module.independent_threads(2, 1) == 1
    queries, corpus = make("clustered", 300, 24, 2, torch.float32)
    assert_exact(topk(queries, corpus, 9), queries, corpus, 9)
    assert topk(queries[:0], corpus, 9).indices.shape == (0, 9)


@pytest.mark.parametrize("dtype", DTYPES, ids=str)
@pytest.mark.parametrize("other", DTYPES, ids=str)
def test_dtypes(dtype, other):
    queries, corpus = make("clustered", 700, 33, 7, torch.float64)
    queries, corpus = queries.to(dtype), corpus.to(other)
    assert_exact(topk(queries, corpus, 5), queries, corpus, 5)


@models.every_processor
@pytest.mark.parametrize("d", [1, 2, 3, 7, 64, 129, 1031, 8192])
@pytest.mark.parametrize("screen", SCREENS)
def test_widths(d, screen, processor):
    queries, corpus = make("gaussian", 150, d, 4, torch.float32)
    found = topk(queries, corpus, 3, screen=screen, certify=True)
    assert_exact(found, queries, corpus, 3)
    found.certificate.verify(None)


@pytest.mark.parametrize("n", [1, 2, 63, 64, 65, 127, 300])
def test_numbers_of_rows_and_every_k(n):
    queries, corpus = make("gaussian", n, 16, 4, torch.float32)
    for k in {1, n // 2 or 1, n}:
        found = topk(queries, corpus, k, certify=True)
        assert_exact(found, queries, corpus, k)
        found.certificate.verify(None)


@pytest.mark.parametrize("d", [16, 64, 384])
@pytest.mark.parametrize("count", [0, 1, 2, 3, 17])
def test_numbers_of_queries(count, d):
    queries, corpus = make("clustered", 500, d, 20, torch.float32)
    assert_exact(topk(queries[:count], corpus, 5), queries[:count], corpus, 5)


def test_20_000_rows_that_float32_cannot_tell_apart():
    queries, corpus = make("near", 20_000, 32, 4, torch.float64)
    found = topk(queries, corpus, 10, certify=True)
    assert_exact(found, queries, corpus, 10)
    assert float(found.certificate.rescored.min()) > 1000


def test_equal_rows_come_back_in_their_order():
    x = torch.ones(5000, 8)
    found = topk(x[:3], x, 7, certify=True)
    assert found.indices.tolist() == [list(range(7))] * 3
    assert found.certificate.tie.all()
    assert not topk(torch.eye(3)[:1], torch.eye(3), 1, certify=True).certificate.tie.any()


def test_missing_rows_and_nan_queries():
    corpus = torch.randn(10, 4, generator=torch.Generator().manual_seed(0))
    corpus[2, 1], corpus[7, 0] = math.nan, math.inf
    queries = torch.stack([corpus[0], corpus[2], torch.zeros(4)])
    found = topk(queries, corpus, 10, certify=True)
    assert_exact(found, queries, corpus, 10)
    assert found.indices[0, 8:].tolist() == [-1, -1]
    assert found.scores[0, 8:].isnan().all()
    assert found.indices[1].tolist() == [-1] * 10
    assert found.scores[1].isnan().all()
    assert found.indices[2].tolist() == [0, 1, 3, 4, 5, 6, 8, 9, -1, -1]  # all score 0
    assert found.certificate.skipped == 2
    assert found.certificate.verify(None) > 0


@pytest.mark.usefixtures("small_parts")
def test_the_same_bits_alone_in_any_batch_and_with_any_thread():
    queries, corpus = make("clustered", 900, 48, 11, torch.float32)
    threads = torch.get_num_threads()
    together = topk(queries, corpus, 6)
    try:
        for count in (1, 2):
            torch.set_num_threads(count)
            alone = [topk(queries[i : i + 1], corpus, 6) for i in range(len(queries))]
            assert torch.equal(together.indices, torch.cat([a.indices for a in alone]))
            assert torch.equal(together.scores, torch.cat([a.scores for a in alone]))
    finally:
        torch.set_num_threads(threads)


@pytest.mark.parametrize("d", [1, 5, 127, 128, 129, 1000, 40_000])
def test_a_score_has_the_same_bits_in_any_batch(d):
    draw = torch.Generator().manual_seed(d)
    x = torch.randn(9, d, generator=draw, dtype=torch.float64)
    wide, index = widen(x), torch.arange(9)
    together = score_pairs(wide, x, index, index.flip(0))
    alone = [score_pairs(widen(x[i : i + 1]), x, index[:1], 8 - index[i : i + 1]) for i in range(9)]
    assert torch.equal(together, torch.cat(alone))
    assert torch.equal(row_norms(x), wide.norms)


@pytest.mark.parametrize("layout", ["transposed", "strided", "reversed"])
def test_layouts(layout):
    queries, corpus = make("gaussian", 300, 20, 5, torch.float32)
    given_queries, given_corpus = {
        "transposed": lambda: (queries.mT.contiguous().mT, corpus.mT.contiguous().mT),
        "strided": lambda: (
            queries.repeat_interleave(2, 1)[:, ::2],
            corpus.repeat_interleave(2, 1)[:, ::2],
        ),
        "reversed": lambda: (queries.numpy()[::-1], corpus.numpy()[::-1]),
    }[layout]()
    found = topk(given_queries, given_corpus, 4)
    if layout == "reversed":
        assert isinstance(found.scores, np.ndarray)
        assert isinstance(found.indices, np.ndarray)
        found = type(found)(*map(torch.from_numpy, found))
        queries, corpus = queries.flip(0), corpus.flip(0)
    assert_exact(found, queries, corpus, 4)


def test_gradients_and_the_inputs_are_left_alone():
    x = torch.randn(20, 4, requires_grad=True)
    before = x.detach().clone()
    assert not topk(x, x, 2).scores.requires_grad
    assert torch.equal(x, before)


@given(
    n=st.integers(1, 300),
    d=st.integers(1, 40),
    q=st.integers(1, 6),
    k=st.integers(1, 300),
    kind=st.sampled_from(sorted(CORPORA)),
    dtype=st.sampled_from(DTYPES),
    screen=st.sampled_from(SCREENS),
)
def test_any_corpus(n, d, q, k, kind, dtype, screen):
    queries, corpus = make(kind, n, d, q, dtype)
    found = topk(queries, corpus, min(k, n), screen=screen, certify=True)
    assert_exact(found, queries, corpus, min(k, n))
    found.certificate.verify(None)


# What keeps it exact when something goes wrong.


def test_a_guess_that_is_too_high_is_noticed_and_the_search_repeated(monkeypatch):
    queries, corpus = make("clustered", 3000, 16, 12, torch.float32)
    monkeypatch.setattr(tuning, "LONGEST_TILE", 128)
    # The best row of the first tiles, and no other, is asked for.
    monkeypatch.setattr(pool.Pool, "rank", lambda self, seen, total: 1 if self._guess else self.k)
    traces = []
    made = batches_module.Search.__init__

    def watched(self, *args, **kwargs):
        made(self, *args, **kwargs)
        traces.append(self.trace)

    monkeypatch.setattr(batches_module.Search, "__init__", watched)
    found = topk(queries, corpus, 9, certify=True)
    assert traces[0].repeated > 0
    assert_exact(found, queries, corpus, 9)
    found.certificate.verify(None)


@pytest.mark.parametrize("kind", ["clustered", "near", "holes"])
def test_a_refuted_guess_loses_nothing_of_what_was_found_before(kind, monkeypatch):
    dtype = torch.float64 if kind == "near" else torch.float32
    queries, corpus = make(kind, 1111, 24, 12, dtype)
    monkeypatch.setattr(tuning, "LONGEST_TILE", 64)
    monkeypatch.setattr(corpus_module, "block_rows", lambda d: 256)
    monkeypatch.setattr(pool.Pool, "rank", lambda self, seen, total: 1 if self._guess else self.k)
    found = topk(queries, corpus, 9, certify=True)
    assert_exact(found, queries, corpus, 9)
    found.certificate.verify(None)


def test_a_crowded_pool_is_settled_early(monkeypatch):
    queries, corpus = make("duplicates", 3000, 16, 8, torch.float32)
    monkeypatch.setattr(tuning, "LONGEST_TILE", 128)
    monkeypatch.setattr(tuning, "CROWDED", 500)
    found = topk(queries, corpus, 9, certify=True)
    assert_exact(found, queries, corpus, 9)
    found.certificate.verify(None)


@models.every_processor
def test_a_screen_that_lets_too_much_through_is_given_up(processor):
    queries, corpus = make("cone", 6000, 64, 8, torch.float32)
    found = batches_module.Batches(queries, 5, "auto", centre=codes.centre_of(corpus))
    found.through([codes.encode(corpus, found.centre)], last=True)
    (trace,) = found.traces()
    assert trace.screens[0] == "int8"
    assert trace.screens[-1] == "float32"
    assert torch.equal(found.best().positions, brute_force(queries, corpus, 5)[1])


def _narrow(monkeypatch, share):
    """Shrink the margin of every screen to a share of what is proven."""
    made = scan.Tile.__init__

    def narrowed(self, *args):
        made(self, *args)
        self.margin *= share

    monkeypatch.setattr(scan.Tile, "__init__", narrowed)


def test_a_wrong_bound_is_caught(monkeypatch):
    queries, corpus = make("gaussian", 4000, 64, 30, torch.float32)
    topk(queries, corpus, 10, screen="bfloat16", certify=True).certificate.verify(None)
    _narrow(monkeypatch, -1.0)
    with pytest.raises(VerificationError, match=r"query \d+: row \d+ scores .* and was not"):
        topk(queries, corpus, 10, screen="bfloat16", certify=True).certificate.verify(None)


@models.every_processor
def test_a_wrong_residual_is_caught(monkeypatch, processor):
    queries, corpus = make("gaussian", 4000, 64, 30, torch.float32)
    encode = topk_module.encode

    def corrupted(*args, **kwargs):
        segment = encode(*args, **kwargs)
        segment.residual *= -3
        return segment

    monkeypatch.setattr(topk_module, "encode", corrupted)
    with pytest.raises(VerificationError):
        topk(queries, corpus, 10, screen="int8", certify=True).certificate.verify(None)


def test_a_wrong_result_is_caught():
    queries, corpus = make("gaussian", 400, 16, 4, torch.float32)
    certificate = topk(queries, corpus, 5, certify=True).certificate
    for change, message in (
        (lambda: certificate.scores[1].add_(1e-9), "was returned with the score"),
        (lambda: certificate.positions[2].copy_(certificate.positions[2].flip(0)), "query 2"),
    ):
        held = certificate.scores.clone(), certificate.positions.clone()
        change()
        with pytest.raises(VerificationError, match=message):
            certificate.verify(None)
        certificate.scores.copy_(held[0])
        certificate.positions.copy_(held[1])
    certificate.verify(None)


def test_what_a_certificate_says():
    queries, corpus = make("clustered", 2000, 32, 6, torch.float32)
    k = 8
    certificate = topk(queries.numpy(), corpus.numpy(), k, certify=True).certificate
    scores, _ = brute_force(queries, corpus, k + 1)
    np.testing.assert_array_equal(certificate.kth_score, scores[:, k - 1].numpy())
    # The best of those left out is scored, or bounded from above.
    assert (certificate.excluded_bound >= scores[:, k].numpy()).all()
    assert (certificate.rescored >= k).all()
    assert (certificate.rescored < len(corpus) / 4).all()
    assert certificate.verify() == certificate.verify(None)  # a corpus smaller than the sample
    assert certificate.verify(100) == 6 * (100 + k)
    assert (
        topk(queries, corpus, 2000, certify=True).certificate.excluded_bound.tolist()
        == [-math.inf] * 6
    )


# Errors.


@pytest.mark.parametrize(
    ("arguments", "error", "message"),
    [
        ((torch.ones(2, 3), torch.ones(4, 5), 1), ValueError, r"\(q, 5\).*got \(q, 3\)"),
        ((torch.ones(3), torch.ones(4, 3), 1), ValueError, r"queries of shape.*pass one row"),
        ((torch.ones(1, 3), torch.ones(4, 3), 5), ValueError, "k = 5 and a corpus of n = 4 rows"),
        ((torch.ones(1, 3), torch.ones(4, 3), 0), ValueError, "k >= 1, got 0"),
        ((torch.ones(1, 3), torch.ones(4, 3), 1.5), TypeError, "k to be an int, got float"),
        ((torch.ones(1, 3), torch.ones(4, 3).int(), 1), TypeError, r"corpus of .*got torch.int32"),
        ((torch.ones(1, 3) * 1j, torch.ones(4, 3), 1), TypeError, "real numbers"),
        ((torch.ones(1, 0), torch.ones(4, 0), 1), ValueError, "d >= 1"),
        ((torch.ones(1, 3), "rows", 1), TypeError, "corpus to be a tensor or an array"),
        ((torch.ones(1, 3), iter([torch.ones(2, 3)]), 4), ValueError, "k = 4 .* n = 2 rows"),
        (
            (torch.ones(1, 3), iter([torch.ones(2, 3), torch.ones(2, 4)]), 1),
            ValueError,
            r"block 1 of corpus of shape \(n, 3\).*got \(2, 4\)",
        ),
    ],
)
def test_errors(arguments, error, message):
    with pytest.raises(error, match=message):
        topk(*arguments)


def test_an_unknown_screen_is_refused():
    with pytest.raises(ValueError, match=r"screen to be one of .*int4"):
        topk(torch.ones(1, 3), torch.ones(4, 3), 1, screen="int4")


def test_rows_are_coded_where_it_pays(monkeypatch):
    monkeypatch.setattr(tuning, "CODING_PAYS", 20)
    coded = []
    encode = topk_module.encode

    def watched(*args, codes, **kwargs):
        coded.append(codes)
        return encode(*args, codes=codes, **kwargs)

    monkeypatch.setattr(topk_module, "encode", watched)
    x = torch.randn(30, 8)
    topk(x[:19], x, 1)
    topk(x[:20], x, 1)
    topk(x, x, 1, screen="float32")
    assert coded == [False, True, False]


# Processors that saturate.

CHILD = """
import torch
from cossim_fast import topk
from cossim_fast.retrieval.screening import arithmetic, screens
draw = torch.Generator().manual_seed(0)
x = torch.randn(3000, 97, generator=draw)
x[:, 5] *= 3
for screen in ("int8", "bfloat16", "auto")[not screens.offer("int8").there:]:
    for count in (1, 20):
        found = topk(x[:count], x, 10, screen=screen, certify=True)
        found.certificate.verify(None)
print(arithmetic.found().kind)
print(screens.offer("int8").words)
"""


@pytest.mark.parametrize("isa", ["AVX2", "AVX512_CORE", "DEFAULT"])
def test_an_instruction_set_that_saturates_is_noticed(isa):
    done = subprocess.run(
        [sys.executable, "-W", "error", "-c", CHILD],
        env={"ONEDNN_MAX_CPU_ISA": isa, "PATH": "/usr/bin", "OMP_NUM_THREADS": "1"},
        capture_output=True,
        text=True,
        check=False,
        timeout=240,
    )
    assert done.returncode == 0, done.stderr
    assert done.stderr == ""
    kind, words = done.stdout.splitlines()
    assert kind in ("exact", "rounding", "saturating", "unusable")
    if isa != "DEFAULT" and platform.machine() in ("x86_64", "AMD64"):
        assert kind == "saturating"
        assert words.startswith("AVX2 int8, pairs of codes limited to 128 (")


@pytest.mark.parametrize("dtype", [torch.float32, torch.float64], ids=str)
@pytest.mark.parametrize("certify", [False, True])
@pytest.mark.parametrize("screen", ["auto", "float32"])
@pytest.mark.parametrize("queries", [0, 3, 130])
def test_where_nothing_can_be_found(queries, screen, certify, dtype):
    rows = torch.randn(200, 8, generator=torch.Generator().manual_seed(0), dtype=dtype)
    nothing = torch.full((200, 8), torch.nan, dtype=dtype)
    for asked, corpus in ((nothing[:queries], rows), (rows[:queries], nothing)):
        index = CosineIndex(corpus, screen=screen)
        for found in (
            topk(asked, corpus, 3, screen=screen, certify=certify),
            index.search(asked, 3, certify=certify),
        ):
            assert found.indices.shape == (len(asked), 3)
            assert bool((found.indices == -1).all())
            assert bool(found.scores.isnan().all())
