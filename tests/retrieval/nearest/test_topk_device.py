"""The search that runs where tensors are on a GPU, on CPU tensors through the ops' CPU bodies."""

import pytest
import torch
from torch._subclasses.fake_tensor import FakeTensorMode

from cossim_fast import topk
from cossim_fast.retrieval.nearest import topk as topk_module
from cossim_fast.retrieval.nearest.gpu import device_oracle, search_on_device
from cossim_fast.retrieval.results import assemble
from search_data import CORPORA, brute_force, make


@pytest.mark.parametrize("k", [1, 10, 70])
@pytest.mark.parametrize("kind", CORPORA)
def test_every_kind_of_corpus(kind, k):
    dtype = torch.float64 if kind == "near" else torch.float32
    queries, corpus = make(kind, 900, 40, 6, dtype)
    if kind == "holes":
        queries[1, 3] = torch.nan
    best = search_on_device(queries, corpus, k, certify=True)
    scores, rows = brute_force(queries, corpus, k + 1)
    assert torch.equal(best.positions, rows[:, :k])
    assert torch.equal(best.scores.nan_to_num(-9), scores[:, :k].nan_to_num(-9))
    found = assemble(queries, best, double=False, oracle=device_oracle(queries, corpus))
    found.certificate.verify(None)
    # The best of the others is scored.
    assert torch.equal(best.dropped_bound, scores[:, k].nan_to_num(-torch.inf))


@pytest.mark.parametrize("dtype", [torch.float16, torch.bfloat16, torch.float32, torch.float64])
@pytest.mark.parametrize("n", [1, 5, 63, 64, 200])
def test_every_k(dtype, n):
    queries, corpus = make("clustered", n, 7, 3, dtype)
    for k in {1, n}:
        best = search_on_device(queries, corpus, k, certify=k == n)
        assert torch.equal(best.positions, brute_force(queries, corpus, k)[1])


def test_a_tensor_on_a_gpu_is_searched_there(monkeypatch):
    asked = []
    # Fake tensors stand for those of a GPU: they have no values.
    monkeypatch.setattr("cossim_fast._checks.arrays.with_values", lambda name, value: None)
    monkeypatch.setattr("cossim_fast._checks.arrays.mode_without_values", lambda: None)
    monkeypatch.setattr("cossim_fast._ops.kernels_miss", lambda rows: "")
    monkeypatch.setattr(topk_module, "device_oracle", lambda queries, corpus: None)
    monkeypatch.setattr(topk_module, "assemble", lambda queries, best, **kw: best)
    monkeypatch.setattr(topk_module, "search_on_device", lambda *a, **kw: asked.append((a, kw)))
    with FakeTensorMode():
        queries = torch.ones(2, 3, device="cuda", dtype=torch.float16)
        corpus = torch.ones(9, 3, device="cuda")
        topk(queries, corpus, 4, certify=True)
        (((given_queries, given_corpus, k), options),) = asked
        assert given_queries.dtype == given_corpus.dtype == torch.float32
        assert given_corpus.is_cuda
        assert (k, options) == (4, {"certify": True})
        for bad, message in (
            ({"corpus": torch.ones(9, 3)}, "expected corpus on cuda, got cpu"),
            ({"k": 10}, "k = 10 and a corpus of n = 9"),
            ({"screen": "float32"}, "'auto' or 'int8' on a GPU"),
            ({"checkpoint": "file"}, "no checkpoint on a GPU"),
        ):
            with pytest.raises(ValueError, match=message):
                topk(**({"queries": queries, "corpus": corpus, "k": 4} | bad))
