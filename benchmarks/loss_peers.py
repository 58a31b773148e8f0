"""Contrastive losses against whom: each is timed with its gradients by its inputs.

An answer is the loss and its gradients. The temperature, or its inverse, is what the library that
the loss comes from takes by default.
"""

from __future__ import annotations

import functools
import importlib.util
from collections.abc import Callable
from pathlib import Path
from typing import Any

import torch
import torch.nn.functional as F
from torch import Tensor

import floors
from cases import (
    CACHED,
    HALF_A_PRODUCT,
    LIGHTLY,
    LINEAR_CROSS_ENTROPY,
    METRIC_LEARNING,
    OPEN_CLIP,
    OURS,
    PLAIN,
    PRODUCTS,
    Case,
    Task,
)
from contender import Call, Contender
from cossim_fast import losses

TEMPERATURE = 0.07
# Of SigLIP, after some training.
SCALE, BIAS = 50.0, -10.0
NT_XENT_TEMPERATURE = 0.5
SUP_CON_TEMPERATURE = 0.1
# Of the triplet loss: large enough that no row's loss is 0.
MARGIN = 0.9
# CachedMultipleNegativesRankingLoss's own scale.
CACHED_SCALE = 20.0

Loss = Callable[[Tensor, Tensor], Tensor]
Answer = tuple[Tensor, Tensor, Tensor]


def of_loss(loss: Loss) -> Callable[..., Call]:
    """Time a loss and its gradients."""

    def prepare(case: Case, x: Tensor, y: Tensor) -> Call:
        leaves = [t.detach().requires_grad_() for t in (x, y)]

        def call() -> Answer:
            value = loss(*leaves)
            dx, dy = torch.autograd.grad(value, leaves)
            return value.detach(), dx, dy

        return call

    return prepare


def _ours_one_way(x: Tensor, y: Tensor) -> Tensor:
    return losses.info_nce(x, y, temperature=TEMPERATURE)


def _ours_symmetric(x: Tensor, y: Tensor) -> Tensor:
    return losses.info_nce(x, y, temperature=TEMPERATURE, symmetric=True)


def _ours_siglip(x: Tensor, y: Tensor) -> Tensor:
    return losses.siglip(x, y, SCALE, BIAS)


def _ours_nt_xent(x: Tensor, y: Tensor) -> Tensor:
    return losses.nt_xent(x, y, temperature=NT_XENT_TEMPERATURE)


# Plain, as well as torch's operations allow: rows are scaled, which are few, not the matrix; one
# product serves both directions.
def _logits(x: Tensor, y: Tensor, scale: float) -> Tensor:
    return (F.normalize(x) * scale) @ F.normalize(y).T


def _own(logits: Tensor) -> Tensor:
    return torch.arange(len(logits))


def _plain_one_way(x: Tensor, y: Tensor) -> Tensor:
    logits = _logits(x, y, 1 / TEMPERATURE)
    return F.cross_entropy(logits, _own(logits))


def _plain_symmetric(x: Tensor, y: Tensor) -> Tensor:
    logits = _logits(x, y, 1 / TEMPERATURE)
    rows = _own(logits)
    return (F.cross_entropy(logits, rows) + F.cross_entropy(logits.T, rows)) / 2


def _plain_siglip(x: Tensor, y: Tensor) -> Tensor:
    # softplus(S) summed over all pairs, but softplus(-S) = softplus(S) - S of the positives.
    logits = _logits(x, y, SCALE).add_(BIAS)
    return (F.softplus(logits).sum() - logits.diagonal().sum()) / len(logits)


def _plain_nt_xent(x: Tensor, y: Tensor) -> Tensor:
    z = F.normalize(torch.cat([x, y]))
    logits = (z / NT_XENT_TEMPERATURE) @ z.T
    logits.diagonal().fill_(-torch.inf)
    return F.cross_entropy(logits, _own(logits).roll(len(x)))


def _linear_cross_entropy(x: Tensor, y: Tensor) -> Tensor:
    # https://docs.pytorch.org/docs/stable/generated/torch.nn.functional.linear_cross_entropy.html,
    # in chunks: what it is for. Its options are those it chooses itself.
    options = torch.nn.LinearCrossEntropyOptions()
    rows = F.normalize(x) / TEMPERATURE
    return F.linear_cross_entropy(rows, F.normalize(y), _own(x), options=options)


