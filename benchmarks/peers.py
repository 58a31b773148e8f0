"""Against whom: the contenders of every task, each in its best documented configuration.

Those of the element-wise functions stand here; those of searches in search_peers.py, those of
losses in loss_peers.py, the limits of the machine in floors.py.
"""

from __future__ import annotations

import math
from collections.abc import Callable
from typing import Any

import numpy as np
import torch
import torch.nn.functional as F
from torch import Tensor

import cossim_fast
import floors
import loss_peers
import search_peers
import training
from cases import METRICS, NO_MONITOR, NORMALIZE, OURS, OURS_OUT, SENTENCE, TORCH, Case, Task
from contender import Call, Contender, calling
from cossim_fast import diagnose
from pair_peers import JOIN, MAPPED_JOIN

BOTH = floors.BOTH
SKLEARN_PAIRWISE = "sklearn.metrics.pairwise"
METRICS_PAIRWISE = "torchmetrics.functional.pairwise"


def gradients_of(function: Callable[..., Tensor]) -> Callable[..., Call]:
    """Time forward and backward; the gradient that comes in is Gaussian for a matrix, else ones."""

    def prepare(case: Case, *inputs: Tensor) -> Call:
        leaves = [x.detach().requires_grad_() for x in inputs]
        incoming = incoming_gradient(case, *inputs)
        return lambda: torch.autograd.grad(function(*leaves), leaves, incoming)

    return prepare


def incoming_gradient(case: Case, x: Tensor, y: Tensor) -> Tensor:
    """What backward starts from: the same for every contender."""
    if case.task == "rows gradient":
        return x.new_ones(x.shape[0])
    generator = torch.Generator().manual_seed(1)
    return torch.randn(x.shape[0], y.shape[0], generator=generator).to(x)


def _normalized_product(x: Tensor, y: Tensor) -> Tensor:
    return F.normalize(x) @ F.normalize(y).T


def _normalized_square(x: Tensor) -> Tensor:
    unit = F.normalize(x)
    return unit @ unit.T


def _compiled(function: Callable[..., Tensor]) -> Callable[..., Call]:
    # https://docs.pytorch.org/docs/stable/generated/torch.compile.html: fixed shapes, and the
    # autotuning of max-autotune has nothing to choose in a loop on CPU.
    def prepare(case: Case, *inputs: Tensor) -> Call:
        compiled = torch.compile(function, dynamic=False, fullgraph=True)
        return lambda: compiled(*inputs)

    return prepare


def _to_compile(case: Case) -> bool:
    """Compilation takes seconds: only for large cases whose peers are measured in full."""
    return case.headline and case.dtype == torch.float32 and case.shapes[0][0] >= 10000


def _ours_out(case: Case, x: Tensor, y: Tensor | None = None) -> Call:
    out = x.new_zeros(x.shape[0], len(x if y is None else y))
    return lambda: cossim_fast.pairwise_cosine(x, y, out=out)


def _sentence_transformers(case: Case, x: Tensor, y: Tensor | None = None) -> Call:
    # https://sbert.net/docs/package_reference/util.html
    from sentence_transformers.util import cos_sim  # noqa: PLC0415

    return lambda: cos_sim(x, x if y is None else y)


def _torchmetrics(case: Case, x: Tensor, y: Tensor | None = None) -> Call:
    # https://lightning.ai/docs/torchmetrics/stable/pairwise/cosine_similarity.html
    from torchmetrics.functional.pairwise import pairwise_cosine_similarity  # noqa: PLC0415

    return lambda: pairwise_cosine_similarity(x, y, zero_diagonal=False)


def _scikit_learn(case: Case, x: Tensor, y: Tensor | None = None) -> Call:
    # https://scikit-learn.org/stable/modules/generated/sklearn.metrics.pairwise.cosine_similarity.html
    from sklearn.metrics.pairwise import cosine_similarity  # noqa: PLC0415

    a, b = x.numpy(), None if y is None else y.numpy()
    return lambda: cosine_similarity(a, b)


def _scipy(case: Case, x: Tensor, y: Tensor | None = None) -> Call:
    # https://docs.scipy.org/doc/scipy/reference/generated/scipy.spatial.distance.cdist.html
    # It computes in float64 whatever it gets, so it gets float64, and pair by pair, which takes
    # many seconds where others take a tenth of one.
    from scipy.spatial.distance import cdist  # noqa: PLC0415

    a, b = x.double().numpy(), (x if y is None else y).double().numpy()
    return lambda: cdist(a, b, "cosine")


