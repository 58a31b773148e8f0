"""Rows on their way to codes: by two bodies, by several threads, with the same norms."""

import math
import threading
import tracemalloc

import pytest
import torch

from cossim_fast._score.exact import row_norms
from cossim_fast.retrieval import tuning
from cossim_fast.retrieval.screening import codes
from cossim_fast.retrieval.screening.codes import BLOCK, centre_of, encode
from search_data import CORPORA, make

DTYPES = (torch.float16, torch.bfloat16, torch.float32, torch.float64)


@pytest.fixture(params=["numpy", "torch"])
def body(request, monkeypatch):
    """Both bodies of `encode`, in chunks of one block and one that is not full."""
    monkeypatch.setattr(tuning, "CODED_NUMBERS", 1 << 10)
    if request.param == "torch":  # as on another device

        def by_torch(segment, given, centre, step, usual, most):
            if given is not segment.rows:
                segment.rows.copy_(given)
            for start in range(0, len(segment), step):
                codes._encode_chunk(segment, centre, slice(start, start + step), usual)

        monkeypatch.setattr(codes, "_share", by_torch)


@pytest.mark.parametrize("count", [1, 2])
@pytest.mark.parametrize(
    "dtype", [torch.float16, torch.bfloat16, torch.float32, torch.float64], ids=str
)
def test_rows_are_copied_on_the_way(dtype, count, body, threads):
    threads(count)
    given = torch.randn((333, 50), generator=torch.Generator().manual_seed(1)).to(dtype)[:, ::2]
    given[7] = torch.nan
    given[8] = 0.0
    centre = codes.centre_of(given)
    kept = torch.full((333, 25), 9.0, dtype=dtype)
    found, plain = codes.encode(given, centre, into=kept), codes.encode(given, centre)
    assert found.rows is kept
    assert torch.equal(kept.nan_to_num(7.0), given.nan_to_num(7.0))
    for name in ("norms", "eligible", "radius", "codes", "scale", "residual"):
        one, other = getattr(found, name), getattr(plain, name)
        assert torch.equal(one.nan_to_num(-1.0), other.nan_to_num(-1.0)), name


@pytest.fixture
def threads():
    """Set the number of threads, and set it back."""
    before = torch.get_num_threads()
    yield torch.set_num_threads
    torch.set_num_threads(before)


def unit_rows(rows):
    """x̄ in float64."""
    wide = rows.double()
    largest = wide.abs().amax(1, keepdim=True)
    safe = wide / torch.where(largest > 0, largest, 1.0)
    return safe / safe.norm(dim=1, keepdim=True).clamp_min(1e-300)


def assert_promises(segment, rows, centre):
    finite = rows.isfinite().all(1)
    assert torch.equal(segment.eligible, finite)
    y = unit_rows(rows) - centre.double()
    block = torch.arange(len(rows)) // BLOCK
    coded = segment.codes[: len(rows)].double() * segment.scale[block, None].double()
    missed, length = (y - coded).norm(dim=1)[finite], y.norm(dim=1)[finite]
    block = block[finite]
    assert bool((missed <= segment.residual[block].double()).all())
    assert bool((length <= segment.radius[block].double()).all())
    # Not much larger than that either.
    loose = 1 + (2 * rows.shape[1] + 16) * 2.0**-24
    for bound, seen in ((segment.residual, missed), (segment.radius, length)):
        longest = torch.zeros(len(bound)).double().scatter_reduce(0, block, seen, "amax")
        assert bool((bound.double() <= longest * loose + 2.0**-20).all())
    assert segment.codes.abs().max() <= 127
    assert not segment.codes[len(rows) :].any()


# Rows that are near each other differ in float64 alone.
STORED = [(kind, dtype) for kind in CORPORA for dtype in DTYPES[3 * (kind == "near") :]]


