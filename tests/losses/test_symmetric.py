"""Losses of several tiles: with padding, kept tiles and threads, by torch.mm and by oneDNN."""

from functools import partial
from itertools import chain

import pytest
import torch

import rounding
from cossim_fast import _products, _reference, losses
from cossim_fast.losses import symmetric, tiles
from cossim_fast.losses.symmetric import rounds
from cossim_fast.testing import make_inputs
from loss_cases import check, differentiated, leaves

N, D = 70, 24
LABELS = torch.arange(N) * 7 % 30  # of one, two and three rows
SCALARS = {"siglip": {"logit_scale": 10.0, "logit_bias": -5.0}, "batch_hard_triplet": {}}


def case(name):
    """The rows, numbers and settings of a loss."""
    x, y = make_inputs((N, D), (N, D))
    numbers = SCALARS.get(name, {"temperature": 0.1})
    if name == "siglip":
        ids = {"image_ids": LABELS, "text_ids": LABELS}
        return {"image": x, "text": y}, numbers, ids
    if name == "nt_xent":
        return {"z0": x, "z1": y}, numbers, {}
    if name == "nt_xent with ids":
        return {"z0": x, "z1": y}, numbers, {"ids": LABELS}
    if name == "sup_con of others":
        return {"z": x, "ref": y[:50]}, numbers, {"labels": LABELS, "ref_labels": LABELS[20:]}
    more = {"margin": 0.3} if name == "batch_hard_triplet" else {}
    return {"z": x}, numbers, {"labels": LABELS, **more}


NAMES = [
    "siglip",
    "nt_xent",
    "nt_xent with ids",
    "sup_con",
    "sup_con of others",
    "batch_hard_triplet",
]


@pytest.fixture(params=["torch.mm", "oneDNN"])
def small_tiles(request, monkeypatch):
    """Tiles of 16 rows, of which some are kept."""
    by_onednn = request.param == "oneDNN"
    if by_onednn and not torch.backends.mkldnn.is_available():
        pytest.skip("torch without oneDNN")
    for module in (symmetric, tiles):
        monkeypatch.setattr(module, "SIDE", 16)
        monkeypatch.setattr(module, "by_onednn", lambda _: by_onednn)
    monkeypatch.setattr(tiles, "COLUMNS", 24)
    monkeypatch.setattr(symmetric, "KEPT", 4 * 64 * 64 * 4)
    monkeypatch.setattr(tiles, "BLOCK_MEMORY", 1 << 12)


@pytest.mark.parametrize("reduction", ["mean", "none"])
@pytest.mark.parametrize("name", NAMES)
@pytest.mark.usefixtures("small_tiles")
def test_in_several_tiles(name, reduction):
    rows, numbers, settings = case(name)
    settings = {**settings, "reduction": reduction}
    function = name.partition(" ")[0]
    check(getattr(losses, function), getattr(_reference, function), rows, numbers, settings,
          scale=10.0, bias=5.0)  # fmt: skip


@pytest.mark.parametrize("size", [1, 2, 3, 40])
@pytest.mark.usefixtures("small_tiles")
def test_classes_that_lie_together(size):
    """Most tiles then have no positives."""
    (z,) = make_inputs((N, D))
    settings = {"labels": torch.arange(N) // size}
    check(losses.sup_con, _reference.sup_con, {"z": z}, {"temperature": 0.1}, settings, scale=10.0)


@pytest.mark.parametrize("name", NAMES)
@pytest.mark.usefixtures("small_tiles")
def test_the_number_of_threads_changes_no_bit(name, monkeypatch):
    rows, numbers, settings = case(name)
    loss = getattr(losses, name.partition(" ")[0])
    found = []
    for threads in (1, 3):
        for module in (symmetric, tiles):
            monkeypatch.setattr(module, "independent_threads", lambda _, threads=threads: threads)
        found.append(differentiated(loss, leaves(rows, numbers), settings))
    (value, gradients), (other, others) = found
    assert torch.equal(value, other)
    for key, gradient in gradients.items():
        assert torch.equal(gradient, others[key]), key


@pytest.mark.parametrize("name", NAMES)
@pytest.mark.usefixtures("small_tiles")
def test_products_that_round_their_factors_are_not_used(name, monkeypatch):
    monkeypatch.setattr(_products, "_FEW", 0)  # fewer are numpy's, which rounds none
    monkeypatch.setattr(_products, "_tried", {})
    rows, numbers, settings = case(name)
    function, settings = name.partition(" ")[0], {**settings, "reduction": "none"}
    with rounding.rounding(rounding.to_bfloat16):
        check(getattr(losses, function), getattr(_reference, function), rows, numbers, settings,
              scale=10.0, bias=5.0)  # fmt: skip


@pytest.mark.parametrize("count", [0, 1, 2, 3, 8, 9])
def test_each_pair_of_blocks_meets_once_and_each_block_once_a_round(count):
    met = sorted(chain.from_iterable(rounds(count)))
    assert met == [(i, j) for i in range(count) for j in range(i, count)]
    for pairs in rounds(count):
        used = [block for i, j in pairs for block in {i, j}]
        assert len(used) == len(set(used))


def test_the_order_of_ties_is_that_of_rows_whatever_the_order_of_tiles(monkeypatch):
    """Rounds meet blocks in another order."""
    monkeypatch.setattr(symmetric, "SIDE", 2)
    z = torch.eye(2, 4).repeat_interleave(8, 0).requires_grad_()
    labels = torch.arange(2).repeat_interleave(8)
    loss = partial(losses.batch_hard_triplet, z, labels, margin=2.0, reduction="none")
    for row in range(16):
        (gradient,) = torch.autograd.grad(loss()[row], z)
        nearest = 8 if row < 8 else 0
        assert gradient.any(1).nonzero().flatten().tolist() == sorted({row, nearest})
