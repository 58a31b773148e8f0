"""The adapter for pytorch-metric-learning's losses, beside them."""

import pytest
import torch
from pytorch_metric_learning import distances, losses, miners, reducers, regularizers

import loss_batches
from cossim_fast.integrations import pytorch_metric_learning as mine

LOSSES = ["NTXentLoss", "SupConLoss"]
REDUCERS = {
    "default": lambda: None,
    "mean": reducers.MeanReducer,
    "not zero": reducers.AvgNonZeroReducer,
    "threshold": lambda: reducers.ThresholdReducer(low=0.5, high=4),
    "per anchor": lambda: reducers.PerAnchorReducer(reducers.AvgNonZeroReducer()),
    "stats": lambda: reducers.MeanReducer(collect_stats=True),
}
# Two views each; one of many; one alone; all in one class; none in the same.
LABELS = {
    "views": [*range(6), *range(6)],
    "classes": [0, 1, 2, 0, 1, 2, 2, 2, 2, 5, 0, -3],
    "one class": [4] * 12,
    "no class": list(range(12)),
}


def rows(kind, norm=1.0):
    x, _ = loss_batches.pairs(kind)
    return norm * x


def differentiated(loss, x, labels, *more):
    leaves = [x.clone().requires_grad_()]
    leaves += [t.clone().requires_grad_() for t in more if t.is_floating_point()]
    others = [t for t in more if not t.is_floating_point()]
    value = loss(leaves[0], labels, None, *leaves[1:], *others)
    return value.detach(), *torch.autograd.grad(value, leaves, allow_unused=True)


def compare(one, other, limit=1e-10):
    for found, expected in zip(one, other, strict=True):
        if expected is None:
            assert found is None
        else:
            torch.testing.assert_close(found, expected, rtol=limit, atol=1e-3 * limit)


@pytest.mark.parametrize("name", LOSSES)
@pytest.mark.parametrize("labels", LABELS)
@pytest.mark.parametrize("reducer", REDUCERS)
@pytest.mark.parametrize("temperature", [0.05, 0.5, 10.0])
def test_values_and_gradients_are_theirs(name, labels, reducer, temperature):
    given = torch.tensor(LABELS[labels])
    found, expected = (
        differentiated(
            getattr(one, name)(temperature=temperature, reducer=REDUCERS[reducer]()),
            rows("random", 3.0),
            given,
        )
        for one in (mine, losses)
    )
    compare(found, expected)


@pytest.mark.parametrize("name", LOSSES)
@pytest.mark.parametrize("kind", loss_batches.KINDS[:-1])
@pytest.mark.parametrize("labels", ["views", "classes"])
@pytest.mark.parametrize("norm", [1e-3, 1e6])
def test_hard_batches(name, kind, labels, norm):
    # The sums of all losses, since theirs are rounded to 0 where a positive is far nearer than
    # all else, and the mean of those above 0 is then that of fewer.
    options = {"temperature": 0.1, "reducer": reducers.SumReducer()}
    given = torch.tensor(LABELS[labels])
    found, expected = (
        differentiated(getattr(one, name)(**options), rows(kind, norm), given)
        for one in (mine, losses)
    )
    torch.testing.assert_close(found[0], expected[0], rtol=1e-10, atol=1e-10)
    torch.testing.assert_close(found[1], expected[1], rtol=1e-7, atol=1e-10 / norm)


@pytest.mark.parametrize("name", LOSSES)
@pytest.mark.parametrize("kind", ["random", "equal", "opposite"])
@pytest.mark.parametrize("dtype", [torch.float32, torch.float16, torch.bfloat16])
def test_narrow_rows_are_no_further_from_float64_than_theirs(name, kind, dtype):
    x, given = rows(kind).to(dtype), torch.tensor(LABELS["classes"])
    found, theirs = (
        differentiated(getattr(one, name)(temperature=0.1), x, given) for one in (mine, losses)
    )
    true = differentiated(getattr(losses, name)(temperature=0.1), x.double(), given)
    assert found[0].dtype == torch.float32
    for one, two, right in zip(found, theirs, true, strict=True):
        error, limit = ((t.double() - right).abs().max() for t in (one, two))
        rounding = torch.finfo(one.dtype).eps + 2 * 10 * torch.finfo(torch.float32).eps
        assert error <= 2 * limit + 2 * rounding * max(right.abs().max(), 1e-3)


