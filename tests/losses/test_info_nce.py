"""`info_nce` beside the definition in float64, and beside a plain cross-entropy."""

from functools import partial

import pytest
import torch
import torch.nn.functional as F
from hypothesis import given
from hypothesis import strategies as st

from cossim_fast import _reference
from cossim_fast.losses import InfoNCE, info_nce, strips
from cossim_fast.testing import make_inputs
from loss_cases import check

DTYPES = [torch.float16, torch.bfloat16, torch.float32, torch.float64]
BOTH = pytest.mark.parametrize("symmetric", [False, True])


def check_info_nce(queries, keys, temperature=0.07, **settings):
    check(
        info_nce, _reference.info_nce, {"queries": queries, "keys": keys},
        {"temperature": temperature}, settings, scale=1 / temperature,
    )  # fmt: skip


@BOTH
def test_the_oracle_is_the_cross_entropy(symmetric):
    queries, keys = make_inputs((7, 5), (9, 5), dtype=torch.float64)
    logits = F.normalize(queries) @ F.normalize(keys).T / 0.3
    row = torch.arange(7)
    expected = F.cross_entropy(logits, row)
    if symmetric:
        expected = (expected + F.cross_entropy(logits.T[:7], row)) / 2
    found = _reference.info_nce(queries, keys, temperature=0.3, symmetric=symmetric)
    assert torch.allclose(found, expected, rtol=1e-12)


@BOTH
@pytest.mark.parametrize("dtype", DTYPES, ids=str)
@pytest.mark.parametrize("reduction", ["mean", "sum", "none"])
@pytest.mark.parametrize(("n", "m"), [(0, 0), (0, 3), (1, 1), (1, 4), (2, 2), (33, 33), (20, 45)])
def test_values_and_derivatives(dtype, reduction, n, m, symmetric):
    rows = make_inputs((n, 24), (m, 24), dtype=dtype)
    check_info_nce(*rows, reduction=reduction, symmetric=symmetric)


@BOTH
@pytest.mark.parametrize("reduction", ["mean", "none"])
@pytest.mark.parametrize("dtype", [torch.float32, torch.float64], ids=str)
@pytest.mark.parametrize(("n", "m"), [(513, 513), (700, 1100)])
def test_several_tiles(n, m, dtype, reduction, symmetric):
    queries, keys = make_inputs((n, 20), (m, 20), dtype=dtype)
    ids = torch.arange(m) % 400
    settings = {"query_ids": ids[:n], "key_ids": ids, "reduction": reduction}
    check_info_nce(queries, keys, 0.2, symmetric=symmetric, **settings)


@BOTH
@pytest.mark.parametrize("temperature", [1e-3, 0.01, 0.02, 0.03, 0.07, 0.5, 10.0])
def test_temperatures(temperature, symmetric):
    check_info_nce(*make_inputs((20, 16), (25, 16)), temperature, symmetric=symmetric)


@BOTH
@pytest.mark.parametrize("temperature", [0.02, 0.03, 0.05])
def test_saturated_rows_keep_their_loss(temperature, symmetric):
    """Pairs that agree, far from all others: cross-entropy in float32 errs by percents, or is 0."""
    (z,) = make_inputs((40, 64), seed=5)
    z = F.normalize(z - z.mean(1, keepdim=True))
    check_info_nce(z, F.normalize(z + 0.01 * z.roll(1, 0)), temperature, symmetric=symmetric)


def test_plain_cross_entropy_does_not_keep_it():
    """So that the test above means something: in float32 it is off by percents."""
    z = torch.randn(40, 256, generator=torch.Generator().manual_seed(5))
    plain = F.cross_entropy(F.normalize(z) @ F.normalize(z).T / 0.05, torch.arange(40))
    exact = _reference.info_nce(z, z, temperature=0.05)
    assert abs(plain / exact - 1) > 0.01
    assert abs(info_nce(z, z, temperature=0.05) / exact - 1) < 1e-4


@BOTH
def test_equal_rows(symmetric):
    z = torch.ones(5, 4)
    check_info_nce(z, z, 0.01, symmetric=symmetric)
    found = info_nce(z, z, temperature=0.01, symmetric=symmetric)
    assert torch.allclose(found, torch.tensor(5.0).log())


@BOTH
@pytest.mark.parametrize("reduction", ["mean", "none"])
@pytest.mark.parametrize("scale", [1e-3, 1.0])
def test_positives_by_number_and_queries_without_one(reduction, symmetric, scale):
    """Which have no loss, and do not count; as queries they are negatives of others' keys."""
    queries, keys = make_inputs((6, 8), (9, 8))
    positives = torch.tensor([8, -1, 0, 5, -1, 3])
    settings = {"positives": positives, "symmetric": symmetric, "reduction": reduction}
    check_info_nce(queries, keys, scale, **settings)
    losses = info_nce(queries, keys, positives=positives, symmetric=symmetric, reduction="none")
    assert (losses == 0).tolist() == (positives < 0).tolist()