@pytest.mark.parametrize("d", [1, 3, 64, 77, 384])
@pytest.mark.parametrize(("kind", "dtype"), STORED)
@pytest.mark.usefixtures("body")
def test_both_bodies_keep_the_promises(kind, dtype, d):
    rows = make(kind, 333, d, 2, dtype)[1]
    for centre in (centre_of(rows), torch.zeros(d)):
        segment = encode(rows, centre)
        assert_promises(segment, rows, centre)
        # These bits are part of every score.
        assert torch.equal(segment.norms.nan_to_num(-1), row_norms(rows).nan_to_num(-1))
        plain = encode(rows, centre, codes=False)
        assert plain.codes is None
        assert torch.equal(plain.radius, segment.radius)


@pytest.mark.usefixtures("body")
def test_entries_too_small_for_a_scale():
    rows = torch.tensor([[1.0, 1e-39], [1.0, 0.0]]).repeat(40, 1)
    centre = torch.tensor([1.0, 0.0])
    segment = encode(rows, centre)
    assert_promises(segment, rows, centre)
    assert not segment.codes.any()


@pytest.mark.usefixtures("body")
@pytest.mark.parametrize("shape", [(0, 5), (1, 1), (64, 1)])
def test_next_to_nothing(shape):
    segment = encode(torch.ones(shape), torch.zeros(shape[1]))
    assert segment.codes.shape == (-(-shape[0] // BLOCK) * BLOCK, shape[1])
    assert torch.equal(segment.norms, torch.full((shape[0],), math.sqrt(shape[1])).double())


@pytest.mark.parametrize("layout", ["rows", "columns", "every other"])
@pytest.mark.parametrize("dtype", DTYPES, ids=str)
def test_threads_and_layout_change_nothing(dtype, layout, threads, monkeypatch):
    monkeypatch.setattr(tuning, "CODED_NUMBERS", 1 << 12)
    rows = make("holes", 5000, 40, 2, dtype)[1]
    given = {
        "rows": rows,
        "columns": rows.mT.contiguous().mT,
        "every other": rows.repeat_interleave(2, dim=1)[:, ::2],
    }[layout]
    threads(1)
    alone = encode(rows, centre_of(rows))
    helped = threading.Event()
    caller, chunk = threading.get_ident(), codes._Coder._code

    def watched(self, *args):
        if threading.get_ident() != caller:
            helped.set()
        assert helped.wait(60)
        return chunk(self, *args)

    monkeypatch.setattr(codes._Coder, "_code", watched)
    threads(3)
    shared = encode(given, centre_of(rows))
    for name in ("norms", "eligible", "radius", "scale", "residual", "codes"):
        one, other = getattr(alone, name), getattr(shared, name)
        assert torch.equal(one.nan_to_num(-1), other.nan_to_num(-1)), name


def test_a_thread_that_fails_stops_the_others(threads, monkeypatch):
    monkeypatch.setattr(tuning, "CODED_NUMBERS", 1 << 10)
    count, chunk = [], codes._Coder._code

    def failing(self, y, at):
        count.append(at.start)
        if at.start == 8:
            raise KeyboardInterrupt
        return chunk(self, y, at)

    monkeypatch.setattr(codes._Coder, "_code", failing)
    rows = torch.randn(64 * 20_000, 16)
    threads(2)
    with pytest.raises(KeyboardInterrupt):
        encode(rows, torch.zeros(16))
    assert len(count) < 19_000


@pytest.mark.parametrize("d", [384, 8192])
def test_scratch_is_bounded_whatever_the_threads(d, threads):
    rows = torch.ones((1 << 24) // d, d)
    threads(64)
    tracemalloc.start()
    try:
        segment = encode(rows, torch.zeros(d))
        _, peak = tracemalloc.get_traced_memory()
    finally:
        tracemalloc.stop()
    assert len(segment) == len(rows)
    assert 0 < peak - segment.codes.nbytes < 64 << 20  # what else is kept is torch's, not counted
