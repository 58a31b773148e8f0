"""Second and higher derivatives, forward mode, vmap and the functorch transforms."""

from functools import partial

import pytest
import torch
import torch.nn.functional as F
from torch.autograd import forward_ad
from torch.autograd.functional import hessian as old_hessian
from torch.autograd.functional import jacobian as old_jacobian
from torch.func import grad, hessian, jacfwd, jacrev, jvp, vjp, vmap
from torch.utils._pytree import tree_leaves

from cossim_fast import cosine_similarity, pairwise_cosine, testing
from cossim_fast.testing import make_inputs

# Nothing here sums more numbers.
assert_close = partial(testing.assert_close, terms=16)


def agree(task):
    """Check that `task`, given ours and torch's function, returns equal tensors."""
    ours, theirs = tree_leaves(task(cosine_similarity)), tree_leaves(task(F.cosine_similarity))
    assert len(ours) == len(theirs) > 0
    for mine, wanted in zip(ours, theirs, strict=True):
        assert mine.dtype == wanted.dtype
        # The rounding of some tens of operations on values of this size.
        assert_close(mine, wanted, scale=16 * max(1, wanted.abs().max().item()))


X, Y = make_inputs((5, 4), (5, 4), dtype=torch.float64)
FORMS = {
    "rows": (X, Y),
    "matrix": (X[:, None], make_inputs((1, 6, 4), dtype=torch.float64, seed=1)[0]),
    "batched matrix": tuple(make_inputs((2, 8, 1, 3), (2, 1, 8, 3), dtype=torch.float64)),
}
every_form = pytest.mark.parametrize("form", FORMS)


def leaves(form):
    return [t.clone().requires_grad_() for t in FORMS[form]]


def test_the_hessian_where_both_inputs_are_equal():
    """The cosine is at its maximum of 1 there, and the clamp may hide no derivative."""
    agree(lambda f: hessian(lambda a: f(a, X).sum())(X))
    agree(lambda f: hessian(lambda a: f(a, 2 * a).sum())(X))
    agree(lambda f: old_hessian(lambda a: f(a, X).sum(), X))
    agree(lambda f: old_hessian(lambda a: f(a[:, None], X[None], -1).sum(), X))
    assert hessian(lambda a: cosine_similarity(a, X).sum())(X).abs().max() > 0.1


@pytest.mark.parametrize("sign", [1, -1])
def test_the_gradient_of_a_clamped_value_is_not_cut_off(sign):
    """Where float32 rounding exceeds 1, torch.clamp would give a gradient of exactly 0."""
    x, y = make_inputs((2000, 7), (2000, 7))
    y = sign * x * torch.linspace(0.5, 2, 2000)[:, None]
    assert (F.cosine_similarity(x, y).abs() > 1).any()
    x.requires_grad_()
    for function in (cosine_similarity, jvp_result):
        (found,) = torch.autograd.grad(function(x, y).sum(), x)
        wide = x.detach().double().requires_grad_()
        (wanted,) = torch.autograd.grad(F.cosine_similarity(wide, y.double()).sum(), wide)
        assert_close(found, wanted, scale=8)


def jvp_result(x, y):
    with forward_ad.dual_level():
        return forward_ad.unpack_dual(cosine_similarity(x, y)).primal


@every_form
def test_third_derivatives(form):
    def task(function):
        x, y = leaves(form)
        first = torch.autograd.grad(function(x, y, -1).pow(3).sum(), (x, y), create_graph=True)
        value = first[0].sin().sum() + first[1].cos().sum()
        second = torch.autograd.grad(value, (x, y), create_graph=True)
        value = second[0].sin().sum() + second[1].cos().sum()
        return first, second, torch.autograd.grad(value, (x, y))

    agree(task)


@every_form
@pytest.mark.parametrize("side", [0, 1])
def test_second_derivatives_of_one_side(form, side):
    def task(function):
        pair = [t.clone() for t in FORMS[form]]
        leaf = pair[side].requires_grad_()
        (first,) = torch.autograd.grad(function(*pair, -1).sin().sum(), leaf, create_graph=True)
        return first, torch.autograd.grad(first.sin().sum(), leaf)

    agree(task)


@pytest.mark.parametrize("matrix", [False, True])
def test_a_second_input_made_of_the_first_is_not_counted_twice(matrix):
    def task(function):
        x = X.clone().requires_grad_()
        y = x.sin() * 2
        result = function(x[:, None], y[None], -1) if matrix else function(x, y)
        (first,) = torch.autograd.grad(result.pow(3).sum(), x, create_graph=True)
        return first, torch.autograd.grad(first.sin().sum(), x)

    agree(task)


