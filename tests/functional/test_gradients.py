"""First derivatives: torch's own, in every layout and dtype, however they are asked for."""

import copy
import pickle
from functools import partial

import pytest
import torch
import torch.nn.functional as F
from torch.utils.checkpoint import checkpoint

from cossim_fast import CosineSimilarity, cosine_similarity, testing
from cossim_fast.testing import LAYOUTS, make_inputs

# Nothing here sums more numbers.
assert_close = partial(testing.assert_close, terms=16)

pytestmark = pytest.mark.usefixtures("small_calls")

SHAPES = [((5, 4), (5, 4)), ((5, 1, 4), (1, 6, 4)), ((2, 9, 1, 4), (2, 1, 9, 4)), ((1, 4), (7, 4))]
both_forms = pytest.mark.parametrize("shapes", SHAPES, ids=str)


def agree(task, *, scale=1.0):
    """Check that `task`, given ours and torch's function, returns equal tensors."""
    ours, theirs = task(cosine_similarity), task(F.cosine_similarity)
    for mine, wanted in zip(ours, theirs, strict=True):
        assert mine.dtype == wanted.dtype
        assert_close(mine, wanted, scale=scale * max(1, wanted.abs().max().item()))


def inputs(shapes, **kwargs):
    return make_inputs(*shapes, **{"dtype": torch.float64, "requires_grad": True, **kwargs})


@both_forms
@pytest.mark.parametrize("layout", LAYOUTS)
def test_layouts(shapes, layout):
    def task(function):
        x, y = inputs(shapes, layout=layout)
        return torch.autograd.grad(function(x, y, -1).sin().sum(), (x, y))

    agree(task, scale=4)


@both_forms
@pytest.mark.parametrize("side", [0, 1])
def test_one_side_alone(shapes, side):
    def task(function):
        pair = inputs(shapes, requires_grad=False)
        pair[side].requires_grad_()
        return torch.autograd.grad(function(*pair, -1).sin().sum(), pair[side])

    agree(task, scale=4)


@both_forms
@pytest.mark.parametrize("first", [torch.float16, torch.bfloat16, torch.float32, torch.float64])
@pytest.mark.parametrize("second", [torch.float16, torch.bfloat16, torch.float32, torch.float64])
def test_each_side_gets_its_own_dtype(shapes, first, second):
    pair = inputs(shapes)
    x, y = (t.detach().to(d).requires_grad_() for t, d in zip(pair, (first, second), strict=True))
    got = torch.autograd.grad(cosine_similarity(x, y, -1).sum(), (x, y))
    wide = [t.detach().double().requires_grad_() for t in (x, y)]
    expected = torch.autograd.grad(F.cosine_similarity(*wide, -1).sum(), wide)
    for t, mine, wanted in zip((x, y), got, expected, strict=True):
        assert mine.dtype == t.dtype
        assert_close(mine, wanted, scale=2 * max(1, wanted.abs().max().item()))


def test_an_integer_beside_a_leaf():
    def task(function):
        x = torch.arange(-10, 10).view(5, 4)
        (y,) = inputs([(5, 4)])
        return torch.autograd.grad(function(x, y).sin().sum(), y)

    agree(task)


@pytest.mark.parametrize("size", [1e-12, 1e-9, 5e-9, 1e-8, 2e-8, 1.0])
@pytest.mark.parametrize("matrix", [False, True])
def test_norms_below_eps_keep_the_derivative_of_the_norm(size, matrix):
    def task(function):
        x, y = inputs([(5, 4), (5, 4)])
        x = (x * size / x.norm(dim=1, keepdim=True)).detach().requires_grad_()
        pair = (x[:, None], y[None]) if matrix else (x, y)
        return torch.autograd.grad(function(*pair, -1).sin().sum(), (x, y))

    agree(task, scale=8)


@pytest.mark.parametrize("matrix", [False, True])
def test_gradients_at_zero_rows(matrix):
    def task(function):
        x, y = inputs([(5, 4), (5, 4)], requires_grad=False)
        x[1], y[3] = 0, 0
        x.requires_grad_()
        y.requires_grad_()
        pair = (x[:, None], y[None]) if matrix else (x, y)
        return torch.autograd.grad(function(*pair, -1).sin().sum(), (x, y))

    agree(task, scale=4)


@pytest.mark.parametrize("matrix", [False, True])
@pytest.mark.parametrize("power", [-60, -30, 30, 60])
def test_gradients_of_rows_whose_squares_leave_the_range_of_float32(power, matrix):
    x, y = make_inputs((5, 16), (5, 16))
    x[1:3] *= 2.0**power
    x.requires_grad_()
    y.requires_grad_()
    pair = (x[:, None], y[None]) if matrix else (x, y)
    got = torch.autograd.grad(cosine_similarity(*pair, -1, 1e-30).sin().sum(), (x, y))
    wide = [t.detach().double().requires_grad_() for t in (x, y)]
    pair = (wide[0][:, None], wide[1][None]) if matrix else wide
    expected = torch.autograd.grad(F.cosine_similarity(*pair, -1, 1e-30).sin().sum(), wide)
    for mine, wanted in zip(got, expected, strict=True):
        sizes = wanted.abs().amax(1, keepdim=True)
        assert_close(mine / sizes.float(), wanted / sizes, scale=4)


