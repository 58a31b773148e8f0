"""`sup_con` beside the definition in float64."""

import pytest
import torch
import torch.nn.functional as F
from hypothesis import given
from hypothesis import strategies as st

from cossim_fast import _reference
from cossim_fast.losses import SupConLoss, nt_xent, sup_con
from cossim_fast.testing import make_inputs
from loss_cases import check

DTYPES = [torch.float16, torch.bfloat16, torch.float32, torch.float64]


def check_sup_con(z, labels, temperature=0.1, ref=None, **settings):
    rows = {"z": z} if ref is None else {"z": z, "ref": ref}
    numbers = {"temperature": temperature}
    settings = {"labels": labels, **settings}
    check(sup_con, _reference.sup_con, rows, numbers, settings, scale=1 / temperature)


def by_log_softmax(z, labels, temperature):
    """L_out of the paper, as its authors wrote it: the log-probability of positives, averaged."""
    z, n = F.normalize(z), len(z)
    logits = z @ z.T / temperature
    others = ~torch.eye(n, dtype=torch.bool)
    log_p = logits - logits.masked_fill(~others, -torch.inf).logsumexp(1, keepdim=True)
    positive = (labels[:, None] == labels) & others
    return -((positive * log_p).sum(1) / positive.sum(1)).mean()


def test_the_oracle_is_the_papers_loss():
    (z,) = make_inputs((9, 5), dtype=torch.float64)
    labels = torch.arange(9) % 3
    expected = by_log_softmax(z, labels, 0.1)
    assert torch.allclose(_reference.sup_con(z, labels), expected, rtol=1e-12)


@pytest.mark.parametrize("dtype", DTYPES, ids=str)
@pytest.mark.parametrize("reduction", ["mean", "sum", "none"])
@pytest.mark.parametrize("n", [0, 1, 2, 33])
def test_values_and_derivatives(dtype, reduction, n):
    (z,) = make_inputs((n, 24), dtype=dtype)
    check_sup_con(z, torch.arange(n) % 4, reduction=reduction)


@pytest.mark.parametrize("dtype", DTYPES, ids=str)
@pytest.mark.parametrize("reduction", ["mean", "sum", "none"])
@pytest.mark.parametrize(("n", "m"), [(0, 3), (3, 0), (1, 1), (7, 20), (33, 5)])
def test_with_other_rows(dtype, reduction, n, m):
    z, ref = make_inputs((n, 24), (m, 24), dtype=dtype)
    check_sup_con(z, torch.arange(n) % 4, ref=ref, ref_labels=torch.arange(m) % 3,
                  reduction=reduction)  # fmt: skip


@pytest.mark.parametrize("temperature", [1e-3, 0.01, 0.02, 0.03, 0.07, 0.5, 10.0])
@pytest.mark.parametrize("classes", [3, 10])
def test_temperatures(temperature, classes):
    z, ref = make_inputs((20, 16), (12, 16))
    check_sup_con(z, torch.arange(20) % classes, temperature)
    check_sup_con(z, torch.arange(20) % classes, temperature, ref=ref,
                  ref_labels=torch.arange(12) % classes)  # fmt: skip


@pytest.mark.parametrize("temperature", [0.02, 0.03, 0.05])
def test_saturated_rows_keep_their_loss(temperature):
    """With one positive each, all others far away: the loss is that of one against few."""
    (z,) = make_inputs((40, 64), seed=5)
    z = F.normalize(z - z.mean(1, keepdim=True))
    pairs = torch.cat([z, F.normalize(z + 0.01 * z.roll(1, 0))])
    labels = torch.arange(40).repeat(2)
    check_sup_con(pairs, labels, temperature)
    twin = nt_xent(pairs[:40], pairs[40:], temperature=temperature)
    assert torch.allclose(sup_con(pairs, labels, temperature=temperature), twin, rtol=1e-4)


