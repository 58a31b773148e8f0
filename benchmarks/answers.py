"""What a right answer is: every one is compared with float64 before it is timed."""

from __future__ import annotations

import math
from typing import Any, NamedTuple

import numpy as np
import torch
from torch import Tensor

import loss_answers
from cases import LOSSES, Case
from contender import Contender
from cossim_fast import _reference
from peers import incoming_gradient

# Rows whose answers are compared: all of them would take longer than what is measured.
CHECKED = 64
# Beyond these differences from float64 an answer is wrong, and is not timed.
WRONG = {torch.float32: 1e-5, torch.float16: 1e-2, torch.bfloat16: 5e-2}
# An approximate contender may lose so much of a score; more is a mistake in how it is called.
WRONG_APPROXIMATE = 0.05
# Products in float64 are right to this: closer scores are computed again, in a fixed order.
CLOSE = 1e-12
BLOCK = 65536
BUILT_K = 10


class Checked(NamedTuple):
    """How an answer compares with float64."""

    error: float | None  # largest difference; None where there is nothing to compare
    wrong: int | None = None  # rows or pairs returned, or left out, that float64 would not
    of: int | None = None  # among so many


class Exact(NamedTuple):
    """The right answer, for some rows."""

    rows: Tensor
    answer: Any


def check(
    case: Case, contender: Contender, answer: Any, inputs: list[Any], exact: Exact
) -> Checked:
    """Compare an answer with the exact one."""
    if case.task == "monitor":
        return Checked(None)
    if case.task == "build":
        # What was built is asked for the neighbours of a few of its own rows.
        answer = answer(inputs[0][exact.rows], BUILT_K)
    answer = contender.read(answer, case)
    if case.task in LOSSES:
        return Checked(loss_answers.error(case, answer, exact.answer))
    if case.task in ("top-k", "one shot", "mapped", "build"):
        scores, found = (torch.as_tensor(part).cpu() for part in answer)
        if case.task != "build":
            scores, found = scores[exact.rows], found[exact.rows]
        queries = inputs[0][exact.rows]
        corpus = inputs[-1]
        return check_search(queries, corpus, scores.double(), found.long(), exact.answer)
    if case.task in ("join", "mapped join"):
        kept = torch.isin(answer[:, 0], exact.rows)
        partial = contender.approximate
        return check_pairs(len(inputs[0]), answer[kept], exact.answer, case.threshold, partial)
    parts = answer if isinstance(answer, tuple | list) else (answer,)
    if case.task == "matrix gradient":
        parts = parts[:1]
    picked = torch.stack([torch.as_tensor(part).cpu()[exact.rows].double() for part in parts])
    return Checked((picked - exact.answer.reshape(picked.shape)).abs().max().item())


def acceptable(case: Case, contender: Contender, checked: Checked) -> bool:
    """Whether the answer is good enough to be timed."""
    if checked.error is None:
        return True
    if case.task in LOSSES:
        return checked.error <= loss_answers.WRONG
    return checked.error <= (WRONG_APPROXIMATE if contender.approximate else WRONG[case.dtype])


def expected(case: Case, inputs: list[Any]) -> Exact:
    """The answer in float64, for some rows."""
    n = len(inputs[0])
    rows = torch.linspace(0, n - 1, CHECKED).long().unique()
    if case.task == "monitor":
        return Exact(rows, None)
    if case.task in LOSSES:
        return Exact(rows, loss_answers.expected(case, *inputs))
    if case.task == "report":
        return Exact(torch.tensor([0]), mean_cosine(inputs[0]))
    if case.task == "join":
        return Exact(torch.arange(n), pairs(inputs[0], case.threshold))
    if case.task == "mapped join":
        return Exact(rows, pairs(inputs[0], case.threshold, rows))
    if case.task in ("top-k", "one shot", "mapped", "build"):
        return Exact(rows, best_rows(inputs[0][rows], inputs[-1], case.k or BUILT_K))
    x = inputs[0][rows].double()
    y = (inputs[-1][rows] if case.task.startswith("rows") else inputs[-1]).double()
    if case.task == "rows":
        return Exact(rows, _reference.cosine_similarity(x, y))
    if case.task == "broadcast":
        return Exact(rows, _reference.cosine_similarity(x, y, dim=-1))
    if case.task == "rows gradient":
        x.requires_grad_()
        y.requires_grad_()
        total = _reference.cosine_similarity(x, y).sum()
        return Exact(rows, torch.stack(torch.autograd.grad(total, (x, y))))
    if case.task == "matrix gradient":
        # Of the first input alone: a row of it needs one row of the incoming gradient.
        x.requires_grad_()
        incoming = incoming_gradient(case, *inputs)[rows].double()
        return Exact(rows, torch.autograd.grad(_reference.pairwise_cosine(x, y), x, incoming)[0])
    return Exact(rows, _reference.pairwise_cosine(x, y))


def unit(x: Any) -> Tensor:
    """Rows of length 1 in float64, of a tensor or a block of a memory map; zero rows stay zero."""
    wide = torch.from_numpy(np.asarray(x, np.float64)) if not isinstance(x, Tensor) else x.double()
    norms = wide.norm(dim=1, keepdim=True)
    return wide / torch.where(norms == 0, 1.0, norms)


