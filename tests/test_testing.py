"""The helpers themselves: what `assert_close` lets pass, what it reports, what inputs are made."""

import math

import pytest
import torch

from cossim_fast.testing import LAYOUTS, TOLERANCES, Tolerance, assert_close, make_inputs


def test_one_element_off_is_found_and_named():
    expected = torch.linspace(-1, 1, 60).view(3, 4, 5)
    actual = expected.clone()
    actual[2, 1, 3] += 1e-3
    with pytest.raises(AssertionError, match=r"1 of 60 elements off; at \(2, 1, 3\): got"):
        assert_close(actual, expected)


def test_a_bias_that_no_element_shows_is_found():
    expected = torch.zeros(10_000)
    bounds = TOLERANCES[torch.float32]
    with pytest.raises(AssertionError, match="0 of 10000 elements off"):
        assert_close(expected + 0.9 * bounds.atol, expected)
    assert_close(expected + 0.9 * bounds.rms, expected)


@pytest.mark.parametrize("wrong", [math.nan, math.inf, -math.inf])
def test_values_that_are_not_finite(wrong):
    expected = torch.tensor([0.0, wrong])
    assert_close(expected.clone(), expected)
    for actual in ([0.0, 1.0], [wrong, wrong], [0.0, 1 - wrong]):
        if not (math.isnan(wrong) and math.isnan(actual[1]) and actual[0] == 0):
            with pytest.raises(AssertionError):
                assert_close(torch.tensor(actual), expected)


def test_shapes_must_be_equal_and_empty_is_close():
    with pytest.raises(AssertionError, match=r"expected shape \(3,\), got \(1, 3\)"):
        assert_close(torch.ones(1, 3), torch.ones(3))
    assert_close(torch.ones(0, 3), torch.ones(0, 3))


def test_other_bounds_and_sizes():
    loose = Tolerance(atol=0.1, rtol=0.0, rms=0.1)
    assert_close(torch.ones(2), torch.ones(2) + 0.09, tolerance=loose)
    with pytest.raises(AssertionError):
        assert_close(torch.ones(2), torch.ones(2) + 0.11, tolerance=loose)
    assert_close(torch.ones(2), torch.ones(2) + 0.9, tolerance=loose, scale=10)


@pytest.mark.parametrize("layout", LAYOUTS)
@pytest.mark.parametrize("dtype", TOLERANCES, ids=str)
def test_inputs_have_equal_values_in_every_layout(layout, dtype):
    plain = make_inputs((4, 6), (2, 4, 6), dtype=dtype, seed=3)
    for expected, x in zip(
        plain, make_inputs((4, 6), (2, 4, 6), dtype=dtype, seed=3, layout=layout), strict=True
    ):
        assert torch.equal(x, expected)
        assert x.is_contiguous() == (layout == "contiguous")
        assert x.dtype == dtype
    assert not torch.equal(plain[0], make_inputs((4, 6), dtype=dtype, seed=4)[0])


def test_cosines_of_the_inputs_fill_the_range():
    (x,) = make_inputs((400, 384), dtype=torch.float64)
    x = torch.nn.functional.normalize(x)
    cosines = x @ x.T
    assert cosines.min() < -0.7
    assert cosines.fill_diagonal_(0).max() > 0.7
