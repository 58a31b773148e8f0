"""Losses over rows that several processes own, beside one process that has them all."""

from collections.abc import Iterator

import numpy as np
import pytest
import torch
from torch import Tensor
from torch.nn.functional import normalize, softplus

import rank_jobs
from rank_jobs import Batch
from ranks import Ranks

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

    return losses(1), losses(0) if len(rows) == len(keys) else rows.new_empty(0)


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
    made = rank_jobs.batch(len(counts), counts, more=0 if symmetric else 2)
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
    job = (rank_jobs.sigmoid, made, torch.float64, 4, {"with_ids": ids})
    found = averaged(ranks.run(*job, size=len(counts)))
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