# https://github.com/mlfoundations/open_clip/blob/main/src/open_clip/loss.py: it takes unit rows,
# which its models make by F.normalize.
def _open_clip(x: Tensor, y: Tensor) -> Tensor:
    value: Tensor = _open_clip_losses().ClipLoss()(F.normalize(x), F.normalize(y), 1 / TEMPERATURE)
    return value


def _open_clip_siglip(x: Tensor, y: Tensor) -> Tensor:
    value: Tensor = _open_clip_losses().SigLipLoss()(F.normalize(x), F.normalize(y), SCALE, BIAS)
    return value


@functools.cache
def _open_clip_losses() -> Any:
    """Load its module of losses alone.

    The whole package needs torchvision, which PyPI has for a torch that was built for CUDA.
    """
    package = importlib.util.find_spec("open_clip")
    if package is None or not package.submodule_search_locations:
        raise RuntimeError("open_clip is not installed")
    path = Path(package.submodule_search_locations[0], "loss.py")
    spec = importlib.util.spec_from_file_location("open_clip_losses", path)
    if spec is None or spec.loader is None:
        raise RuntimeError(f"expected open_clip's losses in {path}")
    module = importlib.util.module_from_spec(spec)
    spec.loader.exec_module(module)
    return module


def _lightly(x: Tensor, y: Tensor) -> Tensor:
    # https://docs.lightly.ai/self-supervised-learning/lightly.loss.html
    from lightly.loss import NTXentLoss  # noqa: PLC0415

    value: Tensor = NTXentLoss(temperature=NT_XENT_TEMPERATURE)(x, y)
    return value


def _in_batches(stage: Callable[[list[list[Tensor]]], Tensor]) -> Callable[..., Call]:
    """Time what comes after a batch was embedded in mini-batches: the loss, and its gradients."""

    def prepare(case: Case, x: Tensor, y: Tensor) -> Call:
        def call() -> Answer:
            parts = [
                [part.detach().requires_grad_() for part in t.split(case.batch)] for t in (x, y)
            ]
            value = stage(parts)
            dx, dy = (torch.cat([_gradient(part) for part in some]) for some in parts)
            return value, dx, dy

        return call

    return prepare


def _gradient(leaf: Tensor) -> Tensor:
    if leaf.grad is None:
        raise RuntimeError("expected a gradient by every embedding")
    return leaf.grad


def _ours_cached(parts: list[list[Tensor]]) -> Tensor:
    queries, keys = (torch.cat(some) for some in parts)
    value = losses.info_nce(queries, keys, temperature=1 / CACHED_SCALE)
    value.backward()  # type: ignore[no-untyped-call]
    return value.detach()


def _sentence_transformers(case: Case, x: Tensor, y: Tensor) -> Call:
    # https://sbert.net/docs/package_reference/sentence_transformer/losses.html
    from sentence_transformers.sentence_transformer.losses import (  # noqa: PLC0415
        CachedMultipleNegativesRankingLoss,
    )

    loss: Any = CachedMultipleNegativesRankingLoss(
        torch.nn.Sequential(torch.nn.Identity()), scale=CACHED_SCALE, mini_batch_size=case.batch
    )
    return _in_batches(lambda parts: loss.calculate_loss(parts, with_backward=True))(case, x, y)


def of_classes(loss: Loss) -> Callable[..., Call]:
    """Time a loss of rows and their labels, and its gradient."""

    def prepare(case: Case, x: Tensor) -> Call:
        leaf, labels = x.detach().requires_grad_(), labels_of(len(x))

        def call() -> tuple[Tensor, ...]:
            value = loss(leaf, labels)
            return value.detach(), *torch.autograd.grad(value, leaf)

        return call

    return prepare


