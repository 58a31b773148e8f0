"""A wrong answer is refused before it is timed, whatever the task; a right one passes."""

import numpy as np
import pytest
import torch
import torch.nn.functional as F

import answers
import loss_peers
import timing
from cases import CASES, LOSSES, Case
from contender import Contender, Part
from peers import contenders


def case_of(task, shapes, dtype=torch.float32, **rest):
    return Case(task, shapes, dtype, 1, **rest)


def outcome(case, answer, read=None, approximate=False):
    """Whether this answer of a contender would be timed, and how it was judged."""
    inputs = timing.make_inputs(case)
    kind = {"read": read} if read else {}
    contender = Contender("theirs", lambda *_: None, approximate=approximate, **kind)
    checked = answers.check(
        case, contender, answer(*inputs), inputs, answers.expected(case, inputs)
    )
    return answers.acceptable(case, contender, checked), checked


ROWS = case_of("rows", ((70, 9), (70, 9)))
MATRIX = case_of("matrix", ((70, 9), (50, 9)))
TOPK = case_of("top-k", ((6, 16), (300, 16)), k=5)
TIED = case_of("top-k", ((6, 16), (300, 16)), k=5, data="duplicates")
JOIN = case_of("join", ((400, 16),), threshold=0.6)
REPORT = case_of("report", ((90, 16),))
LOSS = case_of("symmetric loss", ((70, 9), (70, 9)), data="views")


def cosines(x, y):
    return F.normalize(x) @ F.normalize(y).T


def best(x, y):
    found = cosines(x, y).topk(5)
    return found.values, found.indices


def above(x):
    return (cosines(x, x).triu(1) >= 0.6).nonzero()


def loss_and_gradients(x, y):
    leaves = [t.clone().requires_grad_() for t in (x, y)]
    logits = cosines(*leaves) / loss_peers.TEMPERATURE
    rows = torch.arange(len(x))
    loss = (F.cross_entropy(logits, rows) + F.cross_entropy(logits.T, rows)) / 2
    return loss, *torch.autograd.grad(loss, leaves)


RIGHT = {
    "rows": (ROWS, F.cosine_similarity),
    "matrix": (MATRIX, cosines),
    "top-k": (TOPK, best),
    "join": (JOIN, above),
    "symmetric loss": (LOSS, loss_and_gradients),
    "report": (REPORT, lambda x: (cosines(x, x).sum()[None] - 90) / (90 * 89)),
    "rows gradient": (
        case_of("rows gradient", ((70, 9), (70, 9))),
        torch.func.grad(lambda *z: F.cosine_similarity(*z).sum(), (0, 1)),
    ),
}


def one_direction(x, y):
    leaves = [t.clone().requires_grad_() for t in (x, y)]
    logits = cosines(*leaves) / loss_peers.TEMPERATURE
    loss = F.cross_entropy(logits, torch.arange(len(x)))
    return loss, *torch.autograd.grad(loss, leaves)


def spoiled_gradient(x, y):
    loss, dx, dy = loss_and_gradients(x, y)
    dy[-1] *= 1.1
    return loss, dx, dy


def spoiled_row(x, y):
    found = F.cosine_similarity(x, y)
    found[-1] += 1e-4
    return found


def spoiled_entry(x, y):
    found = cosines(x, y)
    found[-1, -1] += 1e-4
    return found


def second_best(x, y):
    found = cosines(x, y).topk(6)
    return found.values[:, 1:], found.indices[:, 1:]


def a_row_twice(x, y):
    scores, rows = best(x, y)
    rows[0, 1] = rows[0, 0]
    return scores, rows


def a_row_missing(x, y):
    scores, rows = best(x, y)
    rows[0, 4] = -1
    return scores, rows


def scores_of_others(x, y):
    scores, rows = best(x, y)
    return scores + 1e-3, rows