@pytest.mark.parametrize("symmetric", [False, True])
def test_no_query_has_a_positive(symmetric):
    queries, keys = make_inputs((3, 4), (5, 4))
    queries.requires_grad_()
    none = torch.full((3,), -1)
    loss = info_nce(queries, keys, positives=none, symmetric=symmetric)
    loss.backward()
    assert loss == 0
    assert not queries.grad.any()
    found = info_nce(queries, keys[:0], positives=none, symmetric=symmetric)
    assert found == 0


def test_several_queries_of_one_key():
    queries, keys = make_inputs((6, 8), (4, 8))
    check_info_nce(queries, keys, positives=torch.tensor([1, 1, 1, 0, 3, 1]))


@BOTH
@pytest.mark.parametrize("reduction", ["mean", "none"])
@pytest.mark.parametrize("groups", [1, 4, 9])
@pytest.mark.parametrize("dtype", [torch.float32, torch.float64], ids=str)
def test_rows_of_equal_ids_are_no_negatives(reduction, groups, symmetric, dtype):
    """Down to none that are left, where the loss is 0."""
    queries, keys = make_inputs((9, 8), (9, 8), dtype=dtype)
    ids = torch.arange(9) % groups
    settings = {"query_ids": ids, "key_ids": ids, "symmetric": symmetric, "reduction": reduction}
    check_info_nce(queries, keys, **settings)
    if groups == 1:
        assert not info_nce(queries, keys, **settings).any()


@BOTH
def test_ids_of_one_side(symmetric):
    queries, keys = make_inputs((6, 8), (9, 8))
    ids = torch.tensor([0, 0, 1, 2, 2, 3, 3, 0, 3])
    both = {"query_ids": ids[:6], "key_ids": ids, "symmetric": symmetric}
    expected = info_nce(queries, keys, **both)
    assert torch.equal(info_nce(queries, keys, key_ids=ids, symmetric=symmetric), expected)
    square = {"query_ids": ids[:6], "key_ids": ids[:6], "symmetric": symmetric}
    expected = info_nce(queries, keys[:6], **square)
    found = info_nce(queries, keys[:6], query_ids=ids[:6], symmetric=symmetric)
    assert torch.equal(found, expected)
    positives = torch.tensor([8, 1, -1, 3, 7, 6])
    both["query_ids"] = torch.where(positives < 0, 9, ids[positives])
    expected = info_nce(queries, keys, positives=positives, **both)
    found = info_nce(queries, keys, positives=positives, key_ids=ids, symmetric=symmetric)
    assert torch.equal(found, expected)


@pytest.mark.parametrize("dtype", [torch.uint8, torch.int32, torch.int64], ids=str)
def test_any_integers_are_ids(dtype):
    queries, keys = make_inputs((4, 8), (4, 8))
    ids = torch.tensor([0, 255, 255, 3])
    expected = info_nce(queries, keys, key_ids=ids)
    found = info_nce(queries, keys, key_ids=ids.to(dtype), positives=torch.arange(4))
    assert torch.equal(found, expected)
    assert expected < info_nce(queries, keys)


@BOTH
@pytest.mark.parametrize("reduction", ["mean", "none"])
@pytest.mark.parametrize("margin", [-3.0, -0.1, 0.0, 0.1, 3.0])
def test_margin(margin, reduction, symmetric):
    """Down to rows without negatives, and up to all of them."""
    queries, keys = make_inputs((12, 8), (15, 8), seed=4)
    keys[:12] += queries
    check_info_nce(queries, keys, margin=margin, symmetric=symmetric, reduction=reduction)
    found = info_nce(queries, keys, margin=margin, symmetric=symmetric, reduction="none")
    if margin == -3:
        assert not found.any()
    if margin == 3:
        expected = info_nce(queries, keys, symmetric=symmetric, reduction="none")
        assert torch.allclose(found, expected, rtol=1e-5)


@BOTH
@given(
    n=st.integers(1, 12), more=st.integers(0, 9), d=st.integers(1, 40),
    temperature=st.floats(0.01, 10.0), seed=st.integers(0, 99), ids=st.integers(1, 12),
)  # fmt: skip
def test_any_sizes(n, more, d, temperature, seed, ids, symmetric):
    some = torch.randint(ids, (n + more,), generator=torch.Generator().manual_seed(seed))
    rows = make_inputs((n, d), (n + more, d), seed=seed)
    settings = {"query_ids": some[:n], "key_ids": some, "symmetric": symmetric}
    check_info_nce(*rows, temperature, **settings)