def best_rows(queries: Tensor, corpus: Any, k: int) -> tuple[Tensor, Tensor]:
    """Scores (q, k) and rows (q, k) of the best, ties to the smaller row, by brute force."""
    q = unit(queries)
    scores, rows = torch.empty(len(q), 0, dtype=torch.float64), torch.empty(len(q), 0).long()
    for start in range(0, len(corpus), BLOCK):
        block = unit(corpus[start : start + BLOCK])
        found = q @ block.T
        # All that could be among the best once they are computed in a fixed order.
        bound = found.topk(min(k, len(block)), dim=1).values[:, -1:] - CLOSE
        merged = [
            _best(q[i], block, start, (found[i] >= bound[i]).nonzero()[:, 0], scores[i], rows[i], k)
            for i in range(len(q))
        ]
        scores, rows = (torch.stack(part) for part in zip(*merged, strict=True))
    return scores, rows


def _best(
    query: Tensor, block: Tensor, start: int, near: Tensor, scores: Tensor, rows: Tensor, k: int
) -> tuple[Tensor, Tensor]:
    scores = torch.cat([scores, (block[near] * query).sum(1)])
    rows = torch.cat([rows, near + start])
    # Rows come in rising order, and a stable sort leaves equal scores so.
    best = scores.argsort(descending=True, stable=True)[:k]
    return scores[best], rows[best]


def check_search(
    queries: Tensor, corpus: Any, scores: Tensor, found: Tensor, exact: tuple[Tensor, Tensor]
) -> Checked:
    """Compare what a search returned: its scores, how good its rows are, and which they are."""
    best_scores, best = exact
    total = best.numel()
    distinct = all(len(set(rows)) == len(rows) for rows in found.tolist())
    if found.shape != best.shape or not distinct or found.min() < 0 or found.max() >= len(corpus):
        return Checked(math.inf, total, total)
    q = unit(queries)
    picked = unit(
        corpus[found.flatten().numpy() if not isinstance(corpus, Tensor) else found.flatten()]
    )
    true = (q[:, None] * picked.view(*found.shape, -1)).sum(-1)
    reported = (scores - true).abs().max().item()
    lost = (best_scores - true.sort(1, descending=True).values).abs().max().item()
    wrong = sum(
        len(set(got) - set(wanted))
        for got, wanted in zip(found.tolist(), best.tolist(), strict=True)
    )
    return Checked(max(reported, lost), wrong, total)


def pairs(x: Any, threshold: float, firsts: Tensor | None = None) -> tuple[Tensor, Tensor]:
    """Every pair i < j near or above the threshold (number, 2), and its cosine.

    With `firsts`, those whose i is among them.
    """
    near = threshold - max(WRONG.values())
    firsts = torch.arange(len(x)) if firsts is None else firsts
    found, cosines = [torch.empty(0, 2).long()], [torch.empty(0).double()]
    for start in range(0, len(x), BLOCK):
        block = unit(x[start : start + BLOCK])
        others = torch.arange(start, start + len(block))
        for some in firsts[firsts < start + len(block)].split(1024):
            scores = unit(x[some if isinstance(x, Tensor) else some.numpy()]) @ block.T
            hits = ((scores >= near) & (some[:, None] < others)).nonzero()
            cosines.append(scores[hits[:, 0], hits[:, 1]])
            found.append(torch.stack([some[hits[:, 0]], others[hits[:, 1]]], 1))
    return torch.cat(found), torch.cat(cosines)


def check_pairs(
    n: int, answer: Tensor, exact: tuple[Tensor, Tensor], threshold: float, partial: bool = False
) -> Checked:
    """Compare pairs: which are missing or too many, and how far from the threshold those are.

    Of a partial answer the missing ones are counted, and no error.
    """
    near, cosines = exact
    known, order = (near[:, 0] * n + near[:, 1]).sort()
    cosines = cosines[order]
    right = known[cosines >= threshold]
    ends = answer.sort(1).values
    got = (ends[:, 0] * n + ends[:, 1]).unique()
    differ = torch.from_numpy(np.setxor1d(got.numpy(), right.numpy()))
    wrong = differ[~torch.isin(differ, right)] if partial else differ
    error = 0.0
    if len(wrong):
        # A pair that is not even near has any cosine: as wrong as can be.
        place = torch.searchsorted(known, wrong).clamp_max(max(len(known) - 1, 0))
        is_near = torch.isin(wrong, known)
        far = torch.full((len(wrong),), -1.0, dtype=torch.float64)
        far[is_near] = cosines[place[is_near]]
        error = (far - threshold).abs().max().item()
    if len(answer) != len(got):
        error = math.inf
    return Checked(error, len(differ), len(right))


def mean_cosine(x: Tensor) -> Tensor:
    """The mean cosine of all pairs of different rows."""
    rows = unit(x)
    n = len(rows)
    return ((rows.sum(0).square().sum() - rows.square().sum()) / (n * (n - 1))).reshape(1)
