"""The scan of few queries: float estimates within their bound, straight from the rows."""

import pytest
import torch
import torch.nn.functional as F

from cossim_fast import _ops
from cossim_fast._cpu import topk_ops
from cossim_fast.retrieval.nearest.scanned_topk import scan_factors
from ladder import coding, oracle, screening
from ladder.checks import BF16, F16, F32
from ladder.runtime import DEVICE, kernels, needs_kernels

logic = [pytest.mark.kernel_logic, needs_kernels]
FLOATS = (F16, BF16, F32)


def of_kernels(test):
    for mark in logic:
        test = mark(test)
    return test


@of_kernels
@pytest.mark.parametrize("dtype", FLOATS, ids=str)
@pytest.mark.parametrize(
    ("q", "n", "d"), [(17, 131, 67), (1, 64, 16), (64, 65, 130), (1, 1, 1), (70, 5, 300)]
)
def test_maxima_are_within_the_bound(dtype, q, n, d):
    screening.check_scan_rows(kernels, dtype, q, n, d)


@of_kernels
@pytest.mark.parametrize("dtype", FLOATS, ids=str)
def test_rows_may_be_strided(dtype):
    x, z = oracle.inputs(300, 40, dtype=dtype), oracle.inputs(3, 20, dtype=F32, seed=1)
    z = scan_factors(z, dtype)[0]
    for rows in (x[::3, ::2], x[:20, :].mT[::2].mT, x[:1, :20].expand(90, 20)):
        launch = kernels("scan_rows").launch_scan_rows
        maxima, eligible = launch(z.to(DEVICE), rows.to(DEVICE))
        screening.assert_scanned(z, rows, maxima.cpu(), eligible.cpu())


@of_kernels
def test_what_tf32_drops_is_within_the_bound_and_most_of_it():
    """Rows whose every number ends in the bits that are dropped: all errors of one sign."""
    z = torch.full((1, 64), 0.125)
    x = torch.full((64, 64), 1.0 + 2.0**-10 - 2.0**-23)
    maxima, _ = kernels("scan_rows").launch_scan_rows(z.to(DEVICE), x.to(DEVICE))
    error = abs(float(maxima) - 1.0)
    assert error <= topk_ops.scan_error(64, F32)
    # AMD's matrix cores drop nothing.
    assert error >= 2.0**-10.1 or torch.version.hip


@of_kernels
def test_nothing_to_do():
    launch, x = kernels("scan_rows").launch_scan_rows, torch.ones(70, 5, device=DEVICE)
    maxima, eligible = launch(x[:3], x[:0])
    assert (maxima.shape, eligible.shape) == ((3, 0), (0,))
    maxima, eligible = launch(x[:0], x)
    assert (maxima.shape, eligible.tolist()) == ((0, 2), [True] * 70)


@pytest.mark.parametrize("dtype", [*FLOATS, torch.float64], ids=str)
@pytest.mark.parametrize("at_once", [1, 1 << 25])
def test_maxima_by_torchs_operations(dtype, at_once, monkeypatch):
    monkeypatch.setattr(topk_ops, "CODED_AT_ONCE", at_once)
    x = oracle.inputs(131, 67, dtype=dtype)
    x[3], x[70], x[71, 5] = 0, x[70] * (1e200 if dtype == torch.float64 else 1), torch.inf
    z = scan_factors(oracle.inputs(5, 67, dtype=dtype, seed=1), dtype)[0]
    screening.assert_scanned(z, x, *topk_ops.scan_rows(z, x))


@pytest.mark.parametrize("dtype", [*FLOATS, torch.float64], ids=str)
def test_factors_have_eleven_bits_and_margins_that_hold(dtype):
    queries = oracle.inputs(40, 67, dtype=dtype)
    queries[3], queries[4, 5] = 0, torch.nan
    if dtype != F16:
        queries[5], queries[6] = queries[5] * 1e36, queries[6] * 1e-36
    factors, margins = scan_factors(queries, dtype)
    assert not (factors.view(torch.int32) & 0x1FFF).any()
    assert margins.isnan().nonzero().tolist() == [[4]]
    kept = torch.arange(40) != 4
    missed = coding.unit_rows(queries)[kept] - factors[kept].double()
    assert bool((torch.linalg.vector_norm(missed, dim=1) <= 2.0**-11).all())
    assert bool((margins[kept] <= 2.0**-11 + topk_ops.scan_error(67, dtype) * 1.001 + 2e-6).all())


@pytest.mark.parametrize("dtype", [*FLOATS, torch.float64], ids=str)
def test_margins_hold_the_best_cosine_of_each_block(dtype):
    queries, x = oracle.inputs(20, 67, dtype=dtype), oracle.inputs(1403, 67, dtype=dtype, seed=1)
    factors, margins = scan_factors(queries, dtype)
    maxima, _ = _ops.scan_rows(factors, x)
    best = coding.unit_rows(queries) @ coding.unit_rows(x).T
    best = F.pad(best, (0, -1403 % 64), value=-torch.inf).view(20, -1, 64).amax(2)
    assert bool(((maxima.double() - best).abs() <= margins[:, None]).all())
    assert float(margins.max()) < 0.0025  # a tenth of what int8 codes leave


@pytest.mark.parametrize(
    ("change", "error", "message"),
    [
        ({"rows": torch.zeros(4, 9)}, ValueError, r"got \(3, 8\) and \(4, 9\)"),
        ({"rows": torch.zeros(4, 8, dtype=torch.int8)}, TypeError, "floating rows"),
        ({"queries": torch.zeros(3, 8, dtype=F16)}, TypeError, "float32 queries"),
    ],
)
def test_what_cannot_be_scanned_is_refused(change, error, message):
    arguments = {"queries": torch.zeros(3, 8), "rows": torch.zeros(4, 8)} | change
    with pytest.raises(error, match=message):
        torch.ops.cossim_fast.scan_rows(**arguments)
