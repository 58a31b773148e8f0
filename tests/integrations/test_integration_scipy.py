"""The adapter for scipy, beside ``scipy.spatial.distance``."""

import inspect

import numpy as np
import pytest
import torch
from scipy.spatial import distance

from cossim_fast.integrations import scipy as adapter

DRAW = np.random.default_rng(0)
A, B = DRAW.standard_normal((70, 12)), DRAW.standard_normal((40, 12))


@pytest.mark.parametrize("name", ["cdist", "pdist"])
def test_arguments_are_theirs(name):
    mine, theirs = (
        [
            (p.name, p.kind, p.default)
            for p in inspect.signature(getattr(one, name)).parameters.values()
        ]
        for one in (adapter, distance)
    )
    assert mine == theirs


@pytest.mark.parametrize("dtype", ["f8", "f4", "i8", "?"])
@pytest.mark.parametrize("metric", ["cosine", "COS"])
def test_distances_are_theirs(dtype, metric):
    a, b = (A * 3).astype(dtype), (B * 3).astype(dtype)
    for mine, theirs in (
        (adapter.cdist(a, b, metric), distance.cdist(a, b, metric)),
        (adapter.pdist(a, metric), distance.pdist(a, metric)),
    ):
        assert (mine.dtype, mine.shape) == (theirs.dtype, theirs.shape)
        np.testing.assert_allclose(mine, theirs, atol=1e-14)


@pytest.mark.parametrize("n", [0, 1, 2, 255, 256, 257, 258, 600])
def test_any_number_of_rows(n):
    x = DRAW.standard_normal((n, 5))
    np.testing.assert_allclose(adapter.pdist(x, "cosine"), distance.pdist(x, "cosine"), atol=1e-14)


def test_zero_rows_and_nan():
    x = np.vstack([A[:3], np.zeros((1, 12)), np.full((1, 12), np.nan)])
    np.testing.assert_allclose(
        adapter.cdist(x, x, "cosine"), distance.cdist(x, x, "cosine"), atol=1e-14
    )
    np.testing.assert_allclose(adapter.pdist(x, "cosine"), distance.pdist(x, "cosine"), atol=1e-14)


def test_what_is_no_plain_cosine_is_theirs():
    weights = DRAW.random(12)
    for options in ({"metric": "cosine", "w": weights}, {}, {"metric": "minkowski", "p": 3}):
        assert np.array_equal(adapter.cdist(A, B, **options), distance.cdist(A, B, **options))
        assert np.array_equal(adapter.pdist(A, **options), distance.pdist(A, **options))


@pytest.mark.parametrize("name", ["cdist", "pdist"])
def test_in_the_place_of_theirs(monkeypatch, name):
    rows = (A, B) if name == "cdist" else (A,)
    wanted = [getattr(distance, name)(*rows, metric) for metric in ("cosine", "euclidean")]
    monkeypatch.setattr(distance, name, getattr(adapter, name))
    for metric, exact in zip(("cosine", "euclidean"), wanted, strict=True):
        np.testing.assert_allclose(getattr(distance, name)(*rows, metric), exact, atol=1e-14)


def test_out_and_tensors():
    out, flat = np.empty((70, 40)), np.empty(70 * 69 // 2)
    assert adapter.cdist(A, B, "cosine", out=out) is out
    assert adapter.pdist(A, "cosine", out=flat) is flat
    assert np.array_equal(adapter.cdist(torch.from_numpy(A), torch.from_numpy(B), "cosine"), out)
    assert np.array_equal(flat, adapter.pdist(A, "cosine"))


@pytest.mark.parametrize(
    ("call", "message"),
    [
        (lambda: adapter.cdist(A[0], B, "cosine"), r"XA of shape \(n, d\), got \(12,\)"),
        (lambda: adapter.cdist(A, B[:, :3], "cosine"), r"XB of shape \(m, 12\), got \(40, 3\)"),
        (lambda: adapter.cdist(A, B, "cosine", out=np.empty((2, 2))), r"\(70, 40\) of float64"),
        (lambda: adapter.pdist(A, "cosine", out=np.empty(2415, "f")), "float32"),
    ],
)
def test_mistakes(call, message):
    with pytest.raises(ValueError, match=message):
        call()
