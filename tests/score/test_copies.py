"""Copies of a row score exactly 1, and nothing else that differs measurably does."""

import numpy as np
import pytest
import torch

from cossim_fast import CosineIndex, deduplicate, pairs_above, topk
from cossim_fast._score.exact import row_norms, score_pairs, widen

DTYPES = [torch.float16, torch.bfloat16, torch.float32, torch.float64]
WIDTHS = [1, 2, 3, 7, 8, 9, 64, 127, 128, 129, 384, 1000, 2048]


def make(n, d, dtype, seed=0):
    """Rows of which no number is lost when halved."""
    drawn = torch.Generator().manual_seed(seed)
    x = torch.randn(n, d, generator=drawn, dtype=torch.float64).to(dtype)
    return torch.where(x.abs() < 2**-10, 1.0, x)


def scores(x, y):
    index = torch.arange(len(x))
    found = score_pairs(widen(x), y, index, index)
    assert torch.equal(found, score_pairs(widen(x), y, index, index, row_norms(y)))
    assert torch.equal(found, score_pairs(widen(y), x, index, index))
    return found


@pytest.mark.parametrize("dtype", DTYPES, ids=str)
@pytest.mark.parametrize("d", WIDTHS)
def test_copies_and_scaled_copies_score_one(d, dtype):
    x = make(300, d, dtype)
    for factor in (1, 2, 0.5, 8):
        assert (scores(x, factor * x) == 1).all()
        assert (scores(x, -factor * x) == -1).all()


def test_scaled_to_the_ends_of_the_range_and_in_other_dtypes():
    x = make(300, 65, torch.float32)
    for factor in (2.0**-140, 2.0**-1000, 2.0**1020):
        assert (scores(x.double(), factor * x.double()) == 1).all()
    for dtype in (torch.float16, torch.bfloat16):
        narrow = make(300, 65, dtype)
        for other in (torch.float32, torch.float64):
            assert (scores(narrow, narrow.to(other)) == 1).all()


def test_other_scores_are_the_rounded_quotient():
    """One number of a row changed by one unit: the bits are those of the formula alone."""
    x = make(2000, 5, torch.float32)
    y = x.clone()
    y[:, 2] = torch.nextafter(y[:, 2], torch.tensor(torch.inf))
    z = make(2000, 5, torch.float32, seed=1)
    for other in (y, z):
        a, b = x.double().numpy(), other.double().numpy()
        dots, squares = np.add.reduce(a * b, axis=1), [np.add.reduce(r * r, axis=1) for r in (a, b)]
        expected = dots / (np.sqrt(squares[0]) * np.sqrt(squares[1]))
        got = scores(x, other).numpy()
        np.testing.assert_array_equal(got[got < 1], expected[got < 1])
        assert np.abs(got - expected).max() <= 4 * 2.0**-53
    assert (scores(x, z) < 1).any()


def test_zero_and_infinite_rows_are_no_copies():
    x = torch.zeros(3, 4)
    x[1, 0], x[2, 0] = torch.inf, torch.nan
    got = score_pairs(widen(x), x, torch.arange(3), torch.arange(3))
    assert got[0] == 0
    assert got[1:].isnan().all()


@pytest.mark.parametrize("dtype", DTYPES, ids=str)
@pytest.mark.parametrize("d", [3, 48, 384])
def test_searches_and_joins_find_copies_at_one(d, dtype):
    x = make(250, d, dtype)
    twice = torch.cat([x, x])
    found = topk(x, twice, 2)
    assert (found.scores == 1).all()
    assert found.indices.tolist() == [[row, row + 250] for row in range(250)]
    i, j, cosines = pairs_above(twice, threshold=1.0)
    assert list(zip(i.tolist(), j.tolist(), strict=True)) == [
        (row, row + 250) for row in range(250)
    ]
    assert (cosines == 1).all()
    assert deduplicate(twice, 1.0).kept.tolist() == list(range(250))
    rows = CosineIndex(twice).range_search(x, 1.0)
    assert [sorted(some.tolist()) for some in rows.indices.split(2)] == found.indices.tolist()
    assert (rows.scores == 1).all()
    assert len(pairs_above(x, twice, threshold=1.0).i) == 500
