"""The adapter for torchmetrics, beside its function."""

import inspect

import pytest
import torch
from torchmetrics.functional import pairwise_cosine_similarity as theirs

from cossim_fast.integrations.torchmetrics import pairwise_cosine_similarity as mine

X, Y = torch.randn(9, 5, dtype=torch.float64), torch.randn(6, 5, dtype=torch.float64)


def test_arguments_are_theirs():
    found = [
        [(p.name, p.default) for p in inspect.signature(one).parameters.values()]
        for one in (mine, theirs)
    ]
    assert found[0] == found[1]


@pytest.mark.parametrize("y", [None, X, Y, X[:3]])
@pytest.mark.parametrize("reduction", [None, "none", "mean", "sum"])
@pytest.mark.parametrize("zero_diagonal", [None, True, False])
def test_values_and_gradients_are_theirs(y, reduction, zero_diagonal):
    results = []
    for one in (mine, theirs):
        x = X.clone().requires_grad_()
        found = one(x, y, reduction, zero_diagonal)
        (gradient,) = torch.autograd.grad(found.cos().sum(), x)
        results.append((found.detach(), gradient))
    for a, b in zip(*results, strict=True):
        torch.testing.assert_close(a, b)


@pytest.mark.parametrize("dtype", [torch.float32, torch.float16, torch.bfloat16])
def test_dtypes(dtype):
    assert mine(X.to(dtype)).dtype == theirs(X.to(dtype)).dtype == dtype
    torch.testing.assert_close(mine(X.to(dtype)), theirs(X.to(dtype)), atol=2e-2, rtol=0)


def test_zero_rows_score_zero():
    assert mine(X * 0, Y).tolist() == [[0.0] * 6] * 9


@pytest.mark.parametrize("arguments", [(X[0],), (X, Y[:, :2]), (X, Y, "max"), (X, Y[0])])
def test_both_refuse(arguments):
    for one in (mine, theirs):
        with pytest.raises(ValueError, match="xpected"):
            one(*arguments)