@BOTH
@pytest.mark.parametrize("size", [1e-30, 1e30])
def test_rows_whose_squares_leave_the_range(size, symmetric):
    queries, keys = make_inputs((6, 5), (6, 5))
    check_info_nce(queries * size, keys, eps=0.0, symmetric=symmetric)


@BOTH
def test_zero_rows_and_rows_below_eps(symmetric):
    queries, keys = make_inputs((6, 5), (6, 5), dtype=torch.float64)
    queries[2], keys[3], keys[4] = 0.0, 0.0, 1e-9 * keys[4]
    check_info_nce(queries, keys, eps=1e-3, symmetric=symmetric)


def test_a_zero_row_picks_by_chance():
    queries, keys = torch.zeros(1, 5), make_inputs((6, 5))[0]
    found = info_nce(queries, keys)
    assert torch.allclose(found, torch.tensor(6.0).log())


@BOTH
@pytest.mark.parametrize("of_queries", [False, True])
@pytest.mark.parametrize("bad", [torch.nan, torch.inf])
def test_a_row_of_nan(of_queries, symmetric, bad):
    """Makes its own loss NaN, and all losses that it is a negative in."""
    queries, keys = make_inputs((6, 5), (6, 5))
    (queries if of_queries else keys)[2, 1] = bad
    found = info_nce(queries, keys, symmetric=symmetric, reduction="none")
    alone = of_queries and not symmetric
    assert found.isnan().tolist() == [i == 2 or not alone for i in range(6)]
    assert info_nce(queries, keys, symmetric=symmetric).isnan()
    queries.requires_grad_()
    (gradient,) = torch.autograd.grad(
        info_nce(queries, keys, symmetric=symmetric, reduction="sum"), queries
    )
    assert gradient.isnan().any(1).tolist() == found.isnan().tolist()


@BOTH
def test_rows_as_they_are(symmetric):
    rows = make_inputs((6, 5), (6, 5), scale=0.3)
    check_info_nce(*rows, 0.5, normalize=False, symmetric=symmetric)


@pytest.mark.parametrize("temperature", [0.1, torch.tensor([0.1]), torch.tensor(0.1).double()])
def test_temperature_may_be_any_number(temperature):
    queries, keys = make_inputs((6, 5), (6, 5))
    found = info_nce(queries, keys, temperature=temperature)
    assert found.dtype == torch.float32
    assert torch.allclose(found, info_nce(queries, keys, temperature=0.1), rtol=1e-6)


def test_rows_of_two_dtypes_and_any_strides():
    queries, keys = make_inputs((6, 5), (6, 5))
    expected = info_nce(queries.double(), keys.double())
    found = info_nce(queries.T.contiguous().T.double(), keys)
    assert found.dtype == torch.float64
    assert torch.allclose(found, expected)
    expanded = info_nce(queries[:1].expand(6, 5), keys)
    assert torch.allclose(expanded, info_nce(queries[:1].repeat(6, 1), keys))


@pytest.mark.parametrize("precision", ["highest", "high", "medium"])
def test_every_precision_gives_the_highest(precision):
    queries, keys = make_inputs((6, 5), (6, 5))
    assert torch.equal(info_nce(queries, keys, precision=precision), info_nce(queries, keys))


def test_the_module_keeps_its_settings():
    queries, keys = make_inputs((6, 5), (6, 5))
    settings = {"margin": 0.1, "symmetric": True, "reduction": "sum", "eps": 1e-3}
    expected = info_nce(queries, keys, temperature=0.2, key_ids=torch.arange(6) % 4, **settings)
    module = InfoNCE(0.2, **settings)
    assert torch.equal(module(queries, keys, key_ids=torch.arange(6) % 4), expected)
    assert "temperature=0.2, margin=0.1, symmetric=True" in repr(module)


def test_the_module_learns_its_temperature():
    queries, keys = make_inputs((6, 5), (6, 5))
    module = InfoNCE(torch.nn.Parameter(torch.tensor(0.2)))
    assert [name for name, _ in module.named_parameters()] == ["temperature"]
    module(queries, keys).backward()
    assert module.temperature.grad.isfinite()
    fixed = InfoNCE(torch.tensor(0.2))
    assert list(fixed.state_dict()) == ["temperature"]
    assert fixed(queries, keys) == info_nce(queries, keys, temperature=torch.tensor(0.2))


