"""The search of few queries without codes, against brute force: by CPU bodies and by kernels."""

import pytest
import torch

from cossim_fast.retrieval.nearest import scanned_topk as scanned_module
from cossim_fast.retrieval.nearest.scanned_topk import scanned_topk, suits
from ladder.reach import as_cuda  # noqa: F401  (a fixture)
from ladder.runtime import DEVICE, needs_kernels
from search_data import CORPORA, brute_force, make

FLOATS = [torch.float16, torch.bfloat16, torch.float32, torch.float64]


def assert_exact(queries, corpus, k, **options):
    found, eligible = scanned_topk(queries, corpus, k, **options)
    scores, rows = brute_force(queries, corpus, k)
    assert torch.equal(found.rows, rows)
    assert torch.equal(found.scores.nan_to_num(-9), scores.nan_to_num(-9))
    assert torch.equal(eligible, corpus.isfinite().all(1))
    # The certificate: all rows that reach the threshold were rescored.
    every, _ = brute_force(queries, corpus, len(corpus))
    reaching = (every >= found.thresholds[:, None].double()).sum(1)
    assert bool((found.rescored >= reaching).all())
    return found


@pytest.mark.parametrize("k", [1, 10, 70])
@pytest.mark.parametrize("kind", CORPORA)
def test_every_kind_of_corpus(kind, k):
    queries, corpus = make(kind, 900, 40, 6, torch.float64 if kind == "near" else torch.float32)
    if kind == "holes":
        queries[1, 3] = torch.nan
    assert_exact(queries, corpus, k)


@pytest.mark.parametrize("dtype", FLOATS, ids=str)
@pytest.mark.parametrize("n", [1, 5, 63, 64, 200])
def test_every_k(dtype, n):
    queries, corpus = make("clustered", n, 7, 3, dtype)
    for k in {1, n, n + 3}:
        assert_exact(queries, corpus, k)


@pytest.mark.parametrize("size", [1e37, 1e-38, 1e-44])
@pytest.mark.parametrize("dtype", [torch.bfloat16, torch.float32], ids=str)
def test_rows_at_the_ends_of_the_range(dtype, size):
    queries, corpus = make("gaussian", 500, 24, 5, torch.float32)
    corpus[::3] = (corpus[::3].double() * size).float()
    queries[0] = (queries[0].double() * size).float()
    assert_exact(queries.to(dtype), corpus.to(dtype), 7)


@pytest.mark.parametrize("dtype", FLOATS, ids=str)
@pytest.mark.parametrize("q", [1, 64])
def test_few_rows_are_scored(q, dtype):
    queries, corpus = make("gaussian", 5000, 32, q, dtype)
    found = assert_exact(queries, corpus, 3)
    assert int(found.rescored.max()) <= 64 * 12


def test_nothing_but_duplicates():
    queries, corpus = make("duplicates", 2000, 16, 5, torch.float32)
    found = assert_exact(queries, corpus[:1].expand(2000, 16), 10)
    assert found.rescored.tolist() == [2000] * 5


def test_passes_and_pieces_change_nothing(monkeypatch):
    queries, corpus = make("clustered", 2000, 16, 9, torch.float32)
    whole = assert_exact(queries, corpus, 10)
    monkeypatch.setattr(scanned_module.screened, "MAXIMA_AT_ONCE", 100)
    monkeypatch.setattr(scanned_module, "AT_ONCE", 128)
    for found, expected in zip(assert_exact(queries, corpus, 10), whole, strict=True):
        assert torch.equal(found, expected)


def test_rows_below_the_floors_need_not_be_returned():
    queries, corpus = make("gaussian", 3000, 24, 5, torch.float32)
    scores, rows = brute_force(queries, corpus, 10)
    floors = torch.nextafter(scores[:, 4].float(), torch.tensor(-torch.inf))
    floors[3], floors[4] = -torch.inf, 2.0
    found, _ = scanned_topk(queries, corpus, 10, floors=floors)
    # All that reach the floor come back, and whatever else comes is below it.
    for i, reach in enumerate([5, 5, 5, 10, 0]):
        assert torch.equal(found.rows[i, :reach], rows[i, :reach])
        assert torch.equal(found.scores[i, :reach], scores[i, :reach])
        assert bool((found.scores[i, reach:].nan_to_num(-9) < floors[i]).all())
    assert int(found.rescored[4]) == 0


def test_no_queries_and_no_rows():
    queries, corpus = make("gaussian", 100, 8, 4, torch.float32)
    found, eligible = scanned_topk(queries[:0], corpus, 3)
    assert (found.rows.shape, eligible.all().item()) == ((0, 3), True)
    found, eligible = scanned_topk(queries, corpus[:0], 2)
    assert found.rows.tolist() == [[-1, -1]] * 4


@pytest.mark.parametrize("groups", [1, 4, 40])
def test_groups_of_blocks_change_nothing(groups, monkeypatch):
    monkeypatch.setattr(scanned_module.screened, "GROUPS", groups)
    queries, corpus = make("clustered", 9000, 16, 9, torch.float32)
    for k in (1, 10, 100):
        assert_exact(queries, corpus, k)


def test_an_unsound_bound_is_caught(monkeypatch):
    """The checks above can fail: estimates that promise too much lose rows."""
    queries, corpus = make("cone", 3000, 40, 6, torch.float32)
    true = scanned_module._ops.scan_rows

    def wrong(factors, rows):
        maxima, eligible = true(factors, rows)
        noise = torch.randn(maxima.shape, generator=torch.Generator().manual_seed(0))
        return maxima + 0.02 * noise, eligible

    monkeypatch.setattr(scanned_module._ops, "scan_rows", wrong)
    with pytest.raises(AssertionError):
        assert_exact(queries, corpus, 10)


def test_few_queries_are_scanned_unless_too_many_rows_would_be_scored():
    assert suits(1, 10, 1 << 20)
    assert suits(64, 10, 1 << 20)
    assert not suits(65, 10, 1 << 20)
    assert not suits(64, 1000, 1 << 20)
    assert suits(64, 10, 100)  # whatever k: all rows are few


@pytest.mark.kernel_logic
@needs_kernels
@pytest.mark.parametrize("dtype", FLOATS[:3], ids=str)
@pytest.mark.parametrize("kind", ["gaussian", "holes", "duplicates"])
def test_kernels_give_the_same_ranks(kind, dtype, as_cuda):  # noqa: F811
    queries, corpus = make(kind, 700, 24, 5, dtype)
    scores, rows = brute_force(queries, corpus, 6)
    found, _ = scanned_topk(queries.to(DEVICE), corpus.to(DEVICE), 6)
    assert found.rows.tolist() == rows.tolist()
    # Two processors agree to 2^-48; none of these scores is as close to another row's.
    assert float((found.scores.cpu() - scores).abs().nan_to_num(0).max()) <= 2**-48
