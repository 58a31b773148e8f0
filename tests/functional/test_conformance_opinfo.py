"""torch's own sample inputs for its cosine, given to ours."""

from functools import partial

import pytest
import torch
import torch.nn.functional as F
from torch.testing._internal.common_methods_invocations import op_db

from cossim_fast import _reference, cosine_similarity, testing

# Nothing here sums more numbers.
assert_close = partial(testing.assert_close, terms=32)

(OP,) = (op for op in op_db if op.name == "nn.functional.cosine_similarity")
DTYPES = sorted(OP.dtypes, key=str)


def samples(dtype, requires_grad=False):
    torch.manual_seed(0)
    return list(OP.sample_inputs("cpu", dtype, requires_grad=requires_grad))


SAMPLES = range(len(samples(torch.float32)))


def sample_of(dtype, index, requires_grad=False):
    sample = samples(dtype, requires_grad)[index]
    return sample.input, *sample.args, sample.kwargs


def test_samples_exist_in_every_floating_dtype():
    assert {torch.float16, torch.bfloat16, torch.float32, torch.float64} == set(OP.dtypes)
    assert len(SAMPLES) >= 9


@pytest.mark.parametrize("index", SAMPLES)
@pytest.mark.parametrize("dtype", DTYPES, ids=str)
def test_values_and_layout_are_those_of_torch(dtype, index):
    x, y, kwargs = sample_of(dtype, index)
    ours, theirs = cosine_similarity(x, y, **kwargs), F.cosine_similarity(x, y, **kwargs)
    assert (ours.dtype, ours.shape, ours.stride()) == (theirs.dtype, theirs.shape, theirs.stride())
    assert_close(ours, _reference.cosine_similarity(x, y, **kwargs))


@pytest.mark.parametrize("index", SAMPLES)
@pytest.mark.parametrize("dtype", DTYPES, ids=str)
def test_gradients_are_those_of_torch_in_float64(dtype, index):
    x, y, kwargs = sample_of(dtype, index, requires_grad=True)
    ours = cosine_similarity(x, y, **kwargs)
    weights = torch.linspace(-1, 1, ours.numel(), dtype=dtype).view(ours.shape)
    got = torch.autograd.grad(ours, (x, y), weights)
    wide_x, wide_y = (t.detach().double().requires_grad_() for t in (x, y))
    theirs = F.cosine_similarity(wide_x, wide_y, **kwargs)
    expected = torch.autograd.grad(theirs, (wide_x, wide_y), weights.double())
    for t, mine, wanted in zip((x, y), got, expected, strict=True):
        assert mine.dtype == t.dtype
        assert_close(mine, wanted)


@pytest.mark.parametrize("index", SAMPLES)
def test_first_derivatives_pass_gradcheck(index):
    x, y, kwargs = sample_of(torch.float64, index, requires_grad=True)
    assert torch.autograd.gradcheck(
        lambda a, b: cosine_similarity(a, b, **kwargs),
        (x, y),
        check_forward_ad=True,
        check_batched_grad=True,
        check_batched_forward_grad=True,
        fast_mode=x.numel() > 50,
    )


@pytest.mark.parametrize("index", SAMPLES)
def test_second_derivatives_pass_gradgradcheck(index):
    x, y, kwargs = sample_of(torch.float64, index, requires_grad=True)
    assert torch.autograd.gradgradcheck(
        lambda a, b: cosine_similarity(a, b, **kwargs),
        (x, y),
        check_fwd_over_rev=True,
        check_rev_over_rev=True,
        check_batched_grad=True,
        fast_mode=x.numel() > 50,
    )