def labels_of(n: int) -> Tensor:
    """Four rows to a class: of rows that are views, two items in two views each."""
    return torch.arange(n) % max(n // 4, 1)


def _ours_sup_con(x: Tensor, labels: Tensor) -> Tensor:
    return losses.sup_con(x, labels, temperature=SUP_CON_TEMPERATURE)


def _ours_batch_hard(x: Tensor, labels: Tensor) -> Tensor:
    return losses.batch_hard_triplet(x, labels, margin=MARGIN)


def plain_sup_con(x: Tensor, labels: Tensor) -> Tensor:
    """The loss from the whole matrix."""
    unit = F.normalize(x)
    logits = (unit / SUP_CON_TEMPERATURE) @ unit.T
    positive = (labels[:, None] == labels).fill_diagonal_(False)
    logits.diagonal().fill_(-torch.inf)
    each = torch.where(positive, logits, 0.0).sum(1) / positive.sum(1)
    return (logits.logsumexp(1) - each).mean()


def _plain_batch_hard(x: Tensor, labels: Tensor) -> Tensor:
    """The loss from the whole matrix."""
    unit = F.normalize(x)
    cosines = unit @ unit.T
    same = labels[:, None] == labels
    others = (~same).fill_diagonal_(True)
    nearest = cosines.masked_fill(same, -torch.inf).amax(1)
    farthest = cosines.masked_fill(others, torch.inf).amin(1)
    return (MARGIN + nearest - farthest).relu().mean()


# https://kevinmusgrave.github.io/pytorch-metric-learning/
def _pml_sup_con(x: Tensor, labels: Tensor) -> Tensor:
    from pytorch_metric_learning.losses import SupConLoss  # noqa: PLC0415

    value: Tensor = SupConLoss(temperature=SUP_CON_TEMPERATURE)(x, labels)
    return value


def _pml_batch_hard(x: Tensor, labels: Tensor) -> Tensor:
    from pytorch_metric_learning import distances, losses, miners, reducers  # noqa: PLC0415

    cosine = distances.CosineSimilarity()
    hard = miners.BatchHardMiner(distance=cosine)(x, labels)
    loss = losses.TripletMarginLoss(MARGIN, distance=cosine, reducer=reducers.MeanReducer())
    value: Tensor = loss(x, labels, hard)
    return value


def _floor(count: int) -> Contender:
    return Contender(PRODUCTS[count], floors.fastest_products(count), floor=True)


CONTENDERS: dict[Task, tuple[Contender, ...]] = {
    "one-way loss": (
        Contender(OURS, of_loss(_ours_one_way)),
        Contender(PLAIN, of_loss(_plain_one_way)),
        Contender(
            LINEAR_CROSS_ENTROPY,
            of_loss(_linear_cross_entropy),
            "torch.nn.functional:linear_cross_entropy",
        ),
        _floor(3),
    ),
    "symmetric loss": (
        Contender(OURS, of_loss(_ours_symmetric)),
        Contender(PLAIN, of_loss(_plain_symmetric)),
        Contender(OPEN_CLIP, of_loss(_open_clip), "open_clip", preloaded=False),
        _floor(4),
    ),
    "SigLIP loss": (
        Contender(OURS, of_loss(_ours_siglip)),
        Contender(PLAIN, of_loss(_plain_siglip)),
        Contender(OPEN_CLIP, of_loss(_open_clip_siglip), "open_clip", preloaded=False),
        _floor(3),
    ),
    "NT-Xent loss": (
        Contender(OURS, of_loss(_ours_nt_xent)),
        Contender(PLAIN, of_loss(_plain_nt_xent)),
        Contender(LIGHTLY, of_loss(_lightly), "lightly.loss:NTXentLoss"),
        _floor(2),
    ),
    "SupCon loss": (
        Contender(OURS, of_classes(_ours_sup_con)),
        Contender(PLAIN, of_classes(plain_sup_con)),
        Contender(METRIC_LEARNING, of_classes(_pml_sup_con), "pytorch_metric_learning"),
        _floor(2),
    ),
    "batch-hard loss": (
        Contender(OURS, of_classes(_ours_batch_hard)),
        Contender(PLAIN, of_classes(_plain_batch_hard)),
        Contender(METRIC_LEARNING, of_classes(_pml_batch_hard), "pytorch_metric_learning"),
        Contender(HALF_A_PRODUCT, floors.fastest_products(0.5), floor=True),
    ),
    "cached loss": (
        Contender(OURS, _in_batches(_ours_cached)),
        Contender(
            CACHED, _sentence_transformers, "sentence_transformers.sentence_transformer.losses"
        ),
        _floor(3),
    ),
}