@pytest.mark.parametrize("matrix", [False, True])
def test_a_poisoned_row_leaves_other_gradients_alone(matrix):
    x, y = make_inputs((5, 8), (5, 8), requires_grad=True)
    with torch.no_grad():
        x[2, 1] = torch.nan
    pair = (x[:, None], y[None]) if matrix else (x, y)
    (by_x,) = torch.autograd.grad(cosine_similarity(*pair, -1).nansum(), x)
    assert by_x[[0, 1, 3, 4]].isfinite().all()


@pytest.mark.parametrize("matrix", [False, True])
def test_one_tensor_twice_gets_both_its_derivatives(matrix):
    def task(function):
        (x,) = inputs([(5, 4)])
        pair = (x[:, None], x[None]) if matrix else (x, x.detach() + x * 0.5)
        result = function(*pair, -1)
        weights = torch.arange(result.numel(), dtype=torch.float64).view(result.shape)
        return torch.autograd.grad((result * weights).sum(), x)

    agree(task, scale=4)


def test_an_expanded_leaf_has_a_derivative_at_each_place():
    def task(function):
        base, y = inputs([(4,), (5, 4)], requires_grad=False)
        x = base.expand(5, 4).requires_grad_()
        return torch.autograd.grad(function(x, y).sin().sum(), x)

    agree(task)


@pytest.mark.parametrize("recording", [False, True])
def test_expanded_views(recording):
    def task(function):
        x, y = inputs([(9, 4), (8, 4)], requires_grad=recording)
        result = function(x[:, None].expand(9, 8, 4), y.expand(9, 8, 4), -1)
        if not recording:
            return (result,)
        return (result, *torch.autograd.grad(result.sin().sum(), (x, y)))

    agree(task, scale=8)


@both_forms
def test_results_may_be_edited_before_backward(shapes):
    def task(function):
        x, y = inputs(shapes)
        result = function(x, y, -1)
        result.div_(0.07).add_(1).clamp_(max=9)
        return torch.autograd.grad(result.sum(), (x, y))

    agree(task, scale=8)


@both_forms
def test_inputs_edited_after_the_call_are_noticed(shapes):
    x, y = inputs(shapes)
    copy_of_x = x * 1.0
    result = cosine_similarity(copy_of_x, y, -1)
    copy_of_x.add_(1)
    with pytest.raises(RuntimeError, match="modified by an inplace operation"):
        result.sum().backward()


@both_forms
def test_gradients_that_come_expanded_and_strided(shapes):
    def task(function):
        x, y = inputs(shapes)
        result = function(x, y, -1)
        whole = torch.ones((), dtype=torch.float64).expand(result.shape)
        wide = torch.linspace(0, 1, 2 * result.numel(), dtype=torch.float64)
        strided = wide[::2].view(result.shape)
        return [
            g
            for grad in (whole, strided)
            for g in torch.autograd.grad(result, (x, y), grad, retain_graph=True)
        ]

    agree(task, scale=4)


@both_forms
def test_checkpointing(shapes):
    def task(function):
        x, y = inputs(shapes)
        result = checkpoint(function, x, y, -1, use_reentrant=False)
        return torch.autograd.grad(result.sin().sum(), (x, y))

    agree(task, scale=4)


@both_forms
def test_saved_tensors_may_be_packed_away(shapes):
    def task(function):
        pack, unpack = (lambda t: t.detach().numpy().copy()), torch.from_numpy
        x, y = inputs(shapes)
        with torch.autograd.graph.saved_tensors_hooks(pack, unpack):
            result = function(x, y, -1)
        return torch.autograd.grad(result.sin().sum(), (x, y))

    agree(task, scale=4)


def test_an_inference_tensor_beside_a_leaf():
    def task(function):
        with torch.inference_mode():
            (x,) = inputs([(5, 4)], requires_grad=False)
        (y,) = inputs([(5, 4)], seed=1)
        return torch.autograd.grad(function(x, y).sin().sum(), y)

    agree(task)


def test_the_module_can_be_copied_and_pickled():
    x, y = make_inputs((3, 4), (3, 4))
    module = CosineSimilarity(dim=0, eps=0.25)
    for twin in (copy.deepcopy(module), pickle.loads(pickle.dumps(module))):
        assert (twin.dim, twin.eps) == (0, 0.25)
        assert torch.equal(twin(x, y), module(x, y))
    assert repr(module) == "CosineSimilarity(dim=0, eps=0.25)"
    assert not list(module.parameters())
    assert not module.state_dict()
