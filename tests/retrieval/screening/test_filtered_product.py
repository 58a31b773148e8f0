"""What a filtered product lets through, and its bounds, pair by pair, against float64."""

import numpy as np
import pytest
import torch

import arithmetic as models
from cossim_fast import CosineIndex, _reference, topk
from cossim_fast._score.exact import widen
from cossim_fast.retrieval import tuning
from cossim_fast.retrieval.nearest.hits import Hits
from cossim_fast.retrieval.nearest.pool import Pool
from cossim_fast.retrieval.screening import codes, int8, screens
from cossim_fast.retrieval.screening.filtered_product import FilteredProduct, passed
from search_data import CORPORA, make

pytestmark = models.every_processor

LOST = 2.0**-45  # what the reference rounds


class Emitted(Pool):
    """A pool that keeps what it is given as it is."""

    def __init__(self, queries):
        super().__init__(queries, 1)
        self.given = []

    def add(self, *columns):
        self.given.append([torch.from_numpy(column) for column in columns])


def filter_of(queries, segment, centre):
    terms = screens.Int8Screen(models.limit()).queries(widen(queries), centre)
    return FilteredProduct(terms, segment)


def filtered(queries, segment, centre, threshold):
    """The values of all rows."""
    return aimed(filter_of(queries, segment, centre), threshold, slice(0, len(segment)))


def aimed(made, threshold, rows):
    made.aim(threshold)
    assert made.suits(rows)
    return made.tile(rows)


@pytest.mark.parametrize("d", [1, 3, 64, 100, 384, 2048])
@pytest.mark.parametrize("kind", CORPORA)
def test_all_that_reaches_a_threshold_passes_with_true_bounds(kind, d, processor):
    dtype = torch.float64 if kind == "near" else torch.float32
    queries, corpus = make(kind, 200, d, 12, dtype)
    exact = _reference.pairwise_cosine(corpus, queries, eps=0.0).nan_to_num(0.0)
    finite = corpus.isfinite().all(1)
    centre = codes.centre_of(corpus)
    segment = codes.encode(corpus, centre, first=1000)
    made, whole = filter_of(queries, segment, centre), slice(0, len(segment))
    if segment.scale.min() < segment.scale.max():
        assert d < 64 or kind not in ("gaussian", "cone", "near")
        assert not made.suits(whole)
        return
    for share in (0.0, 0.5, 0.95):
        threshold = exact[finite].quantile(share, dim=0) - LOST
        values = aimed(made, threshold, whole)
        values[len(corpus) :] = 0
        pool = Emitted(12)
        hits = Hits(made)
        count = hits.add(0, values)
        assert hits.count == count
        hits.move_to(pool)
        assert hits.count == 0
        ((query, position, upper, lower),) = pool.given
        row = position - 1000
        assert count == len(query) == len(set(zip(query.tolist(), row.tolist(), strict=True)))
        reached = torch.zeros(len(corpus), 12, dtype=torch.bool)
        reached[row, query] = True
        assert torch.equal(reached, values[: len(corpus), :12] > 0)
        assert not values[:, 12:].any()
        assert bool(reached[finite][(exact >= threshold)[finite]].all())
        seen = finite[row]
        score = exact[row, query]
        assert bool((score <= upper + LOST)[seen].all())
        assert bool((lower - LOST <= score)[seen].all())


@pytest.mark.parametrize("share", [0.0, 0.01, 0.5, 1.0])
def test_what_passed_is_found_where_it_is(share, processor):
    draw = torch.Generator().manual_seed(0)
    values = torch.randint(1, 256, (192, 37), generator=draw)
    values[torch.rand(values.shape, generator=draw) >= share] = 0
    place, value = passed(values.to(torch.uint8))
    assert np.array_equal(place, np.flatnonzero(values.numpy()))
    assert np.array_equal(value, values.numpy().reshape(-1)[place])


def test_tiles_of_one_aim_are_held_together(processor):
    queries, corpus = make("gaussian", 640, 64, 5, torch.float32)
    centre = torch.zeros(64)
    made = filter_of(queries, codes.encode(corpus, centre, first=7), centre)
    threshold = _reference.pairwise_cosine(corpus, queries, eps=0.0).quantile(0.9, dim=0)
    pools, hits = (Emitted(5), Emitted(5)), Hits(made)
    for rows in (slice(0, 256), slice(256, 640)):
        hits.add(rows.start, aimed(made, threshold, rows))
    hits.move_to(pools[0])
    hits.add(0, aimed(made, threshold, slice(0, 640)))
    hits.move_to(pools[1])
    for one, other in zip(*(pool.given[0] for pool in pools), strict=True):
        assert torch.equal(one, other)


def best_tenth_held(d, count):
    """Hits that may be in the best tenth of 640 rows, where that begins, and scores."""
    queries, corpus = make("gaussian", 640, d, count, torch.float32)
    centre = codes.centre_of(corpus)
    exact = _reference.pairwise_cosine(corpus, queries, eps=0.0)
    threshold = exact.quantile(0.9, dim=0)
    made = filter_of(queries, codes.encode(corpus, centre), centre)
    hits = Hits(made)
    hits.add(0, aimed(made, threshold, slice(0, 640)))
    return hits, threshold, exact


