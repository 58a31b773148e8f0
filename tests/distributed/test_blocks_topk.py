"""Top-k in blocks: merged, it has the bits of `topk`, however rows and queries are cut."""

import numpy as np
import pytest
import torch
from hypothesis import given, settings
from hypothesis import strategies as st

from cossim_fast import topk
from cossim_fast.distributed import neighbours
from cossim_fast.retrieval import tuning
from cossim_fast.retrieval.nearest import batches
from cossim_fast.retrieval.storage import corpus as corpus_module
from search_data import CORPORA, make
from split_rows import SplitRows, ranges, same_bits

DTYPES = [torch.float16, torch.bfloat16, torch.float32, torch.float64, torch.int8, torch.uint8]


@pytest.fixture
def small_parts(monkeypatch, int8_product):
    """Codes for few queries, in small tiles and segments: every seam in a small corpus."""
    monkeypatch.setattr(tuning, "CODING_PAYS", 0)
    monkeypatch.setattr(tuning, "LONGEST_TILE", 64)
    monkeypatch.setattr(tuning, "MOST_QUERIES", 5)
    monkeypatch.setattr(corpus_module, "block_rows", lambda d: 256)


def in_blocks(queries, corpus, k, spans, groups, *, floors, cuts=(), order=None, screen="auto"):
    """Search block by block, merge, and round: scores and rows, as `topk` returns them."""
    asked, rows = SplitRows(queries, cuts), SplitRows(corpus, cuts)
    found = []
    for group in groups:
        so_far = None
        for number in range(len(spans)) if order is None else order:
            known = neighbours.floors_of(so_far) if floors and so_far else None
            part = neighbours.search_block(
                asked, group, rows, spans[number], k, known, screen=screen
            )
            so_far = neighbours.merge([so_far, part]) if so_far else part
        found.append(so_far)
    scores = np.concatenate([one.scores for one in found])
    numbers = np.concatenate([one.rows for one in found])
    double = torch.float64 in (queries.dtype, corpus.dtype)
    rounded = neighbours.rounded(neighbours.Nearest(scores, numbers), double=double)
    return tuple(map(torch.from_numpy, rounded))


def assert_same(found, expected):
    assert torch.equal(found[1], expected.indices)
    assert same_bits(found[0].nan_to_num(-9), expected.scores.nan_to_num(-9))


@pytest.mark.parametrize("floors", [False, True])
@pytest.mark.parametrize("kind", CORPORA)
def test_every_kind_of_rows(kind, floors, small_parts):
    queries, corpus = make(kind, 1500, 24, 12, torch.float32)
    queries[3] = torch.nan
    queries[4] = 0
    expected = topk(queries, corpus, 7)
    spans = ranges(1500, (0, 1, 64, 65, 700, 1200))
    found = in_blocks(queries, corpus, 7, spans, [(0, 5), (5, 12)], floors=floors, cuts=(90, 333))
    assert_same(found, expected)


@pytest.mark.parametrize("dtype", DTYPES, ids=str)
def test_every_dtype(dtype, small_parts):
    queries, corpus = make("clustered", 900, 40, 9, torch.float32)
    if dtype in (torch.int8, torch.uint8):
        least = -127 if dtype == torch.int8 else 0
        queries, corpus = ((20 * rows).round().clamp(least, 127) for rows in (queries, corpus))
    queries, corpus = queries.to(dtype), corpus.to(dtype)
    found = in_blocks(queries, corpus, 10, ranges(900, (300, 301)), [(0, 9)], floors=True)
    assert_same(found, topk(queries, corpus, 10))


def test_queries_of_another_dtype():
    queries, corpus = make("gaussian", 300, 8, 5, torch.float32)
    found = in_blocks(queries.double(), corpus, 4, ranges(300, (100,)), [(0, 5)], floors=True)
    assert_same(found, topk(queries.double(), corpus, 4))


@settings(max_examples=40)
@given(data=st.data())
def test_any_cuts_and_any_order(small_parts, data):
    n = data.draw(st.integers(1, 700))
    kind = data.draw(st.sampled_from(["duplicates", "gaussian", "holes", "near", "clustered"]))
    dtype = data.draw(st.sampled_from([torch.float16, torch.float32, torch.float64]))
    queries, corpus = make(kind, n, 12, 6, dtype)
    k = data.draw(st.integers(1, min(n, 40)))
    spans = ranges(n, data.draw(st.lists(st.integers(0, n), max_size=6)))
    order = data.draw(st.permutations(range(len(spans))))
    groups = ranges(6, data.draw(st.lists(st.integers(0, 6), max_size=2)))
    cuts = tuple(data.draw(st.lists(st.integers(0, n), max_size=5)))
    screen = data.draw(st.sampled_from(["auto", "float32", "int8"]))
    floors = data.draw(st.booleans())
    found = in_blocks(
        queries, corpus, k, spans, groups, floors=floors, cuts=cuts, order=order, screen=screen
    )
    assert_same(found, topk(queries, corpus, k))


