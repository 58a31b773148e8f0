"""What a script that swaps torch's cosine for ours could notice: shapes, dtypes, layouts."""

import itertools
from functools import partial

import numpy as np
import pytest
import torch
import torch.nn.functional as F
from torch import nn

from cossim_fast import CosineSimilarity, _reference, cosine_similarity, testing
from cossim_fast.testing import make_inputs

# Nothing here sums more numbers.
assert_close = partial(testing.assert_close, terms=16)

FLOATING = (torch.float16, torch.bfloat16, torch.float32, torch.float64)
ALL_DTYPES = (*FLOATING, torch.uint8, torch.int8, torch.int16, torch.int32, torch.int64, torch.bool)


def layout(result):
    return result.dtype, result.shape, result.stride(), result.device


def dtype_or_error(function, *args):
    try:
        return function(*args).dtype
    except RuntimeError as error:
        return type(error)


@pytest.mark.parametrize("dim", [0, 1, 2, 3, -1, -4])
def test_each_dim_is_reduced(dim):
    x, y = make_inputs((4, 2, 3, 5), (4, 2, 3, 5), dtype=torch.float64)
    ours = cosine_similarity(x, y, dim=dim)
    assert_close(ours, F.cosine_similarity(x, y, dim=dim))
    assert_close(CosineSimilarity(dim)(x, y), nn.CosineSimilarity(dim)(x, y))


def test_default_dim_is_one():
    x, y = make_inputs((3, 4, 5), (3, 4, 5))
    assert cosine_similarity(x, y).shape == F.cosine_similarity(x, y).shape == (3, 5)
    assert CosineSimilarity()(x, y).shape == (3, 5)


def test_parallel_vectors_never_exceed_one():
    base = torch.tensor([2.3e-4, 1.7, 0.3, 9.1e3], dtype=torch.float32)
    x = base * torch.linspace(0.1, 7, 5000)[:, None]
    assert cosine_similarity(x, x).max() <= 1
    assert cosine_similarity(x, 3 * x).max() <= 1
    assert cosine_similarity(x, -x).min() >= -1


@pytest.mark.parametrize("shape", [(2, 3), (3,), (4, 2, 3)])
def test_division_by_zero_has_the_finite_gradients_of_torch(shape):
    (x,) = make_inputs(shape, requires_grad=True)
    zeros = torch.zeros(shape, requires_grad=True)
    result = cosine_similarity(x, zeros, dim=-1)
    assert torch.equal(result, torch.zeros(shape[:-1]))
    got = torch.autograd.grad(result.sum(), (x, zeros))
    expected = torch.autograd.grad(F.cosine_similarity(x, zeros, dim=-1).sum(), (x, zeros))
    for mine, theirs in zip(got, expected, strict=True):
        assert mine.isfinite().all()
        assert_close(mine, theirs)
    assert torch.equal(got[0], torch.zeros(shape))
    assert got[1].abs().max() > 1e6  # x2 grows out of 0 at the rate 1/eps


def test_int8_beside_float_is_promoted():
    x = torch.tensor([[1, 2, 3], [-4, 5, -6]], dtype=torch.int8)
    (y,) = make_inputs((2, 3))
    result = cosine_similarity(x, y)
    assert result.dtype == torch.float32
    assert_close(result, _reference.cosine_similarity(x, y))


def test_integers_beyond_the_range_of_float16_are_summed_in_float32():
    x = torch.full((2, 4), 100_000)
    assert torch.equal(cosine_similarity(x, torch.ones(2, 4).half()), torch.ones(2).half())


@pytest.mark.parametrize("dim", [0, 1, -1])
@pytest.mark.parametrize("other", [(1, 1), (1,), (), (2, 1), (1, 3), (3,), (1, 2, 3), (4, 1, 1)])
def test_small_broadcasts(other, dim):
    x, y = make_inputs((2, 3), other, dtype=torch.float64)
    for a, b in ((x, y), (y, x)):
        ours, theirs = cosine_similarity(a, b, dim), F.cosine_similarity(a, b, dim)
        assert layout(ours) == layout(theirs)
        assert_close(ours, theirs)


