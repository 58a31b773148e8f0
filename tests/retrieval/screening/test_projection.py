"""The screen on few directions: its bound holds, and joins that use it find every pair."""

import pytest
import torch

import arithmetic as models
from cossim_fast import _threads, deduplicate, iter_pairs_above, pairs_above
from cossim_fast._score.exact import score_pairs, widen
from cossim_fast.retrieval import tuning
from cossim_fast.retrieval.screening import projection
from cossim_fast.retrieval.screening.codes import BLOCK, centre_of, encode
from cossim_fast.retrieval.screening.screens import Int8Screen
from cossim_fast.retrieval.screening.tile import Tile

pytestmark = models.every_processor
D = 96


def decaying(n, seed=0, dtype=torch.float32):
    """Rows that vary in few directions, as embeddings do, with every kind of hard row."""
    g = torch.Generator().manual_seed(seed)
    x = torch.randn(n, D, generator=g, dtype=torch.float64)
    x *= 0.95 ** torch.arange(D, dtype=torch.float64)
    x += 0.3 * torch.randn(D, generator=torch.Generator().manual_seed(9), dtype=torch.float64)
    x[::7] *= 1e3
    x[n // 2 :: 5] = x[: len(x[n // 2 :: 5])] * (1 + 0.01 * torch.randn(D, generator=g).double())
    x[11], x[n // 3] = 0, torch.nan
    return x.to(dtype)


def screen_of(x, k):
    y = projection.finite(x) - centre_of(x).double()
    along = torch.linalg.eigh(y.mT @ y).eigenvectors.flip(1)
    return projection.ProjectionScreen(
        projection.spread(along[:, :k]).float(), Int8Screen(models.limit())
    )


def test_heads_do_not_depend_on_threads(monkeypatch, processor):
    """Threads project some rows each: all rows in all, with the same codes."""
    monkeypatch.setattr(_threads, "processors", lambda: 16)
    monkeypatch.setattr(tuning, "PROJECTION_NUMBERS", 2 * BLOCK * D)
    x = decaying(3000)
    screen, segment, before = screen_of(x, 28), encode(x, centre_of(x)), torch.get_num_threads()
    made = []
    try:
        for threads in (1, 2, 3):
            torch.set_num_threads(threads)
            made.append(screen.split(segment, centre_of(x)).projected)
    finally:
        torch.set_num_threads(before)
    for projected in made[1:]:
        for name in ("codes", "scale", "residual"):
            assert torch.equal(getattr(projected, name), getattr(made[0], name)), name


@pytest.mark.parametrize("basis", ["of the rows", "all directions", "one", "skewed"])
@pytest.mark.parametrize("dtype", [torch.float16, torch.float32, torch.float64], ids=str)
def test_no_cosine_is_above_its_bound(basis, dtype, processor):
    x, q = decaying(300, dtype=dtype), decaying(90, seed=1, dtype=dtype)
    screen = screen_of(x, {"of the rows": 28, "all directions": D, "one": 1, "skewed": 28}[basis])
    if basis == "skewed":
        # Far from orthonormal: the bound must not lean on it.
        screen = projection.ProjectionScreen(
            screen._basis + 0.02 * torch.randn(D, 28), Int8Screen(models.limit())
        )
    centre = centre_of(x)
    segment = screen.split(encode(x, centre), centre)
    wide = widen(q)
    terms = screen.queries(wide, centre)
    values = screen.product(segment, slice(0, 300), centre, terms)
    tile = Tile(0, values, terms, screen.blocks(segment, slice(0, -(-300 // BLOCK))))
    by_block = (tile.scale, tile.margin + terms.offset)
    scale, shift = (part.repeat_interleave(BLOCK, 0)[:300] for part in by_block)
    upper = values[:300].double() * scale + shift  # (rows, q)
    row, query = (
        i.flatten() for i in torch.meshgrid(torch.arange(300), torch.arange(90), indexing="ij")
    )
    scores = score_pairs(wide, x, query, row).view(300, 90)
    known = ~scores.isnan()
    assert bool((upper >= scores)[known].all())
    if basis in ("of the rows", "all directions"):
        assert float((upper - scores)[known].mean()) < 0.35  # and it says something


@pytest.fixture
def eager(monkeypatch):
    """Heads for small inputs, and a note of those that were chosen."""
    monkeypatch.setattr(projection, "_SAMPLE", 64)
    monkeypatch.setattr(tuning, "PROJECTION_PAIRS", 0)
    chosen = []
    choose = projection.choose_projection
    monkeypatch.setattr(
        "cossim_fast.retrieval.joins.corpus.choose_projection",
        lambda *args: chosen.append(choose(*args)) or chosen[-1],
    )
    return chosen


@pytest.mark.parametrize("threshold", [0.9, 0.95, 0.99])
@pytest.mark.parametrize("dtype", [torch.float16, torch.float64], ids=str)
def test_joins_find_every_pair(eager, dtype, threshold, processor):
    x = decaying(900, dtype=dtype)
    y = decaying(300, seed=2, dtype=dtype)
    y[40:80] = x[40:80] * 0.5
    for other in (None, y):
        found = pairs_above(x, other, threshold)
        assert eager[-1] is not None
        wanted = pairs_above(x, other, threshold, screen="float32")
        assert len(found.i) > 10
        for column, same in zip(found, wanted, strict=True):
            assert torch.equal(column, same)


def test_chosen_where_it_pays_alone(eager, processor):
    g = torch.Generator().manual_seed(0)
    alike = torch.randn(600, D, generator=g)  # varies in all directions alike
    pairs_above(alike, threshold=0.35)
    assert eager[-1] is None
    pairs_above(decaying(600), threshold=-0.5)
    assert eager[-1] is None
    deduplicate(decaying(600), 0.95)
    assert eager[-1] is not None
    iter_pairs_above(decaying(600)[:100], threshold=0.95)
    assert eager[-1] is None  # too few


def test_rows_without_a_direction(eager, processor):
    for x in (torch.zeros(600, D), torch.full((600, D), torch.nan), torch.ones(600, D)):
        found = pairs_above(x, threshold=0.9)
        assert len(found.i) == (600 * 599 // 2 if bool((x == 1).all()) else 0)
