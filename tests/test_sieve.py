"""What a sieve lets through, and what it says of it, pair by pair, against float64."""

import pytest
import torch

from cossim_fast import _cpu_screen, _reference
from cossim_fast.retrieval import codes, int8, screens
from cossim_fast.retrieval.pool import Pool
from cossim_fast.retrieval.sieve import Sieve
from search_data import CORPORA, make

pytestmark = pytest.mark.skipif(not int8.neighbours(), reason="no int8 product on this processor")

LOST = 2.0**-45  # what the reference rounds


class Emitted(Pool):
    """A pool that keeps what it is given as it is."""

    def __init__(self, queries):
        super().__init__(queries, 1)
        self.given = []

    def add(self, *columns):
        self.given.append(columns)


def sieve(queries, segment, centre, threshold):
    terms = screens.Int8Screen(int8.neighbours()).queries(_cpu_screen.widen(queries), centre)
    return Sieve(terms).tile(segment, slice(0, len(segment)), threshold)


@pytest.mark.parametrize("group", [1, 4, 16])
@pytest.mark.parametrize("d", [1, 3, 64, 100, 384, 2048])
@pytest.mark.parametrize("kind", CORPORA)
def test_all_that_reaches_a_threshold_passes_with_true_bounds(kind, d, group):
    dtype = torch.float64 if kind == "near" else torch.float32
    queries, corpus = make(kind, 200, d, 12, dtype)
    exact = _reference.pairwise_cosine(corpus, queries, eps=0.0).nan_to_num(0.0)
    finite = corpus.isfinite().all(1)
    centre = codes.centre_of(corpus)
    segment = codes.encode(corpus, centre, first=1000)
    if segment.scale.min() < segment.scale.max():
        assert d < 64 or kind not in ("gaussian", "cone", "near")
        assert sieve(queries, segment, centre, exact[0]) is None
        return
    for share in (0.0, 0.5, 0.95):
        threshold = exact[finite].quantile(share, dim=0) - LOST
        tile = sieve(queries, segment, centre, threshold)
        tile.values[len(corpus) :] = 0
        pool = Emitted(12)
        count = tile.emit(pool, group)
        ((query, position, upper, lower),) = pool.given
        row = position - 1000
        assert count == len(query) == len(set(zip(query.tolist(), row.tolist(), strict=True)))
        passed = torch.zeros(len(corpus), 12, dtype=torch.bool)
        passed[row, query] = True
        assert bool(passed[finite][(exact >= threshold)[finite]].all())
        seen = finite[row]
        score = exact[row, query]
        assert bool((score <= upper + LOST)[seen].all())
        assert bool((lower - LOST <= score)[seen].all())
        assert tile.passing() == pytest.approx(float(passed[: 64 * 3].float().mean()), abs=0.5)


def test_bounds_are_those_of_the_codes_and_a_step():
    queries, corpus = make("gaussian", 640, 384, 8, torch.float32)
    centre = codes.centre_of(corpus)
    exact = _reference.pairwise_cosine(corpus, queries, eps=0.0)
    threshold = exact.quantile(0.9, dim=0)
    tile = sieve(queries, codes.encode(corpus, centre), centre, threshold)
    pool = Emitted(8)
    tile.emit(pool, 16)
    ((_, _, upper, lower),) = pool.given
    assert float((upper - lower).max()) < 0.08
    # Few pass that are not near the threshold.
    assert len(upper) < 3 * (exact >= threshold).sum()


def test_nothing_reaches_what_is_out_of_reach():
    queries, corpus = make("gaussian", 128, 32, 3, torch.float32)
    queries[1] = torch.nan
    centre = codes.centre_of(corpus)
    threshold = torch.tensor([1.5, torch.inf, -1.0], dtype=torch.float64)
    tile = sieve(queries, codes.encode(corpus, centre), centre, threshold)
    assert not tile.values[:, :2].any()
    assert bool((tile.values[:, 2] > 0).all())


def test_the_block_that_is_coded_worst_counts():
    queries, corpus = make("gaussian", 192, 64, 5, torch.float32)
    centre = torch.zeros(64)
    segment = codes.encode(corpus, centre)
    segment.codes[64:128] = 0  # so that all of these rows is missed
    segment.residual[1] = segment.radius[1]
    exact = _reference.pairwise_cosine(corpus, queries, eps=0.0)
    threshold = exact.quantile(0.8, dim=0) - LOST
    tile = sieve(queries, segment, centre, threshold)
    assert bool((tile.values[exact >= threshold] > 0).all())


def test_blocks_of_unlike_scales_are_not_sieved():
    queries, corpus = make("gaussian", 256, 32, 3, torch.float32)
    corpus[70] = torch.eye(32)[5]
    centre = torch.zeros(32)
    segment = codes.encode(corpus, centre)
    assert segment.scale[1] > segment.scale[0]
    assert segment.scale[0] == segment.scale[2] == segment.scale[3]
    assert sieve(queries, segment, centre, torch.zeros(3).double()) is None
