"""The adapter for scikit-learn: its own checks of estimators, and its own answers."""

import os
import subprocess
import sys
from pathlib import Path

import numpy as np
import pytest
from scipy import sparse
from sklearn.base import clone
from sklearn.cluster import DBSCAN
from sklearn.metrics import pairwise as theirs
from sklearn.neighbors import BallTree, KDTree, KNeighborsClassifier, NearestNeighbors
from sklearn.pipeline import make_pipeline
from sklearn.preprocessing import MaxAbsScaler
from sklearn.utils.estimator_checks import estimator_checks_generator

from cossim_fast.integrations import sklearn as adapter
from cossim_fast.integrations.sklearn import (
    CosineNeighbors,
    cosine_distances,
    cosine_similarity,
    paired_cosine_distances,
)

REAL = Path(__file__).parents[2] / "examples" / "data" / "wordnet_minilm_4k_f16.npy"
CHECKS = list(estimator_checks_generator(CosineNeighbors()))


@pytest.fixture(scope="module")
def rows():
    return np.load(REAL)[:1500].astype(np.float64)


@pytest.mark.filterwarnings("ignore")  # as check_estimator itself runs them
@pytest.mark.parametrize(("estimator", "check"), CHECKS, ids=lambda x: getattr(x, "func", x))
def test_their_checks_of_an_estimator(estimator, check):
    check(estimator)


def test_that_they_are_many():
    assert len(CHECKS) >= 40


# cosine_similarity. The first four are the cases of scikit-learn's test_cosine_similarity.

DRAW = np.random.RandomState(0)
X, Y = DRAW.random_sample((5, 4)), DRAW.random_sample((3, 4))
KINDS = [np.asarray, sparse.csr_matrix, sparse.csr_array]


@pytest.mark.parametrize("kind", KINDS)
@pytest.mark.parametrize("y", [None, Y])
def test_matrix_is_their_linear_kernel_of_unit_rows(kind, y):
    def unit(x):
        return None if x is None else x / np.linalg.norm(x, axis=1)[:, None]

    found = cosine_similarity(kind(X), None if y is None else kind(y))
    np.testing.assert_allclose(found, theirs.linear_kernel(unit(X), unit(y)), atol=1e-15)


@pytest.mark.parametrize("first", KINDS)
@pytest.mark.parametrize("second", KINDS)
@pytest.mark.parametrize("dense", [True, False])
def test_matrix_has_the_kind_and_the_values_of_theirs(first, second, dense):
    x, y = first(X * (X > 0.5)), second(Y * (Y > 0.3))
    mine, exact = cosine_similarity(x, y, dense), theirs.cosine_similarity(x, y, dense)
    assert sparse.issparse(mine) == sparse.issparse(exact)
    if sparse.issparse(mine):
        mine, exact = mine.toarray(), exact.toarray()
    assert type(mine) is type(exact)
    np.testing.assert_allclose(mine, exact, atol=1e-15)


@pytest.mark.parametrize("dtype", ["f2", "f4", "f8", "i8", "u1", "?"])
@pytest.mark.parametrize("other", ["f4", "f8"])
def test_matrix_has_the_dtype_of_theirs(dtype, other):
    x, y = (X * 3).astype(dtype), Y.astype(other)
    mine, exact = cosine_similarity(x, y), theirs.cosine_similarity(x, y)
    assert mine.dtype == exact.dtype
    np.testing.assert_allclose(mine, exact, atol=4 * np.finfo(mine.dtype).eps)


def test_matrix_of_zero_huge_and_tiny_rows():
    rows = np.array([[0.0, 0.0], [3e200, 4e200], [3e-200, 4e-200]])
    found = cosine_similarity(rows, [[1, 0]])
    np.testing.assert_allclose(found, [[0], [0.6], [0.6]], atol=1e-15)


@pytest.mark.parametrize("first", KINDS)
@pytest.mark.parametrize("second", [*KINDS, None])
def test_distances_are_theirs(first, second):
    draw = np.random.RandomState(1).random_sample((5, 4))
    for a, b in ((X * (X > 0.5), draw * (draw > 0.3)), (X * 0, X), (X, X * 0), (X * 0, X * 0)):
        x, y = first(a), None if second is None else second(b)
        mine, exact = cosine_distances(x, y), theirs.cosine_distances(x, y)
        assert type(mine) is type(exact)
        np.testing.assert_allclose(mine, exact, atol=1e-15)
        if second is not None:
            mine, exact = paired_cosine_distances(x, y), theirs.paired_cosine_distances(x, y)
            assert (type(mine), mine.dtype) == (type(exact), exact.dtype)
            np.testing.assert_allclose(mine, exact, atol=1e-15)
    assert (cosine_distances(X, X).diagonal() == 0).all()