def _numkong_rows(case: Case, x: Tensor, y: Tensor) -> Call:
    # https://github.com/ashvardanian/NumKong/blob/main/python/README.md, "Dense Distances". The
    # function takes no number of threads.
    import numkong  # noqa: PLC0415

    a, b = x.numpy(), y.numpy()
    return lambda: numkong.angular(a, b)


def _numkong(case: Case, x: Tensor, y: Tensor | None = None) -> Call:
    # The same page, "All-Pairs APIs and cdist".
    import numkong  # noqa: PLC0415

    a, b = x.numpy(), (x if y is None else y).numpy()
    return lambda: numkong.cdist(a, b, metric="angular", threads=case.threads)


def _cosine_of_distance(answer: Any, case: Case) -> Tensor:
    return 1 - torch.from_numpy(np.asarray(answer))


def _mean_cosine(report: Any, case: Case) -> Tensor:
    return torch.tensor([report.mean_cosine], dtype=torch.float64)


def _float32(case: Case) -> bool:
    return case.dtype == torch.float32


def _few_pairs(case: Case) -> bool:
    return _float32(case) and case.shapes[0][0] * math.prod(case.shapes[-1]) < 2e9


_MATRIX = (
    Contender(OURS, calling(cossim_fast.pairwise_cosine), devices=BOTH),
    Contender(OURS_OUT, _ours_out, takes=_float32),
    Contender(NORMALIZE, calling(_normalized_product), devices=BOTH),
    Contender(SENTENCE, _sentence_transformers, "sentence_transformers.util", devices=BOTH),
    Contender(METRICS, _torchmetrics, METRICS_PAIRWISE, devices=BOTH),
    # Neither has a product in a narrower type.
    Contender("scikit-learn", _scikit_learn, SKLEARN_PAIRWISE, takes=_float32),
    Contender("scipy", _scipy, "scipy.spatial", read=_cosine_of_distance, takes=_few_pairs),
    Contender("NumKong", _numkong, "numkong", read=_cosine_of_distance, takes=_float32),
    *floors.PRODUCTS,
)

CONTENDERS: dict[Task, tuple[Contender, ...]] = {
    "rows": (
        Contender(OURS, calling(cossim_fast.cosine_similarity), devices=BOTH),
        Contender(TORCH, calling(F.cosine_similarity), devices=BOTH),
        Contender(
            f"{TORCH}, compiled", _compiled(F.cosine_similarity), takes=_to_compile, devices=BOTH
        ),
        Contender("NumKong", _numkong_rows, "numkong", read=_cosine_of_distance, takes=_float32),
        *floors.READS,
    ),
    "rows gradient": (
        Contender(OURS, gradients_of(cossim_fast.cosine_similarity), devices=BOTH),
        Contender(TORCH, gradients_of(F.cosine_similarity), devices=BOTH),
        *floors.COPIES,
    ),
    "broadcast": (
        Contender(
            OURS, calling(lambda x, y: cossim_fast.cosine_similarity(x, y, dim=-1)), devices=BOTH
        ),
        Contender(TORCH, calling(lambda x, y: F.cosine_similarity(x, y, dim=-1)), devices=BOTH),
        *floors.PRODUCTS[:1],
    ),
    "matrix": _MATRIX,
    "matrix gradient": (
        Contender(OURS, gradients_of(cossim_fast.pairwise_cosine), devices=BOTH),
        Contender(NORMALIZE, gradients_of(_normalized_product), devices=BOTH),
        *floors.GRADIENT,
    ),
    "self": (
        Contender(OURS, calling(cossim_fast.pairwise_cosine), devices=BOTH),
        Contender(OURS_OUT, _ours_out),
        Contender(f"{OURS}, y given", calling(lambda x: cossim_fast.pairwise_cosine(x, x))),
        Contender(NORMALIZE, calling(_normalized_square)),
        *_MATRIX[3:],
    ),
    **search_peers.CONTENDERS,
    **loss_peers.CONTENDERS,
    "join": JOIN,
    "mapped join": MAPPED_JOIN,
    "report": (
        Contender(OURS, calling(diagnose.embeddings), read=_mean_cosine),
        *floors.READS_ONE,
        *floors.HALVES[:1],
    ),
    "monitor": (
        Contender(OURS, training.inside),
        Contender(NO_MONITOR, training.alone, floor=True),
    ),
}


def contenders(case: Case) -> tuple[Contender, ...]:
    """Return the contenders of a case, installed or not; beside a busy process, few."""
    named = {OURS, *(target.against for target in case.targets)}
    return tuple(
        c
        for c in CONTENDERS[case.task]
        if case.device in c.devices and c.takes(case) and (c.name in named or not case.beside)
    )
