"""Losses over rows that several processes own, beside one process that has them all."""

from collections.abc import Iterator

import numpy as np
import pytest
import torch
from torch import Tensor
from torch.nn.functional import normalize, softplus

import rank_jobs
from cossim_fast.losses.group import Group
from rank_jobs import Batch, TwoTowers
from ranks import RankError, Ranks

# One process for all of them, where tests run in several.
pytestmark = pytest.mark.xdist_group("ranks")

# Unlike numbers of rows, also none.
SPREADS = [(5, 5), (7, 2), (4, 0), (3, 3, 3), (6, 1, 4), (0, 5, 2)]


@pytest.fixture(scope="module")
def ranks() -> Iterator[Ranks]:
    with Ranks(3) as three:
        yield three


def plain_contrast(
    made: Batch, rows: Tensor, keys: Tensor, scale: Tensor, margin: float | None, ids: bool
) -> tuple[Tensor, Tensor]:
    """The losses of all rows, and of the keys that are positives, by the whole matrix."""
    cosines = normalize(rows, dim=1) @ normalize(keys, dim=1).T
    ranks = range(len(made.row_counts))
    positives = [
        made.own(rank, rows=False).start + i for rank in ranks for i in range(made.row_counts[rank])
    ]
    own = torch.zeros_like(cosines, dtype=torch.bool)
    own[range(len(rows)), positives] = True
    negative = ~own
    if ids:
        negative &= made.ids[: len(rows), None] != made.ids[: len(keys)]
    logits, positive = scale * cosines, cosines[own]

    def losses(axis: int) -> Tensor:
        kept = negative
        if margin is not None:
            kept = negative & (cosines <= positive.unsqueeze(axis) + margin)
        others = logits.masked_fill(~kept, -torch.inf).logsumexp(axis)
        return softplus(others - scale * positive)

    of_rows = losses(1)
    logits, negative, cosines = logits[:, positives], negative[:, positives], cosines[:, positives]
    return of_rows, losses(0)


def averaged(found: list[list[np.ndarray]]) -> list[np.ndarray]:
    """The mean over the ranks: of values, and of gradients as DDP forms it."""
    return [np.mean(parts, axis=0) for parts in zip(*found, strict=True)]


def assert_close(found: list[np.ndarray], expected: list[Tensor], limit: float) -> None:
    for one, other in zip(found, expected, strict=True):
        np.testing.assert_allclose(one, other.detach().numpy(), rtol=limit, atol=limit)


@pytest.mark.parametrize("counts", SPREADS)
@pytest.mark.parametrize("symmetric", [False, True])
@pytest.mark.parametrize("margin", [None, 0.1])
@pytest.mark.parametrize("ids", [False, True])
def test_contrast_is_that_of_one_process(ranks, counts, symmetric, margin, ids):
    made = rank_jobs.batch(len(counts), counts, more=2)
    options = {"symmetric": symmetric, "margin": margin, "with_ids": ids}
    job = (rank_jobs.contrast, made, torch.float64, 4, options)
    found = averaged(ranks.run(*job, size=len(counts)))
    rows, keys, scale, _ = made.leaves()
    by_row, by_key = plain_contrast(made, rows, keys, scale, margin, ids)
    loss = (by_row.mean() + by_key.mean()) / 2 if symmetric else by_row.mean()
    gradients = torch.autograd.grad(loss, (rows, keys, scale))
    assert_close(found, [loss, *gradients], 1e-12)


@pytest.mark.parametrize("counts", SPREADS)
@pytest.mark.parametrize("ids", [False, True])
def test_siglip_is_that_of_one_process(ranks, counts, ids):
    made = rank_jobs.batch(len(counts), counts)
    found = averaged(ranks.run(rank_jobs.pairs, "siglip", made, 4, ids, size=len(counts)))
    rows, keys, scale, bias = made.leaves()
    logits = scale * normalize(rows, dim=1) @ normalize(keys, dim=1).T + bias
    signs = 1 - 2 * torch.eye(len(rows), dtype=torch.float64)
    terms = softplus(signs * logits)
    if ids:
        alike = made.ids[: len(rows), None] == made.ids
        terms = terms.masked_fill(alike & (signs > 0), 0.0)
    loss = terms.sum(1).mean()
    gradients = torch.autograd.grad(loss, (rows, keys, scale, bias))
    assert_close(found, [loss, *gradients], 1e-12)


@pytest.mark.parametrize("counts", SPREADS)
@pytest.mark.parametrize("ids", [False, True])
def test_clip_is_that_of_one_process(ranks, counts, ids):
    made = rank_jobs.batch(len(counts), counts)
    found = averaged(ranks.run(rank_jobs.pairs, "clip", made, 4, ids, size=len(counts)))
    leaves = made.leaves()
    loss = torch.stack(plain_contrast(made, *leaves[:3], None, ids)).mean()
    gradients = torch.autograd.grad(loss, leaves, materialize_grads=True, allow_unused=True)
    assert_close(found, [loss, *gradients], 1e-12)


