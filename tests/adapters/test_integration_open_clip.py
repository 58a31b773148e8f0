"""The adapter for open_clip's losses, beside them: in one process, and in several."""

import inspect

import numpy as np
import pytest
import torch

import bare_packages
import loss_batches
from cossim_fast.integrations import open_clip as mine
from ranks import RankError, Ranks

bare_packages.bare_open_clip()

from open_clip import loss as theirs  # noqa: E402

import adapter_jobs  # noqa: E402

LOSSES = ["ClipLoss", "SigLipLoss"]


def differentiated(module, rows, scale, bias):
    leaves = [t.clone().requires_grad_() for t in (*rows, torch.tensor(scale), torch.tensor(bias))]
    leaves[2:] = [t.detach().to(rows[0].dtype).requires_grad_() for t in leaves[2:]]
    value = module(*leaves)
    return value.detach(), *torch.autograd.grad(value, leaves)


@pytest.mark.parametrize("name", LOSSES)
@pytest.mark.parametrize("method", ["__init__", "forward"])
def test_arguments_are_theirs(name, method):
    found = [
        [
            (p.name, p.default)
            for p in inspect.signature(getattr(getattr(one, name), method)).parameters.values()
        ]
        for one in (mine, theirs)
    ]
    assert found[0] == found[1]


@pytest.mark.parametrize("name", LOSSES)
@pytest.mark.parametrize("kind", loss_batches.KINDS)
@pytest.mark.parametrize("scale", [1.0, 14.3, 100.0])
@pytest.mark.parametrize("norm", [1.0, 7.0])
def test_values_and_gradients_are_theirs(name, kind, scale, norm):
    # Features are taken as they are; of a norm of 7, logits reach 4900.
    rows = [norm * t for t in loss_batches.pairs(kind)]
    found = differentiated(getattr(mine, name)(), rows, scale, -10.0)
    expected = differentiated(getattr(theirs, name)(), rows, scale, -10.0)
    for one, other in zip(found, expected, strict=True):
        # Theirs cancels where a row is saturated, and where logits add up to nothing.
        torch.testing.assert_close(one, other, rtol=1e-9, atol=1e-12 * scale * norm**2)


@pytest.mark.parametrize("name", LOSSES)
@pytest.mark.parametrize("kind", loss_batches.KINDS)
@pytest.mark.parametrize("dtype", [torch.float32, torch.float16, torch.bfloat16])
def test_narrow_features_are_no_further_from_float64_than_theirs(name, kind, dtype):
    rows = [t.to(dtype) for t in loss_batches.pairs(kind)]
    exact = differentiated(getattr(theirs, name)(), [t.double() for t in rows], 100.0, -10.0)
    found = differentiated(getattr(mine, name)(), rows, 100.0, -10.0)
    other = differentiated(getattr(theirs, name)(), rows, 100.0, -10.0)
    assert found[0].dtype == torch.float32
    for name_, one, two, true in zip(
        ("loss", "image", "text", "scale", "bias"), found, other, exact, strict=True
    ):
        error, limit = ((t.double() - true).abs().max() for t in (one, two))
        # Of the result, and of logits in float32 to its derivatives: theirs are all rounded alike
        # where rows are equal, and cancel.
        rounding = torch.finfo(one.dtype).eps + 2 * 100 * torch.finfo(torch.float32).eps
        assert error <= 2 * limit + 2 * rounding * max(true.abs().max(), 1e-3), name_


@pytest.mark.parametrize("name", LOSSES)
def test_a_dict_if_asked_for(name):
    rows = loss_batches.pairs("random")
    loss = getattr(mine, name)()
    found = loss(*rows, 10.0, None, output_dict=True)
    assert found == {"contrastive_loss": loss(*rows, 10.0, None)}
    torch.testing.assert_close(
        found["contrastive_loss"], getattr(theirs, name)()(*rows, 10.0, None)
    )


@pytest.mark.parametrize("local_loss", [False, True])
@pytest.mark.parametrize("gather_with_grad", [False, True])
def test_each_rank_has_the_loss_and_gradients_of_theirs(ranks, local_loss, gather_with_grad):
    options = {"local_loss": local_loss, "gather_with_grad": gather_with_grad}
    compare(ranks, "ClipLoss", options)


@pytest.mark.parametrize("dist_impl", [None, "bidir", "shift", "reduce", "gather"])
def test_each_rank_has_the_sigmoid_loss_and_gradients_of_theirs(ranks, dist_impl):
    compare(ranks, "SigLipLoss", {"dist_impl": dist_impl})


def compare(ranks: Ranks, name: str, options: dict[str, object]) -> None:
    both = ranks.run(adapter_jobs.open_clip_losses, name, options)
    for found, expected in both:
        for one, other in zip(found[:3], expected[:3], strict=True):
            np.testing.assert_allclose(one, other, rtol=1e-10, atol=1e-13)
    # Those by the scale and the bias are the same when DDP has averaged them.
    found, expected = (np.mean([pair[which][3:] for pair in both], axis=0) for which in (0, 1))
    np.testing.assert_allclose(found, expected, rtol=1e-10, atol=1e-13)


@pytest.mark.parametrize("name", LOSSES)
def test_ranks_are_those_of_torch(name, ranks):
    with pytest.raises(ValueError, match=r"got \(0, 2\), where it has None; call"):
        getattr(mine, name)(rank=0, world_size=2)(*loss_batches.pairs("random"), 1.0, None)
    with pytest.raises(RankError, match=r"got \(0, 7\), where it has \(0, [23]\)"):
        ranks.run(adapter_jobs.open_clip_of_seven, name)


def test_refused():
    with pytest.raises(ValueError, match=r"use torch\.distributed"):
        mine.ClipLoss(use_horovod=True)
    with pytest.raises(ValueError, match="'bidir', 'shift', 'reduce', 'gather'"):
        mine.SigLipLoss(dist_impl="ring")
