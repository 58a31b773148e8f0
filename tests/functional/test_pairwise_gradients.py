"""First and second derivatives of `pairwise_cosine`: those of torch's function on the broadcast."""

from functools import partial

import pytest
import torch
import torch.nn.functional as F

from cossim_fast import pairwise_cosine, testing
from cossim_fast.testing import LAYOUTS, make_inputs

# Nothing here sums more numbers.
assert_close = partial(testing.assert_close, terms=16)

SHAPES = [((5, 4), (6, 4)), ((1, 4), (6, 4)), ((5, 2), (3, 2)), ((2, 5, 4), (2, 3, 4)), ((5, 4),)]


def by_torch(x, y=None, eps=1e-8):
    y = x if y is None else y
    return F.cosine_similarity(x.unsqueeze(-2), y.unsqueeze(-3), -1, eps)


def derivatives(function, leaves, weights, second):
    result = function(*leaves)
    first = torch.autograd.grad((result * weights.to(result)).sum(), leaves, create_graph=second)
    if not second:
        return first
    value = sum(g.sin().sum() for g in first)
    return *first, *torch.autograd.grad(value, leaves)


@pytest.mark.parametrize("shapes", SHAPES, ids=str)
@pytest.mark.parametrize("second", [False, True])
@pytest.mark.parametrize("layout", LAYOUTS)
def test_in_float64(shapes, second, layout):
    leaves = make_inputs(*shapes, dtype=torch.float64, layout=layout, requires_grad=True)
    (weights,) = make_inputs(tuple(by_torch(*leaves).shape), dtype=torch.float64, seed=7)
    got = derivatives(pairwise_cosine, leaves, weights, second)
    expected = derivatives(by_torch, leaves, weights, second)
    for mine, wanted in zip(got, expected, strict=True):
        assert_close(mine, wanted, scale=16 * max(1, wanted.abs().max().item()))


@pytest.mark.parametrize("shapes", SHAPES, ids=str)
@pytest.mark.parametrize("dtype", [torch.float16, torch.bfloat16, torch.float32], ids=str)
@pytest.mark.parametrize("second", [False, True])
def test_in_narrower_dtypes(shapes, dtype, second):
    leaves = make_inputs(*shapes, dtype=dtype, requires_grad=True)
    wide = [t.detach().double().requires_grad_() for t in leaves]
    (weights,) = make_inputs(tuple(by_torch(*wide).shape), dtype=dtype, seed=7)
    got = derivatives(pairwise_cosine, leaves, weights, second)
    expected = derivatives(by_torch, wide, weights, second)
    for mine, wanted in zip(got, expected, strict=True):
        assert mine.dtype == dtype
        assert_close(mine, wanted, scale=8 * max(1, wanted.abs().max().item()))


@pytest.mark.parametrize("side", [0, 1])
def test_one_side_alone(side):
    leaves = make_inputs((5, 4), (6, 4), dtype=torch.float64)
    leaf = leaves[side].requires_grad_()
    for second in (False, True):
        got, wanted = (
            derivatives(lambda t, f=f: f(*[t if i == side else leaves[i] for i in (0, 1)]),
                        (leaf,), torch.arange(30.0).view(5, 6), second)
            for f in (pairwise_cosine, by_torch)
        )  # fmt: skip
        for mine, exact in zip(got, wanted, strict=True):
            assert_close(mine, exact, scale=32 * max(1, exact.abs().max().item()))


@pytest.mark.parametrize("size", [0.0, 1e-12, 5e-9, 2e-8])
def test_zero_rows_and_norms_below_eps(size):
    x, y = make_inputs((5, 4), (6, 4), dtype=torch.float64)
    x[2] *= size
    x.requires_grad_()
    y.requires_grad_()
    weights = torch.arange(30.0).view(5, 6)
    got = derivatives(pairwise_cosine, (x, y), weights, False)
    expected = derivatives(by_torch, (x, y), weights, False)
    for mine, wanted in zip(got, expected, strict=True):
        sizes = wanted.abs().amax(-1, keepdim=True)
        assert_close(mine / sizes, wanted / sizes, scale=8)


def test_gradcheck_with_every_mode():
    leaves = make_inputs((3, 4), (2, 4), dtype=torch.float64, requires_grad=True)
    assert torch.autograd.gradcheck(
        pairwise_cosine, leaves, check_forward_ad=True, check_batched_grad=True
    )
    assert torch.autograd.gradgradcheck(
        pairwise_cosine, leaves, check_fwd_over_rev=True, check_batched_grad=True
    )
    assert torch.autograd.gradcheck(pairwise_cosine, leaves[:1], check_batched_grad=True)
    assert torch.autograd.gradgradcheck(pairwise_cosine, leaves[:1])


def test_the_output_may_be_edited_and_the_second_derivative_keeps_no_matrix():
    saved = []

    def pack(t):
        saved.append(t.numel())
        return t

    x, y = make_inputs((200, 4), (300, 4), requires_grad=True)
    with torch.autograd.graph.saved_tensors_hooks(pack, lambda t: t):
        result = pairwise_cosine(x, y)
    assert max(saved) <= y.numel()
    result.div_(0.07)
    wide = [t.detach().double().requires_grad_() for t in (x, y)]
    expected = torch.autograd.grad((by_torch(*wide) / 0.07).sum(), wide)
    for mine, wanted in zip(torch.autograd.grad(result.sum(), (x, y)), expected, strict=True):
        assert_close(mine, wanted, scale=8 * max(1, wanted.abs().max().item()), terms=300)
