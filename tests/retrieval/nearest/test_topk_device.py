"""The search that runs where tensors are on a GPU, on CPU tensors through the ops' CPU bodies."""

import pytest
import torch
from torch import Tensor
from torch._subclasses.fake_tensor import FakeTensor, FakeTensorMode

from cossim_fast import topk
from cossim_fast.retrieval.nearest import gpu as gpu_module
from cossim_fast.retrieval.nearest import topk as topk_module
from cossim_fast.retrieval.nearest.gpu import device_oracle, search_on_device
from cossim_fast.retrieval.results import assemble
from search_data import CORPORA, brute_force, make


@pytest.mark.parametrize("screen", ["auto", "int8"])
@pytest.mark.parametrize("k", [1, 10, 70])
@pytest.mark.parametrize("kind", CORPORA)
def test_every_kind_of_corpus(kind, k, screen):
    dtype = torch.float64 if kind == "near" else torch.float32
    queries, corpus = make(kind, 900, 40, 6, dtype)
    if kind == "holes":
        queries[1, 3] = torch.nan
    best = search_on_device(queries, corpus, k, certify=True, screen=screen)
    scores, rows = brute_force(queries, corpus, k + 1)
    assert torch.equal(best.positions, rows[:, :k])
    assert torch.equal(best.scores.nan_to_num(-9), scores[:, :k].nan_to_num(-9))
    found = assemble(queries, best, double=False, oracle=device_oracle(queries, corpus))
    found.certificate.verify(None)
    # The best of the others is scored.
    assert torch.equal(best.dropped_bound, scores[:, k].nan_to_num(-torch.inf))


@pytest.mark.parametrize("dtype", [torch.float16, torch.bfloat16, torch.float32, torch.float64])
@pytest.mark.parametrize("n", [1, 5, 63, 64, 200])
@pytest.mark.parametrize("q", [3, 65])
def test_every_k(q, dtype, n):
    queries, corpus = make("clustered", n, 7, q, dtype)
    for k in {1, n}:
        best = search_on_device(queries, corpus, k, certify=k == n)
        assert torch.equal(best.positions, brute_force(queries, corpus, k)[1])


def test_few_queries_are_scanned_and_many_are_coded(monkeypatch):
    coded, true = [], gpu_module._ops.code_rows
    monkeypatch.setattr(gpu_module._ops, "code_rows", lambda *a: coded.append(1) or true(*a))
    queries, corpus = make("gaussian", 500, 16, 65, torch.float32)
    for q, screen, times in ((1, "auto", 0), (64, "auto", 0), (64, "int8", 1), (65, "auto", 2)):
        best = search_on_device(queries[:q], corpus, 3, certify=False, screen=screen)
        assert torch.equal(best.positions, brute_force(queries[:q], corpus, 3)[1])
        assert len(coded) == times


def test_a_tensor_on_a_gpu_is_searched_there(monkeypatch):
    asked, streamed = [], []
    # Fake tensors stand for those of a GPU: they have no values.
    monkeypatch.setattr("cossim_fast._checks.arrays.with_values", lambda name, value: None)
    monkeypatch.setattr("cossim_fast._checks.arrays.mode_without_values", lambda: None)
    monkeypatch.setattr("cossim_fast._checks.arrays.PLAIN", (Tensor, FakeTensor))
    monkeypatch.setattr("cossim_fast._ops.kernels_miss", lambda rows: "")
    monkeypatch.setattr(topk_module, "device_oracle", lambda queries, corpus: None)
    monkeypatch.setattr(topk_module, "assemble", lambda queries, best, **kw: best)
    monkeypatch.setattr(topk_module, "search_on_device", lambda *a, **kw: asked.append((a, kw)))
    monkeypatch.setattr(topk_module, "_topk_of_stream", lambda *a: streamed.append(a))
    with FakeTensorMode():
        queries = torch.ones(2, 3, device="cuda", dtype=torch.float16)
        corpus = torch.ones(9, 3, device="cuda")
        topk(queries, corpus, 4, certify=True)
        (((given_queries, given_corpus, k), options),) = asked
        assert given_queries.dtype == given_corpus.dtype == torch.float32
        assert given_corpus.is_cuda
        assert (k, options) == (4, {"certify": True, "screen": "auto"})
        on_host = torch.ones(9, 3), iter([])
        for corpus in on_host:
            topk(queries, corpus, 4, screen="int8", progress=True)
        assert [a[1:] for a in streamed] == [(c, 4, "int8", False, True) for c in on_host]
        assert all(a[0].is_cuda for a in streamed)
        corpus = torch.ones(9, 3, device="cuda")
        for bad, message in (
            ({"k": 10}, "k = 10 and a corpus of n = 9"),
            ({"screen": "float32"}, "'auto' or 'int8' on a GPU"),
            ({"checkpoint": "file"}, "no checkpoint on a GPU"),
            ({"checkpoint": "file", "corpus": iter([])}, "no checkpoint on a GPU"),
            ({"where": [1, 2], "corpus": iter([])}, "no where on a GPU"),
        ):
            with pytest.raises(ValueError, match=message):
                topk(**({"queries": queries, "corpus": corpus, "k": 4} | bad))
