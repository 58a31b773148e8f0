"""A corpus of the host searched block by block on a device, on CPU tensors."""

import numpy as np
import pytest
import torch

from cossim_fast import topk
from cossim_fast.retrieval.nearest import streamed
from cossim_fast.retrieval.nearest.streamed import search_stream
from cossim_fast.retrieval.nearest.topk import _topk_of_stream
from cossim_fast.retrieval.results import VerificationError
from cossim_fast.retrieval.storage import corpus as corpus_module
from cossim_fast.retrieval.storage.corpus import open_corpus
from search_data import CORPORA, make

FLOATS = [torch.float16, torch.bfloat16, torch.float32, torch.float64]


@pytest.fixture(autouse=True)
def small_blocks(monkeypatch):
    """Blocks of 8 kB, of a source that gives 64 rows at a time."""
    monkeypatch.setitem(streamed.search_stream.__kwdefaults__, "size", 1 << 13)
    monkeypatch.setattr(corpus_module, "NUMBERS", 1 << 10)


def found(queries, corpus, k, *, certify=False, screen="auto"):
    return _topk_of_stream(queries, corpus, k, screen, certify, False)


def assert_same(got, expected):
    for a, b in zip(got[:2], expected[:2], strict=True):
        assert a.dtype == b.dtype
        assert torch.equal(a.nan_to_num(-9), b.nan_to_num(-9))


@pytest.mark.parametrize("screen", ["auto", "int8"])
@pytest.mark.parametrize("k", [1, 10, 300])
@pytest.mark.parametrize("kind", CORPORA)
def test_every_kind_of_corpus(kind, k, screen):
    queries, corpus = make(kind, 900, 40, 6, torch.float64 if kind == "near" else torch.float32)
    if kind == "holes":
        queries[1, 3] = torch.nan
    got = found(queries, corpus, k, certify=True, screen=screen)
    expected = topk(queries, corpus, k, certify=True)
    assert_same(got, expected)
    assert got.certificate.skipped == expected.certificate.skipped
    got.certificate.verify(None)
    # The best of the others is scored.
    every = topk(queries, corpus, k + 1).scores[:, k].double().nan_to_num(-torch.inf)
    bound = torch.from_numpy(got.certificate.excluded_bound)
    assert torch.allclose(bound, every, rtol=0, atol=2**-23)


@pytest.mark.parametrize("dtype", FLOATS, ids=str)
@pytest.mark.parametrize("q", [1, 5, 70])
@pytest.mark.parametrize("n", [1, 64, 500])
def test_every_dtype_and_size(n, q, dtype):
    queries, corpus = make("clustered", n, 24, q, dtype)
    for k in {1, min(n, 5), n}:
        assert_same(found(queries, corpus, k), topk(queries, corpus, k))


@pytest.mark.parametrize("asked", FLOATS, ids=str)
def test_mixed_dtypes_are_searched_in_the_wider(asked):
    queries, corpus = make("gaussian", 400, 24, 5, torch.float16)
    got = found(queries.to(asked), corpus, 4, certify=True)
    assert_same(got, topk(queries.to(asked), corpus, 4))
    got.certificate.verify(None)
    got = found(queries, corpus.to(asked), 4, certify=True)
    assert_same(got, topk(queries, corpus.to(asked), 4))
    got.certificate.verify(None)


def test_iterators_arrays_and_memory_maps(tmp_path):
    queries, corpus = make("clustered", 700, 24, 5, torch.float32)
    expected = topk(queries, corpus, 7)
    assert_same(found(queries, iter(corpus.split([5, 300, 1, 394])), 7), expected)
    assert_same(found(queries, corpus.numpy(), 7), expected)
    np.save(tmp_path / "rows.npy", corpus.numpy())
    mapped = np.load(tmp_path / "rows.npy", mmap_mode="r")
    got = found(queries, mapped, 7, certify=True)
    assert_same(got, expected)
    got.certificate.verify(None)


def test_ties_across_blocks_go_to_the_earlier_row():
    queries, corpus = make("gaussian", 900, 24, 3, torch.float32)
    corpus[[3, 200, 450, 451, 899]] = queries[1]
    assert found(queries, corpus, 4).indices[1].tolist() == [3, 200, 450, 451]
    corpus[:] = corpus[7]
    assert found(queries, corpus, 300).indices.tolist() == [list(range(300))] * 3


def test_later_blocks_are_told_what_earlier_ones_reached(monkeypatch):
    queries, corpus = make("gaussian", 3000, 24, 3, torch.float32)
    queries[0] = torch.randn(24, generator=torch.Generator().manual_seed(5))  # of no row
    corpus[:5] = queries[:1]
    seen, true = [], streamed.best_rows

    def noted(*arguments, floors, **options):
        seen.append(floors)
        result = true(*arguments, floors=floors, **options)
        rescored.append(int(result[0].rescored[0]))
        return result

    rescored = []
    monkeypatch.setattr(streamed, "best_rows", noted)
    found(queries, corpus, 5)
    assert bool(seen[0].isnan().all())
    assert all(float(floors[0]) > 1 - 2.0**-20 for floors in seen[1:])
    assert float(seen[1][0]) < 1
    assert rescored[0] >= 5
    assert sum(rescored[1:]) == 0


def test_a_certificate_of_a_stream_can_fail():
    queries, corpus = make("gaussian", 900, 24, 3, torch.float32)
    got = found(queries, corpus, 4, certify=True)
    corpus[800] = queries[2]
    with pytest.raises(VerificationError, match="row 800"):
        got.certificate.verify(None)
    with pytest.raises(ValueError, match="got an iterator"):
        found(queries, iter([corpus]), 4, certify=True).certificate.verify()


def test_an_error_of_an_iterator_is_the_callers():
    queries, corpus = make("gaussian", 900, 24, 3, torch.float32)

    def broken():
        yield corpus
        raise OSError("the disk is gone")

    with pytest.raises(OSError, match="the disk is gone"):
        found(queries, broken(), 4)


def test_what_does_not_fit_is_refused():
    queries, corpus = make("gaussian", 90, 24, 3, torch.float32)
    for bad, k, message in (
        (corpus, 91, "k = 91 and a corpus of n = 90"),
        (iter([corpus]), 91, "k = 91 and a corpus of n = 90"),
        (iter([corpus, corpus[:, :3]]), 2, r"block 1 of corpus of shape \(n, 24\)"),
        (iter([corpus, corpus.half()]), 2, "and torch.float16"),
        (corpus[:, :3], 2, r"queries of shape \(q, 3\)"),
    ):
        with pytest.raises(ValueError, match=message):
            found(queries, bad, k)


def test_blocks_are_of_the_size_that_was_asked_for(monkeypatch):
    lengths, true = [], streamed.best_rows
    monkeypatch.setattr(
        streamed, "best_rows", lambda q, rows, *a, **kw: lengths.append(len(rows)) or true(
            q, rows, *a, **kw
        )
    )  # fmt: skip
    queries, corpus = make("gaussian", 300, 32, 3, torch.float32)
    search_stream(queries, open_corpus(corpus, 32), 2, certify=False, size=100 * 128)
    assert lengths == [100, 100, 100]