@pytest.mark.parametrize("matrix", [False, True])
def test_second_derivatives_of_one_tensor_given_twice(matrix):
    def task(function):
        x = X.clone().requires_grad_()
        result = function(x[:, None], x[None], -1) if matrix else function(x, x * 1.0)
        weights = torch.arange(result.numel(), dtype=torch.float64).view(result.shape)
        (first,) = torch.autograd.grad((result * weights).sum(), x, create_graph=True)
        return first, torch.autograd.grad(first.sin().sum(), x)

    agree(task)


@pytest.mark.parametrize("size", [1e-9, 5e-9, 2e-8])
def test_second_derivatives_below_eps(size):
    def task(function):
        x = (X * size / X.norm(dim=1, keepdim=True)).requires_grad_()
        (first,) = torch.autograd.grad(function(x, Y).sum(), x, create_graph=True)
        return first * size, torch.autograd.grad((first * Y).sum() * size * size, x)

    agree(task)


@every_form
def test_batched_gradients(form):
    def task(function):
        x, y = leaves(form)
        result = function(x, y, -1)
        weights = torch.arange(3.0, dtype=torch.float64).view(-1, *[1] * result.dim())
        return torch.autograd.grad(
            result, (x, y), weights.expand(3, *result.shape), is_grads_batched=True
        )

    agree(task)


@every_form
@pytest.mark.parametrize("strategy", ["reverse-mode", "forward-mode"])
def test_vectorized_jacobians_and_hessians(form, strategy):
    pair = FORMS[form]
    agree(lambda f: old_jacobian(lambda a, b: f(a, b, -1), pair, vectorize=True, strategy=strategy))
    outer = {"vectorize": True, "outer_jacobian_strategy": strategy}
    agree(lambda f: old_hessian(lambda a, b: f(a, b, -1).pow(2).sum(), pair, **outer))


@every_form
@pytest.mark.parametrize("transform", [jacrev, jacfwd, hessian], ids=lambda f: f.__name__)
def test_functorch_jacobians(form, transform):
    agree(lambda f: transform(lambda a, b: f(a, b, -1), argnums=(0, 1))(*FORMS[form]))


@every_form
def test_forward_mode(form):
    pair = FORMS[form]
    tangents = [t.cos() for t in pair]

    def dual(function):
        with forward_ad.dual_level():
            duals = [forward_ad.make_dual(t, v) for t, v in zip(pair, tangents, strict=True)]
            return tuple(forward_ad.unpack_dual(function(*duals, -1)))

    agree(dual)
    agree(lambda f: jvp(lambda a, b: f(a, b, -1), pair, tuple(tangents)))


@every_form
def test_forward_over_reverse_and_reverse_over_forward(form):
    x, y = FORMS[form]
    tangent = x.cos()

    def first(f):
        return lambda a: f(a, y, -1).pow(2).sum()

    agree(lambda f: jvp(grad(first(f)), (x,), (tangent,)))
    agree(lambda f: grad(lambda a: jvp(first(f), (a,), (tangent,))[1])(x))
    agree(lambda f: vjp(grad(first(f)), x)[1](tangent))


VMAPPED = {
    "rows": lambda f: vmap(lambda a, b: f(a, b, 0))(X, Y),
    "last dimension first": lambda f: vmap(lambda a, b: f(a, b, 0), in_dims=(1, 1))(X, Y),
    "first alone": lambda f: vmap(lambda a: f(a, Y[0], 0))(X),
    "second alone": lambda f: vmap(lambda a, b: f(a, b, -1), in_dims=(None, 0))(X, Y),
    "both ways": lambda f: vmap(
        vmap(lambda a, b: f(a, b, 0), in_dims=(None, 0)), in_dims=(0, None)
    )(X, Y),
    "matrix inside": lambda f: vmap(lambda a, b: f(a[:, None], b[None], -1))(
        *make_inputs((3, 4, 5), (3, 6, 5), dtype=torch.float64)
    ),
    "gradient inside": lambda f: vmap(grad(lambda a, b: f(a, b, 0)))(X, Y),
    "gradient outside": lambda f: grad(lambda a: vmap(lambda p, q: f(p, q, 0))(a, Y).sum())(X),
    "out_dims": lambda f: vmap(lambda a, b: f(a[None], b, -1), out_dims=1)(
        X, make_inputs((5, 3, 4), dtype=torch.float64)[0]
    ),
}


@pytest.mark.parametrize("name", VMAPPED)
def test_vmap(name):
    agree(VMAPPED[name])


def test_vmap_of_pairwise_cosine_is_its_batched_form():
    x, y = make_inputs((3, 4, 5), (3, 6, 5), dtype=torch.float64)
    assert_close(vmap(pairwise_cosine)(x, y), pairwise_cosine(x, y))
    assert_close(vmap(pairwise_cosine)(x), pairwise_cosine(x))
