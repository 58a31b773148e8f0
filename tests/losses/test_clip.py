"""`clip` beside the definition in float64, and beside open_clip's two cross-entropies."""

import pytest
import torch
import torch.nn.functional as F
from hypothesis import given
from hypothesis import strategies as st

from cossim_fast import _reference
from cossim_fast.losses import ClipLoss, clip, info_nce
from cossim_fast.testing import make_inputs
from loss_cases import check

DTYPES = [torch.float16, torch.bfloat16, torch.float32, torch.float64]


def check_clip(image, text, scale=14.0, **settings):
    check(
        clip, _reference.clip, {"image": image, "text": text}, {"logit_scale": scale}, settings,
        scale=abs(scale),
    )  # fmt: skip


def test_the_oracle_is_open_clips_loss():
    image, text = make_inputs((7, 5), (7, 5), dtype=torch.float64)
    logits = 9.0 * F.normalize(image) @ F.normalize(text).T + 2.0
    row = torch.arange(7)
    expected = (F.cross_entropy(logits, row) + F.cross_entropy(logits.T, row)) / 2
    assert torch.allclose(_reference.clip(image, text, 9.0, 2.0), expected, rtol=1e-12)


@pytest.mark.parametrize("dtype", DTYPES, ids=str)
@pytest.mark.parametrize("reduction", ["mean", "sum", "none"])
@pytest.mark.parametrize("n", [0, 1, 2, 33])
def test_values_and_derivatives(dtype, reduction, n):
    check_clip(*make_inputs((n, 24), (n, 24), dtype=dtype), reduction=reduction)


@pytest.mark.parametrize("scale", [-20.0, 0.0, 0.1, 1.0, 30.0, 100.0, 1000.0])
def test_scales(scale):
    """Of a scale of -20 the best pair is the one that is farthest apart."""
    check_clip(*make_inputs((20, 16), (20, 16)), scale)


@pytest.mark.parametrize("image_ids", [True, False])
@pytest.mark.parametrize("text_ids", [True, False])
def test_pairs_of_equal_ids_are_no_negatives(image_ids, text_ids):
    image, text = make_inputs((9, 8), (9, 8))
    ids = torch.arange(9) % 4
    given = {"image_ids": ids if image_ids else None, "text_ids": ids if text_ids else None}
    both = {"image_ids": ids, "text_ids": ids} if image_ids or text_ids else {}
    expected = _reference.clip(image, text, 14.0, **both)
    assert torch.allclose(clip(image, text, 14.0, **given).double(), expected, rtol=1e-5)


def test_ids_that_differ():
    image, text = make_inputs((9, 8), (9, 8))
    check_clip(image, text, image_ids=torch.arange(9) % 4, text_ids=torch.arange(9) % 3)


@given(
    n=st.integers(1, 12), d=st.integers(1, 40), scale=st.floats(0.1, 100.0),
    seed=st.integers(0, 99), ids=st.integers(1, 12),
)  # fmt: skip
def test_any_sizes(n, d, scale, seed, ids):
    some = torch.randint(ids, (n,), generator=torch.Generator().manual_seed(seed))
    rows = make_inputs((n, d), (n, d), seed=seed)
    check_clip(*rows, scale, image_ids=some, text_ids=some)


@pytest.mark.parametrize("reduction", ["mean", "none"])
def test_the_bias_cancels(reduction):
    image, text = make_inputs((9, 8), (9, 8))
    scale, bias = torch.tensor(14.0), torch.tensor([-10.0], dtype=torch.float64, requires_grad=True)
    found = clip(image, text, scale, bias, reduction=reduction)
    expected = clip(image, text, 14.0, reduction=reduction)
    assert found.dtype == expected.dtype
    assert torch.equal(found, expected)
    assert torch.equal(clip(image, text, scale, -10.0, reduction=reduction), expected)
    assert torch.autograd.grad(found.sum(), bias)[0].tolist() == [0.0]


def test_it_is_the_symmetric_info_nce():
    image, text = make_inputs((9, 8), (9, 8))
    expected = info_nce(image, text, temperature=0.125, symmetric=True)
    assert torch.equal(clip(image, text, 8.0), expected)


def test_the_module_keeps_its_settings():
    image, text = make_inputs((6, 5), (6, 5))
    ids = torch.arange(6) % 4
    expected = clip(image, text, 8.0, image_ids=ids, reduction="sum", eps=1e-3)
    module = ClipLoss(reduction="sum", eps=1e-3)
    assert torch.equal(module(image, text, 8.0, image_ids=ids), expected)
    assert "reduction='sum'" in repr(module)


@pytest.mark.parametrize(
    ("arguments", "settings", "words"),
    [
        ((torch.ones(3, 2), torch.ones(4, 2), 1.0), {}, "text of shape (3, 2) like image"),
        ((torch.ones(3, 2), torch.ones(3, 4), 1.0), {}, "text of shape (n, 2)"),
        ((torch.ones(3, 2), torch.ones(3, 2), torch.nan), {}, "logit_scale"),
        ((torch.ones(3, 2), torch.ones(3, 2), torch.ones(2)), {}, "logit_scale"),
        ((torch.ones(3, 2), torch.ones(3, 2), 1.0, torch.inf), {}, "logit_bias"),
        ((torch.ones(3, 2), torch.ones(3, 2), 1.0), {"image_ids": torch.arange(4)}, "image_ids"),
        ((torch.ones(3, 2), torch.ones(3, 2), 1.0), {"reduction": "max"}, "reduction"),
    ],
)
def test_errors_say_what_was_expected(arguments, settings, words):
    with pytest.raises(ValueError, match="clip") as raised:
        clip(*arguments, **settings)
    assert words in str(raised.value)
