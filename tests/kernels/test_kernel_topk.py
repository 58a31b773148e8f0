"""The screen and the rescoring of an exact top-k."""

import pytest
import torch
from cossim_fast.kernels.rescore import launch_rescore
from cossim_fast.kernels.topk import launch_block_max

from ladder import checks, oracle
from ladder.checks import BF16, F16, F32
from ladder.runtime import DEVICE, kernels, needs_kernels

pytestmark = [pytest.mark.kernel_logic, needs_kernels]
SCREENS = pytest.mark.parametrize("dtype", [torch.int8, BF16], ids=str)


@SCREENS
@pytest.mark.parametrize("some_eligible", [False, True])
@pytest.mark.parametrize("block", [1, 32, 64])
@pytest.mark.parametrize("shape", [(131, 203, 67), (5, 203, 67), (1, 1, 1), (17, 128, 200)])
def test_block_maxima_match_float64(dtype, some_eligible, block, shape):
    checks.check_block_max(kernels, dtype, shape, block, some_eligible=some_eligible)


def test_padding_does_not_beat_a_corpus_of_negative_scores():
    queries = torch.ones(3, 40, dtype=torch.int8, device=DEVICE)
    corpus = -torch.ones(70, 40, dtype=torch.int8, device=DEVICE)
    assert launch_block_max(queries, corpus).tolist() == [[-40, -40]] * 3


def test_extreme_codes_do_not_saturate():
    queries = torch.full((3, 8195), 127, dtype=torch.int8, device=DEVICE)
    corpus = torch.full((5, 8195), -127, dtype=torch.int8, device=DEVICE)
    assert launch_block_max(queries, corpus).tolist() == [[-127 * 127 * 8195]] * 3


@pytest.mark.parametrize("dtype", [torch.float64, F32, F16, BF16], ids=str)
@pytest.mark.parametrize("d", [1, 67, 128, 300])
def test_rescoring_matches_float64(dtype, d):
    checks.check_rescore(kernels, dtype, d)


@pytest.mark.parametrize("stored", [torch.float64, F32, F16, BF16], ids=str)
@pytest.mark.parametrize("dtype", [torch.float64, F32, F16], ids=str)
def test_rescoring_takes_queries_and_rows_of_two_dtypes(dtype, stored):
    checks.check_rescore_of_two_dtypes(kernels, dtype, stored)
    x = oracle.inputs(5, 130, dtype=F16).to(DEVICE)
    index = torch.arange(5, device=DEVICE)
    got = launch_rescore(x.to(dtype), (2 * x).to(stored), index, index)
    if stored != BF16:  # which holds the numbers of a float16 row
        assert got.tolist() == [1.0] * 5


def test_wide_rows_are_scaled_whatever_the_queries_are():
    checks.check_rescore_of_wide_rows(kernels)


def test_scores_have_the_same_bits_in_any_batch():
    queries, corpus = oracle.inputs(40, 300, dtype=F32), oracle.inputs(50, 300, dtype=F32, seed=1)
    queries, corpus = queries.to(DEVICE), corpus.to(DEVICE)
    query_index = torch.arange(40, device=DEVICE)
    together = launch_rescore(queries, corpus, query_index, query_index)
    alone = [launch_rescore(queries[i:], corpus, query_index[:1], query_index[i : i + 1])
             for i in range(40)]  # fmt: skip
    assert together.tolist() == torch.cat(alone).tolist()


def test_rescoring_zero_nan_missing_and_extreme_rows():
    x = oracle.inputs(6, 130, dtype=torch.float64)
    x[1] = 0
    x[2, 100] = torch.nan
    x[3] *= 1e200
    x[4] *= 1e-300
    query_index = torch.tensor([0, 1, 1, 3, 4, 3, -1, 0], device=DEVICE)
    corpus_index = torch.tensor([1, 0, 2, 3, 4, 4, 0, -1], device=DEVICE)
    x = x.to(DEVICE)
    got = launch_rescore(x, x, query_index, corpus_index).cpu()
    assert got[:2].tolist() == [0, 0]
    assert torch.isnan(got).tolist() == [False, False, True, False, False, False, True, True]
    expected = oracle.cosine(x[3:4].cpu() * 1e-200, x[4:5].cpu() * 1e300, 0.0)
    assert (got[3:5] - 1).abs().max() <= 2**-50
    assert oracle.error(got[5:6], expected) <= 2**-48


@pytest.mark.parametrize("dtype", [torch.float64, F32, F16, BF16], ids=str)
@pytest.mark.parametrize("d", [1, 67, 300])
def test_copies_score_one(dtype, d):
    x = oracle.inputs(48, d, dtype=dtype).to(DEVICE)
    x[x.abs() < 2**-10] = 1  # so that half of it is no rounded number
    index = torch.arange(48, device=DEVICE)
    for other, score in ((x, 1.0), (-x, -1.0), (x / 2, 1.0), (-4 * x, -1.0)):
        assert launch_rescore(x, other.contiguous(), index, index).tolist() == [score] * 48
    x[:, 0] = 0  # infinite rows stay NaN, zero rows 0
    x[0], x[1, 0] = 0, torch.inf
    got = launch_rescore(x, x, index[:2], index[:2])
    assert (got[0].item(), got[1].isnan().item()) == (0, True)


def test_nothing_to_do():
    x = torch.ones(3, 4, dtype=torch.int8, device=DEVICE)
    assert launch_block_max(x[:0], x).shape == (0, 1)
    assert launch_block_max(x, x[:0]).shape == (3, 0)
    none = torch.empty(0, dtype=torch.int64, device=DEVICE)
    assert launch_rescore(x.float(), x.float(), none, none).shape == (0,)