def test_scaled_copies_are_ordered_by_scores_that_were_not_rounded(small_parts):
    """Their scores differ by less than float32 can tell, so that a rounded merge is wrong."""
    draw = torch.Generator().manual_seed(0)
    base = torch.randn(1, 64, generator=draw, dtype=torch.float64)
    corpus = base * (0.5 + torch.rand(600, 1, generator=draw, dtype=torch.float64))
    corpus = corpus.float()
    queries = base.float() + 0.1 * torch.randn(50, 64, generator=draw)
    expected = topk(queries, corpus, 5)
    spans = ranges(600, (100, 350))
    assert_same(in_blocks(queries, corpus, 5, spans, [(0, 50)], floors=True), expected)
    rows = SplitRows(corpus)
    parts = [neighbours.search_block(SplitRows(queries), (0, 50), rows, span, 5) for span in spans]
    narrow = [neighbours.Nearest(part.scores.astype(np.float32), part.rows) for part in parts]
    wrong = (torch.from_numpy(neighbours.merge(narrow).rows) != expected.indices).any(1)
    assert wrong.sum() > 25


@pytest.mark.parametrize("kind", ["gaussian", "holes", "duplicates"])
def test_k_beyond_the_rows_of_a_block_and_of_the_corpus(kind):
    """Of so few rows all are ranked at once, where there are queries enough."""
    queries, corpus = make(kind, 130, 40, 80, torch.float32)
    queries[7] = torch.nan
    spans, groups = ranges(130, (1, 64, 65)), [(0, 9), (9, 80)]
    found = in_blocks(queries, corpus, 100, spans, groups, floors=True)
    assert_same(found, topk(queries, corpus, 100))
    scores, rows = in_blocks(queries, corpus, 200, spans, groups, floors=True)
    assert bool((rows[:, 130:] == -1).all())
    assert bool(scores[:, 130:].isnan().all())
    assert torch.equal(rows[:, :130], topk(queries, corpus, 130).indices)


def test_no_rows_and_no_queries():
    some, none = SplitRows(torch.ones(3, 5)), SplitRows(torch.ones(0, 5))
    found = neighbours.search_block(some, (0, 3), none, (0, 0), 2)
    assert (found.rows == -1).all()
    assert np.isnan(found.scores).all()
    assert found.rows.shape == (3, 2)
    assert neighbours.search_block(none, (0, 0), some, (0, 3), 2).rows.shape == (0, 2)


@pytest.mark.parametrize("seen", [0, 10, 10**6])
def test_rows_that_score_as_much_as_a_floor_are_found(seen, small_parts):
    """Of equal scores the smaller row wins, and a block of smaller rows may come later."""
    corpus = torch.eye(8).repeat(50, 1)
    queries = torch.eye(8)[:3]
    late = neighbours.search_block(SplitRows(queries), (0, 3), SplitRows(corpus), (200, 400), 6)
    early = neighbours.search_block(
        SplitRows(queries), (0, 3), SplitRows(corpus), (0, 200), 6,
        late.scores[:, -1], seen=seen,
    )  # fmt: skip
    expected = topk(queries, corpus, 6)
    assert torch.equal(torch.from_numpy(neighbours.merge([late, early]).rows), expected.indices)


def test_a_floor_is_reached_on_another_processor_too():
    found = neighbours.Nearest(np.array([[0.5, 0.25], [0.5, np.nan]]), np.array([[3, 4], [5, -1]]))
    floors = neighbours.floors_of(found)
    assert 0.25 - 2.0**-46 < floors[0] < 0.25 - 2.0**-48
    assert floors[1] == -np.inf


def test_floors_leave_out_rows_that_cannot_be_among_the_best(small_parts):
    queries, corpus = make("gaussian", 3000, 16, 8, torch.float32)
    asked, rows = SplitRows(queries), SplitRows(corpus)
    first = neighbours.search_block(asked, (0, 8), rows, (0, 1500), 10)
    floors = neighbours.floors_of(first)
    later = neighbours.search_block(asked, (0, 8), rows, (1500, 3000), 10, floors)
    assert (later.rows == -1).any()
    assert not (later.scores < floors[:, None] - 1e-6).any()


def test_no_threshold_is_guessed_above_a_floor(monkeypatch, int8_product):
    """The guess would be refuted, and the queries searched again: fewer than k rows are left."""

    def again(self, failed, *rest, **named):
        raise AssertionError(f"{len(failed)} queries are searched again")

    monkeypatch.setattr(batches.Search, "_repeat", again)
    queries, corpus = make("gaussian", 24000, 8, 64, torch.float32)
    asked, rows = SplitRows(queries), SplitRows(corpus)
    so_far = neighbours.search_block(asked, (0, 64), rows, (0, 6000), 100)
    for start in (6000, 12000, 18000):
        floors = neighbours.floors_of(so_far)
        part = neighbours.search_block(
            asked, (0, 64), rows, (start, start + 6000), 100, floors, seen=start
        )
        so_far = neighbours.merge([so_far, part])
    assert torch.equal(torch.from_numpy(so_far.rows), topk(queries, corpus, 100).indices)


def test_a_file_with_fewer_rows_than_it_had_is_refused():
    short = SplitRows(torch.ones(5, 3))
    with pytest.raises(ValueError, match="expected rows 0 to 9, got 5 rows"):
        neighbours.search_block(short, (0, 5), short, (0, 9), 2)
