"""The proven bound of every screen, pair by pair, against float64."""

import threading

import pytest
import torch

import arithmetic as models
from cossim_fast import _reference
from cossim_fast._score.exact import widen
from cossim_fast.retrieval.screening import arithmetic, codes, int8, screens
from cossim_fast.retrieval.screening.tile import Tile
from search_data import CORPORA, make

MADE = {
    "float32": lambda: screens.FloatScreen("float32"),
    "bfloat16": lambda: screens.FloatScreen("bfloat16"),
    "int8": lambda: screens.Int8Screen(models.limit()),
    "few queries": screens.FewQueriesScreen,
}
# How far the bound may lie beyond the largest error that is seen: rounding adds up as chance has
# it, not as the worst case does, by about the square root of the width.
SLACKNESS = {"float32": 2000, "bfloat16": 200, "int8": 30, "few queries": 30}


def tile_of(screen, queries, corpus, centre):
    segment = codes.encode(corpus, centre)
    terms = screen.queries(widen(queries), centre)
    values = screen.product(segment, slice(0, len(corpus)), centre, terms)
    blocks = screen.blocks(segment, slice(0, len(segment.radius)))
    return Tile(0, values, terms, blocks)


# On which kinds of processors each differs.
KINDS = {
    "float32": ["exact"],
    "bfloat16": ["exact", "this one"],
    "int8": models.PROCESSORS,
    "few queries": ["exact", "this one"],
}
SCREENS = [(name, kind) for name in MADE for kind in KINDS[name] if kind in models.PROCESSORS]
WIDTHS = [
    (name, processor, d)
    for name, processor in SCREENS
    for d in (1, 3, 64, 100, 384, 2048)
    if name != "few queries" or d % screens.FEW_QUERIES_WIDTH == 0
]


@pytest.mark.parametrize(("name", "processor", "d"), WIDTHS, indirect=["processor"])
@pytest.mark.parametrize("kind", CORPORA)
def test_no_score_leaves_its_bounds(name, processor, kind, d):
    count = 2 if name == "few queries" else 12
    dtype = torch.float64 if kind == "near" else torch.float32
    queries, corpus = make(kind, 200, d, count, dtype)
    finite = corpus.isfinite().all(1)
    # A zero row scores 0.
    exact = _reference.pairwise_cosine(corpus[finite], queries, eps=0.0).nan_to_num(0.0)
    for centre in (torch.zeros(d), codes.centre_of(corpus), torch.ones(d)):
        tile = tile_of(MADE[name](), queries, corpus, centre)
        rows = tile.values[: len(corpus)].double()
        blocks = torch.arange(len(corpus)) // codes.BLOCK
        found = rows * tile.scale[blocks] + tile.offset
        error = (found[finite] - exact).abs() - 2.0**-45  # what the reference rounds
        margin = tile.margin[blocks][finite]
        assert bool((error <= margin).all())
        # Every row whose score reaches a threshold passes it.
        threshold = exact.quantile(0.9, dim=0)
        passes = rows[finite] >= tile.needed(threshold - 2.0**-45)[blocks][finite]
        assert bool(passes[exact >= threshold].all())
        lower = tile.cosines(tile.values, lower=True)[: len(corpus)][finite]
        assert bool((lower.double() <= exact + 2.0**-45).all())


@pytest.mark.parametrize(("name", "processor"), SCREENS, indirect=["processor"])
def test_the_bound_is_of_the_size_of_the_error(name, processor):
    queries, corpus = make("gaussian", 640, 384, 2, torch.float32)
    tile = tile_of(MADE[name](), queries, corpus, codes.centre_of(corpus))
    blocks = torch.arange(len(corpus)) // codes.BLOCK
    found = tile.values.double() * tile.scale[blocks] + tile.offset
    error = (found - _reference.pairwise_cosine(corpus, queries, eps=0.0)).abs().max()
    assert tile.margin.max() <= SLACKNESS[name] * error


