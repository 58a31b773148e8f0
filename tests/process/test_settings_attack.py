"""Other threads that change how torch rounds float32 products, while this package forms them."""

import sys
import threading
import time

import numpy as np
import pytest
import torch

import old_torch
import rounding
from cossim_fast import (
    CosineIndex,
    _fp32_setting,
    _products,
    _reference,
    deduplicate,
    pairs_above,
    pairwise_cosine,
    topk,
)
from cossim_fast.testing import assert_close, make_inputs
from search_data import brute_force, make

SCREENS = ["float32", "bfloat16", "int8", "auto"]


def lower():
    torch.set_float32_matmul_precision("medium")


def restore():
    torch.set_float32_matmul_precision("highest")


def as_set(x):
    """A processor on which torch does what the setting lets it, some time after it was called."""
    time.sleep(5e-5)
    lowered = _fp32_setting.get("mkldnn") in ("bf16", "tf32")
    return rounding.to_bfloat16(x) if lowered else x


@pytest.fixture(autouse=True)
def _products_of_torch(monkeypatch):
    """Every product is torch's, however small."""
    monkeypatch.setattr(_products, "_FEW", 0)
    monkeypatch.setattr(_products, "_REST", 0.0)
    _products._tried.clear()
    _products._start_anew()
    yield
    restore()
    old_torch.set_setting("mkldnn", "none")
    _products._tried.clear()
    _products._start_anew()


@pytest.fixture(params=["without sleeps", "with sleeps", "back at once"])
def changing(request):
    """A thread that changes the setting in turn until the test ends, and products that follow."""
    stop, pause = threading.Event(), 1e-4 if request.param == "with sleeps" else 0.0

    def change():
        while not stop.is_set():
            lower()
            if request.param != "back at once":
                time.sleep(pause)
            restore()
            time.sleep(pause)

    thread = threading.Thread(target=change)
    interval = sys.getswitchinterval()
    sys.setswitchinterval(1e-5)  # so that changes fall into products
    restore()
    with rounding.rounding(as_set):
        for form, _ in products():
            form()  # tried: a trial beside that thread seldom comes to its end
        thread.start()
        yield
        stop.set()
        thread.join()
    sys.setswitchinterval(interval)


def search_data():
    return make("clustered", 700, 96, 12, torch.float32)


@pytest.mark.usefixtures("changing")
@pytest.mark.parametrize("screen", SCREENS)
def test_searches(screen):
    queries, corpus = search_data()
    scores, rows = brute_force(queries, corpus, 10)
    for _ in range(12):
        index = CosineIndex(corpus, screen=screen)
        for found in (topk(queries, corpus, 10, screen=screen), index.search(queries, 10)):
            assert torch.equal(found.indices, rows)
            assert torch.equal(found.scores, scores.float())


@pytest.mark.usefixtures("changing")
@pytest.mark.parametrize("screen", SCREENS)
def test_joins(screen):
    g = torch.Generator().manual_seed(5)
    x = torch.randn(400, 96, generator=g) * 0.9 ** torch.arange(96)
    x[200:] = x[:200] + 0.02 * torch.randn(200, 96, generator=g)
    exact = _reference.pairwise_cosine(x, x, eps=0.0)
    threshold = float(exact[3, 203]) - 1e-12
    expected = {*map(tuple, torch.nonzero((exact >= threshold).triu(1)).tolist())}
    kept = deduplicate(x, threshold).kept
    for _ in range(12):
        i, j, _ = pairs_above(x, threshold=threshold, screen=screen)
        assert {*zip(i.tolist(), j.tolist(), strict=True)} == expected
        assert torch.equal(deduplicate(x, threshold, screen=screen).kept, kept)


@pytest.mark.usefixtures("changing")
def test_matrices():
    x, y = make_inputs((200, 100), (150, 100))
    exact = _reference.pairwise_cosine(x, y)
    for _ in range(60):
        assert_close(pairwise_cosine(x, y), exact)


def products():
    """Every way to a product that is looked at, with what it should give."""
    a, b = make_inputs((40, 60), (60, 30))
    start = torch.ones(40, 30)
    exact = a.double() @ b.double()
    yield lambda: _products.mm(a, b), exact
    yield lambda: _products.bmm(a[None], b[None])[0], exact
    if torch.backends.mkldnn.is_available():
        rows = b.T.contiguous()
        yield lambda: _products.linear(a, rows), exact
        yield lambda: _products.linear(a, rows, start), exact + 1


@pytest.mark.parametrize("round_factor", [rounding.to_bfloat16, rounding.to_tf32])
def test_a_change_that_is_undone_within_a_product_is_seen(round_factor, monkeypatch):
    """Nothing of it is to be seen in the settings, before or after."""
    for form, exact in products():
        form()  # tried, and left whole
        rounds = [False]
        with rounding.rounding(lambda x, rounds=rounds: round_factor(x) if rounds[0] else x):
            rounds[0] = True
            monkeypatch.setattr(_products._threads, "others_run", lambda: False)
            assert float((form().double() - exact).abs().max()) > 1e-4  # so it is rounded
            monkeypatch.undo()
            monkeypatch.setattr(_products, "_FEW", 0)
            other = threading.Event()
            thread = threading.Thread(target=other.wait)
            thread.start()
            try:
                assert float((form().double() - exact).abs().max()) < 1e-4
            finally:
                other.set()
                thread.join()


