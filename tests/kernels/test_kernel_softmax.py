"""Sums over the negatives of each row and column: the first pass of a contrastive loss."""

import pytest
import torch

from ladder import contrast, oracle
from ladder.checks import BF16, EPS, F16, F32
from ladder.runtime import DEVICE, kernels, needs_kernels

pytestmark = [pytest.mark.kernel_logic, needs_kernels]
FLOATS = pytest.mark.parametrize("dtype", [F16, BF16, F32], ids=str)
BOTH = pytest.mark.parametrize("symmetric", [False, True])


@FLOATS
@pytest.mark.parametrize("temperature", [0.01, 0.07, 1.0])
def test_sums_match_float64(dtype, temperature):
    contrast.check_softmax_sums(kernels, dtype, temperature=temperature)


@BOTH
@pytest.mark.parametrize("with_ids", [False, True])
@pytest.mark.parametrize("shape", [(1, 1, 1), (129, 64, 33), (3, 130, 16), (257, 5, 40)])
def test_sums_of_ragged_rows(shape, symmetric, with_ids):
    contrast.check_softmax_sums(
        kernels, BF16, shape, symmetric=symmetric, with_ids=with_ids, temperature=0.02
    )


@FLOATS
def test_zero_nan_infinite_and_extreme_rows(dtype):
    x, y = oracle.inputs(40, 67, dtype=dtype), oracle.inputs(140, 67, dtype=dtype, seed=1)
    x[3], x[5, 7], y[9] = 0, torch.nan, 0
    if dtype != F16:  # which holds no such rows
        x[11], x[12], y[13] = x[11] * 1e30, x[12] * 1e-30, y[13] * 1e30
    # The oracle divides by norms in float64; rows below eps are divided by it, in either.
    contrast.check_softmax_sums(kernels, dtype, (40, 140, 67), symmetric=False, x=x, y=y)
    contrast.check_softmax_sums(kernels, dtype, (40, 140, 67), x=x, y=y)
    x[5, 7] = 1
    contrast.check_softmax_sums(kernels, dtype, (40, 140, 67), x=x, y=y)
    y[70, 0] = torch.inf
    contrast.check_softmax_sums(kernels, dtype, (40, 140, 67), x=x, y=y)


def test_copies_of_the_positive_and_opposites_do_not_overflow():
    """Cosines of 1 and -1 at a scale of 1000: powers relative to the largest are at most 1."""
    x = oracle.inputs(40, 67, dtype=F32)
    y = torch.cat([x, -x, x])
    contrast.check_softmax_sums(kernels, F32, (40, 120, 67), temperature=1e-3, x=x, y=y)


def test_rows_without_negatives():
    x = torch.ones(3, 16, device=DEVICE)
    module = kernels("softmax_sums")
    rows, inverse = module.launch_scaled_rows(x, EPS)
    scale = torch.tensor(10.0, device=DEVICE)
    ids = torch.tensor([4, 4, 7], device=DEVICE)
    positives = torch.arange(3, device=DEVICE)
    parts = module.launch_softmax_sums(
        rows, inverse, rows, inverse, scale, positives, (ids, ids * 0 + 4), symmetric=True
    )
    zero = torch.zeros(3, device=DEVICE)
    by_row, by_column = (module.log2_sums(p, scale, zero, 1 - i) for i, p in enumerate(parts))
    once, bits = 10 * module.BITS, 1.0
    assert by_row.tolist() == [-torch.inf, -torch.inf, pytest.approx(once + bits, abs=1e-4)]
    assert by_column.tolist() == [pytest.approx(once, abs=1e-4)] * 2 + [-torch.inf]


def test_a_sum_does_not_depend_on_the_other_rows():
    """The tile depends on neither n nor m: the partial sums of a row have the same bits alone."""
    module = kernels("softmax_sums")
    x = oracle.inputs(140, 40, dtype=F32).to(DEVICE)
    rows, inverse = module.launch_scaled_rows(x, EPS)
    scale = torch.tensor(20.0, device=DEVICE)
    positives = torch.arange(140, device=DEVICE)
    whole, _ = module.launch_softmax_sums(rows, inverse, rows, inverse, scale, positives)
    some, _ = module.launch_softmax_sums(
        rows[128:], inverse[128:], rows, inverse, scale, positives[128:]
    )
    assert torch.equal(whole[:, 128:], some)


@pytest.mark.parametrize(("n", "m"), [(0, 3), (3, 0), (0, 0)])
def test_nothing_to_do(n, m):
    module = kernels("softmax_sums")
    x, y = torch.ones(n, 16, device=DEVICE), torch.ones(m, 16, device=DEVICE)
    rows = [part for side in (x, y) for part in module.launch_scaled_rows(side, EPS)]
    scale = torch.tensor(10.0, device=DEVICE)
    none = torch.full((n,), -1, device=DEVICE)
    parts = module.launch_softmax_sums(*rows, scale, none, symmetric=True)
    for i, (part, size) in enumerate(zip(parts, (n, m), strict=True)):
        sums = module.log2_sums(part, scale, torch.zeros(size, device=DEVICE), 1 - i)
        assert sums.tolist() == [-torch.inf] * size
