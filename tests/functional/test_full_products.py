"""Float32 products with whole factors, also where torch's own products round them."""

import os
import threading
import time

import pytest
import torch

import old_torch
import rounding
from cossim_fast import (
    _fp32_setting,
    _ops,
    _products,
    _reference,
    _threads,
    pairs_above,
    pairwise_cosine,
    topk,
)
from cossim_fast._cpu import products
from cossim_fast._score.exact import widen
from cossim_fast.retrieval.screening import codes, projection, screens
from cossim_fast.testing import assert_close, make_inputs
from search_data import brute_force, make


@pytest.fixture(autouse=True)
def _try_anew(monkeypatch):
    """What was tried under other products does not hold here, nor afterwards; all are torch's."""
    monkeypatch.setattr(_products, "_FEW", 0)
    _forget()
    yield
    put("none", "generic", "all")
    put("none")
    _forget()


def _forget():
    _products._tried.clear()
    _products._start_anew()


def setting() -> str:
    return _fp32_setting.get("mkldnn")


def put(value: str, backend: str = "mkldnn", op: str = "matmul") -> None:
    # What torch.backends.mkldnn.matmul.fp32_precision = value does, but for torch's own test
    # helpers, which lock torch.backends once they are imported.
    old_torch.set_setting(backend, value, op)


ROUNDINGS = [rounding.to_bfloat16, rounding.to_tf32, rounding.to_float16]


@pytest.fixture(params=ROUNDINGS, ids=lambda each: each.__name__)
def rounds(request):
    with rounding.rounding(request.param):
        yield


@pytest.fixture
def untried(monkeypatch):
    """As if nothing were tried, and torch's products believed."""
    monkeypatch.setattr(_products, "_leaves_factors_whole", lambda by: True)
    # Beside other threads, as a parallel run of the tests has them, products are looked at.
    monkeypatch.setattr(_threads, "others_run", lambda: False)


def check_products():
    for n, d, m in ((1, 1, 1), (70, 90, 130), (5, 300, 1), (3, 0, 4), (0, 5, 4), (7, 5, 0)):
        a, b = make_inputs((3, n, d), (3, d, m))
        a, b = a.abs(), b.abs()  # so that the sum of a product's terms is what it is compared with
        exact = a.double() @ b.double()
        allowed = exact * (d * 2.0**-24) + 1e-30
        got = [
            _products.bmm(a, b),
            _products.bmm(a, b, out=torch.full_like(exact, torch.nan, dtype=torch.float32)),
            torch.stack([_products.mm(x, y) for x, y in zip(a, b, strict=True)]),
            torch.stack([_products.mm(x, y.T.contiguous().T) for x, y in zip(a, b, strict=True)]),
            _products.full_precision_product(a, b),
        ]
        if n * d * m and torch.backends.mkldnn.is_available():
            rows = [y.T.contiguous() for y in b]
            got.append(torch.stack([_products.linear(*some) for some in zip(a, rows, strict=True)]))
            start = [torch.zeros(n, m) for _ in a]
            some = zip(a, rows, start, strict=True)
            got.append(torch.stack([_products.linear(*each) for each in some]))
        for found in got:
            assert found.dtype == torch.float32
            assert bool(((found.double() - exact).abs() <= allowed).all())
        wide = _products.mm(a[0].double(), b[0].double())
        assert torch.equal(wide, a[0].double() @ b[0].double())


def check_matrices():
    for dtype in (torch.float32, torch.float16):
        x, y = make_inputs((2, 60, 200), (2, 70, 200), dtype=dtype)
        assert_close(pairwise_cosine(x, y), _reference.pairwise_cosine(x, y))
        assert_close(pairwise_cosine(x[0]), _reference.pairwise_cosine(x[0], x[0]))
        out = torch.empty(60, 70, dtype=dtype)
        for precision in ("highest", "high", "medium"):
            found = pairwise_cosine(x[0], y[0], out=out, precision=precision)
            if precision == "highest":
                assert_close(found, _reference.pairwise_cosine(x[0], y[0]))


def check_gradients():
    x, y = make_inputs((60, 200), (70, 200), requires_grad=True)
    wide = [t.detach().double().requires_grad_() for t in (x, y)]
    grad = torch.linspace(-1, 1, 60 * 70).view(60, 70)
    exact = torch.autograd.grad((_reference.pairwise_cosine(*wide) * grad).sum(), wide)
    got = [
        torch.autograd.grad((pairwise_cosine(x, y) * grad).sum(), (x, y)),
        torch.autograd.grad((pairwise_cosine(x, y) * grad).sum(), (x, y), create_graph=True),
        torch.func.grad(lambda x, y: (pairwise_cosine(x, y) * grad).sum(), (0, 1))(x, y),
        (_ops.pairwise_bwd(grad[None], x[None], y[None], 1e-8, "highest")[0].detach(), None),
    ]
    for found in got:
        for mine, right in zip(found, exact, strict=True):
            if mine is not None:
                assert_close(mine.detach(), right, scale=8)


