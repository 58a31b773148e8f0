"""Row norms and paired rows: against float64, at the edges of the range, within their memory."""

import pytest
import torch
import torch.nn.functional as F
from cossim_fast.kernels.architecture import TileConfig
from cossim_fast.kernels.row_norm import launch_row_norm
from cossim_fast.kernels.rowwise import launch_rowwise_bwd, launch_rowwise_fwd

from ladder import checks, oracle
from ladder.checks import BF16, EPS, F16, F32
from ladder.runtime import DEVICE, kernels, needs_kernels

pytestmark = [pytest.mark.kernel_logic, needs_kernels]
DTYPES = pytest.mark.parametrize("dtype", [F32, F16, BF16], ids=str)
# One row, one element, edges of a block, several steps of the loop.
SHAPES = pytest.mark.parametrize(("n", "d"), [(131, 67), (1, 1), (5, 64), (33, 513), (40, 1100)])


@DTYPES
@SHAPES
def test_forward_matches_float64(dtype, n, d):
    checks.check_rowwise_fwd(kernels, dtype, n, d)


@DTYPES
@SHAPES
def test_backward_matches_float64(dtype, n, d):
    # One element has the gradient 0, which torch's own function meets by luck.
    checks.check_rowwise_bwd(kernels, dtype, n, max(d, 2))


@DTYPES
@pytest.mark.parametrize(("n", "d", "block"), [(7, 700, 1024), (7, 130, 256), (9, 67, 64)])
def test_backward_in_one_step_and_in_several(dtype, n, d, block):
    """The tile decides: rows that it covers stay in registers."""
    x, y = oracle.inputs(n, d, dtype=dtype), oracle.inputs(n, d, dtype=dtype, seed=1)
    grad = oracle.inputs(n, dtype=dtype, seed=2)
    config = TileConfig(2, block_k=block)
    moved = checks.on_device(grad, x, y)
    memory, outputs = checks.guards()
    with memory, outputs:
        got = launch_rowwise_bwd(*moved, EPS, config)
    plain = oracle.torch_gradients(x, y, grad, EPS, paired=True)
    expected = oracle.gradients(x, y, grad, EPS, paired=True)
    for side in range(2):
        oracle.assert_no_worse(got[side].cpu(), plain[side], expected[side])


def test_backward_keeps_the_range_in_one_step_and_in_several():
    checks.check_rowwise_bwd_range(kernels)


def both_ways(x, y, eps=EPS):
    x, y = x.to(DEVICE), y.to(DEVICE)
    grad = torch.ones(x.shape[0], dtype=x.dtype, device=DEVICE)
    return launch_rowwise_fwd(x, y, eps).cpu(), launch_rowwise_bwd(grad, x, y, eps)[0].cpu()


@pytest.mark.parametrize(
    ("dtype", "value", "eps"),
    [
        (F32, 1e30, EPS),
        (F32, 1e-30, 0.0),
        (F32, 3e38, EPS),
        (F32, 1e-40, 0.0),
        (F32, -1e30, EPS),
        (BF16, 1e30, EPS),
        (BF16, 1e-30, 0.0),
        (F16, 6e4, EPS),
        (F16, 6e-8, 0.0),
    ],
)
def test_rows_at_the_ends_of_the_range_are_parallel_to_themselves(dtype, value, eps):
    x = torch.full((3, 70), value, dtype=dtype)
    c, grad = both_ways(x, x, eps)
    torch.testing.assert_close(c, torch.ones(3, dtype=dtype), rtol=0, atol=2**-22)
    # The gradient of a maximum: zero, against 1 / norm for the rows' scale.
    scale = 1 / (abs(value) * 70**0.5)
    assert float((grad.double().abs() / scale).max()) < 8 * torch.finfo(dtype).eps


def test_gradients_at_the_ends_of_the_range_match_float64():
    for scale_x, scale_y, eps in [(1e30, 1e-3, EPS), (1e-30, 1e20, 0.0), (1e30, 1e30, EPS)]:
        x = oracle.inputs(9, 70, dtype=F32) * scale_x
        y = oracle.inputs(9, 70, dtype=F32, seed=1) * scale_y
        _, grad = both_ways(x, y, eps)
        expected, _ = oracle.gradients(x, y, torch.ones(9), eps, paired=True)
        relative = (grad.double() - expected).abs().max() / expected.abs().max()
        assert float(relative) < 4 * 2**-24


def test_rows_below_eps_divide_by_eps_and_differentiate_the_norm():
    x = oracle.inputs(9, 70, dtype=F32) * 1e-3
    y = oracle.inputs(9, 70, dtype=F32, seed=1)
    c, grad = both_ways(x, y, 1.0)
    oracle.assert_no_worse(
        c, F.cosine_similarity(x, y, eps=1.0), F.cosine_similarity(x.double(), y.double(), eps=1.0)
    )
    ones = torch.ones(9)
    oracle.assert_no_worse(
        grad,
        oracle.torch_gradients(x, y, ones, 1.0, paired=True)[0],
        oracle.gradients(x, y, ones, 1.0, paired=True)[0],
    )


def test_zero_rows_give_zero_and_bad_rows_stay_alone():
    x = oracle.inputs(6, 70, dtype=F32)
    y = oracle.inputs(6, 70, dtype=F32, seed=1)
    x[1] = 0
    x[2, 5] = torch.nan
    y[3, 69] = torch.inf
    c, grad = both_ways(x, y)
    assert c[1] == 0
    assert torch.isnan(c).tolist() == [False, False, True, True, False, False]
    assert bool(torch.isfinite(grad[[0, 1, 4, 5]]).all())


@pytest.mark.parametrize("dtype", [F32, BF16], ids=str)
def test_strided_and_expanded_rows(dtype):
    x = oracle.inputs(70, 33, dtype=dtype)
    y = oracle.inputs(1, 70, dtype=dtype, seed=1)
    for a, b in [(x.mT, y.expand(33, 70)), (x.mT[::3], x.mT[::3].flip(0)), (x[::2], x[1::2])]:
        got, _ = both_ways(a, b)
        oracle.assert_no_worse(got, F.cosine_similarity(a, b, eps=EPS), oracle.cosine(a, b, EPS))


def test_empty_inputs_launch_nothing():
    for n, d in [(0, 5), (0, 0)]:
        x = torch.empty(n, d, device=DEVICE)
        assert launch_rowwise_fwd(x, x, EPS).shape == (n,)
        assert launch_rowwise_bwd(torch.empty(n, device=DEVICE), x, x, EPS)[1].shape == (n, d)
    x = torch.empty(3, 0, device=DEVICE)
    assert launch_rowwise_fwd(x, x, EPS).tolist() == [0, 0, 0]


def test_row_norms_and_exponents():
    x = oracle.inputs(2, 5, 67, dtype=F32)
    x[0, 0] *= 1e30
    x[1, 2] *= 1e-30
    x[1, 4] = 0
    inverse, exponent = (t.cpu().view(2, 5) for t in launch_row_norm(x.to(DEVICE), 0.0))
    norm = torch.linalg.vector_norm(x.double(), dim=-1)
    got = torch.ldexp(1 / inverse.double(), exponent)
    finite = norm > 0
    torch.testing.assert_close(got[finite], norm[finite], rtol=4 * 2**-24, atol=0)
    assert (exponent != 0).nonzero().tolist() == [[0, 0], [1, 2]]