def test_bounds_are_those_of_the_codes_and_a_step(processor):
    hits, threshold, exact = best_tenth_held(384, 8)
    pool = Emitted(8)
    hits.move_to(pool)
    ((_, _, upper, lower),) = pool.given
    assert (upper - lower).max() < 0.08
    # Few pass that are not near the threshold.
    assert len(upper) < 3 * (exact >= threshold).sum()


def test_nothing_reaches_what_is_out_of_reach(processor):
    queries, corpus = make("gaussian", 128, 32, 3, torch.float32)
    queries[1] = torch.nan
    centre = codes.centre_of(corpus)
    threshold = torch.tensor([1.5, torch.inf, -1.0], dtype=torch.float64)
    values = filtered(queries, codes.encode(corpus, centre), centre, threshold)
    assert not values[:, :2].any()
    assert bool((values[:, 2] > 0).all())
    assert not values[:, 3:].any()


def test_the_block_that_is_coded_worst_counts(processor):
    queries, corpus = make("gaussian", 192, 64, 5, torch.float32)
    centre = torch.zeros(64)
    segment = codes.encode(corpus, centre)
    segment.codes[64:128] = 0  # so that all of these rows is missed
    segment.residual[1] = segment.radius[1]
    exact = _reference.pairwise_cosine(corpus, queries, eps=0.0)
    threshold = exact.quantile(0.8, dim=0) - LOST
    values = filtered(queries, segment, centre, threshold)
    assert bool((values[:, :5][exact >= threshold] > 0).all())


def test_blocks_of_unlike_scales_are_not_filtered(processor):
    queries, corpus = make("gaussian", 256, 32, 3, torch.float32)
    corpus[70] = torch.eye(32)[5]
    centre = torch.zeros(32)
    segment = codes.encode(corpus, centre)
    assert segment.scale[1] > segment.scale[0]
    assert segment.scale[0] == segment.scale[2] == segment.scale[3]
    made, threshold = filter_of(queries, segment, centre), torch.zeros(3).double()
    assert not made.suits(slice(64, 128))
    assert aimed(made, threshold, slice(128, 256)).shape == (128, int8.width(3))


@pytest.mark.parametrize("rank", [1, 3, 5, 10_000])
def test_what_is_held_raises_the_thresholds(rank, processor):
    hits, start, exact = best_tenth_held(64, 6)
    pool = Pool(6, 5)
    pool.threshold[:] = start
    pool.close(torch.arange(6) == 2)
    hits.move_to(pool, rank)
    assert torch.isinf(pool.threshold[2])
    pool.threshold[2] = start[2]
    if rank > 640:
        assert torch.equal(pool.threshold, start)
        return
    best = exact.sort(dim=0, descending=True).values
    raised = torch.arange(6) != 2
    assert (pool.threshold > start)[raised].all()
    if rank == 5:  # proven
        assert (pool.threshold <= best[4] + LOST).all()
    else:
        assert (pool.threshold <= best[rank - 1] + 0.02).all()
    pool.raise_thresholds(1, 640)  # takes in what was added
    given = torch.zeros(640, 6, dtype=torch.bool)
    given[pool.state()["row"], pool.state()["query"]] = True
    assert given[:, raised][(exact >= pool.threshold)[:, raised]].all()
    assert given.sum() < (exact >= start).sum()


def test_thresholds_rise_where_no_tile_suits(monkeypatch, processor):
    monkeypatch.setattr(tuning, "LONGEST_TILE", 512)
    queries, corpus = make("gaussian", 20_000, 32, 70, torch.float32)
    index = CosineIndex(corpus, screen="int8")
    filtered = index.explain(queries, 5)
    monkeypatch.setattr(FilteredProduct, "suits", lambda self, rows: False)
    assert index.explain(queries, 5).emitted < 1.5 * filtered.emitted
    assert torch.equal(index.search(queries, 5).indices, topk(queries, corpus, 5).indices)


@pytest.mark.parametrize(
    ("unsuited", "expected"),
    [
        ((), [(0, 640)]),
        ((3,), [(0, 192), (192, 256), (256, 640)]),
        ((0, 1), [(0, 128), (128, 640)]),
        ((9,), [(0, 576), (576, 640)]),
        ((2, 5), [(0, 640)]),
    ],
)
def test_a_tile_is_cut_around_blocks_that_do_not_suit(unsuited, expected, processor):
    queries, corpus = make("gaussian", 640, 24, 6, torch.float32)
    for block in unsuited:
        corpus[block * 64 : block * 64 + 64, 1:] *= 1e-3  # as long as one entry
    index = CosineIndex(corpus, screen="int8")
    segment = index._snapshot.parts[0].segment
    terms = screens.choose(24, "int8")[0].queries(widen(queries), index._snapshot.centre)
    parts = FilteredProduct(terms, segment).parts(slice(0, 640))
    assert [(part.start, part.stop) for part in parts] == expected
    assert torch.equal(index.search(queries, 5).indices, topk(queries, corpus, 5).indices)