def check_second_derivatives():
    x, y = make_inputs((6, 40), (7, 40), requires_grad=True)
    wide = [t.detach().double().requires_grad_() for t in (x, y)]
    second = []
    for a, b, call in ((x, y, pairwise_cosine), (*wide, _reference.pairwise_cosine)):
        (first,) = torch.autograd.grad(call(a, b).sin().sum(), a, create_graph=True)
        second.append(torch.autograd.grad(first.square().sum(), (a, b)))
    for mine, right in zip(*second, strict=True):
        # Of float32 1e-6 is seen, of factors rounded to bfloat16 1e-3.
        assert float((mine - right).abs().max()) <= 3e-5 * float(right.abs().max())


def check_float32_search():
    for kind in ("gaussian", "cone", "clustered"):
        queries, corpus = make(kind, 700, 96, 12, torch.float32)
        found = topk(queries, corpus, 10, screen="float32")
        scores, rows = brute_force(queries, corpus, 10)
        assert torch.equal(found.indices, rows)
        assert torch.equal(found.scores, scores.float())


def check_float32_bound():
    queries, corpus = make("gaussian", 300, 384, 12, torch.float32)
    centre = torch.zeros(384)
    screen = screens.FloatScreen("float32")
    segment = codes.encode(corpus, centre)
    terms = screen.queries(widen(queries), centre)
    values = screen.product(segment, slice(0, 300), centre, terms)[:300].double()
    exact = _reference.pairwise_cosine(corpus, queries, eps=0.0)
    bounds = screen.blocks(segment, slice(0, 5))
    margin = terms.residual * bounds.radius[:, None] + terms.norm * bounds.residual[:, None]
    margin = margin.repeat_interleave(codes.BLOCK, 0)[:300] + screens.SLACK
    assert bool(((values - exact).abs() <= margin).all())


def check_heads():
    """T(y) of `screening.projection`, within what `ProjectionScreen.split` allows for."""
    g = torch.Generator().manual_seed(3)
    y = torch.nn.functional.normalize(torch.randn(300, 96, generator=g))
    basis = torch.linalg.qr(torch.randn(96, 28, generator=g, dtype=torch.float64)).Q.float()
    lost = 1.1 * 2.0**-24 * (3 * 96 + 28 + 16) * 28**0.5
    error = projection._split(y, basis).double() - projection._split(y.double(), basis.double())
    assert float(torch.linalg.vector_norm(error, dim=1).max()) <= lost


def check_joins(screen="float32"):
    g = torch.Generator().manual_seed(5)
    x = torch.randn(900, 96, generator=g) * 0.9 ** torch.arange(96)
    x[450:] = x[:450] + 0.02 * torch.randn(450, 96, generator=g)
    exact = _reference.pairwise_cosine(x, x, eps=0.0)
    for threshold in (0.9, float(exact[3, 453]) - 1e-12, -0.3):  # the last is dense
        expected = torch.nonzero((exact >= threshold).triu(1))
        i, j, _ = pairs_above(x, threshold=threshold, screen=screen)
        assert {*zip(i.tolist(), j.tolist(), strict=True)} == {*map(tuple, expected.tolist())}


def check_matrix_by_onednn():
    """The product and the gradients of a matrix that oneDNN multiplies on some processors."""
    with pytest.MonkeyPatch.context() as patch:
        patch.setattr(products, "LARGE", 1)
        patch.setattr(_products, "_onednn_is_faster", torch.backends.mkldnn.is_available)
        check_matrices()
        check_gradients()


CHECKS = [
    check_products, check_matrices, check_matrix_by_onednn, check_gradients,
    check_second_derivatives, check_float32_bound, check_float32_search, check_heads, check_joins,
]  # fmt: skip


@pytest.mark.parametrize("check", CHECKS)
def test_nothing_is_rounded_as_it_is(check):
    check()
    assert _products.described().startswith("as torch")


@pytest.mark.usefixtures("rounds")
@pytest.mark.parametrize("check", CHECKS)
def test_every_promise_holds_where_torch_rounds(check):
    check()
    assert _products.described().startswith("in float64")


@pytest.mark.usefixtures("untried")
@pytest.mark.parametrize("check", CHECKS)
def test_no_promise_holds_if_that_is_not_found_out(check):
    """So the checks above would see a product that goes another way."""
    with rounding.rounding(rounding.to_bfloat16), pytest.raises(AssertionError):
        check()


@pytest.mark.usefixtures("rounds")
def test_a_default_search_and_join_hold_where_torch_rounds():
    queries, corpus = make("clustered", 700, 96, 12, torch.float32)
    scores, rows = brute_force(queries, corpus, 10)
    found = topk(queries, corpus, 10)
    assert torch.equal(found.indices, rows)
    assert torch.equal(found.scores, scores.float())
    check_joins("auto")


@pytest.mark.usefixtures("rounds")
def test_products_of_several_tiles(monkeypatch):
    monkeypatch.setattr(_products, "_TILE", 400)
    monkeypatch.setattr(_products, "_SIDE", 7)
    check_products()


