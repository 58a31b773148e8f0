"""Joins in blocks: put together, they have the bits of `pairs_above`, however rows are cut."""

import pickle

import numpy as np
import pytest
import torch
from hypothesis import given, settings
from hypothesis import strategies as st

from cossim_fast import pairs_above
from cossim_fast.distributed.pairs import join_block
from cossim_fast.retrieval import Pairs, TooManyPairsError, tuning
from cossim_fast.retrieval.storage import corpus as corpus_module
from search_data import CORPORA, make
from split_rows import SplitRows, ranges

DTYPES = [torch.float16, torch.bfloat16, torch.float32, torch.float64, torch.int8]


@pytest.fixture
def small_parts(monkeypatch):
    """Segments of 128 rows, rounds of few queries."""
    monkeypatch.setattr(corpus_module, "block_rows", lambda d: 128)
    monkeypatch.setattr(tuning, "FIRST_ROUND", 16)
    monkeypatch.setattr(tuning, "LONGEST_ROUND", 64)
    monkeypatch.setattr(tuning, "ROUND_PAIRS", 4000)


def put_together(found):
    """All pairs, sorted by i, then j."""
    i, j, scores = (np.concatenate(columns) for columns in zip(*found, strict=True))
    order = np.lexsort((j, i))
    return Pairs(i[order], j[order], scores[order])


def self_join(x, threshold, spans, cuts=(), **rest):
    """The triangle of blocks, last block first."""
    rows = SplitRows(x, cuts)
    blocks = [
        join_block(rows, spans[a], rows, spans[b], threshold, True, **rest)
        for a in range(len(spans))
        for b in range(a, len(spans))
    ]
    for found in blocks:
        assert np.array_equal(np.lexsort((found.j, found.i)), np.arange(len(found.i)))
    return put_together(blocks[::-1])


def assert_same(found, expected):
    for name in Pairs._fields:
        got, wanted = getattr(found, name), getattr(expected, name).numpy()
        assert got.dtype == wanted.dtype
        assert got.tobytes() == wanted.tobytes(), name


@pytest.mark.parametrize("threshold", [0.99, 0.0])
@pytest.mark.parametrize("kind", CORPORA)
def test_every_kind_of_rows(kind, threshold, small_parts):
    _, x = make(kind, 260, 24, 4, torch.float32)
    found = self_join(x, threshold, ranges(260, (0, 1, 130, 200)), cuts=(50, 133))
    assert_same(found, pairs_above(x, threshold=threshold))


@pytest.mark.parametrize("dtype", DTYPES, ids=str)
def test_every_dtype_and_two_sets(dtype, small_parts):
    y, x = make("clustered", 500, 20, 90, torch.float32)
    x, y = ((20 * rows).round().clamp(-127, 127).to(dtype) for rows in (x, y))
    assert_same(self_join(x, 0.7, ranges(500, (200, 201))), pairs_above(x, threshold=0.7))
    asked, rows = SplitRows(y, (30,)), SplitRows(x, (7, 450))
    blocks = [
        join_block(asked, some, rows, others, 0.5, False)
        for some in ranges(90, (40,))
        for others in ranges(500, (100, 300))
    ]
    assert_same(put_together(blocks), pairs_above(y, x, 0.5))


def test_two_dtypes():
    y, x = make("clustered", 200, 20, 50, torch.float32)
    found = join_block(SplitRows(y), (0, 50), SplitRows(x.double()), (0, 200), 0.5, False)
    assert_same(found, pairs_above(y, x.double(), 0.5))


@settings(max_examples=20)
@given(data=st.data())
def test_any_cuts(small_parts, data):
    n = data.draw(st.integers(1, 250))
    kind = data.draw(st.sampled_from(["duplicates", "gaussian", "holes", "clustered"]))
    dtype = data.draw(st.sampled_from([torch.float16, torch.float32, torch.float64]))
    _, x = make(kind, n, 10, 4, dtype)
    threshold = data.draw(st.sampled_from([1.0, 0.9, 0.6, -0.2]))
    spans = ranges(n, data.draw(st.lists(st.integers(0, n), max_size=5)))
    cuts = tuple(data.draw(st.lists(st.integers(0, n), max_size=5)))
    assert_same(self_join(x, threshold, spans, cuts), pairs_above(x, threshold=threshold))


def test_rows_that_are_left_out(small_parts):
    _, x = make("clustered", 300, 10, 4, torch.float32)
    without = np.array([0, 5, 6, 99, 100, 150, 299])
    found = self_join(x, 0.6, ranges(300, (100, 200)), cuts=(30,), without=without)
    expected = pairs_above(x, threshold=0.6)
    kept = ~(np.isin(expected.i, without) | np.isin(expected.j, without))
    assert not kept.all()
    assert_same(found, Pairs(*(column[torch.from_numpy(kept)] for column in expected)))


def test_too_many_pairs_in_a_block_are_an_error_that_travels(small_parts):
    rows = SplitRows(torch.ones(300, 4))
    every = 100 * 200
    found = join_block(rows, (0, 100), rows, (100, 300), 0.9, True, every)
    assert len(found.i) == every
    with pytest.raises(TooManyPairsError, match="in one block of the join") as caught:
        join_block(rows, (0, 100), rows, (100, 300), 0.9, True, every - 1)
    again = pickle.loads(pickle.dumps(caught.value))
    assert str(again) == str(caught.value)
    assert (again.found, again.suggested) == (caught.value.found, caught.value.suggested)
    assert again.found >= every


def test_ranges_that_overlap_are_refused():
    rows = SplitRows(torch.ones(10, 4))
    with pytest.raises(ValueError, match="expected x_range before y_range"):
        join_block(rows, (0, 6), rows, (5, 10), 0.9, True)


def test_empty_ranges():
    rows = SplitRows(torch.ones(10, 4).double())
    for some, others in [((0, 0), (0, 10)), ((0, 5), (5, 5)), ((3, 3), (3, 3))]:
        found = join_block(rows, some, rows, others, 0.9, True)
        assert found.i.dtype == np.int64
        assert found.scores.dtype == np.float64
        assert not len(found.i)


def test_fewer_rows_than_were_listed_are_refused():
    rows = SplitRows(torch.ones(5, 4))
    with pytest.raises(ValueError, match="expected 4 rows, got 3"):
        join_block(rows, (2, 6), SplitRows(torch.ones(9, 4)), (0, 9), 0.9, False)
