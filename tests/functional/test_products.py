"""What is allowed follows the processor: products in other orders pass, wrong ones do not."""

import importlib.util
from pathlib import Path

import pytest
import torch
import torch.nn.functional as F

import products
from cossim_fast import _reference, pairwise_cosine
from cossim_fast.testing import assert_close, derived_tolerance, make_inputs, measured_tolerance
from precision import check_bound

DEMO = Path(__file__).parents[2] / "examples" / "demo.py"


@pytest.fixture(scope="module")
def demo():
    spec = importlib.util.spec_from_file_location("demo", DEMO)
    module = importlib.util.module_from_spec(spec)
    spec.loader.exec_module(module)
    return module


@pytest.fixture(scope="module")
def rows(demo):
    x, _ = demo.load(300)
    return x


def check_demo(demo, x, jobs):
    exact = demo.in_float64(x)
    errors = {key: demo.largest(job(x) - exact) for key, job in jobs.items()}
    demo.check(errors, x.shape[1])


def check_matrices():
    """The checks of `pairwise_cosine`, with the widths at which the order shows."""
    for d in (33, 384):
        x, y = make_inputs((200, d), (150, d))
        for other in (y, None):
            check_bound(x, other, "highest")
            exact = _reference.pairwise_cosine(x, other)
            assert_close(pairwise_cosine(x, other), exact, terms=d)
    x, y = make_inputs((3, 20, 33), (3, 30, 33))
    assert_close(pairwise_cosine(x, y), _reference.pairwise_cosine(x, y), terms=33)


@pytest.mark.parametrize("order", products.RIGHT)
def test_a_product_in_another_order_passes(order, demo, rows, monkeypatch):
    products.form_by(monkeypatch, products.RIGHT[order])
    check_demo(demo, rows, {key: demo.JOBS[key].run for key in ("ours", "product", "rows")})
    check_matrices()


def test_the_orders_are_as_far_off_as_other_processors_are():
    """Intel with AMX was off by 8.3e-7, where these rows' product took 3.8e-7 on AMD Zen 5."""
    x, y = make_inputs((200, 384), (150, 384))
    exact = _reference.pairwise_cosine(x, y)
    product = products.RIGHT["one after the other"](F.normalize(x), F.normalize(y).T)
    found = (product - exact).abs().max().item()
    assert 7e-7 < found < derived_tolerance(torch.float32, 384).atol


@pytest.mark.parametrize("mistake", products.WRONG)
def test_a_wrong_product_fails_where_torch_makes_the_same_mistake(mistake, demo, rows, monkeypatch):
    """As where a setting of the process lowers the precision of every product."""
    products.form_by(monkeypatch, products.WRONG[mistake])
    with pytest.raises(AssertionError, match="within the stated bound"):
        check_demo(demo, rows, {key: demo.JOBS[key].run for key in ("ours", "product", "rows")})
    x, y = make_inputs((200, 384), (150, 384))
    with pytest.raises(AssertionError):
        check_bound(x, y, "highest")
    with pytest.raises(AssertionError, match="result is off"):
        assert_close(pairwise_cosine(x, y), _reference.pairwise_cosine(x, y), terms=384)


@pytest.mark.parametrize("mistake", ["three bfloat16 products", *products.WRONG])
def test_a_wrong_product_of_ours_alone_fails(mistake, demo, rows, monkeypatch):
    def ours(x):
        with monkeypatch.context() as patch:
            products.form_by(patch, {**products.WRONG, "three bfloat16 products": three}[mistake])
            return pairwise_cosine(x)

    jobs = {key: demo.JOBS[key].run for key in ("product", "rows")}
    with pytest.raises(AssertionError, match="expected an error of at most"):
        check_demo(demo, rows, {"ours": ours, **jobs})
    (x,) = make_inputs((200, 384))
    exact, plain = _reference.pairwise_cosine(x), demo.plain_product(x)
    assert_close(pairwise_cosine(x), exact, tolerance=measured_tolerance(plain, exact))
    with pytest.raises(AssertionError, match="result is off"):
        assert_close(ours(x), exact, tolerance=measured_tolerance(plain, exact))


def three(a, b):
    """The product with the precision of ``"high"``, about 2^-17 of each factor."""
    (high_a, low_a), (high_b, low_b) = (
        (high, (t - high).bfloat16().float())
        for t, high in ((t, t.bfloat16().float()) for t in (a, b))
    )
    by = products.BMM if a.dim() > 2 else products.MM
    return by(high_a, high_b) + by(high_a, low_b) + by(low_a, high_b)
