"""The int8 product of this processor: exact, and noticed where it would not be."""

import pytest
import torch

from cossim_fast import _cpu_screen
from cossim_fast.retrieval import int8, scan, screens

pytestmark = pytest.mark.skipif(not int8.neighbours(), reason="no int8 product on this processor")

WIDTHS = (1, 2, 3, 17, 64, 97, 384, 1031, 4099)


def extreme(rows, d, generator):
    """Codes of -127 and 127 alone."""
    return torch.randint(0, 2, (rows, d), generator=generator) * 254 - 127


def loud(count, d, generator):
    """Queries whose neighbours add up to all that they may."""
    first = torch.randint(1, 128, (count, -(-d // 2)), generator=generator)
    if int8.neighbours() == 254:
        first[:] = 127
    pairs = torch.stack([first, (int8.neighbours() - first).clamp_max(127)], 2).view(count, -1)
    return pairs[:, :d] * (torch.randint(0, 2, (count, d), generator=generator) * 2 - 1)


@pytest.mark.parametrize("count", [1, 7, 130])
@pytest.mark.parametrize("d", WIDTHS)
def test_products_of_the_loudest_codes_are_exact(d, count):
    draw = torch.Generator().manual_seed(d)
    rows, queries = extreme(192, d, draw), loud(count, d, draw)
    packed = int8.pack(queries.to(torch.int8))
    exact = rows.double() @ queries.double().mT
    assert torch.equal(int8.product(rows.to(torch.int8), packed, count), exact.float())


@pytest.mark.parametrize("count", [1, 7, 130])
@pytest.mark.parametrize("d", WIDTHS)
def test_sieved_products_are_within_their_rounding(d, count):
    draw = torch.Generator().manual_seed(d)
    rows, queries = extreme(192, d, draw), loud(count, d, draw)
    exact = (rows + 128).double() @ queries.double().mT
    spread = (exact.amax(0) - exact.amin(0)).clamp_min(1.0)
    # From no overflow at either end to nearly all of it there.
    stretch = torch.logspace(-1, 2, count)
    limit = int8.LARGEST_SCALED / (255 * queries.abs().sum(1))
    scale = torch.minimum(255 / spread * stretch, limit).float()
    offset = (100 - exact.mean(0) * scale).float()
    unsigned = int8.unsigned(rows.to(torch.int8), torch.empty(192 * d + 5, dtype=torch.uint8))
    assert torch.equal(unsigned.long(), rows + 128)
    padded = (torch.nn.functional.pad(x, (0, int8.width(count) - count)) for x in (scale, offset))
    found = int8.sieved(unsigned, int8.pack(queries.to(torch.int8)), *padded)
    assert not found[:, count:].any()
    found = found[:, :count]
    wanted = (exact * scale + offset).clamp(0.0, 255.0)
    assert bool(((found - wanted).abs() <= int8.ROUNDING).all())


def test_few_shapes_occur():
    rows = [int8.even_rows(n) for n in range(64, 1 << 16, 64)]
    assert len(set(rows)) < 80
    assert all(n <= even <= n * 1.125 for n, even in zip(range(64, 1 << 16, 64), rows, strict=True))
    assert len({int8.width(q) for q in range(1, 1025)}) == 19
    tiles = {scan.tile_rows(q, 1) for q in range(1, 1025)}
    assert all(int8.even_rows(n) == n for n in tiles)
    assert len(tiles) < 60


def test_rows_between_sizes_are_multiplied_alone():
    draw = torch.Generator().manual_seed(0)
    rows, queries = extreme(64 * 19, 5, draw), loud(7, 5, draw)
    assert int8.even_rows(len(rows)) > len(rows)
    found = int8.product(rows.to(torch.int8), int8.pack(queries.to(torch.int8)), 7)
    assert torch.equal(found, (rows.double() @ queries.double().mT).float())


@pytest.mark.parametrize("neighbours", [128, 254])
@pytest.mark.parametrize("d", [1, 2, 7, 384])
def test_queries_keep_to_what_neighbours_may_add_up_to(d, neighbours, monkeypatch):
    draw = torch.Generator().manual_seed(d)
    rows = torch.randn(300, d, generator=draw) * torch.rand(300, d, generator=draw) ** 4
    rows[0], rows[1], rows[2] = 0.0, 1.0, torch.nan
    rows[3] = torch.arange(d) < 1
    packed = []
    monkeypatch.setattr(int8, "pack", packed.append)
    terms = screens.Int8Screen(neighbours).queries(_cpu_screen.widen(rows), torch.zeros(d))
    z = packed[0].double()
    assert torch.equal(z.sum(1), terms.total)
    assert torch.equal(z.abs().sum(1), terms.size)
    padded = torch.nn.functional.pad(z.abs(), (0, d % 2))
    assert padded.max() <= 127
    assert (padded[:, ::2] + padded[:, 1::2]).max() <= neighbours
    assert z[3].max() == 127


def saturating(made):
    """The product of a processor that keeps sums of two products, whichever two, in 16 bits."""

    def product(rows, packed, queries):
        return made(rows, packed, queries).clamp_(-(2.0**15), 2.0**15 - 1)

    return product


def test_a_product_that_saturates_is_not_used(monkeypatch):
    int8.neighbours.cache_clear()
    monkeypatch.setattr(int8, "product", saturating(int8.product))
    try:
        assert int8.neighbours() == 0
    finally:
        int8.neighbours.cache_clear()


def test_a_sieve_that_rounds_otherwise_is_not_used(monkeypatch):
    made = int8.sieved
    int8.neighbours.cache_clear()
    monkeypatch.setattr(int8, "sieved", lambda *args: made(*args) + 1)
    try:
        assert int8.neighbours() == 0
    finally:
        int8.neighbours.cache_clear()
