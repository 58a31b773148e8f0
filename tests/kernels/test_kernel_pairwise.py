"""The pairwise kernels: against float64, at the edges of the range, within their memory."""

import pytest
import torch
import triton
from cossim_fast.kernels import pairwise_backward
from cossim_fast.kernels.pairwise import launch_pairwise_fwd
from cossim_fast.kernels.pairwise_backward import launch_pairwise_bwd, launch_pairwise_self_bwd

from ladder import checks, oracle
from ladder.checks import BF16, EPS, F16, F32
from ladder.runtime import DEVICE, INTERPRETING, kernels, needs_kernels
from ladder.stub import StubDriver

pytestmark = [pytest.mark.kernel_logic, needs_kernels]
DTYPES = pytest.mark.parametrize("dtype", [F32, F16, BF16], ids=str)
# Ragged, one row against one, one tile exactly and one element more.
SHAPES = pytest.mark.parametrize(
    "shape", [(2, 131, 77, 67), (1, 1, 1, 1), (1, 128, 128, 64), (1, 129, 17, 65), (3, 2, 131, 40)]
)


@pytest.fixture(params=["sm_80", "sm_90"])
def arch(request, monkeypatch):
    """The architecture whose tiles and loads are chosen; a GPU has its own."""
    if INTERPRETING:
        monkeypatch.setattr(triton.runtime.driver, "_active", StubDriver(request.param))
    elif request.param != "sm_80":
        pytest.skip("a GPU has one architecture")
    return request.param


@DTYPES
@SHAPES
def test_forward_matches_float64(dtype, shape, arch):
    checks.check_pairwise_fwd(kernels, dtype, shape)


@DTYPES
def test_a_matrix_with_itself_is_symmetric(dtype, arch):
    checks.check_pairwise_with_itself(kernels, dtype)
    checks.check_pairwise_with_itself(kernels, dtype, 130, 72)
    if dtype != F16:
        checks.check_pairwise_with_itself(kernels, dtype, scale=1e30)


@DTYPES
def test_a_float32_matrix_with_itself_is_symmetric(dtype, arch):
    """Tiles of their own, since each is written twice."""
    x = oracle.inputs(2, 141, 40, dtype=dtype).to(DEVICE)
    got = launch_pairwise_fwd(x, x, EPS, "high", F32).cpu()
    assert torch.equal(got, got.mT)
    assert oracle.error(got, oracle.pairwise(x.cpu(), x.cpu(), EPS)) <= (
        2**-10 + 2**-20 if dtype == F32 else 2**-21
    )


@pytest.mark.parametrize("precision", ["high", "medium"])
def test_lower_precisions_are_no_worse_than_torch_at_the_same(precision, arch):
    checks.check_pairwise_fwd(kernels, F32, precision=precision)
    checks.check_pairwise_bwd(kernels, F32, precision=precision)


def test_float16_rows_of_float32_ones():
    checks.check_planes(kernels, 1)
    checks.check_planes(kernels, 1, 5, d=1)
    checks.check_planes(kernels, 1, 3, d=1030)


@pytest.mark.parametrize("scale", [1e-44, 1e-30, 1e-9, 1.0, 1e30, 1e38])
def test_lower_precisions_keep_their_bound_at_any_magnitude(scale, arch):
    d, u = 72, 2.0**-11
    x = oracle.inputs(1, 9, d, dtype=F32).clamp(-3, 3)
    x[0, 3, 1:] *= 1e-7  # float16 holds little of such entries
    x, y = x * scale, x.flip(1) / (2 * scale) if scale > 1e-30 else x.flip(1)
    for eps in (0.0, EPS):
        got = launch_pairwise_fwd(x.to(DEVICE), y.to(DEVICE), eps, "high").cpu()
        bound = 2 * u + u * u + 2 * (d + 4) * 2.0**-24
        assert oracle.error(got, oracle.pairwise(x, y, eps)) <= bound


def test_rows_that_a_descriptor_can_describe(arch):
    """d a multiple of 16 bytes: on sm_90 the same tile is loaded by descriptor."""
    for dtype in (F32, F16, BF16):
        checks.check_pairwise_fwd(kernels, dtype, (2, 131, 77, 72))


@DTYPES
@pytest.mark.parametrize("shape", [(2, 131, 77, 67), (1, 1, 1, 2), (1, 33, 129, 130)])
def test_backward_matches_float64(dtype, shape):
    checks.check_pairwise_bwd(kernels, dtype, shape)


@DTYPES
@pytest.mark.parametrize("shape", [(2, 131, 77, 67), (2, 144, 80, 72)])
def test_backward_of_a_gradient_of_the_rows_dtype(dtype, shape, arch):
    """Multiplied as it is; by descriptor on sm_90, where it is aligned, transposed too."""
    checks.check_pairwise_bwd(kernels, dtype, shape, dtype)


