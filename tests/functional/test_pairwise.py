"""`pairwise_cosine`: values in every shape, layout and dtype, symmetry, `out`, precision words."""

from functools import partial

import pytest
import torch

from cossim_fast import _reference, pairwise_cosine, testing
from cossim_fast.testing import LAYOUTS, make_inputs
from precision import ROUNDING, check_bound

# Nothing here sums more numbers.
assert_close = partial(testing.assert_close, terms=33)

FLOATING = (torch.float16, torch.bfloat16, torch.float32, torch.float64)
SHAPES = [
    ((5, 8), (7, 8)),
    ((1, 8), (7, 8)),
    ((5, 8), (1, 8)),
    ((1, 1), (1, 1)),
    ((129, 33), (300, 33)),
    ((3, 5, 8), (3, 7, 8)),
    ((1, 5, 8), (1, 7, 8)),
    ((40, 2, 3), (40, 3, 3)),
]
EMPTY = [
    ((0, 8), (7, 8)),
    ((5, 8), (0, 8)),
    ((0, 8), (0, 8)),
    ((5, 0), (7, 0)),
    ((0, 0), (0, 0)),
    ((0, 5, 8), (0, 7, 8)),
    ((3, 5, 0), (3, 7, 0)),
    ((3, 0, 8), (3, 7, 8)),
]


@pytest.mark.parametrize("shapes", SHAPES, ids=str)
@pytest.mark.parametrize("first", FLOATING, ids=str)
@pytest.mark.parametrize("second", FLOATING, ids=str)
def test_every_pair_of_dtypes(shapes, first, second):
    x, y = make_inputs(shapes[0], dtype=first) + make_inputs(shapes[1], dtype=second, seed=1)
    result = pairwise_cosine(x, y)
    assert result.dtype == torch.result_type(x, y)
    assert result.is_contiguous()
    assert_close(result, _reference.pairwise_cosine(x, y))


@pytest.mark.parametrize("shapes", SHAPES, ids=str)
@pytest.mark.parametrize("layout", LAYOUTS)
@pytest.mark.parametrize("recording", [False, True])
def test_layouts(shapes, layout, recording):
    x, y = make_inputs(*shapes, layout=layout)
    expected = _reference.pairwise_cosine(x, y)
    assert_close(pairwise_cosine(x.requires_grad_(recording), y), expected)
    assert_close(pairwise_cosine(x), _reference.pairwise_cosine(x))


@pytest.mark.parametrize("recording", [False, True])
@pytest.mark.parametrize("shapes", EMPTY, ids=str)
def test_empty(shapes, recording):
    x, y = make_inputs(*shapes, requires_grad=recording)
    for first, second in ((x, y), (y, x), (x, None), (y, None)):
        if second is None and first.numel() > 0:
            continue
        columns = (first if second is None else second).shape[-2]
        result = pairwise_cosine(first, second)
        assert torch.equal(result, torch.zeros(*first.shape[:-1], columns))
        if recording:
            (gradient,) = torch.autograd.grad(result.sum(), first)
            assert torch.equal(gradient, torch.zeros_like(first))


@pytest.mark.parametrize("dtype", FLOATING, ids=str)
@pytest.mark.parametrize("shape", [(1, 4), (17, 5), (300, 12), (3, 17, 5), (2, 700, 300)])
def test_without_y_the_result_is_symmetric_to_the_bit(shape, dtype):
    (x,) = make_inputs(shape, dtype=dtype)
    result = pairwise_cosine(x)
    assert torch.equal(result, result.mT)
    assert_close(result, _reference.pairwise_cosine(x), terms=shape[-1])


def test_an_integer_beside_a_float():
    x = torch.arange(-10, 10).view(5, 4)
    (y,) = make_inputs((3, 4), dtype=torch.float16)
    assert_close(pairwise_cosine(x, y), _reference.pairwise_cosine(x, y))
    assert pairwise_cosine(x, y).dtype == torch.float16


PLACES = {
    "contiguous": lambda shape, dtype: torch.full(shape, torch.nan, dtype=dtype),
    "transposed": lambda shape, dtype: (
        torch.full((*shape[:-2], shape[-1], shape[-2]), torch.nan, dtype=dtype).mT
    ),
    "every second column": lambda shape, dtype: torch.full(
        (*shape[:-1], 2 * shape[-1]), torch.nan, dtype=dtype
    )[..., ::2],
    "part of a larger one": lambda shape, dtype: torch.full(
        (*shape[:-2], shape[-2] + 2, shape[-1] + 3), torch.nan, dtype=dtype
    )[..., 1:-1, 2:-1],
}


