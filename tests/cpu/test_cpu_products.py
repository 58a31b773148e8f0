"""Products of tiles: each kind keeps its bound, on processors without instructions for it too."""

import pytest
import torch

from cossim_fast import _reference
from cossim_fast._cpu import narrow
from cossim_fast._cpu.matrix import Tiles
from cossim_fast._cpu.narrow import NarrowProduct, RoundedProduct, SplitProduct
from cossim_fast._cpu.products import OneDnnProduct, PlainProduct
from cossim_fast.testing import assert_close, make_inputs

WIDTHS = [1, 15, 16, 17, 192, 193, 385, 1000]
MEDIUM = 2 * 2.0**-8 + 2.0**-16


def tiled(product, x, y, dtype, eps=1e-8):
    m = len(x) if y is None else len(y)
    out = torch.full((len(x), m), torch.nan, dtype=dtype)
    Tiles(product, eps, 1, 16).fill(x, y, out)
    return out


def largest_error(result, x, y, eps=1e-8):
    return (result.double() - _reference.pairwise_cosine(x, y, eps)).abs().max().item()


def float32_sums(d):
    return 2 * (d + 4) * 2.0**-24


@pytest.mark.skipif(not torch.backends.mkldnn.is_available(), reason="torch without oneDNN")
@pytest.mark.parametrize("d", WIDTHS)
@pytest.mark.parametrize("dtype", [torch.float16, torch.float32], ids=str)
def test_float32_by_onednn(d, dtype):
    x, y = make_inputs((40, d), (33, d), dtype=dtype)
    x[3] = 0
    for other in (y, None):
        result = tiled(OneDnnProduct(), x, other, dtype)
        assert_close(result, _reference.pairwise_cosine(x, other), scale=2)


@pytest.mark.skipif(not torch.backends.mkldnn.is_available(), reason="torch without oneDNN")
def test_onednn_is_as_accurate_as_torch_s_own_product():
    x, y = make_inputs((500, 384), (400, 384))
    plain = largest_error(tiled(PlainProduct(torch.float32), x, y, torch.float32), x, y)
    assert largest_error(tiled(OneDnnProduct(), x, y, torch.float32), x, y) <= 1.5 * plain


@pytest.mark.parametrize("d", WIDTHS)
@pytest.mark.parametrize("dtype", [torch.float16, torch.bfloat16], ids=str)
def test_narrow_rows_are_multiplied_as_they_are(d, dtype):
    """Nothing is lost but by two roundings of the result."""
    x, y = make_inputs((40, d), (33, d), dtype=dtype)
    x[3] = 0
    step = torch.finfo(dtype).eps / 2
    for other in (y, None):
        result = tiled(NarrowProduct(dtype), x, other, dtype)
        exact = _reference.pairwise_cosine(x, other)
        # The smallest that float16 holds, of rows whose norms are at least 0.5.
        allowed = 2.02 * step * exact.abs() + float32_sums(d) + 2.0**-23
        assert ((result.double() - exact).abs() <= allowed).all()


@pytest.mark.parametrize(
    ("dtype", "size"),
    [(torch.float16, 6e4), (torch.float16, 1e-6), (torch.bfloat16, 1e30), (torch.bfloat16, 1e-30)],
)
def test_narrow_rows_of_any_magnitude(dtype, size):
    x, y = make_inputs((20, 64), (30, 64))
    x, y = (x / x.abs().max() * size).to(dtype), (y / y.abs().max() * size).to(dtype)
    x[::2] = make_inputs((10, 64), dtype=dtype)[0]
    result = tiled(NarrowProduct(dtype), x, y, dtype, eps=0.0)
    assert largest_error(result, x, y, 0.0) <= torch.finfo(dtype).eps
    itself = tiled(NarrowProduct(dtype), y, None, dtype, eps=0.0)
    assert (itself.diagonal() - 1).abs().max() <= torch.finfo(dtype).eps


@pytest.mark.parametrize("dtype", [torch.float16, torch.bfloat16], ids=str)
def test_narrow_rows_below_eps_and_rows_of_nan(dtype):
    x, y = make_inputs((20, 64), (30, 64), dtype=dtype)
    x[::3] *= 1e-3
    result = tiled(NarrowProduct(dtype), x, y, dtype, eps=0.5)
    assert largest_error(result, x, y, 0.5) <= torch.finfo(dtype).eps
    x[2, 5], y[4, 0] = torch.nan, torch.inf
    expected = torch.zeros(20, 30, dtype=torch.bool)
    expected[2], expected[:, 4] = True, True
    assert torch.equal(tiled(NarrowProduct(dtype), x, y, dtype).isnan(), expected)


@pytest.mark.parametrize("d", WIDTHS)
@pytest.mark.parametrize("dtype", [torch.float16, torch.float32], ids=str)
@pytest.mark.parametrize(
    ("product", "bound"), [(RoundedProduct, MEDIUM), (SplitProduct, 2 * 2.0**-11 + 2.0**-22)]
)
def test_words_for_precision_keep_their_bounds(product, bound, d, dtype):
    to_round = torch.finfo(dtype).eps / 2 if dtype != torch.float32 else 0
    x, y = make_inputs((40, d), (33, d), dtype=dtype)
    for other in (y, None):
        result = tiled(product(), x, other, dtype)
        assert largest_error(result, x, other) <= bound + float32_sums(d) + to_round


def rows_that_lose_most():
    """Rows of ones, with up to 15 signs turned, whose unit rows lie just below a middle.

    Between two bfloat16 numbers, that is: each entry of 1 / sqrt(4065) loses 0.97 of the most that
    it can. Cosines lie between 0.992 and 1, and some products are rounded down once more.
    """
    signs = torch.ones(16, 4065)
    for row in range(16):
        signs[row, :row] = -1
    return signs


def test_medium_keeps_its_bound_where_rows_lose_most():
    x = rows_that_lose_most()
    error = largest_error(tiled(RoundedProduct(), x, None, torch.float32), x, None)
    assert error <= MEDIUM + float32_sums(4065)


def test_one_product_alone_would_break_it(monkeypatch):
    monkeypatch.setattr(RoundedProduct, "ROOM", 1.0)
    x = rows_that_lose_most()
    error = largest_error(tiled(RoundedProduct(), x, None, torch.float32), x, None)
    assert error > MEDIUM + float32_sums(4065)


@pytest.fixture
def every_kind(monkeypatch, set_blocks):
    """Small matrices are multiplied as large ones are on a processor that can do everything."""
    set_blocks(LARGE=1)
    both = frozenset((torch.float16, torch.bfloat16))
    monkeypatch.setattr(narrow, "fast_dtypes", lambda: both)
    monkeypatch.setattr(narrow, "has_tiles", lambda: True)


@pytest.mark.usefixtures("every_kind")
@pytest.mark.parametrize(
    ("dtypes", "precision", "kind"),
    [
        ((torch.float32, torch.float32), "high", SplitProduct),
        ((torch.float32, torch.float32), "medium", RoundedProduct),
        ((torch.float16, torch.float16), "highest", NarrowProduct),
        ((torch.bfloat16, torch.bfloat16), "high", NarrowProduct),
        ((torch.bfloat16, torch.float16), "medium", RoundedProduct),
        ((torch.float64, torch.bfloat16), "medium", PlainProduct),
    ],
)
def test_which_product_is_chosen(dtypes, precision, kind):
    result = torch.promote_types(*dtypes)
    assert type(narrow.choose_product(dtypes, result, precision, 100)) is kind