WRONG = {
    "a row": (ROWS, spoiled_row),
    "an entry": (MATRIX, spoiled_entry),
    "NaN": (MATRIX, lambda x, y: cosines(x, y) * float("nan")),
    "second best": (TOPK, second_best),
    "row twice": (TOPK, a_row_twice),
    "row missing": (TOPK, a_row_missing),
    "scores": (TOPK, scores_of_others),
    "too few": (TOPK, lambda x, y: tuple(part[:, :4] for part in best(x, y))),
    "pair missing": (JOIN, lambda x: above(x)[1:]),
    "pair too many": (JOIN, lambda x: torch.cat([above(x), torch.tensor([[0, 399]])])),
    "pair twice": (JOIN, lambda x: torch.cat([above(x), above(x)[:1].flip(1)])),
    "mean": (REPORT, lambda x: torch.tensor([0.5])),
    "loss": (LOSS, one_direction),
    "gradient": (LOSS, spoiled_gradient),
    "NaN in a gradient": (LOSS, lambda x, y: [part * float("nan") for part in (x.sum(), x, y)]),
}


@pytest.mark.parametrize("name", RIGHT)
def test_a_right_answer_passes(name):
    case, answer = RIGHT[name]
    accepted, checked = outcome(case, answer)
    assert accepted
    assert checked.error < (1e-4 if case.task in LOSSES else 1e-6)
    assert not checked.wrong


@pytest.mark.parametrize("name", WRONG)
def test_a_wrong_answer_is_refused(name):
    assert not outcome(*WRONG[name])[0]


def test_an_approximate_contender_may_lose_a_little_and_its_rows_are_counted():
    accepted, checked = outcome(TOPK, second_best, approximate=True)
    assert checked.wrong == 6  # one row for each query
    assert checked.of == 30
    assert not accepted, "second best is further than an approximation may be"
    assert outcome(TOPK, lambda x, y: (best(x, y)[0] + 1e-3, best(x, y)[1]), approximate=True)[0]


def test_another_of_equal_rows_is_counted_and_accepted():
    def larger_rows(x, y):
        scores, rows = cosines(x, y.flip(0)).topk(5)
        return scores, len(y) - 1 - rows

    accepted, checked = outcome(TIED, larger_rows)
    assert accepted
    assert checked.wrong > 0


def test_ties_go_to_the_smaller_row():
    x = torch.eye(4)[[0, 1, 0, 0, 1]]
    _, rows = answers.best_rows(torch.eye(4)[:1], x, 4)
    assert rows.tolist() == [[0, 2, 3, 1]]


def test_best_rows_do_not_depend_on_blocks(monkeypatch):
    inputs = timing.make_inputs(TIED)
    whole = answers.best_rows(*inputs, 50)
    monkeypatch.setattr(answers, "BLOCK", 37)
    for one, other in zip(whole, answers.best_rows(*inputs, 50), strict=True):
        assert torch.equal(one, other)


def small(case):
    """The case with few rows, and float32 where that leaves it the same contenders."""
    shapes = tuple((*(min(n, 200) for n in s[:-1]), min(s[-1], 384)) for s in case.shapes)
    return case._replace(shapes=shapes, k=min(case.k, 10), headline=False, threads=1)


TASKS = {case.task: case for case in reversed(CASES) if case.task != "monitor"}


@pytest.mark.parametrize("task", TASKS)
def test_every_contender_that_is_installed_is_right(task, tmp_path):
    case = small(TASKS[task])
    inputs = timing.make_inputs(case, tmp_path)
    exact = answers.expected(case, inputs)
    for contender in contenders(case):
        if contender.missing() is not None or contender.name == "ChunkDot":
            continue  # ChunkDot is compiled for half a minute
        call = contender.prepare(case, *inputs)
        answer = call.call() if isinstance(call, Part) else call()
        if not contender.floor:
            checked = answers.check(case, contender, answer, inputs, exact)
            assert answers.acceptable(case, contender, checked), (contender.name, checked)


def test_a_memory_map_holds_the_rows_of_the_case(tmp_path):
    case = case_of("mapped", ((3, 8), (500, 8)), torch.float16, k=2)
    queries, rows = timing.make_inputs(case, tmp_path)
    assert isinstance(rows, np.memmap)
    assert (queries.shape, rows.shape, rows.dtype) == ((3, 8), (500, 8), np.float16)
    assert np.isfinite(rows).all()
    again = timing.make_inputs(case, tmp_path)[1]
    assert (rows == again).all()
