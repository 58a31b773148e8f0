"""What losses share: tiles of logits and their gradients, in memory that is handed out."""

import pytest
import torch

from cossim_fast import _fp32_setting, _reference
from cossim_fast.losses import autograd, info_nce, softmax, tiles
from cossim_fast.losses.positives import Positives
from cossim_fast.losses.tiles import BITS, Logits, add_logs, log_sums, powers, within
from cossim_fast.testing import assert_close, make_inputs
from old_torch import set_setting

BOTH = pytest.mark.parametrize("symmetric", [False, True])


@pytest.mark.parametrize("dtype", [torch.bfloat16, torch.float32, torch.float64], ids=str)
@pytest.mark.parametrize(("n", "m", "d"), [(1, 1, 1), (513, 700, 9), (1300, 1100, 130)])
@pytest.mark.parametrize("whole_rows", [False, True])
def test_tiles_are_parts_of_the_matrix(n, m, d, dtype, whole_rows):
    x, y = make_inputs((n, d), (m, d), dtype=dtype)
    logits = Logits(x, y, 3.0, -1.0, whole_rows=whole_rows)
    expected = (3.0 * _reference.pairwise_cosine(x, y) - 1.0) * BITS
    for rows in logits.rows:
        strip = logits.strip(rows)
        for columns in logits.columns:
            tile = logits.tile(strip, rows, columns)
            assert_close(tile, expected[rows, columns], terms=d, scale=6.0)
            padded = logits.padded_tile(strip, columns)
            assert padded.isfinite().all()
            assert torch.equal(within(padded, rows, columns), tile)
    assert [rows.stop for rows in logits.rows][-1] == n
    assert [columns.stop for columns in logits.columns][-1] == m


@pytest.mark.parametrize("by_x", [False, True])
@pytest.mark.parametrize("by_y", [False, True])
@pytest.mark.parametrize(("n", "m", "d"), [(3, 5, 4), (700, 520, 9), (1500, 1100, 130)])
@pytest.mark.parametrize("whole_rows", [False, True])
def test_gradients_of_a_weighed_sum(n, m, d, by_x, by_y, whole_rows, monkeypatch):
    """In blocks of few tiles, of some that are kept: of 1100 columns, the last tile is padded."""
    monkeypatch.setattr(tiles, "BLOCK_MEMORY", 2 << 20)
    monkeypatch.setattr(tiles, "MEMORY", 4 << 20)
    x, y, weights = make_inputs((n, d), (m, d), (n, m))
    logits = Logits(x, y, 3.0, whole_rows=whole_rows)
    rows, columns = logits.rows[0], logits.columns[-1]
    kept = {(rows.start, columns.start): logits.padded_tile(logits.strip(rows), columns)}
    seen = torch.zeros(n, m)

    def weigh(rows, some):
        assert not whole_rows or len(some) == len(logits.columns)
        for columns, tile in some:
            seen[rows, columns] += tile
            tile.copy_(weights[rows, columns])

    found = logits.gradients(weigh, by_x, by_y, 0.5, kept)
    assert not kept
    assert_close(seen / BITS, 3.0 * _reference.pairwise_cosine(x, y), terms=d, scale=3.0)
    wide = [t.double().requires_grad_() for t in (x, y)]
    scale = torch.tensor(3.0, dtype=torch.float64, requires_grad=True)
    total = 0.5 * (weights * scale * _reference.pairwise_cosine(*wide)).sum()
    expected = torch.autograd.grad(total, [*wide, scale])
    assert (found.x is not None) == by_x
    assert (found.y is not None) == by_y
    for mine, wanted in zip(found[:2], expected[:2], strict=True):
        if mine is not None:
            assert_close(mine, wanted, terms=n + m, scale=wanted.abs().max().item())
    assert found.scale == pytest.approx(expected[2].item(), abs=1e-5 * (n * m) ** 0.5)


