"""The adapter for FAISS, against float64; `tests/adapters` puts it beside FAISS itself."""

import numpy as np
import pytest
import torch

from cossim_fast.integrations.faiss import IndexFlatCosine, knn

LEAST = np.finfo(np.float32).min


def cosines(a, b):
    a, b = np.asarray(a, np.float64), np.asarray(b, np.float64)
    return (a / np.linalg.norm(a, axis=1)[:, None]) @ (b / np.linalg.norm(b, axis=1)[:, None]).T


@pytest.fixture
def rows():
    return np.random.default_rng(0).standard_normal((500, 24)).astype("f")


@pytest.fixture
def index(rows):
    index = IndexFlatCosine(24)
    index.add(rows[:300])
    index.add(rows[300:])
    return index


def test_it_holds_what_was_added(index, rows):
    assert (index.ntotal, index.d, index.is_trained, index.metric_type) == (500, 24, True, 0)
    assert np.array_equal(index.reconstruct(301), rows[301])
    assert np.array_equal(index.reconstruct_n(298, 4), rows[298:302])
    assert np.array_equal(index.reconstruct_n(), rows)
    assert repr(index) == "IndexFlatCosine(500 rows of 24)"


def test_search(index, rows):
    scores, found = index.search(rows[:40] * 3, 7)
    assert (scores.dtype, found.dtype) == (np.float32, np.int64)
    exact = cosines(rows[:40], rows)
    best = np.argsort(-exact, axis=1)[:, :7]
    assert np.array_equal(found, best)
    np.testing.assert_allclose(scores, np.take_along_axis(exact, best, 1), atol=1e-7)


@pytest.mark.parametrize("threshold", [0.4, 0.0, -0.99, -5.0])
def test_range_search(index, rows, threshold):
    lims, scores, found = index.range_search(rows[:40], threshold)
    assert (lims.dtype, scores.dtype, found.dtype) == (np.uint64, np.float32, np.int64)
    exact = cosines(rows[:40], rows)
    query, row = (exact > threshold).nonzero()
    assert np.array_equal(np.diff(lims), np.bincount(query, minlength=40))
    assert np.array_equal(found, row)
    np.testing.assert_allclose(scores, exact[query, row], atol=1e-7)


def test_a_cosine_equal_to_the_threshold_is_not_above_it():
    index = IndexFlatCosine(2)
    index.add([[1.0, 0.0], [0.0, 1.0]])
    assert index.range_search([[0.0, 2.0]], 1.0)[0].tolist() == [0, 0]
    assert index.range_search([[0.0, 2.0]], 0.0)[2].tolist() == [1]
    assert index.range_search([[0.0, 2.0]], np.nextafter(0, -1))[2].tolist() == [0, 1]
    assert index.range_search([[0.0, 2.0]], 7)[0].tolist() == [0, 0]


def test_rows_that_are_removed_leave_no_gap(index, rows):
    assert index.remove_ids(np.array([0, 7, 7, 499, 800, -3])) == 3
    left = np.delete(rows, [0, 7, 499], axis=0)
    assert np.array_equal(index.reconstruct_n(), left)
    assert index.search(left, 1)[1][:, 0].tolist() == list(range(497))
    index.add(rows[:1])
    assert index.search(rows[:1], 1)[1].tolist() == [[497]]
    assert index.range_search(rows[:1], 0.999)[2].tolist() == [497]
    assert index.remove_ids([9999]) == 0


def test_fewer_rows_than_asked_for():
    index = IndexFlatCosine(3)
    assert [x.tolist() for x in index.search(np.eye(3)[:1], 2)] == [[[LEAST] * 2], [[-1, -1]]]
    assert [len(x) for x in index.range_search(np.eye(3), 0.5)] == [4, 0, 0]
    index.add(torch.eye(3))
    index.add([[np.nan] * 3])
    scores, found = index.search(np.vstack([np.eye(3)[:1], [[np.nan] * 3]]), 5)
    assert found.tolist() == [[0, 1, 2, -1, -1], [-1] * 5]
    assert scores.tolist() == [[1, 0, 0, LEAST, LEAST], [LEAST] * 5]


def test_reset(index, rows):
    index.reset()
    assert index.ntotal == 0
    index.add(rows[:2])
    assert index.search(rows[1:2], 1)[1].tolist() == [[1]]


def test_the_index_does_not_change_with_the_caller_s_rows(index, rows):
    before = rows.copy()
    rows[:] = 0
    assert np.array_equal(index.reconstruct_n(), before)
    assert index.search(before[:5], 1)[1][:, 0].tolist() == [0, 1, 2, 3, 4]
    index.reconstruct(0)[:] = 0
    index.reconstruct_n()[:] = 0
    assert np.array_equal(index.reconstruct_n(), before)


