"""The registered ops: torch's own checks of each, and their bodies against float64."""

from functools import partial

import pytest
import torch
import torch.nn.functional as F
from torch.library import opcheck

from cossim_fast import _reference, testing
from cossim_fast.testing import LAYOUTS, derived_tolerance, make_inputs

# Nothing here sums more numbers.
assert_close = partial(testing.assert_close, terms=16)

OPS = torch.ops.cossim_fast
NAMES = ("rowwise_fwd", "rowwise_bwd", "pairwise_fwd", "pairwise_bwd", "pairwise_self_bwd")
FLOATING = (torch.float16, torch.bfloat16, torch.float32, torch.float64)


def arguments(name, dtype=torch.float32, layout="contiguous", n=5, m=7, d=6):
    kwargs = {"dtype": dtype, "layout": layout}
    if name.startswith("rowwise"):
        x, y, grad = make_inputs((n, d), (n, d), (n,), **kwargs)
        rest = (1e-8,)
    elif name == "pairwise_self_bwd":
        x, grad = make_inputs((2, n, d), (2, n, n), **kwargs)
        return grad, x, 1e-8, "highest"
    else:
        x, y, grad = make_inputs((2, n, d), (2, m, d), (2, n, m), **kwargs)
        rest = (1e-8, "highest")
    return (grad, x, y, *rest) if name.endswith("bwd") else (x, y, *rest)


@pytest.mark.parametrize("name", NAMES)
@pytest.mark.parametrize("dtype", FLOATING, ids=str)
# torch 2.15 looks at copies of its own, and hides the warning only where warnings are not errors.
@pytest.mark.filterwarnings("ignore:The .grad attribute of a Tensor")
def test_torch_finds_schema_fake_autograd_and_export_sound(name, dtype):
    args = [
        a.requires_grad_() if isinstance(a, torch.Tensor) and name.endswith("fwd") else a
        for a in arguments(name, dtype)
    ]
    opcheck(getattr(OPS, name).default, tuple(args))


@pytest.mark.parametrize("name", NAMES)
@pytest.mark.parametrize("layout", LAYOUTS)
@pytest.mark.parametrize("sizes", [(5, 7, 6), (0, 7, 6), (5, 0, 6), (5, 7, 0), (1, 1, 1)], ids=str)
def test_fake_and_real_results_agree_in_every_layout(name, layout, sizes):
    n, m, d = sizes
    args = arguments(name, layout=layout, n=n, m=m, d=d)
    opcheck(getattr(OPS, name).default, args, test_utils=("test_schema", "test_faketensor"))


@pytest.mark.parametrize("name", NAMES)
def test_expanded_inputs(name):
    args = tuple(
        a[:1].expand(a.shape) if isinstance(a, torch.Tensor) else a for a in arguments(name)
    )
    opcheck(getattr(OPS, name).default, args, test_utils=("test_schema", "test_faketensor"))


@pytest.mark.parametrize("dtype", FLOATING, ids=str)
def test_bodies_agree_with_float64(dtype):
    x, y, eps = arguments("rowwise_fwd", dtype)
    assert_close(OPS.rowwise_fwd(x, y, eps), _reference.cosine_similarity(x, y))
    x, y, eps, words = arguments("pairwise_fwd", dtype)
    assert_close(OPS.pairwise_fwd(x, y, eps, words), _reference.pairwise_cosine(x, y))


@pytest.mark.parametrize("dtype", FLOATING, ids=str)
def test_backward_bodies_agree_with_float64(dtype):
    grad, x, y, eps = arguments("rowwise_bwd", dtype)
    wide = [t.double().requires_grad_() for t in (x, y)]
    expected = torch.autograd.grad(F.cosine_similarity(*wide), wide, grad.double())
    for mine, wanted in zip(OPS.rowwise_bwd(grad, x, y, eps), expected, strict=True):
        assert_close(mine, wanted, scale=2)
    grad, x, y, eps, words = arguments("pairwise_bwd", dtype)
    wide = x.double().requires_grad_()
    theirs = F.cosine_similarity(wide[:, :, None], y.double()[:, None], -1)
    (wanted,) = torch.autograd.grad(theirs, wide, grad.double())
    assert_close(OPS.pairwise_bwd(grad, x, y, eps, words), wanted, scale=4)
    grad, x, eps, words = arguments("pairwise_self_bwd", dtype)
    wide = x.double().requires_grad_()
    theirs = F.cosine_similarity(wide[:, :, None], wide[:, None], -1)
    (wanted,) = torch.autograd.grad(theirs, wide, grad.double())
    assert_close(OPS.pairwise_self_bwd(grad, x, eps, words), wanted, scale=8)