def test_sums_of_nothing_and_of_anything():
    tile = torch.tensor([[2.0**90, 1.0], [-torch.inf, -torch.inf], [-1e30, 3.0], [2.0, 2.0]])
    assert log_sums(tile, 1).tolist() == [2.0**90, -torch.inf, 3.0, 3.0]
    shift, sums = powers(tile.clone())
    assert sums.tolist() == [2.0**90, -torch.inf, 3.0, 3.0]
    assert shift.tolist() == [2.0**90, torch.finfo(torch.float32).min, 3.0, 2.0]
    nothing = torch.tensor([-torch.inf], dtype=torch.float64)
    assert add_logs(nothing, nothing) == -torch.inf
    assert log_sums(torch.tensor([[torch.nan, 1.0]]), 1).isnan()


@pytest.mark.parametrize("given", [None, [0, 1, 2], [4, -1, 1]])
def test_positives_by_their_number_or_the_diagonal(given):
    pairs = Positives(None if given is None else torch.tensor(given), 3, 5)
    keys = [0, 1, 2] if given is None else given
    assert pairs.count == sum(key >= 0 for key in keys)
    by_query, by_key = torch.tensor([10.0, 11.0, 12.0]), torch.arange(5.0)
    assert pairs.or_zero(by_query, slice(0, 3)).tolist() == [
        value if key >= 0 else 0 for key, value in zip(keys, [10, 11, 12], strict=True)
    ]
    for columns in (slice(0, 5), slice(2, 5), slice(0, 2)):
        found = pairs.to_keys(by_query, columns, -1.0).tolist()
        expected = [
            by_query[keys.index(key)].item() if key in keys else -1
            for key in range(columns.start, columns.stop)
        ]
        assert found == expected
        for rows in (slice(0, 3), slice(1, 3), slice(0, 1)):
            tile = torch.zeros(rows.stop - rows.start, columns.stop - columns.start)
            whole = torch.zeros(3, 5)
            for query, key in enumerate(keys):
                if key >= 0:
                    whole[query, key] = by_query[query]
            pairs.put(tile, rows, columns, by_query[rows])
            assert torch.equal(tile, whole[rows, columns])
            pairs.put(tile, rows, columns, -torch.inf)
            assert torch.equal(tile == -torch.inf, whole[rows, columns] > 0)
    known = [query for query, key in enumerate(keys) if key >= 0]
    assert by_query[pairs.known(slice(0, 3))].tolist() == by_query[known].tolist()
    assert by_key[pairs.keys(pairs.known(slice(0, 3)))].tolist() == [keys[q] for q in known]
    assert pairs.to_queries(by_key, slice(0, 3))[known].tolist() == [keys[q] for q in known]


def leaves(n, m, d, dtype=torch.float32):
    return [t.requires_grad_() for t in make_inputs((n, d), (m, d), dtype=dtype)]


@BOTH
@pytest.mark.parametrize("temperature", [0.002, 0.05])
@pytest.mark.parametrize("keep", [0, 5, 100])
def test_kept_tiles_change_nothing(symmetric, temperature, keep, monkeypatch):
    """Whether they hold powers of 2 or, at a low temperature, logits."""
    x, y = leaves(1100, 1100, 24)
    inputs = x, y, torch.tensor(temperature, requires_grad=True)

    def derivatives():
        loss = info_nce(x, y, temperature=inputs[2], symmetric=symmetric)
        return torch.autograd.grad(loss, inputs)

    expected = derivatives()
    monkeypatch.setattr(softmax, "KEPT", keep << 20)
    for mine, wanted in zip(derivatives(), expected, strict=True):
        assert_close(mine, wanted, scale=4 * wanted.abs().max().item())


@pytest.fixture
def unwritten():
    """New memory is filled with NaN."""
    before = torch.are_deterministic_algorithms_enabled()
    torch.use_deterministic_algorithms(True, warn_only=True)
    yield
    torch.use_deterministic_algorithms(before)


