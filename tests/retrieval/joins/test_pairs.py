"""`pairs_above` against float64 brute force: every pair, no other, in order, in bounded memory."""

import itertools
import json
import signal
import subprocess
import sys
import threading
import time

import numpy as np
import pytest
import torch
from hypothesis import given, settings
from hypothesis import strategies as st

import arithmetic as models
from cossim_fast import _threads, iter_pairs_above, pairs_above
from cossim_fast._score.exact import score_pairs, widen
from cossim_fast.retrieval import Pairs, TooManyPairsError, tuning
from cossim_fast.retrieval.joins import checkpoint as join_checkpoint
from cossim_fast.retrieval.joins import pairs as pairs_module
from cossim_fast.retrieval.joins import rounds, sweep
from cossim_fast.retrieval.joins.budget import Budget
from cossim_fast.retrieval.screening.codes import centre_of, encode
from cossim_fast.retrieval.screening.screens import choose

SCREENS = ("auto", "int8", "bfloat16", "float32")
pytestmark = pytest.mark.usefixtures("int8_product")


def scores_of_all(x, y=None):
    """Every pair (i, j), i < j where y is None, and its score in float64."""
    other = x if y is None else y
    i, j = torch.meshgrid(torch.arange(len(x)), torch.arange(len(other)), indexing="ij")
    i, j = (i[i < j], j[i < j]) if y is None else (i.flatten(), j.flatten())
    return i, j, score_pairs(widen(x), other, i, j)


def brute(x, y, threshold):
    i, j, scores = scores_of_all(x, y)
    double = torch.float64 in (x.dtype, (x if y is None else y).dtype)
    reached = scores >= threshold
    scores = scores[reached]
    return Pairs(i[reached], j[reached], scores if double else scores.float())


def same(found, wanted):
    for name, column, other in zip(Pairs._fields, found, wanted, strict=True):
        assert column.dtype == other.dtype
        assert torch.equal(column, other), name
    return len(found.i)


