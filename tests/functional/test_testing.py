"""The helpers themselves: what `assert_close` lets pass, what it reports, what inputs are made."""

import functools
import math

import pytest
import torch
import torch.nn.functional as F

import products
from cossim_fast import _reference
from cossim_fast.testing import (
    LAYOUTS,
    Tolerance,
    assert_close,
    derived_tolerance,
    make_inputs,
    measured_tolerance,
)

FLOATING = (torch.float16, torch.bfloat16, torch.float32, torch.float64)


def test_one_element_off_is_found_and_named():
    expected = torch.linspace(-1, 1, 60).view(3, 4, 5)
    actual = expected.clone()
    actual[2, 1, 3] += 1e-3
    with pytest.raises(AssertionError, match=r"1 of 60 elements off; at \(2, 1, 3\): got"):
        assert_close(actual, expected)


def test_a_bias_that_no_element_shows_is_found():
    expected = torch.zeros(10_000)
    bounds = derived_tolerance(torch.float32)
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


def in_order(terms):
    """Sums along the last dimension, one after the other."""
    return functools.reduce(torch.add, terms.unbind(-1))


@pytest.mark.parametrize("dtype", FLOATING, ids=str)
@pytest.mark.parametrize("terms", [1, 3, 8, 33, 384, 1024])
@pytest.mark.parametrize("kind", ["any", "spiky", "one-sided"])
def test_plain_torch_passes_whatever_the_order_of_its_sums(kind, terms, dtype):
    x, y = make_inputs((60, terms), (50, terms), dtype=dtype)
    if kind == "spiky":  # every partial sum is as large as it can be
        x[:, 0], y[:, 0] = 30 * x.norm(dim=1), 30 * y.norm(dim=1)
    elif kind == "one-sided":  # partial sums grow, and so does what they are rounded by
        x, y = x.abs(), y.abs()
    exact = _reference.pairwise_cosine(x, y)
    wide = torch.promote_types(dtype, torch.float32)
    a, b = F.normalize(x.to(wide)), F.normalize(y.to(wide)).T
    for product in (torch.mm, *products.RIGHT.values()):
        assert_close(product(a, b).to(dtype), exact, terms=terms)
    p, q = x[:50].to(wide), y.to(wide)
    dot, square_p, square_q = (in_order(a * b) for a, b in ((p, q), (p, p), (q, q)))
    assert_close(
        (dot / (square_p.sqrt() * square_q.sqrt())).to(dtype), exact.diagonal(), terms=terms
    )
    assert_close(F.cosine_similarity(x[:50], y), exact.diagonal(), terms=terms)


@pytest.mark.parametrize("dtype", [torch.float32, torch.float64], ids=str)
def test_factors_of_the_next_narrower_dtype_do_not_pass(dtype):
    narrow = torch.bfloat16 if dtype == torch.float32 else torch.float32
    x, y = make_inputs((60, 1024), (50, 1024), dtype=dtype)
    a, b = (F.normalize(t).to(narrow).to(dtype) for t in (x, y))
    with pytest.raises(AssertionError, match="result is off"):
        assert_close(a @ b.T, _reference.pairwise_cosine(x, y))


def test_more_is_allowed_where_plain_torch_is_farther_off():
    exact = torch.zeros(100, dtype=torch.float64)
    bounds = measured_tolerance(torch.full((100,), 1e-6), exact)
    assert_close(torch.full((100,), 1.9e-6), exact, tolerance=bounds)
    with pytest.raises(AssertionError, match="100 of 100 elements off"):
        assert_close(torch.full((100,), 2.1e-6), exact, tolerance=bounds)
    none = measured_tolerance(torch.zeros(100), exact, factor=3)
    assert none == Tolerance(atol=3 * 2.0**-24, rtol=0.0, rms=3 * 2.0**-25)
    assert measured_tolerance(torch.zeros(0), exact[:0], factor=3) == none


@pytest.mark.parametrize("layout", LAYOUTS)
@pytest.mark.parametrize("dtype", FLOATING, ids=str)
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