@BOTH
@pytest.mark.parametrize("temperature", [0.004, 0.05])
@pytest.mark.parametrize(("n", "m"), [(300, 520), (513, 513)])
def test_padding_and_unwritten_memory_are_not_seen(n, m, temperature, symmetric, unwritten):
    """In the fast product's padded tiles, and in several of them."""
    x, y = leaves(n, m, 300)
    x.data[0], y.data[1] = 1e30, 1e-30
    settings = {"temperature": temperature, "symmetric": symmetric}
    found = info_nce(x, y, **settings)
    gradients = torch.autograd.grad(found, (x, y))
    wide = [t.detach().double().requires_grad_() for t in (x, y)]
    expected = _reference.info_nce(*wide, **settings)
    assert found.item() == pytest.approx(expected.item(), rel=1e-6 / temperature)
    for mine, wanted in zip(gradients, torch.autograd.grad(expected, wide), strict=True):
        assert_close(mine, wanted, scale=wanted.abs().max().item() / temperature)


@BOTH
def test_settings_of_torchs_products_are_not_followed(symmetric):
    x, y = leaves(700, 700, 200)
    exact = _reference.info_nce(x, y, temperature=0.01, symmetric=symmetric)
    before = _fp32_setting.get("mkldnn")
    set_setting("mkldnn", "bf16")
    try:
        found = info_nce(x, y, temperature=0.01, symmetric=symmetric)
    finally:
        set_setting("mkldnn", before)
    assert found.item() == pytest.approx(exact.item(), rel=1e-4)


@BOTH
def test_threads_take_the_same_sums(symmetric):
    """That much work is shared by threads of the pool."""
    x, y = leaves(4200, 4200, 64)

    def derivatives(threads):
        torch.set_num_threads(threads)
        loss = info_nce(x, y, symmetric=symmetric)
        return loss, *torch.autograd.grad(loss, (x, y))

    before = torch.get_num_threads()
    try:
        for one, more in zip(derivatives(1), derivatives(3), strict=True):
            # torch's threads may round a norm otherwise.
            torch.testing.assert_close(one, more, rtol=0.0, atol=1e-6 * one.abs().max().item())
    finally:
        torch.set_num_threads(before)


@BOTH
def test_gradients_are_made_once_and_again_if_asked_again(symmetric, monkeypatch):
    x, y = leaves(6, 6, 4)
    made = []
    original = softmax.SoftmaxLoss.gradients
    monkeypatch.setattr(softmax.SoftmaxLoss, "gradients", lambda *a: made.append(a) or original(*a))
    loss = info_nce(x, y, symmetric=symmetric)
    assert len(made) == 1
    (3 * loss).backward(retain_graph=True)
    assert len(made) == 1
    once = x.grad.clone()
    loss.backward()
    assert len(made) == 2
    torch.testing.assert_close(x.grad, once * 4 / 3)


@BOTH
def test_no_gradient_is_made_unless_wanted(symmetric, monkeypatch):
    wanted = []
    original = softmax.Logits.gradients
    monkeypatch.setattr(
        softmax.Logits, "gradients", lambda *a: wanted.append(a[2:4]) or original(*a)
    )
    x, y = make_inputs((6, 4), (6, 4))
    info_nce(x, y, symmetric=symmetric)
    info_nce(x.requires_grad_(), y, symmetric=symmetric)
    info_nce(x.detach(), y.requires_grad_(), symmetric=symmetric)
    with torch.no_grad():
        info_nce(x, y, symmetric=symmetric)
    assert wanted == [(True, False), (False, True)]


def test_numbers_alone_may_be_learned():
    x, y = make_inputs((6, 4), (6, 4))
    temperature = torch.tensor(0.2, requires_grad=True)
    info_nce(x, y, temperature=temperature).backward()
    wide = torch.tensor(0.2, dtype=torch.float64, requires_grad=True)
    _reference.info_nce(x, y, temperature=wide).backward()
    assert temperature.grad.item() == pytest.approx(wide.grad.item(), rel=1e-5)


def test_the_blocked_form_is_what_cpu_rows_get(monkeypatch):
    monkeypatch.setattr(softmax.SoftmaxLoss, "composite", None)
    x, y = leaves(6, 6, 4)
    info_nce(x, y).backward()
    assert autograd.compute(softmax.SoftmaxLoss(), x, y, 3.0).requires_grad