def rows_of_every_kind(n, d, dtype, seed=0):
    """Clusters, duplicates, zeros, NaN, infinities, large and small rows."""
    g = torch.Generator().manual_seed(seed)
    x = torch.randn(n, d, generator=g, dtype=torch.float64)
    x[n // 2 :] = x[: n - n // 2] + torch.rand(n - n // 2, 1, generator=g) * torch.randn(
        n - n // 2, d, generator=g
    )
    x[n // 4 : n // 4 + n // 8] = x[1]
    x[::17] = 0.0
    x[::7] *= 1e3 if dtype == torch.float16 else 1e15
    x[3::29] *= 1e-3 if dtype == torch.float16 else 1e-15
    x[5::41, 0] = torch.nan
    x[6::43, -1] = torch.inf
    return x.to(dtype)


@pytest.fixture
def small_rounds(monkeypatch):
    """Rounds, batches and room of a size that small inputs exceed."""
    monkeypatch.setattr(tuning, "FIRST_ROUND", 128)
    monkeypatch.setattr(tuning, "LONGEST_ROUND", 512)
    monkeypatch.setattr(tuning, "ROUND_BATCH", 64)
    monkeypatch.setattr(tuning, "ROUND_PAIRS", 1000)


def test_scores_are_cosines():
    x = torch.randn(50, 24)
    found = pairs_above(x, threshold=-1)
    wide = torch.nn.functional.normalize(x.double())
    wanted = (wide @ wide.T)[found.i, found.j]
    assert len(found.i) == 50 * 49 // 2
    assert (found.scores.double() - wanted).abs().max() <= 2.0**-24


@pytest.mark.parametrize("threshold", [-1, -0.2, 0, 0.3, 0.8, 0.999, 1])
@pytest.mark.parametrize(
    "dtype", [torch.float16, torch.bfloat16, torch.float32, torch.float64], ids=str
)
def test_every_pair_and_no_other(dtype, threshold):
    x = rows_of_every_kind(150, 20, dtype)
    y = rows_of_every_kind(70, 20, dtype, seed=1)
    for other in (None, y, x):
        same(pairs_above(x, other, threshold), brute(x, other, threshold))


@models.every_processor
@pytest.mark.parametrize("screen", SCREENS)
@pytest.mark.parametrize("threshold", [-0.5, 0.4, 0.9])
def test_every_screen_in_small_rounds(small_rounds, screen, threshold, processor):
    x = rows_of_every_kind(350, 33, torch.float32)
    found = pairs_above(x, threshold=threshold, screen=screen)
    assert same(found, brute(x, None, threshold)) > 100
    y = x[100:220]
    same(pairs_above(y, x, threshold, screen=screen), brute(y, x, threshold))


@pytest.mark.parametrize("n", [0, 1, 2, 63, 64, 65, 127, 129])
@pytest.mark.parametrize("d", [1, 3, 129])
def test_ragged_sizes(n, d):
    x = rows_of_every_kind(n, d, torch.float32) if n > 8 else torch.randn(n, d)
    y = torch.randn(70, d)
    for threshold in (-0.3, 0.7):
        same(pairs_above(x, threshold=threshold), brute(x, None, threshold))
        same(pairs_above(x, y, threshold), brute(x, y, threshold))
        same(pairs_above(y, x, threshold), brute(y, x, threshold))


@pytest.mark.parametrize("dtype", [torch.float32, torch.float64], ids=str)
@pytest.mark.parametrize("kind", ["few pairs", "most pairs"])
def test_a_threshold_that_is_a_score(dtype, kind):
    """The pair belongs to the result, and is gone at the next number."""
    x = torch.randn(90, 40, dtype=dtype) + (0 if kind == "few pairs" else 5)
    i, j, scores = scores_of_all(x)
    for at in torch.randint(len(scores), (12,)).tolist():
        t = float(scores[at])
        for threshold in (t, np.nextafter(t, 2), np.nextafter(t, -2)):
            if abs(threshold) <= 1:
                found = pairs_above(x, threshold=threshold)
                same(found, brute(x, None, threshold))
                there = bool(((found.i == i[at]) & (found.j == j[at])).any())
                assert there == (t >= threshold)


def test_duplicates_by_the_thousand():
    row = torch.randn(1, 24)
    x = torch.cat([row.expand(3000, 24), torch.randn(100, 24), row.expand(500, 24) * 3])
    sizes = 0
    for block in iter_pairs_above(x, threshold=0.9):
        assert bool((block.scores >= 0.9).all())
        copies = ((block.i < 3000) | (block.i >= 3100)) & ((block.j < 3000) | (block.j >= 3100))
        assert torch.equal(block.scores[copies], torch.ones(int(copies.sum())))
        sizes += int(copies.sum())
    assert sizes == 3500 * 3499 // 2


@pytest.mark.parametrize("spread", [1e-3, 1e-1])
def test_a_tight_cone(spread):
    x = 1 + spread * torch.randn(400, 48)
    _, _, scores = scores_of_all(x)
    for quantile in (0.01, 0.5, 0.99):
        threshold = float(scores.quantile(quantile))
        same(pairs_above(x, threshold=threshold), brute(x, None, threshold))


@pytest.mark.parametrize("double", [False, True])
@pytest.mark.parametrize("threshold", [-1.0, 0.05, 0.5])
def test_products_in_float64_are_scores_once_rounded(monkeypatch, double, threshold):
    """No screen at all: what decides is the product, whose bits are not those of the score."""
    x = torch.randn(300, 200, dtype=torch.float64 if double else torch.float32)
    x[40] = x[3] * 2
    x[50], x[60] = 0, torch.nan
    segment = encode(x, centre_of(x))
    swept = sweep.Sweep([], centre_of(x), threshold, double=double)
    batch = sweep.Batch(torch.arange(300), x, [], centre_of(x))
    found, kept = swept.through(batch, segment, Budget(1 << 20))
    assert kept == 300
    found = rounds.in_order(batch, [found])
    same(Pairs(*found), brute(x, x, threshold))


def test_a_product_of_orthogonal_rows_is_zero():
    x = torch.eye(80) * torch.tensor([1.0, -1.0]).repeat(40)[:, None]
    found = pairs_above(x, threshold=0)
    assert len(found.i) == 80 * 79 // 2
    assert torch.equal(found.scores, torch.zeros(len(found.i)))


@models.every_processor
@pytest.mark.parametrize("screen", SCREENS)
def test_what_fills_a_block_up_pairs_with_nothing(screen, processor):
    g = torch.Generator().manual_seed(0)
    lean = torch.nn.functional.normalize(torch.randn(1, 48, generator=g))
    y = torch.nn.functional.normalize(torch.randn(70, 48, generator=g)) + 0.4 * lean
    x = torch.cat([lean, torch.randn(99, 48, generator=g)])
    # The screens see a row at the mean direction in the place of none: near enough to one query.
    assert float(torch.nn.functional.normalize(y).mean(0) @ lean[0]) > 0.33
    same(pairs_above(x, y, 0.33, screen=screen), brute(x, y, 0.33))


def test_nothing_pairs_with_nan_and_zero_scores_zero():
    x = torch.tensor([[1.0, 0], [torch.nan, 1], [0, 0], [torch.inf, 1], [0, 0]])
    found = pairs_above(x, threshold=-1)
    assert torch.stack([found.i, found.j]).T.tolist() == [[0, 2], [0, 4], [2, 4]]
    assert found.scores.tolist() == [0, 0, 0]
    assert len(pairs_above(x, threshold=1e-300).i) == 0


def test_screens_are_given_up_where_they_do_not_pay_and_taken_up_again():
    g = torch.Generator().manual_seed(0)
    apart = torch.randn(8192, 64, generator=g)
    x = torch.cat([apart[:4096], apart[:1].expand(8192, 64), apart[4096:]])
    screens = choose(64)
    swept = sweep.Sweep(screens, centre_of(x), 0.9)
    batch = sweep.Batch(torch.arange(1024), x[:1024], screens, centre_of(x))
    # Every second query is a copy of the row that is there 8192 times.
    batch = sweep.Batch(torch.arange(1024), x[3072:5120][::2], screens, centre_of(x))
    _, kept = swept.through(batch, encode(x, centre_of(x)), Budget(1 << 30))
    assert kept == 1024
    assert swept.levels[0] == 4
    assert swept.levels[-1] == 4


def test_streams_give_the_same_in_blocks_of_whole_rows(small_rounds):
    x = rows_of_every_kind(400, 16, torch.float32)
    for other, threshold in ((None, 0.4), (x[:50], 0.4), (None, -1.0)):
        blocks = list(iter_pairs_above(x, other, threshold))
        assert len(blocks) > 2
        whole = Pairs(*(torch.cat(column) for column in zip(*blocks, strict=True)))
        same(whole, brute(x, other, threshold))
        for block, after in itertools.pairwise(blocks):
            assert block.i[-1] < after.i[0]
        for block in blocks:
            assert len(block.i) <= tuning.ROUND_PAIRS or block.i[0] == block.i[-1]


def test_arrays_give_arrays_and_memory_maps_are_read(tmp_path, small_rounds):
    x = rows_of_every_kind(300, 24, torch.float16)
    np.save(tmp_path / "x.npy", x.numpy())
    mapped = np.load(tmp_path / "x.npy", mmap_mode="r")
    found = pairs_above(mapped, threshold=0.5)
    assert all(type(column) is np.ndarray for column in found)
    same(Pairs(*map(torch.from_numpy, found)), brute(x, None, 0.5))
    (block, *_) = iter_pairs_above(mapped, x, 0.5)
    assert all(type(column) is np.ndarray for column in block)


def test_several_segments(monkeypatch, small_rounds):
    monkeypatch.setattr("cossim_fast.retrieval.storage.corpus.NUMBERS", 24 * 128)
    x = rows_of_every_kind(400, 24, torch.float32)
    for kept in (0, 24 * 300, 1 << 20):
        monkeypatch.setattr("cossim_fast.retrieval.joins.corpus.KEPT", kept)
        for threshold in (0.9, 0.2, -1):
            same(pairs_above(x, threshold=threshold), brute(x, None, threshold))
            same(pairs_above(x[:90], x, threshold), brute(x[:90], x, threshold))


@pytest.fixture
def threads(monkeypatch):
    """Set how many threads work, whatever processors there are."""
    before = torch.get_num_threads()
    monkeypatch.setattr(_threads, "processors", lambda: 16)
    yield torch.set_num_threads
    torch.set_num_threads(before)


@pytest.mark.parametrize("threshold", [0.5, 0.9])
def test_results_do_not_depend_on_threads(threads, threshold):
    x = torch.randn(3500, 64) + 1
    found = []
    for count in (1, 2, 3):
        threads(count)
        found.append(pairs_above(x, threshold=threshold))
        same(found[-1], found[0])
    same(found[0], brute(x, None, threshold))


@pytest.mark.parametrize("crowded", [slice(0, 100), slice(300, 400), slice(0, 400)])
def test_results_and_blocks_do_not_depend_on_room_that_threads_share(
    threads, small_rounds, crowded
):
    """A batch that has more pairs than its share is put off; the others stay."""
    x = rows_of_every_kind(400, 16, torch.float32)
    x[crowded] = x[crowded.start] + 0.3 * x[crowded]
    wanted, blocks = brute(x, None, 0.6), []
    for count in (2, 2, 3):
        threads(count)
        same(pairs_above(x, threshold=0.6), wanted)
        blocks.append([len(block.i) for block in iter_pairs_above(x, threshold=0.6)])
        assert all(size <= tuning.ROUND_PAIRS for size in blocks[-1])
    assert blocks[0] == blocks[1]


def test_an_error_in_one_part_stops_the_others(threads, monkeypatch):
    """At the next tile, which is long before the end."""
    threads(2)
    monkeypatch.setattr(tuning, "TILE_SCORES", 1 << 15)
    tiles, failed, tile = [], threading.Event(), sweep.Sweep._tile

    def one_fails(self, batch, *args):
        if 0 in batch.numbers:
            failed.set()
            raise StoppedError("here")
        assert failed.wait(60)
        time.sleep(0.05)
        tiles.append(0)
        return tile(self, batch, *args)

    monkeypatch.setattr(sweep.Sweep, "_tile", one_fails)
    with pytest.raises(StoppedError, match="here"):
        pairs_above(torch.randn(5000, 16), threshold=0.9)
    assert len(tiles) <= 2


@pytest.mark.skipif(not hasattr(signal, "pthread_kill"), reason="this system has no such signal")
def test_an_interrupt_stops_the_threads(threads, monkeypatch):
    threads(2)
    monkeypatch.setattr(tuning, "TILE_SCORES", 1 << 15)
    tiles, tile, numbers = [], sweep.Sweep._tile, itertools.count()

    def interrupted(self, *args):
        if next(numbers) == 2:  # one thread alone is told so, whenever two come at once
            signal.pthread_kill(threading.main_thread().ident, signal.SIGINT)
        tiles.append(0)
        time.sleep(0.02)
        return tile(self, *args)

    monkeypatch.setattr(sweep.Sweep, "_tile", interrupted)
    with pytest.raises(KeyboardInterrupt):
        pairs_above(torch.randn(20000, 16), threshold=0.9)
    ended = len(tiles)
    assert ended < 20
    time.sleep(0.2)
    assert len(tiles) == ended


def test_mixed_dtypes():
    x, y = torch.randn(60, 12).half(), torch.randn(40, 12).double()
    assert same(pairs_above(x, y, 0.1), brute(x, y, 0.1)) > 100
    assert same(pairs_above(x, y.bfloat16(), 0.1), brute(x, y.bfloat16(), 0.1)) > 100


class TestRangeSearch:
    """What an index calls."""

    def test_rows_that_are_not_eligible_are_left_out(self):
        rows, queries = torch.randn(500, 16), torch.randn(40, 16)
        centre = centre_of(rows)
        segments = [
            encode(rows[a:b], centre, first=a) for a, b in ((0, 100), (100, 101), (101, 500))
        ]
        segments[2].eligible[::3] = False
        removed = torch.arange(101, 500, 3)
        for threshold in (0.3, -1.0):
            found = Pairs(*map(torch.cat, zip(*pairs_module.range_search(
                queries, segments, centre, threshold
            ), strict=True)))  # fmt: skip
            wanted = brute(queries, rows, threshold)
            kept = ~torch.isin(wanted.j, removed)
            same(found, Pairs(*(column[kept] for column in wanted)))

    def test_segments_without_codes(self):
        rows, queries = torch.randn(200, 16), torch.randn(40, 16)
        segments = [encode(rows, centre_of(rows), codes=False)]
        (found,) = pairs_module.range_search(queries, segments, centre_of(rows), 0.4, double=True)
        wanted = brute(queries, rows.double(), 0.4)
        same(Pairs(*found), wanted)


class TestMaxPairs:
    def test_stops_and_says_what_to_do(self):
        g = torch.Generator().manual_seed(0)
        x = torch.randn(3000, 8, generator=g)
        assert len(pairs_above(x, threshold=0.95, max_pairs=10**9).i) > 100
        with pytest.raises(TooManyPairsError, match="max_pairs=1000 pairs to reach") as caught:
            pairs_above(x, threshold=0.5, max_pairs=1000)
        assert f"{caught.value.found} among the first" in str(caught.value)
        assert caught.value.found > 1000
        left = len(pairs_above(x, threshold=caught.value.suggested).i)
        assert 300 < left < 2000
        assert f"threshold={caught.value.suggested:.4f} would leave" in str(caught.value)

    def test_as_many_as_allowed_is_allowed(self):
        x = torch.randn(200, 8)
        count = len(pairs_above(x, threshold=0.5).i)
        assert len(pairs_above(x, threshold=0.5, max_pairs=count).i) == count
        with pytest.raises(ValueError, match=f"{count} among the first 100.00%"):
            pairs_above(x, threshold=0.5, max_pairs=count - 1)

    def test_where_no_threshold_helps(self):
        with pytest.raises(TooManyPairsError, match="no threshold would leave so few") as caught:
            pairs_above(torch.ones(50, 4), threshold=0.5, max_pairs=3)
        assert caught.value.suggested is None


class StoppedError(Exception):
    pass


def interrupted_after(monkeypatch, sweeps):
    """Stop the join after so many sweeps; return what undoes that."""
    count = iter(range(10**9))

    def failing(sweep, *args):
        if next(count) >= sweeps:
            raise StoppedError

    return before_sweeps(monkeypatch, failing)


def before_sweeps(monkeypatch, do):
    """Call do(sweep, batch, ...) before each sweep; return what undoes that."""
    sweeps = {name: getattr(sweep.Sweep, name) for name in ("through", "if_it_fits")}

    def doing(name):
        def first(self, *args):
            do(self, *args)
            return sweeps[name](self, *args)

        return first

    for name in sweeps:
        monkeypatch.setattr(sweep.Sweep, name, doing(name))

    def undo():
        for name, before in sweeps.items():
            monkeypatch.setattr(sweep.Sweep, name, before)

    return undo


class TestCheckpoint:
    @pytest.fixture(autouse=True)
    def _often(self, monkeypatch, small_rounds):
        pytest.importorskip("safetensors")
        monkeypatch.setattr(join_checkpoint, "_WAIT", 0)

    def test_goes_on_where_it_ended(self, tmp_path, monkeypatch):
        x, path = rows_of_every_kind(400, 16, torch.float32), tmp_path / "join"
        undo = interrupted_after(monkeypatch, 5)
        with pytest.raises(StoppedError):
            pairs_above(x, threshold=0.6, checkpoint=path)
        undo()
        assert path.exists()
        begun = []
        before_sweeps(monkeypatch, lambda _, batch, *__: begun.append(int(batch.numbers[0])))
        same(pairs_above(x, threshold=0.6, checkpoint=path), brute(x, None, 0.6))
        assert min(begun) > 100
        assert list(tmp_path.iterdir()) == []

    def test_a_stream_gives_again_what_was_not_done_with(self, tmp_path):
        x, path = rows_of_every_kind(400, 16, torch.float32), tmp_path / "join"
        stream = iter_pairs_above(x, threshold=0.6, checkpoint=path)
        done = [next(stream), next(stream)]
        in_hand = next(stream)
        stream.close()
        rest = list(iter_pairs_above(x, threshold=0.6, checkpoint=path))
        again = torch.cat([block.i for block in rest])
        assert torch.equal(again[: len(in_hand.i)], in_hand.i)
        whole = Pairs(*(torch.cat(column) for column in zip(*done, *rest, strict=True)))
        same(whole, brute(x, None, 0.6))
        assert list(tmp_path.iterdir()) == []

    @pytest.mark.parametrize("change", ["x", "threshold", "y", "kind"])
    def test_of_another_join_is_refused(self, tmp_path, monkeypatch, change):
        x, path = torch.randn(600, 16), tmp_path / "join"
        undo = interrupted_after(monkeypatch, 7)
        with pytest.raises(StoppedError):
            pairs_above(x, threshold=0.4, checkpoint=path)
        undo()
        again = {
            "x": lambda: pairs_above(x + 1, threshold=0.4, checkpoint=path),
            "threshold": lambda: pairs_above(x, threshold=0.5, checkpoint=path),
            "y": lambda: pairs_above(x, x, threshold=0.4, checkpoint=path),
            "kind": lambda: list(iter_pairs_above(x, threshold=0.4, checkpoint=path)),
        }[change]
        with pytest.raises(ValueError, match=rf"it differs in .*\b{change}\b.*; delete it"):
            again()

    def test_a_damaged_file_is_refused(self, tmp_path):
        path = tmp_path / "join"
        path.write_bytes(b"\x05" * 40)
        with pytest.raises(ValueError, match="truncated"):
            pairs_above(torch.randn(9, 3), checkpoint=path)


BAD = {
    "one row": ((torch.ones(3),), {}, ValueError, r"expected x of shape \(n, d\), got \(3,\)"),
    "integers": ((torch.ones(3, 2).int(),), {}, TypeError, "expected x of float16"),
    "integers in y": (
        (torch.ones(3, 2), torch.ones(3, 2).int()), {}, TypeError, "expected y of float16"
    ),
    "widths": (
        (torch.ones(3, 2), torch.ones(3, 4)), {}, ValueError,
        r"expected y of shape \(m, 2\) to match x, got \(m, 4\)",
    ),
    "above 1": ((torch.ones(3, 2), None, 80), {}, ValueError, r"threshold in \[-1, 1\].*got 80"),
    "below -1": ((torch.ones(3, 2), None, -1.5), {}, ValueError, r"threshold in \[-1, 1\]"),
    "NaN": ((torch.ones(3, 2), None, float("nan")), {}, ValueError, r"threshold in \[-1, 1\]"),
    "a word": ((torch.ones(3, 2), None, "high"), {}, TypeError, "expected threshold to be a num"),
    "None": ((torch.ones(3, 2), None, None), {}, TypeError, "expected threshold to be a number"),
    "screen": ((torch.ones(3, 2),), {"screen": "int4"}, ValueError, "screen to be one of"),
}  # fmt: skip


@pytest.mark.parametrize("case", BAD)
@pytest.mark.parametrize("function", [pairs_above, iter_pairs_above])
def test_bad_input_is_refused_at_the_call(function, case):
    args, options, error, message = BAD[case]
    with pytest.raises(error, match=message):
        function(*args, **options)


@pytest.mark.parametrize(("most", "error"), [(-1, ValueError), (1.5, TypeError), (True, TypeError)])
def test_bad_max_pairs(most, error):
    with pytest.raises(error, match="max_pairs"):
        pairs_above(torch.ones(3, 2), max_pairs=most)


@settings(max_examples=40, deadline=None)
@given(
    n=st.integers(1, 100),
    m=st.integers(0, 50),
    d=st.integers(1, 70),
    dtype=st.sampled_from([torch.float16, torch.bfloat16, torch.float32, torch.float64]),
    threshold=st.floats(-1, 1),
    lean=st.floats(0, 10),
    screen=st.sampled_from(SCREENS),
    room=st.integers(50, 5000),
    seed=st.integers(0, 2**31),
)
def test_any_input(n, m, d, dtype, threshold, lean, screen, room, seed):
    g = torch.Generator().manual_seed(seed)
    x = (torch.randn(n, d, generator=g) + lean).to(dtype)
    y = (torch.randn(m, d, generator=g) + lean).to(dtype) if m else None
    with pytest.MonkeyPatch.context() as patch:
        patch.setattr(tuning, "ROUND_PAIRS", room)
        patch.setattr(tuning, "FIRST_ROUND", 40)
        patch.setattr(tuning, "ROUND_BATCH", 16)
        same(pairs_above(x, y, threshold, screen=screen), brute(x, y, threshold))


MEASURE = """
import resource, json, torch
from cossim_fast import iter_pairs_above
torch.set_num_threads(1)

def peak(x, threshold):
    for block in iter_pairs_above(x[:300], threshold=threshold):
        pass
    with open("/proc/self/statm") as statm:
        before = int(statm.read().split()[1]) * resource.getpagesize()
    with open("/proc/self/clear_refs", "w") as refs:
        refs.write("5")
    pairs = sum(len(block.i) for block in iter_pairs_above(x, threshold=threshold))
    with open("/proc/self/status") as status:
        (high,) = [line.split()[1] for line in status if line.startswith("VmHWM")]
    return pairs, (int(high) * 1024 - before) / 1e6

print(json.dumps([
    peak(torch.ones(6000, 16) + 0.1 * torch.randn(6000, 16), -1.0),
    peak(torch.randn(30000, 16), 0.9),
]))
"""


@pytest.mark.skipif(sys.platform != "linux", reason="reads /proc")
def test_memory_is_bounded():
    done = subprocess.run(
        [sys.executable, "-W", "ignore", "-c", MEASURE], capture_output=True, text=True, check=False
    )
    assert done.returncode == 0, done.stderr
    (every, dense), (some, sparse) = json.loads(done.stdout)
    assert every == 6000 * 5999 // 2  # 360 MB
    assert dense < 300
    assert 0 < some < 10**5
    assert sparse < 200