@pytest.mark.usefixtures("rounds")
def test_it_is_found_out_under_any_mode_and_transform():
    x, y = make_inputs((30, 100), (40, 100))
    exact = _reference.pairwise_cosine(x, y)

    def check(found, scale=1.0):
        assert_close(found, exact, scale=scale)
        _forget()

    with torch.device("meta"):
        check(pairwise_cosine(x, y))
    with torch.inference_mode():
        check(pairwise_cosine(x, y))
    with torch.autocast("cpu", dtype=torch.bfloat16):
        assert (pairwise_cosine(x, y).double() - exact).abs().max() <= 2.0**-8
        _forget()
    check(torch.func.vmap(lambda row: pairwise_cosine(row[None], y)[0])(x))
    check(torch.func.jvp(lambda a: pairwise_cosine(a, y), (x,), (x,))[0])
    check(torch.compile(pairwise_cosine, backend="aot_eager", fullgraph=True)(x, y))
    with torch._subclasses.FakeTensorMode() as mode:
        fake = pairwise_cosine(mode.from_tensor(x), mode.from_tensor(y))
        assert fake.shape == exact.shape
    check(pairwise_cosine(x, y))


# Settings of the process.


@pytest.mark.parametrize("found", ["none", "ieee", "tf32", "bf16"])
@pytest.mark.parametrize("precision", ["highest", "high", "medium"])
def test_nothing_is_set(found, precision, monkeypatch):
    put(found)
    before = setting()  # old torch has one word for the first two

    def refuse(*arguments):
        raise AssertionError(arguments)

    with monkeypatch.context() as patched:
        patched.setattr(torch._C, "_set_fp32_precision_setter", refuse, raising=False)
        patched.setattr(torch._C, "_set_mkldnn_enabled", refuse)
        patched.setattr(torch, "set_float32_matmul_precision", refuse)
        x, y = make_inputs((40, 50), (40, 50), requires_grad=True)
        pairwise_cosine(x, y, precision=precision).sum().backward()
        topk(x.detach(), y.detach(), 3, screen="float32")
    assert setting() == before


def as_set(x):
    """A processor on which torch does what the setting lets it."""
    return {"bf16": rounding.to_bfloat16, "tf32": rounding.to_tf32}.get(setting(), lambda x: x)(x)


@pytest.mark.parametrize("found", ["none", "ieee", "tf32", "bf16"])
def test_each_setting_is_tried_for_what_it_does(found):
    with rounding.rounding(as_set):
        put(found)
        check_products()
        assert _products.described().startswith("as torch" if found in ("none", "ieee") else "in")
        put("none")
        assert _products.described().startswith("as torch")
        put("bf16", "generic", "all")  # inherited
        assert _products.described().startswith("in float64")
        check_matrices()


@pytest.mark.parametrize("when", ["before", "within"])
@pytest.mark.parametrize(
    "form", [_products.mm, _products.full_precision_product], ids=lambda form: form.__name__
)
def test_a_setting_that_another_thread_makes_during_a_product_is_seen(form, when):
    a, b = make_inputs((40, 50), (50, 30))
    exact = a.double() @ b.double()
    changing = [False]

    def change_and_round(x):
        if changing[0] and when == "before":
            put("bf16")
        found = as_set(x)
        if changing[0] and when == "within":
            put("bf16")
        return found

    with rounding.rounding(change_and_round):
        assert float((form(a, b).double() - exact).abs().max()) < 1e-4
        changing[0] = True
        assert float((form(a, b).double() - exact).abs().max()) < 1e-4
        assert setting() == "bf16"  # theirs: it stays
        changing[0] = False
        # Whoever does so may do it again and undo it before it is seen.
        put("ieee")
        assert "another thread" in _products.described()
        assert float((form(a, b).double() - exact).abs().max()) < 1e-4


def test_results_beside_a_thread_that_changes_the_setting():
    queries, corpus = make("clustered", 700, 96, 12, torch.float32)
    _, rows = brute_force(queries, corpus, 10)
    x, y = make_inputs((200, 100), (200, 100))
    exact = _reference.pairwise_cosine(x, y)
    stop = threading.Event()

    def change():
        while not stop.wait(1e-4):
            put("bf16")
            stop.wait(1e-4)
            put("ieee")

    thread = threading.Thread(target=change)
    thread.start()
    try:
        with rounding.rounding(as_set):
            for _ in range(20):
                assert_close(pairwise_cosine(x, y), exact)
                assert torch.equal(topk(queries, corpus, 10, screen="float32").indices, rows)
    finally:
        stop.set()
        thread.join()


@pytest.mark.skipif(not hasattr(os, "fork"), reason="no fork on this system")
def test_a_forked_child_starts_anew():
    _products._rest()
    child = os.fork()
    if child == 0:
        os._exit(int(time.monotonic() < _products._rest_until))
    assert os.waitstatus_to_exitcode(os.waitpid(child, 0)[1]) == 0
    assert time.monotonic() < _products._rest_until
