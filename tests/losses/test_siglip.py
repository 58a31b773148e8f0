"""`siglip` beside the definition in float64."""

import pytest
import torch
from hypothesis import given
from hypothesis import strategies as st

from cossim_fast import _reference
from cossim_fast.losses import SigLipLoss, siglip
from cossim_fast.testing import make_inputs
from loss_cases import check

DTYPES = [torch.float16, torch.bfloat16, torch.float32, torch.float64]


def check_siglip(image, text, scale=10.0, bias=-10.0, **settings):
    numbers = {"logit_scale": scale} | ({} if bias is None else {"logit_bias": bias})
    rows = {"image": image, "text": text}
    check(siglip, _reference.siglip, rows, numbers, settings, scale=scale, bias=bias or 0.0)


@pytest.mark.parametrize("dtype", DTYPES, ids=str)
@pytest.mark.parametrize("reduction", ["mean", "sum", "none"])
@pytest.mark.parametrize("n", [0, 1, 2, 33])
def test_values_and_derivatives(dtype, reduction, n):
    check_siglip(*make_inputs((n, 24), (n, 24), dtype=dtype), reduction=reduction)


@pytest.mark.parametrize("scale", [0.1, 1.0, 14.0, 50.0, 1000.0])
@pytest.mark.parametrize("bias", [None, 0.0, -10.0, 100.0])
def test_scales_and_biases(scale, bias):
    """Up to logits whose exponential is no float32."""
    check_siglip(*make_inputs((20, 16), (20, 16)), scale, bias)


def test_saturated_pairs_keep_their_loss():
    """Where every pair is right by far, float32 would round 1 + exp(-20) to 1."""
    rows = torch.eye(8)
    check_siglip(rows, rows, 40.0, -20.0)
    assert 0 < siglip(rows, rows, 40.0, -20.0) < 1e-7


@pytest.mark.parametrize("reduction", ["mean", "none"])
def test_pairs_of_equal_ids_are_left_out(reduction):
    image, text = make_inputs((9, 8), (9, 8))
    image_ids, text_ids = torch.arange(9) % 4, torch.arange(9) % 3
    check_siglip(image, text, image_ids=image_ids, text_ids=text_ids, reduction=reduction)
    check_siglip(image, text, image_ids=image_ids, text_ids=image_ids, reduction=reduction)


@given(
    n=st.integers(1, 12), d=st.integers(1, 40), scale=st.floats(0.01, 100.0),
    bias=st.floats(-20.0, 20.0), seed=st.integers(0, 99), ids=st.integers(1, 12),
)  # fmt: skip
def test_any_sizes(n, d, scale, bias, seed, ids):
    some = torch.randint(ids, (n,), generator=torch.Generator().manual_seed(seed))
    check_siglip(*make_inputs((n, d), (n, d), seed=seed), scale, bias, image_ids=some,
                 text_ids=some)  # fmt: skip


@pytest.mark.parametrize("size", [1e-30, 1e30])
def test_rows_whose_squares_leave_the_range(size):
    image, text = make_inputs((6, 5), (6, 5))
    check_siglip(image * size, text, eps=0.0)


def test_zero_rows_and_rows_below_eps():
    image, text = make_inputs((6, 5), (6, 5), dtype=torch.float64)
    image[2], text[3], text[4] = 0.0, 0.0, 1e-9 * text[4]
    # The derivative by a zero row is its weighted sum of others, divided by eps.
    check_siglip(image, text, eps=1e-3)


def test_a_row_of_nan_makes_the_loss_and_what_it_touches_nan():
    image, text = make_inputs((6, 5), (6, 5))
    image[2] = torch.nan
    check_siglip(image, text)
    losses = siglip(image, text, 10.0, -10.0, reduction="none")
    assert losses.isnan().tolist() == [False, False, True, False, False, False]


def test_rows_as_they_are():
    image, text = make_inputs((6, 5), (6, 5), scale=0.3)
    check_siglip(image, text, 5.0, 1.0, normalize=False)


def test_the_module_keeps_its_settings():
    image, text = make_inputs((6, 5), (6, 5))
    expected = siglip(image, text, 10.0, -10.0, reduction="sum", eps=1e-3)
    module = SigLipLoss(reduction="sum", eps=1e-3)
    assert torch.equal(module(image, text, 10.0, -10.0), expected)
    assert "reduction='sum'" in repr(module)


@pytest.mark.parametrize(
    ("arguments", "words"),
    [
        ((torch.ones(3, 2), torch.ones(4, 2), 1.0, 0.0), "text"),
        ((torch.ones(3, 2), torch.ones(3, 4), 1.0, 0.0), "text"),
        ((torch.ones(3), torch.ones(3), 1.0, 0.0), "image"),
        ((torch.ones(3, 2), torch.ones(3, 2), torch.ones(2), 0.0), "logit_scale"),
    ],
)
def test_bad_arguments(arguments, words):
    with pytest.raises((TypeError, ValueError), match=words):
        siglip(*arguments)
