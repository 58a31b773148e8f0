"""Thresholds, candidates and the row-by-row check, between block maxima and rescoring."""

import pytest
import torch

from cossim_fast._cpu import topk_ops
from ladder import oracle, screening
from ladder.checks import BF16, F16, F32
from ladder.runtime import DEVICE, kernels, needs_kernels
from ladder.screening import INT8

pytestmark = [pytest.mark.kernel_logic, needs_kernels]
FLOATS = (F16, BF16, F32)
SCREENS = pytest.mark.parametrize("dtype", [INT8, BF16], ids=str)


@pytest.mark.parametrize("dtype", FLOATS, ids=str)
@pytest.mark.parametrize(("n", "d"), [(131, 67), (64, 16), (65, 130), (1, 1), (5, 300)])
def test_codes_and_the_bounds_of_what_they_miss(dtype, n, d):
    screening.check_code_rows(kernels, dtype, n, d)


@pytest.mark.parametrize("dtype", [*FLOATS, torch.float64], ids=str)
def test_codes_by_torchs_operations(dtype):
    x = oracle.inputs(131, 67, dtype=dtype)
    x[3], x[70], x[71, 5] = 0, x[70] * (1e200 if dtype == torch.float64 else 1), torch.inf
    centre = torch.full((67,), 0.01)
    screening.assert_coded(x, centre, *topk_ops.code_rows(x, centre))


@SCREENS
@pytest.mark.parametrize(("k", "groups"), [(1, 1), (3, 16), (3, 22), (5, 1024), (16, 16)])
def test_thresholds_are_the_kth_of_the_groups_and_no_larger_than_the_kth_cosine(dtype, k, groups):
    screening.check_block_thresholds(kernels, k, groups, dtype)


@pytest.mark.parametrize("m", [1, 65, 20000])
def test_thresholds_of_few_blocks_and_of_many(m):
    screening.check_block_thresholds(kernels, 2, 300, m=m)


@SCREENS
@pytest.mark.parametrize("capacity", [1, 20, 300])
def test_candidates_are_counted_past_the_capacity(dtype, capacity):
    screening.check_block_candidates(kernels, capacity, dtype)


@SCREENS
@pytest.mark.parametrize("block", [32, 64])
@pytest.mark.parametrize(("pairs", "d"), [(77, 67), (1, 300), (16, 16)])
def test_recheck_keeps_what_may_be_among_the_best(dtype, block, pairs, d):
    screening.check_recheck(kernels, dtype, block, max(pairs, 8), d)


@pytest.mark.parametrize("capacity", [1, 7, 1403])
def test_rows_in_reach_are_counted_past_the_capacity(capacity):
    screening.check_recheck(kernels, capacity=capacity)


@SCREENS
@pytest.mark.parametrize("block", [32, 64])
@pytest.mark.parametrize(("pairs", "d"), [(77, 67), (8, 300), (16, 16)])
def test_the_best_row_of_a_block(dtype, block, pairs, d):
    screening.check_best_rows(kernels, dtype, block, pairs, d)


def test_nothing_to_do():
    coded = kernels("code_rows").launch_code_rows(
        torch.ones(0, 5, device=DEVICE), torch.ones(5, device=DEVICE)
    )
    assert [tuple(t.shape) for t in coded] == [(0, 16), (3, 0), (0,)]
    terms = torch.zeros(4, 3, device=DEVICE), torch.zeros(3, 0, device=DEVICE)
    maxima = torch.zeros(3, 0, dtype=torch.int32, device=DEVICE)
    reach, blocks = kernels("thresholds").launch_block_thresholds(maxima, *terms, 2, 4)
    assert reach.tolist() == [-torch.inf] * 3
    assert blocks.tolist() == [[-1, -1]] * 3
    count, pairs = kernels("candidates").launch_block_candidates(maxima, *terms, reach, 2)
    assert count.tolist() == [0]
    assert pairs.tolist() == [topk_ops.NO_PAIR] * 2
    codes = torch.zeros(3, 16, dtype=INT8, device=DEVICE)
    recheck = kernels("recheck")
    for some in (pairs[:0], pairs):
        counts, rows = recheck.launch_recheck(codes, codes[:0], *terms, reach, some, 64, None, 2)
        assert counts.tolist() == [0, 0, 0]
        assert rows.tolist() == [[-1, -1]] * 3
        best = recheck.launch_best_rows(codes, codes[:0], some, 64, None)
        assert best.tolist() == [-1] * len(some)
