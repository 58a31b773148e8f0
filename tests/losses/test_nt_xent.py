"""`nt_xent` beside the definition in float64, and beside a plain cross-entropy."""

import pytest
import torch
import torch.nn.functional as F
from hypothesis import given
from hypothesis import strategies as st

from cossim_fast import _reference
from cossim_fast.losses import NTXentLoss, nt_xent
from cossim_fast.testing import make_inputs
from loss_cases import check

DTYPES = [torch.float16, torch.bfloat16, torch.float32, torch.float64]


def check_nt_xent(z0, z1, temperature=0.5, **settings):
    rows = {"z0": z0, "z1": z1}
    numbers = {"temperature": temperature}
    check(nt_xent, _reference.nt_xent, rows, numbers, settings, scale=1 / temperature)


def by_cross_entropy(z0, z1, temperature):
    """The definition of the paper, as most implementations have it."""
    n = len(z0)
    z = F.normalize(torch.cat([z0, z1]))
    logits = (z @ z.T / temperature).fill_diagonal_(-torch.inf)
    return F.cross_entropy(logits, torch.arange(2 * n).roll(n))


def test_the_oracle_is_the_papers_loss():
    z0, z1 = make_inputs((7, 5), (7, 5), dtype=torch.float64)
    expected = by_cross_entropy(z0, z1, 0.5)
    assert torch.allclose(_reference.nt_xent(z0, z1), expected, rtol=1e-12)


@pytest.mark.parametrize("dtype", DTYPES, ids=str)
@pytest.mark.parametrize("reduction", ["mean", "sum", "none"])
@pytest.mark.parametrize("n", [0, 1, 2, 33])
def test_values_and_derivatives(dtype, reduction, n):
    check_nt_xent(*make_inputs((n, 24), (n, 24), dtype=dtype), reduction=reduction)


@pytest.mark.parametrize("temperature", [1e-3, 0.01, 0.02, 0.03, 0.07, 0.5, 10.0])
def test_temperatures(temperature):
    check_nt_xent(*make_inputs((20, 16), (20, 16)), temperature)


@pytest.mark.parametrize("temperature", [0.02, 0.03, 0.05])
def test_saturated_rows_keep_their_loss(temperature):
    """Views that agree, far from all others: cross-entropy in float32 errs by percents, or is 0."""
    (z,) = make_inputs((40, 64), seed=5)
    z = F.normalize(z - z.mean(1, keepdim=True))
    check_nt_xent(z, F.normalize(z + 0.01 * z.roll(1, 0)), temperature)


def test_equal_rows():
    z = torch.ones(5, 4)
    check_nt_xent(z, z, 0.01)
    assert torch.allclose(nt_xent(z, z, temperature=0.01), torch.tensor(9.0).log())


@pytest.mark.parametrize("reduction", ["mean", "none"])
@pytest.mark.parametrize("groups", [1, 4, 9])
def test_rows_of_equal_ids_are_no_negatives(reduction, groups):
    """Down to none that are left, where the loss is 0."""
    z0, z1 = make_inputs((9, 8), (9, 8))
    check_nt_xent(z0, z1, ids=torch.arange(9) % groups, reduction=reduction)
    if groups == 1:
        assert not nt_xent(z0, z1, ids=torch.zeros(9, dtype=torch.int64), reduction="none").any()


@given(
    n=st.integers(1, 12), d=st.integers(1, 40), temperature=st.floats(0.01, 10.0),
    seed=st.integers(0, 99), ids=st.integers(1, 12),
)  # fmt: skip
def test_any_sizes(n, d, temperature, seed, ids):
    some = torch.randint(ids, (n,), generator=torch.Generator().manual_seed(seed))
    check_nt_xent(*make_inputs((n, d), (n, d), seed=seed), temperature, ids=some)


@pytest.mark.parametrize("size", [1e-30, 1e30])
def test_rows_whose_squares_leave_the_range(size):
    z0, z1 = make_inputs((6, 5), (6, 5))
    check_nt_xent(z0 * size, z1, eps=0.0)


def test_zero_rows_and_rows_below_eps():
    z0, z1 = make_inputs((6, 5), (6, 5), dtype=torch.float64)
    z0[2], z1[3], z1[4] = 0.0, 0.0, 1e-9 * z1[4]
    check_nt_xent(z0, z1, eps=1e-3)


def test_a_row_of_nan_makes_the_loss_nan():
    z0, z1 = make_inputs((6, 5), (6, 5))
    z0[2] = torch.nan
    check_nt_xent(z0, z1)
    assert nt_xent(z0, z1, reduction="none").isnan().all()


def test_rows_as_they_are():
    check_nt_xent(*make_inputs((6, 5), (6, 5), scale=0.3), 0.5, normalize=False)


def test_the_module_keeps_its_settings():
    z0, z1 = make_inputs((6, 5), (6, 5))
    expected = nt_xent(z0, z1, temperature=0.2, reduction="sum", eps=1e-3)
    module = NTXentLoss(temperature=0.2, reduction="sum", eps=1e-3)
    assert torch.equal(module(z0, z1), expected)
    assert "temperature=0.2" in repr(module)


@pytest.mark.parametrize(
    ("arguments", "settings", "words"),
    [
        ((torch.ones(3, 2), torch.ones(4, 2)), {}, "z1"),
        ((torch.ones(3, 2), torch.ones(3, 4)), {}, "z1"),
        ((torch.ones(3), torch.ones(3)), {}, "z0"),
        ((torch.ones(3, 2), torch.ones(3, 2)), {"temperature": 0.0}, "temperature"),
        ((torch.ones(3, 2), torch.ones(3, 2)), {"ids": torch.arange(4)}, "ids"),
        ((torch.ones(3, 2), torch.ones(3, 2)), {"reduction": "all"}, "reduction"),
    ],
)
def test_bad_arguments(arguments, settings, words):
    with pytest.raises((TypeError, ValueError), match=words):
        nt_xent(*arguments, **settings)