@pytest.mark.parametrize("place", PLACES)
@pytest.mark.parametrize("dtype", FLOATING, ids=str)
@pytest.mark.parametrize("shapes", [((5, 8), (7, 8)), ((3, 5, 8), (3, 7, 8)), ((33, 8), None)])
def test_out_is_filled_wherever_it_lies(shapes, dtype, place):
    (x,) = make_inputs(shapes[0], dtype=dtype)
    y = None if shapes[1] is None else make_inputs(shapes[1], dtype=dtype, seed=1)[0]
    expected = _reference.pairwise_cosine(x, y)
    out = PLACES[place](tuple(expected.shape), dtype)
    result = pairwise_cosine(x, y, out=out)
    assert result is out
    assert_close(out, expected)
    if out._base is not None and place != "transposed":
        around = out._base.numel() - out.numel()
        assert out._base.isnan().sum() == around


@pytest.mark.parametrize("shapes", EMPTY, ids=str)
def test_out_of_empty_inputs(shapes):
    x, y = make_inputs(*shapes)
    out = torch.full((*x.shape[:-1], y.shape[-2]), torch.nan)
    assert torch.equal(pairwise_cosine(x, y, out=out), torch.zeros(out.shape))


X, Y = make_inputs((4, 4), (4, 4))
SHARED = torch.ones(4, 8)
BAD_OUT = {
    "another shape": ({"out": torch.empty(4, 5)}, "expected out of shape (4, 4)"),
    "a broadcast shape": ({"out": torch.empty(1, 4, 4)}, "expected out of shape (4, 4)"),
    "a wider dtype": ({"out": torch.empty(4, 4).double()}, "got shape (4, 4) and dtype"),
    "a narrower dtype": ({"out": torch.empty(4, 4).half()}, "dtype torch.float16"),
    "another device": ({"out": torch.empty(4, 4, device="meta")}, "expected out on cpu, got meta"),
    "x itself": ({"out": X}, "not to overlap an input"),
    "y itself": ({"y": Y, "out": Y}, "not to overlap an input"),
    "x transposed": ({"out": X.T}, "not to overlap an input"),
    "memory of x": ({"x": SHARED[:, :4], "out": SHARED[:, 4:]}, "not to overlap an input"),
    "expanded": ({"out": torch.empty(4, 1).expand(4, 4)}, "one place in memory for each element"),
    "overlapping rows": (
        {"out": torch.empty(16).as_strided((4, 4), (2, 1))},
        "one place in memory for each element",
    ),
    "a leaf": ({"out": torch.empty(4, 4, requires_grad=True)}, "cannot be recorded by autograd"),
    "x a leaf": (
        {"x": X.clone().requires_grad_(), "out": torch.empty(4, 4)},
        "cannot be recorded by autograd",
    ),
    "y a leaf": (
        {"y": Y.clone().requires_grad_(), "out": torch.empty(4, 4)},
        "cannot be recorded by autograd",
    ),
}


@pytest.mark.parametrize("name", BAD_OUT)
def test_out_that_cannot_take_the_result_is_refused(name):
    kwargs, message = BAD_OUT[name]
    kwargs = {"x": X, "y": None, **kwargs}
    before = kwargs["out"].detach().clone()
    with pytest.raises(ValueError) as refusal:  # noqa: PT011 - the message is checked below
        pairwise_cosine(**kwargs)
    assert message in str(refusal.value)
    if before.device.type == "cpu":
        torch.testing.assert_close(kwargs["out"].detach(), before, equal_nan=True, rtol=0, atol=0)


def test_out_of_another_type_is_refused():
    with pytest.raises(TypeError, match="expected out to be a Tensor, got list"):
        pairwise_cosine(X, out=[])


def test_out_is_taken_where_no_gradient_is_recorded():
    leaf = X.clone().requires_grad_()
    out = torch.full((4, 4), torch.nan)
    with torch.no_grad():
        assert pairwise_cosine(leaf, out=out) is out
    assert_close(out, _reference.pairwise_cosine(X))


@pytest.mark.parametrize("words", ROUNDING)
@pytest.mark.parametrize("dtype", [torch.float16, torch.bfloat16, torch.float32], ids=str)
@pytest.mark.parametrize("y", [False, True])
def test_each_precision_keeps_the_bound_that_it_states(words, dtype, y):
    x, other = make_inputs((200, 384), (150, 384), dtype=dtype)
    check_bound(x, other if y else None, words)


@pytest.mark.parametrize("words", ROUNDING)
def test_float64_is_not_touched_by_precision(words):
    x, y = make_inputs((20, 33), (30, 33), dtype=torch.float64)
    assert_close(pairwise_cosine(x, y, precision=words), _reference.pairwise_cosine(x, y))
