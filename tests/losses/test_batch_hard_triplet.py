"""`batch_hard_triplet` beside the definition in float64."""

import pytest
import torch
from hypothesis import assume, given
from hypothesis import strategies as st

from cossim_fast import _reference
from cossim_fast.losses import BatchHardTripletLoss, batch_hard_triplet
from cossim_fast.testing import derived_tolerance, make_inputs
from loss_cases import differentiated, leaves

DTYPES = [torch.float16, torch.bfloat16, torch.float32, torch.float64]


def check_triplet(z, labels, margin=0.5, **settings):
    """Cosines are off by what plain torch's are; a row appears in as many triplets as there are."""
    settings = {"labels": labels, "margin": margin, **settings}
    mine = leaves({"z": z}, {})
    got, found = differentiated(batch_hard_triplet, mine, settings)
    wanted, exact = differentiated(
        _reference.batch_hard_triplet, {"z": z.double().requires_grad_()}, settings
    )
    wide = torch.float64 if z.dtype == torch.float64 else torch.float32
    bound = 4 * derived_tolerance(wide, z.shape[1]).atol
    assert got.dtype == wide
    assert got.shape == wanted.shape
    assert torch.equal(got.isnan(), wanted.isnan())
    total = len(z) if settings.get("reduction") == "sum" else 1
    assert ((got - wanted).abs().nan_to_num() <= total * bound).all()
    gradient, expected = found["z"], exact["z"]
    assert gradient.dtype == z.dtype
    assert torch.equal(gradient.isnan(), expected.isnan())
    size = expected.nan_to_num().abs().max().item() if len(z) else 0.0
    allowed = bound * size + torch.finfo(z.dtype).eps * expected.abs()
    error = (gradient.double() - expected).abs()
    assert (error.nan_to_num() <= allowed.nan_to_num() + torch.finfo(z.dtype).smallest_normal).all()


def spread(z, labels):
    """The least distance between two cosines of a row, or of a loss from 0."""
    z = torch.nn.functional.normalize(z.double())
    cosines = (z @ z.T).sort(1).values
    return cosines.diff(dim=1).abs().min().item() if len(z) > 1 else 1.0


@pytest.mark.parametrize("dtype", DTYPES, ids=str)
@pytest.mark.parametrize("reduction", ["mean", "sum", "none"])
@pytest.mark.parametrize("n", [0, 1, 2, 33])
def test_values_and_derivatives(dtype, reduction, n):
    (z,) = make_inputs((n, 24), dtype=dtype)
    assert spread(z, None) > 1e-6
    check_triplet(z, torch.arange(n) % 4, reduction=reduction)


@pytest.mark.parametrize("margin", [0.0, 0.1, 1.0, 3.0])
def test_margins(margin):
    """From where no triplet counts to where all do."""
    (z,) = make_inputs((20, 16))
    check_triplet(z, torch.arange(20) % 5, margin)
    tight = torch.eye(4).repeat(3, 1)
    losses = batch_hard_triplet(tight, torch.arange(12) % 4, margin=margin, reduction="none")
    assert torch.allclose(losses, torch.full((12,), max(margin - 1.0, 0.0)))


def test_rows_without_a_positive_or_a_negative_do_not_count():
    (z,) = make_inputs((5, 8))
    labels = torch.tensor([0, 0, 1, 2, 3])
    check_triplet(z, labels)
    losses = batch_hard_triplet(z, labels, margin=2.0, reduction="none")
    assert losses[2:].tolist() == [0.0, 0.0, 0.0]
    assert torch.allclose(batch_hard_triplet(z, labels, margin=2.0), losses[:2].mean())
    for none in (torch.arange(5), torch.zeros(5, dtype=torch.int64)):
        check_triplet(z, none)
        assert batch_hard_triplet(z, none, margin=2.0) == 0.0


@given(
    n=st.integers(1, 12), d=st.integers(2, 40), classes=st.integers(1, 12),
    margin=st.floats(0.0, 2.0), seed=st.integers(0, 99),
)  # fmt: skip
def test_any_sizes(n, d, classes, margin, seed):
    (z,) = make_inputs((n, d), seed=seed)
    labels = torch.randint(classes, (n,), generator=torch.Generator().manual_seed(seed))
    assume(spread(z, labels) > 1e-5)  # rounding must not choose another triplet
    losses = _reference.batch_hard_triplet(z, labels, margin=margin, reduction="none")
    assume((losses == 0).logical_or(losses > 1e-4).all())
    check_triplet(z, labels, margin)


def test_of_equal_rows_the_first_is_chosen():
    z = torch.tensor([[1.0, 0.0], [1.0, 0.0], [0.0, 1.0], [0.0, 1.0]], requires_grad=True)
    labels = torch.tensor([0, 0, 1, 1])
    losses = batch_hard_triplet(z, labels, margin=1.5, reduction="none")
    assert torch.equal(losses, torch.full((4,), 0.5))
    (gradient,) = torch.autograd.grad(losses[0], z)
    # By the nearest negative, row 2, alone: d cos / d z_0 = z_2, and the other way round.
    assert torch.equal(gradient, torch.tensor([[0.0, 1.0], [0.0, 0.0], [1.0, 0.0], [0.0, 0.0]]))


@pytest.mark.parametrize("size", [1e-30, 1e30])
def test_rows_whose_squares_leave_the_range(size):
    (z,) = make_inputs((6, 5))
    check_triplet(z * size, torch.arange(6) % 2, eps=0.0)


def test_a_zero_row():
    (z,) = make_inputs((6, 5), dtype=torch.float64)
    z[2] = 0.0
    check_triplet(z, torch.arange(6) % 2, eps=1e-3)


def test_a_row_of_nan_makes_the_loss_nan():
    (z,) = make_inputs((6, 5))
    z[2] = torch.nan
    losses = batch_hard_triplet(z, torch.arange(6) % 2, margin=0.5, reduction="none")
    assert losses.isnan().all()
    assert batch_hard_triplet(z, torch.arange(6) % 2, margin=0.5).isnan()


def test_rows_as_they_are():
    (z,) = make_inputs((6, 5), scale=0.3)
    check_triplet(z, torch.arange(6) % 2, normalize=False)


def test_the_module_keeps_its_settings():
    (z,) = make_inputs((6, 5))
    labels = torch.arange(6) % 2
    expected = batch_hard_triplet(z, labels, margin=0.7, reduction="sum", eps=1e-3)
    module = BatchHardTripletLoss(margin=0.7, reduction="sum", eps=1e-3)
    assert torch.equal(module(z, labels), expected)
    assert "margin=0.7" in repr(module)


@pytest.mark.parametrize(
    ("arguments", "settings", "words"),
    [
        ((torch.ones(3, 2), torch.arange(4)), {"margin": 0.1}, "labels"),
        ((torch.ones(3), torch.arange(3)), {"margin": 0.1}, "z"),
        ((torch.ones(3, 2), torch.arange(3)), {"margin": -1.0}, "margin"),
        ((torch.ones(3, 2), torch.arange(3)), {"margin": float("nan")}, "margin"),
    ],
)
def test_bad_arguments(arguments, settings, words):
    with pytest.raises((TypeError, ValueError), match=words):
        batch_hard_triplet(*arguments, **settings)