@pytest.mark.parametrize("name", ["cosine_similarity", "cosine_distances"])
def test_in_the_place_of_theirs(monkeypatch, name):
    wanted = getattr(theirs, name)(sparse.csr_matrix(X), sparse.csr_matrix(Y))
    dense = getattr(theirs, name)(X, Y)
    monkeypatch.setattr(theirs, name, getattr(adapter, name))
    np.testing.assert_allclose(getattr(theirs, name)(X, Y), dense, atol=1e-15)
    found = getattr(theirs, name)(sparse.csr_matrix(X), sparse.csr_matrix(Y))
    np.testing.assert_allclose(found, wanted, atol=1e-15)
    metric = name.removeprefix("cosine_")
    call = {"distances": theirs.pairwise_distances, "similarity": theirs.pairwise_kernels}[metric]
    np.testing.assert_allclose(call(X, Y, metric="cosine"), dense, atol=1e-15)


@pytest.mark.parametrize("dense_output", ["maybe", None, 1])
def test_dense_output_is_yes_or_no(dense_output):
    for function in (cosine_similarity, theirs.cosine_similarity):
        with pytest.raises(ValueError, match="dense_output"):
            function(X, Y, dense_output)


# Whether scikit-learn dispatches is decided before scipy is imported: in a process of its own.
DISPATCHED = """
import numpy as np, sklearn, torch
from cossim_fast.integrations import sklearn as adapter
from sklearn.metrics import pairwise as theirs
x, y = torch.rand(5, 4), torch.rand(5, 4)
names = ["cosine_similarity", "cosine_distances", "paired_cosine_distances"]
for name in names:
    assert isinstance(getattr(adapter, name)(x, y), np.ndarray)
with sklearn.config_context(array_api_dispatch=True):
    for name in names:
        mine = getattr(adapter, name)(x, y)
        assert isinstance(mine, torch.Tensor) and mine.dtype == torch.float32, name
        if name[:6] != "paired":
            torch.testing.assert_close(mine, getattr(theirs, name)(x, y))
            torch.testing.assert_close(getattr(adapter, name)(x), getattr(theirs, name)(x))
        assert isinstance(getattr(adapter, name)(x.numpy(), y.numpy()), np.ndarray)
"""


def test_tensors_give_tensors_where_arrays_are_dispatched():
    environment = {**os.environ, "SCIPY_ARRAY_API": "1"}
    subprocess.run([sys.executable, "-c", DISPATCHED], check=True, env=environment)


# CosineNeighbors, beside NearestNeighbors(metric="cosine").


def test_arguments_are_theirs(rows):
    options = {"n_neighbors": 3, "radius": 0.4, "metric": "cosine", "n_jobs": -1, "leaf_size": 9}
    mine, exact = CosineNeighbors(**options), NearestNeighbors(**options)
    assert mine.get_params() == exact.get_params()
    assert {**CosineNeighbors().get_params(), "metric": 0} == {
        **NearestNeighbors().get_params(),
        "metric": 0,
    }
    mine, exact = mine.fit(rows), exact.fit(rows)
    for name in ("effective_metric_", "effective_metric_params_", "n_samples_fit_"):
        assert getattr(mine, name) == getattr(exact, name)
    assert_same(mine.kneighbors()[1], exact.kneighbors()[1])
    assert repr(clone(mine)) == repr(mine)


@pytest.mark.parametrize(
    "fitted",
    [
        lambda x: NearestNeighbors(metric="cosine").fit(x),
        lambda x: CosineNeighbors().fit(x),
        lambda x: KNeighborsClassifier().fit(x, np.arange(len(x)) % 2),
        BallTree,
        KDTree,
    ],
)
def test_what_was_fitted_is_fitted_again(rows, fitted):
    mine = CosineNeighbors(n_neighbors=3).fit(fitted(rows[:50]))
    for a, b in zip(mine.kneighbors(), both(rows[:50], n_neighbors=3)[1].kneighbors(), strict=True):
        assert_same(a, b)
    exact = NearestNeighbors(metric="cosine", n_neighbors=3).fit(mine)
    assert_same(exact.kneighbors()[1], mine.kneighbors()[1])


