"""The two passes of a contrastive loss: sums over negatives, and weights for the products."""

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


@FLOATS
@pytest.mark.parametrize("temperature", [0.01, 0.07, 1.0])
def test_weights_match_float64(dtype, temperature):
    contrast.check_softmax_weights(kernels, dtype, temperature=temperature)


@pytest.mark.parametrize("panel", [F16, BF16], ids=str)
@BOTH
@pytest.mark.parametrize("with_ids", [False, True])
@pytest.mark.parametrize("shape", [(1, 1, 1), (129, 64, 33), (3, 130, 16), (257, 5, 40)])
def test_weights_of_ragged_rows(shape, symmetric, with_ids, panel):
    contrast.check_softmax_weights(
        kernels, panel, shape, symmetric=symmetric, with_ids=with_ids, panel=panel
    )


def test_weights_of_zero_nan_and_extreme_rows():
    x, y = oracle.inputs(40, 67, dtype=F32), oracle.inputs(140, 67, dtype=F32, seed=1)
    x[3], y[9] = 0, 0
    x[11], x[12], y[13] = x[11] * 1e30, x[12] * 1e-30, y[13] * 1e30
    contrast.check_softmax_weights(kernels, F32, (40, 140, 67), x=x, y=y)
    x[5, 7] = torch.nan
    contrast.check_softmax_weights(kernels, F32, (40, 140, 67), x=x, y=y, symmetric=False)


@pytest.mark.parametrize("panel", [F32, BF16], ids=str)
@pytest.mark.parametrize("temperature", [0.02, 0.2])
def test_both_passes_give_the_loss_and_its_gradients(panel, temperature):
    """Of both directions, panel by panel, against automatic differentiation in float64."""
    n, m, d, scale = 131, 203, 64, torch.tensor(1 / temperature, device=DEVICE)
    sums, weights = kernels("softmax_sums"), kernels("softmax_weights")
    x, y = (oracle.inputs(size, d, dtype=F32, seed=size) for size in (n, m))
    positives, ids = contrast.pairs(n, m)
    keep = contrast.negatives(n, m, positives, ids)
    wide = [side.double().requires_grad_() for side in (x, y)]
    unit = [side / torch.linalg.vector_norm(side, dim=1, keepdim=True) for side in wide]
    cosines = unit[0] @ unit[1].T
    by_row, by_key = contrast.losses(cosines, keep, positives, 1 / temperature)
    expected = torch.autograd.grad((by_row + by_key).sum(), wide)

    unit = [side.detach().to(DEVICE) for side in unit]
    valid = (positives >= 0).to(DEVICE)
    positives, *ids = (t.to(DEVICE) for t in (positives, *ids))
    (xs, inverse_x), (ys, inverse_y) = (sums.launch_scaled_rows(t.to(DEVICE), EPS) for t in (x, y))
    parts = sums.launch_softmax_sums(
        xs, inverse_x, ys, inverse_y, scale, positives, ids, symmetric=True
    )
    at = positives.clamp_min(0)
    own = (unit[0] * unit[1][at]).sum(1)
    anchors = torch.full((m,), torch.inf, dtype=torch.float64, device=DEVICE)
    anchors[at[valid]] = own[valid]
    of_rows = weights.loss_terms(sums.log2_sums(parts[0], scale, own, 1), own, scale)
    of_keys = weights.loss_terms(sums.log2_sums(parts[1], scale, anchors, 0), anchors, scale)
    got = torch.where(valid, of_rows[0] + of_keys[0][at], 0.0).cpu()
    assert oracle.error(got, (by_row + by_key).detach()) <= 2.0**-20 / temperature

    counts = torch.where(valid, 1.0, 0.0)
    row_terms = torch.stack([
        torch.where(valid, of_rows[1], torch.inf), counts, (of_rows[2] + of_keys[2][at]) * counts
    ]).float()  # fmt: skip
    column_terms = torch.stack([of_keys[1], anchors.isfinite()]).float()
    towards = [torch.zeros_like(side) for side in unit]
    for rows in (slice(first, first + 50) for first in range(0, n, 50)):
        panel_weights = weights.launch_softmax_weights(
            xs[rows], inverse_x[rows], ys, inverse_y, scale, positives[rows],
            row_terms[:, rows].contiguous(), column_terms, (ids[0][rows], ids[1]), panel,
        ).double()  # fmt: skip
        towards[0][rows] = panel_weights @ unit[1]
        towards[1] += panel_weights.T @ unit[0][rows]
    for side, u, t, inverse in zip(expected, unit, towards, (inverse_x, inverse_y), strict=True):
        across = t - u * (t * u).sum(1, keepdim=True)
        got = across * inverse.double()[:, None] * scale.double()
        size = float(side.abs().max())
        assert oracle.error(got.cpu(), side) <= size * (2.0**-17 if panel == F32 else 2.0**-8)


@pytest.mark.parametrize(("n", "m"), [(0, 3), (3, 0)])
def test_no_weights(n, m):
    x, y = torch.ones(n, 16, device=DEVICE), torch.ones(m, 16, device=DEVICE)
    rows = [p for side in (x, y) for p in kernels("softmax_sums").launch_scaled_rows(side, EPS)]
    none = torch.full((n,), -1, device=DEVICE)
    got = kernels("softmax_weights").launch_softmax_weights(
        *rows, torch.ones((), device=DEVICE), none, torch.zeros(3, n, device=DEVICE)
    )
    assert got.shape == (n, m)
