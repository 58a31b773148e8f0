"""The pairwise kernels: against float64, at the edges of the range, within their memory."""

import pytest
import torch
import triton
from cossim_fast.kernels.pairwise import launch_pairwise_fwd
from cossim_fast.kernels.pairwise_backward import launch_pairwise_bwd

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
    checks.check_half_rows(kernels)
    checks.check_half_rows(kernels, 5, 1)
    checks.check_half_rows(kernels, 3, 1030)


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


def test_backward_of_an_expanded_gradient():
    x, y = oracle.inputs(1, 9, 72, dtype=F32), oracle.inputs(1, 8, 72, dtype=F32, seed=1)
    grad = torch.ones(1, 1, 1).expand(1, 9, 8)
    got = launch_pairwise_bwd(*(t.to(DEVICE) for t in (grad, x, y)), EPS).cpu()
    assert oracle.error(got, oracle.gradients(x, y, grad, EPS, paired=False)[0]) <= 2**-21


def test_float16_backward_keeps_gradients_that_float16_cannot_hold():
    checks.check_small_gradients(kernels)


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


def test_no_columns_give_zero():
    x, y = torch.ones(1, 3, 0, device=DEVICE), torch.ones(1, 4, 0, device=DEVICE)
    assert launch_pairwise_fwd(x, y, EPS).tolist() == torch.zeros(1, 3, 4).tolist()