OPTIONS = {
    "plain": {},
    "positives": {"positives": torch.tensor([4, -1, 0, 3])},
    "ids": {"key_ids": torch.tensor([0, 1, 1, 0, 2])},
    "margin": {"margin": 0.1},
    "for each row": {"reduction": "none"},
    "as they are": {"normalize": False},
}


@BOTH
@pytest.mark.parametrize("most", [1 << 24, 10])
@pytest.mark.parametrize("settings", OPTIONS.values(), ids=OPTIONS)
def test_graphs_of_gradients(settings, symmetric, most, monkeypatch):
    """By torch operations, in one strip or several: first derivatives are those of tiles."""
    monkeypatch.setattr(strips, "STRIP", most)
    queries, keys = make_inputs((4, 3), (5, 3), dtype=torch.float64, requires_grad=True)
    temperature = torch.tensor(0.4, dtype=torch.float64, requires_grad=True)
    inputs = queries, keys, temperature

    def loss(x, y, t):
        return info_nce(x, y, temperature=t, symmetric=symmetric, **settings).sum()

    tiles = torch.autograd.grad(loss(*inputs), inputs)
    graph = torch.autograd.grad(loss(*inputs), inputs, create_graph=True)
    for mine, wanted in zip(graph, tiles, strict=True):
        torch.testing.assert_close(mine, wanted, rtol=1e-9, atol=1e-12)
    assert torch.autograd.gradgradcheck(loss, inputs)


def test_the_composite_form_of_every_option_is_the_oracles():
    """What other devices get, which this machine may lack."""
    queries, keys = make_inputs((4, 3), (5, 3))
    for settings in OPTIONS.values():
        loss = partial(info_nce, temperature=0.4, **settings)
        with torch.autograd.forward_ad.dual_level():  # takes torch operations
            found = loss(queries, keys)
        expected = loss(queries, keys)
        assert found.dtype == expected.dtype
        torch.testing.assert_close(found, expected, rtol=1e-5, atol=0.0)


ROWS = torch.ones(3, 2)


@pytest.mark.parametrize(
    ("arguments", "settings", "error", "words"),
    [
        ((ROWS, torch.ones(2, 2)), {}, ValueError, "at least as many keys as queries"),
        ((ROWS, torch.ones(3, 4)), {}, ValueError, "keys of shape (n, 2)"),
        ((torch.ones(3), ROWS), {}, ValueError, "queries of shape (n, d)"),
        ((ROWS.long(), ROWS), {}, TypeError, "queries of float16"),
        ((ROWS.numpy(), ROWS), {}, TypeError, "queries to be a Tensor"),
        ((ROWS.to_sparse(), ROWS), {}, TypeError, "dense"),
        ((ROWS, ROWS.to("meta")), {}, ValueError, "keys on cpu"),
        ((ROWS, ROWS), {"temperature": 0.0}, ValueError, "temperature"),
        ((ROWS, ROWS), {"temperature": torch.tensor(-0.1)}, ValueError, "temperature"),
        ((ROWS, ROWS), {"temperature": torch.ones(2)}, ValueError, "one element"),
        ((ROWS, ROWS), {"temperature": "warm"}, TypeError, "temperature"),
        ((ROWS, ROWS), {"positives": torch.tensor([0, 1, 3])}, ValueError, "got 3"),
        ((ROWS, ROWS), {"positives": torch.tensor([0, -2, 1])}, ValueError, "got -2"),
        ((ROWS, ROWS), {"positives": torch.ones(3)}, TypeError, "integers"),
        ((ROWS, ROWS), {"positives": [0, 1, 2]}, TypeError, "integers"),
        ((ROWS, ROWS), {"positives": torch.tensor([0, 1])}, ValueError, "of shape (3,)"),
        (
            (ROWS, ROWS), {"positives": torch.tensor([0, 1, 1]), "symmetric": True},
            ValueError, "one query at most",
        ),
        ((ROWS, ROWS), {"query_ids": torch.arange(4)}, ValueError, "query_ids of shape (3,)"),
        (
            (ROWS, ROWS), {"query_ids": torch.arange(3), "positives": torch.tensor([0, 2, 1])},
            ValueError, "key_ids beside query_ids",
        ),
        ((ROWS, ROWS), {"margin": torch.nan}, ValueError, "margin"),
        ((ROWS, ROWS), {"reduction": "max"}, ValueError, "reduction"),
        ((ROWS, ROWS), {"eps": -1.0}, ValueError, "eps"),
        ((ROWS, ROWS), {"precision": "low"}, ValueError, "precision"),
    ],
)  # fmt: skip
def test_errors_say_what_was_expected(arguments, settings, error, words):
    with pytest.raises(error) as raised:
        info_nce(*arguments, **settings)
    assert words in str(raised.value)