@pytest.mark.parametrize("dim", [0, -1])
def test_scalars(dim):
    for a, b in itertools.product((2.0, -3.0, 0.0), repeat=2):
        x, y = torch.tensor(a), torch.tensor(b)
        assert torch.equal(cosine_similarity(x, y, dim), F.cosine_similarity(x, y, dim))


@pytest.mark.parametrize("shapes", [((), ()), ((), (3,)), ((3,), ()), ((3,), (3,)), ((1,), (3,))])
def test_every_pair_of_dtypes_gives_the_dtype_or_error_of_torch(shapes):
    for first, second in itertools.product(ALL_DTYPES, repeat=2):
        x, y = torch.ones(shapes[0], dtype=first), torch.ones(shapes[1], dtype=second)
        ours = dtype_or_error(cosine_similarity, x, y, 0)
        assert ours == dtype_or_error(F.cosine_similarity, x, y, 0), (first, second)


@pytest.mark.parametrize("requires_grad", [False, True])
@pytest.mark.parametrize(
    ("first", "second", "dim"),
    [
        ((0, 4), (0, 4), 1),
        ((4, 0), (4, 0), 1),
        ((4, 0), (4, 0), 0),
        ((0,), (0,), 0),
        ((0, 0), (0, 0), 1),
        ((2, 0, 3), (2, 1, 3), 1),
        ((0, 1, 4), (1, 5, 4), 2),
        ((3, 1, 0), (1, 5, 0), 2),
        ((3, 1, 0), (1, 5, 0), 1),
        ((3, 0), (1, 0), 1),
    ],
)
def test_empty_inputs(first, second, dim, requires_grad):
    x, y = (torch.ones(shape, requires_grad=requires_grad) for shape in (first, second))
    ours, theirs = cosine_similarity(x, y, dim), F.cosine_similarity(x, y, dim)
    assert ours.dtype == theirs.dtype
    assert torch.equal(ours, theirs)
    if requires_grad:
        ours.sum().backward()
        assert x.grad is not None
        assert y.grad is not None


@pytest.mark.parametrize("dim", range(4))
def test_strides_of_a_result_are_those_of_torch(dim):
    (x,) = make_inputs((2, 3, 4, 5))
    (y,) = make_inputs((2, 3, 4, 5), seed=1)
    pairs = [(x.permute(order), y.permute(order)) for order in itertools.permutations(range(4))]
    pairs.append((x.contiguous(memory_format=torch.channels_last), y))
    for a, b in pairs:
        ours = cosine_similarity(a, b, dim)
        assert layout(ours) == layout(F.cosine_similarity(a, b, dim))
        assert_close(ours, _reference.cosine_similarity(a, b, dim))


@pytest.mark.parametrize(
    "kwargs",
    [
        {"dim": np.int64(1)},
        {"dim": torch.tensor(1)},
        {"eps": 1},
        {"eps": np.float32(0.5)},
        {"eps": torch.tensor(0.5)},
        {"eps": float("inf")},
        {"eps": 0},
    ],
    ids=str,
)
def test_what_torch_takes_for_a_number_is_taken(kwargs):
    x, y = make_inputs((6, 4), (6, 4))
    assert_close(cosine_similarity(x, y, **kwargs), F.cosine_similarity(x, y, **kwargs))


def test_inputs_are_left_alone():
    x, y = make_inputs((5, 1, 7), (1, 4, 7), dtype=torch.float16)
    before = x.clone(), y.clone()
    cosine_similarity(x, y, dim=2)
    cosine_similarity(x, x, dim=2)
    assert torch.equal(x, before[0])
    assert torch.equal(y, before[1])


@pytest.mark.parametrize("shapes", [((5, 7), (5, 7)), ((5, 1, 7), (1, 4, 7)), ((1, 7), (9, 7))])
def test_a_result_may_be_edited_and_shares_no_memory(shapes):
    x, y = make_inputs(*shapes)
    result = cosine_similarity(x, y, dim=-1)
    expected = result.clone()
    result += 1
    assert torch.equal(result, expected + 1)
    assert torch.equal(cosine_similarity(x, y, dim=-1), expected)
