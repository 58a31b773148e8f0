"""The adapter for lightly's loss, beside it: in one process and in several, and with a bank."""

import numpy as np
import pytest
import torch

import adapter_jobs
import bare_packages
import loss_batches

bare_packages.bare_lightly()

from lightly.loss.ntx_ent_loss import NTXentLoss as Theirs  # noqa: E402

from cossim_fast.integrations.lightly import NTXentLoss as Mine  # noqa: E402


def differentiated(loss, rows):
    leaves = [t.clone().requires_grad_() for t in rows]
    value = loss(*leaves)
    return value.detach(), *torch.autograd.grad(value, leaves)


@pytest.mark.parametrize("kind", loss_batches.KINDS)
@pytest.mark.parametrize("temperature", [0.01, 0.07, 0.5, 10.0])
@pytest.mark.parametrize("norm", [1e-3, 1.0, 1e6])
def test_values_and_gradients_are_theirs(kind, temperature, norm):
    rows = [norm * t for t in loss_batches.pairs(kind)]
    found, expected = (differentiated(one(temperature), rows) for one in (Mine, Theirs))
    torch.testing.assert_close(found[0], expected[0], rtol=1e-11, atol=1e-13)
    for one, other in zip(found[1:], expected[1:], strict=True):
        torch.testing.assert_close(one, other, rtol=1e-8, atol=1e-11 / norm / temperature)


@pytest.mark.parametrize("kind", loss_batches.KINDS[:-1])
@pytest.mark.parametrize("dtype", [torch.float32, torch.float16, torch.bfloat16])
@pytest.mark.parametrize("bank", [0, (5, 16)])
def test_narrow_rows_are_no_further_from_float64_than_theirs(kind, dtype, bank):
    rows = [t.to(dtype) for t in loss_batches.pairs(kind)]
    mine, other, exact = losses_with_one_bank(0.05, bank, 3)
    true = differentiated(exact.double(), [t.double() for t in rows])
    found = differentiated(mine, rows)
    assert found[0].dtype == torch.float32
    if dtype is not torch.float32 and bank:
        # Theirs multiplies rows of unlike dtypes.
        other = other.to(dtype)
    for one, two, right in zip(found, differentiated(other, rows), true, strict=True):
        error, limit = ((t.double() - right).abs().max() for t in (one, two))
        rounding = torch.finfo(one.dtype).eps + 2 * 20 * torch.finfo(torch.float32).eps
        assert error <= 2 * limit + 2 * rounding * max(right.abs().max(), 1e-3)


def losses_with_one_bank(temperature, bank, count):
    """Ours and as many of theirs, whose banks hold the same rows."""
    torch.manual_seed(7)
    found = [Mine(temperature, bank), *(Theirs(temperature, bank) for _ in range(count - 1))]
    for loss in found[1:]:
        loss.memory_bank.bank = found[0].memory_bank.bank.clone()
    return found


@pytest.mark.parametrize("temperature", [0.07, 0.5])
def test_a_memory_bank_is_read_and_filled_as_theirs(temperature):
    both = [one.double() for one in losses_with_one_bank(temperature, (30, 16), 2)]
    # Four batches come round to where the first was written.
    for seed in range(4):
        rows = [3 * t for t in loss_batches.pairs("random", seed=seed)]
        for found, expected in zip(*(differentiated(one, rows) for one in both), strict=True):
            # The bank holds rows in float32, which are not quite of norm 1.
            torch.testing.assert_close(found, expected, rtol=1e-6, atol=1e-7)
        banks = [one.memory_bank for one in both]
        assert torch.equal(banks[0].bank, banks[1].bank)
        assert torch.equal(banks[0].bank_ptr, banks[1].bank_ptr)
    before = both[0].memory_bank.bank.clone()
    both[0](*loss_batches.pairs("random"))
    assert torch.equal(both[0].memory_bank.bank, before), "written to without gradients"


@pytest.mark.parametrize("gather_distributed", [False, True])
def test_each_rank_has_the_loss_and_gradients_of_theirs(ranks, gather_distributed):
    for found, expected in ranks.run(adapter_jobs.lightly_losses, gather_distributed):
        for one, other in zip(found, expected, strict=True):
            np.testing.assert_allclose(one, other, rtol=1e-10, atol=1e-13)


def test_arguments_are_theirs_and_so_is_what_is_refused():
    assert isinstance(Mine(memory_bank_size=(4, 3)), Theirs)
    for one in (Mine, Theirs):
        with pytest.raises(ValueError, match="Illegal temperature"):
            one(1e-9)
        with pytest.raises(ValueError, match="does not specify the feature dimension"):
            one(memory_bank_size=4)