def test_rows_without_a_positive_do_not_count():
    (z,) = make_inputs((5, 8))
    labels = torch.tensor([0, 0, 1, 2, 3])
    check_sup_con(z, labels)
    losses = sup_con(z, labels, reduction="none")
    assert losses[2:].tolist() == [0.0, 0.0, 0.0]
    assert torch.allclose(sup_con(z, labels), losses[:2].mean())
    assert sup_con(z, torch.arange(5)) == 0.0
    check_sup_con(z, torch.arange(5))


def test_rows_without_a_negative():
    (z,) = make_inputs((5, 8))
    check_sup_con(z, torch.zeros(5, dtype=torch.int64))
    check_sup_con(z[:2], torch.zeros(2, dtype=torch.int64))
    assert sup_con(z[:2], torch.zeros(2, dtype=torch.int64)) == 0.0


@given(
    n=st.integers(1, 12), m=st.integers(1, 12), d=st.integers(1, 40), classes=st.integers(1, 12),
    temperature=st.floats(0.01, 10.0), seed=st.integers(0, 99),
)  # fmt: skip
def test_any_sizes(n, m, d, classes, temperature, seed):
    z, ref = make_inputs((n, d), (m, d), seed=seed)
    labels = torch.randint(classes, (n + m,), generator=torch.Generator().manual_seed(seed))
    check_sup_con(z, labels[:n], temperature)
    check_sup_con(z, labels[:n], temperature, ref=ref, ref_labels=labels[n:])


@pytest.mark.parametrize("size", [1e-30, 1e30])
def test_rows_whose_squares_leave_the_range(size):
    (z,) = make_inputs((6, 5))
    check_sup_con(z * size, torch.arange(6) % 2, eps=0.0)


def test_zero_rows_and_rows_below_eps():
    (z,) = make_inputs((6, 5), dtype=torch.float64)
    z[2], z[3], z[4] = 0.0, 0.0, 1e-9 * z[4]
    check_sup_con(z, torch.arange(6) % 2, eps=1e-3)


def test_a_row_of_nan_makes_the_loss_nan():
    (z,) = make_inputs((6, 5))
    z[2] = torch.nan
    check_sup_con(z, torch.arange(6) % 2)
    assert sup_con(z, torch.arange(6) % 2, reduction="none").isnan().all()


def test_rows_as_they_are():
    (z,) = make_inputs((6, 5), scale=0.3)
    check_sup_con(z, torch.arange(6) % 2, normalize=False)


def test_labels_of_any_integers():
    (z,) = make_inputs((6, 5))
    expected = sup_con(z, torch.arange(6) % 2)
    for dtype in (torch.uint8, torch.int32, torch.bool):
        assert torch.equal(sup_con(z, (torch.arange(6) % 2).to(dtype)), expected)
    assert torch.equal(sup_con(z, torch.arange(6) % 2 * 2**60 - 7), expected)


def test_the_module_keeps_its_settings():
    (z,) = make_inputs((6, 5))
    labels = torch.arange(6) % 2
    expected = sup_con(z, labels, temperature=0.2, reduction="sum", eps=1e-3)
    module = SupConLoss(temperature=0.2, reduction="sum", eps=1e-3)
    assert torch.equal(module(z, labels), expected)
    assert "temperature=0.2" in repr(module)


@pytest.mark.parametrize(
    ("arguments", "settings", "words"),
    [
        ((torch.ones(3, 2), torch.arange(4)), {}, "labels"),
        ((torch.ones(3, 2), torch.ones(3)), {}, "labels"),
        ((torch.ones(3), torch.arange(3)), {}, "z"),
        ((torch.ones(3, 2), torch.arange(3)), {"temperature": -1.0}, "temperature"),
        ((torch.ones(3, 2), torch.arange(3)), {"ref": torch.ones(4, 2)}, "ref_labels"),
        ((torch.ones(3, 2), torch.arange(3)), {"ref_labels": torch.arange(3)}, "ref"),
    ],
)
def test_bad_arguments(arguments, settings, words):
    with pytest.raises((TypeError, ValueError), match=words):
        sup_con(*arguments, **settings)
