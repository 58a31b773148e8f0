"""Tensors whose memory holds the negatives of their numbers, as parts of conjugated ones do."""

import dataclasses
from functools import partial

import numpy as np
import pytest
import torch

from cossim_fast import (
    CosineIndex,
    communities,
    cosine_similarity,
    deduplicate,
    diagnose,
    iter_pairs_above,
    pairs_above,
    pairwise_cosine,
    testing,
    topk,
)
from cossim_fast.testing import make_inputs

assert_close = partial(testing.assert_close, terms=64)

A, B = make_inputs((50, 8), (60, 8))
LARGE = A.repeat(20, 8), B.repeat(20, 8)  # beyond what is multiplied by numpy
NUMBERS = torch.arange(50)


def negative_view(x):
    return torch._neg_view(-x)


def imaginary_part(x):
    if not x.is_floating_point():
        return negative_view(x)
    return torch.complex(torch.zeros_like(x), -x).conj().imag


def saved(lazy, path):
    index = CosineIndex(lazy(A))
    index.add(lazy(B))
    index.save(path / "index.safetensors")
    return CosineIndex.load(path / "index.safetensors").search(A, 3)


def kept_in_a_file(lazy, path):
    index = CosineIndex(lazy(A), path=path / "vectors.safetensors")
    index.add(lazy(B))
    return index.search(lazy(B), 3)


def with_ids(lazy, path):
    index = CosineIndex(A, ids=lazy(3 * NUMBERS))
    index.add(B, ids=lazy(1000 + torch.arange(60)))
    index.remove(lazy(torch.tensor([3, 6])))
    return index.search(A[:4], 3, exclude=lazy(torch.tensor([[0], [9], [12], [15]])))


DOORS = {
    "rows": lambda lazy, _: cosine_similarity(lazy(A), lazy(A.flip(0))),
    "many rows": lambda lazy, _: cosine_similarity(lazy(LARGE[0]), LARGE[0].flip(0)),
    "odd rows": lambda lazy, _: cosine_similarity(lazy(A * 1e30), lazy(A.flip(0) * 1e-30), eps=0),
    "broadcast": lambda lazy, _: cosine_similarity(lazy(A)[:, None], lazy(B), -1),
    "matrix": lambda lazy, _: pairwise_cosine(lazy(A), lazy(B)),
    "large matrix": lambda lazy, _: pairwise_cosine(lazy(LARGE[0]), lazy(LARGE[1])),
    "with itself": lambda lazy, _: pairwise_cosine(lazy(LARGE[0])),
    "out": lambda lazy, _: pairwise_cosine(A, B, out=lazy(torch.zeros(50, 60))),
    "topk": lambda lazy, _: topk(lazy(A), lazy(B), 3),
    "topk of blocks": lambda lazy, _: topk(lazy(A), iter([lazy(B[:30]), lazy(B[30:])]), 3),
    "pairs": lambda lazy, _: pairs_above(lazy(A), lazy(B), threshold=0.5),
    "blocks of pairs": lambda lazy, _: list(iter_pairs_above(lazy(A), threshold=0.5)),
    "deduplicate": lambda lazy, _: deduplicate(lazy(A), threshold=0.7, keep=lazy(NUMBERS)),
    "communities": lambda lazy, _: communities(lazy(A), threshold=0.5, min_size=2),
    "index": lambda lazy, _: CosineIndex(lazy(A)).search(lazy(B), 3),
    "range": lambda lazy, _: CosineIndex(lazy(A)).range_search(lazy(B), 0.5),
    "other dtype": lambda lazy, _: CosineIndex(lazy(A), store=torch.float16).search(lazy(B), 3),
    "saved index": saved,
    "vectors in a file": kept_in_a_file,
    "ids": with_ids,
    "pair": lambda lazy, _: diagnose.pair(lazy(A), lazy(A.flip(0))).facts.exact,
    "embeddings": lambda lazy, _: diagnose.embeddings(lazy(A), lazy(NUMBERS % 3)).mean_cosine,
    "rows by the op": lambda lazy, _: torch.ops.cossim_fast.rowwise_fwd(lazy(A), lazy(A), 1e-8),
}


def leaves(result):
    """The arrays, tensors and numbers of a result."""
    if isinstance(result, (torch.Tensor, np.ndarray, int, float)):
        return [torch.as_tensor(result)]
    if dataclasses.is_dataclass(result):
        result = [getattr(result, each.name) for each in dataclasses.fields(result)]
    if result is None or isinstance(result, str):
        return []
    return [leaf for each in result for leaf in leaves(each)]


def agree(got, wanted):
    got, wanted = leaves(got), leaves(wanted)
    assert len(got) == len(wanted) > 0
    for mine, theirs in zip(got, wanted, strict=True):
        if theirs.is_floating_point():
            assert_close(mine, theirs, scale=16)
        else:
            assert torch.equal(mine, theirs)


every_view = pytest.mark.parametrize("lazy", [negative_view, imaginary_part])


@every_view
@pytest.mark.parametrize("door", DOORS)
def test_every_door_takes_them_for_the_numbers_that_they_are(door, lazy, tmp_path):
    assert lazy(A).is_neg()
    assert torch.equal(lazy(A), A)
    (tmp_path / "lazy").mkdir()
    agree(DOORS[door](lazy, tmp_path / "lazy"), DOORS[door](lambda x: x, tmp_path))


GRADIENTS = {
    "rows": (cosine_similarity, (A, B[:50])),
    "many rows": (cosine_similarity, (LARGE[0], LARGE[1][:1000])),
    "matrix": (pairwise_cosine, (A, B)),
    "large matrix": (pairwise_cosine, LARGE),
    "with itself": (pairwise_cosine, (A,)),
}


@every_view
@pytest.mark.parametrize("name", GRADIENTS)
def test_gradients_that_come_as_such(name, lazy):
    function, inputs = GRADIENTS[name]
    results = []
    for given in (lambda x: x, lazy):
        leaf = [given(x).detach().requires_grad_() for x in inputs]
        cosine = function(*leaf)
        (incoming,) = make_inputs(tuple(cosine.shape), seed=3)
        results.append(torch.autograd.grad(cosine, leaf, given(incoming)))
    for mine, theirs in zip(*results, strict=True):
        assert_close(mine, theirs, scale=16 * max(1.0, theirs.abs().max().item()))


@pytest.mark.parametrize("name", GRADIENTS)
def test_gradients_of_torchs_own_zeros(name):
    function, inputs = GRADIENTS[name]
    leaf = [x.clone().requires_grad_() for x in inputs]
    cosine = function(*leaf)
    zeros = torch._efficientzerotensor(tuple(cosine.shape))
    for found in torch.autograd.grad(cosine, leaf, zeros):
        assert torch.count_nonzero(found) == 0


def test_the_gradient_of_a_complex_result():
    """Where such gradients come from: the sum of an imaginary part of a conjugated result."""
    x, y = (t.clone().requires_grad_() for t in (A, B))
    cosine = pairwise_cosine(x, y)
    torch.complex(torch.zeros_like(cosine), cosine).conj().imag.sum().backward()
    negated = torch.autograd.grad(-pairwise_cosine(x, y).sum(), (x, y))
    for mine, theirs in zip((x.grad, y.grad), negated, strict=True):
        assert_close(mine, theirs, scale=64)