def test_losses_that_theirs_round_away():
    """Views that are nearer than all else by 1 / temperature, or further."""
    x = torch.eye(3, 4).repeat(2, 1)
    labels = torch.tensor([0, 1, 2, 0, 1, 2])
    near, far = mine.NTXentLoss(0.01), mine.NTXentLoss(0.005)
    assert losses.NTXentLoss(0.01)(x, labels) == 0
    torch.testing.assert_close(near(x, labels), torch.tensor(4 * 2.718281828**-100))
    labels, x = torch.tensor([0, 0, 1, 1]), torch.eye(4)[[0, 1, 0, 1]]
    assert losses.NTXentLoss(0.005)(x, labels) < 88
    torch.testing.assert_close(far(x, labels), torch.tensor(200.0))


@pytest.mark.parametrize("name", LOSSES)
@pytest.mark.parametrize("labels", LABELS)
def test_others_in_place_of_the_batch(name, labels):
    x = rows("random")
    given = torch.tensor(LABELS[labels])
    others = loss_batches.pairs("random", n=7, seed=4)[0]
    cases = [
        (others, given[[0, 1, 2, 5, 7, 9, 11]]),
        (x, given.clone()),
        # The same labels: no row is compared with the other of its number.
        (x + 1, given),
        (others[:1], given[:1]),
    ]
    for ref, ref_labels in cases:
        found, expected = (
            differentiated(getattr(one, name)(temperature=0.2), x, given, ref, ref_labels)
            for one in (mine, losses)
        )
        compare(found, expected)


@pytest.mark.parametrize("name", LOSSES)
def test_one_positive_and_one_negative_are_too_few_for_both(name):
    ref, ref_labels = torch.eye(3, 16, dtype=torch.float64)[:2], torch.tensor([0, 1])
    for one in (mine, losses):
        loss = getattr(one, name)(temperature=0.2)
        assert loss(rows("random")[:1], torch.tensor([0]), None, ref, ref_labels) == 0


OPTIONS = {
    "distance": lambda: {"distance": distances.LpDistance()},
    "power": lambda: {"distance": distances.CosineSimilarity(power=2)},
    "dot product": lambda: {"distance": distances.DotProductSimilarity()},
    "stats": lambda: {"distance": distances.CosineSimilarity(collect_stats=True)},
    "regularizer": lambda: {"embedding_regularizer": regularizers.LpRegularizer()},
}


@pytest.mark.parametrize("name", LOSSES)
@pytest.mark.parametrize("option", OPTIONS)
def test_other_options_are_theirs(name, option):
    given = torch.tensor(LABELS["classes"])
    found, expected = (
        differentiated(getattr(one, name)(**OPTIONS[option]()), rows("random"), given)
        for one in (mine, losses)
    )
    compare(found, expected)


@pytest.mark.parametrize("name", LOSSES)
def test_pairs_of_a_miner_and_memory_of_former_batches(name):
    x, given = rows("random"), torch.tensor(LABELS["classes"])
    chosen = miners.MultiSimilarityMiner()(x, given)
    results = []
    for one in (mine, losses):
        loss = getattr(one, name)(temperature=0.2)
        memory = losses.CrossBatchMemory(loss, embedding_size=16, memory_size=40)
        results.append([loss(x, given, chosen), memory(x, given), memory(-x, given)])
    compare(*results)


@pytest.mark.parametrize("name", LOSSES)
def test_nothing_of_size_n_squared_times_n_is_made(name):
    """Of 1500 views the library's NTXentLoss would need 13 GB."""
    x = torch.randn(1500, 8, generator=torch.Generator().manual_seed(0), requires_grad=True)
    loss = getattr(mine, name)()(x, torch.arange(750).repeat(2))
    loss.backward()
    assert 6 < loss < 60
    assert x.grad.isfinite().all()
