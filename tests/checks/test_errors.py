"""What is refused: as torch does where we stand in for it, in our own words elsewhere."""

import re

import numpy as np
import pytest
import torch
import torch.nn.functional as F

from cossim_fast import CosineSimilarity, cosine_similarity, explain, pairwise_cosine
from old_torch import REFUSES_EPS

FINE = torch.ones(6, 4)
REFUSED_BY_TORCH = {
    "integers": ((FINE.long(), FINE.long()), {}),
    "booleans": ((FINE > 0, FINE > 0), {}),
    "complex": ((FINE.cfloat(), FINE.cfloat()), {}),
    "complex beside float": ((FINE, FINE.cfloat()), {}),
    "negative eps": ((FINE, FINE), {"eps": -1.0}),
    "eps just below zero": ((FINE, FINE), {"eps": -5e-324}),
    "NaN eps": ((FINE, FINE), {"eps": float("nan")}),
    "eps a string": ((FINE, FINE), {"eps": "1"}),
    "eps None": ((FINE, FINE), {"eps": None}),
    "eps complex": ((FINE, FINE), {"eps": 1j}),
    "eps of two elements": ((FINE, FINE), {"eps": torch.tensor([1.0, 2.0])}),
    "dim too large": ((FINE, FINE), {"dim": 2}),
    "dim too small": ((FINE, FINE), {"dim": -3}),
    "default dim of vectors": ((FINE[0], FINE[0]), {}),
    "default dim of scalars": ((FINE[0, 0], FINE[0, 0]), {}),
    "dim a float": ((FINE, FINE), {"dim": 1.0}),
    "dim a bool": ((FINE, FINE), {"dim": True}),
    "dim None": ((FINE, FINE), {"dim": None}),
    "dim a tuple": ((FINE, FINE), {"dim": (1,)}),
    "dim a string": ((FINE, FINE), {"dim": "1"}),
    "rows do not match": ((FINE, FINE[:5]), {}),
    "widths do not match": ((FINE, FINE[:, :3]), {}),
    "a list": ((FINE, [1.0, 2.0]), {}),
    "None": ((None, FINE), {}),
    "an array": ((np.ones((6, 4), np.float32), FINE), {}),
    "a number": ((FINE, 1.0), {}),
    "nothing": ((), {}),
    "two devices": ((FINE, FINE.to("meta")), {}),
    "a scalar on another device": ((torch.tensor(1.0), FINE.to("meta")), {"dim": 0}),
    "a scalar on meta": ((FINE, torch.tensor(1.0, device="meta")), {"dim": 0}),
}
# What old torch lets pass, and what it is refused with on all.
REFUSED_LATER = dict.fromkeys(("negative eps", "eps just below zero", "NaN eps"), RuntimeError)


@pytest.mark.parametrize("name", REFUSED_BY_TORCH)
def test_cosine_similarity_refuses_what_torch_refuses_with_the_same_type(name):
    args, kwargs = REFUSED_BY_TORCH[name]
    expected = REFUSED_LATER.get(name)
    if expected is None or REFUSES_EPS:
        with pytest.raises(Exception) as theirs:  # noqa: PT011 - the type is what is compared
            F.cosine_similarity(*args, **kwargs)
        expected = theirs.type
    with pytest.raises(expected) as ours:
        cosine_similarity(*args, **kwargs)
    assert ours.type is expected


@pytest.mark.parametrize("shape", [(6, 4), (6, 1, 4)])
def test_wrong_arguments_are_refused_whatever_executes(shape):
    x = torch.ones(shape, requires_grad=True)
    for function in (cosine_similarity, torch.func.grad(cosine_similarity)):
        with pytest.raises(RuntimeError, match="must match"):
            function(x, torch.ones(6, 3), -1)


def test_the_module_refuses_when_called_as_torch_does():
    module = CosineSimilarity(dim=5, eps=-1.0)
    with pytest.raises(RuntimeError, match="eps must be non-negative"):
        module(FINE, FINE)


X, BATCHED = torch.ones(3, 4), torch.ones(2, 3, 4)
REFUSED_PAIRWISE = {
    "x a vector": ((X[0],), {}, ValueError, "expected x of shape (n, d) or (b, n, d), got (4,)"),
    "x of 4 dims": ((BATCHED[None],), {}, ValueError, "got (1, 2, 3, 4)"),
    "widths": (
        (X, torch.ones(5, 6)),
        {},
        ValueError,
        "expected y of shape (m, 4) to match x of shape (3, 4), got (5, 6)",
    ),
    "batches": (
        (BATCHED, torch.ones(3, 5, 4)),
        {},
        ValueError,
        "expected y of shape (2, m, 4) to match x of shape (2, 3, 4), got (3, 5, 4)",
    ),
    "no broadcast of batches": ((BATCHED, BATCHED[:1]), {}, ValueError, "expected y of shape"),
    "2-d beside 3-d": ((BATCHED, X), {}, ValueError, "expected y of shape (2, m, 4)"),
    "integers": ((X.long(),), {}, TypeError, "got torch.int64"),
    "integers both": ((X.long(), X.int()), {}, TypeError, "which give torch.int64"),
    "complex": ((X, X.cfloat()), {}, TypeError, "which give torch.complex64"),
    "a list": (([[1.0]],), {}, TypeError, "expected x to be a Tensor, got list"),
    "an array": ((X, np.ones((3, 4))), {}, TypeError, "torch.from_numpy"),
    "devices": ((X, X.to("meta")), {}, ValueError, "got cpu and meta"),
    "negative eps": ((X,), {"eps": -1.0}, ValueError, "expected a finite eps >= 0, got -1.0"),
    "NaN eps": ((X,), {"eps": float("nan")}, ValueError, "got nan"),
    "infinite eps": ((X,), {"eps": float("inf")}, ValueError, "got inf"),
    "eps a string": ((X,), {"eps": "1"}, ValueError, "got '1'"),
    "precision": ((X,), {"precision": "low"}, ValueError, "got 'low'"),
    "precision None": ((X,), {"precision": None}, ValueError, "got None"),
}


@pytest.mark.parametrize("name", REFUSED_PAIRWISE)
def test_pairwise_cosine_says_what_was_expected_and_what_came(name):
    args, kwargs, error, message = REFUSED_PAIRWISE[name]
    with pytest.raises(error, match=re.escape(message)):
        pairwise_cosine(*args, **kwargs)
    with pytest.raises(error, match=re.escape(message)):
        explain(pairwise_cosine, *args, **kwargs)


def test_explain_knows_two_functions():
    with pytest.raises(ValueError, match="expected function to be"):
        explain(F.cosine_similarity, X, X)
    with pytest.raises(TypeError):
        explain(cosine_similarity, X)