@pytest.mark.parametrize("dtype", [torch.float16, torch.float32], ids=str)
def test_backward_bodies_take_rows_of_any_magnitude(dtype):
    """Autograd does not reach into an op, so its body may not use it for out-of-range rows."""
    grad, x, y, eps = arguments("rowwise_bwd", dtype)
    x[1] = 0
    y[2] *= 2.0**60 if dtype == torch.float32 else 1
    wide = [t.double().requires_grad_() for t in (x, y)]
    expected = torch.autograd.grad(F.cosine_similarity(*wide), wide, grad.double())
    for mine, wanted in zip(OPS.rowwise_bwd(grad, x, y, eps), expected, strict=True):
        rounded = wanted.to(dtype)  # 1e8, beside x = 0, is infinite in float16
        sizes = rounded.abs().amax(1, keepdim=True).double().clamp(min=1e-30)
        sizes = sizes.where(sizes.isfinite(), 1.0)
        assert_close(mine / sizes, rounded / sizes, tolerance=derived_tolerance(dtype, 16), scale=2)


@pytest.mark.parametrize("name", ["rowwise_fwd", "pairwise_fwd"])
def test_first_and_second_derivatives(name):
    x, y, *rest = arguments(name, torch.float64, n=3, m=2, d=3)
    pair = x.requires_grad_(), y.requires_grad_()
    assert torch.autograd.gradcheck(lambda a, b: getattr(OPS, name)(a, b, *rest), pair)
    assert torch.autograd.gradgradcheck(lambda a, b: getattr(OPS, name)(a, b, *rest), pair)


def test_derivatives_of_rows_with_themselves():
    """By one op, which counts both sides; of rows that are equal and not the same, by two."""
    x = arguments("pairwise_fwd", torch.float64, n=3, d=3)[0].requires_grad_()
    for other in (lambda a: a, lambda a: a * 1, lambda a: a.detach() * 0 + 1):

        def matrix(a, other=other):
            return OPS.pairwise_fwd(a, other(a), 0.0, "highest")

        assert torch.autograd.gradcheck(matrix, x)
        assert torch.autograd.gradgradcheck(matrix, x)


@pytest.mark.parametrize(
    ("name", "args", "error"),
    [
        ("rowwise_fwd", (torch.ones(3, 4), torch.ones(3, 5), 1e-8), ValueError),
        ("rowwise_fwd", (torch.ones(3), torch.ones(3), 1e-8), ValueError),
        ("rowwise_fwd", (torch.ones(3, 4).long(), torch.ones(3, 4).long(), 1e-8), RuntimeError),
        ("rowwise_bwd", (torch.ones(3), torch.ones(3, 4), torch.ones(2, 4), 1e-8), ValueError),
        ("pairwise_fwd", (torch.ones(3, 4), torch.ones(3, 4), 1e-8, "highest"), ValueError),
        ("pairwise_fwd", (torch.ones(1, 3, 4), torch.ones(2, 3, 4), 1e-8, "highest"), ValueError),
        ("pairwise_fwd", (torch.ones(1, 3, 4), torch.ones(1, 3, 4), -1.0, "highest"), ValueError),
        ("pairwise_fwd", (torch.ones(1, 3, 4), torch.ones(1, 3, 4), 1e-8, "low"), ValueError),
    ],
)
def test_anyone_can_call_an_op_so_it_checks_again(name, args, error):
    with pytest.raises(error):
        getattr(OPS, name)(*args)