@pytest.mark.parametrize(
    ("call", "error", "message"),
    [
        (lambda _: IndexFlatCosine(0), ValueError, "d >= 1, got 0"),
        (lambda index: index.add(np.eye(3)), ValueError, r"\(n, 24\), got \(3, 3\)"),
        (lambda index: index.add(np.ones(24)), ValueError, r"\(n, 24\), got \(24,\)"),
        (lambda index: index.add("text"), TypeError, "array of numbers"),
        (lambda index: index.search(np.eye(24), 0), ValueError, "k >= 1, got 0"),
        (lambda index: index.search(np.eye(3), 1), ValueError, r"\(n, 24\)"),
        (lambda index: index.search(np.eye(24), -5), AssertionError, "k >= 1, got -5"),
        (lambda index: index.search(np.eye(24), 1.5), TypeError, "k to be an int"),
        (lambda index: index.search(np.eye(24), 2, D=np.ones((24, 2))), ValueError, "D to be an"),
        (lambda index: index.assign(np.eye(24), 2, np.ones((24, 2))), AssertionError, "I to be an"),
        (lambda index: index.add_with_ids(np.eye(24), range(24)), RuntimeError, "not implemented"),
        (lambda index: index.train(np.eye(3)), AssertionError, r"\(n, 24\), got \(3, 3\)"),
        (lambda index: index.reconstruct_batch([3, -1]), RuntimeError, "from 0 to 499, got -1"),
        (lambda index: index.merge_from(IndexFlatCosine(3)), RuntimeError, "d = 24.*got d = 3"),
        (lambda index: index.merge_from(index), RuntimeError, "another index"),
        (lambda _: knn(np.eye(3), np.eye(3), 1, metric=1), ValueError, "metric to be 0"),
        (lambda index: index.reconstruct(500), RuntimeError, "from 0 to 499, got 500"),
        (lambda index: index.reconstruct(-1), RuntimeError, "from 0 to 499, got -1"),
        (lambda index: index.reconstruct_n(499, 2), RuntimeError, "499 to 501"),
        (lambda index: index.remove_ids(["a"]), TypeError, "whole numbers"),
    ],
)
def test_mistakes(index, call, error, message):
    with pytest.raises(error, match=message):
        call(index)
    assert index.ntotal == 500


class Selector:
    """As FAISS's: says of each number whether it has it."""

    def __init__(self, numbers):
        self.is_member = set(numbers).__contains__


class Parameters:
    def __init__(self, sel):
        self.sel = sel


@pytest.mark.parametrize("numbers", [range(0, 500, 3), [7], [], range(500), [499, 9999]])
def test_a_search_among_selected_rows(index, rows, numbers):
    params, exact = Parameters(Selector(numbers)), cosines(rows[:9], rows)
    exact[:, np.setdiff1d(np.arange(500), list(numbers))] = -2
    scores, found = index.search(rows[:9], 4, params=params)
    most = min(4, int((exact[0] > -2).sum()))
    best = np.argsort(-exact, axis=1)[:, :most]
    assert np.array_equal(found[:, :most], best)
    assert (found[:, most:] == -1).all()
    assert (scores[:, most:] == LEAST).all()
    lims, _, reached = index.range_search(rows[:9], 0.2, params=params)
    query, row = (exact > 0.2).nonzero()
    assert np.array_equal(reached, row)
    assert np.array_equal(np.diff(lims), np.bincount(query, minlength=9))
    assert np.array_equal(index.search(rows[:9], 4, params=Parameters(None))[1][:, 0], range(9))


def test_selected_rows_are_removed(index, rows):
    assert index.remove_ids(Selector([3, 5, 900])) == 2
    assert np.array_equal(index.reconstruct_n(), np.delete(rows, [3, 5], axis=0))


def test_arrays_that_are_given_are_written_to(index, rows):
    scores, found = index.search(rows[:5], 3)
    given = np.empty((5, 3), "f"), np.empty((5, 3), "i8"), np.empty((5, 3, 24), "f")
    for a, b in zip(index.search(rows[:5], 3, D=given[0], I=given[1]), given, strict=False):
        assert a is b
    assert np.array_equal(given[0], scores)
    assert np.array_equal(given[1], found)
    assert np.array_equal(index.assign(rows[:5], 3), found)
    assert index.search_and_reconstruct(rows[:5], 3, R=given[2])[2] is given[2]
    assert np.array_equal(given[2], rows[found])
    one, some = np.empty(24, "f"), np.empty((2, 24), "f")
    assert index.reconstruct(4, one) is one
    assert index.reconstruct_n(4, 2, some) is some
    assert np.array_equal(some, rows[4:6])
    assert index.reconstruct_batch(np.array([9, 2, 9]), None).tolist() == rows[[9, 2, 9]].tolist()
    assert np.array_equal(index.get_xb(), rows)
    assert not index.get_xb().flags.writeable
    none = IndexFlatCosine(3).search_and_reconstruct(np.eye(3), 1)
    assert np.isnan(none[2]).all()


def test_rows_of_another_index_are_moved(index, rows):
    other = IndexFlatCosine(24)
    index.train(rows)
    other.add(rows[:7] * 2)
    index.merge_from(other)
    assert (index.ntotal, other.ntotal, index.code_size) == (507, 0, 96)
    assert index.search(rows[:7], 2)[1].tolist() == [[i, 500 + i] for i in range(7)]


def test_nothing_is_above_nan(index, rows):
    assert index.range_search(rows[:3], np.nan)[0].tolist() == [0] * 4


def test_knn(index, rows):
    for a, b in zip(knn(rows[:5], rows, 3), index.search(rows[:5], 3), strict=True):
        assert np.array_equal(a, b)