def test_a_classifier_of_precomputed_neighbours(rows):
    labels = np.arange(1500) % 3
    near = CosineNeighbors(n_neighbors=5).fit(rows)
    graph, queries = (near.kneighbors_graph(x, mode="distance") for x in (rows, rows[:99] * 2))
    mine = KNeighborsClassifier(5, metric="precomputed").fit(graph, labels)
    exact = KNeighborsClassifier(5, metric="cosine", algorithm="brute").fit(rows, labels)
    assert np.array_equal(mine.predict(queries), exact.predict(rows[:99]))


def test_rows_that_are_changed_after_fitting_change_nothing(rows):
    given = rows[:50].copy()
    mine = CosineNeighbors(n_neighbors=3, radius=0.5).fit(given)
    wanted = mine.kneighbors()[1], np.concatenate(mine.radius_neighbors()[1])
    given[:] = given[::-1].copy()
    assert np.array_equal(mine.kneighbors()[1], wanted[0])
    assert np.array_equal(np.concatenate(mine.radius_neighbors()[1]), wanted[1])


def test_zero_rows():
    mine, exact = both(np.array([[0.0, 0.0], [1.0, 0.0], [0.0, 2.0]]), n_neighbors=2)
    for a, b in zip(mine.kneighbors(), exact.kneighbors(), strict=True):
        assert_same(np.sort(a), np.sort(b))
    assert mine.kneighbors([[0.0, 0.0]])[0].tolist() == [[1.0, 1.0]]


def both(rows, **options):
    exact = NearestNeighbors(metric="cosine", algorithm="brute", **options).fit(rows)
    return CosineNeighbors(**options).fit(rows), exact


def assert_same(mine, exact, tolerance=1e-12):
    assert (type(mine), mine.shape, mine.dtype) == (type(exact), exact.shape, exact.dtype)
    if mine.dtype == object:
        for a, b in zip(mine, exact, strict=True):
            np.testing.assert_allclose(a, b, atol=tolerance)
    else:
        np.testing.assert_allclose(mine, exact, atol=tolerance)


@pytest.mark.parametrize("given", [True, False])
def test_neighbours_are_theirs(rows, given):
    queries = rows[::7] * 2 if given else None
    mine, exact = both(rows, n_neighbors=9)
    for a, b in zip(mine.kneighbors(queries), exact.kneighbors(queries), strict=True):
        assert_same(a, b)
    assert_same(
        mine.kneighbors(queries, 3, return_distance=False),
        exact.kneighbors(queries, 3, return_distance=False),
    )


@pytest.mark.parametrize("given", [True, False])
@pytest.mark.parametrize("in_order", [True, False])
def test_neighbours_in_a_radius_are_theirs(rows, given, in_order):
    queries = rows[::7] * 2 if given else None
    mine, exact = both(rows, radius=0.4)
    found = [one.radius_neighbors(queries, sort_results=in_order) for one in (mine, exact)]
    for a, b in zip(*found, strict=True):
        assert_same(a, b)
    assert_same(
        mine.radius_neighbors(queries, 0.5, return_distance=False),
        exact.radius_neighbors(queries, 0.5, return_distance=False),
    )


@pytest.mark.parametrize("mode", ["connectivity", "distance"])
@pytest.mark.parametrize("given", [True, False])
def test_graphs_are_theirs(rows, mode, given):
    queries = rows[::7] if given else None
    mine, exact = both(rows, n_neighbors=4, radius=0.4)
    for graph in ("kneighbors_graph", "radius_neighbors_graph"):
        a, b = (getattr(one, graph)(queries, mode=mode) for one in (mine, exact))
        assert type(a) is type(b)
        assert a.shape == b.shape
        np.testing.assert_allclose(a.toarray(), b.toarray(), atol=1e-12)


def test_float32_rows_have_float32_distances(rows):
    mine, exact = both(rows.astype("f"), n_neighbors=3)
    for a, b in zip(mine.kneighbors(), exact.kneighbors(), strict=True):
        assert_same(a, b, tolerance=1e-6)


@pytest.mark.parametrize("kind", [sparse.csr_matrix, sparse.csr_array])
def test_sparse_rows_and_queries(rows, kind):
    few = np.where(rows > 0.03, rows, 0)
    expected = CosineNeighbors().fit(few).kneighbors(few[:9])
    found = CosineNeighbors().fit(kind(few)).kneighbors(kind(few[:9]))
    for a, b in zip(found, expected, strict=True):
        assert np.array_equal(a, b)