@DTYPES
@pytest.mark.parametrize("shape", [(1, 1, 1), (1, 9, 1), (1, 1, 8)])
def test_backward_of_an_expanded_gradient(dtype, shape):
    """What a sum hands in, and what a sum of rows or columns does."""
    x, y = oracle.inputs(1, 9, 72, dtype=dtype), oracle.inputs(1, 8, 72, dtype=dtype, seed=1)
    grad = oracle.inputs(*shape, dtype=dtype, seed=2).expand(1, 9, 8)
    got = launch_pairwise_bwd(*(t.to(DEVICE) for t in (grad, x, y)), EPS).cpu()
    plain = oracle.torch_gradients(x, y, grad, EPS, paired=False)[0]
    oracle.assert_no_worse(got, plain, oracle.gradients(x, y, grad, EPS, paired=False)[0])
    if shape != (1, 9, 1):
        return
    grad = grad[:, :, :1].expand(1, 9, 9)
    got = launch_pairwise_self_bwd(*(t.to(DEVICE) for t in (grad, x)), EPS).cpu()
    plain = sum(oracle.torch_gradients(x, x, grad, EPS, paired=False))
    oracle.assert_no_worse(got, plain, sum(oracle.gradients(x, x, grad, EPS, paired=False)))


@DTYPES
@pytest.mark.parametrize("shape", [(1, 131, 35), (2, 48, 40)])
def test_backward_of_a_matrix_with_itself(dtype, shape, arch):
    checks.check_pairwise_self_bwd(kernels, dtype, shape)
    checks.check_pairwise_self_bwd(kernels, dtype, shape, dtype)
    if dtype == F32:
        checks.check_pairwise_self_bwd(kernels, dtype, shape, precision="high")


@pytest.mark.parametrize("mirrored", [False, True])
@pytest.mark.parametrize("dtype", [F16, BF16, F32], ids=str)
def test_panels_of_a_gradient(dtype, mirrored):
    for grad_dtype in (F32, F16, BF16):
        checks.check_gradient_panel(kernels, dtype=dtype, grad_dtype=grad_dtype, mirrored=mirrored)
    for shape in ((1, 1, 1), (2, 48, 160), (1, 7, 33)):
        checks.check_gradient_panel(kernels, shape, dtype, mirrored=mirrored)
    checks.check_gradient_panel(kernels, dtype=dtype, mirrored=mirrored, block=64)


def test_a_gradient_in_panels_gives_the_same(monkeypatch):
    """131 rows are a panel and a bit more; a row's result does not depend on its panel."""
    x, y = oracle.inputs(1, 131, 16, dtype=F32), oracle.inputs(1, 133, 16, dtype=F32, seed=1)
    grad = oracle.inputs(1, 131, 133, dtype=F32, seed=2)
    g, x, y = (t.to(DEVICE) for t in (grad, x, y))

    def found():
        return [
            launch_pairwise_bwd(g, x, y, EPS, "high"),
            launch_pairwise_bwd(g.mT, y, x, EPS, "high"),
            launch_pairwise_self_bwd(g[:, :, :131], x, EPS, "high"),
            launch_pairwise_self_bwd(g[:, :, :131], x, EPS),
            launch_pairwise_bwd(g, x.bfloat16(), y.bfloat16(), EPS),
        ]

    whole = found()
    monkeypatch.setattr(pairwise_backward, "PANEL", 1)
    for one, parts in zip(whole, found(), strict=True):
        assert torch.equal(one, parts)


def test_float16_backward_keeps_gradients_that_float16_cannot_hold():
    checks.check_small_gradients(kernels)
    checks.check_small_gradients(kernels, F32)


# The third part of a bfloat16 split of 1e-38 is 0.
@pytest.mark.parametrize(
    ("precision", "scale"),
    [("highest", 1e-25), ("highest", 1e30), ("high", 1e-38), ("high", 1e-9), ("high", 1e30)],
)
def test_backward_of_gradients_of_any_magnitude(precision, scale):
    """Rows and columns of any magnitude beside each other, zeros, and what is not finite alone."""
    x, y = oracle.inputs(1, 7, 40, dtype=F32), oracle.inputs(1, 9, 40, dtype=F32, seed=1)
    x[0, 1] *= 1e20
    grad = oracle.inputs(1, 7, 9, dtype=F32, seed=2) * scale
    grad[0, 2], grad[0, :, 3] = 0, 0
    grad[0, 5] *= 1e-6
    grad[0, :, 6] *= 1e-6
    bad = grad.clone()
    bad[0, 4, 7] = torch.nan

    def both(grad):
        g, a, b = (t.to(DEVICE) for t in (grad, x, y))
        sides = (
            launch_pairwise_bwd(g, a, b, 0.0, precision),
            launch_pairwise_bwd(g.mT, b, a, 0.0, precision),
        )
        return [t.cpu() for t in sides]

    found, with_bad = both(grad), both(bad)
    expected = oracle.gradients(x, y, grad, 0.0, paired=False)
    unit = 2.0**-20 if precision == "highest" else 2.0**-10
    for side, (got, true) in enumerate(zip(found, expected, strict=True)):
        # By rows: each has a scale of its own. What float32 cannot hold is lost at any precision.
        sizes = (grad if side == 0 else grad.mT).double().abs().sum(-1, keepdim=True)
        norms = torch.linalg.vector_norm((x, y)[side].double(), dim=-1, keepdim=True)
        allowed = unit * sizes / norms + 2.0**-149
        assert bool(((got.double() - true).abs() <= allowed).all())
        row = (4, 7)[side]
        assert bool(with_bad[side][0, row].isnan().all())
        others = torch.arange(got.shape[1]) != row
        assert torch.equal(with_bad[side][0, others], got[0, others])


