"""The product that stands in for numpy's vecdot on numpy 1.26."""

import numpy as np
import pytest

from cossim_fast._vecdot import matmul_vecdot, vecdot


@pytest.mark.parametrize("dtype", [np.float32, np.float64])
@pytest.mark.parametrize("shape", [(7,), (1, 384), (5, 33), (2, 3, 17), (0, 4), (4, 0)])
@pytest.mark.parametrize("form", [matmul_vecdot, vecdot])
def test_sums_of_products(form, shape, dtype):
    a, b = np.random.default_rng(0).standard_normal((2, *shape)).astype(dtype)
    for axis in range(len(shape)):
        exact = (a.astype(np.float64) * b).sum(axis)
        got = form(a, b, axis=axis)
        assert got.dtype == dtype
        assert got.shape == exact.shape
        bound = shape[axis] * np.finfo(dtype).eps * np.abs(a.astype(np.float64) * b).sum(axis)
        assert np.all(np.abs(got - exact) <= bound)


@pytest.mark.parametrize("form", [matmul_vecdot, vecdot])
def test_a_result_of_the_callers_is_filled(form):
    a, b = np.random.default_rng(0).standard_normal((2, 9, 40))
    places = np.full((3, 9), np.nan)
    assert np.shares_memory(form(a, b, out=places[1]), places)
    assert np.array_equal(places[1], form(a, b))
    assert np.isnan(places[[0, 2]]).all()


@pytest.mark.skipif(not hasattr(np, "vecdot"), reason="this numpy has none to compare with")
@pytest.mark.parametrize("width", [1, 15, 384, 4096])
def test_the_bits_are_those_of_numpy(width):
    for dtype in (np.float32, np.float64):
        a, b = np.random.default_rng(0).standard_normal((2, 50, width)).astype(dtype)
        assert np.array_equal(matmul_vecdot(a, b), np.vecdot(a, b))