@pytest.mark.parametrize("counts", SPREADS)
@pytest.mark.parametrize("ids", [False, True])
def test_nt_xent_is_that_of_one_process(ranks, counts, ids):
    made = rank_jobs.batch(len(counts), counts)
    found = averaged(ranks.run(rank_jobs.views, made, 4, ids, size=len(counts)))
    rows, keys, scale, _ = made.leaves()
    n = len(rows)
    unit = normalize(torch.cat([rows, keys]), dim=1)
    logits, partner = scale * unit @ unit.T, torch.arange(2 * n).roll(n)
    item = (made.ids[:n] if ids else torch.arange(n)).repeat(2)
    others = logits.masked_fill(item[:, None] == item, -torch.inf).logsumexp(1)
    loss = softplus(others - logits[torch.arange(2 * n), partner]).mean()
    assert_close(found, [loss, *torch.autograd.grad(loss, (rows, keys, scale))], 1e-12)


@pytest.mark.parametrize("counts", SPREADS)
@pytest.mark.parametrize("reduction", ["mean", "sum"])
@pytest.mark.parametrize("others", [False, True])
def test_sup_con_is_that_of_one_process(ranks, counts, reduction, others):
    made = rank_jobs.batch(len(counts), counts, more=2)
    job = (rank_jobs.classes, made, 4, reduction, others)
    found = averaged(ranks.run(*job, size=len(counts)))
    rows, keys, scale, _ = made.leaves()
    labels = made.ids // 2
    itself = torch.eye(len(rows), len(keys) if others else len(rows), dtype=torch.bool) & (
        not others
    )
    unit, ref = (normalize(t, dim=1) for t in (rows, keys if others else rows))
    logits = (scale * unit @ ref.T).masked_fill(itself, -torch.inf)
    among = (labels[: len(rows), None] == labels[: len(ref)]) & ~itself
    count = among.sum(1)
    means = torch.where(among, logits, 0).sum(1) / count.clamp_min(1)
    loss = torch.where(count > 0, logits.logsumexp(1) - means, 0).sum()
    loss = loss / (count > 0).sum() if reduction == "mean" else loss
    leaves = (rows, keys, scale) if others else (rows, scale)
    assert_close(found, [loss, *torch.autograd.grad(loss, leaves)], 1e-12)


@pytest.mark.parametrize("counts", [(5, 3), (2, 4, 3)])
def test_ddp_gives_parameters_the_gradients_of_one_process(ranks, counts):
    made = rank_jobs.batch(3, counts)
    found = ranks.run(rank_jobs.by_ddp, made, size=len(counts))
    model = TwoTowers()
    left, right, scale = model(made.rows, made.keys)
    loss = torch.stack(plain_contrast(made, left, right, scale, None, False)).mean()
    loss.backward()
    for one in found:
        assert_close(one, [parameter.grad for parameter in model.parameters()], 1e-12)


@pytest.mark.parametrize("symmetric", [False, True])
def test_no_rows_at_all(ranks, symmetric):
    made = rank_jobs.batch(3, (0, 0))
    options = {"symmetric": symmetric}
    for value, *gradients in ranks.run(rank_jobs.contrast, made, torch.float64, 4, options, size=2):
        assert value == 0
        assert not any(gradient.any() for gradient in gradients)


def test_losses_of_rows_are_weighed_by_each_rank_as_it_likes(ranks):
    made = rank_jobs.batch(3, (3, 4))
    options = {"symmetric": True, "reduction": "none"}
    found = ranks.run(rank_jobs.contrast, made, torch.float64, 4, options, size=2)
    rows, keys, scale, _ = made.leaves()
    losses = torch.stack(plain_contrast(made, rows, keys, scale, None, False)).mean(0)
    weights = torch.cat([torch.linspace(1, 2, n, dtype=torch.float64) for n in (3, 4)])
    gradients = torch.autograd.grad((losses * weights).sum(), (rows, keys, scale))
    np.testing.assert_allclose(
        np.concatenate([one[0] for one in found]), losses.detach(), rtol=1e-12
    )
    sums = [np.sum(parts, axis=0) for parts in zip(*(one[1:] for one in found), strict=True)]
    assert_close(sums, list(gradients), 1e-12)


def test_sums_are_those_of_one_process(ranks):
    made = rank_jobs.batch(4, (3, 4))
    found = averaged(
        ranks.run(rank_jobs.contrast, made, torch.float64, 4, {"reduction": "sum"}, size=2)
    )
    leaves = made.leaves()[:3]
    loss = plain_contrast(made, *leaves, None, False)[0].sum()
    assert_close(found, [loss, *torch.autograd.grad(loss, leaves)], 1e-12)


