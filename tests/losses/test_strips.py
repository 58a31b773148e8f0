"""Graphs of gradients, and other devices' losses, keep no matrix of logits."""

from functools import partial

import pytest
import torch

from cossim_fast import losses
from cossim_fast.losses import strips
from cossim_fast.losses.batch_hard_triplet import _chosen_in_tiles
from cossim_fast.testing import make_inputs

LABELS = torch.arange(12) * 5 % 7
CASES = {
    "siglip": lambda x, y, s: losses.siglip(x, y, s, -1.0, image_ids=LABELS[: len(x)]),
    "nt_xent": lambda x, y, s: losses.nt_xent(x, y, temperature=1 / s),
    "sup_con": lambda x, _, s: losses.sup_con(x, LABELS[: len(x)], temperature=1 / s),
    "sup_con of others": lambda x, y, s: losses.sup_con(
        x, LABELS[: len(x)], temperature=1 / s, ref=y, ref_labels=LABELS[: len(x)].flip(0)
    ),
}
EVERY = pytest.mark.parametrize("loss", CASES.values(), ids=CASES)


def leaves(n, d):
    rows = make_inputs((n, d), (n, d), dtype=torch.float64, requires_grad=True)
    return *rows, torch.tensor(3.0, dtype=torch.float64, requires_grad=True)


def second(loss, inputs):
    """The loss, its derivatives, and those of a function of them."""
    value = loss(*inputs)
    first = torch.autograd.grad(value, inputs, create_graph=True, materialize_grads=True)
    more = torch.autograd.grad(sum(g.sin().sum() for g in first), inputs, materialize_grads=True)
    return value, *first, *more


@EVERY
def test_strips_give_what_the_whole_gives(loss, monkeypatch):
    inputs = leaves(12, 3)
    expected = second(loss, inputs)
    monkeypatch.setattr(strips, "STRIP", 60)
    for mine, wanted in zip(second(loss, inputs), expected, strict=True):
        torch.testing.assert_close(mine, wanted, rtol=1e-10, atol=1e-12)
    small = leaves(4, 2)
    monkeypatch.setattr(strips, "STRIP", 8)
    assert torch.autograd.gradgradcheck(loss, small)


@EVERY
def test_no_matrix_is_kept(loss, monkeypatch):
    monkeypatch.setattr(strips, "STRIP", 30)
    inputs, kept = leaves(12, 3), []

    def pack(t):
        kept.append(t.numel())
        return t

    value = loss(*inputs)
    with torch.autograd.graph.saved_tensors_hooks(pack, lambda t: t):
        torch.autograd.grad(value, inputs, create_graph=True, materialize_grads=True)
    assert kept
    assert max(kept) <= 2 * 12 * 3


def test_triplets_are_chosen_in_strips(monkeypatch):
    (z,) = make_inputs((12, 5))
    expected = _chosen_in_tiles(z, LABELS, 1e-8)
    monkeypatch.setattr(strips, "STRIP", 30)
    loss = partial(losses.batch_hard_triplet, labels=LABELS, margin=9.0, reduction="none")
    found = torch.func.vmap(loss)(z[None])[0]
    cosines = torch.cosine_similarity(z[:, None], z[None], -1)
    row = torch.arange(12)
    by_tiles = 9 + cosines[row, expected.negative] - cosines[row, expected.positive]
    torch.testing.assert_close(found, torch.where(expected.counted, by_tiles, 0.0))


LEFT = {
    "info_nce": lambda z, ids: losses.info_nce(z, z, key_ids=ids),
    "clip": lambda z, ids: losses.clip(z, z, 1.0, image_ids=ids),
    "siglip": lambda z, ids: losses.siglip(z, z, 1.0, text_ids=ids),
    "nt_xent": lambda z, ids: losses.nt_xent(z, z, ids=ids),
    "sup_con": losses.sup_con,
    "batch_hard_triplet": lambda z, ids: losses.batch_hard_triplet(z, ids, margin=0.1),
}


@pytest.mark.parametrize("loss", LEFT.values(), ids=LEFT)
def test_numbers_of_rows_on_another_device_are_refused(loss):
    z = torch.ones(3, 2, device="meta")
    assert loss(z, torch.arange(3, device="meta")).is_meta
    with pytest.raises(ValueError, match="on meta like the rows, got cpu"):
        loss(z, torch.arange(3))