def test_a_whole_product_is_taken_for_one(monkeypatch):
    """So that nothing is formed twice beside threads that change nothing."""
    monkeypatch.setattr(_products._threads, "others_run", lambda: True)
    refused = []
    looked = _products._is_whole

    def note(*arguments):
        refused.append(not looked(*arguments))
        return not refused[-1]

    monkeypatch.setattr(_products, "_is_whole", note)
    g = torch.Generator().manual_seed(2)
    for n, d, m in ((300, 8, 300), (64, 768, 64), (5, 4096, 3), (1, 384, 700), (500, 100, 500)):
        for kind in ("far", "near"):
            a = torch.randn(n, d, generator=g)
            b = torch.randn(m, d, generator=g) if kind == "far" else a[:1] + 1e-3 * a.mean()
            a, b = (torch.nn.functional.normalize(x) for x in (a, b.expand(m, d)))
            _products.mm(a, b.mT.contiguous())
    a = torch.nn.functional.normalize(torch.randn(64, 50, generator=g))
    a[::16] = torch.nan  # a few of those that are looked at
    a[16:32] = torch.inf
    a[:16] = torch.nn.functional.normalize(torch.randn(16, 50, generator=g))
    _products.mm(a, a.mT.contiguous())
    assert refused
    assert not any(refused)


def test_factors_that_rounding_leaves_alone_are_multiplied_in_float64(monkeypatch):
    monkeypatch.setattr(_products._threads, "others_run", lambda: True)
    a = torch.eye(30)
    assert not _products._is_whole(a, a, a, None)
    assert torch.equal(_products.mm(a, a), a)


def test_products_of_few_numbers_ask_no_setting(monkeypatch):
    monkeypatch.setattr(_products, "_FEW", 1 << 18)
    a, b = make_inputs((64, 60), (60, 30))
    start = torch.full((3, 64, 30), torch.nan)
    lower()
    exact = a.double() @ b.double()
    for found in (
        _products.mm(a, b),
        _products.mm(a, b, out=torch.full((30, 64), torch.nan).T),
        _products.bmm(a.expand(3, 64, 60), b.expand(3, 60, 30), out=start)[2],
    ):
        assert float((found.double() - exact).abs().max()) < 1e-4
    assert not _products._tried
    empty = _products.mm(torch.empty(3, 0), torch.empty(0, 4), out=torch.full((3, 4), 7.0))
    assert torch.equal(empty, torch.zeros(3, 4))
    with np.errstate(all="raise"):
        assert _products.bmm(torch.full((1, 2, 2), torch.inf), torch.zeros(1, 2, 2)).isnan().all()


def test_a_trial_that_others_may_have_spoiled_is_not_for_good(monkeypatch):
    monkeypatch.setattr(_products, "_REST", 0.02)
    a, b = make_inputs((40, 50), (50, 30))
    for others in (True, False):
        monkeypatch.setattr(_products._threads, "others_run", lambda others=others: others)
        _products._tried.clear()
        with rounding.rounding(rounding.to_bfloat16):
            _products.mm(a, b)
        assert "float64" in _products.described()
        time.sleep(0.03)
        assert _products.described().startswith("as torch" if others else "in float64")


def test_float32_is_taken_up_again_after_a_rest(monkeypatch):
    monkeypatch.setattr(_products, "_REST", 0.02)
    x, y = make_inputs((40, 50), (40, 50))
    _products._rest()
    assert "another thread" in _products.described()
    assert_close(pairwise_cosine(x, y), _reference.pairwise_cosine(x, y))
    time.sleep(0.03)
    assert _products.described().startswith("as torch")


@pytest.mark.parametrize("precision", ["highest", "high", "medium"])
def test_a_stranger_is_as_exact_as_before_and_settings_are_theirs(precision):
    """While calls of ours run, whatever their precision."""
    x, y = make_inputs((300, 100), (300, 100))
    x, y = torch.nn.functional.normalize(x), torch.nn.functional.normalize(y)
    exact, off, stop = x.double() @ y.double().T, [], threading.Event()

    def stranger():
        while not stop.is_set():
            off.append(float((torch.mm(x, y.T).double() - exact).abs().max()))

    thread = threading.Thread(target=stranger)
    thread.start()
    for _ in range(30):
        pairwise_cosine(x, y, precision=precision)
    stop.set()
    thread.join()
    assert off
    assert max(off) < 1e-4
    setting = threading.Timer(0.002, lower)
    setting.start()
    while setting.is_alive():
        topk(x, y, 3, screen="float32")
        pairwise_cosine(x, y, precision=precision)
    assert torch.get_float32_matmul_precision() == "medium"