def test_copies_of_a_row_are_neighbours_but_the_row_itself_is_not():
    near = CosineNeighbors(n_neighbors=2).fit(np.ones((5, 3)))
    rows = near.kneighbors(return_distance=False)
    assert rows.tolist() == [[1, 2], [0, 2], [0, 1], [0, 1], [0, 1]]
    assert [len(of) for of in near.radius_neighbors(radius=1e-9)[1]] == [4] * 5


@pytest.mark.parametrize("eps", [0.4, 0.45])
def test_clusters_of_a_pipeline_are_theirs(rows, eps):
    expected = DBSCAN(eps=eps, min_samples=4, metric="cosine").fit_predict(rows)
    assert len(set(expected)) > 2
    given = CosineNeighbors(radius=eps).fit(rows).radius_neighbors_graph(mode="distance")
    clusters = DBSCAN(eps=eps, min_samples=4, metric="precomputed")
    assert np.array_equal(clusters.fit_predict(given), expected)
    pipe = make_pipeline(CosineNeighbors(radius=eps), clone(clusters))
    assert np.array_equal(pipe.fit_predict(rows), expected)


def test_the_last_step_of_a_pipeline(rows):
    pipe = make_pipeline(MaxAbsScaler(), CosineNeighbors(n_neighbors=3)).fit(rows)
    found = pipe[-1].kneighbors(pipe[:-1].transform(rows[:5]), return_distance=False)
    assert found[:, 0].tolist() == [0, 1, 2, 3, 4]
    pipe.set_params(cosineneighbors__n_neighbors=np.int64(2)).fit(rows)
    assert pipe[-1].kneighbors()[1].shape == (1500, 2)


@pytest.mark.parametrize(
    ("call", "error", "message"),
    [
        (lambda near: near.kneighbors(n_neighbors=5), ValueError, "Expected n_neighbors <= 4"),
        (lambda near: near.kneighbors(np.eye(5), 6), ValueError, "Expected n_neighbors <= 5"),
        (lambda near: near.kneighbors(n_neighbors=0), ValueError, "n_neighbors >= 1, got 0"),
        (lambda near: near.kneighbors(n_neighbors=1.5), TypeError, "n_neighbors to be an int"),
        (lambda near: near.kneighbors(np.eye(4)), ValueError, "expecting 5 features"),
        (lambda near: near.kneighbors([[np.nan] * 5]), ValueError, "NaN"),
        (lambda near: near.radius_neighbors(radius=-1), ValueError, "radius >= 0, got -1"),
        (
            lambda near: near.radius_neighbors(return_distance=False, sort_results=True),
            ValueError,
            "return_distance must be True",
        ),
        (lambda near: near.radius_neighbors_graph(mode="x"), ValueError, "mode"),
        (
            lambda _: CosineNeighbors(metric="euclidean").fit(np.eye(3)),
            ValueError,
            "metric='cosine'",
        ),
        (lambda _: CosineNeighbors(algorithm="kd_tree").fit(np.eye(3)), ValueError, "'kd_tree'"),
        (lambda _: CosineNeighbors(algorithm="x").fit(np.eye(3)), ValueError, "'algorithm' param"),
        (lambda _: CosineNeighbors(metric_params={"w": 1}).fit(np.eye(3)), ValueError, "no metric"),
        (lambda _: CosineNeighbors(radius=-1).fit(np.eye(3)), ValueError, "'radius' parameter"),
        (lambda _: CosineNeighbors().fit(NearestNeighbors()), ValueError, "not fitted yet"),
        (lambda _: CosineNeighbors(n_neighbors=0).fit(np.eye(3)), ValueError, "n_neighbors >= 1"),
        (lambda _: CosineNeighbors().fit([["a"]]), ValueError, "could not convert"),
        (lambda _: CosineNeighbors().kneighbors(np.eye(3)), ValueError, "not fitted yet"),
        (lambda _: cosine_similarity(np.eye(3), np.eye(2)), ValueError, "Incompatible dimension"),
        (lambda _: cosine_similarity([[np.nan]]), ValueError, "NaN"),
    ],
)
def test_mistakes(call, error, message):
    near = CosineNeighbors().fit(np.eye(5))
    with pytest.raises(error, match=message):
        call(near)
