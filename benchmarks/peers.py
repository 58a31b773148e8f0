"""Against whom: every contender of a task, in its best documented configuration.

`prepare` gets the inputs and returns the call that is timed; conversions that a user of the
library would not pay stay outside the call. Floors do less than the task: they show its limit.
"""

from __future__ import annotations

import importlib.util
from collections.abc import Callable
from typing import Any, NamedTuple

import torch
import torch.nn.functional as F
from torch import Tensor

import cossim_fast
from cases import METRICS, NORMALIZE, OURS, OURS_OUT, PRODUCT, READ, SENTENCE, TORCH, Task

Call = Callable[[], Any]
Prepare = Callable[..., Call]


class Contender(NamedTuple):
    """One way to do a task."""

    name: str
    prepare: Prepare
    module: str = "torch"  # what has to be installed
    floor: bool = False


def installed(module: str) -> bool:
    """Whether the package of a module can be imported here."""
    return importlib.util.find_spec(module.partition(".")[0]) is not None


def calling(function: Callable[..., Any]) -> Prepare:
    """Time function(*inputs)."""
    return lambda *inputs: lambda: function(*inputs)


def gradients_of(function: Callable[..., Tensor]) -> Prepare:
    """Time forward and backward with a gradient of ones."""

    def prepare(*inputs: Tensor) -> Call:
        leaves = [x.detach().requires_grad_() for x in inputs]
        ones = torch.ones(inputs[0].shape[0], dtype=inputs[0].dtype)
        return lambda: torch.autograd.grad(function(*leaves), leaves, ones)

    return prepare


def _normalized_product(x: Tensor, y: Tensor) -> Tensor:
    return F.normalize(x) @ F.normalize(y).T


def _read(x: Tensor, y: Tensor) -> Call:
    return lambda: x.sum() + y.sum()


def _product(x: Tensor, y: Tensor | None = None) -> Call:
    other = x if y is None else y
    x, other = x.reshape(-1, x.shape[-1]), other.reshape(-1, other.shape[-1])
    out = x.new_zeros(x.shape[0], other.shape[0])
    return lambda: torch.mm(x, other.T, out=out)


def _ours_out(x: Tensor, y: Tensor) -> Call:
    out = x.new_zeros(x.shape[0], y.shape[0])
    return lambda: cossim_fast.pairwise_cosine(x, y, out=out)


def _sentence_transformers(x: Tensor, y: Tensor | None = None) -> Call:
    # https://sbert.net/docs/package_reference/util.html
    from sentence_transformers.util import cos_sim  # noqa: PLC0415

    return lambda: cos_sim(x, x if y is None else y)


def _torchmetrics(x: Tensor, y: Tensor | None = None) -> Call:
    # https://lightning.ai/docs/torchmetrics/stable/pairwise/cosine_similarity.html
    from torchmetrics.functional.pairwise import pairwise_cosine_similarity  # noqa: PLC0415

    return lambda: pairwise_cosine_similarity(x, y, zero_diagonal=False)


def _scikit_learn(x: Tensor, y: Tensor | None = None) -> Call:
    # https://scikit-learn.org/stable/modules/generated/sklearn.metrics.pairwise.cosine_similarity.html
    from sklearn.metrics.pairwise import cosine_similarity  # noqa: PLC0415

    a, b = x.numpy(), None if y is None else y.numpy()
    return lambda: cosine_similarity(a, b)


_MATRIX = (
    Contender(OURS, calling(cossim_fast.pairwise_cosine)),
    Contender(OURS_OUT, _ours_out),
    Contender(NORMALIZE, calling(_normalized_product)),
    Contender(SENTENCE, _sentence_transformers, "sentence_transformers.util"),
    Contender(METRICS, _torchmetrics, "torchmetrics.functional.pairwise"),
    Contender("scikit-learn", _scikit_learn, "sklearn.metrics.pairwise"),
    Contender(PRODUCT, _product, floor=True),
)

CONTENDERS: dict[Task, tuple[Contender, ...]] = {
    "rows": (
        Contender(OURS, calling(cossim_fast.cosine_similarity)),
        Contender(TORCH, calling(F.cosine_similarity)),
        Contender(READ, _read, floor=True),
    ),
    "rows gradient": (
        Contender(OURS, gradients_of(cossim_fast.cosine_similarity)),
        Contender(TORCH, gradients_of(F.cosine_similarity)),
    ),
    "broadcast": (
        Contender(OURS, calling(lambda x, y: cossim_fast.cosine_similarity(x, y, dim=-1))),
        Contender(TORCH, calling(lambda x, y: F.cosine_similarity(x, y, dim=-1))),
        Contender(PRODUCT, _product, floor=True),
    ),
    "matrix": _MATRIX,
    "self": (
        Contender(OURS, calling(cossim_fast.pairwise_cosine)),
        Contender(f"{OURS}, y given", calling(lambda x: cossim_fast.pairwise_cosine(x, x))),
        *_MATRIX[3:],
    ),
}


def contenders(task: Task, dtype: torch.dtype) -> tuple[Contender, ...]:
    """Return the contenders of a task that take this dtype, installed or not."""
    if task == "matrix" and dtype != torch.float32:
        # scikit-learn has no narrower product; with out= there is no bare product to compare.
        names = (OURS, NORMALIZE, SENTENCE, METRICS)
        return tuple(c for c in CONTENDERS[task] if c.name in names)
    return CONTENDERS[task]