@pytest.mark.parametrize(
    ("dtype", "value", "eps"),
    [
        (F32, 1e30, EPS),
        (F32, 1e-30, 0.0),
        (F32, 3e38, EPS),
        (F32, 1e-40, 0.0),
        (BF16, 1e30, EPS),
        (BF16, 1e-30, 0.0),
        (F16, 6e4, EPS),
    ],
)
def test_rows_at_the_ends_of_the_range(dtype, value, eps, arch):
    x = oracle.inputs(1, 5, 72, dtype=dtype)
    x[0, 3] = value
    c = launch_pairwise_fwd(x.to(DEVICE), x.to(DEVICE), eps, out_dtype=F32).cpu()
    assert abs(float(c[0, 3, 3]) - 1) <= 2**-21
    assert oracle.error(c, oracle.pairwise(x, x, eps)) <= 2**-21


def test_backward_at_the_ends_of_the_range():
    x, y = oracle.inputs(1, 5, 72, dtype=F32), oracle.inputs(1, 7, 72, dtype=F32, seed=1)
    x[0, 3] *= 1e30
    y[0, 2] *= 1e30
    y[0, 6] *= 1e-25
    grad = oracle.inputs(1, 5, 7, dtype=F32, seed=2)
    got = launch_pairwise_bwd(*(t.to(DEVICE) for t in (grad, x, y)), 0.0).cpu()
    expected, _ = oracle.gradients(x, y, grad, 0.0, paired=False)
    norms = torch.linalg.vector_norm(x.double(), dim=-1, keepdim=True)
    assert float(((got.double() - expected) * norms).abs().max()) < 2**-20


@pytest.mark.parametrize("precision", ["highest", "high"])
def test_bad_rows_stay_alone_and_zero_rows_give_zero(precision, arch):
    x, y = oracle.inputs(1, 9, 72, dtype=F32), oracle.inputs(1, 8, 72, dtype=F32, seed=1)
    x[0, 2, 5] = torch.nan
    x[0, 4] = 0
    y[0, 6, 71] = -torch.inf
    c = launch_pairwise_fwd(x.to(DEVICE), y.to(DEVICE), EPS, precision).cpu()[0]
    bad = torch.zeros(9, 8, dtype=torch.bool)
    bad[2], bad[:, 6] = True, True
    assert bool((torch.isnan(c) == bad).all())
    assert bool((c[4][~bad[4]] == 0).all())


def test_values_stay_within_one():
    x = oracle.inputs(1, 67, 3, dtype=F32)
    c = launch_pairwise_fwd(x.to(DEVICE), (x * 3).to(DEVICE), EPS).cpu()
    assert float(c.abs().max()) <= 1


def test_strided_inputs_and_a_wider_output():
    x = oracle.inputs(40, 3, 70, dtype=BF16).transpose(0, 1)
    y = oracle.inputs(3, 70, 33, dtype=BF16, seed=1).mT[:, ::2]
    got = launch_pairwise_fwd(x.to(DEVICE), y.to(DEVICE), EPS, out_dtype=F32).cpu()
    assert got.dtype == F32
    # The products of bfloat16 rows are exact in float32: nothing but float32 sums to lose.
    assert oracle.error(got, oracle.pairwise(x, y, EPS)) <= 2**-21


def test_one_batch_of_a_broadcast_input():
    x = oracle.inputs(1, 5, 64, dtype=F32).expand(3, 5, 64)
    got = launch_pairwise_fwd(x.to(DEVICE), x.to(DEVICE), EPS).cpu()
    assert oracle.error(got, oracle.pairwise(x, x, EPS)) <= 2**-21


@pytest.mark.parametrize("shape", [(0, 3, 4, 5), (2, 0, 4, 5), (2, 3, 0, 5)])
def test_empty_inputs_launch_nothing(shape):
    b, n, m, d = shape
    x, y = torch.ones(b, n, d, device=DEVICE), torch.ones(b, m, d, device=DEVICE)
    assert launch_pairwise_fwd(x, y, EPS).shape == (b, n, m)
    grad = torch.ones(b, n, m, device=DEVICE)
    assert launch_pairwise_bwd(grad, x, y, EPS).tolist() == torch.zeros(b, n, d).tolist()
    grad = torch.ones(b, n, n, device=DEVICE)
    if x.numel() == 0:
        assert launch_pairwise_self_bwd(grad, x, EPS).shape == (b, n, d)


def test_no_columns_give_zero():
    x, y = torch.ones(1, 3, 0, device=DEVICE), torch.ones(1, 4, 0, device=DEVICE)
    assert launch_pairwise_fwd(x, y, EPS).tolist() == torch.zeros(1, 3, 4).tolist()
