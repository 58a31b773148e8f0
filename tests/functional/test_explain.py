"""Which executor runs a call is decided beforehand, by one predicate that can be asked."""

import pytest
import torch
from torch import nn

from cossim_fast import cosine_similarity, explain, pairwise_cosine
from cossim_fast.testing import make_inputs

X, Y = make_inputs((300, 64), (300, 64))
SMALL_X, SMALL_Y = make_inputs((3, 4), (3, 4))


class Subclass(torch.Tensor):
    pass


@pytest.mark.parametrize(
    ("function", "args", "executor", "form"),
    [
        (cosine_similarity, (X, Y), "blocked", "paired rows"),
        (cosine_similarity, (X[:, None], Y[None], -1), "blocked", "matrix product"),
        (pairwise_cosine, (X, Y), "blocked", "matrix product"),
        (pairwise_cosine, (X,), "blocked", "matrix product"),
        (cosine_similarity, (SMALL_X, SMALL_Y), "numpy in float64", "paired rows"),
        (
            cosine_similarity,
            (SMALL_X.half(), SMALL_Y),
            "torch's own function in float64",
            "paired rows",
        ),
        (
            cosine_similarity,
            (SMALL_X, nn.Parameter(SMALL_Y)),
            "torch's own function in float64",
            "paired rows",
        ),
        (
            cosine_similarity,
            (X, nn.Parameter(Y)),
            "blocked, inside one autograd function",
            "paired rows",
        ),
        (
            pairwise_cosine,
            (nn.Parameter(X),),
            "blocked, inside one autograd function",
            "matrix product",
        ),
        (cosine_similarity, (X.as_subclass(Subclass), Y), "composite", "paired rows"),
        (pairwise_cosine, (X.to("meta"), Y.to("meta")), "composite", "matrix product"),
    ],
)
def test_executor_and_form(function, args, executor, form):
    answer = explain(function, *args)
    assert (answer.executor, answer.form) == (executor, form)
    assert str(answer) == f"{executor}, {form}: {answer.reason}"


def test_the_answer_follows_the_state_of_torch():
    leaf = X.clone().requires_grad_()
    assert explain(pairwise_cosine, leaf).executor == "blocked, inside one autograd function"
    with torch.no_grad():
        assert explain(pairwise_cosine, leaf).executor == "blocked"
    with torch.autograd.forward_ad.dual_level():
        assert explain(pairwise_cosine, X).executor == "composite"
    seen = []
    torch.vmap(lambda a: seen.append(explain(pairwise_cosine, a).executor) or a)(X[None])
    assert seen == ["composite"]


def test_nothing_is_computed():
    x = torch.empty(1 << 20, 1, device="meta")
    assert explain(pairwise_cosine, x).form == "matrix product"
    wide = torch.zeros(1, 1).expand(1 << 20, 8)
    assert explain(pairwise_cosine, wide, y=None).executor == "blocked"
