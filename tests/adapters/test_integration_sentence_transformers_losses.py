"""The adapters for two losses of sentence-transformers, beside them."""

import contextlib
import inspect

import numpy as np
import pytest
import torch
from sentence_transformers import util
from sentence_transformers.sentence_transformer import losses as theirs

import adapter_jobs
import loss_batches
from adapter_jobs import SmallModel
from cossim_fast.integrations import sentence_transformers_losses as mine

PLAIN, CACHED = "MultipleNegativesRankingLoss", "CachedMultipleNegativesRankingLoss"
BOTH_WAYS = {"directions": ("query_to_doc", "doc_to_query"), "partition_mode": "per_direction"}
# What ours computes, and what is handed on.
OPTIONS = {
    "default": {},
    "scale": {"scale": 100.0},
    "both ways": BOTH_WAYS,
    "dot product": {"similarity_fct": util.dot_score, "scale": 1.0},
    "joint": {"directions": ("query_to_doc", "doc_to_query")},
    "all directions": {
        "directions": ("query_to_doc", "query_to_query", "doc_to_query", "doc_to_doc")
    },
    "hardness": {"hardness_mode": "all_negatives", "hardness_strength": 3.0},
    "distance": {"similarity_fct": util.manhattan_sim},
}
OURS = ("default", "scale", "both ways", "dot product")


def columns(kind, count, norm=1.0):
    """Queries, their documents, and negatives of each."""
    found = [*loss_batches.pairs(kind), loss_batches.pairs(kind, seed=1)[0]]
    return [norm * t for t in found[:count]]


def differentiated(module, name, columns, **options):
    leaves = [t.clone().requires_grad_() for t in columns]
    if name == PLAIN:
        loss = getattr(module, name)(SmallModel(), **options)
        value = loss.compute_loss_from_embeddings(leaves, None)
        value.backward()
    else:
        loss = getattr(module, name)(SmallModel(), mini_batch_size=5, **options)
        value = loss.calculate_loss([list(t.split(5)) for t in leaves], with_backward=True)
        assert not value.requires_grad
    return value.detach(), *(leaf.grad for leaf in leaves)


@pytest.mark.parametrize("name", [PLAIN, CACHED])
@pytest.mark.parametrize("option", OPTIONS)
@pytest.mark.parametrize("count", [2, 3])
@pytest.mark.parametrize("kind", loss_batches.KINDS[:-1])
def test_values_and_gradients_are_theirs(name, option, count, kind):
    given = columns(kind, count, 3.0)
    found, expected = (
        differentiated(one, name, given, **OPTIONS[option]) for one in (mine, theirs)
    )
    for one, other in zip(found, expected, strict=True):
        torch.testing.assert_close(one, other, rtol=1e-9, atol=1e-11)


@pytest.mark.parametrize("name", [PLAIN, CACHED])
@pytest.mark.parametrize("option", OPTIONS)
def test_who_computes(name, option, monkeypatch):
    class AskedError(Exception):
        pass

    def asked(*_, **__):
        raise AskedError

    method = "compute_loss_from_embeddings" if name == PLAIN else "calculate_loss"
    monkeypatch.setattr(getattr(theirs, name), method, asked)
    expected = contextlib.nullcontext() if option in OURS else pytest.raises(AskedError)
    with expected:
        differentiated(mine, name, columns("random", 2), **OPTIONS[option])


@pytest.mark.parametrize("name", [PLAIN, CACHED])
@pytest.mark.parametrize("option", ["default", "both ways", "dot product"])
@pytest.mark.parametrize("kind", ["random", "equal", "saturated"])
@pytest.mark.parametrize("dtype", [torch.float32, torch.float16, torch.bfloat16])
def test_narrow_rows_are_no_further_from_float64_than_theirs(name, option, kind, dtype):
    given = [t.to(dtype) for t in columns(kind, 3)]
    options = OPTIONS[option]
    found, other = (differentiated(one, name, given, **options) for one in (mine, theirs))
    true = differentiated(theirs, name, [t.double() for t in given], **options)
    assert found[0].dtype == torch.float32
    for one, two, right in zip(found, other, true, strict=True):
        error, limit = ((t.double() - right).abs().max() for t in (one, two))
        rounding = torch.finfo(one.dtype).eps + 2 * 20 * torch.finfo(torch.float32).eps
        assert error <= 2 * limit + 2 * rounding * max(right.abs().max(), 1e-3)


def features(count):
    """Words of texts: queries, their documents, and negatives of each."""
    numbers = torch.Generator().manual_seed(0)
    words = [torch.randint(0, 40, (12, 6), generator=numbers) for _ in range(count)]
    return [{"input_ids": each, "attention_mask": torch.ones_like(each)} for each in words]


@pytest.mark.parametrize("name", [PLAIN, CACHED])
@pytest.mark.parametrize("count", [2, 3])
def test_a_model_gets_the_gradients_of_theirs(name, count):
    """From features to parameters: with dropout, which the second pass of a cache repeats."""
    results = []
    for one in (mine, theirs):
        model = SmallModel(dropout=0.3)
        torch.manual_seed(1)
        loss = getattr(one, name)(model, **({} if name == PLAIN else {"mini_batch_size": 5}))
        value = loss(features(count), None)
        (2 * value).backward()
        with torch.no_grad():
            model.eval()
            rated = loss(features(count), None)
        results.append((value.detach(), model.words.weight.grad, rated))
    for found, expected in zip(*results, strict=True):
        torch.testing.assert_close(found, expected, rtol=1e-10, atol=1e-12)


@pytest.mark.parametrize("name", [PLAIN, CACHED])
def test_inside_a_loss_of_several_widths(name):
    results = []
    for one in (mine, theirs):
        model = SmallModel()
        loss = theirs.MatryoshkaLoss(model, getattr(one, name)(model), [16, 8, 4])
        value = loss(features(3), None)
        value.backward()
        results.append((value.detach(), model.words.weight.grad))
    for found, expected in zip(*results, strict=True):
        torch.testing.assert_close(found, expected, rtol=1e-10, atol=1e-12)


@pytest.mark.parametrize("name", [PLAIN, CACHED])
@pytest.mark.parametrize("options", [{}, BOTH_WAYS])
@pytest.mark.parametrize("count", [2, 3])
@pytest.mark.parametrize("gather", [False, True])
def test_each_rank_has_the_loss_and_gradients_of_theirs(ranks, name, options, count, gather):
    options = {"gather_across_devices": gather, **options}
    job = adapter_jobs.ranking_losses
    for found, expected in ranks.run(job, name, count, options):
        for one, other in zip(found, expected, strict=True):
            np.testing.assert_allclose(one, other, rtol=1e-10, atol=1e-13)


@pytest.mark.parametrize("name", [PLAIN, CACHED])
def test_it_is_one_of_theirs(name):
    ours, other = (getattr(module, name) for module in (mine, theirs))
    assert issubclass(ours, other)
    assert inspect.signature(ours) == inspect.signature(other)
    assert ours(SmallModel()).get_config_dict() == other(SmallModel()).get_config_dict()
    for one in (ours, other):
        with pytest.raises(ValueError, match="positive value"):
            one(SmallModel(), scale=-1.0)
    with pytest.raises(ValueError, match="at least 2"):
        mine.MultipleNegativesRankingLoss(SmallModel()).compute_loss_from_embeddings(
            columns("random", 1), None
        )