DTYPES = (torch.float16, torch.bfloat16, torch.float32, torch.float64)
# Rows that are near each other differ in float64 alone.
STORED = [(kind, dtype) for kind in CORPORA for dtype in DTYPES[3 * (kind == "near") :]]


@pytest.mark.parametrize(("kind", "dtype"), STORED)
def test_what_the_codes_of_a_row_promise(kind, dtype):
    _, corpus = make(kind, 333, 77, 2, dtype)
    centre = codes.centre_of(corpus)
    segment = codes.encode(corpus, centre)
    wide = corpus.double()
    finite = wide.isfinite().all(1)
    assert torch.equal(segment.eligible, finite)
    largest = wide.abs().amax(1, keepdim=True)
    safe = wide / torch.where(largest > 0, largest, 1.0)
    unit = safe / safe.norm(dim=1, keepdim=True).clamp_min(1e-300)
    y = unit - centre.double()
    block = torch.arange(len(corpus)) // codes.BLOCK
    coded = segment.codes[: len(corpus)].double() * segment.scale[block, None].double()
    assert bool(((y - coded).norm(dim=1) <= segment.residual[block].double())[finite].all())
    assert bool((y.norm(dim=1) <= segment.radius[block].double())[finite].all())
    assert segment.codes.min() >= -127
    assert not segment.codes[len(corpus) :].any()
    assert segment.residual.max() <= 0.2


def test_usual_blocks_share_a_scale_and_others_have_their_own():
    draw = torch.Generator().manual_seed(0)
    corpus = torch.randn(64 * 40, 48, generator=draw)
    corpus[64 * 7] = torch.eye(48)[3]  # one number far above the rest
    corpus[64 * 9 : 64 * 10] = 0.0
    segment = codes.encode(corpus, torch.zeros(48))
    usual = segment.scale.median()
    assert (segment.scale != usual).nonzero().tolist() == [[7]]
    assert segment.scale[7] == 1 / torch.tensor(127.0)
    # Blocks of small numbers are not coded by a few of the codes.
    few = corpus.clone()
    few[64 * 9 : 64 * 10] = few[0] + 1e-3 * torch.randn(64, 48, generator=draw)
    centre = torch.nn.functional.normalize(few[0], dim=0)
    segment = codes.encode(few, centre)
    assert segment.scale[9] < segment.scale.median() / 20
    assert segment.codes[64 * 9 : 64 * 10].max() == 127


def test_a_centre_shortens_what_is_left_to_code():
    _, corpus = make("cone", 500, 64, 2, torch.float32)
    plain = codes.encode(corpus, torch.zeros(64))
    centred = codes.encode(corpus, codes.centre_of(corpus))
    assert centred.residual.max() < plain.residual.min() / 5


def test_rows_too_long_for_whole_numbers_are_left_to_other_screens():
    names = [screen.name for screen in screens.choose(int8.LONGEST_ROW + 1)]
    assert "int8" not in names
    assert names[-1] == "float32"


def test_the_float32_screen_is_always_there():
    assert list(screens.available())[-1] == "float32"
    for wanted in ("bfloat16", "float32"):
        assert [s.name for s in screens.choose(10, wanted)] == [wanted]


def test_int8_is_refused_where_it_would_be_wrong(monkeypatch):
    with pytest.raises(ValueError, match="pass screen='auto'"):
        screens.choose(int8.LONGEST_ROW + 1, "int8")
    monkeypatch.setattr(arithmetic, "found", lambda: arithmetic.Arithmetic(0))
    with pytest.raises(ValueError, match="multiply int8"):
        screens.choose(10, "int8")


def test_memory_kept_from_inference_mode_is_written_to_outside_it(monkeypatch):
    monkeypatch.setattr(screens, "_kept", threading.local())
    rows = torch.ones(64, 8, dtype=torch.bfloat16)
    with torch.inference_mode():
        screens._narrow_product(rows, rows[:3])
    assert (screens._narrow_product(rows, rows[:3]) == 8).all()