def test_positives_are_numbers_of_own_keys_and_may_be_absent(ranks):
    made = rank_jobs.batch(5, (4, 4))
    reversed_, absent = torch.tensor([3, 2, 1, 0]), torch.tensor([0, -1, 2, 3])
    plain = ranks.run(rank_jobs.contrast, made, torch.float64, 4, {}, size=2)
    order = torch.tensor([3, 2, 1, 0, 7, 6, 5, 4])
    options = {"positives": reversed_}
    turned = made._replace(keys=made.keys[order])
    found = ranks.run(rank_jobs.contrast, turned, torch.float64, 4, options, size=2)
    for one, other in zip(found, plain, strict=True):
        np.testing.assert_allclose(one[0], other[0], rtol=1e-13)
        np.testing.assert_allclose(one[2], other[2][order], rtol=1e-9, atol=1e-15)
    options = {"positives": absent, "reduction": "none"}
    for value, by_rows, _, _ in ranks.run(
        rank_jobs.contrast, made, torch.float64, 4, options, size=2
    ):
        assert value[1] == 0
        assert not by_rows[1].any()
        assert not by_rows[5].any()


@pytest.mark.parametrize("scale", [0.1, 1000.0])
@pytest.mark.parametrize("dtype", [torch.float32, torch.bfloat16])
def test_narrower_rows(ranks, scale, dtype):
    made = rank_jobs.batch(6, (9, 5), scale=scale)
    # What narrow rows hold, in float64: the loss has no other error than its own.
    made = made._replace(rows=made.rows.to(dtype).double(), keys=made.keys.to(dtype).double())
    options = {"symmetric": True}
    found = averaged(ranks.run(rank_jobs.contrast, made, dtype, 4, options, size=2))
    rows, keys, leaf, _ = made.leaves()
    loss = torch.stack(plain_contrast(made, rows, keys, leaf, None, False)).mean()
    gradients = torch.autograd.grad(loss, (rows, keys, leaf))
    np.testing.assert_allclose(found[0], loss.detach(), rtol=1e-5, atol=1e-6)
    limit = 16 * torch.finfo(dtype).eps + 4e-7 * scale
    for one, other in zip(found[1:], gradients, strict=True):
        assert abs(one - other.numpy()).max() <= limit * other.abs().max()


@pytest.mark.parametrize("twice", [False, True])
def test_more_than_first_derivatives_are_refused(ranks, twice):
    made = rank_jobs.batch(1, (3, 4))
    with pytest.raises(RankError, match="RuntimeError: expected create_graph=False"):
        ranks.run(rank_jobs.many_derivatives, made, twice, size=2)


def test_autocast_changes_nothing(ranks):
    # Products of as many numbers as torch forms.
    made = rank_jobs.batch(10, (150, 90), width=40)
    for plain, autocast in ranks.run(rank_jobs.under_autocast, made, size=2):
        for one, other in zip(plain, autocast, strict=True):
            np.testing.assert_array_equal(one, other)


def test_frozen_keys(ranks):
    made = rank_jobs.batch(7, (3, 4))
    every, frozen = (
        ranks.run(rank_jobs.contrast, made, torch.float64, 4, {"learnt_keys": learnt}, size=2)
        for learnt in (True, False)
    )
    for one, other in zip(every, frozen, strict=True):
        for a, b in zip((one[0], one[1], one[3]), other, strict=True):
            np.testing.assert_array_equal(a, b)


@pytest.mark.parametrize("symmetric", [False, True])
def test_no_rank_is_handed_more_than_a_piece(ranks, symmetric):
    made = rank_jobs.batch(8, (40, 9, 30))
    pieces = [16, 16, 8, 9, 16, 14]
    options = {"symmetric": symmetric}
    for passed in ranks.run(rank_jobs.rows_passed, made, 16, options):
        assert passed == {"broadcast": 2 * pieces, "reduce": pieces}


def test_frozen_keys_get_nothing_back(ranks):
    made = rank_jobs.batch(8, (40, 9, 30))
    for passed in ranks.run(rank_jobs.rows_passed, made, 16, {"learnt_keys": False}):
        assert set(passed) == {"broadcast"}


@pytest.mark.parametrize(
    ("unlike", "word"), [({"margin": 0.3}, "margin"), ({"symmetric": True}, "choice of symmetric")]
)
def test_ranks_that_ask_unlike_things_are_told_so_and_none_waits(ranks, unlike, word):
    made = rank_jobs.batch(9, (3, 4))
    options = {"on_the_first": unlike}
    with pytest.raises(RankError, match=rf"rank 0(?s:.*)one {word} on all ranks(?s:.*)rank 1"):
        ranks.run(rank_jobs.contrast, made, torch.float64, 4, options, size=2)


@pytest.mark.parametrize(
    ("given", "error", "word"), [(None, TypeError, "WORLD"), ("here", TypeError, "'here'")]
)
def test_a_group_is_a_process_group(ranks, given, error, word):
    with pytest.raises(ValueError, match="init_process_group"):
        Group(given, torch.device("cpu"))
    with pytest.raises(RankError, match=rf"{error.__name__}: expected group(?s:.*){word}"):
        ranks.run(rank_jobs.group_of, given)
