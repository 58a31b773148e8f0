"""The int8 product of every kind of processor: within its bound, and refused where it is not."""

import platform
from concurrent.futures import ThreadPoolExecutor

import pytest
import torch

import arithmetic as models
from cossim_fast import CosineIndex, pairs_above, topk
from cossim_fast._score.exact import widen
from cossim_fast.retrieval import tuning
from cossim_fast.retrieval.explanation import reason_for
from cossim_fast.retrieval.nearest import scan
from cossim_fast.retrieval.screening import arithmetic, codes, int8, operators, rates, screens

WIDTHS = (1, 2, 3, 17, 64, 97, 384, 1031, 4099)


def extreme(rows, d, generator):
    """Codes of -127 and 127 alone."""
    return torch.randint(0, 2, (rows, d), generator=generator) * 254 - 127


def loud(count, d, generator):
    """Queries whose adjacent codes add up to all that they may."""
    limit = arithmetic.found().adjacent_code_limit
    first = torch.randint(1, 128, (count, -(-d // 2)), generator=generator)
    if limit == arithmetic.ANY_CODES:
        first[:] = 127
    pairs = torch.stack([first, (limit - first).clamp_max(127)], 2).view(count, -1)
    return pairs[:, :d] * (torch.randint(0, 2, (count, d), generator=generator) * 2 - 1)


def multiplied(rows, queries):
    """The product, and what it should be."""
    found = int8.product(rows.to(torch.int8), int8.pack(queries.to(torch.int8)), len(queries))
    return found, rows.double() @ queries.double().mT


@models.every_processor
@pytest.mark.parametrize("count", [1, 7, 130])
@pytest.mark.parametrize("d", WIDTHS)
def test_products_of_the_loudest_codes_are_within_their_bound(d, count, processor):
    draw = torch.Generator().manual_seed(d)
    queries = loud(count, d, draw)
    found, exact = multiplied(extreme(192, d, draw), queries)
    allowed = int8.SUM_ERROR * queries.abs().sum(1) + 2.0**-24 * exact.abs()
    assert bool(((found - exact).abs() <= allowed).all())
    if processor in ("exact", "saturating"):
        assert torch.equal(found, exact.float())


@models.every_processor
@pytest.mark.parametrize("count", [1, 7, 130])
@pytest.mark.parametrize("d", WIDTHS)
def test_filtered_products_are_within_their_rounding(d, count, processor):
    draw = torch.Generator().manual_seed(d)
    rows, queries = extreme(192, d, draw), loud(count, d, draw)
    exact = (rows + 128).double() @ queries.double().mT
    spread = (exact.amax(0) - exact.amin(0)).clamp_min(1.0)
    # From no overflow at either end to nearly all of it there.
    stretch = torch.logspace(-1, 2, count)
    limit = int8.LARGEST_SCALED / (255 * queries.abs().sum(1))
    scale = torch.minimum(255 / spread * stretch, limit).float()
    offset = (100 - exact.mean(0) * scale).float()
    unsigned = int8.unsigned(rows.to(torch.int8))
    assert torch.equal(unsigned.long(), rows + 128)
    padded = (torch.nn.functional.pad(x, (0, int8.width(count) - count)) for x in (scale, offset))
    found = int8.filtered(unsigned, int8.pack(queries.to(torch.int8)), *padded)
    assert not found[:, count:].any()
    found = found[:, :count]
    wanted = (exact * scale + offset).clamp(0.0, 255.0)
    assert bool(((found - wanted).abs() <= int8.ROUNDING).all())


def test_few_shapes_occur():
    rows = [int8.even_rows(n) for n in range(64, 1 << 16, 64)]
    assert len(set(rows)) < 80
    assert all(n <= even <= n * 1.125 for n, even in zip(range(64, 1 << 16, 64), rows, strict=True))
    assert len({int8.width(q) for q in range(1, 1025)}) == 19
    tiles = {scan.tile_rows(q, 1, width) for q in range(1, 1025) for width in (0, 384)}
    assert all(int8.even_rows(n) == n for n in tiles)
    assert len(tiles) < 60


def test_copies_of_codes_stay_in_cache_for_any_number_of_queries():
    for width in (1, 64, 384, 4096):
        for queries in (1, 7, 64, 1000):
            rows = scan.tile_rows(queries, 10, width)
            assert rows * width <= tuning.TILE_CODES
            assert rows * queries <= tuning.TILE_SCORES
            assert rows <= tuning.LONGEST_TILE


def test_each_thread_keeps_memory_for_copies_of_its_own(monkeypatch):
    rows = torch.arange(64 * 3, dtype=torch.int8).view(64, 3)

    def place():
        return int8.unsigned(rows).data_ptr(), int8.unsigned(rows[:, :2].contiguous()).data_ptr()

    here = place()
    with ThreadPoolExecutor(1) as pool:
        there = pool.submit(place).result()
    assert here[0] == here[1]
    assert there[0] == there[1]
    assert here[0] != there[0]
    monkeypatch.setattr(tuning, "KEPT_CODES", 63)
    large = int8.unsigned(torch.zeros((1 << 12, 1 << 12), dtype=torch.int8))
    assert large.data_ptr() != int8.unsigned(rows).data_ptr()


@models.every_processor
def test_rows_between_sizes_are_multiplied_alone(processor):
    draw = torch.Generator().manual_seed(0)
    rows, queries = extreme(64 * 19, 5, draw), loud(7, 5, draw)
    assert int8.even_rows(len(rows)) > len(rows)
    found, exact = multiplied(rows, queries)
    assert torch.equal(found, exact.float())


@pytest.mark.parametrize("limit", [128, 254])
@pytest.mark.parametrize("d", [1, 2, 7, 384])
def test_queries_keep_to_what_adjacent_codes_may_add_up_to(d, limit, monkeypatch):
    draw = torch.Generator().manual_seed(d)
    rows = torch.randn(300, d, generator=draw) * torch.rand(300, d, generator=draw) ** 4
    rows[0], rows[1], rows[2] = 0.0, 1.0, torch.nan
    rows[3] = torch.arange(d) < 1
    packed = []
    monkeypatch.setattr(int8, "pack", packed.append)
    terms = screens.Int8Screen(limit).queries(widen(rows), torch.zeros(d))
    z = packed[0].double()
    assert torch.equal(z.sum(1), terms.total)
    assert torch.equal(z.abs().sum(1), terms.size)
    padded = torch.nn.functional.pad(z.abs(), (0, d % 2))
    assert padded.max() <= 127
    assert (padded[:, ::2] + padded[:, 1::2]).max() <= limit
    assert z[3].max() == 127


# What the self-check says of each kind of arithmetic, and of products that are wrong.


def checked(monkeypatch, linear):
    models.use_linear(monkeypatch, linear)
    return arithmetic._check()


@pytest.mark.parametrize("kind", models.LINEAR)
def test_every_kind_is_told_apart(kind, monkeypatch):
    found = checked(monkeypatch, models.LINEAR[kind])
    assert (found.kind, found.adjacent_code_limit) == (kind, models.LIMITS[kind])
    if kind == "rounding":
        assert 0.1 < found.error <= 1.0
    else:
        assert found.error == 0.0


def test_a_processor_that_rounds_and_saturates(monkeypatch):
    def linear(rows, zero, packed, scale, offset, dtype):
        part = (zero * packed.double().sum(1)).float()
        sums = models.saturating_sums(rows, packed).float()
        return models.as_result(sums - part, scale, offset, dtype)

    found = checked(monkeypatch, linear)
    assert (found.kind, found.adjacent_code_limit) == ("saturating", 128)
    assert "sums rounded to float32" in found.words(2.0)


def nearly(change):
    """The exact product, changed as numbers or as what it is filtered to."""

    def linear(rows, zero, packed, scale, offset, dtype):
        found = models.LINEAR["exact"](rows, zero, packed, scale, offset, dtype)
        return change(found, rows, packed)

    return linear


def off_by_one(found, rows, packed):
    if found.dtype == torch.float32:
        found[len(found) // 2] += 1
    return found


def filtered_too_high(found, rows, packed):
    return found + 1 if found.dtype == torch.uint8 else found


def whole_sums_of_16_bits(found, rows, packed):
    return found.clamp_(-(2.0**15), 2.0**15 - 1) if found.dtype == torch.float32 else found


def twice_the_bound(found, rows, packed):
    sums = models.exact_sums(rows, packed)
    return found if found.dtype == torch.uint8 else found + 2.0**-22 * sums.float()


WRONG = (off_by_one, filtered_too_high, whole_sums_of_16_bits, twice_the_bound)


@pytest.mark.parametrize("change", WRONG)
def test_a_wrong_product_is_refused(change, monkeypatch):
    found = checked(monkeypatch, nearly(change))
    assert (found.kind, found.adjacent_code_limit) == ("unusable", 0)


def refuse(*args):
    raise RuntimeError("no such operator")


def test_a_torch_without_the_operator(monkeypatch):
    assert checked(monkeypatch, refuse).kind == "unusable"
    monkeypatch.setattr(arithmetic, "found", lambda: arithmetic.Arithmetic(0))
    assert not screens.offer("int8").there
    assert "int8" not in screens.available()
    with pytest.raises(ValueError, match=r"expected a processor and a torch that multiply int8"):
        topk(torch.ones(3, 4), torch.ones(9, 4), 1, screen="int8")
    assert len(pairs_above(torch.ones(9, 4), threshold=0.9).i) == 36


def test_the_sum_of_d_1031_that_amx_rounds(monkeypatch):
    """Extreme codes of the width at which it was found; codes of 517 numbers are exact."""
    models.become(monkeypatch, "rounding")
    draw = torch.Generator().manual_seed(0)
    rows = extreme(192, 1031, draw)
    queries = loud(64, 1031, draw).abs()
    rows[0] = 127
    found, exact = multiplied(rows, queries)
    assert not torch.equal(found, exact.float())
    assert (found - exact).abs().max() <= 3.0
    found, exact = multiplied(rows[:, :517], queries[:, :517])
    assert torch.equal(found, exact.float())


def rows_along_axes(d, monkeypatch):
    """The error of a screen on axes and a query of equal numbers, and its bound."""
    monkeypatch.setattr(codes, "USUAL", 1.0)  # so that codes stand for these numbers exactly
    corpus, queries = torch.eye(d)[:64], torch.ones(1, d)
    segment = codes.encode(corpus, torch.zeros(d))
    screen = screens.Int8Screen(arithmetic.found().adjacent_code_limit)
    terms = screen.queries(widen(queries), torch.zeros(d))
    values = screen.product(segment, slice(0, 64), torch.zeros(d), terms)
    tile = scan.Tile(0, values, terms, screen.blocks(segment, slice(0, 1)))
    error = (values.double() * tile.scale + tile.offset - d**-0.5).abs().max()
    return float(error), float(tile.margin.max())


@models.every_processor
@pytest.mark.parametrize("d", [1100, 4099])
def test_a_sum_that_is_rounded_is_within_the_bound_of_a_screen(d, processor, monkeypatch):
    error, margin = rows_along_axes(d, monkeypatch)
    assert error <= margin


@pytest.mark.parametrize("d", [1100, 4099])
def test_without_what_rounding_adds_the_bound_would_not_hold(d, monkeypatch):
    """One code of 127 among zeros: the unsigned sum is all zero point, and nothing else is lost."""
    models.become(monkeypatch, "rounding")
    monkeypatch.setattr(int8, "SUM_ERROR", 0.0)
    error, margin = rows_along_axes(d, monkeypatch)
    assert error > margin


# Names for users.


@pytest.mark.parametrize(
    ("found", "rate", "tiles", "words"),
    [
        ((254, 0.0), 4.0, False, "VNNI int8"),
        ((254, 0.0), 4.0, True, "VNNI int8"),
        ((254, 0.0), 15.0, True, "AMX int8"),
        ((254, 0.3), 5.0, True, "AMX int8 (sums rounded to float32)"),
        ((128, 0.0), 2.0, False, "AVX2 int8, pairs of codes limited to 128"),
        ((128, 0.0), 2.0, True, "AVX2 int8, pairs of codes limited to 128"),
        ((254, 0.0), 0.001, False, "int8"),
        ((0, 0.0), 4.0, False, "int8 products that are wrong here, or that torch does not have"),
    ],
)
def test_names_follow_what_was_found(found, rate, tiles, words, monkeypatch):
    monkeypatch.setattr(platform, "machine", lambda: "x86_64")
    monkeypatch.setattr(arithmetic, "_tiles", lambda: tiles)
    assert arithmetic.Arithmetic(*found).words(rate) == words


def test_names_of_other_processors(monkeypatch):
    monkeypatch.setattr(platform, "machine", lambda: "aarch64")
    assert arithmetic.Arithmetic(254).words(4.0) == "int8 of aarch64"
    assert arithmetic.Arithmetic(254, 0.2).words(4.0) == "int8 of aarch64 (sums rounded to float32)"


# How fast it is.


@pytest.fixture
def forgotten():
    """Nothing was found out of this process, before and after."""
    models.forget()
    yield
    models.forget()


@pytest.mark.usefixtures("forgotten")
def test_a_slow_product_is_left_out_but_can_be_asked_for(monkeypatch):
    """As oneDNN's reference code is slow: the model takes 50 ms for what float32 does in one."""
    calls = []

    def slow(*args):
        calls.append(args[0].shape)
        for _ in range(50):
            found = models.LINEAR["exact"](*args)
        return found

    models.use_linear(monkeypatch, slow)
    monkeypatch.setattr(arithmetic, "found", lambda: models.found_of("exact"))
    assert rates.int8().times < 1.0
    assert not screens.offer("int8").fast
    assert screens.offer("int8").there
    assert "int8" not in screens.available()
    assert "int8" not in [screen.name for screen in screens.choose(384)]
    assert [screen.name for screen in screens.choose(384, "int8")] == ["int8"]
    x = torch.randn(200, 16, generator=torch.Generator().manual_seed(0))
    found = CosineIndex(x, screen="int8").search(x[:3], 2)
    assert found.indices[:, 0].tolist() == [0, 1, 2]


@pytest.mark.usefixtures("forgotten")
def test_a_product_that_is_much_too_slow_is_tried_on_a_few_numbers_alone(monkeypatch):
    shapes = []

    def reference(rows, *args):
        shapes.append(rows.shape)
        stop = rates.time.perf_counter() + 0.002
        while rates.time.perf_counter() < stop:
            pass
        return rows

    models.use_linear(monkeypatch, reference)
    assert rates.int8().times < 0.5
    assert set(shapes) == {(64, 64)}


def ticking(monkeypatch, seconds):
    """A clock on which calls take so long, by turns: the first of all, the second of all."""
    now = [0.0]
    monkeypatch.setattr(rates.time, "perf_counter", lambda: now[0])

    def call(number):
        def made():
            now[0] += next(seconds[number])

        return made

    return call(0), call(1)


def test_the_quickest_run_counts(monkeypatch):
    mine = iter([9.0, 0.5, 9.0, 0.25, 9.0, 9.0])
    usual = iter([9.0, 9.0, 9.0, 9.0, 1.0, 9.0])
    calls = ticking(monkeypatch, (mine, usual))
    assert rates._quickest(*calls) == [0.25, 1.0]


@pytest.mark.parametrize("screen", ["float32", "bfloat16"])
def test_nothing_is_found_out_of_int8_where_it_is_not_used(screen, monkeypatch):
    for module, name in ((arithmetic, "found"), (rates, "int8"), (rates, "mixed")):
        monkeypatch.setattr(module, name, refuse)
    x = torch.randn(300, 16, generator=torch.Generator().manual_seed(0))
    assert topk(x[:80], x, 2, screen=screen).indices[:, 0].tolist() == list(range(80))
    index = CosineIndex(x, screen=screen)
    assert index.explain(x[:3], 2).screens == (screen,)
    index.search(x[:1], 2)
    list(index.range_search(x[:2], 0.9))
    pairs_above(x, threshold=0.9, screen=screen)
    topk(x[:3], x, 2)  # too few queries to code rows for
    screens.choose(int8.LONGEST_ROW + 1)


# The other narrow products.


def test_bfloat16_is_multiplied_in_float32_where_no_product_of_it_is_fast(monkeypatch):
    x = torch.randn(300, 64, generator=torch.Generator().manual_seed(0))
    monkeypatch.setattr(operators, "bfloat16", refuse)
    for rate, words in ((0.0, "no bfloat16 instructions"), (0.7, "0.7x float32")):
        monkeypatch.setattr(rates, "bfloat16", lambda rate=rate: rates.Rate(50.0 * rate, rate))
        screens._bfloat16_pays.cache_clear()
        offer = screens.offer("bfloat16")
        assert offer.there
        assert not offer.fast
        assert words in offer.words
        assert "multiplied in float32" in reason_for("bfloat16", ("bfloat16",))
        assert topk(x[:9], x, 1, screen="bfloat16").indices[:, 0].tolist() == list(range(9))
    screens._bfloat16_pays.cache_clear()


@pytest.mark.parametrize("off", [0.0, 1e-2])
def test_a_bfloat16_product_beyond_its_bound_is_not_used(off, monkeypatch):
    def wrong(rows, queries, out):
        models.bfloat16(rows, queries, out)
        out.mul_(1 + off)

    monkeypatch.setattr(operators, "bfloat16", wrong)
    monkeypatch.setattr(rates, "bfloat16", lambda: rates.Rate(100.0, 2.0))
    screens._bfloat16_pays.cache_clear()
    assert screens.offer("bfloat16").fast == (off == 0.0)
    screens._bfloat16_pays.cache_clear()


@pytest.mark.parametrize(("off", "rate"), [(0.0, 2.0), (0.0, 0.5), (1e-2, 2.0)])
def test_the_product_for_a_few_queries_is_used_where_it_is_right_and_fast(off, rate, monkeypatch):
    monkeypatch.setattr(operators, "mixed", lambda *args: models.mixed(*args) * (1 + off))
    monkeypatch.setattr(rates, "mixed", lambda: rate)
    monkeypatch.setattr(arithmetic, "found", lambda: models.found_of("exact"))
    screens._few_queries_work.cache_clear()
    (screen,) = screens.choose(384, "int8", queries=1)
    used = isinstance(screen, screens.FewQueriesScreen)
    assert used == (off == 0.0 and rate > 1)
    screens._few_queries_work.cache_clear()
